"""What goes into an index, and what embedders give."""

import json
from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch

from ..files._write import as_plain
from ..weights import ModelCollection


def check_names(names, n_models, index):
    """List the names, none of them twice nor in the index already."""
    names = list(names)
    if len(names) != n_models:
        raise ValueError(f"names has {len(names)} entries for {n_models} models.")
    for name in names:
        if not isinstance(name, str):
            raise ValueError(
                f"names must be str, got {name!r} of type {type(name).__name__}."
            )
    names = [str(name) for name in names]  # numpy's own kind of str, too
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"names has {name!r} {count} times: each must be unique.")
    for name in names:
        if name in index:
            raise ValueError(
                f"There is a model {name!r} in the index already: remove it first, "
                "or add this one by another name."
            )
    return names


def check_has_model_axis(W, embedder):
    """Refuse one model's weights by themselves."""
    shape = getattr(W, "shape", None)
    shape = tuple(np.shape(W) if shape is None else shape)
    if len(shape) < 2 or shape == getattr(embedder, "weight_shape_", None):
        raise ValueError(
            f"query of shape {shape} is one model's weights: pass query[None], "
            "with an axis for models."
        )


def as_rows(rows, n_rows, embedder):
    """Check what an embedder returned."""
    if isinstance(rows, torch.Tensor):
        rows = rows.detach().cpu().numpy()
    rows = np.asarray(rows, dtype=np.float32)
    if rows.ndim != 2 or len(rows) != n_rows or not rows.size:
        raise ValueError(
            f"{type(embedder).__name__} returned embeddings of shape {rows.shape} "
            f"for {n_rows} models or texts: expected one row for each."
        )
    if not np.isfinite(rows).all():
        raise ValueError(f"{type(embedder).__name__} returned NaN or infinity.")
    return rows


def as_weights(W, expected="weights"):
    """Turn a dict of layers into a collection; weights stay as they are."""
    is_sequence = hasattr(W, "__len__") and hasattr(W, "__getitem__")
    if isinstance(W, (str, bytes)) or not is_sequence:
        raise TypeError(
            f"Expected {expected} of shape (n_models, d_out, d_in), got "
            f"{type(W).__name__}."
        )
    return ModelCollection.from_layers(W) if isinstance(W, Mapping) else W


def check_metadata(metadata, names):
    """Copy the metadata, as JSON has them."""
    metadata = list(metadata)
    if len(metadata) != len(names):
        raise ValueError(
            f"metadata has {len(metadata)} entries for {len(names)} models."
        )
    checked = []
    for name, entry in zip(names, metadata, strict=True):
        if not isinstance(entry, Mapping):
            raise ValueError(
                f"metadata of model {name!r} is a {type(entry).__name__}: expected a "
                "dict."
            )
        copied = {}
        for key, value in entry.items():
            try:
                if not isinstance(key, str):
                    raise TypeError("the key is no str")
                copied[key] = json.loads(json.dumps(value, default=as_plain))
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(
                    f"metadata {key!r} of model {name!r} cannot be written as JSON "
                    f"({error}): expected numbers, text, lists and dicts."
                ) from None
        checked.append(copied)
    return checked
