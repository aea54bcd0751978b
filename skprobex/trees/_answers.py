"""Ask several experts, and merge what they answer to what one estimator would."""

import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor

from .._registry import saved
from .._warnings import warn
from ._clustering import ModelTreeClustering

# They stand in for an expert where there are too few models.
saved(DummyClassifier)
saved(DummyRegressor)

# Log-probability that stands for none: finite, so that scorers take it.
_LEAST = -700.0


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
    named = ", ".join(f"{t} ({len(members[t])} models)" for t in small[:5])
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""
    warn(
        f"{len(small)} of {len(members)} Model Trees have fewer than min_models="
        f"{min_models} models or one class only, and get an expert fitted on the "
        f"models of all trees: {named}{more}.",
    )


def ask(expert, method, W, **params):
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
        decisions = np.maximum(expert.predict_log_proba(rows), _LEAST)
    return decisions[:, 1] - decisions[:, 0] if decisions.shape[1] == 2 else decisions


def zeros(answer):
    """Probability of a class that an expert has not seen."""
    return 0.0


def below_all(answer):
    """Decision value of a class that an expert has not seen."""
    return answer.min(axis=1, keepdims=True) - 1


def spread_columns(answer, seen, classes, unseen):
    """Put an expert's columns where they belong among all classes.

    Parameters
    ----------
    answer : ndarray of shape (n,) or (n, n_seen)
    seen : ndarray of shape (n_seen,)
        Classes that the expert has seen.
    classes : ndarray of shape (n_classes,)
    unseen : callable
        Gives the other columns' values.
    """
    if len(seen) == 2 and answer.ndim == 1:
        if len(classes) == 2:
            return answer
        answer = np.column_stack([-answer, answer])
    if len(seen) == len(classes):
        return answer
    spread = np.empty((len(answer), len(classes)), answer.dtype)
    spread[:] = unseen(answer)
    spread[:, np.searchsorted(classes, seen)] = answer
    # Two classes in all, one of them seen: one column, as everywhere.
    if len(classes) == 2 and unseen is below_all:
        return spread[:, 1] - spread[:, 0]
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
