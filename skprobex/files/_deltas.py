"""Adapters that are no product of two factors, yet a formula in their parts.

LoHa is an elementwise product of two low-rank ones, LoKr a Kronecker product, a full
difference just that. Each is read as the dense delta of its layer, model by model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ._recipes import Spec, TensorRef, scale_of

# Parts of a layer, by the last word of their tensors' names.
LOHA_PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOHA_CORES = ("hada_t1", "hada_t2")
LOKR_PARTS = ("lokr_w1", "lokr_w2", "lokr_t2")
LOKR_FACTORS = ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b")
DIFFERENCES = {"diff": "weight", "diff_b": "bias", "w_norm": "weight", "b_norm": "bias"}


class DeltaSpec(Spec):
    """A dense delta, computed in float32 (float64 where a part is)."""

    __slots__ = ()

    @property
    def file(self):
        return self.parts[0].file

    @property
    def dtype(self):
        is_double = any(part.info.dtype == "F64" for part in self.parts)
        return np.dtype(np.float64 if is_double else np.float32)

    def _read_parts(self, sources):
        dtype = torch.float64 if self.dtype == np.float64 else torch.float32
        return [part.read_plain(sources, dtype) for part in self.parts]


@dataclass(frozen=True, slots=True)
class DifferenceSpec(DeltaSpec):
    """A difference from the base: ``scale * tensor``.

    `alpha` and `rank` are those of the LoRA layer that it is the bias of, if any.
    """

    tensor: TensorRef
    alpha: TensorRef | None = None
    rank_of_scale: int = 1
    scale: float = 1.0

    @property
    def parts(self):
        return (self.tensor,)

    @property
    def shape(self):
        return self.tensor.info.shape

    def read(self, sources):
        """Read the difference."""
        (tensor,) = self._read_parts(sources)
        return tensor * scale_of(self.alpha, self.rank_of_scale, self.scale, sources)


@dataclass(frozen=True, slots=True)
class HadamardSpec(DeltaSpec):
    """LoHa: ``scale * (w1_a @ w1_b) * (w2_a @ w2_b)``.

    With `cores` each product goes through a kernel of shape (r, r, kh, kw), and the
    first factors are stored as (r, d_out).
    """

    parts: tuple[TensorRef, ...]
    cores: tuple[TensorRef, ...]
    alpha: TensorRef | None
    scale: float

    @property
    def _rank(self):
        return self.parts[1].info.shape[0]

    @property
    def shape(self):
        first, second = self.parts[0].info.shape, self.parts[1].info.shape
        if self.cores:
            return (first[1], second[1], *self.cores[0].info.shape[2:])
        return (first[0], second[1])

    def fits(self):
        """Say whether the parts multiply, and give one shape."""
        shapes = [part.info.shape for part in self.parts]
        if any(len(shape) != 2 for shape in shapes):
            return False
        if self.cores:
            cores = [core.info.shape for core in self.cores]
            return (
                len(cores) == 2
                and cores[0][2:] == cores[1][2:]
                and all(
                    core[:2] == (shapes[2 * i][0], shapes[2 * i + 1][0])
                    and len(core) == 4
                    for i, core in enumerate(cores)
                )
                and shapes[0][1] == shapes[2][1]
                and shapes[1][1] == shapes[3][1]
            )
        return (
            shapes[0][1] == shapes[1][0]
            and shapes[2][1] == shapes[3][0]
            and shapes[0][0] == shapes[2][0]
            and shapes[1][1] == shapes[3][1]
        )

    def read(self, sources):
        """Multiply the parts."""
        w1_a, w1_b, w2_a, w2_b = self._read_parts(sources)
        if self.cores:
            t1, t2 = (core.read_plain(sources, w1_a.dtype) for core in self.cores)
            delta = _through(t1, w1_a, w1_b) * _through(t2, w2_a, w2_b)
        else:
            delta = (w1_a @ w1_b) * (w2_a @ w2_b)
        return delta * scale_of(self.alpha, self._rank, self.scale, sources)


@dataclass(frozen=True, slots=True)
class KroneckerSpec(DeltaSpec):
    """LoKr: ``scale * kron(w1, w2)``, where each may itself be a product.

    `first` and `second` hold one tensor, or two to be multiplied; `core` is a kernel
    between the second's two.
    """

    first: tuple[TensorRef, ...]
    second: tuple[TensorRef, ...]
    core: TensorRef | None
    alpha: TensorRef | None
    scale: float

    @property
    def parts(self):
        return (*self.first, *self.second)

    @property
    def _rank(self):
        """Rank that alpha is divided by; None where both are whole."""
        for pair in (self.second, self.first):
            if len(pair) == 2:
                return pair[1].info.shape[0]
        return None

    @property
    def shape(self):
        w1 = _product_shape(self.first, None)
        w2 = _product_shape(self.second, self.core)
        return (w1[0] * w2[0], w1[1] * w2[1], *w2[2:])

    def fits(self):
        """Say whether the parts multiply."""
        w1 = _product_shape(self.first, None)
        w2 = _product_shape(self.second, self.core)
        return len(w1 or ()) == 2 and len(w2 or ()) in (2, 3, 4, 5)

    def read(self, sources):
        """Multiply the parts."""
        parts = self._read_parts(sources)
        w1 = parts[0] if len(self.first) == 1 else parts[0] @ parts[1]
        second = parts[len(self.first) :]
        if self.core is not None:
            core = self.core.read_plain(sources, w1.dtype)
            w2 = _through(core, *second)
        else:
            w2 = second[0] if len(second) == 1 else second[0] @ second[1]
        # A kernel's axes take no part. PEFT, which writes no alpha, overlooks this
        # where the kernel has one axis, and trains what comes of it.
        is_odd = w2.ndim == 3 and self.alpha is None
        order = "ab,cde->cadbe" if is_odd else "ab,cd...->acbd..."
        delta = torch.einsum(order, w1, w2).reshape(self.shape)
        # LyCORIS writes an alpha that means nothing where both are whole.
        alpha = self.alpha if self._rank is not None else None
        scale = scale_of(alpha, self._rank, self.scale, sources)
        return delta * scale


def _through(core, first, second):
    """Multiply (i, d_out), a kernel (i, j, kh, kw) and (j, d_in)."""
    return torch.einsum("ijhw,ip,jr->prhw", core, first, second)


def _product_shape(parts, core):
    """Shape of one tensor, or of the product of two; None if they do not multiply."""
    shapes = [part.info.shape for part in parts]
    if len(shapes) == 1:
        return shapes[0] if core is None else None
    if any(len(shape) != 2 for shape in shapes):
        return None
    (rows, columns), (inner, width) = shapes
    if core is not None:
        kernel = core.info.shape
        fits = len(kernel) == 4 and kernel[:2] == (rows, inner)
        return (columns, width, *kernel[2:]) if fits else None
    return (rows, width) if columns == inner else None
