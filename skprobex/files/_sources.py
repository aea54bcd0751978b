"""Where bytes come from: a file on this machine, or a remote one, range by range.

A source has a `size`, ``read(start, n_bytes)`` into fresh memory, and a `str` that
names it in errors. It is small and picklable and holds nothing open, so that workers
get handles; and it notices if the file is no longer the one that was opened.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from ..exceptions import (
    CorruptFileError,
    FileChangedError,
    RemoteError,
    WeightFileError,
)
from ._deadline import within
from ._http import HttpClient, is_strong
from ._range_cache import RangeCache

# Most headers fit, so that opening a remote file costs one request.
_FIRST_BYTES = 32 * 1024
# Seconds that a file system may take for an answer.
_PATIENCE = 120.0


class LocalFile:
    """A file on this machine, known by its size and its time of change."""

    __slots__ = ("data_start", "mtime_ns", "path", "size")

    def __init__(self, path):
        self.path = os.fspath(path)
        try:
            status = os.stat(self.path)
        except (OSError, ValueError) as error:  # also names that are none
            reason = getattr(error, "strerror", None) or error
            raise WeightFileError(
                f"{self.path!r} cannot be opened ({reason}): expected a "
                "safetensors file. If it is a link, its target is missing."
            ) from None
        if not stat.S_ISREG(status.st_mode):
            # A pipe would be waited for, and a device never ends.
            raise WeightFileError(
                f"{self.path!r} is no regular file: expected a safetensors file."
            )
        self.size, self.mtime_ns = status.st_size, status.st_mtime_ns
        self.data_start = 0

    def __str__(self):
        return self.path

    def __getstate__(self):
        return self.path, self.size, self.mtime_ns, self.data_start

    def __setstate__(self, state):
        self.path, self.size, self.mtime_ns, self.data_start = state

    def read(self, start, n_bytes):
        """Read a byte range into a new bytearray."""
        try:
            data = bytearray(n_bytes)
        except MemoryError:
            raise _too_large(n_bytes, self) from None
        self.read_into(start, memoryview(data))
        return data

    def read_into(self, start, view):
        """Read the bytes from `start` on into memory that is there."""
        n_bytes, done = len(view), 0
        try:
            with open(self.path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
                    raise FileChangedError(
                        f"{self.path} has changed since it was opened. Open the "
                        "models again."
                    )
                file.seek(start)
                while done < n_bytes:
                    count = file.readinto(view[done:])
                    if not count:
                        raise CorruptFileError(
                            f"{self.path} ends at byte {start + done}: expected "
                            f"{start + n_bytes} bytes. Fetch or write it again."
                        )
                    done += count
        except OSError as error:
            raise WeightFileError(
                f"{self.path} cannot be read ({error.strerror}): it was there when "
                "the models were opened."
            ) from None


def _too_large(n_bytes, source):
    return WeightFileError(
        f"{source}: a tensor of {n_bytes} bytes does not fit in memory."
    )


class _RemoteFile:
    """What remote files share: the first bytes at once, and a cache of ranges."""

    __slots__ = ("_first", "cache", "data_start", "size", "tag", "url")

    def __str__(self):
        return self.url

    def __getstate__(self):
        # The first bytes are of no use once the header is read.
        return {name: getattr(self, name) for name in self._state}

    def __setstate__(self, state):
        self._first = b""
        for name, value in state.items():
            setattr(self, name, value)

    _state: tuple[str, ...] = ("url", "size", "tag", "cache", "data_start")

    def forget_first(self):
        """Let go of the first bytes, after the header has been read."""
        self._first = b""

    def read(self, start, n_bytes):
        """Read a byte range into a new bytearray, from the cache if it is there."""
        head = self._first[start : start + n_bytes]
        if len(head) == n_bytes:
            return bytearray(head)
        # Without a tag, one version of the content cannot be told from the next.
        is_known = self.tag is not None
        data = self.cache.read(self.url, self.tag, start, n_bytes) if is_known else None
        if data is None:
            try:
                rest, is_same = self._fetch(start + len(head), n_bytes - len(head))
            except MemoryError:
                raise _too_large(n_bytes, self) from None
            data = bytearray(head) + rest if head else rest
            if is_known and is_same:
                self.cache.write(self.url, self.tag, start, data)
        return data

    def read_into(self, start, view):
        """Read the bytes from `start` on into memory that is there."""
        view[:] = self.read(start, len(view))

    def _fetch(self, start, n_bytes):
        """Return the bytes, and whether they are sure to be of the version opened."""
        raise NotImplementedError


class HttpFile(_RemoteFile):
    """A file that an HTTP server gives out range by range.

    Parameters
    ----------
    url : str
    cache : RangeCache
    client : HttpClient
    immutable : bool, default=False
        Whether the URL names one content for ever, as one with a commit does: then
        nothing is asked of the server that the cache can answer.
    """

    __slots__ = ("client", "immutable", "seen", "start_digest")
    _state = (*_RemoteFile._state, "client", "immutable", "seen", "start_digest")

    def __init__(self, url, cache, client, immutable=False):
        self.url, self.cache, self.client = url, cache, client
        self.data_start, self.immutable = 0, immutable
        # Of the version opened: its tag, and a digest of how it begins.
        self.seen, self.start_digest = "", ""
        known = cache.read_facts(url) if immutable else None
        if known is not None:
            self.size, self.tag, self._first = known
            return
        self._first, self.size, tag = client.first_bytes(url, _FIRST_BYTES)
        if immutable:
            # The commit is in the URL; storage behind it may change its own tags.
            self.tag = ""
            cache.write_facts(url, self.size, self.tag, bytes(self._first))
        else:
            self.tag = tag if is_strong(tag) else None
            self.seen, self.start_digest = tag, _digest(self._first)

    def _fetch(self, start, n_bytes):
        data, is_tagged = self.client.range(
            self.url, start, n_bytes, self.size, self.seen
        )
        if self.immutable:
            return data, True
        is_same = is_tagged and is_strong(self.seen)
        if not is_same:
            # No tag to go by: at least the header must be the one that was read.
            first, size, _ = self.client.first_bytes(self.url, _FIRST_BYTES)
            if size != self.size or _digest(first) != self.start_digest:
                raise FileChangedError(
                    f"{self.url} has changed since it was opened. Open the models "
                    "again."
                )
        return data, is_same


class FsspecFile(_RemoteFile):
    """A file on any file system that fsspec knows (s3, gs, az, ...)."""

    __slots__ = ()

    def __init__(self, url, cache, client=None):
        self.url, self.cache, self._first = url, cache, b""
        self.data_start = 0
        file_system, path = self._open()
        try:
            info = within(_PATIENCE, url, lambda: file_system.info(path))
            self.size = int(info["size"])
        except WeightFileError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise _remote_error(url, error) from error
        changed = (info.get(key) for key in ("ETag", "etag", "LastModified", "mtime"))
        tag = next((value for value in changed if value is not None), None)
        self.tag = None if tag is None else str(tag)

    def _open(self):
        try:
            from fsspec.core import url_to_fs

            return url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            scheme = self.url.partition("://")[0]
            raise WeightFileError(
                f"{self.url}: {scheme}:// needs fsspec and its driver for {scheme} "
                f"({error}). Install them, or download the files."
            ) from None

    def _fetch(self, start, n_bytes):
        file_system, path = self._open()
        for attempt in range(3):
            try:
                data = within(
                    _PATIENCE + n_bytes / 50_000,
                    self.url,
                    lambda: file_system.cat_file(path, start, start + n_bytes),
                )
                break
            except WeightFileError:
                raise
            except Exception as error:
                if attempt == 2:
                    raise _remote_error(self.url, error) from error
        if len(data) != n_bytes:
            raise FileChangedError(
                f"{self.url} gave {len(data)} bytes from byte {start}: expected "
                f"{n_bytes}. If it has changed, open the models again."
            )
        return bytearray(data), True


def _digest(data):
    return hashlib.sha256(data).hexdigest()


def _remote_error(url, error):
    return RemoteError(
        f"{url} cannot be read ({type(error).__name__}: {str(error)[:200]}). Check the "
        "address, your access to it, and the network."
    )


def open_source(location, cache_dir=None, *, client=None, immutable=False):
    """Make the source that a path or URL needs."""
    scheme, separator, _ = location.partition("://")
    if not separator:
        return LocalFile(location)
    if scheme == "file":
        return LocalFile(local_path(location))
    cache = RangeCache(cache_dir)
    if scheme in ("http", "https"):
        return HttpFile(location, cache, client or HttpClient(), immutable)
    return FsspecFile(location, cache)


def local_path(url):
    """Turn a ``file://`` URL into a path."""
    from urllib.parse import unquote, urlsplit
    from urllib.request import url2pathname

    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise WeightFileError(
            f"{url} names the host {parts.netloc!r}: file:// reads this machine only, "
            "as in file:///folder."
        )
    return str(Path(url2pathname(unquote(parts.path))))
