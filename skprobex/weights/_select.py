"""Models by their positions, out of whatever holds them."""

from collections.abc import Mapping

import numpy as np


def take_models(W, positions):
    """Select models by position.

    Parameters
    ----------
    W : weights, ModelCollection, dict of weights, data frame or sequence
    positions : ndarray of int

    Returns
    -------
    Of the kind that W is; nothing is read from files.
    """
    if isinstance(W, Mapping):
        return {name: take_models(layer, positions) for name, layer in W.items()}
    if isinstance(W, (list, tuple)):
        return [W[i] for i in positions]
    if hasattr(W, "iloc"):
        return W.iloc[positions]
    return (W if hasattr(W, "__getitem__") else np.asarray(W))[positions]
