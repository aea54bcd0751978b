"""From weights to the decomposed deltas of one Model Tree, batch by batch."""

from typing import NamedTuple

import torch

from .batches import count_models, map_batches, take
from .spectral import (
    N_DIRECTIONS,
    concatenate,
    frobenius_norms,
    thin_svd,
    thin_svd_of_product,
)

# Decomposed deltas are kept between passes up to this size, else computed again.
CACHE_BYTES = 2**29
# On a CPU so much is centred and decomposed at once: deltas are read three times, from
# its cache, and memory that was just freed is taken again.
PART_BYTES = 2**23


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
    return mean_and_sizes(weights, device, dtype)[0]


def mean_and_sizes(weights, device, dtype):
    """Mean over models, and sizes of the models, in one pass.

    Returns
    -------
    mean : Tensor of shape (d_out, d_in)
    sizes : Tensor of shape (n_models,)
        See `sizes_of`.
    """
    # Nothing small stays behind between the large sums: malloc could not join what they
    # leave, and memory would grow with the number of models.
    total, n_seen = 0.0, 0
    sizes = torch.empty(len(weights), dtype=torch.float64)
    for models, some_sizes in map_batches(sums_and_sizes, weights, device, dtype):
        total += models
        sizes[n_seen : n_seen + len(some_sizes)] = some_sizes
        n_seen += len(some_sizes)
    return (total / len(weights)).to(dtype), sizes


def sums_and_sizes(batch):
    """See `sum_models` and `sizes_of`."""
    return sum_models(batch), sizes_of(batch)


def sizes_of(batch):
    """A number that tells models apart: their norms, or products of their factors'.

    Rows are measured in the dtype of the batch, and added up in float64: models that
    differ little have different sizes.

    Parameters
    ----------
    batch : Tensor of shape (b, d_out, d_in), or LowRankBatch

    Returns
    -------
    Tensor of shape (b,)
    """
    sizes = 1.0
    for part in batch if isinstance(batch, LowRankBatch) else (batch,):
        rows = torch.linalg.vector_norm(part, dim=2).cpu().double()  # (b, d)
        sizes = sizes * torch.linalg.vector_norm(rows, dim=1)
    return sizes


def sum_models(batch):
    """Sum a batch of either kind over its models, ``(d_out, d_in)``."""
    first = batch[0]
    # MPS has no float64.
    wide = first.dtype if first.device.type == "mps" else torch.float64
    if isinstance(batch, LowRankBatch):
        # One product sums all models: their ranks, side by side.
        B = batch.B.to(wide).permute(1, 0, 2).flatten(1)  # (d_out, b * r)
        return B @ batch.A.to(wide).flatten(0, 1)
    # One by one: a sum that widens as it goes takes twenty times as long.
    total = torch.zeros_like(first, dtype=wide)
    for model in batch:
        total += model
    return total


def decompose_models(batch, center, sketch):
    """Centre and decompose a batch of either kind, on a CPU in parts."""
    if center is None or center.device.type != "cpu":
        return decompose(subtract(batch, center), sketch)
    size = max(1, PART_BYTES // center.nbytes)
    return concatenate(
        [
            decompose(subtract(take(batch, slice(start, start + size)), center), sketch)
            for start in range(0, count_models(batch), size)
        ]
    )


def root_mean_square(norms):
    """Typical norm of the deltas; one if all models are the same."""
    largest = norms.amax()
    if largest == 0:
        return 1.0
    return ((norms / largest).square().mean().sqrt() * largest).item()


class RepeatedPasses:
    """Iterate over computed batches of tensors, once or many times.

    What the first pass computed is kept where all of it takes no more than
    `CACHE_BYTES`; otherwise every pass computes it again.

    Attributes
    ----------
    n_bytes : int
        What all batches take.
    """

    _cache = None

    def _compute(self):
        """Yield the batches, named tuples of tensors (or None)."""
        raise NotImplementedError

    @property
    def is_kept(self):
        return self.n_bytes <= CACHE_BYTES

    def __iter__(self):
        if self._cache is not None:
            yield from self._cache
        elif not self.is_kept:
            yield from self._compute()
        else:
            cache = []
            for batch in self._compute():
                cache.append(batch)
                yield batch
            self._cache = cache

    def once(self):
        """Iterate for the last time: what was kept is let go of on the way."""
        if self._cache is None:
            yield from self._compute()
            return
        cache, self._cache = self._cache[::-1], None
        while cache:
            yield cache.pop()


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
    sizes : Tensor of shape (n_models,), optional
        See `sizes_of`, where they are known.
    """

    def __init__(
        self, weights, center, sketch, device, dtype, progress=None, sizes=None
    ):
        self.weights, self.center, self.sketch = weights, center, sketch
        self.device, self.dtype, self.progress = device, dtype, progress
        self._sizes = sizes

    @property
    def n_bytes(self):
        n_models, d_out, d_in = self.weights.lifted_shape
        if self.weights.is_low_rank and self.center is None:
            n_directions = self.weights.rank
        else:
            n_directions = min(d_out, d_in)
            if self.sketch is not None:
                n_directions = min(n_directions, N_DIRECTIONS)
        return n_models * n_directions * (d_out + d_in) * self.dtype.itemsize

    @property
    def sizes(self):
        """What tells the models apart, see `sizes_of`; ``(n_models,)``."""
        if self._sizes is None:
            parts = map_batches(sizes_of, self.weights, self.device, self.dtype)
            self._sizes = torch.cat(list(parts))
        return self._sizes

    def take(self, models):
        """Only some of the models.

        Parameters
        ----------
        models : Tensor of int, shape (n_taken,)
            Their positions, ascending.

        Returns
        -------
        DecomposedDeltas
        """
        return DecomposedDeltas(
            self.weights[models.numpy()],
            self.center,
            self.sketch,
            self.device,
            self.dtype,
            self.progress,
        )

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
