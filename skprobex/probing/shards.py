"""Batches of weights in files, worked on wherever joblib was told to.

What a fit does with weights is a map over batches and a reduction in their order. In
its own process a batch comes after the other. Under ``joblib.parallel_config`` with
several workers, each reads and works on batches of its own, and what comes back is
reduced here in the same order: the batches are the same, and so is the result.
"""

import joblib
import torch
from joblib.parallel import get_active_backend

from .device import as_array, as_tensor

# Batches given out at once, for each worker: what is held is bounded by them.
BATCHES_AHEAD = 2


def map_batches(function, weights, device, dtype, *constants):
    """Apply a function to every batch of weights, in order.

    Parameters
    ----------
    function : callable
        Of a batch and the constants; defined in a module, so that workers find it.
    weights : weights
    device : torch.device
    dtype : torch.dtype
    *constants : Tensor or None
        The same for all batches.

    Yields
    ------
    object
        What the function returned.
    """
    n_workers = count_workers() if device.type == "cpu" else 1
    if n_workers == 1 or not hasattr(weights, "shards"):
        for batch in weights.batches(device, dtype):
            yield function(batch, *constants)
        return
    # joblib shares large arrays between processes, and copies tensors.
    arrays = [
        None if constant is None else as_array(constant) for constant in constants
    ]
    shards = weights.shards(dtype)
    n_ahead = BATCHES_AHEAD * n_workers
    with joblib.Parallel() as parallel:
        for start in range(0, len(shards), n_ahead):
            yield from parallel(
                joblib.delayed(read_and_apply)(function, shard, dtype, arrays)
                for shard in shards[start : start + n_ahead]
            )


def read_and_apply(function, shard, dtype, arrays):
    """Read the one batch of a shard, and apply the function."""
    cpu = torch.device("cpu")
    constants = [None if a is None else as_tensor(a, dtype, cpu) for a in arrays]
    (batch,) = shard.batches(cpu, dtype)
    return function(batch, *constants)


def count_workers():
    """Workers that the caller gave to joblib; one within a worker."""
    backend, _ = get_active_backend()
    return 1 if backend.nesting_level else joblib.effective_n_jobs(None)
