"""The papers' networks as a solver."""

from dataclasses import replace
from numbers import Integral, Real
from typing import Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from .._registry import saved
from .._sklearn import Interval, StrOptions
from .._warnings import warn
from ..probing.device import to_arrays, to_tensors
from ..probing.network.training import NeuralExpert, Schedule, fit_network
from ..probing.ridge.expert import fit_ridge
from ..probing.tasks import Names

DEFAULT_BATCH_SIZE = 128
# The encoder's width when n_components=None leaves it open.
DEFAULT_N_COMPONENTS = 128


@saved
class Adam(BaseEstimator):
    """The papers' networks, trained end to end by Adam.

    What ``solver="adam"`` stands for, with these defaults. Names are those of
    `MLPClassifier` where it has the parameter. Views and normalisation that the
    estimator leaves to ``"auto"`` are chosen by the closed form. Takes one layer.

    Parameters
    ----------
    projection_dim : int, default=128
        Rows of the projection that all probes share (the paper's r_V).
    standardize : bool, default=True
        Standardise every model's probed views before the projection.
    learn_temperature : bool, default=True
        Of `ProbeXEmbedder`: learn the temperature of the cosines, or leave it at one
        as published, where the loss cannot fall far below the logarithm of the number
        of texts.
    learning_rate_init : float, default=1e-3
        Adam's step size.
    max_iter : int, default=200
        Epochs at most.
    batch_size : int or "auto", default="auto"
        Models in a training step; ``"auto"`` is ``min(128, n_models)``.
    alpha : float, default=1e-5
        Weight decay: an L2 penalty on all weights of the network.
    early_stopping : bool, default=False
        Set `validation_fraction` of the training models aside, stop when their score
        no longer improves, and keep the weights of the best epoch.
    validation_fraction : float, default=0.1
        Share of the training models set aside.
    n_iter_no_change : int, default=10
        Epochs without improvement after which training stops.
    tol : float, default=1e-4
        What counts as an improvement of the loss, or of the validation score.
    warm_start : bool, default=False
        Go on from the network of the estimator's fit before.

    See Also
    --------
    probex : All parameters of an estimator as ProbeX was published.
    mvprobe : Likewise of MVProbe.

    Examples
    --------
    >>> from skprobex import ProbeXClassifier
    >>> from skprobex.datasets import make_model_tree
    >>> from skprobex.solvers import Adam
    >>> W, y = make_model_tree(
    ...     60, (16, 12), view="xtxu", random_state=0, return_X_y=True
    ... )
    >>> clf = ProbeXClassifier(solver=Adam(max_iter=100, tol=0.1), random_state=0)
    >>> clf.set_params(solver__projection_dim=16).fit(W, y).score(W, y)
    1.0
    """

    _parameter_constraints: dict = {
        "projection_dim": [Interval(Integral, 1, None, closed="left")],
        "standardize": ["boolean"],
        "learn_temperature": ["boolean"],
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

    def __init__(
        self,
        *,
        projection_dim: int = 128,
        standardize: bool = True,
        learn_temperature: bool = True,
        learning_rate_init: float = 1e-3,
        max_iter: int = 200,
        batch_size: int | Literal["auto"] = "auto",
        alpha: float = 1e-5,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        warm_start: bool = False,
    ) -> None:
        self.projection_dim = projection_dim
        self.standardize = standardize
        self.learn_temperature = learn_temperature
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.alpha = alpha
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start

    def _reads_alphas(self, views, normalize):
        """Whether penalties are read: by the closed form, where it has a choice."""
        return "auto" in (views, normalize)

    def _continues(self, before):
        return self.warm_start and isinstance(before, NeuralExpert)

    def _solve(self, problem, progress, *, stratify=None, before=None):
        if len(problem.layers) > 1:
            raise ValueError(
                f"W holds {len(problem.layers)} layers, and a network takes one: pass "
                "W[name], or use solver='ridge'."
            )
        if before is not None:
            # What the fit before chose stays chosen.
            chosen = before.inputs
            problem = replace(problem, **_left_to_choose(problem, chosen))
            before = to_tensors(before, problem.device)
        problem, opened, view_scores = self._choose_views(problem, progress)
        validation = None
        if self.early_stopping:
            validation = self._split_validation(problem, stratify)
        n_training = problem.n_models - (0 if validation is None else len(validation))
        with progress(self.max_iter, "epoch") as bar:
            network = fit_network(
                problem,
                opened,
                self._sizes(problem),
                self._schedule(n_training),
                validation=validation,
                before=before,
                progress=lambda loss: bar.update(1, loss=loss),
            )
        self._warn_unfinished(network.history)
        return to_arrays(replace(network, view_scores=view_scores))

    def _choose_views(self, problem, progress):
        """Let the closed form choose what is left to choose; it has centred W."""
        ((name, _),) = problem.layers.items()
        if "auto" not in (problem.views, problem.normalize):
            return problem, problem.open(name), {}
        with progress(problem.n_decomposed, "model") as bar:
            expert = fit_ridge(problem, bar.update)
        (layer,) = expert.layers
        views = tuple(view.name for view in layer.views)
        chosen = replace(problem, views=views, normalize=layer.normalize)
        return chosen, layer, expert.view_scores[name]

    def _sizes(self, problem):
        text_dim, default_width = None, DEFAULT_N_COMPONENTS
        if isinstance(problem.task, Names):
            text_dim = default_width = problem.task.vectors.shape[1]
        return {
            "projection_dim": self.projection_dim,
            "n_components": problem.n_components or default_width,
            "standardize": self.standardize,
            "text_dim": text_dim,
            "learn_temperature": self.learn_temperature,
        }

    def _schedule(self, n_training):
        size = DEFAULT_BATCH_SIZE if self.batch_size == "auto" else self.batch_size
        return Schedule(
            self.learning_rate_init,
            self.max_iter,
            min(size, n_training),
            self.alpha,
            self.tol,
            self.n_iter_no_change,
        )

    def _split_validation(self, problem, stratify):
        """Set models aside for early stopping, from the training models."""
        n_models = problem.n_models
        n_held_out = int(np.ceil(self.validation_fraction * n_models))
        if n_models - n_held_out < 2:
            raise ValueError(
                f"early_stopping=True sets {n_held_out} of {n_models} models aside "
                "and leaves fewer than 2 to train on: lower validation_fraction, or "
                "set early_stopping=False."
            )
        seed = int(torch.randint(2**31 - 1, (), generator=problem.generator))
        _, held_out = train_test_split(
            np.arange(n_models),
            test_size=n_held_out,
            random_state=seed,
            stratify=stratify,
        )
        return torch.from_numpy(np.sort(held_out))

    @property
    def _runs_every_epoch(self):
        return self.tol == 0 and self.n_iter_no_change >= self.max_iter

    def _warn_unfinished(self, history):
        if history.interrupted:
            warn(
                f"Training interrupted by user after {len(history.losses)} epochs.",
            )
        elif not history.converged and not self._runs_every_epoch:
            warn(
                f"The adam solver reached max_iter={self.max_iter} and has not "
                "converged yet: raise max_iter, or tol.",
                ConvergenceWarning,
            )

    def _attributes(self, expert):
        attributes = {
            "center_": expert.inputs.center,
            "views_": expert.inputs.views,
            "normalize_": expert.inputs.normalize,
            "view_scores_": expert.view_scores,
            "probes_": expert.probes,
            "coef_": expert.coef,
            "intercept_": expert.intercept,
            "loss_curve_": expert.history.losses,
            "n_iter_": len(expert.history.losses),
        }
        if self.early_stopping:
            attributes["validation_scores_"] = expert.history.validation_scores
        return attributes


def _left_to_choose(problem, chosen):
    """What is left to "auto", as it was chosen before."""
    return {
        name: getattr(chosen, name)
        for name in ("views", "normalize")
        if getattr(problem, name) == "auto"
    }
