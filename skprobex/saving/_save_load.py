"""Saved estimators: one safetensors file each, and no pickle in it.

Tensors are the arrays. The metadata say what the file is, which versions wrote it, what
the estimator is called and how large the weights are, for whoever looks at the header;
``objects`` is the estimator taken apart (see `_state`), and ``digest`` the SHA-256 of
all else.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch

from .._registry import is_of_sklearn, saved_name
from .._typing import PathLike
from .._version import __version__
from .._warnings import warn
from ..exceptions import CorruptFileError, UnsupportedFormatError, VersionWarning
from ..files._atomic import replacing
from ..files._safetensors import NUMPY_DTYPES, as_bytes, read_header, write_arrays
from ._decode import StateReader, parse_json
from ._encode import StateWriter

# Raise it whenever files of before would be read as something else.
FORMAT_VERSION = 2
_DTYPES = {name: dtype for dtype, name in NUMPY_DTYPES.items()}


class Saveable:
    """Mixin of estimators that are saved without pickle.

    Attributes named in the class's ``_unsaved`` are left out, of pickles as well: they
    must be such as are made again when they are missing.
    """

    _unsaved: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        return {k: value for k, value in state.items() if k not in self._unsaved}

    def save(self, path: PathLike) -> None:
        """Save the estimator in a file that `skprobex.load` reads.

        The file is a safetensors file: arrays, and JSON that says what they are. It
        takes the place of one that is there already only when it is complete.

        Parameters
        ----------
        path : path-like
            The file. Its folder is made if it does not exist.

        Raises
        ------
        TypeError
            If a parameter or an attribute cannot be saved: a function, or an object of
            a class that skprobex does not know. The message names it, and nothing is
            written.
        """
        name = saved_name(type(self))
        if name is None:
            raise TypeError(
                f"{type(self).__name__} is no class of skprobex itself, which are the "
                "only ones that files hold. Pickle it instead."
            )
        path = os.path.expanduser(path)
        if os.path.isdir(path):
            raise IsADirectoryError(
                f"{os.fspath(path)!r} is a folder: name a file in it, such as "
                f"{os.path.join(path, 'model.skprobex')!r}."
            )
        writer = StateWriter()
        writer.add(self, name)
        metadata = {
            "format": "skprobex",
            "format_version": str(FORMAT_VERSION),
            **_installed_versions(),
            "class": name,
            "weight_shape": _weight_shape(self),
            "objects": json.dumps(writer.objects),
        }
        metadata["digest"] = _digest(metadata, writer.arrays)
        with replacing(Path(path)) as file:
            write_arrays(file, writer.arrays, metadata)


def load(path: PathLike) -> Any:
    """Load an estimator that was saved with its method ``save``.

    Nothing in the file is run: it names classes of skprobex, and what it says of them
    is data. All of it is checked.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    estimator
        It shares nothing with the file, which may be replaced or removed.

    Raises
    ------
    CorruptFileError
        If the file is cut short, damaged, or no safetensors file.
    UnsupportedFormatError
        If it holds something other than an estimator, was written by a newer skprobex,
        or names a class that this one does not know.

    Warns
    -----
    VersionWarning
        If another version of skprobex saved it.

    Examples
    --------
    >>> import tempfile
    >>> import skprobex
    >>> from skprobex.datasets import make_model_tree
    >>> W, y = make_model_tree(60, (16, 12), random_state=0, return_X_y=True)
    >>> clf = skprobex.ProbeXClassifier().fit(W, y)
    >>> path = f"{tempfile.mkdtemp()}/classifier.safetensors"
    >>> clf.save(path)
    >>> bool((skprobex.load(path).predict(W) == clf.predict(W)).all())
    True
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise IsADirectoryError(
            f"{str(path)!r} is a folder: load reads the file that save wrote. "
            "open_models opens folders of weights."
        )
    with open(path, "rb") as file:
        source = _OpenFile(file, path)
        tensors, metadata = read_header(source)
        _check_format(metadata, source)
        arrays = _read_arrays(tensors, source)
    written = {name: text for name, text in metadata.items() if name != "digest"}
    contents = {name: array for name, (_, array) in arrays.items()}
    if metadata.get("digest") != _digest(written, contents):
        raise CorruptFileError(
            f"{path} is damaged: its content is not what was saved. Save the "
            "estimator again, or copy the file again."
        )
    objects = parse_json(metadata.get("objects", ""), source)
    estimator = StateReader(arrays, source).restore(objects)
    if not isinstance(estimator, Saveable):
        raise UnsupportedFormatError(
            f"{path} holds a {type(estimator).__name__} by itself, no estimator."
        )
    described = type(estimator).__name__, _weight_shape(estimator)
    if described != (metadata.get("class"), metadata.get("weight_shape")):
        raise CorruptFileError(
            f"{path} is damaged: it says it holds a {metadata.get('class')} of weights "
            f"{metadata.get('weight_shape')}, but holds a {described[0]} of "
            f"{described[1]}."
        )
    _warn_of_versions(metadata, objects, path)
    return estimator


class _OpenFile:
    """A source that stays the file it was opened as, even if that is replaced."""

    def __init__(self, file, path):
        self._file, self._path = file, path
        self.size, self.data_start = os.fstat(file.fileno()).st_size, 0

    def __str__(self):
        return str(self._path)

    def read(self, start, n_bytes):
        data = bytearray(n_bytes)
        self.read_into(data, start)
        return data

    def read_into(self, buffer, start):
        self._file.seek(start)
        if self._file.readinto(buffer) != len(buffer):
            raise CorruptFileError(f"{self} is cut short. Save the estimator again.")


def _check_format(metadata, source):
    if metadata.get("format") != "skprobex":
        raise UnsupportedFormatError(
            f"{source} holds tensors, but no estimator of skprobex. If they are a "
            "model's weights, open them with skprobex.open_models."
        )
    version = metadata.get("format_version", "")
    if not (version.isascii() and version.isdecimal() and len(version) < 10):
        raise CorruptFileError(f"{source} does not say the version of its format.")
    if int(version) != FORMAT_VERSION:
        is_newer = int(version) > FORMAT_VERSION
        age = "a newer" if is_newer else "an older"
        way_out = "Upgrade skprobex" if is_newer else "Fit and save the estimator anew"
        raise UnsupportedFormatError(
            f"{source} was written by {age} skprobex "
            f"({metadata.get('skprobex', '')[:40]}), in version {version} of the "
            f"format; this one reads version {FORMAT_VERSION}. {way_out}."
        )


def _read_arrays(tensors, source):
    """Read all tensors: dtype in the file, and content, by name."""
    if source.data_start + sum(t.n_bytes for t in tensors) != source.size:
        raise CorruptFileError(
            f"{source} is damaged: it has bytes that belong to no tensor."
        )
    arrays = {}
    for tensor in tensors:
        if tensor.dtype not in _DTYPES:
            raise UnsupportedFormatError(
                f"{source}: tensor {tensor.name!r} is {tensor.dtype}, which no "
                "estimator has."
            )
        array = np.empty(tensor.shape, dtype=_DTYPES[tensor.dtype])
        data = as_bytes(array)
        source.read_into(data, source.data_start + tensor.start)
        if tensor.dtype == "BOOL" and data.max(initial=0) > 1:
            raise CorruptFileError(
                f"{source}: tensor {tensor.name!r} has booleans that are neither 0 "
                "nor 1."
            )
        arrays[tensor.name] = tensor.dtype, array
    return arrays


def _digest(metadata, arrays):
    """SHA-256 of the metadata and of every array's name, type and content."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        entry = [name, NUMPY_DTYPES[array.dtype], list(array.shape)]
        digest.update(json.dumps(entry).encode())
        digest.update(as_bytes(array))
    return digest.hexdigest()


def _weight_shape(estimator):
    """The shape as JSON; null where there is none."""
    shape = getattr(estimator, "weight_shape_", None)
    is_shape = isinstance(shape, tuple) and all(type(size) is int for size in shape)
    return json.dumps(shape if is_shape else None)


def _installed_versions():
    return {
        "skprobex": __version__,
        "sklearn": sklearn.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__,
    }


def _warn_of_versions(metadata, objects, path):
    names = ["skprobex"]
    if any(is_of_sklearn(entry["class"]) for entry in objects):
        names.append("sklearn")
    installed = _installed_versions()
    for name in names:
        if metadata.get(name) != installed[name]:
            warn(
                f"{path} was saved by {name} {metadata.get(name)}, and is loaded by "
                f"{name} {installed[name]}: predictions may differ. Fit and save the "
                "estimator again if they matter.",
                VersionWarning,
            )
