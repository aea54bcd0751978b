"""TreeExperts."""

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import (
    BaseEstimator,
    MetaEstimatorMixin,
    clone,
    is_classifier,
    is_regressor,
)
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import Tags, check_array, get_tags
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from .._base import all_or_nothing
from .._registry import saved
from .._sklearn import HasMethods, Interval, _fit_context, available_if
from .._typing import Self
from .._warnings import listed
from ..exceptions import MissingLayerError
from ..saving._save_load import Saveable
from ..targets._labels import check_labels
from ..weights import ModelCollection, WeightsLike
from ..weights._selection import take_models
from ..weights._validation import holds_several, layer_names
from ._answers import (
    ask_expert,
    centered,
    expert_has,
    find_trees,
    merge_answers,
    n_outputs,
    spread_decisions,
    spread_probabilities,
    warn_pooled,
)
from ._architectures import stack_models
from ._clustering import ModelTreeClustering


@saved
class TreeExperts(Saveable, MetaEstimatorMixin, BaseEstimator):
    """Fit one expert for each Model Tree, and ask the right one.

    Within a Model Tree what a model was trained on is easily read from its weights;
    across trees it is not, and models of other trees do harm [1]_. The router divides
    the models into trees; each tree gets a clone of the estimator, centred on the
    tree's own base; predictions come back in the order given.

    Parameters
    ----------
    estimator : estimator
        The expert: a classifier, a regressor, an embedder, or a pipeline that ends in
        one. Where a parameter ``center`` is ``"auto"``, each clone gets its tree's
        centre in its place.
    router : estimator, default=None
        Has `labels_` after ``fit(W)``, and ``predict(W)`` which may say -1. None is a
        `ModelTreeClustering`.
    min_models : int, default=10
        A tree of fewer models gets no expert of its own; see Notes.
    layer : str, default=None
        The layer that experts are given, where W holds several. None: for each tree the
        one that the router looked at. ``"all"``: the whole collection.

    Attributes
    ----------
    router_ : estimator
        The fitted router.
    experts_ : list of estimator
        The fitted expert of each tree. Trees without their own share one.
    own_expert_ : ndarray of shape (n_trees,)
        Whether each tree has an expert of its own.
    classes_ : ndarray of shape (n_classes,)
        Labels seen in any tree; of classifiers only.
    labels_ : ndarray of shape (n_labels,)
        Texts seen in any tree; of embedders only.
    n_features_in_ : int
        d_out, where W is one layer.
    feature_names_in_ : ndarray of shape (d_out,)
        Column names, where `fit` saw a data frame of 1-D weights.

    See Also
    --------
    ModelTreeClustering : The router.

    Notes
    -----
    A tree with fewer than `min_models` models, or with one class only, gets an expert
    fitted on all models of its weights' shape; if these have one class only, too, or
    are too few, it says the most frequent class, or the mean. `fit` warns once.

    A model that the router puts into no tree is given to the expert of the nearest one
    if the router knows it (`ModelTreeClustering` does unless the architecture is
    unknown), else to the largest tree's; `predict` warns.

    Classes that an expert has not seen get probability 0 and, in the decision function,
    one less than the least of the others. `transform` joins the experts' own
    representations, which have nothing in common; narrower ones are padded with zeros.
    That is so of embedders, too: each has a text side of its own, so that models are
    compared with texts by `predict`, or by an index for each tree.

    References
    ----------
    .. [1] E. Horwitz, B. Cavia, J. Kahana, Y. Hoshen, "Learning on Model Weights using
       Tree Experts", CVPR 2025, arXiv 2410.13569.

    Examples
    --------
    >>> from skprobex import ProbeXClassifier
    >>> from skprobex.datasets import make_digit_jungle
    >>> from skprobex.trees import TreeExperts
    >>> W, Y = make_digit_jungle(60, 4, n_trees=2, cache=False, return_X_y=True)
    >>> experts = TreeExperts(ProbeXClassifier()).fit(W[:50], Y[:50])
    >>> experts.router_.n_trees_, len(experts.experts_)
    (2, 2)
    >>> experts.predict(W[50:]).shape
    (10, 4)
    """

    _parameter_constraints = {
        "estimator": [HasMethods(["fit"])],
        "router": [None, HasMethods(["fit", "predict"])],
        "min_models": [Interval(Integral, 1, None, closed="left")],
        "layer": [None, str],
    }

    def __init__(
        self,
        estimator: Any,
        router: Any = None,
        *,
        min_models: int = 10,
        layer: str | None = None,
    ) -> None:
        self.estimator = estimator
        self.router = router
        self.min_models = min_models
        self.layer = layer

    @_fit_context(prefer_skip_nested_validation=False)
    @all_or_nothing
    def fit(self, W: WeightsLike, y: ArrayLike | None = None) -> Self:
        """Divide the models into trees, and fit an expert for each.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            One layer of each model; a `ModelCollection`, or a list of arrays, one for
            each model, whose shapes may differ.
        y : array-like of shape (n_models,) or (n_models, n_outputs), default=None
            What the estimator is to predict.

        Returns
        -------
        TreeExperts
            The fitted estimator itself.

        Raises
        ------
        ValueError
            What the router and the experts refuse.
        """
        if y is None and (is_classifier(self) or is_regressor(self)):
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but "
                "the target y is None."
            )
        self._fit_router(W)
        labels = np.asarray(self.router_.labels_)
        y = self._check_y(y, len(labels))
        members = [np.flatnonzero(labels == tree) for tree in range(labels.max() + 1)]
        self.own_expert_ = np.array(
            [len(own) >= self.min_models and self._can_learn(y, own) for own in members]
        )
        if len(members) == 1:
            # Nothing to fall back on: the estimator says itself what it lacks.
            self.own_expert_[:] = True
        self.experts_ = self._fit_experts(W, y, members)
        if all(hasattr(expert, "labels_") for expert in self.experts_):
            seen = [expert.labels_ for expert in self.experts_]
            self.labels_ = np.unique(np.concatenate(seen))
        warn_pooled(members, self.own_expert_, self.min_models)
        return self

    def _fit_router(self, W):
        """Divide the models, and say of W what the router says."""
        router = ModelTreeClustering() if self.router is None else self.router
        self.router_ = clone(router)
        self.router_.fit(W)
        for name in ("n_features_in_", "feature_names_in_", "labels_"):
            self.__dict__.pop(name, None)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self.router_, name):
                setattr(self, name, getattr(self.router_, name))

    def _check_y(self, y, n_models):
        """Turn y into an array, and remember the classes."""
        if y is None:
            return None
        check_consistent_length(np.empty(n_models), y)
        if is_regressor(self):
            y = check_array(
                y, ensure_2d=False, allow_nd=True, dtype=None, input_name="y"
            )
        if not is_classifier(self):
            return np.asarray(y)
        y = np.asarray(check_labels(y))
        self._is_multilabel = type_of_target(y).startswith("multilabel")
        self.classes_ = np.arange(y.shape[1]) if self._is_multilabel else np.unique(y)
        return y

    def _can_learn(self, y, rows):
        if y is None or is_regressor(self) or y.ndim > 1:
            return True
        return len(np.unique(y[rows])) > 1

    def _fit_experts(self, W, y, members):
        """Fit an expert for each tree; trees without their own share one."""
        forms = [self._form(tree) for tree in range(len(members))]
        experts, pooled = [], {}
        for tree, (form, own) in enumerate(zip(forms, members, strict=True)):
            if self.own_expert_[tree]:
                center = self._of_tree("centers_", tree)
                experts.append(self._fit_expert(W, y, own, tree, center))
                continue
            if form not in pooled:
                alike = [members[t] for t in range(len(members)) if forms[t] == form]
                rows = np.sort(np.concatenate(alike))
                pooled[form] = self._fit_pooled(W, y, rows, tree)
            experts.append(pooled[form])
        return experts

    def _of_tree(self, name, tree):
        """What an attribute of the router says of a tree; None without it."""
        values = getattr(self.router_, name, None)
        return None if values is None else values[tree]

    def _form(self, tree):
        """What trees must have in common to be pooled."""
        center = self._of_tree("centers_", tree)
        shape = None if center is None else np.shape(center)
        return self._of_tree("layers_", tree), shape

    def _fit_expert(self, W, y, rows, tree, center=None):
        expert = clone(self.estimator)
        W = self._select(W, rows, tree)
        # Of several layers, each is centred on the mean of the tree's own models.
        if center is not None and not holds_several(W):
            expert.set_params(**centered(expert, center))
        return expert.fit(W) if y is None else expert.fit(W, y[rows])

    def _fit_pooled(self, W, y, rows, tree):
        if len(rows) >= self.min_models and self._can_learn(y, rows):
            return self._fit_expert(W, y, rows, tree)
        if is_classifier(self):
            dummy = DummyClassifier(strategy="prior")
        elif is_regressor(self):
            dummy = DummyRegressor()
        else:
            raise ValueError(
                f"Model Tree {tree} and those of its shape have {len(rows)} models in "
                f"all, fewer than min_models={self.min_models}: leave them out, or "
                "lower min_models."
            )
        return dummy.fit(np.zeros((len(rows), 1)), y[rows])

    def _select(self, W, rows, tree):
        """Take models, and the layer that the tree's expert looks at."""
        selected = take_models(W, rows)
        if isinstance(W, (ModelCollection, dict)):
            if self.layer == "all":
                return selected
            layer = self.layer
            if layer is None:
                layer = self._of_tree("layers_", tree)
            if layer not in layer_names(selected):
                raise MissingLayerError(
                    f"layer={layer!r}: W holds {listed(layer_names(selected))}. Pass "
                    "one that all models have, or layer=None for the router's."
                )
            return selected[layer]
        return stack_models(selected) if isinstance(selected, list) else selected

    def _ask_experts(self, W, method, join=None, **params):
        """Ask each tree's expert; answers in the order of W."""
        check_is_fitted(self)
        trees = find_trees(self.router_, W)
        answers = []
        for tree in np.unique(trees):
            rows = np.flatnonzero(trees == tree)
            expert, selected = self.experts_[tree], self._select(W, rows, tree)
            answer = ask_expert(expert, method, selected, **params)
            answers.append((rows, answer if join is None else join(expert, answer)))
        return merge_answers(answers, len(trees))

    def predict(self, W: WeightsLike, **params: Any) -> np.ndarray:
        """Let each model's own expert predict.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            As in fit.
        **params : dict
            Passed to the experts' `predict`, such as an embedder's `labels`.

        Returns
        -------
        ndarray of shape (n_models,) or (n_models, n_outputs)
            In the order of W.
        """
        return self._ask_experts(W, "predict", **params)

    @available_if(expert_has("predict_proba"))
    def predict_proba(self, W: WeightsLike, **params: Any) -> np.ndarray:
        """Let each model's own expert predict probabilities.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            As in fit.
        **params : dict
            Passed to the experts' `predict_proba`, such as an embedder's `labels`.

        Returns
        -------
        ndarray of shape (n_models, n_classes) or (n_models, n_labels)
            Columns as in `classes_`, `labels_` or the `labels` given; 0 for classes
            that the model's expert has not seen.
        """
        join = None if params else self._spread_by(spread_probabilities)
        return self._ask_experts(W, "predict_proba", join, **params)

    @available_if(expert_has("decision_function"))
    def decision_function(self, W: WeightsLike) -> np.ndarray:
        """Let each model's own expert compute decision values.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            As in fit.

        Returns
        -------
        ndarray of shape (n_models,), (n_models, n_classes) or (n_models, n_labels)
            One column for two classes, one a class or label otherwise. Values of
            different experts are on one scale as far as their own are log-odds.
        """
        join = self._spread_by(spread_decisions)
        decisions = self._ask_experts(W, "decision_function", join)
        if self._is_multilabel or len(self.classes_) != 2:
            return decisions
        return decisions[:, 1] if decisions.ndim == 2 else decisions

    @available_if(expert_has("transform"))
    def transform(self, W: WeightsLike) -> np.ndarray:
        """Let each model's own expert represent it.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            As in fit.

        Returns
        -------
        ndarray of shape (n_models, n_components)
            See Notes on what representations of different experts have in common.
        """
        return self._ask_experts(W, "transform", self._pad)

    @available_if(expert_has("transform"))
    def fit_transform(self, W: WeightsLike, y: ArrayLike | None = None) -> np.ndarray:
        """Fit, then represent the same models.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            As in fit.
        y : array-like of shape (n_models,) or (n_models, n_outputs), default=None
            As in fit.

        Returns
        -------
        ndarray of shape (n_models, n_components)
            As `transform` returns.
        """
        return self.fit(W, y).transform(W)

    def _pad(self, expert, answer):
        """Widen to the widest expert's, whichever experts are asked."""
        widths = [n_outputs(expert, answer.shape[1]) for expert in self.experts_]
        return np.pad(answer, [(0, 0), (0, max(widths) - answer.shape[1])])

    def score(self, W: WeightsLike, y: ArrayLike) -> float:
        """Score the predictions.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            As in fit.
        y : array-like of shape (n_models,) or (n_models, n_outputs)
            The truth.

        Returns
        -------
        float
            Accuracy of a classifier (all labels of a model right, where there are
            several), R^2 of a regressor; otherwise the mean over trees, by their
            number of models, of what the experts' own `score` says.
        """
        if is_classifier(self):
            return accuracy_score(y, self.predict(W))
        if is_regressor(self):
            return r2_score(y, self.predict(W))
        check_is_fitted(self)
        trees, y = find_trees(self.router_, W), np.asarray(y)
        total = 0.0
        for tree in np.unique(trees):
            rows = np.flatnonzero(trees == tree)
            selected = self._select(W, rows, tree)
            total += self.experts_[tree].score(selected, y[rows]) * len(rows)
        return total / len(trees)

    def _spread_by(self, spread):
        """Put an expert's columns where `classes_`, or `labels_`, has them."""

        def join(expert, answer):
            if not is_classifier(self):
                return spread(answer, expert.labels_, self.labels_)
            if self._is_multilabel:
                return answer
            return spread(answer, expert.classes_, self.classes_)

        return join

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        expert = get_tags(self.estimator)
        tags.estimator_type = expert.estimator_type
        tags.classifier_tags = expert.classifier_tags
        tags.regressor_tags = expert.regressor_tags
        tags.transformer_tags = expert.transformer_tags
        tags.target_tags = expert.target_tags
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        return tags
