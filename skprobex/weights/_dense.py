"""Weights held in one array or tensor, read in batches."""

import numpy as np
import torch

from ..probing.device import as_array, as_tensor
from ._contract import Weights, compute_dtype


class DenseWeights(Weights):
    """One layer of many models in an array, which is neither copied nor cast.

    Parameters
    ----------
    array : ndarray or Tensor of shape (n_models, d_out, ...)
        The layer of each model. Axes after the second are flattened into d_in;
        without any, d_in is one.
    models : ndarray of int, optional
        Positions of the models that are meant, all if None.
    """

    def __init__(self, array, models=None):
        self._array, self._models = array, models

    @property
    def shape(self):
        n_models = len(self._array if self._models is None else self._models)
        return (n_models, *self._array.shape[1:])

    @property
    def dtype(self):
        if isinstance(self._array, torch.Tensor):
            return torch.empty(0, dtype=self.compute_dtype).numpy().dtype
        return self._array.dtype

    @property
    def compute_dtype(self):
        return compute_dtype(self._array.dtype)

    def _select(self, models):
        if self._models is not None:
            models = self._models[models]
        return DenseWeights(self._array, models)

    def _take_one(self, model):
        (batch,) = self._select([model]).batches(torch.device("cpu"))
        return as_array(batch).reshape(self.shape[1:])

    def __array__(self, dtype=None, copy=None):
        array = self._array if self._models is None else self._array[self._models]
        return np.asarray(array, dtype)

    def _read_batches(self, size, device, dtype):
        n_models, d_out, d_in = self.lifted_shape
        for start in range(0, n_models, size):
            models = slice(start, start + size)
            if self._models is not None:
                models = self._models[models]
            batch = as_tensor(self._array[models], dtype, device)
            yield batch.reshape(-1, d_out, d_in)
