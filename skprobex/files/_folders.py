"""List the files below a folder, whatever a stranger has put there."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from ..exceptions import WeightFileError

# Nobody nests models deeper, and a chain of folders could go on for ever.
_MAX_DEPTH = 40
_MAX_REFERENCE_BYTES = 4096
# What the name of a snapshot may be: a commit, never a way out of the folder.
_COMMIT = re.compile(r"\w[\w.-]{0,100}")


def walk(root):
    """List the files below a folder, relative to it, in a stable order.

    Hidden folders, half-downloaded files and the blobs of a Hugging Face cache are
    left out, its repositories replaced by their current snapshots. Links to folders
    are not followed: what they lead to lies below the root under its own name, or
    does not belong to it. Links to files are, as long as they stay below the root, or
    within the repository that it is a part of.

    Returns
    -------
    found : list of (str, str)
        Relative posix path, and the path to open.
    left_out : list of (str, str)
        Relative posix path of what was not looked at, and why.

    Raises
    ------
    WeightFileError
        If the folder cannot be listed.
    """
    root = os.fspath(root)
    boundary = os.path.realpath(repository_of(root) or root)
    found, left_out, visited = [], [], set()
    pending = [(root, "", 0)]
    while pending:
        folder, prefix, depth = pending.pop()
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            if folder == root:
                raise WeightFileError(f"{root} cannot be listed ({reason}).") from None
            left_out.append((prefix.rstrip("/"), f"a folder not listed ({reason})"))
            continue
        # Mounts can show one folder under many names.
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name.endswith(".incomplete"):
                continue
            if entry.is_symlink() and not _stays_in(entry.path, boundary):
                reason = "a link that leads out of the folder: open its target itself"
                left_out.append((prefix + name, reason))
            elif not entry.is_dir(follow_symlinks=False):
                if not (entry.is_symlink() and os.path.isdir(entry.path)):
                    found.append((prefix + name, entry.path))
            elif depth == _MAX_DEPTH:
                reason = f"a folder more than {_MAX_DEPTH} levels deep"
                left_out.append((prefix + name, reason))
            else:
                repository = cached_repository(entry.path)
                name, path = repository or (name, entry.path)
                if path is not None:
                    pending.append((path, f"{prefix}{name}/", depth + 1))
    return sorted(found), sorted(left_out)


def _stays_in(link, boundary):
    target = os.path.realpath(link)
    return target == boundary or target.startswith(os.path.join(boundary, ""))


def repository_of(folder):
    """Return the cached repository that a folder is a snapshot, or a part, of."""
    path = Path(os.path.abspath(folder))
    for parent in path.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return str(parent.parent)
    return None


def cached_repository(folder, revision=None):
    """Resolve a Hugging Face cache folder ``models--<org>--<repo>``.

    Parameters
    ----------
    folder : path-like
    revision : str, default=None
        Branch, tag or commit. None means ``main``, or the newest snapshot of a folder
        that has no such reference.

    Returns
    -------
    (name, snapshot) or None
        None if it is no such folder; the snapshot is None if it is not there.
    """
    folder = Path(folder)
    if not folder.name.startswith("models--") or not (folder / "snapshots").is_dir():
        return None
    name = folder.name.removeprefix("models--").replace("--", "/")
    for commit in (_reference(folder, revision or "main"), revision or "main"):
        if commit and _COMMIT.fullmatch(commit):
            snapshot = folder / "snapshots" / commit
            if snapshot.is_dir() and not snapshot.is_symlink():
                return name, str(snapshot)
    if revision is None:
        snapshots = [path for path in (folder / "snapshots").iterdir() if path.is_dir()]
        if snapshots:
            # No reference to main: a download by commit.
            return name, str(max(snapshots, key=lambda path: path.stat().st_mtime_ns))
    return name, None


def _reference(folder, revision):
    """Read the commit that a branch or tag stood for when it was downloaded."""
    path = folder / "refs" / revision
    try:
        # A pipe would be waited for.
        if ".." in path.parts or not stat.S_ISREG(path.stat().st_mode):
            return None
        with open(path, "rb") as file:
            return file.read(_MAX_REFERENCE_BYTES).decode().strip()
    except (OSError, ValueError):
        return None
