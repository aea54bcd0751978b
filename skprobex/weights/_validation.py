"""Turn whatever a user passes as W into weights, or say what is wrong with it."""

import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.utils import Bunch
from sklearn.utils.validation import validate_data

from .._typing import Numbers
from .._warnings import warn
from ..exceptions import MissingLayerError, UnsupportedFormatError
from ._collection import ModelCollection, check_is_layer
from ._dense import DenseWeights, check_numeric
from ._in_files import LayerWeights
from ._low_rank import LowRankWeights
from ._several import SeveralLayers

# Several layers of the same models, and all that W can be.
Layers: TypeAlias = Mapping[str, Numbers] | ModelCollection
WeightsLike: TypeAlias = Numbers | Layers

# Weights that are taken as they are: they know their lifted shape and their batches.
CONTAINERS = (LowRankWeights, LayerWeights)


def holds_several(W):
    """Whether W holds several layers of the same models."""
    # A sparse matrix of keys may be a dict as well.
    return isinstance(W, (Mapping, ModelCollection)) and not issparse(W)


def unwrap_jungle(W):
    """Take the layers out of the Bunch that a jungle dataset is."""
    return W["layers"] if isinstance(W, Bunch) and "layers" in W else W


def validate_layers(estimator, W, *, reset):
    """Validate several layers, or one.

    Parameters
    ----------
    estimator : estimator
        Gets ``weight_shape_`` if `reset`, by layer where there are several; else is
        compared, as far as the layers in its ``layers_`` go.
    W : Mapping, ModelCollection, or what `validate_weights` takes
    reset : bool
        True in fit, False afterwards.

    Returns
    -------
    SeveralLayers, or what `validate_weights` returns

    Raises
    ------
    ValueError
        As `validate_weights`, naming the layer; layers of different numbers of models;
        one layer where several were fitted.
    MissingLayerError
        Layers that `fit` saw and that are missing now.
    """
    W = unwrap_jungle(W)
    if not holds_several(W):
        if not reset and isinstance(estimator.weight_shape_, dict):
            raise ValueError(
                f"W holds one layer, but {type(estimator).__name__} was fitted on "
                f"several: pass a ModelCollection or a dict with the layers "
                f"{_listed(estimator.layers_)}."
            )
        return validate_weights(estimator, W, reset=reset)
    if not reset and not isinstance(estimator.weight_shape_, dict):
        raise ValueError(
            f"W holds {len(layer_names(W))} layers, but {type(estimator).__name__} was "
            "fitted on one: pass that layer, W[name]."
        )
    if reset:
        opened = {name: W[name] for name in usable_layers(W)}
    else:
        missing = [name for name in estimator.layers_ if name not in layer_names(W)]
        if missing:
            raise MissingLayerError(
                f"W lacks {len(missing)} of {len(estimator.layers_)} layers that "
                f"{type(estimator).__name__} reads: {_listed(missing)}."
            )
        opened = {name: W[name] for name in estimator.layers_}
    lengths = {name: len(layer) for name, layer in opened.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"Layers must be of the same models, but hold {lengths} models. Of a "
            "collection, W.select(layers=[...], on_missing='drop') keeps the models "
            "that have them all."
        )
    validated, shapes = {}, {}
    for name, layer in opened.items():
        # Stands in for the estimator, whose attributes are not of one layer.
        own = type(type(estimator).__name__, (BaseEstimator,), {})()
        if not reset:
            own.weight_shape_ = estimator.weight_shape_[name]
        try:
            validated[name] = validate_weights(own, layer, reset=reset)
        except (TypeError, ValueError) as error:
            raise type(error)(f"Layer {name!r}: {error}") from error
        if hasattr(validated[name], "title"):  # weights in files name the layer
            validated[name] = validated[name][:]
            validated[name].title = f"layer {name!r}"
        shapes[name] = own.weight_shape_
    if reset:
        estimator.weight_shape_ = shapes
        for name in ("n_features_in_", "feature_names_in_"):
            vars(estimator).pop(name, None)
    return SeveralLayers(validated)


def usable_layers(W):
    """Names of the layers that all models have in one form; warn of the others."""
    usable, unusable = [], []
    if not layer_names(W):
        raise ValueError("W holds no layers: expected one at least.")
    for name in layer_names(W):
        if isinstance(W, Mapping):
            check_is_layer(name, W[name])
        of_all = getattr(W, "_layer_of_all", W.__getitem__)
        try:
            n_axes = len(getattr(of_all(name), "shape", (0, 0)))
        except (MissingLayerError, UnsupportedFormatError):
            n_axes = 0
        (usable if n_axes > 1 else unusable).append(name)
    if not usable:
        raise ValueError(
            f"W holds {len(unusable)} layers, but none that all models have in one "
            "shape: these are models of different architectures (see W.groups)."
        )
    if unusable:
        warn(
            f"{len(unusable)} of {len(unusable) + len(usable)} layers were left out, "
            f"as not all models have them in one shape: {_listed(unusable)}.",
        )
    return usable


def layer_names(W):
    """Names of the layers, in their order."""
    return list(W.layers if isinstance(W, ModelCollection) else W)


def take_layers(W, names):
    """Keep only some layers; nothing is read."""
    if isinstance(W, ModelCollection):
        return W.select(layers=names)
    return {name: W[name] for name in names}


def _listed(names, n=5):
    """Name the first few and count the rest."""
    names = list(names)
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(map(repr, names[:n])) + more


def validate_weights(estimator, W, *, reset):
    """Validate one layer and lift it to three dimensions.

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
    if holds_several(W):
        names = layer_names(W)
        raise TypeError(
            f"W holds {len(names)} layers: pick one by its name, such as "
            f"W[{next(iter(names), 'layer')!r}]."
        )
    if isinstance(W, (torch.Tensor, *CONTAINERS)):
        if isinstance(W, torch.Tensor):
            W = _check_tensor(W)
        if len(W.shape) < 2:
            raise ValueError(
                f"W holds one number per model, of shape {tuple(W.shape)}: pick a "
                "layer with a vector or a matrix for each."
            )
        _check_fitted_shape(estimator, W.shape, reset)
        validate_data(estimator, W, skip_check_array=True, reset=reset)
    else:
        if isinstance(W, (str, os.PathLike)):
            raise TypeError(
                f"W is {os.fspath(W)!r}: expected weights. open_models opens files, "
                "and open_models(...)[layer] are their weights."
            )
        first = W[0] if isinstance(W, (list, tuple)) and W else W
        if isinstance(first, (str, os.PathLike)):
            raise TypeError(
                f"W holds {os.fspath(first)!r}: expected weights. open_models opens a "
                "list of files, and open_models(...)[layer] are their weights."
            )
        # SciPy's matrices of type dok are mappings.
        if isinstance(first, (torch.nn.Module, Mapping)) and not issparse(first):
            raise TypeError(
                f"W is made of {type(first).__name__}s: expected one layer of all "
                "models, np.stack([state_dict[layer] for state_dict in ...])."
            )
        _check_same_shapes(W)
        if hasattr(W, "shape") and not issparse(W):
            _check_fitted_shape(estimator, W.shape, reset)
        if isinstance(W, np.ma.MaskedArray):
            check_numeric(W, "W")
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
        check_numeric(W, "W")
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
    else:
        _check_fitted_shape(estimator, weights.lifted_shape, reset)
    _check_layer(estimator, getattr(W, "layer", None), reset)
    return weights


def _check_layer(estimator, name, reset):
    """Warn of another layer than that of fit, where weights in files tell which."""
    if reset:
        vars(estimator).pop("_layer", None)
        if name is not None:
            estimator._layer = name
        return
    fitted = getattr(estimator, "_layer", None)
    if None not in (name, fitted) and name != fitted:
        warn(
            f"W is layer {name!r}, but {type(estimator).__name__} was fitted on "
            f"{fitted!r}: unless that is another name of the same layer, pass "
            f"models[{fitted!r}]."
        )


def _check_fitted_shape(estimator, shape, reset):
    """Compare the shape of W with that seen in fit; leave rows to scikit-learn."""
    fitted = None if reset else getattr(estimator, "weight_shape_", None)
    if fitted is None or len(shape) < 2 or (len(shape) == 2 and fitted[1] == 1):
        return
    if tuple(shape) == fitted:
        raise ValueError(
            f"W of shape {fitted} is one model's weights: pass W[None], with an axis "
            "for models."
        )
    given = (shape[1], math.prod(shape[2:]))
    if given != fitted:
        raise ValueError(
            f"W holds weights of shape {given}, but {type(estimator).__name__} was "
            f"fitted on weights of shape {fitted}: pass the same layer of models of "
            "the same architecture."
        )


def check_weight_shape(array, weight_shape, name):
    """Lift one model's weights to ``(d_out, d_in)`` and compare with the layer's."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu().double().numpy()
    expected = f"{name} must be one model's weights of shape {weight_shape}"
    try:
        array = np.asarray(array, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected}, got something else: {error}") from error
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
    if W.is_meta:
        raise ValueError("W is a tensor on the device 'meta': load its data first.")
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
    if not odd and is_object_array:
        raise ValueError(
            f"W is an array of {len(W)} arrays: pass one array, np.stack(W)."
        )
    if not odd:
        return
    named = ", ".join(f"model {i}: {shapes[i]}" for i in odd[:5])
    more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
    raise ValueError(
        f"All models must have weights of one shape. Most have {usual}, but {named}"
        f"{more}. Models of another architecture belong to another Model Tree."
    )
