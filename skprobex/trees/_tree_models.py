"""The trees of one form: found, described, and recognised again."""

import warnings

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd

from .._registry import saved
from ..probing.center import mean_weights
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


@saved
class DenseTrees:
    """Trees among full weights of one form.

    Parameters
    ----------
    weights : weights
    device : torch.device
    random_state : RandomState
        Draws the sketch, and which models are compared where there are very many.
    """

    is_low_rank = False

    def __init__(self, weights, device, random_state):
        generator = torch.Generator().manual_seed(random_state.randint(2**31 - 1))
        self.sketcher = Sketcher(weights.lifted_shape[1:], SKETCH_SIZE, generator)
        self.sketches, self.norms = self.sketcher.sketch(weights, device)
        n_models = len(self.sketches)
        self.compared = np.arange(n_models)
        if n_models > N_COMPARED:
            drawn = random_state.permutation(n_models)[:N_COMPARED]
            self.compared = np.sort(drawn)
        self.D2 = squared_distances(self.sketches[self.compared])
        self.relative = relative(self.D2, self.norms[self.compared])
        self.linkage = merge(self.relative, "single")

    def find(self):
        """Number the trees that no one has counted."""
        return cut_at(self.linkage, find_cut(self.linkage[:, 2]))

    def refine(self):
        """Order all merges by branches, so that trees can be cut to any number.

        Unrelated models stay apart to the last.
        """
        trees = self.find()
        D = branch_distances(self.D2, self.norms[self.compared])
        D += 4 * _UNRELATED * (trees[:, None] != trees)
        self.linkage = merge(D, "average")

    def settle(self, labels, weights, device):
        """Describe the trees, given the labels of the models compared.

        Returns
        -------
        labels : ndarray of shape (n_models,)
        distances : ndarray of shape (n_models, n_trees)
        centers : list of ndarray of shape (d_out, d_in)
        """
        n_trees = labels.max() + 1
        self._set_centroids(labels, self.compared, n_trees)
        if len(self.compared) < len(self.norms):
            near = self.measure(self.sketches, self.norms).argmin(axis=1)
            near[self.compared] = labels
            labels = near
        centers = []
        for tree in range(n_trees):
            own = weights if n_trees == 1 else _rows(weights, labels == tree)
            center = mean_weights(own, device, weights.compute_dtype)
            centers.append(as_array(center))
        self._set_centroids(labels, np.arange(len(labels)), n_trees, centers)
        distances = self.measure(self.sketches, self.norms)
        self.thresholds = _halfway(distances, labels)
        # What belongs to the training models alone need not be kept.
        del self.sketches, self.norms, self.compared, self.D2, self.relative
        return labels, distances, centers

    def _set_centroids(self, labels, rows, n_trees, centers=None):
        self.centroids = np.stack(
            [self.sketches[rows[labels == t]].mean(axis=0) for t in range(n_trees)]
        )
        if centers is None:
            self.centroid_norms = np.array(
                [self.norms[rows[labels == t]].mean() for t in range(n_trees)]
            )
        else:
            self.centroid_norms = np.array(
                [np.sum((c - c.mean()) ** 2, dtype=np.float64) for c in centers]
            )

    def measure(self, sketches, norms):
        """Relative squared distances to the centres, ``(n_models, n_trees)``."""
        D2 = squared_distances(sketches, self.centroids)
        return relative(D2, norms, self.centroid_norms)

    def route(self, weights, device):
        """Return the nearest trees and all distances."""
        distances = self.measure(*self.sketcher.sketch(weights, device))
        return distances.argmin(axis=1), distances

    def outliers(self, labels, distances, threshold):
        """Mark models that are of no tree."""
        limits = self.thresholds if threshold == "auto" else threshold
        limits = np.broadcast_to(limits, len(self.centroids))[labels]
        return np.take_along_axis(distances, labels[:, None], 1)[:, 0] > limits


@saved
class LowRankTrees:
    """Trees among adapters of one form and declared base.

    Parameters
    ----------
    weights : LowRankWeights or LayerWeights
    n_trees : int
        As many as there are is not to be seen in adapters.
    device : torch.device
    random_state : RandomState
    """

    is_low_rank = True

    def __init__(self, weights, n_trees, device, random_state):
        n_models = len(weights)
        self.sketcher, self.linkage = None, np.zeros((0, 4))
        self.labels = np.zeros(n_models, dtype=np.int64)
        self.distances = np.zeros((n_models, 1), dtype=np.float32)
        if n_trees == 1:
            return
        generator = torch.Generator().manual_seed(random_state.randint(2**31 - 1))
        sketcher = SubspaceSketcher(weights.lifted_shape[1:], SKETCH_SIZE, generator)
        F = sketcher.sketch(weights, device)
        self.mean = F.mean(axis=0)
        # k trees differ in k - 1 directions; some spare ones for what else differs.
        k = min(n_trees, *F.shape)
        *_, axes = randomized_svd(F - self.mean, k, random_state=random_state)
        self.axes = axes.T  # (m, k)
        coordinates = (F - self.mean) @ self.axes
        from sklearn.cluster import KMeans

        kmeans = KMeans(n_trees, n_init=10, random_state=random_state)
        with warnings.catch_warnings():
            # Fewer distinct models than trees are told of by the caller.
            warnings.simplefilter("ignore")
            self.labels = kmeans.fit_predict(coordinates).astype(np.int64)
        self.sketcher, self.centroids = sketcher, kmeans.cluster_centers_
        self.distances = squared_distances(coordinates, self.centroids)

    def keep(self, order):
        """Number the trees anew, and forget those not in `order`."""
        if self.sketcher is not None:
            self.centroids = self.centroids[order]
            self.distances = self.distances[:, order]

    def route(self, weights, device):
        """Return the nearest trees and all distances."""
        if self.sketcher is None:
            labels = np.zeros(len(weights), dtype=np.int64)
            return labels, np.zeros((len(weights), 1), dtype=np.float32)
        F = self.sketcher.sketch(weights, device)
        distances = squared_distances((F - self.mean) @ self.axes, self.centroids)
        return distances.argmin(axis=1), distances

    def outliers(self, labels, distances, threshold):
        """Mark none: a factor does not tell whether its base was seen."""
        return np.zeros(len(labels), dtype=bool)


def _rows(weights, mask):
    """Select models of validated weights."""
    array = getattr(weights, "array", None)
    if array is None:
        return weights[np.flatnonzero(mask)]
    return type(weights)(array[mask])


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
