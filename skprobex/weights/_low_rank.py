"""LowRankWeights: LoRA layers as the factors they are stored as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike

from .._typing import Numbers, Selection, Self
from ..probing.batches import LowRankBatch
from ..probing.device import as_tensor
from ._contract import Weights, check_numeric, compute_dtype


class LowRankWeights(Weights):
    """The products ``scale * B @ A`` of many models, never multiplied out.

    Every estimator takes them in the place of an array ``(n_models, d_out, d_in)``,
    and works on the factors. They index like an array and slice to their own kind, so
    that they pass through cross-validation; one model by itself is a plain matrix.

    Parameters
    ----------
    B : array-like or Tensor of shape (n_models, d_out, r), or list of (d_out, r_i)
        Up-projections. Ranks may differ in a list; they are padded with zeros.
    A : array-like or Tensor of shape (n_models, r, d_in), or list of (r_i, d_in)
        Down-projections.
    scale : float or array-like of shape (n_models,), default=1.0
        What the products are multiplied by (``lora_alpha / r``).

    Attributes
    ----------
    B : ndarray or Tensor of shape (n_models, d_out, r)
    A : ndarray or Tensor of shape (n_models, r, d_in)
    scale : ndarray of shape (n_models,)
    shape : tuple of (int, int, int)
        ``(n_models, d_out, d_in)``.
    rank : int
        The largest rank.

    Raises
    ------
    ValueError
        Factors that do not multiply, or a scale that is not finite; the message names
        the first model.
    TypeError
        Factors that hold no real numbers.

    Notes
    -----
    (A, B) is not unique, ``B @ A`` is: nothing that an estimator computes depends on
    how the product is split.

    Examples
    --------
    >>> import numpy as np
    >>> from skprobex import LowRankWeights
    >>> rng = np.random.default_rng(0)
    >>> B, A = rng.normal(size=(5, 32, 4)), rng.normal(size=(5, 4, 24))
    >>> W = LowRankWeights(B, A, scale=0.5)
    >>> W.shape, W[1:3]
    ((5, 32, 24), LowRankWeights(2 models, 32 x 24, rank 4, float64))
    >>> bool(np.allclose(W[0], 0.5 * B[0] @ A[0]))
    True
    """

    is_low_rank = True
    title = "W"

    def __init__(self, B: Numbers, A: Numbers, scale: ArrayLike = 1.0) -> None:
        B, A = _stack(B, A)
        if B.ndim != 3 or A.ndim != 3 or len(B) != len(A) or B.shape[2] != A.shape[1]:
            raise ValueError(
                f"B of shape {tuple(B.shape)} and A of shape {tuple(A.shape)} do not "
                "multiply: expected (n_models, d_out, r) and (n_models, r, d_in)."
            )
        if not B.shape[2]:
            raise ValueError(
                "B and A have rank 0, so that every product is zero: expected a rank "
                "of 1 at least."
            )
        try:
            scale = np.broadcast_to(np.asarray(scale, dtype=float), (len(B),))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"scale must be a number or one for each of {len(B)} models, got "
                f"{type(scale).__name__} of shape {np.shape(scale)}."
            ) from error
        if not np.isfinite(scale).all():
            first = int(np.flatnonzero(~np.isfinite(scale))[0])
            raise ValueError(f"scale of model {first} is {scale[first]}, not finite.")
        # Factors, and which of their models are meant: None is all. One attribute, so
        # that threads never see one half of a change.
        self._held = (B, A, scale), None

    def _factors_of(self, models):
        """Factors of some models, out of those that this object stands for."""
        factors, selected = self._held
        if selected is not None:
            models = selected[models]
        return tuple(factor[models] for factor in factors)

    def _copy_selected(self):
        """Copy what was selected, where it was not yet, and let go of the rest."""
        factors, selected = self._held
        if selected is not None:
            factors = self._factors_of(slice(None))
            self._held = factors, None
        return factors

    @property
    def B(self) -> np.ndarray | torch.Tensor:
        return self._copy_selected()[0]

    @property
    def A(self) -> np.ndarray | torch.Tensor:
        return self._copy_selected()[1]

    @property
    def scale(self) -> np.ndarray:
        return self._copy_selected()[2]

    def __getstate__(self):
        self._copy_selected()
        return vars(self)

    @property
    def shape(self) -> tuple[int, int, int]:
        (B, A, _), selected = self._held
        n_models = len(B) if selected is None else len(selected)
        return (n_models, B.shape[1], A.shape[2])

    @property
    def rank(self) -> int:
        return self._held[0][0].shape[2]

    @property
    def dtype(self) -> np.dtype:
        """dtype of the products: float64 where the factors are, else float32."""
        is_double = self.compute_dtype == torch.float64
        return np.dtype(np.float64 if is_double else np.float32)

    @property
    def compute_dtype(self) -> torch.dtype:
        return compute_dtype(self._held[0][0].dtype)

    @overload
    def __getitem__(self, key: int | np.integer) -> np.ndarray: ...

    @overload
    def __getitem__(self, key: Selection) -> Self: ...

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key)

    def _select(self, models):
        # Selected models are copied when and as far as they are needed.
        factors, selected = self._held
        taken = object.__new__(type(self))
        taken._held = factors, models if selected is None else selected[models]
        return taken

    def _take_one(self, model):
        return self[[model]].to_dense()[0]

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray:
        if copy is False:
            return super().__array__(dtype, copy)
        dense = self.to_dense()
        return dense if dtype is None else dense.astype(dtype, copy=False)

    def __repr__(self) -> str:
        n_models, d_out, d_in = self.shape
        return (
            f"LowRankWeights({n_models} models, {d_out} x {d_in}, rank {self.rank}, "
            f"{self.dtype})"
        )

    def to_dense(self) -> np.ndarray:
        """Multiply the factors.

        Returns
        -------
        ndarray of shape (n_models, d_out, d_in)
            The weights, as large as they would be dense.
        """
        dense = np.empty(self.shape, self.dtype)
        start = 0
        for B, A in self.batches(torch.device("cpu")):
            part = torch.from_numpy(dense[start : start + len(B)])
            torch.bmm(B, A, out=part)
            start += len(B)
        return dense

    def _read_batches(self, size, device, dtype):
        for start in range(0, len(self), size):
            part = self._factors_of(slice(start, start + size))
            B, A, scale = (as_tensor(factor, dtype, device) for factor in part)
            yield LowRankBatch(B * scale[:, None, None], A)

    @classmethod
    def concatenate(cls, parts: Sequence[LowRankWeights]) -> Self:
        """Join several, models after models; ranks may differ.

        Parameters
        ----------
        parts : list of LowRankWeights
            Of the same ``(d_out, d_in)``.

        Returns
        -------
        LowRankWeights
            As many models as all parts together.
        """
        B = [factor for part in parts for factor in part.B]
        A = [factor for part in parts for factor in part.A]
        return cls(B, A, np.concatenate([part.scale for part in parts]))


def _stack(B, A):
    """Stack lists of factors, padded with zeros to the largest rank."""
    if not (isinstance(B, (list, tuple)) and isinstance(A, (list, tuple))):
        return _as_factor(B), _as_factor(A)
    B, A = [_as_factor(b) for b in B], [_as_factor(a) for a in A]
    if len(B) != len(A) or not B:
        raise ValueError(
            f"B holds {len(B)} models and A {len(A)}: expected as many, and at least "
            "one."
        )
    d_out, d_in = B[0].shape[0], A[0].shape[-1]
    for i, (b, a) in enumerate(zip(B, A, strict=True)):
        if b.ndim != 2 or a.ndim != 2 or b.shape[1] != a.shape[0]:
            raise ValueError(
                f"model {i}: B of shape {tuple(b.shape)} and A of shape "
                f"{tuple(a.shape)} do not multiply: expected (d_out, r) and (r, d_in)."
            )
        if (b.shape[0], a.shape[1]) != (d_out, d_in):
            raise ValueError(
                f"model {i} has weights of shape {(b.shape[0], a.shape[1])}, the first "
                f"of {(d_out, d_in)}: all models must have weights of one shape."
            )
    rank = max(b.shape[1] for b in B)
    dtype = np.result_type(*{np.asarray(b).dtype for b in B})
    stacked_b = np.zeros((len(B), d_out, rank), dtype)
    stacked_a = np.zeros((len(A), rank, d_in), dtype)
    for i, (b, a) in enumerate(zip(B, A, strict=True)):
        stacked_b[i, :, : b.shape[1]] = b
        stacked_a[i, : a.shape[0]] = a
    return stacked_b, stacked_a


def _as_factor(factor):
    if isinstance(factor, torch.Tensor):
        if factor.is_complex():
            raise ValueError("Complex data not supported: a factor of W is complex.")
        return factor.detach()
    return check_numeric(np.asanyarray(factor), "a factor of W")
