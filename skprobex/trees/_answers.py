"""Predictions of several experts, merged into those of one estimator."""

import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor

from .._registry import saved
from .._warnings import listed, warn
from ._clustering import ModelTreeClustering

# They stand in for an expert where there are too few models.
saved(DummyClassifier)
saved(DummyRegressor)

# Log-probability of a class of probability zero: finite, so that scorers take it.
_LOG_ZERO = -700.0


def is_dummy(expert):
    """Whether an expert only stands in for one."""
    return isinstance(expert, (DummyClassifier, DummyRegressor))


def expert_has(method):
    """Make a condition for `available_if`: every expert has the method."""

    def check(self):
        for expert in getattr(self, "experts_", [self.estimator]):
            if not is_dummy(expert):
                getattr(expert, method)  # its own AttributeError says most
        return True

    return check


def centered(estimator, center):
    """Parameters that put a tree's centre where "auto" stands."""
    return {
        name: center
        for name, value in estimator.get_params().items()
        if name.split("__")[-1] == "center"
        and isinstance(value, str)
        and value == "auto"
    }


def find_trees(router, W):
    """Tree of each model, the nearest one where it is of none.

    Raises
    ------
    ValueError
        For models of an architecture that no tree has.
    """
    if isinstance(router, ModelTreeClustering):
        labels, distances = router._route(W, router.outlier_threshold)
        foreign = np.isinf(distances).all(axis=1)
        if foreign.any():
            raise ValueError(
                f"{foreign.sum()} of {len(foreign)} models, the first of them W"
                f"[{int(np.flatnonzero(foreign)[0])}], are of an architecture or a "
                "declared base that no expert has seen: leave out those for which "
                "router_.predict says -1."
            )
        nearest = distances.argmin(axis=1)
    else:
        labels = np.asarray(router.predict(W))
        nearest = np.zeros_like(labels)
    unknown = labels < 0
    if unknown.any():
        warn(
            f"{unknown.sum()} of {len(labels)} models are of no known Model Tree; the "
            "nearest tree's expert answers for them. router_.predict says which.",
        )
    return np.where(unknown, nearest, labels)


def warn_pooled(members, own_expert, min_models):
    """Say once which trees have no expert of their own."""
    small = np.flatnonzero(~own_expert)
    if len(small) == 0:
        return
    named = listed(small, show=lambda tree: f"{tree} ({len(members[tree])} models)")
    warn(
        f"{len(small)} of {len(members)} Model Trees have fewer than min_models="
        f"{min_models} models or one class only, and get an expert fitted on the "
        f"models of all trees: {named}.",
    )


def ask_expert(expert, method, W, **params):
    """Call an expert's method; dummies see no weights."""
    if not is_dummy(expert):
        return np.asarray(getattr(expert, method)(W, **params))
    rows = np.zeros((len(W), 1))
    if method == "transform":
        raise AttributeError(
            "A Model Tree too small for an expert has no representation: leave its "
            "models out, or lower min_models."
        )
    if method != "decision_function":
        return np.asarray(getattr(expert, method)(rows))
    with np.errstate(divide="ignore"):
        decisions = np.maximum(expert.predict_log_proba(rows), _LOG_ZERO)
    return decisions[:, 1] - decisions[:, 0] if decisions.shape[1] == 2 else decisions


def spread_probabilities(proba, seen, classes):
    """Put an expert's columns where all classes have them; 0 elsewhere.

    Parameters
    ----------
    proba : ndarray of shape (n, n_seen)
    seen : ndarray of shape (n_seen,)
        Classes that the expert has seen.
    classes : ndarray of shape (n_classes,)

    Returns
    -------
    ndarray of shape (n, n_classes)
    """
    return _spread(proba, seen, classes, 0.0)


def spread_decisions(decisions, seen, classes):
    """Put an expert's columns where all classes have them.

    Others are one less than the least: below all that the expert has seen.

    Parameters
    ----------
    decisions : ndarray of shape (n,) or (n, n_seen)
        One column for two classes seen.
    seen : ndarray of shape (n_seen,)
    classes : ndarray of shape (n_classes,)

    Returns
    -------
    ndarray of shape (n,) or (n, n_classes)
        One column for two classes in all, as everywhere.
    """
    if len(seen) == len(classes):
        return decisions
    if len(seen) == 2 and decisions.ndim == 1:
        decisions = np.column_stack([-decisions, decisions])
    least = decisions.min(axis=1, keepdims=True)
    spread = _spread(decisions, seen, classes, least - 1)
    return spread[:, 1] - spread[:, 0] if len(classes) == 2 else spread


def _spread(columns, seen, classes, unseen):
    """Columns of all classes, with the values given in those of the unseen."""
    if len(seen) == len(classes):
        return columns
    spread = np.empty((len(columns), len(classes)), columns.dtype)
    spread[:] = unseen
    spread[:, np.searchsorted(classes, seen)] = columns
    return spread


def merge_answers(answers, n_models):
    """Put each expert's rows where they belong.

    Parameters
    ----------
    answers : list of (rows, ndarray of shape (n_rows, ...))
    n_models : int
    """
    dtype = np.result_type(*(answer.dtype for _, answer in answers))
    merged = np.empty((n_models, *answers[0][1].shape[1:]), dtype)
    for rows, answer in answers:
        merged[rows] = answer
    return merged


def n_outputs(expert, default):
    """Width of an expert's representation, if it can tell."""
    if not hasattr(expert, "get_feature_names_out"):
        return default
    return len(expert.get_feature_names_out())
