"""The Model Trees among models of one form: found in fit, recognised in predict."""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd

from .._registry import saved
from ..probing.center import robust_center
from ..probing.device import as_array
from ._distances import (
    Sketcher,
    SubspaceSketcher,
    branch_distances,
    relative,
    squared_distances,
)
from ._linkage import cut_at, find_cut, merge

SKETCH_SIZE = 64
# More models than this are not all compared: the rest go to the nearest tree.
N_COMPARED = 5000
# Never a relative: what is as far as unrelated weights are.
_UNRELATED = 1.0


class FoundTrees(NamedTuple):
    """The trees among the models of one form, as fit has found them.

    `labels` are of shape (n_models,), `distances` from the centres of shape
    (n_models, n_trees), and `linkage` are the merges, of fewer than all models where
    not all were compared.
    """

    trees: "DenseTrees | AdapterTree"
    labels: np.ndarray
    distances: np.ndarray
    centers: list
    linkage: np.ndarray


class DenseComparison:
    """Full weights of one form, compared with each other.

    Parameters
    ----------
    weights : weights
    device : torch.device
    random_state : RandomState
        Draws the sketch, and which models are compared where there are very many.

    Attributes
    ----------
    linkage : ndarray of shape (n_compared - 1, 4)
        Merges of the models compared.
    """

    def __init__(self, weights, device, random_state):
        self.weights, self.device = weights, device
        generator = torch.Generator().manual_seed(random_state.randint(2**31 - 1))
        self.sketcher = Sketcher(weights.lifted_shape[1:], SKETCH_SIZE, generator)
        self.sketches, self.norms = self.sketcher.sketch(weights, device)
        n_models = len(self.sketches)
        self.compared = np.arange(n_models)
        if n_models > N_COMPARED:
            drawn = random_state.permutation(n_models)[:N_COMPARED]
            self.compared = np.sort(drawn)
        self._D2 = squared_distances(self.sketches[self.compared])
        distances = relative(self._D2, self.norms[self.compared])
        self.linkage = merge(distances, "single")

    def divide(self):
        """Number the trees of the models compared; how many, the merges say."""
        return cut_at(self.linkage, find_cut(self.linkage[:, 2]))

    def merge_branches(self):
        """Order all merges by branches, so that trees can be cut to any number.

        Unrelated models stay apart to the last.
        """
        labels = self.divide()
        D = branch_distances(self._D2, self.norms[self.compared])
        D += 4 * _UNRELATED * (labels[:, None] != labels)
        self.linkage = merge(D, "average")

    def describe(self, labels):
        """Describe the trees, given the labels of the models compared.

        Parameters
        ----------
        labels : ndarray of shape (n_compared,)

        Returns
        -------
        FoundTrees
            Of all models.
        """
        if len(self.compared) < len(self.norms):
            labels = self._label_all(labels)
        centers = []
        for tree in range(labels.max() + 1):
            own = self.weights[np.flatnonzero(labels == tree)]
            center = robust_center(own, self.device, self.weights.compute_dtype)
            centers.append(as_array(center))
        centroids = _mean_rows(self.sketches, labels)
        norms = [np.sum((c - c.mean()) ** 2, dtype=np.float64) for c in centers]
        norms = np.array(norms)
        distances = _distances_to(centroids, norms, self.sketches, self.norms)
        thresholds = _halfway(distances, labels)
        trees = DenseTrees(self.sketcher, centroids, norms, thresholds)
        return FoundTrees(trees, labels, distances, centers, self.linkage)

    def _label_all(self, labels):
        """Give the models that were not compared to the nearest tree."""
        centroids = _mean_rows(self.sketches[self.compared], labels)
        norms = _mean_rows(self.norms[self.compared], labels)
        distances = _distances_to(centroids, norms, self.sketches, self.norms)
        nearest = distances.argmin(axis=1)
        nearest[self.compared] = labels
        return nearest


@saved
class DenseTrees:
    """Trees among full weights of one form, as predict recognises them.

    Parameters
    ----------
    sketcher : Sketcher
    centroids : ndarray of shape (n_trees, n_features)
        Mean sketch of each tree.
    norms : ndarray of shape (n_trees,)
        Squared norms of the centres about their mean entry.
    thresholds : ndarray of shape (n_trees,)
        The distance from each centre beyond which a model is of no tree.
    """

    def __init__(self, sketcher, centroids, norms, thresholds):
        self.sketcher = sketcher
        self.centroids, self.norms = centroids, norms
        self.thresholds = thresholds

    def route(self, weights, device):
        """Return the nearest trees and all distances."""
        sketches, norms = self.sketcher.sketch(weights, device)
        distances = _distances_to(self.centroids, self.norms, sketches, norms)
        return distances.argmin(axis=1), distances

    def outliers(self, labels, distances, threshold):
        """Mark models that are of no tree."""
        limits = self.thresholds if threshold == "auto" else threshold
        limits = np.broadcast_to(limits, len(self.centroids))[labels]
        return np.take_along_axis(distances, labels[:, None], 1)[:, 0] > limits


def _distances_to(centroids, centroid_norms, sketches, norms):
    """Relative squared distances to the centres, ``(n_models, n_trees)``."""
    return relative(squared_distances(sketches, centroids), norms, centroid_norms)


def _mean_rows(rows, labels):
    """Mean of each tree's own rows."""
    return np.stack([rows[labels == t].mean(axis=0) for t in range(labels.max() + 1)])


def _halfway(distances, labels):
    """Between each tree's farthest model and the nearest one that is not its own."""
    n_trees = distances.shape[1]
    thresholds = np.empty(n_trees)
    for tree in range(n_trees):
        own = labels == tree
        farthest = distances[own, tree].max()
        nearest = min(_UNRELATED, distances[~own, tree].min(initial=_UNRELATED))
        thresholds[tree] = max(farthest, (farthest + nearest) / 2)
    return thresholds


def find_adapter_trees(weights, n_trees, device, random_state):
    """Divide adapters of one form and declared base.

    Parameters
    ----------
    weights : LowRankWeights or LayerWeights
    n_trees : int
        As many as there are is not to be seen in adapters. Fewer are found where fewer
        adapters are distinct.
    device : torch.device
    random_state : RandomState

    Returns
    -------
    FoundTrees
        Without merges, and with None for each centre.
    """
    if n_trees == 1:
        trees = AdapterTree()
        labels, distances = trees.route(weights, device)
    else:
        trees, labels, distances = _divide_subspaces(
            weights, n_trees, device, random_state
        )
    centers = [None] * distances.shape[1]
    return FoundTrees(trees, labels, distances, centers, np.empty((0, 4)))


def _divide_subspaces(weights, n_trees, device, random_state):
    from sklearn.cluster import KMeans

    generator = torch.Generator().manual_seed(random_state.randint(2**31 - 1))
    sketcher = SubspaceSketcher(weights.lifted_shape[1:], SKETCH_SIZE, generator)
    F = sketcher.sketch(weights, device)
    mean = F.mean(axis=0)
    # k trees differ in k - 1 directions; some spare ones for what else differs.
    k = min(n_trees, *F.shape)
    *_, axes = randomized_svd(F - mean, k, random_state=random_state)
    axes = axes.T  # (m, k)
    coordinates = (F - mean) @ axes
    kmeans = KMeans(n_trees, n_init=10, random_state=random_state)
    with warnings.catch_warnings():
        # Fewer distinct models than trees are told of by the caller.
        warnings.simplefilter("ignore")
        labels = kmeans.fit_predict(coordinates)
    # Those of no model are none.
    kept, labels = np.unique(labels, return_inverse=True)
    trees = SubspaceTrees(sketcher, mean, axes, kmeans.cluster_centers_[kept])
    return trees, labels, squared_distances(coordinates, trees.centroids)


@saved
class AdapterTree:
    """Adapters of one form and declared base that are taken for one tree."""

    def route(self, weights, device):
        """Return tree 0, at distance 0, for all."""
        labels = np.zeros(len(weights), dtype=np.int64)
        return labels, np.zeros((len(weights), 1), dtype=np.float32)

    def outliers(self, labels, distances, threshold):
        """Mark none: a factor does not tell whether its base was seen."""
        return np.zeros(len(labels), dtype=bool)


@saved
class SubspaceTrees(AdapterTree):
    """Trees among adapters that write to, and read from, different subspaces.

    Parameters
    ----------
    sketcher : SubspaceSketcher
    mean : ndarray of shape (n_features,)
        Of all sketches.
    axes : ndarray of shape (n_features, n_axes)
        What sketches are projected on.
    centroids : ndarray of shape (n_trees, n_axes)
    """

    def __init__(self, sketcher, mean, axes, centroids):
        self.sketcher = sketcher
        self.mean, self.axes, self.centroids = mean, axes, centroids

    def route(self, weights, device):
        """Return the nearest trees and all distances."""
        F = self.sketcher.sketch(weights, device)
        distances = squared_distances((F - self.mean) @ self.axes, self.centroids)
        return distances.argmin(axis=1), distances
