"""Batches of weights: what they are, and working on them wherever joblib was told to.

A batch is a tensor ``(b, d_out, d_in)``, or a `LowRankBatch`; only the functions here,
and those that decompose, tell them apart.

What a fit does with weights is a map over batches and a reduction in their order. In
its own process a batch comes after the other. Under ``joblib.parallel_config`` with
several workers, each reads and works on batches of its own, and what comes back is
reduced here in the same order: the batches are the same, and so is the result.
"""

from typing import NamedTuple

import joblib
import torch
from joblib.parallel import get_active_backend

from .device import as_array, as_tensor

# Batches given out at once, for each worker: what is held is bounded by them.
BATCHES_AHEAD = 2


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


def count_models(batch):
    """Count the models of a batch of either kind."""
    return len(batch[0]) if isinstance(batch, tuple) else len(batch)


def take(batch, models):
    """Take some models of a batch of either kind."""
    if isinstance(batch, tuple):
        return type(batch)(*(factor[models] for factor in batch))
    return batch[models]


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

    Raises
    ------
    torch.cuda.OutOfMemoryError
        If the device has no memory for a single model.
    """
    n_workers = count_workers() if device.type == "cpu" else 1
    if n_workers == 1 or not weights.is_lazy:
        for batch in weights.batches(device, dtype):
            results = apply_in_parts(function, batch, constants)
            # Let go of it before room is made for another.
            del batch
            yield from results
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


def apply_in_parts(function, batch, constants):
    """Apply the function to a batch, or to halves of it where memory runs out.

    Returns
    -------
    list
        What the function returned of each part, in order.
    """
    n_models = count_models(batch)
    try:
        return [function(batch, *constants)]
    except torch.cuda.OutOfMemoryError as error:
        if n_models == 1:
            raise torch.cuda.OutOfMemoryError(
                f"{error} There is no room for one model: free the device's memory, "
                "lower n_probes, or use device='cpu'."
            ) from error
    # Not in the handler, which holds on to what the function had allocated.
    halves = slice(n_models // 2), slice(n_models // 2, None)
    return [
        result
        for half in halves
        for result in apply_in_parts(function, take(batch, half), constants)
    ]


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
