"""Fitted experts hold tensors while they compute, CPU numpy while they rest."""

from dataclasses import fields, is_dataclass, replace

import numpy as np
import torch

from .device import as_array, as_tensor


def to_arrays(expert):
    """Replace every tensor in a dataclass by a CPU array."""
    return _convert(expert, torch.Tensor, as_array)


def to_tensors(expert, device):
    """Replace every array in a dataclass by a tensor on `device`, dtype kept."""

    def as_device_tensor(array):
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        return as_tensor(array, dtype, device)

    return _convert(expert, np.ndarray, as_device_tensor)


def _convert(value, kind, convert):
    if isinstance(value, kind):
        return convert(value)
    if is_dataclass(value):
        changes = {
            f.name: _convert(getattr(value, f.name), kind, convert)
            for f in fields(value)
        }
        return replace(value, **changes)
    if isinstance(value, dict):
        return {key: _convert(part, kind, convert) for key, part in value.items()}
    if isinstance(value, list):
        return [_convert(part, kind, convert) for part in value]
    return value
