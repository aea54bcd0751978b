"""From distances to trees: merges, and where to cut them."""

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

# Squared distances relative to the weights' size between which the cut is looked for.
# Unrelated weights are near 1; what has moved by a tenth is still a fine-tune.
CUT_RANGE = (0.1, 0.9)


def merge(D, method):
    """Merge models bottom-up; a linkage matrix of `n - 1` rows."""
    if len(D) < 2:
        return np.empty((0, 4))
    return linkage(squareform(D, checks=False), method)


def find_cut(heights):
    """Middle of the widest range without a merge, within `CUT_RANGE`.

    One tree merges entirely below it, unrelated models entirely above, so that neither
    needs a case of its own.
    """
    low, high = CUT_RANGE
    inner = np.clip(heights, low, high)
    edges = np.unique(np.concatenate([[low], inner, [high]]))
    widths = np.diff(edges)
    # Of equal ranges the upper one: fewer trees.
    i = len(widths) - 1 - int(np.argmax(widths[::-1]))
    return (edges[i] + edges[i + 1]) / 2


def cut_at(Z, height):
    """Number the clusters left when merges above a height are undone."""
    if len(Z) == 0:
        return np.zeros(1, dtype=np.int64)
    return fcluster(Z, height, "distance").astype(np.int64) - 1


def cut_into(Z, n_clusters):
    """Number the clusters left when the last ``n_clusters - 1`` merges are undone.

    Fewer, where several merges are equally high.
    """
    if len(Z) == 0:
        return np.zeros(1, dtype=np.int64)
    return fcluster(Z, n_clusters, "maxclust").astype(np.int64) - 1


def join(parts, n_models):
    """Join the merges of several parts to those of all models.

    Parameters
    ----------
    parts : list of (positions, Z)
        Models of each part, and their merges.
    n_models : int

    Returns
    -------
    ndarray of shape (n_models - 1, 4)
        Parts are merged last, above all other merges: nothing compares them.
    """
    joined, tops = [], []
    for positions, Z in parts:
        ids = list(positions)
        for left, right, height, size in Z:
            joined.append([ids[int(left)], ids[int(right)], height, size])
            ids.append(n_models + len(joined) - 1)
        tops.append((ids[-1], len(positions)))
    height = max([1.0, *(row[2] for row in joined)])
    top, size = tops[0]
    for other, other_size in tops[1:]:
        height, size = height * 1.1, size + other_size
        joined.append([top, other, height, size])
        top = n_models + len(joined) - 1
    return np.array(joined, dtype=np.float64).reshape(-1, 4)
