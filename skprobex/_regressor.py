"""ProbeXRegressor."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import RegressorMixin
from sklearn.utils import Tags, check_consistent_length

from ._base import BaseProbeX, all_or_nothing
from ._registry import saved
from ._sklearn import _fit_context
from ._typing import Center, Device, RandomState, Self, Views
from .probing.device import as_array
from .solvers import Solver
from .targets._labels import check_numbers, number_task, standardize
from .weights import WeightsLike


@saved
class ProbeXRegressor(RegressorMixin, BaseProbeX):
    """Predict numbers from the weights of one layer of a model.

    Answers how a model was trained (its learning rate, say) or how good it is (its
    accuracy, its loss), given the same layer of other models of its Model Tree whose
    answer is known. The method is that of `ProbeXClassifier` [1]_ [2]_, with squared
    error; with several targets, each has a penalty of its own.

    Parameters
    ----------
    views : "auto" or tuple of str, default="auto"
        Matrices computed from each delta: any of ``"xu"``, ``"xtu"``, ``"xtxu"``,
        ``"xxtu"``, ``"log_xtx"``, ``"log_xxt"`` and ``"spectrum"``. ``"auto"`` compares
        single views and their sums by leave-one-out, on 512 of the models at most, and
        keeps the best.
    n_probes : int, default=64
        Probes per view and side (the paper's r_U); at most the dimension of the side.
    center : "auto", "robust", "mean", None or array-like, default="auto"
        What is subtracted from the weights: the robust centre, which models that moved
        far do not drag along, the mean of the training models, nothing, or the base's
        weights (for several layers a dict of them, by name). ``"auto"`` is the robust
        centre, and nothing for low-rank weights, which are deltas already.
    normalize : "auto" or bool, default="auto"
        Whether each delta is scaled to unit Frobenius norm; if not, all are divided by
        one typical norm. ``"auto"`` tries both by leave-one-out.
    solver : {"ridge", "adam"} or solver object, default="ridge"
        The closed form, or the papers' networks trained end to end: `solvers.Adam` has
        their parameters, and what it leaves to ``"auto"`` is chosen by the closed form.
    alphas : array-like of float, default=None
        Ridge penalties, in units of the features' mean squared norm, chosen by exact
        leave-one-out. None: 15 values from 1e-4 to 1e3.
    n_components : int or None, default=128
        Width of the representation that `transform` returns. With ``solver="ridge"``
        principal directions of the probed features (None: the features themselves);
        with ``solver="adam"`` the encoder (the paper's r_T; None: 128).
    device : str, default="auto"
        ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or
        ``"mps"``. Fitted attributes are CPU arrays whatever the device.
    random_state : int, RandomState instance or None, default=None
        Draws the network, its batches, and the sketch of large layers. The same
        integer gives the same result, bit for bit on the CPU.
    verbose : int, default=0
        1 shows a progress bar on stderr.

    Attributes
    ----------
    weight_shape_ : tuple of (int, int)
        The layer's shape, ``(d_out, d_in)``; by name where W holds several, as are the
        attributes from `center_` to `probes_`.
    layer_ : str
        The layer's name; only where W is one layer that says it.
    n_features_in_ : int
        d_out.
    feature_names_in_ : ndarray of shape (d_out,)
        Column names, where `fit` saw a data frame of 1-D weights.
    center_ : ndarray of shape (d_out, d_in) or None
        What is subtracted.
    outliers_ : ndarray of int
        Models far from all others, by position: the fit left them out, and warned.
    views_ : tuple of str
        The views in use.
    normalize_ : bool
        Whether deltas are scaled to unit norm.
    view_scores_ : dict of str to float
        Leave-one-out score (R^2, averaged over targets) of every view, or sum of
        views, that was compared. Empty if nothing was left to choose with
        ``solver="adam"``.
    probes_ : dict
        Probes of each view: with ``solver="ridge"`` a pair (U, V) of shapes
        ``(d, n_probes)``; with ``solver="adam"`` U alone.
    coef_ : ndarray of shape (n_targets, n_features)
        Weights of the head: on the probed features with ``solver="ridge"``, on the
        encoder's output with ``solver="adam"``.
    intercept_ : ndarray of shape (n_targets,)
        Offsets of the head.
    target_mean_, target_scale_ : ndarray of shape (n_targets,)
        Mean and standard deviation of each target; the solver predicts what is left.
    layers_ : list of str
        The layers in use; only where W holds several.
    layer_scores_ : dict of str to float
        Leave-one-out score that each layer reaches with its best view; only where W
        holds several.
    alpha_ : float or ndarray of shape (n_targets,)
        Penalty chosen, one for each target where they differ; only with
        ``solver="ridge"``.
    n_iter_ : int
        Epochs run; 1 with ``solver="ridge"``.
    loss_curve_ : list of float
        Training loss of each epoch; only with ``solver="adam"``.
    validation_scores_ : list of float
        Score of each epoch on the models set aside; only with
        ``Adam(early_stopping=True)``.
    expert_ : object
        All fitted state; the attributes above are views of it.

    See Also
    --------
    ProbeXClassifier : Predict classes instead.

    References
    ----------
    .. [1] E. Horwitz, B. Cavia, J. Kahana, Y. Hoshen, "Learning on Model Weights using
       Tree Experts", CVPR 2025, arXiv 2410.13569.
    .. [2] "MVProbe", ICML 2026, arXiv 2605.23410.

    Examples
    --------
    >>> from skprobex import ProbeXRegressor
    >>> from skprobex.datasets import make_model_tree
    >>> W, y = make_model_tree(
    ...     120,
    ...     (16, 12),
    ...     view="xtxu",
    ...     task="regression",
    ...     random_state=0,
    ...     return_X_y=True,
    ... )
    >>> reg = ProbeXRegressor().fit(W[:90], y[:90])
    >>> reg.score(W[90:], y[90:]) > 0.9
    True
    """

    _parameter_constraints = {**BaseProbeX._parameter_constraints}

    def __init__(
        self,
        *,
        views: Views = "auto",
        n_probes: int = 64,
        center: Center = "auto",
        normalize: bool | Literal["auto"] = "auto",
        solver: Literal["ridge", "adam"] | Solver = "ridge",
        alphas: Sequence[float] | np.ndarray | None = None,
        n_components: int | None = 128,
        device: Device = "auto",
        random_state: RandomState = None,
        verbose: int = 0,
    ) -> None:
        self.views = views
        self.n_probes = n_probes
        self.center = center
        self.normalize = normalize
        self.solver = solver
        self.alphas = alphas
        self.n_components = n_components
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    @all_or_nothing
    def fit(self, W: WeightsLike, y: ArrayLike) -> Self:
        """Fit the expert.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            One layer of each model. Also ``(n_models, d)``, 1-D weights, and
            ``(n_models, out, in, kh, kw)``, convolution kernels. A `ModelCollection`,
            or a dict of layers by name, is several: see `LayerFusion`.
        y : array-like of shape (n_models,) or (n_models, n_targets)
            One or several real targets.

        Returns
        -------
        ProbeXRegressor
            The fitted estimator itself.

        Raises
        ------
        ValueError
            NaN or infinite weights or targets, shapes that differ between models; the
            message names the model at fault.
        """
        if y is None:
            raise ValueError(
                "This ProbeXRegressor estimator requires y to be passed, but the "
                "target y is None."
            )
        layers = self._read(W, reset=True)
        y = check_numbers(y)
        check_consistent_length(next(iter(layers.values())), y)
        targets, mean, std = standardize(y)
        solver = self._solver()
        before = self._expert_before(solver)
        if before is not None:
            shift = self.target_mean_ - mean
            before = before.scaled(self.target_scale_ / std, shift / std)
        problem = self._pose(layers, partial(number_task, targets))
        expert = solver._solve(problem, self._progress, before=before)
        attributes = solver._attributes(expert) | {
            "coef_": expert.coef * std[:, None],
            "intercept_": expert.intercept * std + mean,
        }
        self._publish(
            expert,
            outliers_=np.flatnonzero(~as_array(problem.kept)),
            target_mean_=mean,
            target_scale_=std,
            **attributes,
        )
        self._has_one_target = y.ndim == 1
        return self

    def predict(self, W: WeightsLike) -> np.ndarray:
        """Predict the targets of each model.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            The same layer of each model as in fit.

        Returns
        -------
        ndarray of shape (n_models,) or (n_models, n_targets)
            In the units of y.
        """
        # In float64: a large mean would swallow what differs in float32.
        outputs = self._run_expert(W, "predict") * self.target_scale_
        outputs += self.target_mean_
        return outputs[:, 0] if self._has_one_target else outputs

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
