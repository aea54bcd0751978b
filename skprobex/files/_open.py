"""`open_models`: from files to a collection, reading headers only."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from joblib import Parallel, delayed

from .._typing import PathLike
from .._warnings import warn
from ..exceptions import CorruptFileError, UnsupportedFormatError, WeightFileError
from ..weights._bases import rename_bases
from ..weights._collection import ModelCollection
from ..weights._in_files import StoredModel
from ._adapters import find_layers
from ._cards import read_card
from ._doubts import warn_of_doubts
from ._layouts import LeftOut
from ._locate import Locator
from ._parts import Interned, read_part
from ._rename import Rename, as_function, name_layers

_N_NAMED = 5


def open_models(
    source: PathLike | Sequence[PathLike] | None = None,
    *,
    search: str | Mapping[str, Any] | None = None,
    checkpoints: Literal["last", "all"] = "last",
    bases: Mapping[str, str] | None = None,
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
    source : str, path-like or list of them, default=None
        A folder, a file, a glob pattern, a Hugging Face cache folder, a hub
        repository (``"org/name"``), all of an owner (``"hf://org/*"``), a URL
        (``hf://``, ``http(s)://``, ``s3://``, ``file://``, and whatever else fsspec
        reads), or a list of any of these.
    search : str or dict, default=None
        Open the repositories that the hub finds: by a part of their names, or by a
        dict of some of ``search``, ``author``, ``filter`` (a tag or a list of tags),
        ``sort`` and ``limit``. With a `source` such as ``"hf://org/*"``, among those.
    checkpoints : {"last", "all"}, default="last"
        Which checkpoints of one training run (``checkpoint-500``,
        ``checkpoint-1000``) are models. They are nearly the same weights; as several
        models they would lie on both sides of every fold. "last" takes what lies in
        the run's own folder, or else its last checkpoint.
    bases : dict of str to str, default=None
        Names for base models that the files spell otherwise, such as a path on the
        machine of whoever trained them.
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
        Models sorted by name, 2 before 10; those of a list stay in its order. Its
        ``skipped_`` lists what was left out, and why.

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
        ("checkpoints", checkpoints, ("last", "all")),
    ]:
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: expected one of {allowed}.")
    if source is None and search is None:
        raise TypeError("open_models needs a source, or a search.")
    as_function(rename)
    locator = Locator(revision, cache_dir, checkpoints)
    found = locator.find(source, search)
    errors = dict(found.errors)
    if errors and on_error == "raise":
        raise next(iter(errors.values()))
    models, doubted, strangers = [], defaultdict(list), {}
    for files, model, doubts, error in _open_all(
        found.models, locator, plain_float8, n_jobs, verbose
    ):
        if error is None:
            models.append(model)
            for doubt in doubts:
                doubted[doubt].append(str(model.sources[0]))
        elif isinstance(error, _NoModelError):
            strangers[files.name] = error
        elif on_error == "raise":
            raise error
        else:
            errors[files.name] = error
    models, unnamed = name_layers(models, rename)
    if unnamed and on_error == "raise":
        raise next(iter(unnamed.values()))
    errors.update(unnamed)
    if not models:
        raise next(iter({**errors, **strangers}.values()))
    left_out = list(found.left_out)
    left_out += [LeftOut(name, error.reason) for name, error in strangers.items()]
    if on_error != "ignore":
        _warn_of(errors, left_out, len(models) + len(errors), locator)
    warn_of_doubts(doubted)
    rename_bases([model.metadata for model in models], bases or {})
    collection = ModelCollection._from_models(models, on_missing=on_missing)
    collection.skipped_ = {entry.path: str(entry.reason) for entry in left_out} | {
        name: str(error) for name, error in errors.items()
    }
    return collection


def _open_all(files, locator, plain_float8, n_jobs, verbose):
    """Open all models; a list, for a generator left half-way complains."""
    if n_jobs is None:
        n_jobs = 16 if locator.is_remote else 1
    interned = Interned()
    opened = Parallel(
        n_jobs=min(n_jobs, len(files)) if n_jobs > 0 else n_jobs,
        prefer="threads",
        return_as="generator",
    )(delayed(_open_model)(model, locator, interned, plain_float8) for model in files)
    return list(_progress(opened, len(files), verbose))


def _progress(opened, total, verbose):
    if not verbose:
        return opened
    from tqdm import tqdm

    return tqdm(opened, total=total, desc="open_models", unit="model", file=sys.stderr)


class _NoModelError(UnsupportedFormatError):
    """A safetensors file that holds something else than a model."""

    def __init__(self, source, reason):
        super().__init__(f"{source} is {reason}.")
        self.reason = reason


def _warn_of(errors, left_out, total, locator):
    """Sum up, in one warning, what is not in the collection and might be missed."""
    parts = []
    if errors:
        named = "\n".join(f"- {error}" for error in list(errors.values())[:_N_NAMED])
        more = len(errors) - _N_NAMED
        rest = f"\nand {more} more." if more > 0 else ""
        parts.append(
            f"{len(errors)} of {total} models cannot be used and were left out:\n"
            f"{named}{rest}\nPass on_error='raise' to stop at the first, 'ignore' to "
            "hide this."
        )
    reasons = Counter(str(entry.reason) for entry in left_out if not entry.is_twin)
    if reasons:
        listed = "\n".join(
            f"- {count} x {reason}" for reason, count in reasons.most_common(_N_NAMED)
        )
        more = len(reasons) - _N_NAMED
        rest = f"\nand {more} other reasons." if more > 0 else ""
        paths = [entry.path for entry in left_out if not entry.is_twin]
        parts.append(
            f"{len(paths)} files or folders, such as {paths[0]!r}, are no models of "
            f"this collection:\n{listed}{rest}\nmodels.skipped_ lists them all"
            + (
                ", and checkpoints='all' opens every checkpoint."
                if any("checkpoint" in reason for reason in reasons)
                else "."
            )
        )
    if locator.from_cache:
        parts.append(
            f"{locator.hub.endpoint} is out of reach: {len(locator.from_cache)} "
            f"repositories, such as {locator.from_cache[0]!r}, were opened as they are "
            "in the hub's cache, which may be older."
        )
    if parts:
        warn("\n".join(parts))


def _open_model(files, locator, interned, plain_float8):
    """Read one model's headers; an error of any kind is returned, not raised."""
    try:
        return files, *_read_model(files, locator, interned, plain_float8), None
    except WeightFileError as error:
        return files, None, (), error
    except Exception as error:
        # A stranger's file may break what nobody thought of. It is this model that
        # cannot be used, and no other.
        named = CorruptFileError(
            f"{files.name}: {_first_file(files)} cannot be read "
            f"({type(error).__name__}: {str(error)[:200]})."
        )
        named.__cause__ = error
        return files, None, (), named


def _first_file(files):
    part = files.parts[0]
    return part.shard_index or next(iter(part.files), files.name)


def _read_model(files, locator, interned, plain_float8):
    opened = [read_part(part, locator, interned) for part in files.parts]
    sources = tuple(source for part in opened for source in part.sources)
    metadata = {}
    for part in opened:
        metadata.update(part.config or {})
    for part in opened:
        metadata.update(part.metadata)
    if metadata.get("format") == "skprobex":
        raise _NoModelError(
            sources[0],
            f"a saved {metadata.get('class', 'estimator')[:40]} of skprobex, no model: "
            "skprobex.load reads it",
        )
    # Equal headers are one object, kept as long as their id is in use here.
    key = tuple(part.key for part in opened)
    layers = interned.layers.get(key)
    if layers is None:
        layers, start = None, 0
        for files_part, part in zip(files.parts, opened, strict=True):
            tensors = part.merged(start, files_part.prefix)
            found = find_layers(
                tensors, part.metadata, part.config, sources, plain_float8
            )
            layers = found if layers is None else _join(layers, found)
            start += len(part.sources)
        interned.kept.append([part.headers for part in opened])
        layers = interned.layers.setdefault(key, layers)
    if not layers.specs:
        raise CorruptFileError(f"{sources[0]} holds no tensors.")
    card = _read_card(files.card, locator, interned)
    model = StoredModel(files.name, sources, layers.specs, {**card, **metadata})
    return model, layers.doubts


def _join(layers, more):
    """Add a component's layers to those of the components before it."""
    return layers._replace(
        specs={**layers.specs, **more.specs}, doubts=layers.doubts | more.doubts
    )


def _read_card(card, locator, interned):
    """Read a model card's metadata; those of one folder's models are read once."""
    if not isinstance(card, str):
        return card or {}
    if card not in interned.cards:
        try:
            interned.cards[card] = read_card(locator.open(card))
        except WeightFileError:  # it says nothing that the weights need
            interned.cards[card] = {}
    return interned.cards[card]
