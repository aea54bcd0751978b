"""How one layer of one model is read: plain, low-rank, or not at all.

A spec knows byte ranges, not files: models with the same header share their specs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ..exceptions import CorruptFileError, UnsupportedFormatError
from ._safetensors import (
    FLOAT8,
    TensorInfo,
    numpy_dtype,
    read_tensor,
    read_tensor_into,
)


class TensorRef(NamedTuple):
    """A tensor in one of a model's files."""

    file: int
    info: TensorInfo

    def read(self, sources, scale=None):
        """Read it; `scale` is the tensor of an 8-bit float's scales."""
        return read_tensor(sources[self.file], self.info, scale)


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """A layer stored as it is."""

    tensor: TensorRef
    scale: TensorRef | None = None

    is_low_rank = False
    is_refused = False
    rank = None

    @property
    def shape(self):
        return self.tensor.info.shape

    @property
    def dtype(self):
        return numpy_dtype(self.tensor.info.dtype)

    @property
    def file(self):
        return self.tensor.file

    def read_into(self, sources, out):
        """Read the layer into a tensor, if it needs no conversion: whether it was."""
        if self.scale is not None:
            return False
        return read_tensor_into(sources[self.tensor.file], self.tensor.info, out)

    def read(self, sources):
        """Read the layer, in the file's dtype."""
        scale = None if self.scale is None else self.scale.read(sources)
        return self.tensor.read(sources, scale)


@dataclass(frozen=True, slots=True)
class LowRankSpec:
    """A layer stored as ``scale * up @ down``.

    `alpha`, if it is there, is a tensor of one number, and the scale is
    ``alpha / rank``. With `is_transposed` the layer is the product's transpose.
    """

    up: TensorRef
    down: TensorRef
    alpha: TensorRef | None
    scale: float
    is_transposed: bool

    is_low_rank = True
    is_refused = False

    @property
    def rank(self):
        return self.down.info.shape[0]

    @property
    def shape(self):
        d_out, d_in = self.up.info.shape[0], self.down.info.shape[1]
        if self.is_transposed:
            return (d_in, d_out)
        return (d_out, *self.down.info.shape[1:])

    @property
    def dtype(self):
        dtypes = [numpy_dtype(ref.info.dtype) for ref in (self.up, self.down)]
        return np.dtype(np.float64 if np.float64 in dtypes else np.float32)

    @property
    def file(self):
        return self.up.file

    def read(self, sources):
        """Read ``B (d_out, r)``, with the scale in it, and ``A (r, d_in)``."""
        dtype = torch.float64 if self.dtype == np.float64 else torch.float32
        up = self.up.read(sources).to(dtype).flatten(1)
        down = self.down.read(sources).to(dtype).flatten(1)
        scale = self.scale
        if self.alpha is not None:
            alpha = self.alpha.read(sources)
            if alpha.numel() != 1:
                raise CorruptFileError(
                    f"{sources[self.alpha.file]}: {self.alpha.info.name!r} has shape "
                    f"{tuple(alpha.shape)}, expected one number."
                )
            # Trainers that do not scale write a zero.
            scale = float(alpha) / self.rank if float(alpha) else 1.0
        if self.is_transposed:
            return (down.mT * scale).contiguous(), up.mT.contiguous()
        return up * scale, down


@dataclass(frozen=True, slots=True)
class RefusedSpec:
    """A layer that is there, but in a form that is not read."""

    name: str
    kind: str
    file: int

    is_low_rank = False
    is_refused = True
    rank = None
    shape = ()
    dtype = np.dtype(np.float32)

    def read(self, sources):
        """Say why not."""
        raise UnsupportedFormatError(
            f"{sources[self.file]}: {self.name!r} is a {self.kind} adapter, which is "
            "not read: only LoRA is. Merge it into its base with the tool that "
            "trained it and open the merged checkpoint, or leave this model out."
        )


def dense_spec(ref, tensors, names):
    """Make the spec of a plain tensor, with its scales if it is an 8-bit float."""
    scale = next((tensors[name] for name in names if name in tensors), None)
    if ref.info.dtype in FLOAT8 and scale is None:
        return DenseSpec(ref)
    return DenseSpec(ref, scale)
