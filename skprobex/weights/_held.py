"""Models in memory, behind the same methods as models in files."""

from __future__ import annotations

import numpy as np
import torch

from ._in_files import StoredModel


class HeldSpec:
    """One layer of one model out of weights that hold many.

    Parameters
    ----------
    W : array, tensor, LowRankWeights or LayerWeights
    i : int
        Which of its models.
    """

    is_refused = False
    file = 0

    def __init__(self, W, i):
        self._W, self._i = W, i
        self.is_low_rank = bool(getattr(W, "is_low_rank", False))

    @property
    def shape(self):
        return tuple(self._W.shape[1:])

    @property
    def rank(self):
        return self._W.rank if self.is_low_rank else None

    @property
    def dtype(self):
        dtype = self._W.dtype
        if isinstance(dtype, torch.dtype):
            dtype = torch.float32 if dtype == torch.bfloat16 else dtype
            return torch.empty(0, dtype=dtype).numpy().dtype
        return np.dtype(dtype)

    def read(self, sources):
        """Return a tensor, or a pair of factors."""
        if self.is_low_rank:
            one = self._W[self._i : self._i + 1]
            dtype = torch.float64 if self.dtype == np.float64 else torch.float32
            batch = next(iter(one.batches(torch.device("cpu"), dtype)))
            return batch.B[0], batch.A[0]
        weight = self._W[self._i]
        if isinstance(weight, torch.Tensor):
            return weight.detach().cpu()
        return torch.from_numpy(np.array(weight))

    def read_into(self, sources, out):
        """Leave it to `read`."""
        return False


def held_models(layers, names, metadata):
    """Turn weights of many models into many models.

    Parameters
    ----------
    layers : dict of str to weights
    names, metadata : list
        Of the models.

    Returns
    -------
    list of StoredModel
        Nothing is copied.
    """
    # A frame's brackets take columns.
    layers = {
        name: W.to_numpy() if hasattr(W, "iloc") else W for name, W in layers.items()
    }
    return [
        StoredModel(
            name,
            ("memory",),
            {layer: HeldSpec(W, i) for layer, W in layers.items()},
            metadata[i],
        )
        for i, name in enumerate(names)
    ]
