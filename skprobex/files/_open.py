"""`open_models`: from files to a collection, reading headers only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Literal, NamedTuple
from urllib.parse import quote

from joblib import Parallel, delayed

from .._typing import PathLike
from .._warnings import warn
from ..exceptions import CorruptFileError, WeightFileError
from ..weights._collection import ModelCollection
from ..weights._in_files import StoredModel
from ._adapters import find_layers
from ._doubts import warn_of_doubts
from ._layouts import check_shards, read_index
from ._locate import Locator
from ._recipes import TensorRef
from ._rename import Rename, as_function, name_layers
from ._safetensors import read_header
from ._settings import settings_key

_MAX_CONFIG_BYTES = 4 * 2**20
_MAX_INDEX_BYTES = 64 * 2**20
_N_NAMED = 5


def open_models(
    source: PathLike | Sequence[PathLike],
    *,
    revision: str | None = None,
    cache_dir: PathLike | None = None,
    on_error: Literal["warn", "raise", "ignore"] = "warn",
    on_missing: Literal["raise", "drop"] = "raise",
    rename: Rename = None,
    plain_float8: bool = False,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> ModelCollection:
    """Open many models' weight files as one collection, reading headers only.

    Found are ``model.safetensors``, shards with their index, diffusers' and PEFT's
    layouts, pipelines, Hugging Face caches, and folders of safetensors files by any
    name, a model each. Adapters of all LoRA families come out under the name of the
    layer that they change.

    Parameters
    ----------
    source : str, path-like or list of them
        A folder, a file, a glob pattern, a Hugging Face cache folder, a hub
        repository (``"org/name"``), a URL (``hf://``, ``http(s)://``, ``s3://``,
        ``file://``, and whatever else fsspec reads), or a list of any of these.
    revision : str, default=None
        Branch, tag or commit of hub repositories; None means the main branch.
    cache_dir : path-like, default=None
        Where the byte ranges read from remote files are kept. None means
        ``$SKPROBEX_CACHE``, else ``skprobex`` in the user's cache folder.
    on_error : {"warn", "raise", "ignore"}, default="warn"
        What to do about files that cannot be used, such as truncated ones: leave
        them out and say so once, raise, or leave them out.
    on_missing : {"raise", "drop"}, default="raise"
        What ``models[layer]`` does about models that lack the layer, or have it in
        another shape than most: raise, or leave them out and say so once.
    rename : dict, list of pairs or callable, default=None
        New names of layers, after all spellings have become one: a function of a name,
        or new names by old ones. ``*`` in both stands for the same text
        (``{"encoder.*": "backbone.*"}``); a compiled regular expression is substituted.
        The first that matches counts, whole names before patterns.
    plain_float8 : bool, default=False
        Read 8-bit floats that have no scale beside them as they are: right where
        weights were only cast to fp8.
    n_jobs : int, default=None
        Threads that read headers. None means 1, and 16 for remote files.
    verbose : int, default=0
        1 shows a progress bar on stderr.

    Returns
    -------
    ModelCollection
        Models sorted by name; those of a list stay in its order.

    Raises
    ------
    WeightFileError
        If there is no model to open, or a file cannot be used and `on_error` is
        "raise".
    UnsupportedFormatError
        If there are only pickle checkpoints or GGUF files.

    See Also
    --------
    save_models : Write weights that this function opens.
    """
    for name, value, allowed in [
        ("on_error", on_error, ("warn", "raise", "ignore")),
        ("on_missing", on_missing, ("raise", "drop")),
    ]:
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: expected one of {allowed}.")
    as_function(rename)
    locator = Locator(revision, cache_dir)
    files, failures = locator.find(source)
    if failures and on_error == "raise":
        raise failures[0]
    n_listed = len(files) + len(failures)
    if n_jobs is None:
        n_jobs = 16 if locator.is_remote else 1
    interned = _Interned()
    opened = Parallel(
        n_jobs=min(n_jobs, len(files)) if n_jobs > 0 else n_jobs,
        prefer="threads",
        return_as="generator",
    )(delayed(_open_model)(model, locator, interned, plain_float8) for model in files)
    models = []
    doubted: dict[str, list[str]] = {}
    # To the end, also where one fails: a generator left half-way complains.
    for model, doubts, error in list(_progress(opened, len(files), verbose)):
        if error is None:
            models.append(model)
            for doubt in doubts:
                doubted.setdefault(doubt, []).append(str(model.sources[0]))
        elif on_error == "raise":
            raise error
        else:
            failures.append(error)
    if not models:
        raise failures[0]
    if failures and on_error == "warn":
        _warn_skipped(failures, n_listed)
    warn_of_doubts(doubted)
    name_layers([model.specs for model in models], rename)
    return ModelCollection._from_models(models, on_missing=on_missing)


def _progress(opened, total, verbose):
    if not verbose:
        return opened
    from tqdm import tqdm

    return tqdm(opened, total=total, desc="open_models", unit="model", file=sys.stderr)


def _warn_skipped(errors, total):
    named = "\n".join(f"- {error}" for error in errors[:_N_NAMED])
    more = len(errors) - _N_NAMED
    rest = f"\nand {more} more." if more > 0 else ""
    warn(
        f"{len(errors)} of {total} models cannot be used and were left out:\n{named}"
        f"{rest}\nPass on_error='raise' to stop at the first, 'ignore' to hide this.",
    )


def _open_model(files, locator, interned, plain_float8):
    """Read one model's headers; an error is returned, not raised."""
    try:
        return *_read_model(files, locator, interned, plain_float8), None
    except WeightFileError as error:
        return None, (), error


def _read_model(files, locator, interned, plain_float8):
    if files.shard_index is not None:
        index = _read_index(files.shard_index, locator)
        locations = [_sibling(files.shard_index, name) for name in index.shards]
        prefixes = None
    else:
        index = None
        locations = [location for location, _ in files.files]
        prefixes = tuple(prefix for _, prefix in files.files)
        check_shards(locations)
    sources, headers, metadata = [], [], {}
    for location in locations:
        try:
            source = locator.open(location)
            tensors, found = read_header(source, interned.headers)
        except WeightFileError as error:
            if index is None:
                raise
            raise CorruptFileError(
                f"{files.shard_index} names a shard that cannot be used: {error}"
            ) from None
        if hasattr(source, "forget_first"):
            source.forget_first()
        sources.append(source)
        headers.append(tensors)
        metadata.update(found)
    config = _read_config(files.config, locator) if files.config else None
    # Equal headers are one object, kept as long as their id is in use here.
    key = (
        tuple(map(id, headers)),
        prefixes or index.text,
        config is None,
        settings_key(config),
        metadata.get("lora_adapter_metadata"),
    )
    layers = interned.layers.get(key)
    if layers is None:
        if index is None:
            tensors = _merge(headers, prefixes)
        else:
            tensors = _merge_shards(headers, index, files.shard_index)
        layers = find_layers(tensors, metadata, config, sources, plain_float8)
        interned.kept.append(headers)
        layers = interned.layers.setdefault(key, layers)
    if not layers.specs:
        raise CorruptFileError(f"{sources[0]} holds no tensors.")
    metadata = {**(config or {}), **metadata}
    model = StoredModel(files.name, tuple(sources), layers.specs, metadata)
    return model, layers.doubts


class _Interned:
    """What a zoo's models have in common, kept once: headers, and what is in them."""

    def __init__(self):
        self.headers, self.layers, self.kept = {}, {}, []


class _Index(NamedTuple):
    text: bytes
    weight_map: dict
    shards: list


def _read_index(location, locator):
    source = locator.open(location)
    if source.size > _MAX_INDEX_BYTES:
        raise CorruptFileError(f"{source} has {source.size} bytes: that is no index.")
    text = bytes(source.read(0, source.size))
    weight_map = read_index(text, source)
    return _Index(text, weight_map, sorted(set(weight_map.values())))


def _merge(headers, prefixes):
    return {
        prefix + info.name: TensorRef(number, info)
        for number, (tensors, prefix) in enumerate(zip(headers, prefixes, strict=True))
        for info in tensors
    }


def _merge_shards(headers, index, location):
    merged = {
        info.name: TensorRef(number, info)
        for number, (tensors, shard) in enumerate(
            zip(headers, index.shards, strict=True)
        )
        for info in tensors
        if index.weight_map.get(info.name) == shard
    }
    missing = sorted(index.weight_map.keys() - merged.keys())
    if missing:
        raise CorruptFileError(
            f"{location} says that {index.weight_map[missing[0]]} holds "
            f"{missing[0]!r}, which is not there, nor are {len(missing) - 1} other "
            "tensors. Download the index and the shards of one version."
        )
    return merged


def _sibling(location, name):
    if "://" in location:
        return f"{location.rpartition('/')[0]}/{quote(name)}"
    return os.path.join(os.path.dirname(location), name)


def _read_config(location, locator):
    source = locator.open(location)
    try:
        if source.size > _MAX_CONFIG_BYTES:
            raise ValueError("too long")
        config = json.loads(bytes(source.read(0, source.size)))
        if not isinstance(config, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        if isinstance(error, WeightFileError):
            raise
        raise CorruptFileError(
            f"{location} is no PEFT configuration ({str(error)[:80]}): expected a JSON "
            "object. Its adapter's scale cannot be known."
        ) from None
    return config
