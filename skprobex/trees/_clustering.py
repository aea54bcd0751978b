"""ModelTreeClustering."""

from functools import partial
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted

from .._base import all_or_nothing
from .._reading import ReadsWeights
from .._registry import saved
from .._sklearn import Interval, StrOptions, _fit_context
from .._typing import Device, RandomState, Self
from .._warnings import listed, warn
from ..probing.device import resolve_device
from ..saving import Saveable
from ..weights import WeightsLike
from ._architectures import split_forms
from ._linkage import cut_at, cut_into, join
from ._tree_models import DenseComparison, find_adapter_trees


@saved
class ModelTreeClustering(Saveable, ReadsWeights, ClusterMixin, BaseEstimator):
    r"""Find out which models descend from one base.

    Models of another architecture are of another Model Tree. Within an architecture
    the weights tell: models are compared by the squared distance of one of their
    layers relative to its size,

    .. math:: d_{ij} = \frac{\|X_i - X_j\|^2}{\|X_i\|^2 + \|X_j\|^2},

    norms taken about the mean entry. Layers trained from different initial weights are
    at almost right angles, so that d is near 1 whatever they have learnt; fine-tunes of
    one base keep most of it, for how long ever they were trained. Models are merged by
    single linkage, and the merges are cut in the widest gap between d = 0.1 and 0.9.

    Weights are read once and projected at random to at most 4,096 numbers for each
    model, so that memory is linear in the number of models and flat in their size; the
    n^2 distances are those of at most 5,000 models, and the rest go to the nearest.

    Parameters
    ----------
    n_trees : int, default=None
        Number of trees. None: as many as there are unrelated ones. More than that
        divides trees into their branches: models fine-tuned from one descendant of the
        base. What is compared then is how far models were trained in common, without
        what each was trained by itself, which may be far longer.
    layer : str, default=None
        The layer to look at, where W holds several. None takes one from the middle of
        those of the shape that most layers have, for each architecture.
    outlier_threshold : "auto", float or None, default="auto"
        Relative squared distance from a centre beyond which `predict` says -1.
        ``"auto"`` is, for each tree, halfway between its farthest model and the nearest
        of another tree (1, if that is nearer, as unrelated weights are). None: never.
    device : str, default="auto"
        ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or
        ``"mps"``.
    random_state : int, RandomState instance or None, default=0
        Draws the projection of large layers.

    Attributes
    ----------
    labels_ : ndarray of shape (n_models,)
        The tree of each model. Tree 0 is the largest.
    n_trees_ : int
        Number of trees found.
    centers_ : list of ndarray of shape (d_out, d_in)
        Robust centre of each tree (see `ProbeXClassifier`), an estimate of its base;
        None for adapters, whose base is not in their files.
    layers_ : list of str or None
        The layer looked at in each tree, where W held several.
    distances_ : ndarray of shape (n_models, n_trees)
        Relative squared distance of each model from each centre; infinite between
        models and trees of different architectures. For adapters of a tree that was
        divided, distances of their subspaces; else 0.
    linkage_ : ndarray of shape (n_models - 1, 4) or None
        The merges, as :func:`scipy.cluster.hierarchy.linkage` has them; None if not
        all models were compared.
    weight_shape_ : tuple of (int, int)
        The layer's shape, where W is one layer.
    n_features_in_ : int
        d_out, where W is one layer.
    feature_names_in_ : ndarray of shape (d_out,)
        Column names, where `fit` saw a data frame of 1-D weights.

    See Also
    --------
    TreeExperts : An expert for each tree.
    recover_heritage : Who descends from whom within a tree.

    Notes
    -----
    What cannot be told from adapters (LoRA): they hold the change, not the base, and
    changes are at right angles to each other within a tree as well. Adapters are
    therefore divided by shape and by the base that their metadata declare, and no
    further if `n_trees` is None. With `n_trees` they are divided by the subspaces that
    they write to and read from: a layer between hidden units reads and writes in
    directions that are its base's own. A side that all bases share, such as the
    input's, tells nothing. Adapters of an unseen base of the same shape are not
    refused.

    Bases that have an ancestor in common are one tree by definition, and are found as
    one; `n_trees` divides it.

    References
    ----------
    .. [1] E. Horwitz, B. Cavia, J. Kahana, Y. Hoshen, "Learning on Model Weights using
       Tree Experts", CVPR 2025, arXiv 2410.13569.

    Examples
    --------
    >>> from skprobex.datasets import make_digit_jungle
    >>> from skprobex.trees import ModelTreeClustering
    >>> jungle = make_digit_jungle(n_models=12, n_trees=3, cache=False)
    >>> trees = ModelTreeClustering().fit(jungle.data)
    >>> trees.n_trees_
    3
    >>> bool((trees.predict(jungle.data) == trees.labels_).all())
    True
    """

    _parameter_constraints = {
        "n_trees": [None, Interval(Integral, 1, None, closed="left")],
        "layer": [None, str],
        "outlier_threshold": [
            StrOptions({"auto"}),
            Interval(Real, 0, None, closed="left"),
            None,
        ],
        "device": [str, torch.device],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_trees: int | None = None,
        *,
        layer: str | None = None,
        outlier_threshold: float | Literal["auto"] | None = "auto",
        device: Device = "auto",
        random_state: RandomState = 0,
    ) -> None:
        self.n_trees = n_trees
        self.layer = layer
        self.outlier_threshold = outlier_threshold
        self.device = device
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    @all_or_nothing
    def fit(self, W: WeightsLike, y: Any = None) -> Self:
        """Find the trees.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            One layer of each model; a `ModelCollection`, or a dict of weights; or a
            list of arrays, one for each model, whose shapes may differ.
        y : None
            Ignored.

        Returns
        -------
        ModelTreeClustering
            The fitted estimator itself.

        Raises
        ------
        ValueError
            More trees than models, or fewer than architectures; NaN or infinite
            weights.
        """
        for name in ("weight_shape_", "n_features_in_", "feature_names_in_"):
            self.__dict__.pop(name, None)  # of a fit before, on another kind of W
        device = resolve_device(self.device)
        random_state = check_random_state(self.random_state)
        parts = split_forms(partial(self._read_layer, reset=True), W, self.layer)
        n_models = sum(len(part.positions) for part in parts)
        self._check_n_trees(parts, n_models)

        self._publish(parts, self._find(parts, device, random_state), n_models)
        if self.n_trees is not None and self.n_trees_ < self.n_trees:
            warn(
                f"Only {self.n_trees_} of n_trees={self.n_trees} trees were found: "
                "models are equal, or equally far apart.",
            )
        return self

    def predict(self, W: WeightsLike) -> np.ndarray:
        """Find the tree of each model.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            As in fit.

        Returns
        -------
        ndarray of shape (n_models,)
            The tree, or -1 for a model of no known tree; see `outlier_threshold`.
        """
        return self._route(W, self.outlier_threshold)[0]

    def _route(self, W, threshold):
        """Labels with outliers at -1, and distances to all centres."""
        check_is_fitted(self)
        device = resolve_device(self.device)
        read = None
        # Else fit saw several forms, or a collection: there is no one shape to expect.
        if hasattr(self, "weight_shape_"):
            read = partial(self._read_layer, reset=False)
        parts = split_forms(read, W, self.layer, forms=self._forms)
        n_models = sum(len(part.positions) for part in parts)
        labels = np.full(n_models, -1, dtype=np.int64)
        distances = np.full((n_models, self.n_trees_), np.inf, dtype=np.float32)
        for part in parts:
            if part.form is None:
                continue
            i = self._forms.index(part.form)
            numbers, trees = self._numbers[i], self._trees[i]
            own, own_distances = trees.route(part.weights, device)
            distances[np.ix_(part.positions, numbers)] = own_distances
            labels[part.positions] = numbers[own]
            if threshold is not None:
                refused = trees.outliers(own, own_distances, threshold)
                labels[part.positions[refused]] = -1
        return labels, distances

    def _check_n_trees(self, parts, n_models):
        if self.n_trees is None:
            return
        if self.n_trees > n_models:
            raise ValueError(
                f"n_trees={self.n_trees} is more than there are models, {n_models}."
            )
        if self.n_trees < len(parts):
            raise ValueError(
                f"n_trees={self.n_trees}, but there are models of {len(parts)} "
                "architectures or declared bases, each a tree at least: "
                f"{listed(part.form.shape for part in parts)}."
            )
        adapters = any(part.form.is_low_rank for part in parts)
        if len(parts) > 1 and self.n_trees > len(parts) and adapters:
            raise ValueError(
                f"n_trees={self.n_trees} does not say how the {len(parts)} groups of "
                "different shapes or declared bases are to be divided: leave it None, "
                "or cluster one group (see models.groups) at a time."
            )

    def _find(self, parts, device, random_state):
        """Find the trees of each part."""
        compared = [
            DenseComparison(part.weights, device, random_state)
            for part in parts
            if not part.form.is_low_rank
        ]
        # Among several parts, adapters are a tree each.
        n_adapter_trees = self.n_trees if self.n_trees and len(parts) == 1 else 1
        n_dense_trees = self.n_trees
        if self.n_trees is not None:
            n_dense_trees = self.n_trees - (len(parts) - len(compared))
        divided = zip(compared, _divide(compared, n_dense_trees), strict=True)
        found = []
        for part in parts:
            if part.form.is_low_rank:
                trees = find_adapter_trees(
                    part.weights, n_adapter_trees, device, random_state
                )
            else:
                comparison, labels = next(divided)
                trees = comparison.describe(labels)
            found.append(trees)
        return found

    def _publish(self, parts, found, n_models):
        """Number the trees over all parts, the largest first, and set attributes."""
        order = []  # size, first model, part and number in it of each tree
        for i, (part, own) in enumerate(zip(parts, found, strict=True)):
            for tree in range(len(own.centers)):
                positions = part.positions[own.labels == tree]
                order.append((-len(positions), positions[0], i, tree))
        order.sort()
        self.n_trees_ = len(order)
        self.labels_ = np.empty(n_models, dtype=np.int64)
        self.distances_ = np.full((n_models, len(order)), np.inf, dtype=np.float32)
        self.centers_, self.layers_ = [], []
        self._forms = [part.form for part in parts]
        self._trees = [own.trees for own in found]
        self._numbers = [np.empty(len(own.centers), dtype=np.int64) for own in found]
        for number, (_, _, i, tree) in enumerate(order):
            part, own = parts[i], found[i]
            self.labels_[part.positions[own.labels == tree]] = number
            self.distances_[part.positions, number] = own.distances[:, tree]
            self.centers_.append(own.centers[tree])
            self.layers_.append(part.form.layer)
            self._numbers[i][tree] = number
        merges = [
            (part.positions, own.linkage)
            for part, own in zip(parts, found, strict=True)
        ]
        whole = all(len(Z) == len(positions) - 1 for positions, Z in merges)
        self.linkage_ = join(merges, n_models) if whole else None

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        return tags


def _divide(compared, n_trees):
    """Labels of the models of each comparison, of as many trees in all as asked for.

    Parameters
    ----------
    compared : list of DenseComparison
    n_trees : int or None
        None: as many as each finds.
    """
    labels = [comparison.divide() for comparison in compared]
    n_found = sum(own.max() + 1 for own in labels)
    if not compared or n_trees in (None, n_found):
        return labels
    if n_trees > n_found:
        for comparison in compared:
            comparison.merge_branches()
    if len(compared) == 1:
        return [cut_into(compared[0].linkage, n_trees)]
    # Undo the highest merges, wherever they are: the cut is between the last that stays
    # and the first that is undone.
    heights = np.concatenate([comparison.linkage[:, 2] for comparison in compared])
    n_undone = n_trees - len(compared)
    highest = np.sort(heights)[::-1]
    cut = np.inf if n_undone == 0 else np.nextafter(highest[n_undone - 1], -np.inf)
    return [cut_at(comparison.linkage, cut) for comparison in compared]
