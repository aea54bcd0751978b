"""A cache of named arrays on disk that a crash, a full disk or a race cannot corrupt.

A file is written beside its final place and renamed over it when complete, so readers
see either the whole of it or nothing. Of several that ask for the same arrays at once,
one builds them and the others wait. What cannot be read is built again; what cannot
be written is returned all the same.
"""

from __future__ import annotations

import hashlib
import json
import numbers
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from .._warnings import warn
from ..files._atomic import replacing

Arrays = dict[str, np.ndarray]

# Part of every key: raise it whenever the same parameters give other arrays.
_FORMAT = 2


def load_or_grow(
    name: str,
    sizes: Mapping[str, Any],
    grow: Callable[..., Arrays],
    *,
    random_state: int | np.random.RandomState | None,
    data_home: str | os.PathLike | None,
    cache: bool,
    verbose: int,
) -> Arrays:
    """Read a jungle from the cache, or grow it; only one of an int seed is cached."""
    rng = check_random_state(random_state)

    def build():
        return grow(**sizes, rng=rng, verbose=verbose)

    if not (cache and isinstance(random_state, numbers.Integral)):
        return build()
    parameters = {**sizes, "random_state": int(random_state)}
    return load_or_build(name, parameters, build, data_home)


def load_or_build(
    name: str,
    parameters: Mapping[str, object],
    build: Callable[[], Arrays],
    data_home: str | os.PathLike | None = None,
) -> Arrays:
    """Read the arrays stored for `parameters`, or build and store them.

    Parameters
    ----------
    name : str
        What the arrays are; the first part of the file's name.
    parameters : mapping
        All that the arrays depend on; must be JSON serialisable.
    build : callable
        Returns the arrays, by name. None may hold Python objects.
    data_home : path-like, optional
        Passed to :func:`sklearn.datasets.get_data_home`; the files lie in its
        ``skprobex`` folder.

    Returns
    -------
    dict of str to ndarray
        The same arrays, bit for bit, whether read or built.
    """
    try:
        from sklearn.datasets import get_data_home

        folder = Path(get_data_home(data_home)) / "skprobex"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _warn_not_stored(name, error)
        return build()
    path = folder / f"{name}-{_key(parameters)}.npz"
    arrays = _read(path)
    if arrays is not None:
        return arrays
    from filelock import FileLock

    # Whoever comes while they are built waits for them, in other processes too.
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # read-only, or without locks
        _warn_not_stored(name, error)
        return build()
    try:
        arrays = _read(path)
        return _build_and_store(name, build, path) if arrays is None else arrays
    finally:
        lock.release()


def _build_and_store(name, build, path):
    arrays = build()
    try:
        with replacing(path) as file:
            np.savez(file, **arrays)
    except OSError as error:
        _warn_not_stored(name, error)
    return arrays


def _key(parameters):
    described = json.dumps({"format": _FORMAT, **parameters}, sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:20]


def _read(path):
    if not path.exists():
        return None
    try:
        # np.load leaves a file that it has opened itself open where it fails.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception:
        # A damaged file can fail in zipfile, in zlib, or in numpy's header parser, with
        # a dozen kinds of errors. All of them mean the same: build it again.
        return None


def _warn_not_stored(name, error):
    warn(
        f"{name} could not be cached and will be built again next time: {error}. "
        "Pass a writable `data_home`, or cache=False.",
    )
