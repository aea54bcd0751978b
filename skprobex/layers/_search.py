"""LayerSearchCV."""

import os
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import (
    BaseEstimator,
    MetaEstimatorMixin,
    clone,
    is_classifier,
    is_regressor,
)
from sklearn.metrics import check_scoring, get_scorer
from sklearn.model_selection import check_cv
from sklearn.utils import Tags, get_tags
from sklearn.utils.validation import check_is_fitted

from .._base import all_or_nothing
from .._registry import saved
from .._sklearn import HasMethods, Interval, StrOptions, _fit_context, available_if
from .._typing import Scoring, Self
from ..exceptions import MissingLayerError
from ..saving import Saveable
from ..targets._labels import check_is_array
from ..weights import (
    Layers,
    WeightsLike,
    holds_several,
    layer_names,
    take_layers,
    unwrap_jungle,
    usable_layers,
)
from ._evaluation import CrossValidation, QuickLook, map_layers
from ._patterns import match_layers
from ._results import tabulate, tell_failures


def _estimator_has(method):
    """Make a condition for `available_if`: the estimator has the method."""

    def check(self):
        getattr(getattr(self, "best_estimator_", self.estimator), method)
        return True

    return check


@saved
class LayerSearchCV(Saveable, MetaEstimatorMixin, BaseEstimator):
    """Find the layer that knows, by cross-validating an estimator on each.

    Different questions are answered by different layers. Each layer is read once, by
    one worker, which fits and scores the estimator on every fold; then the estimator is
    fitted on the best layer of all models. What scikit-learn's `GridSearchCV` tells of
    parameters, this tells of layers.

    Parameters
    ----------
    estimator : estimator
        Fitted on one layer at a time: `ProbeXClassifier`, a pipeline, or whatever else
        takes the weights of a layer.
    layers : str, list of str or None, default=None
        Names or patterns (``"*.attention.*"``) of the layers to search. None: all that
        every model has in one shape; a warning names the others.
    cv : int, splitter or iterable, default=5
        As in `GridSearchCV`. All layers see the same folds.
    scoring : str, callable, list, dict or None, default=None
        As in `GridSearchCV`: one metric, or several by name. None is the estimator's
        own ``score``.
    n_jobs : int or None, default=None
        Layers searched at once. ``joblib.parallel_config`` says where: other processes
        of this machine, or the workers of a cluster.
    refit : bool or str, default=True
        Fit the estimator on the best layer. With several metrics, the name of the one
        that says which is best.
    prefilter : int or None, default=None
        Cross-validate on so many layers only: those which the closed form, in a quick
        look at single views, ranks highest by its own leave-one-out score. None: all.
    memory : str, path-like, object with the joblib.Memory interface or None, \
default=None
        Where each layer's results are kept: a search that was interrupted, started
        again, goes on with the layers that are left. joblib keeps them as pickles:
        take a folder that nobody else writes to.
    error_score : "raise" or float, default=np.nan
        Score of a fold whose fit failed.
    verbose : int, default=0
        The higher, the more joblib tells of its progress.

    Attributes
    ----------
    cv_results_ : dict of str to ndarray
        As in `GridSearchCV`, one entry a layer: ``params`` (``{"layer": name}``),
        ``param_layer``, ``split0_test_score``, ``mean_test_score``, ``std_test_score``,
        ``rank_test_score``, ``mean_fit_time`` and so on; with several metrics their
        names in the place of "score".
    layer_scores_ : dict of str to float
        Mean score of each layer; not with several metrics and no `refit`.
    best_layer_ : str
        The layer with the highest mean score.
    best_index_ : int
        Its position in `cv_results_`.
    best_score_ : float
        Its mean score.
    best_estimator_ : estimator
        Fitted on this layer of all models; only with `refit`.
    refit_time_ : float
        Seconds that took.
    prefilter_scores_ : dict of str to float
        Leave-one-out score of each layer in the quick look (label accuracy, or R^2);
        only with `prefilter`.
    n_splits_ : int
        Number of folds.
    scorer_ : scorer, or dict of str to scorer
        What scores predictions.
    multimetric_ : bool
        Whether there are several metrics.
    classes_ : ndarray of shape (n_classes,)
        Labels, where the estimator has them.
    n_features_in_ : int
        d_out of the best layer.

    See Also
    --------
    LayerFusion : Join what several layers tell.
    skprobex.inspection.LayerSearchDisplay : Draw the scores by depth.

    Notes
    -----
    Processes that joblib starts get their share of the cores. On a GPU each of them
    needs memory of its own: use as many as fit, on ``device="cpu"`` or with the default
    backend "loky". A forked process cannot use CUDA once its parent did.

    Examples
    --------
    >>> from skprobex import LayerSearchCV, ProbeXClassifier
    >>> from skprobex.datasets import make_model_tree
    >>> W, y = make_model_tree(
    ...     90, (16, 12), view="xtxu", random_state=0, return_X_y=True
    ... )
    >>> layers = {"first.weight": 0 * W, "second.weight": W}
    >>> search = LayerSearchCV(ProbeXClassifier(), cv=3).fit(layers, y)
    >>> search.best_layer_
    'second.weight'
    >>> search.predict(layers).shape
    (90,)
    """

    _parameter_constraints = {
        "estimator": [HasMethods(["fit"])],
        "layers": [None, str, list, tuple],
        "cv": ["cv_object"],
        "scoring": [str, Callable, list, tuple, dict, None],
        "n_jobs": [Integral, None],
        "refit": ["boolean", str],
        "prefilter": [None, Interval(Integral, 1, None, closed="left")],
        "memory": [str, os.PathLike, HasMethods(["cache"]), None],
        "error_score": [StrOptions({"raise"}), Real],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        estimator: Any,
        layers: str | Sequence[str] | None = None,
        cv: Any = 5,
        scoring: Scoring = None,
        n_jobs: int | None = None,
        refit: bool | str = True,
        prefilter: int | None = None,
        memory: Any = None,
        error_score: float | Literal["raise"] = np.nan,
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.layers = layers
        self.cv = cv
        self.scoring = scoring
        self.n_jobs = n_jobs
        self.refit = refit
        self.prefilter = prefilter
        self.memory = memory
        self.error_score = error_score
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=False)
    @all_or_nothing
    def fit(
        self, W: Layers, y: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Cross-validate on every layer, and fit on the best.

        Parameters
        ----------
        W : ModelCollection or dict of str to array-like
            Several layers of the same models, by name; also the Bunch of a jungle.
        y : array-like of shape (n_models,) or (n_models, n_outputs), default=None
            What is known of each model, as the estimator takes it.
        groups : array-like of shape (n_models,), default=None
            What the splitter must not separate.

        Returns
        -------
        LayerSearchCV
            The fitted search itself.

        Raises
        ------
        TypeError
            If W is one layer.
        ValueError
            If no layer is usable, a pattern matches none, `refit` names no metric, or
            all fits failed.
        """
        W = unwrap_jungle(W)
        if not holds_several(W):
            raise TypeError(
                "LayerSearchCV needs several layers, a ModelCollection or a dict of "
                f"weights by layer name, got {type(W).__name__}. For one layer, fit "
                f"the {type(self.estimator).__name__} itself."
            )
        if y is None and (is_classifier(self) or is_regressor(self)):
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but "
                "the target y is None."
            )
        check_is_array(y)
        W = take_layers(W, match_layers(layer_names(W), self.layers))
        names = usable_layers(W)
        _check_same_models(W, names, y)
        self._forget()
        scorers = self._make_scorers()
        self.multimetric_ = isinstance(self.scoring, (list, tuple, dict))
        metric = self._check_refit(scorers)
        cv = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        splits = list(cv.split(W[names[0]], y, groups))
        if self.prefilter is not None:
            names = self._rank(W, names, y)
        work = CrossValidation(self.estimator, y, splits, scorers, self.error_score)
        found = self._map(work, W, names)
        results = [result for result, _, _ in found]
        tell_failures(names, found, len(splits))
        self.n_splits_ = len(splits)
        self.cv_results_ = tabulate(names, results, scorers)
        if metric is not None:
            self._choose(metric, names)
        if self.refit:
            start = time.perf_counter()
            best = clone(self.estimator)
            layer = W[self.best_layer_]
            self.best_estimator_ = best.fit(layer) if y is None else best.fit(layer, y)
            self.refit_time_ = time.perf_counter() - start
        return self

    def _forget(self):
        """Forget a fit before, which may have set attributes that this one does not."""
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)

    def _map(self, work, W, names):
        options = {
            name: getattr(self, name) for name in ("memory", "n_jobs", "verbose")
        }
        return map_layers(work, W, names, **options)

    def _rank(self, W, names, y):
        """Names of the layers that a quick look ranks highest, in their order."""
        if y is None:
            raise ValueError(
                "prefilter ranks layers by how well y is predicted: pass y."
            )
        ranks = self._map(QuickLook.for_estimator(self.estimator, y), W, names)
        self.prefilter_scores_ = {
            name: rank[0] for name, rank in zip(names, ranks, strict=True)
        }
        order = sorted(range(len(names)), key=lambda i: ranks[i], reverse=True)
        return [names[i] for i in sorted(order[: self.prefilter])]

    def _choose(self, metric, names):
        means = self.cv_results_[f"mean_test_{metric}"]
        self.layer_scores_ = dict(zip(names, means.tolist(), strict=True))
        self.best_index_ = int(self.cv_results_[f"rank_test_{metric}"].argmin())
        self.best_layer_ = names[self.best_index_]
        self.best_score_ = float(means[self.best_index_])

    def _make_scorers(self):
        """Scorers by the name of the metric; "score" is the name of the only one."""
        if isinstance(self.scoring, dict):
            if not self.scoring:
                raise ValueError("scoring is an empty dict: name a metric at least.")
            return {
                name: check_scoring(self.estimator, scoring)
                for name, scoring in self.scoring.items()
            }
        if isinstance(self.scoring, (list, tuple)):
            if not self.scoring or len(set(self.scoring)) < len(self.scoring):
                raise ValueError(
                    f"scoring={self.scoring!r}: expected names of metrics, each once."
                )
            return {name: get_scorer(name) for name in self.scoring}
        return {"score": check_scoring(self.estimator, self.scoring)}

    def _check_refit(self, scorers):
        """Name of the metric that says which layer is best, or None."""
        if not self.multimetric_:
            return "score"
        if self.refit is False:
            return None
        if self.refit not in scorers:
            raise ValueError(
                f"refit={self.refit!r}: with several metrics it must name the one that "
                f"says which layer is best, one of {list(scorers)}, or be False."
            )
        return self.refit

    @property
    def scorer_(self) -> Any:
        check_is_fitted(self)
        scorers = self._make_scorers()
        return scorers if self.multimetric_ else scorers["score"]

    @property
    def classes_(self) -> np.ndarray:
        return self._fitted().classes_

    @property
    def n_features_in_(self) -> int:
        return self._fitted().n_features_in_

    def _fitted(self):
        """Return the best estimator; say why there is none."""
        check_is_fitted(self)
        if not hasattr(self, "best_estimator_"):
            raise AttributeError(
                "This LayerSearchCV was fitted with refit=False and has only scores: "
                "set refit=True, or fit the estimator on the layer of your choice."
            )
        return self.best_estimator_

    def _take_best(self, W):
        """The best layer of W, or W if it is one layer."""
        W = unwrap_jungle(W)
        if not holds_several(W):
            return W
        if self.best_layer_ not in layer_names(W):
            raise MissingLayerError(
                f"W lacks the layer {self.best_layer_!r}, which LayerSearchCV found to "
                "be the best."
            )
        return W[self.best_layer_]

    def _ask(self, method, W):
        return getattr(self._fitted(), method)(self._take_best(W))

    @available_if(_estimator_has("predict"))
    def predict(self, W: WeightsLike) -> np.ndarray:
        """Call the best estimator's ``predict`` on the best layer.

        Parameters
        ----------
        W : ModelCollection, dict of str to array-like, or array-like
            Several layers, `best_layer_` among them, or that layer alone.

        Returns
        -------
        ndarray of shape (n_models,) or (n_models, n_outputs)
            As the estimator returns it.
        """
        return self._ask("predict", W)

    @available_if(_estimator_has("predict_proba"))
    def predict_proba(self, W: WeightsLike) -> np.ndarray:
        """Call the best estimator's ``predict_proba`` on the best layer.

        Parameters
        ----------
        W : ModelCollection, dict of str to array-like, or array-like
            Several layers, `best_layer_` among them, or that layer alone.

        Returns
        -------
        ndarray of shape (n_models, n_classes)
            As the estimator returns it.
        """
        return self._ask("predict_proba", W)

    @available_if(_estimator_has("decision_function"))
    def decision_function(self, W: WeightsLike) -> np.ndarray:
        """Call the best estimator's ``decision_function`` on the best layer.

        Parameters
        ----------
        W : ModelCollection, dict of str to array-like, or array-like
            Several layers, `best_layer_` among them, or that layer alone.

        Returns
        -------
        ndarray of shape (n_models,) or (n_models, n_classes)
            As the estimator returns it.
        """
        return self._ask("decision_function", W)

    @available_if(_estimator_has("transform"))
    def transform(self, W: WeightsLike) -> np.ndarray:
        """Call the best estimator's ``transform`` on the best layer.

        Parameters
        ----------
        W : ModelCollection, dict of str to array-like, or array-like
            Several layers, `best_layer_` among them, or that layer alone.

        Returns
        -------
        ndarray of shape (n_models, n_components)
            As the estimator returns it.
        """
        return self._ask("transform", W)

    def score(self, W: WeightsLike, y: ArrayLike | None = None) -> float:
        """Score the best estimator's predictions.

        Parameters
        ----------
        W : ModelCollection, dict of str to array-like, or array-like
            Several layers, `best_layer_` among them, or that layer alone.
        y : array-like of shape (n_models,) or (n_models, n_outputs), default=None
            What is true.

        Returns
        -------
        float
            By `scoring`; with several metrics by the one that `refit` names.
        """
        best = self._fitted()
        scorer = self.scorer_[self.refit] if self.multimetric_ else self.scorer_
        layer = self._take_best(W)
        return float(scorer(best, layer) if y is None else scorer(best, layer, y))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        own = get_tags(self.estimator)
        tags.estimator_type = own.estimator_type
        tags.classifier_tags = deepcopy(own.classifier_tags)
        tags.regressor_tags = deepcopy(own.regressor_tags)
        tags.transformer_tags = deepcopy(own.transformer_tags)
        tags.target_tags = deepcopy(own.target_tags)
        tags.input_tags.two_d_array = False
        return tags


def _check_same_models(W, names, y):
    """Check that every layer is of the models that y tells of."""
    expected = len(W[names[0]]) if y is None else len(y)
    for name in names:
        if len(W[name]) != expected:
            raise ValueError(
                f"Layers and y must be of the same models, but layer {name!r} holds "
                f"{len(W[name])} models, and {expected} are expected."
            )
