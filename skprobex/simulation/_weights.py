"""SimulatedWeights: models that are drawn batch by batch, and never held."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ..probing.batches import LowRankBatch, as_dense
from ..probing.device import as_array, as_tensor
from ..weights import Weights
from ._draw import ReducedMoments, draw_batch


class SimulatedWeights(Weights):
    """One layer of simulated models: made from a seed whenever they are read.

    `simulate_models` returns them, and every estimator takes them. They index like an
    array and slice to their own kind; a model is the same whenever and with whichever
    others it is read, up to rounding.

    Parameters
    ----------
    moments : ReducedMoments
        What models are drawn from.
    weights_of_classes : ndarray of shape (n_models, n_classes)
        How much of each class's moment is in each model.
    scales : ndarray of shape (n_models,)
        What deltas are multiplied by.
    seeds : ndarray of shape (n_models,)
        The seed of each model.
    base : ndarray of shape (d_out, d_in), default=None
        What deltas are added to; None leaves them deltas.

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

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self._seeds), self._moments.d_out, len(self._moments.basis)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    @property
    def rank(self) -> int | None:
        return self._moments.rank if self.is_low_rank else None

    def _select(self, models: np.ndarray) -> SimulatedWeights:
        return SimulatedWeights(
            self._moments,
            self._weights[models],
            self._scales[models],
            self._seeds[models],
            self._base,
        )

    def _take_one(self, model: int) -> np.ndarray:
        (batch,) = self._select(np.array([model])).batches(torch.device("cpu"))
        return as_array(as_dense(batch)[0])

    def _read_batches(
        self, size: int, device: torch.device, dtype: torch.dtype
    ) -> Iterator[torch.Tensor | LowRankBatch]:
        base = None if self._base is None else as_tensor(self._base, dtype, device)
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            B, A = draw_batch(
                self._moments, self._weights[part], self._seeds[part], device, dtype
            )
            B = B * as_tensor(self._scales[part], dtype, device)[:, None, None]
            yield LowRankBatch(B, A) if base is None else base + B @ A

    @property
    def _n_values(self):
        # Its covariance, and the root of it, take memory as well.
        return super()._n_values + 2 * self._moments.basis.shape[1] ** 2

    def __repr__(self) -> str:
        n_models, d_out, d_in = self.shape
        return f"SimulatedWeights({n_models} models, {d_out} x {d_in})"
