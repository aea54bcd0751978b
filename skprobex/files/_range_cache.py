"""Byte ranges of remote files on disk: whole entries or none."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path


def default_cache_dir():
    """Return ``$SKPROBEX_CACHE``, else a folder in the user's cache."""
    chosen = os.environ.get("SKPROBEX_CACHE")
    if chosen:
        return os.path.expanduser(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(home) / "skprobex")


class RangeCache:
    """Entries keyed by URL, the content's tag (ETag or commit) and the byte range.

    Parameters
    ----------
    folder : path-like, default=None
        None means `default_cache_dir`.
    """

    def __init__(self, folder=None):
        self.folder = (
            default_cache_dir() if folder is None else os.path.expanduser(folder)
        )

    def _path(self, *key):
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return Path(self.folder) / name[:2] / name[2:34]

    def read(self, url, tag, start, n_bytes):
        """Return the range's bytes, or None."""
        try:
            data = bytearray(self._path(url, tag, start, n_bytes).read_bytes())
        except (OSError, ValueError):  # a folder's name that is none
            return None
        return data if len(data) == n_bytes else None

    def write(self, url, tag, start, data):
        """Keep a range's bytes."""
        self._store(self._path(url, tag, start, len(data)), data)

    def read_facts(self, url):
        """Return ``(size, tag, first bytes)`` of a URL whose content never changes."""
        try:
            stored = self._path(url, "facts").read_bytes()
            facts, first = stored.split(b"\n", 1)
            facts = json.loads(facts)
            return int(facts["size"]), str(facts["tag"]), first
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_facts(self, url, size, tag, first):
        """Keep what `read_facts` returns."""
        facts = json.dumps({"size": size, "tag": tag}).encode()
        self._store(self._path(url, "facts"), facts + b"\n" + first)

    def _store(self, path, data):
        # Beside its final place, and renamed over it when whole and on the disk: a
        # reader, a crash or a power cut meets an entry or none.
        partial = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f".{path.name}-*"):
                # Of a process that was killed; one that lives writes the same bytes.
                left.unlink(missing_ok=True)
            with open(partial, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, ValueError):
            # A full or read-only disk costs the cache, not the result.
            with contextlib.suppress(OSError, ValueError):
                partial.unlink(missing_ok=True)
