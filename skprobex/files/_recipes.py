"""How one layer of one model is read: plain, scaled, low-rank, or not at all.

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
    TORCH_DTYPES,
    TensorInfo,
    numpy_dtype,
    read_plain,
    read_tensor,
    read_tensor_into,
)


class TensorRef(NamedTuple):
    """A tensor in one of a model's files."""

    file: int
    info: TensorInfo

    def read(self, sources, scale=None):
        """Read it; `scale` is the tensor of an 8-bit tensor's scales."""
        return read_tensor(sources[self.file], self.info, scale)

    def read_plain(self, sources, dtype):
        """Read its numbers as they stand, as another type."""
        return read_plain(sources[self.file], self.info).to(dtype)

    def read_number(self, sources):
        """Read a tensor of one number."""
        if self.info.shape not in ((), (1,), (1, 1)):
            raise CorruptFileError(
                f"{sources[self.file]}: {self.info.name!r} has shape "
                f"{self.info.shape}, expected one number."
            )
        return float(self.read(sources))


class Spec:
    """What all of them have, where a class does not say otherwise."""

    __slots__ = ()

    is_low_rank = False
    is_refused = False
    rank = None

    def read_into(self, sources, out):
        """Read the layer into a tensor, if it needs no conversion: whether it was."""
        return False


@dataclass(frozen=True, slots=True)
class DenseSpec(Spec):
    """A layer stored as it is; with `is_plain` 8-bit floats need no scale."""

    tensor: TensorRef
    is_plain: bool = False

    @property
    def is_refused(self):
        dtype = self.tensor.info.dtype
        return dtype not in TORCH_DTYPES or (dtype in FLOAT8 and not self.is_plain)

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
        return read_tensor_into(sources[self.tensor.file], self.tensor.info, out)

    def read(self, sources):
        """Read the layer, in the file's dtype."""
        if self.is_plain and self.tensor.info.dtype in FLOAT8:
            return self.tensor.read_plain(sources, torch.float32)
        return self.tensor.read(sources)


@dataclass(frozen=True, slots=True)
class ScaledSpec(Spec):
    """A layer stored as 8-bit numbers beside their scales: ``factor * scale * codes``.

    `layout`, if it is there, is a tensor of one number that must be zero: other
    layouts have their rows elsewhere.
    """

    codes: TensorRef
    scale: TensorRef
    factor: float = 1.0
    layout: TensorRef | None = None

    dtype = np.dtype(np.float32)

    @property
    def shape(self):
        return self.codes.info.shape

    @property
    def file(self):
        return self.codes.file

    def read(self, sources):
        """Read the layer, as float32."""
        if self.layout is not None and self.layout.read_number(sources):
            raise UnsupportedFormatError(
                f"{sources[self.file]}: {self.codes.info.name!r} is not stored row by "
                f"row ({self.layout.info.name!r} is not 0). Save the model again with "
                "a newer bitsandbytes, or use its bf16 checkpoint."
            )
        scale = self.scale.read(sources).float() * self.factor
        return self.codes.read(sources, scale)


@dataclass(frozen=True, slots=True)
class LowRankSpec(Spec):
    """A layer stored as ``scale * up @ down``.

    `alpha`, if it is there, is a tensor of one number, and the scale is
    ``alpha / rank``. `mid`, if it is there, is a kernel of shape (r, r, kh, kw) between
    the two. With `are_transposed` the factors are stored as (r, d_out) and (d_in, r);
    with `is_transposed` the layer is the product's transpose.
    """

    up: TensorRef
    down: TensorRef
    alpha: TensorRef | None
    scale: float
    is_transposed: bool = False
    are_transposed: bool = False
    mid: TensorRef | None = None

    is_low_rank = True

    @property
    def rank(self):
        return self.down.info.shape[1 if self.are_transposed else 0]

    @property
    def shape(self):
        up, down = self.up.info.shape, self.down.info.shape
        if self.are_transposed:
            up, down = up[::-1], down[::-1]
        if self.is_transposed:
            return (down[1], up[0])
        kernel = down[2:] if self.mid is None else self.mid.info.shape[2:]
        return (up[0], down[1], *kernel)

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
        up = self.up.read_plain(sources, dtype).flatten(1)
        down = self.down.read_plain(sources, dtype).flatten(1)
        if self.mid is not None:
            mid = self.mid.read_plain(sources, dtype)
            down = torch.einsum("abhw,bi->aihw", mid, down).flatten(1)
        if self.are_transposed:
            up, down = up.mT, down.mT
        scale = scale_of(self.alpha, self.rank, self.scale, sources)
        if self.is_transposed:
            return (down.mT * scale).contiguous(), up.mT.contiguous()
        return (up * scale).contiguous(), down.contiguous()


def scale_of(alpha, rank, scale, sources):
    """Return ``alpha / rank`` where a tensor gives alpha, else `scale`."""
    if alpha is None:
        return scale
    value = alpha.read_number(sources)
    # Trainers that do not scale write a zero.
    return value / rank if value else 1.0


@dataclass(frozen=True, slots=True)
class RefusedSpec(Spec):
    """A layer that is there, but in a form that is not read.

    `kind` is what it is, after "is"; `mend` is a sentence.
    """

    name: str
    kind: str
    mend: str
    file: int

    is_refused = True
    shape = ()
    dtype = np.dtype(np.float32)

    def error(self, sources):
        """Say why not."""
        return UnsupportedFormatError(
            f"{sources[self.file]}: {self.name!r} is {self.kind}, which is not read. "
            f"{self.mend}"
        )

    def read(self, sources):
        raise self.error(sources)
