"""Where tensors live, and how arrays become tensors.

Fitted experts hold tensors while they compute, CPU numpy while they rest.
"""

from dataclasses import fields, is_dataclass, replace

import numpy as np
import torch


def resolve_device(device):
    """Turn the `device` parameter into a torch device that exists.

    Raises
    ------
    ValueError
        If the device cannot be parsed or is not on this machine.
    RuntimeError
        In a process that was forked after CUDA was in use: there it cannot be used.
    """
    if str(device).startswith(("auto", "cuda")) and torch.cuda._is_in_bad_fork():
        raise RuntimeError(
            f"device={str(device)!r} in a process that was forked from one that uses "
            'CUDA, which CUDA does not allow: use joblib\'s backend "loky", which '
            "starts fresh processes, or device='cpu'."
        )
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={device!r} is not a device: use 'auto', 'cpu', 'cuda', 'cuda:1' "
            "or 'mps'."
        ) from error
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise ValueError(
                f"device={device!r} was asked for, but {count} CUDA devices are "
                "available here: use device='auto' or 'cpu'."
            )
    elif resolved.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError(
                "device='mps' was asked for, but there is none here: use "
                "device='auto' or 'cpu'."
            )
    elif resolved.type != "cpu":
        raise ValueError(f"device={device!r} is not supported: use 'cpu' or 'cuda'.")
    return resolved


def as_tensor(array, dtype, device):
    """Copy or cast an array to a tensor, whatever its strides and flags.

    ``torch.from_numpy`` warns on read-only arrays and fails on negative strides and
    foreign byte order; those are copied first.
    """
    if isinstance(array, torch.Tensor):
        return array.to(device=device, dtype=dtype)
    array = np.asarray(array)
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array).to(device=device, dtype=dtype)


def as_array(tensor):
    """Fitted state and results are CPU numpy."""
    return tensor.detach().cpu().numpy()


def make_generator(seed):
    """Make a CPU generator: the same draws on every device."""
    return torch.Generator().manual_seed(int(seed))


def solver_device(device):
    """Return a device with float64 for the small dense solves (MPS has none)."""
    return torch.device("cpu") if device.type == "mps" else device


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
