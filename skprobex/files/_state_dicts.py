"""Models that were never in a file: state dicts, read by the same rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from enum import Enum

import numpy as np
import torch

from ..exceptions import UnsupportedFormatError, WeightFileError
from ..weights._in_files import StoredModel
from ._adapters import find_layers
from ._doubts import warn_of_doubts
from ._recipes import TensorRef
from ._rename import name_layers
from ._safetensors import TORCH_DTYPES, TensorInfo
from ._settings import settings_key

_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class HeldTensors:
    """A source whose bytes are those of tensors in memory, one after another.

    Parameters
    ----------
    name : str
        Of the model, for errors.
    tensors : dict of str to Tensor
    """

    data_start = 0

    def __init__(self, name, tensors):
        self._name, self._tensors, self.infos = name, {}, []
        start = 0
        for key, tensor in tensors.items():
            if tensor.dtype not in _DTYPE_NAMES:
                raise UnsupportedFormatError(
                    f"Model {name!r}: {key!r} is a tensor of {tensor.dtype}, which is "
                    "not read. Convert it to float32."
                )
            n_bytes = tensor.numel() * tensor.element_size()
            dtype, shape = _DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)
            self.infos.append(TensorInfo(key, dtype, shape, start, n_bytes))
            self._tensors[start, n_bytes] = tensor
            start += n_bytes
        self.size = start

    def __str__(self):
        return f"model {self._name!r}"

    def read(self, start, n_bytes):
        """Copy a tensor's bytes into a new bytearray."""
        tensor = self._tensors[start, n_bytes].detach().cpu().contiguous()
        return bytearray(tensor.reshape(-1).view(torch.uint8).numpy())

    def read_into(self, start, view):
        """Copy a tensor's bytes into memory that is there."""
        view[:] = self.read(start, len(view))


def models_from_state_dicts(models, metadata):
    """Make stored models of state dicts or modules.

    Parameters
    ----------
    models : dict of str to (dict of str to Tensor, or Module)
    metadata : list of dict

    Returns
    -------
    list of StoredModel

    Raises
    ------
    TypeError
        If a model is neither.
    ValueError
        If models share their memory.
    """
    stored, layouts, owners, doubted = [], {}, {}, defaultdict(list)
    for (name, model), entry in zip(models.items(), metadata, strict=True):
        tensors, config = _tensors(name, model)
        _check_own_memory(name, tensors, owners)
        source = HeldTensors(name, tensors)
        key = tuple(source.infos), config and settings_key(config)
        if key not in layouts:
            refs = {info.name: TensorRef(0, info) for info in source.infos}
            layouts[key] = find_layers(refs, {}, config, (source,))
        layers = layouts[key]
        if not layers.specs:
            raise ValueError(f"Model {name!r} holds no tensors.")
        for doubt in layers.doubts:
            doubted[doubt].append(str(source))
        metadata_of = {**(config or {}), **entry}
        stored.append(StoredModel(name, (source,), layers.specs, metadata_of))
    stored, errors = name_layers(stored)
    if errors:
        raise next(iter(errors.values()))
    warn_of_doubts(doubted)
    return stored


def _tensors(name, model):
    """A model's tensors by name, and the configuration of its adapter."""
    config = None
    if isinstance(model, torch.nn.Module):
        configs = getattr(model, "peft_config", None)
        if isinstance(configs, Mapping) and len(configs) == 1:
            config = _plain(next(iter(configs.values())).to_dict())
        model = model.state_dict()
    if not isinstance(model, Mapping):
        raise TypeError(
            f"Model {name!r} is a {type(model).__name__}: expected a state dict, or a "
            "torch.nn.Module."
        )
    tensors = {}
    for key, value in model.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value))
        if isinstance(value, Mapping):
            raise TypeError(
                f"Model {name!r} holds a dict at {key!r}: expected tensors by name. If "
                f"that is the state dict, pass it itself, model[{key!r}]."
            )
        if not isinstance(value, torch.Tensor):
            continue  # what a module keeps besides its weights
        if value.is_meta or value.layout != torch.strided:
            raise WeightFileError(
                f"Model {name!r}: {key!r} is a tensor without data, or a sparse one."
            )
        tensors[str(key)] = value
    return tensors, config


def _check_own_memory(name, tensors, owners):
    """Refuse a state dict that is a view of another model's weights.

    ``model.state_dict()`` holds references: taken of one model in a loop, all of them
    are the weights that training ended with.
    """
    places = {t.untyped_storage().data_ptr() for t in tensors.values() if t.numel()}
    places.discard(0)
    shared = [owners[place] for place in places if place in owners]
    if places and len(shared) == len(places):
        raise ValueError(
            f"Models {shared[0]!r} and {name!r} are the same memory: state_dict() "
            "holds references, which training goes on to change. Keep copies: "
            "copy.deepcopy(model.state_dict())."
        )
    owners.update(dict.fromkeys(places, name))


def _plain(config):
    """A configuration as it would be read from its file: what of it is data."""
    kinds = (str, int, float, bool, list, dict, type(None))
    values = {
        key: value.value
        if isinstance(value, Enum)
        else sorted(value)
        if isinstance(value, (set, frozenset))
        else value
        for key, value in config.items()
    }
    return {key: value for key, value in values.items() if isinstance(value, kinds)}
