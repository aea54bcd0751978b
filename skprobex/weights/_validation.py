"""Turn whatever a user passes as W into weights, or say what is wrong with it."""

from collections import Counter

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils.validation import validate_data

from ._collection import ModelCollection
from ._dense import DenseWeights
from ._layer import LayerWeights
from ._low_rank import LowRankWeights

# Weights that are taken as they are: they know their lifted shape and their batches.
CONTAINERS = (LowRankWeights, LayerWeights)


def validate_weights(estimator, W, *, reset):
    """Validate W and lift it to three dimensions.

    Parameters
    ----------
    estimator : estimator
        Gets ``n_features_in_`` (and ``weight_shape_``) if `reset`, else is compared.
    W : array-like, Tensor, LowRankWeights or LayerWeights
        ``(n_models, d_out, d_in)``; also ``(n_models, d)``, one 1-D weight per row, and
        convolution kernels ``(n_models, out, in, kh, kw)``, one filter per row.
    reset : bool
        True in fit, False afterwards.

    Returns
    -------
    DenseWeights, LowRankWeights or LayerWeights

    Raises
    ------
    ValueError
        Shapes that differ between models or from those seen in fit, empty axes,
        too few models.
    TypeError
        Sparse input, data that are no numbers, or several layers at once.
    """
    # A sparse matrix of keys may be a dict as well.
    if isinstance(W, (dict, ModelCollection)) and not issparse(W):
        layers = W if isinstance(W, dict) else W.layers
        raise TypeError(
            f"W holds {len(layers)} layers: pick one by its name, such as "
            f"W[{next(iter(layers), 'layer')!r}]."
        )
    if isinstance(W, (torch.Tensor, *CONTAINERS)):
        if isinstance(W, torch.Tensor):
            W = _check_tensor(W)
        if len(W.shape) < 2:
            raise ValueError(
                f"W holds one number per model, of shape {tuple(W.shape)}: pick a "
                "layer with a vector or a matrix for each."
            )
        validate_data(estimator, W, skip_check_array=True, reset=reset)
    else:
        _check_same_shapes(W)
        if isinstance(W, np.ma.MaskedArray):
            raise TypeError("W is a masked array: fill or drop the masked weights.")
        W = validate_data(
            estimator,
            W,
            reset=reset,
            dtype="numeric",
            allow_nd=True,
            # Checked batch by batch, so that the error names the model.
            ensure_all_finite=False,
            ensure_min_samples=2 if reset else 1,
        )
    if 0 in W.shape:
        raise ValueError(
            f"W has shape {tuple(W.shape)}: every axis needs at least one entry."
        )
    if reset and len(W) < 2:
        raise ValueError(
            "Found W with 1 sample: a minimum of 2 models is required to learn "
            "what differs between them."
        )
    weights = W if isinstance(W, CONTAINERS) else DenseWeights(W)
    weight_shape = weights.lifted_shape[1:]
    if reset:
        estimator.weight_shape_ = weight_shape
    elif weight_shape != estimator.weight_shape_:
        raise ValueError(
            f"W holds weights of shape {weight_shape}, but "
            f"{type(estimator).__name__} was fitted on weights of shape "
            f"{estimator.weight_shape_}: pass the same layer of models of the same "
            "architecture."
        )
    return weights


def check_weight_shape(array, weight_shape, name):
    """Lift one model's weights to ``(d_out, d_in)`` and compare with the layer's."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu().double().numpy()
    array = np.asarray(array, dtype=float)
    expected = f"{name} must be one model's weights of shape {weight_shape}"
    if array.ndim < 1:
        raise ValueError(f"{expected}, got a scalar.")
    lifted = array.reshape(len(array), -1)
    if lifted.shape != weight_shape:
        raise ValueError(f"{expected}, got shape {array.shape}.")
    if not np.isfinite(lifted).all():
        raise ValueError(f"{name} contains NaN or infinity.")
    return lifted


def _check_tensor(W):
    if W.is_sparse or W.layout != torch.strided:
        raise TypeError("W is a sparse tensor: pass a dense one (W.to_dense()).")
    if W.is_complex():
        raise ValueError("Complex data not supported: W is a complex tensor.")
    if W.ndim < 2:
        raise ValueError(
            f"W is a {W.ndim}-D tensor: expected (n_models, d_out, d_in), or "
            "(n_models, d) for 1-D weights."
        )
    return W.detach()


def _check_same_shapes(W):
    """Name the models whose shape differs, where numpy would only say 'inhomogeneous'.

    Only a sequence of arrays can be ragged in a way worth naming.
    """
    is_object_array = isinstance(W, np.ndarray) and W.dtype == object and W.ndim == 1
    if not (isinstance(W, (list, tuple)) or is_object_array):
        return
    if len(W) == 0 or not all(isinstance(w, (np.ndarray, torch.Tensor)) for w in W):
        return
    shapes = [tuple(w.shape) for w in W]
    usual, _ = Counter(shapes).most_common(1)[0]
    odd = [i for i, shape in enumerate(shapes) if shape != usual]
    if not odd:
        return
    named = ", ".join(f"model {i}: {shapes[i]}" for i in odd[:5])
    more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
    raise ValueError(
        f"All models must have weights of one shape. Most have {usual}, but {named}"
        f"{more}. Models of another architecture belong to another Model Tree."
    )
