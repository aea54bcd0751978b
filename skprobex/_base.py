"""What the estimators share: parameters, the fit template, tags."""

import warnings
from functools import wraps
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ._progress import ProgressBar
from ._sklearn import ClassNamePrefixFeaturesOutMixin, Interval, StrOptions
from .io._persistence import Saveable
from .probing.closed_form import fit_closed_form
from .probing.deltas import DecomposedDeltas, mean_weights
from .probing.device import as_array, as_tensor, make_generator, resolve_device
from .probing.spectral import draw_sketch
from .probing.state import to_arrays, to_tensors
from .probing.training import NeuralExpert, fit_neural
from .probing.views import VIEWS
from .weights import check_weight_shape, validate_weights

DEFAULT_ALPHAS = tuple(np.logspace(-4, 3, 15).tolist())
DEFAULT_N_PROBES = 64
DEFAULT_BATCH_SIZE = 128
# The encoder's width when n_components=None leaves it open.
DEFAULT_N_COMPONENTS = 128


def all_or_nothing(fit):
    """Make a failed fit leave the estimator as it was."""

    @wraps(fit)
    def wrapper(self, *args, **kwargs):
        before = vars(self).copy()
        try:
            return fit(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return wrapper


class BaseProbeX(
    Saveable, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Fit one expert on one Model Tree; the shells say what it predicts."""

    _parameter_constraints = {
        "views": [StrOptions({"auto"}), tuple, list],
        "n_probes": [Interval(Integral, 1, None, closed="left")],
        "center": [StrOptions({"auto", "mean"}), None, "array-like", torch.Tensor],
        "normalize": [StrOptions({"auto"}), "boolean"],
        "solver": [StrOptions({"ridge", "adam"})],
        "alphas": [None, "array-like"],
        "n_components": [None, Interval(Integral, 1, None, closed="left")],
        "projection_dim": [Interval(Integral, 1, None, closed="left")],
        "standardize": ["boolean"],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def transform(self, W):
        """Represent models as the expert sees them, before its head.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            The same layer of each model as in fit.

        Returns
        -------
        ndarray of shape (n_models, n_components)
            With ``solver="ridge"`` the probed features along their `n_components`
            principal directions, or all of them if `n_components` is None. With
            ``solver="adam"`` the encoder's output.
        """
        return self._run_expert(W, "transform")

    def _validate_weights(self, W, *, reset):
        return validate_weights(self, W, reset=reset)

    def _run_expert(self, W, method):
        check_is_fitted(self)
        W = self._validate_weights(W, reset=False)
        device = resolve_device(self.device)
        expert = to_tensors(self.expert_, device)
        return as_array(getattr(expert, method)(W, device))

    def _fit_expert(
        self, W, targets, task, *, stratify, sample_weight=None, target_scale=None
    ):
        """Fit an expert on validated data; set no attribute.

        Parameters
        ----------
        W : DenseWeights, LowRankWeights or LayerWeights
        targets : ndarray of shape (n_models, n_targets)
        task : one of ``probing.tasks.TASKS``
        stratify : ndarray or None
            Labels that early stopping splits evenly.
        sample_weight : ndarray of shape (n_models,), optional
        target_scale : (ndarray, ndarray), optional
            Standard deviation and mean that the targets were standardised by.

        Returns
        -------
        ClosedFormExpert or NeuralExpert
            Holding CPU arrays.
        """
        device = resolve_device(self.device)
        views, normalize = self._check_views(), self.normalize
        alphas = self._check_alphas()
        n_probes = self._clip_probes(W.lifted_shape)
        random_state = check_random_state(self.random_state)
        generator = make_generator(random_state.randint(2**31 - 1))
        center = self._compute_center(W, device)
        dtype = W.compute_dtype
        sketch = draw_sketch(*W.lifted_shape[1:], generator, dtype, device)
        targets = as_tensor(targets, dtype, device)
        if sample_weight is not None:
            sample_weight = as_tensor(sample_weight, dtype, device)

        name = type(self).__name__
        expert, warm_start = None, None
        if self._continues():
            # What the fit before chose stays chosen.
            views = self.views_ if views == "auto" else views
            normalize = self.normalize_ if normalize == "auto" else normalize
            warm_start = to_tensors(self.expert_, device)
            if target_scale is not None:
                std, mean = (as_tensor(part, dtype, device) for part in target_scale)
                warm_start.scale_outputs(1 / std, -mean / std)
        if self.solver == "ridge" or "auto" in (views, normalize):
            # For the networks, too, the closed form chooses what is left to choose.
            with ProgressBar(self.verbose, name, len(W), "model") as bar:
                expert = fit_closed_form(
                    DecomposedDeltas(W, center, sketch, device, dtype, bar.update),
                    targets,
                    task,
                    views=views,
                    normalize=normalize,
                    n_probes=n_probes,
                    alphas=alphas,
                    n_components=self.n_components,
                    generator=generator,
                    sample_weight=sample_weight,
                )
        if self.solver == "ridge":
            return to_arrays(expert)
        validation = None
        if self.early_stopping:
            validation = self._split_validation(stratify, len(W), random_state)
        n_training = len(W) - (0 if validation is None else len(validation))
        with ProgressBar(self.verbose, name, self.max_iter, "epoch") as bar:
            network = fit_neural(
                W,
                targets,
                task,
                views=expert.view_names if expert else views,
                normalize=expert.normalize if expert else normalize,
                center=center,
                sketch=sketch,
                device=device,
                n_probes=n_probes,
                projection_dim=self.projection_dim,
                n_components=self.n_components or DEFAULT_N_COMPONENTS,
                standardize=self.standardize,
                generator=generator,
                warm_start=warm_start,
                sample_weight=sample_weight,
                validation=validation,
                progress=lambda loss: bar.update(1, loss=loss),
                **self._schedule(n_training),
            )
        if expert:
            network.view_scores = expert.view_scores
        self._warn_unfinished(network.history)
        return to_arrays(network)

    def _schedule(self, n_training):
        """How the network is trained, from the parameters."""
        size = DEFAULT_BATCH_SIZE if self.batch_size == "auto" else self.batch_size
        return {
            "learning_rate_init": self.learning_rate_init,
            "max_iter": self.max_iter,
            "batch_size": min(size, n_training),
            "alpha": self.alpha,
            "tol": self.tol,
            "n_iter_no_change": self.n_iter_no_change,
        }

    def _publish(self, expert, slope=None, offset=None):
        """Set the fitted attributes, all at once; they share the expert's memory.

        Outputs f become ``slope * f + offset`` where these are given.
        """
        if slope is not None:
            dtype = expert.coef.dtype
            expert.scale_outputs(slope.astype(dtype), offset.astype(dtype))
        self.expert_ = expert
        self.center_ = expert.center
        self.views_, self.normalize_ = expert.view_names, expert.normalize
        self.view_scores_ = expert.view_scores
        self.probes_ = expert.probes
        self.coef_, self.intercept_ = expert.coef, expert.intercept
        self._n_features_out = expert.n_components
        for name in ("alpha_", "loss_curve_", "validation_scores_"):
            vars(self).pop(name, None)  # of a fit before with the other solver
        if self.solver == "ridge":
            # One number where all targets share it.
            shared = np.ptp(expert.alpha) == 0
            self.alpha_ = float(expert.alpha[0]) if shared else expert.alpha
            self.n_iter_ = 1
            return
        self.loss_curve_ = expert.history.losses
        self.n_iter_ = len(self.loss_curve_)
        if self.early_stopping:
            self.validation_scores_ = expert.history.validation_scores

    def _continues(self):
        """Whether fit goes on from the network of the fit before."""
        return (
            self.warm_start
            and self.solver == "adam"
            and isinstance(getattr(self, "expert_", None), NeuralExpert)
        )

    def _warn_unfinished(self, history):
        if history.interrupted:
            warnings.warn(
                f"Training interrupted by user after {len(history.losses)} epochs.",
                stacklevel=4,
            )
        elif not history.converged:
            warnings.warn(
                f"The adam solver reached max_iter={self.max_iter} and has not "
                "converged yet: raise max_iter, or tol.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _check_views(self):
        if isinstance(self.views, str):
            return self.views
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
        alphas = np.asarray(self.alphas, dtype=float)
        if alphas.ndim != 1 or not len(alphas) or not np.all(alphas > 0):
            raise ValueError(
                "alphas must be a non-empty list of positive numbers, got "
                f"{self.alphas!r}."
            )
        return tuple(alphas.tolist())

    def _clip_probes(self, shape):
        limit = max(shape[1:])
        # The default is meant for any layer: clipping it is no news.
        if self.n_probes > limit and self.n_probes != DEFAULT_N_PROBES:
            warnings.warn(
                f"n_probes={self.n_probes} is more than the dimensions of the weights, "
                f"{tuple(shape[1:])}: {limit} probes are used.",
                stacklevel=5,
            )
        return min(self.n_probes, limit)

    def _compute_center(self, W, device):
        if self.center is None:
            return None
        if isinstance(self.center, str):
            # Low-rank weights are deltas from their base already.
            if self.center == "auto" and W.is_low_rank:
                return None
            return mean_weights(W, device, W.compute_dtype)
        center = check_weight_shape(self.center, W.lifted_shape[1:], "center")
        return as_tensor(center, W.compute_dtype, device)

    def _split_validation(self, stratify, n_models, random_state):
        """Set models aside for early stopping, from the training models."""
        n_held_out = int(np.ceil(self.validation_fraction * n_models))
        if n_models - n_held_out < 2:
            raise ValueError(
                f"early_stopping=True sets {n_held_out} of {n_models} models aside "
                "and leaves fewer than 2 to train on: lower validation_fraction, or "
                "set early_stopping=False."
            )
        _, held_out = train_test_split(
            np.arange(n_models),
            test_size=n_held_out,
            random_state=random_state,
            stratify=stratify,
        )
        return torch.from_numpy(np.sort(held_out))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
