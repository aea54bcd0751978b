"""From weights to the decomposed deltas of one Model Tree, batch by batch."""

import torch

from .batches import (
    LowRankBatch,
    count_models,
    map_batches,
    sizes_of,
    subtract,
    take,
)
from .center import find_center
from .spectral import (
    N_DIRECTIONS,
    concatenate,
    draw_sketch,
    frobenius_norms,
    thin_svd,
    thin_svd_of_product,
)

# Decomposed deltas are kept between passes up to this size, else computed again.
CACHE_BYTES = 2**29
# On a CPU so much is centred and decomposed at once: deltas are read three times, from
# its cache, and memory that was just freed is taken again.
PART_BYTES = 2**23


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
    sizes : Tensor of shape (n_models,), optional
        See `sizes_of`, where they are known.
    """

    def __init__(self, weights, center, sketch, device, dtype, sizes=None):
        self.weights, self.center, self.sketch = weights, center, sketch
        self.device, self.dtype, self._sizes = device, dtype, sizes

    @classmethod
    def open(cls, weights, center, device, dtype, generator):
        """Centre weights, and decompose them batch by batch as asked.

        Parameters
        ----------
        weights : Weights
        center : {"auto", "robust", "mean"}, None or array-like
            See `find_center`.
        device : torch.device
        dtype : torch.dtype
        generator : torch.Generator
            Draws the sketch of large layers.
        """
        found = find_center(weights, center, device, dtype)
        sketch = draw_sketch(*weights.lifted_shape[1:], generator, dtype, device)
        return cls(weights, found.center, sketch, device, dtype, found.sizes)

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
        )

    def _compute(self):
        return map_batches(
            decompose_models,
            self.weights,
            self.device,
            self.dtype,
            self.center,
            self.sketch,
        )
