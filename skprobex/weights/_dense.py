"""Weights held in one array or tensor, read in batches."""

import math

import numpy as np
import torch

from ..probing.device import as_tensor

# A batch of at least this size keeps the matrix products busy, and glibc gives blocks
# from 32 MiB on back to the system when they are freed.
BATCH_BYTES = 32 * 2**20


class DenseWeights:
    """One layer of many models, lifted to ``(n_models, d_out, d_in)``.

    The array itself is neither copied nor cast: batches are.

    Parameters
    ----------
    array : ndarray or Tensor of shape (n_models, d_out, ...)
        The layer of each model. Axes after the second are flattened into d_in;
        without any, d_in is one.
    models : ndarray of int, optional
        Positions of the models that are meant, all if None.
    """

    is_low_rank = False
    # What errors call it: one of several layers says which.
    title = "Input W"

    def __init__(self, array, models=None):
        self.array, self.models = array, models
        n_models = len(array) if models is None else len(models)
        d_in = int(np.prod(array.shape[2:], dtype=np.int64))
        self.lifted_shape = (n_models, array.shape[1], d_in)
        self.compute_dtype = compute_dtype(array.dtype)
        # Looking for NaN takes as long as reading: once is enough.
        self._is_finite = False

    def __len__(self):
        return self.lifted_shape[0]

    def __getitem__(self, index):
        models = np.arange(len(self)) if self.models is None else self.models
        taken = DenseWeights(self.array, models[index])
        taken._is_finite = self._is_finite
        return taken

    def batches(self, device, dtype=None):
        """Yield the models in order as finite tensors ``(b, d_out, d_in)``.

        Parameters
        ----------
        device : torch.device
        dtype : torch.dtype, optional
            Float64 where the array is, else float32.

        Raises
        ------
        ValueError
            If a model holds NaN or infinity; the message names the first one.
        """
        dtype = dtype or self.compute_dtype
        n_models, d_out, d_in = self.lifted_shape
        size = math.ceil(BATCH_BYTES / (d_out * d_in * dtype.itemsize))
        for start in range(0, n_models, size):
            models = slice(start, start + size)
            if self.models is not None:
                models = self.models[models]
            batch = as_tensor(self.array[models], dtype, device)
            if not self._is_finite:
                check_finite(batch, start, self.title)
            yield batch.reshape(-1, d_out, d_in)
        self._is_finite = True


def compute_dtype(dtype):
    """Float64 is computed in float64, everything else in float32."""
    if isinstance(dtype, torch.dtype):
        is_double = dtype == torch.float64
    else:
        is_double = dtype.kind == "f" and dtype.itemsize >= 8
    return torch.float64 if is_double else torch.float32


def check_numeric(array, name):
    """Refuse what holds no real numbers; objects that are numbers become such.

    Returns
    -------
    ndarray
        Of numbers or booleans.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: fill or drop the masked weights.")
    if array.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} holds complex numbers.")
    if array.dtype.kind == "O":
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} holds objects that are no numbers.") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} holds {array.dtype}: expected real numbers.")
    return array


def check_finite(batch, start, name):
    """Refuse NaN and infinity in a batch that begins with model `start`."""
    # A sum is finite unless an entry is not, or it overflows: then look closer.
    if torch.isfinite(batch.sum()):
        return
    bad = ~torch.isfinite(batch.flatten(1)).all(dim=1)
    if not bad.any():
        return
    first = int(bad.nonzero()[0])
    kind = "NaN" if torch.isnan(batch[first]).any() else "infinity"
    more = int(bad.sum()) - 1
    others = f" and at least {more} more" if more else ""
    raise ValueError(
        f"{name} contains {kind}: model {start + first}{others}. Drop these models, "
        "or reload their weights (float16 overflows above 65504)."
    )
