"""ProbeXClassifier."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin
from sklearn.utils import Tags, check_consistent_length
from sklearn.utils.class_weight import compute_sample_weight

from ._base import BaseProbeX, all_or_nothing
from ._registry import saved
from ._sklearn import StrOptions, _fit_context
from ._typing import Center, ClassWeight, Device, RandomState, Self, Views
from .probing.device import as_array
from .probing.ridge.expert import ClosedFormExpert
from .solvers import Solver
from .targets._labels import CODINGS, encode_labels
from .weights import WeightsLike


@saved
class ProbeXClassifier(ClassifierMixin, BaseProbeX):
    """Classify models by the weights of one of their layers.

    Answers what a model was trained on, given the same layer of other models of its
    Model Tree whose answer is known. Each model's delta ``D_i = X_i - C`` from the
    tree's centre is turned into views ``M_i``, which are probed from both sides,
    ``U^T M_i V``, and a linear head reads the classes off the result (ProbeX [1]_).

    With ``solver="ridge"`` all of it is in closed form: the probes are the Tucker
    factors of the training views (HOSVD), the head is a ridge, and penalty, views and
    normalisation are chosen by exact leave-one-out. ``solver="adam"`` trains the
    papers' networks: ``**solvers.probex()`` are all parameters of ProbeX [1]_ as
    published, ``**solvers.mvprobe()`` those of MVProbe [2]_.

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
        What is subtracted from the weights. ``"robust"`` is where the models came from,
        found from those that moved least: models weigh ``1 / d^2``, d their distance
        from it, and those far from all others are left out of the fit with an
        `OutlierWarning`. ``"mean"`` is the mean of the training models; an array
        ``(d_out, d_in)`` is the base's weights (for several layers a dict of them, by
        name). ``"auto"`` is the robust centre, and nothing for low-rank weights, which
        are deltas already.
    normalize : "auto" or bool, default="auto"
        Whether each delta is scaled to unit Frobenius norm; if not, all are divided by
        one typical norm. ``"auto"`` tries both by leave-one-out.
    solver : {"ridge", "adam"} or solver object, default="ridge"
        The closed form, or the papers' networks trained end to end: `solvers.Adam` has
        their parameters, and what it leaves to ``"auto"`` is chosen by the closed form.
    alphas : array-like of float, default=None
        Ridge penalties, in units of the features' mean squared norm, chosen by exact
        leave-one-out. None: 15 values from 1e-4 to 1e3.
    class_weight : dict, list of dict or "balanced", default=None
        Weights of the classes, as in `RidgeClassifier`: ``{label: weight}``, for
        multi-label y a list of one dict per label.
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
    classes_ : ndarray of shape (n_classes,)
        Labels; for multi-label y the label numbers.
    y_type_ : str
        ``"binary"``, ``"multiclass"`` or ``"multilabel-indicator"``.
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
        Leave-one-out score (label accuracy) of every view, or sum of views, that was
        compared. Empty if nothing was left to choose with ``solver="adam"``.
    probes_ : dict
        Probes of each view: with ``solver="ridge"`` a pair (U, V) of shapes
        ``(d, n_probes)``; with ``solver="adam"`` U alone.
    coef_ : ndarray of shape (n_outputs, n_features)
        Weights of the head: on the probed features with ``solver="ridge"``, on the
        encoder's output with ``solver="adam"``.
    intercept_ : ndarray of shape (n_outputs,)
        Offsets of the head.
    layers_ : list of str
        The layers in use; only where W holds several.
    layer_scores_ : dict of str to float
        Leave-one-out score that each layer reaches with its best view; only where W
        holds several.
    alpha_ : float
        Penalty chosen; only with ``solver="ridge"``.
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
    ProbeXRegressor : Predict real numbers instead.

    Notes
    -----
    One output for two classes, else one for each class or label. Predictions do not
    depend on the order of the models nor of the views.

    References
    ----------
    .. [1] E. Horwitz, B. Cavia, J. Kahana, Y. Hoshen, "Learning on Model Weights using
       Tree Experts", CVPR 2025, arXiv 2410.13569.
    .. [2] "MVProbe", ICML 2026, arXiv 2605.23410.

    Examples
    --------
    >>> from skprobex import ProbeXClassifier
    >>> from skprobex.datasets import make_model_tree
    >>> W, y = make_model_tree(
    ...     90, (16, 12), view="xtxu", random_state=0, return_X_y=True
    ... )
    >>> clf = ProbeXClassifier().fit(W[:60], y[:60])
    >>> clf.score(W[60:], y[60:])
    1.0
    """

    _parameter_constraints = {
        **BaseProbeX._parameter_constraints,
        "class_weight": [StrOptions({"balanced"}), dict, list, None],
    }

    classes_: np.ndarray
    y_type_: str

    def __init__(
        self,
        *,
        views: Views = "auto",
        n_probes: int = 64,
        center: Center = "auto",
        normalize: bool | Literal["auto"] = "auto",
        solver: Literal["ridge", "adam"] | Solver = "ridge",
        alphas: Sequence[float] | np.ndarray | None = None,
        class_weight: ClassWeight = None,
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
        self.class_weight = class_weight
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
        y : array-like of shape (n_models,) or (n_models, n_labels)
            A label for each model, or an indicator matrix of several.

        Returns
        -------
        ProbeXClassifier
            The fitted estimator itself.

        Raises
        ------
        ValueError
            NaN or infinite weights, shapes that differ between models, fewer than two
            classes; the message names the model at fault.
        """
        if y is None:
            raise ValueError(
                "This ProbeXClassifier estimator requires y to be passed, but the "
                "target y is None."
            )
        layers = self._read(W, reset=True)
        coding, codes = encode_labels(y, type(self).__name__)
        check_consistent_length(next(iter(layers.values())), codes)
        solver = self._solver()
        before = self._expert_before(solver)
        if before is not None:
            self._check_same_classes(coding)
        sample_weight = self._weigh_classes(coding, codes)
        targets = coding.signs(codes)
        problem = self._pose(layers, partial(coding.task, targets, sample_weight))
        kept = as_array(problem.kept)
        if sample_weight is not None:
            sample_weight = sample_weight[kept]
        expert = solver._solve(
            problem,
            self._progress,
            stratify=coding.stratify(codes[kept]),
            before=before,
        )
        if isinstance(expert, ClosedFormExpert):
            calibrated = coding.calibrate(
                expert.loo_predictions, targets[kept], sample_weight
            )
            expert = expert.scaled(*calibrated)
        self._publish(
            expert,
            classes_=coding.classes,
            y_type_=coding.y_type,
            outliers_=np.flatnonzero(~kept),
            **solver._attributes(expert),
        )
        return self

    def _check_same_classes(self, coding):
        if (coding.y_type, *coding.classes) != (self.y_type_, *self.classes_):
            raise ValueError(
                f"warm_start=True goes on with the classes {self.classes_.tolist()}, "
                f"but y now holds {coding.classes.tolist()}: keep the classes, or set "
                "warm_start=False."
            )

    def _weigh_classes(self, coding, codes):
        """Weight of each model by the class weights, or None."""
        if self.class_weight is None:
            return None
        weight_of = self.class_weight
        sample_weight = compute_sample_weight(weight_of, coding.name_codes(codes))
        if not (np.all(sample_weight >= 0) and 0 < sample_weight.sum() < np.inf):
            raise ValueError(
                f"class_weight={weight_of!r}: weights must not be negative, NaN or "
                "infinite, nor all be zero."
            )
        return sample_weight

    @property
    def _coding(self):
        return CODINGS[self.y_type_](self.classes_)

    def decision_function(self, W: WeightsLike) -> np.ndarray:
        """Compute log-odds: positive where a label is predicted.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            The same layer of each model as in fit.

        Returns
        -------
        ndarray of shape (n_models,), (n_models, n_classes) or (n_models, n_labels)
            One column for two classes, one a class or label otherwise. `predict_proba`
            is their sigmoid (softmax for three classes and more).
        """
        outputs = self._run_expert(W, "predict")
        return self._coding.squeeze(outputs)

    def predict(self, W: WeightsLike) -> np.ndarray:
        """Predict the label, or labels, of each model.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            The same layer of each model as in fit.

        Returns
        -------
        ndarray of shape (n_models,) or (n_models, n_labels)
            Members of `classes_`, or an indicator matrix.
        """
        decisions = self.decision_function(W)
        return self._coding.decide(decisions)

    def predict_proba(self, W: WeightsLike) -> np.ndarray:
        """Predict probabilities.

        With ``solver="ridge"`` they are calibrated on the leave-one-out decision values
        (Platt's sigmoid for each label, one temperature for three classes and more);
        with ``solver="adam"`` they are the network's own.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            The same layer of each model as in fit.

        Returns
        -------
        ndarray of shape (n_models, n_classes) or (n_models, n_labels)
            Rows sum to one, but for multi-label y: there each entry is the probability
            of its label.
        """
        decisions = self.decision_function(W)
        return self._coding.probabilities(decisions)

    def predict_log_proba(self, W: WeightsLike) -> np.ndarray:
        """Predict logarithms of probabilities.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            The same layer of each model as in fit.

        Returns
        -------
        ndarray of shape (n_models, n_classes) or (n_models, n_labels)
            Of what `predict_proba` predicts; finite, however sure it is.
        """
        decisions = self.decision_function(W)
        return self._coding.log_probabilities(decisions)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
