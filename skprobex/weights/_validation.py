"""Turn whatever a user passes as W into weights, or say what is wrong with it.

Nothing here knows an estimator: what a fit remembers of its weights, and compares later
ones with, is the estimator's own (`skprobex._base`).
"""

import math
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils import Bunch, check_array

from .._typing import Numbers
from .._warnings import listed, warn
from ..exceptions import MissingLayerError, UnsupportedFormatError
from ._collection import ModelCollection, check_is_layer
from ._contract import Weights, check_numeric
from ._dense import DenseWeights

# Several layers of the same models, and all that W can be.
Layers: TypeAlias = Mapping[str, Numbers] | ModelCollection
WeightsLike: TypeAlias = Numbers | Layers

# The name of the layer where W is one layer.
ONLY = ""


def holds_several(W):
    """Whether W holds several layers of the same models."""
    # A sparse matrix of keys may be a dict as well.
    return isinstance(W, (Mapping, ModelCollection)) and not issparse(W)


def unwrap_jungle(W):
    """Take the layers out of the Bunch that a jungle dataset is."""
    return W["layers"] if isinstance(W, Bunch) and "layers" in W else W


def as_layers(W, names=None, min_models=1):
    """Turn W into weights by layer name; one layer has the name `ONLY`.

    Parameters
    ----------
    W : Mapping, ModelCollection, or what `as_weights` takes
    names : list of str, optional
        The layers wanted of several. None: all that all models have in one form.
    min_models : int, default=1

    Returns
    -------
    dict of str to Weights

    Raises
    ------
    ValueError
        As `as_weights`, naming the layer; layers of different numbers of models.
    """
    if not holds_several(W):
        return {ONLY: as_weights(W, min_models)}
    opened = {name: W[name] for name in names or usable_layers(W)}
    lengths = {name: len(layer) for name, layer in opened.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"Layers must be of the same models, but hold {lengths} models. Of a "
            "collection, W.select(layers=[...], on_missing='drop') keeps the models "
            "that have them all."
        )
    layers = {}
    for name, layer in opened.items():
        with naming_layer(name):
            weights = as_weights(layer, min_models)
        # Weights in files name their layer themselves.
        layers[name] = weights if weights.layer else weights.titled(f"layer {name!r}")
    return layers


@contextmanager
def naming_layer(name):
    """Put the name of the layer before what is wrong with it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if name == ONLY:
            raise
        raise type(error)(f"Layer {name!r}: {error}") from error


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
            f"as not all models have them in one shape: {listed(unusable)}.",
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


def as_weights(W, min_models=1):
    """Turn one layer into weights, lifted to three dimensions.

    Parameters
    ----------
    W : array-like, Tensor or Weights
        ``(n_models, d_out, d_in)``; also ``(n_models, d)``, one 1-D weight per row, and
        convolution kernels ``(n_models, out, in, kh, kw)``, one filter per row.
    min_models : int, default=1
        Models needed at least.

    Returns
    -------
    Weights

    Raises
    ------
    ValueError
        Shapes that differ between models, empty axes, too few models.
    TypeError
        Sparse input, data that are no numbers, or several layers at once.
    """
    if holds_several(W):
        names = layer_names(W)
        raise TypeError(
            f"W holds {len(names)} layers: pick one by its name, such as "
            f"W[{next(iter(names), 'layer')!r}]."
        )
    if isinstance(W, torch.Tensor):
        W = _check_tensor(W)
    elif not isinstance(W, Weights):
        _check_is_array(W)
        W = check_array(
            W,
            dtype="numeric",
            allow_nd=True,
            # Checked batch by batch, so that the error names the model.
            ensure_all_finite=False,
            ensure_min_samples=min_models,
        )
        W = check_numeric(W, "W")
    if len(W.shape) < 2:
        raise ValueError(
            f"W holds one number per model, of shape {tuple(W.shape)}: pick a layer "
            "with a vector or a matrix for each."
        )
    if len(W) < min_models:
        raise ValueError(
            f"Found W with {len(W)} sample: a minimum of {min_models} models is "
            "required to learn what differs between them."
        )
    if 0 in W.shape:
        raise ValueError(
            f"W has shape {tuple(W.shape)}: every axis needs at least one entry."
        )
    return W if isinstance(W, Weights) else DenseWeights(W)


def _check_is_array(W):
    """Refuse what is no array, or an array of something else than weights."""
    if isinstance(W, (str, os.PathLike)):
        raise TypeError(
            f"W is {os.fspath(W)!r}: expected weights. open_models opens files, and "
            "open_models(...)[layer] are their weights."
        )
    first = W[0] if isinstance(W, (list, tuple)) and W else W
    if isinstance(first, (str, os.PathLike)):
        raise TypeError(
            f"W holds {os.fspath(first)!r}: expected weights. open_models opens a list "
            "of files, and open_models(...)[layer] are their weights."
        )
    # SciPy's matrices of type dok are mappings.
    if isinstance(first, (torch.nn.Module, Mapping)) and not issparse(first):
        raise TypeError(
            f"W is made of {type(first).__name__}s: expected one layer of all models, "
            "np.stack([state_dict[layer] for state_dict in ...])."
        )
    _check_same_shapes(W)
    if isinstance(W, np.ma.MaskedArray):
        check_numeric(W, "W")


def check_same_shape(shape, fitted, name):
    """Compare the shape of W with that seen in fit; leave rows to scikit-learn.

    Parameters
    ----------
    shape : tuple of int
        Of W, as it was passed.
    fitted : (int, int)
    name : str
        Of the estimator.
    """
    if len(shape) < 2 or (len(shape) == 2 and fitted[1] == 1):
        return
    if tuple(shape) == fitted:
        raise ValueError(
            f"W of shape {fitted} is one model's weights: pass W[None], with an axis "
            "for models."
        )
    given = (shape[1], math.prod(shape[2:]))
    if given != fitted:
        raise ValueError(
            f"W holds weights of shape {given}, but {name} was fitted on weights of "
            f"shape {fitted}: pass the same layer of models of the same architecture."
        )


def weights_of_layer(given, layer, weight_shape, name):
    """Of an array for one layer, or a dict of them for several, the one of a layer.

    Parameters
    ----------
    given : array-like, or dict of them by layer
    layer : str
        `ONLY` where there is one layer.
    weight_shape : (int, int)
    name : str
        What errors call it.

    Returns
    -------
    ndarray of shape (d_out, d_in)
    """
    if isinstance(given, Mapping):
        if layer not in given:
            missing = "there is one layer" if layer == ONLY else f"it lacks {layer!r}"
            raise ValueError(
                f"{name} is a dict of arrays by layer, but {missing}: pass an array "
                "for one layer, and for several an array for each."
            )
        given = given[layer]
    elif layer != ONLY:
        raise ValueError(
            f"{name} is one array, but there are several layers: pass a dict of arrays "
            "by layer name."
        )
    return check_weight_shape(given, weight_shape, name)


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
    named = listed([f"model {i}: {shapes[i]}" for i in odd], show=str)
    raise ValueError(
        f"All models must have weights of one shape. Most have {usual}, but {named}. "
        "Models of another architecture belong to another Model Tree."
    )
