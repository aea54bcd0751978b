"""simulate_models."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch, check_random_state

from .._typing import Numbers, RandomState
from ..weights import ONLY, naming_layer, weights_of_layer
from ._draw import reduce_moments
from ._moments import as_moments
from ._weights import SimulatedWeights

TASKS = ("subsets", "single", "mixtures")
# Shape of the Gamma distribution of what one class weighs in a model: of mean 1 and
# standard deviation a half. Which of its examples were drawn, and how well the base
# knew them before, differ from model to model.
_SHAPE = 4.0
# How far the lengths of deltas spread, in powers of ten up and down: learning rates and
# numbers of steps differ by so much, and lengths must not seem to tell anything else.
_DECADES = 0.7
# Typical length of a delta, as a share of the base's.
_RELATIVE_LENGTH = 0.03


def simulate_models(
    X: Any,
    y: ArrayLike | None = None,
    n_models: int = 1000,
    *,
    task: Literal["subsets", "single", "mixtures"] = "subsets",
    classes_per_model: float | tuple[float, float] | ArrayLike = 0.5,
    base: Numbers | Mapping[str, Numbers] | None = None,
    random_state: RandomState = 0,
) -> Any:
    r"""Simulate what fine-tuning on chosen data would do to a layer; train nothing.

    A fine-tuning step moves a layer by (output gradient) x (input), and a fresh random
    head rotates the output gradients. What is left is on the input side: a model of the
    classes S is drawn as ``D = Q G S^{1/2}`` with

    .. math:: S = \sum_{c \in S} w_c M_c,

    `M_c` the moment of class c in the base, Q orthonormal, G Gaussian of 64 rows and
    variance 1/64, and the weights `w_c` from Gamma(4, 1/4). So ``E[D^T D]`` is the
    weighted sum of the moments exactly, but for three hundredths of its trace that are
    spread over all directions, as an optimiser does. Estimators are fitted on simulated
    models as on any others, and then read real ones: pass them *deltas* of real models,
    from the base.

    Parameters
    ----------
    X : ClassMoments, Activations, array-like of shape (n_samples, d_in), or dict
        What `collect_gradients` or `collect_activations` returned, or the inputs of a
        layer, one row a sample. A dict of these by layer simulates several layers of
        the same models.
    y : array-like, default=None
        The class of each sample. None for moments, which know their classes.
    n_models : int, default=1000
        Number of simulated models, two at least.
    task : {"subsets", "single", "mixtures"}, default="subsets"
        What models are trained on: a random subset of the classes, for a multi-label
        classifier; one class each, for a classifier or an embedder; or all of a random
        subset in random shares, for a regressor of how much of each.
    classes_per_model : float, int, (low, high) or array-like, default=0.5
        Of subsets and mixtures: the share of the classes (a float up to 1) or their
        number (an int) in every model; a range of either, drawn evenly; or the
        probabilities of 1, 2, ... classes, as an array.
    base : array-like of shape (d_out, d_in), default=None
        Weights of the base, or a dict of them by layer. With them the simulated models
        are full weights, else deltas; see the notes.
    random_state : int, RandomState instance or None, default=0
        Draws subsets, weights of classes, lengths, and the seeds of all models.

    Returns
    -------
    Bunch
        With these attributes:

        data : SimulatedWeights of shape (n_models, d_out, d_in)
            Or a dict of them by layer. Nothing is held: models are drawn when read.
        target : ndarray
            Of subsets an indicator matrix ``(n_models, n_classes)``, int64; of single
            classes their names ``(n_models,)``; of mixtures the shares
            ``(n_models, n_classes)``, rows that sum to one.
        target_names : ndarray of shape (n_classes,)
            Names of the classes.

    Raises
    ------
    ValueError
        Fewer than two classes, a class without rows, NaN, layers with other classes, a
        base of another shape, or more classes a model than there are.

    See Also
    --------
    DataMatcher : Which of many data sets each model was trained on.

    Notes
    -----
    The lengths of the deltas are drawn log-uniformly over more than a decade, and tell
    nothing. They also pull the mean of simulated full weights away from the base: an
    estimator that centres on the mean reads them badly. Simulate deltas, which are not
    centred, and give the estimator ``W - base`` of real models; or simulate with `base`
    and tell the estimator so, ``center=base``.

    Examples
    --------
    >>> import numpy as np
    >>> from skprobex import ProbeXClassifier
    >>> from skprobex.simulation import simulate_models
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(60, 12)), np.repeat([0, 1, 2, 3], 15)
    >>> X += 3 * rng.normal(size=(4, 12))[y]
    >>> simulated = simulate_models(X, y, n_models=100)
    >>> simulated.data, simulated.target.shape
    (SimulatedWeights(100 models, 12 x 12), (100, 4))
    >>> clf = ProbeXClassifier().fit(simulated.data, simulated.target)
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r}: expected one of {TASKS}.")
    if not isinstance(n_models, Integral) or n_models < 2:
        raise ValueError(f"n_models={n_models!r}: expected an integer, 2 at least.")
    layers = moments_by_layer(X, y)
    bases = _bases(base, layers)
    classes = next(iter(layers.values())).classes
    rng = check_random_state(random_state)
    shares, target = _draw_data(task, classes, n_models, classes_per_model, rng)
    spread = rng.gamma(_SHAPE, 1 / _SHAPE, shares.shape)
    weights = (shares * spread).astype(np.float32)
    lengths = 10 ** rng.uniform(-_DECADES, _DECADES, n_models)
    data = {}
    for name, found in layers.items():
        # Of one length, whatever the number of classes.
        scales = lengths / np.sqrt(weights.sum(axis=1))
        if bases[name] is not None:
            scales = scales * _RELATIVE_LENGTH * np.linalg.norm(bases[name])
        data[name] = SimulatedWeights(
            reduce_moments(found.moments, found.weight_shape[0]),
            weights,
            scales.astype(np.float32),
            rng.randint(2**31 - 1, size=n_models),
            bases[name],
        )
    return Bunch(
        data=data.get(ONLY, data),
        target=target,
        target_names=classes,
    )


def moments_by_layer(X, y, *, n_least=2):
    """Moments by layer; `ONLY` is the name of a single one.

    Raises
    ------
    ValueError
        If layers are of other classes; the message names the layer.
    """
    if not isinstance(X, Mapping):
        return {ONLY: as_moments(X, y, n_least=n_least)}
    if not X:
        raise ValueError(
            "X is an empty dict: expected the moments of a layer at least."
        )
    layers = {}
    for name, value in X.items():
        with naming_layer(name):
            layers[name] = as_moments(value, y, n_least=n_least)
    first, *rest = layers
    classes = layers[first].classes
    for name in rest:
        if not np.array_equal(layers[name].classes, classes):
            raise ValueError(
                f"Layers {first!r} and {name!r} have moments of other classes, "
                f"{len(classes)} and {len(layers[name].classes)}: collect them of the "
                "same data."
            )
    return layers


def _bases(base, layers):
    """The base's weights by layer, lifted; None where there are none."""
    if base is None:
        return dict.fromkeys(layers)
    return {
        name: weights_of_layer(base, name, found.weight_shape, "base").astype(
            np.float32
        )
        for name, found in layers.items()
    }


def _draw_data(task, classes, n_models, classes_per_model, rng):
    """What each model is trained on: shares of all classes, and the target."""
    n_classes = len(classes)
    if task == "single":
        # Every class as often as every other, up to one.
        codes = rng.permutation(np.arange(n_models) % n_classes)
        return np.eye(n_classes)[codes], classes[codes]
    counts = _draw_counts(classes_per_model, n_classes, n_models, rng)
    ranks = rng.uniform(size=(n_models, n_classes)).argsort(axis=1).argsort(axis=1)
    chosen = ranks < counts[:, None]
    if task == "subsets":
        return chosen.astype(float), chosen.astype(np.int64)
    drawn = rng.exponential(size=chosen.shape) * chosen
    shares = drawn / drawn.sum(axis=1, keepdims=True)
    return shares, shares


def _draw_counts(classes_per_model, n_classes, n_models, rng):
    """Number of classes of each model."""
    given = classes_per_model
    if isinstance(given, Real):
        low = high = _count(given, n_classes)
    elif isinstance(given, tuple) and len(given) == 2:
        low, high = (_count(value, n_classes) for value in given)
    else:
        chances = np.asarray(given, dtype=float)
        is_valid = chances.ndim == 1 and 0 < len(chances) <= n_classes
        if not is_valid or (chances < 0).any() or not np.isclose(chances.sum(), 1):
            raise ValueError(
                f"classes_per_model={given!r}: expected a share, a number, a range "
                f"(low, high), or the probabilities of 1 to {n_classes} classes."
            )
        return 1 + rng.choice(len(chances), size=n_models, p=chances / chances.sum())
    if low > high:
        raise ValueError(f"classes_per_model={given!r}: low is above high.")
    return rng.randint(low, high + 1, n_models)


def _count(value, n_classes):
    """A number of classes, given as it is or as a share of all."""
    is_number = isinstance(value, Integral)
    count = int(value) if is_number else max(1, round(float(value) * n_classes))
    if not 1 <= count <= n_classes or (not is_number and not 0 < value <= 1):
        raise ValueError(
            f"classes_per_model={value!r}: expected a share above 0 and up to 1, or an "
            f"integer from 1 to {n_classes}."
        )
    return count
