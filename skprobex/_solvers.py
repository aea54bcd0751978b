"""What the experts with two solvers share: the choice between them, and adam's part."""

from numbers import Integral, Real

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from ._base import BaseExpert
from ._progress import ProgressBar
from ._sklearn import Interval, StrOptions
from ._warnings import warn
from .probing.device import as_tensor, to_arrays, to_tensors
from .probing.naming import Naming
from .probing.network.training import NeuralExpert, fit_neural
from .weights import SeveralLayers

DEFAULT_BATCH_SIZE = 128
# The encoder's width when n_components=None leaves it open.
DEFAULT_N_COMPONENTS = 128


class BaseProbeX(BaseExpert):
    """An expert in closed form, or as the papers' networks."""

    _parameter_constraints = {
        **BaseExpert._parameter_constraints,
        "solver": [StrOptions({"ridge", "adam"})],
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
    }

    def _fit_expert(
        self,
        W,
        targets,
        task,
        *,
        stratify,
        sample_weight=None,
        target_scale=None,
        **options,
    ):
        """Fit an expert on validated data; set no attribute.

        Parameters
        ----------
        W : weights, or SeveralLayers
        targets : ndarray of shape (n_models, n_targets)
        task : one of ``probing.tasks.TASKS``, or Naming
            The network's is "multiclass" where the closed form's is Naming.
        stratify : ndarray or None
            Labels that early stopping splits evenly.
        sample_weight : ndarray of shape (n_models,), optional
        target_scale : (ndarray, ndarray), optional
            Standard deviation and mean that the targets were standardised by.
        **options
            Passed to `fit_neural`.

        Returns
        -------
        ClosedFormExpert or NeuralExpert
            Holding CPU arrays.
        """
        device, dtype, random_state, generator = self._start_fit(W)
        views, normalize = self._check_views(), self.normalize
        targets = as_tensor(targets, dtype, device)
        if sample_weight is not None:
            sample_weight = as_tensor(sample_weight, dtype, device)
        if self.solver == "adam" and isinstance(W, SeveralLayers):
            raise ValueError(
                f"W holds {len(W.layers)} layers, and solver='adam' takes one: pass "
                "W[name], or use solver='ridge'."
            )
        is_naming = isinstance(task, Naming)
        closed_form = {
            "device": device,
            "generator": generator,
            "views": views,
            "normalize": normalize,
            # An embedding is what is predicted, not what predicts it.
            "n_components": None if is_naming else self.n_components,
            "sample_weight": sample_weight,
        }
        if self.solver == "ridge":
            return to_arrays(self._fit_closed_form(W, targets, task, **closed_form))

        warm_start, view_scores = None, {}
        if self._continues():
            # What the fit before chose stays chosen.
            views = self.views_ if views == "auto" else views
            normalize = self.normalize_ if normalize == "auto" else normalize
            warm_start = to_tensors(self.expert_, device)
            if target_scale is not None:
                std, mean = (as_tensor(part, dtype, device) for part in target_scale)
                warm_start.scale_outputs(1 / std, -mean / std)
        if "auto" in (views, normalize):
            # The closed form chooses what is left to choose, and has centred W.
            closed_form |= {"views": views, "normalize": normalize}
            chosen = self._fit_closed_form(W, targets, task, **closed_form)
            views, normalize = chosen.view_names, chosen.normalize
            view_scores = chosen.view_scores
            (opened,) = chosen.layers
        else:
            opened = self._open_layer(None, W, device, generator, dtype)
        validation = None
        if self.early_stopping:
            validation = self._split_validation(stratify, len(W), random_state)
        n_training = len(W) - (0 if validation is None else len(validation))
        default_width = task.vectors.shape[1] if is_naming else DEFAULT_N_COMPONENTS
        with ProgressBar(
            self.verbose, type(self).__name__, self.max_iter, "epoch"
        ) as bar:
            network = fit_neural(
                W,
                targets,
                "multiclass" if is_naming else task,
                views=views,
                normalize=normalize,
                center=opened.center,
                sketch=opened.sketch,
                device=device,
                n_probes=self._clip_probes(W),
                projection_dim=self.projection_dim,
                n_components=self.n_components or default_width,
                standardize=self.standardize,
                generator=generator,
                warm_start=warm_start,
                sample_weight=sample_weight,
                validation=validation,
                progress=lambda loss: bar.update(1, loss=loss),
                **self._schedule(n_training),
                **options,
            )
        network.view_scores = view_scores
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
        super()._publish(expert)
        self.coef_, self.intercept_ = expert.coef, expert.intercept
        for name in ("alpha_", "loss_curve_", "validation_scores_"):
            self.__dict__.pop(name, None)  # of a fit before with the other solver
        if self.solver == "ridge":
            self._publish_alpha(expert)
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
            warn(
                f"Training interrupted by user after {len(history.losses)} epochs.",
            )
        elif not history.converged:
            warn(
                f"The adam solver reached max_iter={self.max_iter} and has not "
                "converged yet: raise max_iter, or tol.",
                ConvergenceWarning,
            )

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
