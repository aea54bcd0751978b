"""From weights to the decomposed deltas of one Model Tree, batch by batch."""

from typing import NamedTuple

import torch

from .shards import map_batches
from .spectral import frobenius_norms, thin_svd, thin_svd_of_product

# Decomposed deltas are kept between passes up to this size, else computed again.
CACHE_BYTES = 2**29


class LowRankBatch(NamedTuple):
    """Models whose weights are the products ``B @ A``, scale included.

    Smaller ranks are padded with zeros.
    """

    B: torch.Tensor  # (b, d_out, r)
    A: torch.Tensor  # (b, r, d_in)

    def dense(self):
        """Form the products, ``(b, d_out, d_in)``."""
        return self.B @ self.A


def as_dense(batch):
    """Turn a batch of either kind into a tensor ``(b, d_out, d_in)``."""
    return batch.dense() if isinstance(batch, LowRankBatch) else batch


def subtract(batch, center):
    """Centre a batch; a product less a dense centre is low-rank no more."""
    return batch if center is None else as_dense(batch) - center


def delta_norms(deltas):
    """Frobenius norms of a batch of either kind, ``(b,)``."""
    if isinstance(deltas, LowRankBatch):
        return thin_svd_of_product(*deltas).norms
    return frobenius_norms(deltas)


def decompose(deltas, sketch):
    """Decompose a batch of either kind; see `thin_svd`."""
    if isinstance(deltas, LowRankBatch):
        return thin_svd_of_product(*deltas)
    return thin_svd(deltas, sketch)


def mean_weights(weights, device, dtype):
    """Mean over models, summed in float64.

    Returns
    -------
    Tensor of shape (d_out, d_in)
    """
    total = sum(map_batches(sum_models, weights, device, dtype))
    return (total / len(weights)).to(dtype)


def sum_models(batch):
    """Sum a batch of either kind over its models, ``(d_out, d_in)``."""
    # MPS has no float64.
    if isinstance(batch, LowRankBatch):
        wide = batch.B.dtype if batch.B.device.type == "mps" else torch.float64
        # One product sums all models: their ranks, side by side.
        B = batch.B.to(wide).permute(1, 0, 2).flatten(1)  # (d_out, b * r)
        return B @ batch.A.to(wide).flatten(0, 1)
    wide = batch.dtype if batch.device.type == "mps" else torch.float64
    return batch.sum(dim=0, dtype=wide)


def decompose_models(batch, center, sketch):
    """Centre and decompose a batch of either kind."""
    return decompose(subtract(batch, center), sketch)


def root_mean_square(norms):
    """Typical norm of the deltas; one if all models are the same."""
    largest = norms.amax()
    if largest == 0:
        return 1.0
    return ((norms / largest).square().mean().sqrt() * largest).item()


class RepeatedPasses:
    """Iterate over computed batches of tensors, once or many times.

    What the first pass computed is kept up to `CACHE_BYTES`; beyond that, every pass
    computes it again.
    """

    _cache = None

    def _compute(self):
        """Yield the batches, named tuples of tensors (or None)."""
        raise NotImplementedError

    def __iter__(self):
        if self._cache is not None:
            yield from self._cache
            return
        cache, size = [], 0
        for batch in self._compute():
            size += sum(p.numel() * p.itemsize for p in batch if p is not None)
            if size <= CACHE_BYTES:
                cache.append(batch)
            else:
                cache = []
            yield batch
        if size <= CACHE_BYTES:
            self._cache = cache


class DecomposedDeltas(RepeatedPasses):
    """Spectral factors of ``X_i - C``, batch by batch.

    Parameters
    ----------
    weights : weights
        Yields batches ``(b, d_out, d_in)``, or `LowRankBatch`.
    center : Tensor of shape (d_out, d_in) or None
    sketch : Tensor or None
        See `thin_svd`.
    device : torch.device
    dtype : torch.dtype
    progress : callable, optional
        Called with the number of models decomposed, in the first pass only.
    """

    def __init__(self, weights, center, sketch, device, dtype, progress=None):
        self.weights, self.center, self.sketch = weights, center, sketch
        self.device, self.dtype, self.progress = device, dtype, progress

    def _compute(self):
        for factors in map_batches(
            decompose_models,
            self.weights,
            self.device,
            self.dtype,
            self.center,
            self.sketch,
        ):
            if self.progress is not None:
                self.progress(len(factors.norms))
            yield factors
        self.progress = None
