"""What all experts share: parameters, reading W, running an expert, publishing it."""

from collections.abc import Callable
from functools import wraps
from numbers import Integral
from typing import Any, TypeVar, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted

from ._progress import ProgressBar
from ._reading import ReadsWeights
from ._sklearn import ClassNamePrefixFeaturesOutMixin, Interval, StrOptions
from ._warnings import warn
from .probing.device import as_array, make_generator, resolve_device, to_tensors
from .probing.problem import Problem
from .probing.views import VIEWS
from .saving import Saveable
from .solvers import Adam, Ridge
from .targets._alignment import align_targets
from .weights import WeightsLike, weights_of_layer

DEFAULT_ALPHAS = tuple(np.logspace(-4, 3, 15).tolist())
DEFAULT_N_PROBES = 64
SOLVERS = {"ridge": Ridge, "adam": Adam}

_Method = TypeVar("_Method", bound=Callable[..., Any])


def all_or_nothing(fit: _Method) -> _Method:
    """Make a failed fit leave the estimator as it was, and y be of the models of W."""

    @wraps(fit)
    def wrapper(self, *args, **kwargs):
        before = vars(self).copy()
        W = args[0] if args else kwargs.get("W")
        if "y" in kwargs:
            kwargs["y"] = align_targets(kwargs["y"], W)
        elif len(args) > 1:
            args = (W, align_targets(args[1], W), *args[2:])
        try:
            return fit(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return cast(_Method, wrapper)


class BaseExpert(
    Saveable,
    ReadsWeights,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Fit one expert on one Model Tree; W is one layer or several."""

    _parameter_constraints: dict[str, Any] = {
        "views": [StrOptions({"auto", *VIEWS}), tuple, list],
        "n_probes": [Interval(Integral, 1, None, closed="left")],
        "center": [
            StrOptions({"auto", "robust", "mean"}),
            None,
            dict,
            "array-like",
            torch.Tensor,
        ],
        "normalize": [StrOptions({"auto"}), "boolean"],
        "alphas": [None, "array-like"],
        "n_components": [None, Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def transform(self, W: WeightsLike) -> np.ndarray:
        """Represent models as the expert sees them, before its head.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            The same layer, or layers, of each model as in fit.

        Returns
        -------
        ndarray of shape (n_models, n_components)
            With ``solver="ridge"`` the probed features along their `n_components`
            principal directions, or all of them if `n_components` is None. With a
            network the encoder's output.
        """
        return self._run_expert(W, "transform")

    def _run_expert(self, W, method):
        check_is_fitted(self)
        layers = self._read(W, reset=False)
        device = resolve_device(self.device)
        expert = to_tensors(self.expert_, device)
        outputs = as_array(getattr(expert, method)(layers, device))
        bad = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
        if len(bad):
            raise ValueError(
                f"What {type(self).__name__} computes of model {bad[0]} of W overflows "
                f"{outputs.dtype}: its weights are far larger than those of fit. Check "
                "that they are in the same unit."
            )
        return outputs

    def _pose(self, layers, task=None, **options):
        """Put what a solver needs into plain data; set no attribute.

        Centres are found, and models far from them left out.

        Parameters
        ----------
        layers : dict of str to Weights
        task : callable, optional
            From a device to a `Task` on it.
        **options
            In place of the parameters of the same names.

        Returns
        -------
        Problem
        """
        device = resolve_device(self.device)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        dtypes = {weights.compute_dtype for weights in layers.values()}
        options = {
            "views": self._check_views(),
            "normalize": self.normalize,
            "n_components": self.n_components,
            **options,
        }
        return Problem(
            layers,
            {name: self._center_of(name, layers[name]) for name in layers},
            n_probes=self._clip_probes(layers),
            alphas=self._check_alphas(),
            device=device,
            dtype=torch.float64 if torch.float64 in dtypes else torch.float32,
            generator=make_generator(seed),
            task=None if task is None else task(device),
            **options,
        ).located()

    def _progress(self, total, unit):
        return ProgressBar(self.verbose, type(self).__name__, total, unit)

    def _publish(self, expert, **attributes):
        """Set the fitted attributes, all at once; they share the expert's memory.

        Those of a fit before go, but for what this one has read of its weights.
        """
        read = {"weight_shape_", "n_features_in_", "feature_names_in_", "layer_"}
        for name in set(vars(self)) - read:
            if name.endswith("_") and not name.startswith("_"):
                delattr(self, name)
        self.expert_ = expert
        self._n_features_out = expert.n_components
        vars(self).update(attributes)

    def _check_views(self):
        if self.views == "auto":
            return self.views
        known = tuple(VIEWS)
        if self.views in known:
            raise ValueError(
                f"views={self.views!r}: pass a tuple, views=({self.views!r},)."
            )
        unknown = [name for name in self.views if name not in known]
        if unknown or not self.views:
            got = f", got {unknown[0]!r}" if unknown else ""
            raise ValueError(
                f"views={self.views!r}: expected 'auto' or some of {known}{got}."
            )
        if len(set(self.views)) < len(self.views):
            raise ValueError(f"views={self.views!r} names a view twice.")
        # One order, so that ("a", "b") and ("b", "a") are the same estimator.
        return tuple(name for name in known if name in self.views)

    def _check_alphas(self):
        if self.alphas is None:
            return DEFAULT_ALPHAS
        try:
            alphas = np.asarray(self.alphas, dtype=float)
        except (TypeError, ValueError):
            alphas = np.empty(0)
        is_positive = np.isfinite(alphas) & (alphas > 0)
        if alphas.ndim != 1 or not len(alphas) or not is_positive.all():
            raise ValueError(
                "alphas must be a non-empty list of positive numbers, got "
                f"{self.alphas!r}."
            )
        return tuple(alphas.tolist())

    def _clip_probes(self, layers):
        shapes = [weights.lifted_shape[1:] for weights in layers.values()]
        limit = max(max(shape) for shape in shapes)
        # The default is meant for any layer: clipping it is no news.
        if self.n_probes > limit and self.n_probes != DEFAULT_N_PROBES:
            warn(
                f"n_probes={self.n_probes} is more than the dimensions of the weights, "
                f"{tuple(shapes[0]) if len(shapes) == 1 else shapes}: {limit} probes "
                "are used.",
            )
        return min(self.n_probes, limit)

    def _center_of(self, name, weights):
        """The centre wanted of a layer: an array of its shape, a string or None."""
        center = self.center
        if isinstance(center, dict):
            center = center.get(name, center)
        if center is None or isinstance(center, str):
            return center
        shape = weights.lifted_shape[1:]
        return weights_of_layer(self.center, name, shape, "center")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class BaseProbeX(BaseExpert):
    """An expert whose solver is a parameter: the closed form, or a network."""

    _parameter_constraints = {
        **BaseExpert._parameter_constraints,
        "solver": [StrOptions(set(SOLVERS)), Ridge, Adam],
    }

    def _solver(self):
        """The solver, its parameters checked."""
        solver = self.solver
        solver = SOLVERS[solver]() if isinstance(solver, str) else solver
        solver._validate_params()
        if self.alphas is not None and not solver._reads_alphas(
            self.views, self.normalize
        ):
            raise ValueError(
                f"alphas={self.alphas!r} are penalties of the closed form, which has "
                "nothing to choose here: leave alphas=None, or set views='auto' or "
                "normalize='auto'."
            )
        return solver

    def _expert_before(self, solver):
        """The expert of the fit before, where this one goes on from it."""
        before = getattr(self, "expert_", None)
        return before if solver._continues(before) else None
