"""The centre of a Model Tree: what is subtracted from the weights of its models."""

import torch

from .batches import map_batches, sizes_of, sum_models
from .device import as_tensor


def find_center(weights, center, device, dtype):
    """Find the centre, in one pass over the weights at most.

    Parameters
    ----------
    weights : Weights
    center : {"auto", "mean"}, None or array-like of shape (d_out, d_in)
        "mean" is the mean of the models; None subtracts nothing. "auto" is the mean,
        and nothing for low-rank weights, which are deltas from their base already.
    device : torch.device
    dtype : torch.dtype

    Returns
    -------
    center : Tensor of shape (d_out, d_in) or None
    sizes : Tensor of shape (n_models,) or None
        See `batches.sizes_of`; where a pass was made.
    """
    if isinstance(center, str):
        if center == "auto" and weights.is_low_rank:
            return None, None
        return mean_and_sizes(weights, device, dtype)
    return (None if center is None else as_tensor(center, dtype, device)), None


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
