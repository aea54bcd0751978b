"""SimulatedWeights: models that are drawn batch by batch, and never held."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike

from ..probing.deltas import LowRankBatch
from ..weights import LowRankWeights
from ._draw import ReducedMoments, draw_batch

_BATCH_BYTES = 32 * 2**20


class SimulatedWeights(LowRankWeights):
    """One layer of simulated models: made from a seed whenever they are read.

    `simulate_models` returns them, and every estimator takes them. They index like an
    array and slice to their own kind; a model is the same whenever and with whichever
    others it is read.

    Attributes
    ----------
    shape : tuple of (int, int, int)
        ``(n_models, d_out, d_in)``.
    dtype : numpy dtype
        float32.
    is_low_rank : bool
        True for deltas, which are low-rank; False for weights about a base.
    """

    def __init__(
        self,
        moments: ReducedMoments,
        weights_of_classes: np.ndarray,
        scales: np.ndarray,
        seeds: np.ndarray,
        base: np.ndarray | None = None,
    ) -> None:
        self._moments, self._base = moments, base
        self._weights, self._scales = weights_of_classes, scales
        self._seeds = seeds
        self.is_low_rank = base is None

    # What follows is the contract of all weights: shape, selection, batches.
    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self._seeds), self._moments.d_out, len(self._moments.basis)

    @property
    def lifted_shape(self) -> tuple[int, int, int]:
        return self.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def rank(self) -> Any:
        return self._moments.rank if self.is_low_rank else None

    def __len__(self) -> int:
        return len(self._seeds)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):
            if any(part is not Ellipsis and part != slice(None) for part in key[1:]):
                raise IndexError("SimulatedWeights are indexed by model only.")
            key = key[0]
        positions = np.arange(len(self))[key]
        if positions.ndim == 0:
            return self._select(positions[None]).to_dense()[0]
        return self._select(positions)

    def _select(self, models: np.ndarray) -> SimulatedWeights:
        return SimulatedWeights(
            self._moments,
            self._weights[models],
            self._scales[models],
            self._seeds[models],
            self._base,
        )

    def _read_batches(
        self, size: int, device: torch.device, dtype: torch.dtype
    ) -> Iterator[torch.Tensor | LowRankBatch]:
        base = None
        if self._base is not None:
            base = torch.from_numpy(self._base).to(device, dtype)
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            B, A = draw_batch(
                self._moments, self._weights[part], self._seeds[part], device, dtype
            )
            B = B * torch.from_numpy(self._scales[part]).to(B)[:, None, None]
            yield LowRankBatch(B, A) if base is None else base + B @ A

    def batches(
        self, device: torch.device, dtype: torch.dtype | None = None
    ) -> Iterator[Any]:
        """Draw the models in order, batch by batch.

        Parameters
        ----------
        device : torch.device
        dtype : torch.dtype, default=None
            None means float32.

        Yields
        ------
        LowRankBatch, or Tensor of shape (b, d_out, d_in)
        """
        dtype = dtype or self.compute_dtype
        _, d_out, d_in = self.shape
        row = (
            (self._moments.rank * (d_out + d_in)) if self.is_low_rank else d_out * d_in
        )
        # What a model is drawn from, its covariance and the root of it, counts as well.
        row += 2 * self._moments.basis.shape[1] ** 2
        size = math.ceil(_BATCH_BYTES / (row * dtype.itemsize))
        yield from self._read_batches(size, device, dtype)

    def to_dense(self) -> np.ndarray:
        """Draw all models, as one array.

        Returns
        -------
        ndarray of shape (n_models, d_out, d_in), float32
        """
        parts = [
            batch.dense() if isinstance(batch, LowRankBatch) else batch
            for batch in self.batches(torch.device("cpu"))
        ]
        if not parts:
            return np.empty(self.shape, self.dtype)
        return torch.cat(parts).numpy()

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray:
        if copy is False:
            raise ValueError("SimulatedWeights cannot become an array without a copy.")
        dense = self.to_dense()
        return dense if dtype is None else dense.astype(dtype, copy=False)

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    def __repr__(self) -> str:
        n_models, d_out, d_in = self.shape
        return f"SimulatedWeights({n_models} models, {d_out} x {d_in})"
