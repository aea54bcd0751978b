"""From weights to the decomposed deltas of one Model Tree, batch by batch."""

import torch

from .spectral import thin_svd

# Decomposed deltas are kept between passes up to this size, else computed again.
CACHE_BYTES = 2**29


def mean_weights(weights, device):
    """Mean over models, summed in float64.

    Returns
    -------
    Tensor of shape (d_out, d_in), in the dtype of the weights
    """
    total = 0
    for batch in weights.batches(device):
        # MPS has no float64.
        wide = batch.dtype if device.type == "mps" else torch.float64
        total = total + batch.sum(dim=0, dtype=wide)
    return (total / len(weights)).to(weights.dtype)


def root_mean_square(norms):
    """Typical norm of the deltas; one if all models are the same."""
    largest = norms.amax()
    if largest == 0:
        return 1.0
    return ((norms / largest).square().mean().sqrt() * largest).item()


class DecomposedDeltas:
    """Iterate over the spectral factors of ``X_i - C``, once or many times.

    Parameters
    ----------
    weights : weights
        Yields batches ``(b, d_out, d_in)``.
    center : Tensor of shape (d_out, d_in) or None
    sketch : Tensor or None
        See `thin_svd`.
    device : torch.device
    progress : callable, optional
        Called with the number of models decomposed, in the first pass only.
    """

    def __init__(self, weights, center, sketch, device, progress=None):
        self.weights, self.center, self.sketch = weights, center, sketch
        self.device, self.progress = device, progress
        self._cache = None

    def __iter__(self):
        if self._cache is not None:
            yield from self._cache
            return
        cache, size = [], 0
        for batch in self.weights.batches(self.device):
            deltas = batch if self.center is None else batch - self.center
            factors = thin_svd(deltas, self.sketch)
            size += sum(part.numel() * part.itemsize for part in factors)
            if size <= CACHE_BYTES:
                cache.append(factors)
            else:
                cache = []
            if self.progress is not None:
                self.progress(len(factors.norms))
            yield factors
        self.progress = None
        if size <= CACHE_BYTES:
            self._cache = cache
