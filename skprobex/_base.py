"""What all experts share: parameters, the closed form, fitted attributes, tags."""

from collections.abc import Callable
from functools import wraps
from numbers import Integral
from typing import Any, TypeVar, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted

from ._documented import Documented
from ._progress import ProgressBar
from ._sklearn import ClassNamePrefixFeaturesOutMixin, Interval, StrOptions
from ._warnings import warn
from .probing.deltas import DecomposedDeltas, mean_and_sizes
from .probing.device import (
    as_array,
    as_tensor,
    make_generator,
    resolve_device,
    to_tensors,
)
from .probing.ridge import sampling
from .probing.ridge.expert import fit_closed_form
from .probing.spectral import draw_sketch
from .probing.views import VIEWS
from .saving._save_load import Saveable
from .targets._alignment import align_targets
from .weights import SeveralLayers, WeightsLike, check_weight_shape, validate_layers

DEFAULT_ALPHAS = tuple(np.logspace(-4, 3, 15).tolist())
DEFAULT_N_PROBES = 64

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
    Documented,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Fit one expert on one Model Tree, in closed form; W is one layer or several."""

    _parameter_constraints: dict[str, Any] = {
        "views": [StrOptions({"auto", *VIEWS}), tuple, list],
        "n_probes": [Interval(Integral, 1, None, closed="left")],
        "center": [
            StrOptions({"auto", "mean"}),
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
            principal directions, or all of them if `n_components` is None. With
            ``solver="adam"`` the encoder's output.
        """
        return self._run_expert(W, "transform")

    def _validate_weights(self, W, *, reset):
        return validate_layers(self, W, reset=reset)

    def _run_expert(self, W, method):
        check_is_fitted(self)
        W = self._validate_weights(W, reset=False)
        device = resolve_device(self.device)
        expert = to_tensors(self.expert_, device)
        outputs = as_array(getattr(expert, method)(W, device))
        bad = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
        if len(bad):
            raise ValueError(
                f"What {type(self).__name__} computes of model {bad[0]} of W overflows "
                f"{outputs.dtype}: its weights are far larger than those of fit. Check "
                "that they are in the same unit."
            )
        return outputs

    def _start_fit(self, W):
        """Resolve what every fit needs: device, dtype, random numbers."""
        device = resolve_device(self.device)
        random_state = check_random_state(self.random_state)
        generator = make_generator(random_state.randint(2**31 - 1))
        return device, W.compute_dtype, random_state, generator

    def _fit_closed_form(
        self,
        W,
        targets,
        task,
        *,
        device,
        generator,
        views,
        normalize,
        n_components,
        sample_weight=None,
        **options,
    ):
        """Fit on validated data; set no attribute.

        Parameters
        ----------
        W : weights, or SeveralLayers
        targets : Tensor of shape (n_models, n_targets)
        task : one of ``probing.tasks.TASKS``, or Naming
        device, generator, views, normalize, n_components, sample_weight, **options
            As `fit_closed_form` has them.

        Returns
        -------
        ClosedFormExpert
            Of tensors.
        """
        n_layers = len(_by_name(W))
        # Of several layers, those that are not chosen are compared and no more.
        total = (
            len(W) if n_layers == 1 else n_layers * min(len(W), sampling.MAX_COMPARED)
        )
        with ProgressBar(self.verbose, type(self).__name__, total, "model") as bar:
            return fit_closed_form(
                self._open_layers(W, device, generator, bar.update),
                targets,
                task,
                views=views,
                normalize=normalize,
                n_probes=self._clip_probes(W),
                alphas=self._check_alphas(),
                n_components=n_components,
                generator=generator,
                sample_weight=sample_weight,
                **options,
            )

    def _open_layers(self, W, device, generator, progress=None):
        """Open one layer after the other, so that none is kept longer than needed."""
        for name, layer in _by_name(W).items():
            # All in one dtype, as their features are joined.
            opened = self._open_layer(
                name, layer, device, generator, W.compute_dtype, progress
            )
            yield name, opened

    def _open_layer(self, name, layer, device, generator, dtype, progress=None):
        """Centre a layer's weights, and decompose them batch by batch as asked."""
        center, sizes = self._compute_center(name, layer, device, dtype)
        sketch = draw_sketch(*layer.lifted_shape[1:], generator, dtype, device)
        return DecomposedDeltas(layer, center, sketch, device, dtype, progress, sizes)

    def _publish(self, expert):
        """Set the fitted attributes, all at once; they share the expert's memory."""
        self.expert_ = expert
        self.center_ = expert.center
        self.views_, self.normalize_ = expert.view_names, expert.normalize
        self.view_scores_ = expert.view_scores
        self.probes_ = expert.probes
        self._n_features_out = expert.n_components
        for name in ("layers_", "layer_scores_"):
            self.__dict__.pop(name, None)  # of a fit before, on several layers
        if isinstance(self.weight_shape_, dict):
            self.layers_ = [layer.name for layer in expert.layers]
            self.layer_scores_ = expert.layer_scores

    def _publish_alpha(self, expert):
        # One number where all targets share it.
        shared = len(np.unique(expert.alpha)) == 1
        self.alpha_ = float(expert.alpha[0]) if shared else expert.alpha

    def _check_views(self):
        if self.views == "auto":
            return self.views
        if self.views in VIEWS:
            raise ValueError(
                f"views={self.views!r}: pass a tuple, views=({self.views!r},)."
            )
        unknown = [name for name in self.views if name not in VIEWS]
        if unknown or not self.views:
            got = f", got {unknown[0]!r}" if unknown else ""
            raise ValueError(
                f"views={self.views!r}: expected 'auto' or some of {VIEWS}{got}."
            )
        if len(set(self.views)) < len(self.views):
            raise ValueError(f"views={self.views!r} names a view twice.")
        # One order, so that ("a", "b") and ("b", "a") are the same estimator.
        return tuple(name for name in VIEWS if name in self.views)

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

    def _clip_probes(self, W):
        shapes = [layer.lifted_shape[1:] for layer in _by_name(W).values()]
        limit = max(max(shape) for shape in shapes)
        # The default is meant for any layer: clipping it is no news.
        if self.n_probes > limit and self.n_probes != DEFAULT_N_PROBES:
            warn(
                f"n_probes={self.n_probes} is more than the dimensions of the weights, "
                f"{tuple(shapes[0]) if len(shapes) == 1 else shapes}: {limit} probes "
                "are used.",
            )
        return min(self.n_probes, limit)

    def _compute_center(self, name, layer, device, dtype):
        """Return the centre, and the sizes of the models where they come with it."""
        center = self.center
        if isinstance(center, dict):
            if name is None or name not in center:
                missing = "W is one layer" if name is None else f"it lacks {name!r}"
                raise ValueError(
                    f"center is a dict of arrays by layer, but {missing}: pass an "
                    "array for one layer, and for several an array for each."
                )
            center = center[name]
        elif center is not None and not isinstance(center, str) and name is not None:
            raise ValueError(
                "center is one array, but W holds several layers: pass a dict of "
                "arrays by layer name."
            )
        if center is None:
            return None, None
        if isinstance(center, str):
            # Low-rank weights are deltas from their base already.
            if center == "auto" and layer.is_low_rank:
                return None, None
            return mean_and_sizes(layer, device, dtype)
        center = check_weight_shape(center, layer.lifted_shape[1:], "center")
        return as_tensor(center, dtype, device), None

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _by_name(W):
    """Layers by name; None is the name of the only one."""
    return W.layers if isinstance(W, SeveralLayers) else {None: W}
