"""Write collections: one safetensors file a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from .._typing import Numbers, PathLike
from ._atomic import replacing


def save_models(
    folder: PathLike,
    weights_by_layer: Mapping[str, Numbers],
    metadata: Sequence[Mapping[str, Any]] | None = None,
    names: Sequence[str] | None = None,
) -> list[Path]:
    """Write models as safetensors files, one a model.

    Each file is complete or absent, whenever the writing is interrupted.

    Parameters
    ----------
    folder : path-like
        Made if it does not exist. Files of the same names are replaced; others stay,
        and `open_models` will find them.
    weights_by_layer : dict of str to weights
        Arrays or tensors of shape (n_models, ...), `LowRankWeights`, or lazy weights,
        by layer name, all of the same models. Low-rank layers, whose names end with
        ".weight", are written as PEFT writes LoRA, with an alpha that gives the scale.
    metadata : sequence of dict, default=None
        One per model. Values that are no text are written as JSON.
    names : sequence of str, default=None
        None means ``model_0000``, ``model_0001``, and so on. A name with slashes lies
        in subfolders.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    ValueError
        If layers, metadata and names differ in length, or a name leads out of the
        folder.
    TypeError
        If `weights_by_layer` is no dict, or if it or the metadata hold what cannot be
        written.

    See Also
    --------
    open_models : Open them.
    """
    if not isinstance(weights_by_layer, Mapping):
        raise TypeError(
            "weights_by_layer must be a dict of weights by layer name, got "
            f"{type(weights_by_layer).__name__}."
        )
    if "__metadata__" in weights_by_layer:
        raise ValueError(
            "A layer cannot be called '__metadata__': in a safetensors file that is "
            "the name of the metadata. Rename it."
        )
    lengths = {layer: len(W) for layer, W in weights_by_layer.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            f"Layers must be of the same number of models, at least one; got {lengths}."
        )
    n_models = next(iter(lengths.values()))
    if names is None:
        names = [f"model_{i:04d}" for i in range(n_models)]
    if metadata is None:
        metadata = [{}] * n_models
    for what, values in (("names", names), ("metadata", metadata)):
        if len(values) != n_models:
            raise ValueError(f"{what} has {len(values)} entries for {n_models} models.")
    if len(set(names)) != n_models:
        raise ValueError("names must differ: each is a file's.")
    folder = Path(folder).expanduser()
    paths = [_path(folder, name) for name in names]
    # All of it is checked before anything is written.
    texts = [_as_text(entry) for entry in metadata]
    for i, (path, text) in enumerate(zip(paths, texts, strict=True)):
        tensors = {}
        for layer, W in weights_by_layer.items():
            tensors.update(_tensors(layer, W, i))
        with replacing(path) as file:
            file.write(save(tensors, text))
    return paths


def _path(folder, name):
    parts = str(name).split("/")
    is_safe = all(part not in ("", ".", "..") for part in parts)
    if not is_safe or any(sign in str(name) for sign in "\\:\0"):
        raise ValueError(
            f"The name {name!r} is no file name: expected words, with slashes between "
            "them for subfolders."
        )
    return folder.joinpath(*parts[:-1], f"{parts[-1]}.safetensors")


def _as_text(entry):
    if not isinstance(entry, Mapping):
        raise ValueError("metadata must hold one dict per model.")
    return {
        str(key): value
        if isinstance(value, str)
        else json.dumps(value, default=as_plain)
        for key, value in entry.items()
    }


def as_plain(value):
    """Turn numpy's numbers and arrays into what JSON knows."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"metadata of type {type(value).__name__} cannot be written.")


def _tensors(layer, W, i):
    """Return what is written of one layer of model i."""
    factors = _factors(W, i)
    if factors is not None:
        if not layer.endswith(".weight"):
            raise ValueError(
                f"The low-rank layer {layer!r} must be named '<module>.weight'."
            )
        module = layer.removesuffix(".weight")
        up, down = factors
        return {
            f"{module}.lora_A.weight": down,
            f"{module}.lora_B.weight": up,
            # The scale is in B: alpha is the rank, which says so to every reader.
            f"{module}.alpha": torch.tensor(float(down.shape[0]), dtype=up.dtype),
        }
    weight = W[i]
    if not isinstance(weight, torch.Tensor):
        weight = torch.from_numpy(np.array(weight))
    # A copy of its own: slices share storage, which the format forbids.
    return {layer: weight.detach().cpu().clone(memory_format=torch.contiguous_format)}


def _factors(W, i):
    """Return ``B`` with its scale and ``A`` of a low-rank model, or None."""
    if getattr(W, "is_low_rank", False):
        batch = next(iter(W[i : i + 1].batches(torch.device("cpu"))))
        b, a = batch.B[0], batch.A[0]
        return b.contiguous().clone(), a.contiguous().clone()
    return None
