"""How well embeddings tell models apart, without a head trained on them."""

from numbers import Integral
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score
from sklearn.utils import check_array, check_consistent_length, column_or_1d

from ._typing import Numbers

__all__ = ["mean_one_class_auc"]

_DETECTORS = ("knn", "mahalanobis")


def mean_one_class_auc(
    Z_train: Numbers,
    y_train: ArrayLike,
    Z_test: Numbers,
    y_test: ArrayLike,
    detector: Literal["knn", "mahalanobis"] = "knn",
    *,
    n_neighbors: int = 2,
) -> float:
    """Mean over classes of how well a class is told from all others, seen alone.

    For each class a detector is fitted on the class's own training embeddings, and
    gives every test embedding an anomaly score. The area under the ROC curve is the
    probability that a model of another class scores higher than one of this class:
    0.5 is chance, 1 is perfect. One-class detection of the ProbeX paper [1]_.

    Parameters
    ----------
    Z_train : array-like of shape (n_train, n_dimensions)
        Embeddings that detectors are fitted on.
    y_train : array-like of shape (n_train,)
        Their classes.
    Z_test : array-like of shape (n_test, n_dimensions)
        Embeddings that are scored.
    y_test : array-like of shape (n_test,)
        Their classes. A class that is not in `y_train` is an anomaly to all.
    detector : {"knn", "mahalanobis"}, default="knn"
        Mean distance to the nearest training embeddings of the class, or squared
        Mahalanobis distance from their mean, with Ledoit and Wolf's covariance.
    n_neighbors : int, default=2
        For ``detector="knn"``; at most the size of the class.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        A class of `y_train` without test embeddings, or without any of other classes
        to tell it from.

    References
    ----------
    .. [1] E. Horwitz, B. Cavia, J. Kahana, Y. Hoshen, "Learning on Model Weights using
       Tree Experts", CVPR 2025, arXiv 2410.13569.

    Examples
    --------
    >>> from skprobex import ProbeXClassifier
    >>> from skprobex.datasets import make_model_tree
    >>> from skprobex.metrics import mean_one_class_auc
    >>> W, y = make_model_tree(
    ...     90, (16, 12), view="xtxu", random_state=0, return_X_y=True
    ... )
    >>> clf = ProbeXClassifier(n_components=2).fit(W[:60], y[:60])
    >>> Z = clf.transform(W)
    >>> mean_one_class_auc(Z[:60], y[:60], Z[60:], y[60:]) > 0.9
    True
    """
    Z_train, Z_test = check_array(Z_train), check_array(Z_test)
    y_train, y_test = column_or_1d(y_train), column_or_1d(y_test)
    check_consistent_length(Z_train, y_train)
    check_consistent_length(Z_test, y_test)
    if detector not in _DETECTORS:
        raise ValueError(f"detector must be one of {_DETECTORS}, got {detector!r}.")
    if not isinstance(n_neighbors, Integral) or n_neighbors < 1:
        raise ValueError(
            f"n_neighbors must be an integer of at least 1, got {n_neighbors!r}."
        )
    scores = []
    for label in np.unique(y_train):
        is_other = y_test != label
        if is_other.all() or not is_other.any():
            among = "none of it" if is_other.all() else "nothing else"
            raise ValueError(
                f"Class {label} cannot be told from others: there is {among} among the "
                "test embeddings. Add some, or leave the class out of y_train."
            )
        own = Z_train[y_train == label]
        if detector == "mahalanobis" and len(own) < 2:
            raise ValueError(
                f"Class {label} has one training embedding, and detector='mahalanobis' "
                "needs two: add some, or use detector='knn'."
            )
        if detector == "knn":
            from sklearn.neighbors import NearestNeighbors

            neighbors = NearestNeighbors(n_neighbors=min(n_neighbors, len(own)))
            distances = neighbors.fit(own).kneighbors(Z_test)[0].mean(axis=1)
        else:
            from sklearn.covariance import LedoitWolf

            distances = LedoitWolf().fit(own).mahalanobis(Z_test)
        scores.append(roc_auc_score(is_other, distances))
    return float(np.mean(scores))
