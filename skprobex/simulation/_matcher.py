"""DataMatcher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from .._base import all_or_nothing
from .._reading import ReadsWeights
from .._registry import saved
from .._sklearn import Interval, _fit_context
from .._typing import Device, Numbers, RandomState, Self
from ..probing.device import as_array, as_tensor, resolve_device
from ..saving import Saveable
from ..targets._calibration import fit_temperature
from ..weights import ONLY, WeightsLike, weights_of_layer
from ._alignment import align, unit_trace, whiten
from ._draw import reduce_moments
from ._simulate import moments_by_layer
from ._weights import SimulatedWeights


@saved
@dataclass
class Standards:
    """Mean and standard deviation of each class's scores over a population.

    Attributes
    ----------
    mean, std : ndarray of shape (n_classes,)
    """

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray) -> Standards:
        """Measure scores of shape ``(n_models, n_classes)``."""
        std = scores.std(axis=0)
        # Where no model differs, there is nothing to be told: scores of zero.
        tiny = np.finfo(scores.dtype).eps * np.abs(scores).max(initial=1e-30)
        return cls(scores.mean(axis=0), np.where(std <= tiny, 1, std))

    def apply(self, scores: np.ndarray) -> np.ndarray:
        return (scores - self.mean) / self.std

    def keep(self, before: Standards) -> None:
        """Take the first classes' from what was measured before."""
        n_known = len(before.mean)
        self.mean[:n_known], self.std[:n_known] = before.mean, before.std


@saved
@dataclass
class MatchedLayer:
    """What a layer's deltas are matched with.

    Attributes
    ----------
    name : str
        Empty if W is this one layer.
    center : ndarray of shape (d_out, d_in) or None
    moments : ndarray of shape (n_classes, d_in, d_in)
        Of trace one.
    common : ndarray of shape (d_in, d_in)
        Mean moment of the classes seen in fit.
    templates : ndarray of shape (n_classes, d_in, d_in)
        What views are multiplied by.
    standards : Standards
        Of its scores.
    """

    name: str
    center: np.ndarray | None
    moments: np.ndarray
    common: np.ndarray
    templates: np.ndarray
    standards: Standards


@saved
class DataMatcher(Saveable, ReadsWeights, ClassifierMixin, BaseEstimator):
    r"""Tell which of many data sets each model was trained on; learn from no model.

    Fitted on the moments of data sets in a base (see `collect_gradients`), it scores a
    delta's input-side log view against each,

    .. math:: s_{ic} = \langle L_i / \|L_i\|,
        (C + \lambda)^{-1} (M_c / \mathrm{tr} M_c - \bar M) \rangle,
        \quad L_i = Q \log(1 + S^2 / \epsilon) Q^T,

    `\bar M` what all of them have in common, C the covariance, with trace one, of the
    views of simulated models of one data set, and `\lambda` three thousandths. Scores
    of a class are standardised over a population of models, and those of several layers
    added up. The population is the models that `fit` was given. If it was given none,
    it is the batch that is scored, if that is large enough, else simulated models.

    Parameters
    ----------
    center : array-like of shape (d_out, d_in), default=None
        Weights of the base, which are subtracted from those of each model; of several
        layers a dict of them. None: W holds deltas, as adapters are.
    n_simulated : int, default=512
        Simulated models that scores are standardised over, where there is no population
        of real ones, and that probabilities are calibrated on.
    min_population : int, default=30
        Models of a batch from which on its scores are standardised over the batch
        itself, if `fit` was given no models. Scores then depend on the batch, and are
        better: what real models have in common is not in simulated ones.
    device : str, default="auto"
        ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or
        ``"mps"``.
    random_state : int, RandomState instance or None, default=0
        Draws the simulated models.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Names of the data sets.
    matched_ : list of MatchedLayer
        What each layer is matched with.
    layers_ : list of str
        Names of the layers, where there are several.
    temperature_ : float
        What decisions are divided by before their softmax.
    weight_shape_ : tuple of (int, int), or dict of them by layer

    See Also
    --------
    simulate_models : Where models were trained on several of the data sets at once: fit
        a `ProbeXClassifier` on what it draws.

    Examples
    --------
    >>> import numpy as np
    >>> from skprobex.simulation import DataMatcher, simulate_models
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(60, 12)), np.repeat(["a", "b", "c"], 20)
    >>> X += 3 * np.repeat(rng.normal(size=(3, 12)), 20, axis=0)
    >>> matcher = DataMatcher().fit(X, y)
    >>> models = simulate_models(X, y, 30, task="single", random_state=1)
    >>> matcher.score(models.data, models.target)
    1.0
    """

    _parameter_constraints = {
        "center": [None, dict, "array-like", torch.Tensor],
        "n_simulated": [Interval(Integral, 2, None, closed="left")],
        "min_population": [Interval(Integral, 2, None, closed="left")],
        "device": [str, torch.device],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        center: Numbers | Mapping[str, Numbers] | None = None,
        n_simulated: int = 512,
        min_population: int = 30,
        device: Device = "auto",
        random_state: RandomState = 0,
    ) -> None:
        self.center = center
        self.n_simulated = n_simulated
        self.min_population = min_population
        self.device = device
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    @all_or_nothing
    def fit(
        self, X: Any, y: ArrayLike | None = None, *, W: WeightsLike | None = None
    ) -> Self:
        """Take in the data sets.

        Parameters
        ----------
        X : ClassMoments, Activations, array-like of shape (n_samples, d_in), or dict
            What `collect_gradients` or `collect_activations` returned; a dict of these
            by layer.
        y : array-like, default=None
            The class of each sample; of moments new names of their classes, or None.
        W : array-like of shape (n_models, d_out, d_in), default=None
            Models, of which nothing need be known, such as those to be matched: scores
            are standardised over them. None: over simulated models.

        Returns
        -------
        DataMatcher
            The fitted estimator itself.

        Raises
        ------
        ValueError
            Fewer than two data sets, one without rows, NaN, or models of another layer.
        """
        layers = moments_by_layer(X, y)
        self.classes_ = next(iter(layers.values())).classes
        self._set_shapes(layers)
        self.matched_ = []
        for name, found in layers.items():
            moments = as_array(unit_trace(torch.from_numpy(found.moments)))
            none = Standards(np.zeros(0), np.zeros(0))
            self.matched_.append(
                MatchedLayer(
                    name,
                    self._center_of(name, found.weight_shape),
                    moments,
                    moments.mean(axis=0),
                    moments[:0],
                    none,
                )
            )
        self._calibrate(W)
        return self

    @all_or_nothing
    def add(
        self, X: Any, y: ArrayLike | None = None, *, W: WeightsLike | None = None
    ) -> Self:
        """Take in more data sets; scores of those before stay what they are.

        Parameters
        ----------
        X : ClassMoments, Activations, array-like of shape (n_samples, d_in), or dict
            As in `fit`, of the same layers; one data set will do.
        y : array-like, default=None
            As in `fit`.
        W : array-like of shape (n_models, d_out, d_in), default=None
            The population, where `fit` was given one.

        Returns
        -------
        DataMatcher
            The same estimator, with more classes.

        Raises
        ------
        ValueError
            A class that is known already, other layers, or a population where there was
            none and the other way round.
        """
        check_is_fitted(self)
        layers = moments_by_layer(X, y, n_least=1)
        names = [matched.name for matched in self.matched_]
        if list(layers) != names:
            raise ValueError(
                f"X has moments of the layers {list(layers)}, but DataMatcher was "
                f"fitted on {names}."
            )
        classes = next(iter(layers.values())).classes
        known = np.intersect1d(classes, self.classes_)
        if len(known):
            raise ValueError(f"Class {known.tolist()[0]!r} is known already.")
        if (W is None) is self.standardized_on_models_:
            raise ValueError(
                "Scores of the classes in fit are standardised over "
                + ("models: pass W." if W is None else "simulated models: leave W out.")
            )
        more = []
        for matched in self.matched_:
            found = layers[matched.name]
            if found.moments.shape[1:] != matched.common.shape:
                raise ValueError(
                    f"Moments of {found.moments.shape[1]} inputs: DataMatcher was "
                    f"fitted on a layer of {matched.common.shape[0]}."
                )
            moments = as_array(unit_trace(torch.from_numpy(found.moments)))
            more.append(np.concatenate([matched.moments, moments]))
        before = self.matched_
        # New objects: should anything fail, the old ones are as they were.
        self.matched_ = [
            replace(matched, moments=moments)
            for matched, moments in zip(self.matched_, more, strict=True)
        ]
        self.classes_ = np.concatenate([self.classes_, classes])
        self._calibrate(W)
        for matched, known in zip(self.matched_, before, strict=True):
            matched.standards.keep(known.standards)
            matched.templates[: len(known.templates)] = known.templates
        return self

    def decision_function(self, W: WeightsLike) -> np.ndarray:
        """Score every model against every data set.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            The layer, or layers, that the moments are of: deltas from the base, or
            weights if `center` is the base. Dense or low-rank.

        Returns
        -------
        ndarray of shape (n_models, n_classes)
            In standard deviations of the population.
        """
        check_is_fitted(self)
        scores = list(self._align(self._read(W, reset=False)))
        if not self.standardized_on_models_ and len(scores[0]) >= self.min_population:
            return _standardized_sum(scores)
        layers = zip(self.matched_, scores, strict=True)
        return np.sum([m.standards.apply(part) for m, part in layers], axis=0)

    def predict(self, W: WeightsLike) -> np.ndarray:
        """Name the data set that fits each model best.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            As in `decision_function`.

        Returns
        -------
        ndarray of shape (n_models,)
            Members of `classes_`.
        """
        return self.classes_[self.decision_function(W).argmax(axis=1)]

    def predict_proba(self, W: WeightsLike) -> np.ndarray:
        """Estimate how likely each model was trained on each data set, and no other.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            As in `decision_function`.

        Returns
        -------
        ndarray of shape (n_models, n_classes)
            Rows sum to one. Calibrated on simulated models, which real ones may be
            harder than.
        """
        return softmax(self.decision_function(W) / self.temperature_, axis=1)

    def _set_shapes(self, layers):
        for name in ("n_features_in_", "layers_"):
            self.__dict__.pop(name, None)
        shapes = {name: found.weight_shape for name, found in layers.items()}
        if ONLY in shapes:
            self.weight_shape_ = shapes[ONLY]
            self.n_features_in_ = shapes[ONLY][0]
        else:
            self.weight_shape_, self.layers_ = shapes, list(shapes)

    def _center_of(self, name, weight_shape):
        if self.center is None:
            return None
        center = weights_of_layer(self.center, name, weight_shape, "center")
        return center.astype(np.float32)

    def _align(self, W, *, subtract=True):
        """Unstandardised scores, layer by layer."""
        for matched in self.matched_:
            weights, center, device, dtype = self._open(W, matched, subtract=subtract)
            templates = torch.from_numpy(matched.templates)
            yield as_array(align(weights, center, templates, device, dtype))

    def _open(self, W, matched, *, subtract):
        """One layer of the models, and what they are centred on; where and in what."""
        device, weights = resolve_device(self.device), W[matched.name]
        dtype, center = weights.compute_dtype, None
        if subtract and matched.center is not None:
            center = as_tensor(matched.center, dtype, device)
        return weights, center, device, dtype

    def _simulate(self):
        """Pairs of models of one data set; every one as often as any other."""
        rng = check_random_state(self.random_state)
        codes = np.repeat(np.arange((self.n_simulated + 1) // 2), 2)
        codes = codes % len(self.classes_)
        weights = np.eye(len(self.classes_), dtype=np.float32)[codes]
        ones = np.ones(len(codes), dtype=np.float32)
        drawn = {}
        for matched in self.matched_:
            shape = self.weight_shape_
            shape = shape if matched.name == ONLY else shape[matched.name]
            reduced = reduce_moments(matched.moments, shape[0])
            seeds = rng.randint(2**31 - 1, size=len(codes))
            drawn[matched.name] = SimulatedWeights(reduced, weights, ones, seeds)
        return drawn, codes

    def _calibrate(self, W):
        """Whiten by simulated models, standardise, and fit the temperature."""
        drawn, codes = self._simulate()
        for matched in self.matched_:
            moments = torch.from_numpy(matched.moments - matched.common)
            _, _, device, dtype = self._open(drawn, matched, subtract=False)
            found = whiten(drawn[matched.name], moments, device, dtype)
            matched.templates = as_array(found).astype(np.float32)
        population = simulated = list(self._align(drawn, subtract=False))
        if W is not None:
            population = list(self._align(self._read(W, reset=False)))
            if len(population[0]) < 2:
                raise ValueError(
                    "W holds 1 model: scores are standardised over 2 at least, or over "
                    "simulated ones if W is None."
                )
        for matched, scores in zip(self.matched_, population, strict=True):
            matched.standards = Standards.of(scores)
        slope = fit_temperature(_standardized_sum(simulated), codes)
        self.temperature_ = float(1 / slope)
        self.standardized_on_models_ = W is not None


def _standardized_sum(scores):
    """Standardise the scores of every layer over its models, and add them up."""
    return np.sum([Standards.of(part).apply(part) for part in scores], axis=0)
