"""Distances between models, from one pass over their weights and O(n) memory."""

import math

import numpy as np
import torch

from .._registry import saved
from ..probing.batches import LowRankBatch
from ..probing.deltas import delta_norms
from ..probing.device import as_array
from ..probing.spectral import frobenius_norms, thin_svd_of_product

# Neighbours that a model's branch is measured against; see `pendant_lengths`.
# More of them reach into other branches where branches are small.
_N_NEIGHBOURS = 5
_BLOCK = 1024
# Singular values below this share of the largest are no direction of an adapter.
_RANK_TOLERANCE = 1e-5
# Squared distances between models of norms in between are far from float32's limits.
_SMALLEST_NORM, _LARGEST_NORM = 1e-15, 1e18


@saved
class Sketcher:
    """Project weights at random from both sides, ``L W R``.

    Squared distances between projections are those between weights up to a relative
    error of about ``sqrt(2) / size`` for weights of many directions. Weights of
    `size ** 2` entries at most are not projected but flattened, and nothing is lost.

    Parameters
    ----------
    weight_shape : (int, int)
    size : int
    generator : torch.Generator
    """

    def __init__(self, weight_shape, size, generator):
        d_out, d_in = weight_shape
        self.left = self.right = None
        if d_out * d_in <= size**2:
            return
        # A thin side is kept whole, and the other gets what that leaves over.
        k_out = min(d_out, max(size, size**2 // d_in))
        k_in = min(d_in, max(size, size**2 // d_out))
        if k_out < d_out:
            self.left = _draw(k_out, d_out, generator)
        if k_in < d_in:
            self.right = _draw(k_in, d_in, generator)

    def sketch(self, weights, device):
        """Return projections ``(n, m)`` and squared norms ``(n,)``.

        Norms are about the mean entry, because that says nothing of descent: the
        gains of any two normalisation layers are alike, all near one.
        """
        rows, norms = [], []
        for batch in weights.batches(device):
            rows.append(as_array(self._project(batch).flatten(1)))
            norms.append(as_array(_centred_norms(batch)).astype(np.float64))
        norms = np.concatenate(norms)
        _check_size(norms)
        return np.concatenate(rows), norms**2

    def _project(self, batch):
        B, A = batch if isinstance(batch, LowRankBatch) else (batch, None)
        outer = B if A is None else A
        if self.left is not None:
            B = self.left.to(B) @ B
        if A is None:
            outer = B
        if self.right is not None:
            outer = outer @ self.right.to(outer).mT
        return outer if A is None else B @ outer


def _draw(k, d, generator):
    return torch.randn(k, d, generator=generator) / math.sqrt(k)


def _centred_norms(batch):
    if isinstance(batch, LowRankBatch):
        return delta_norms(batch)
    flat = batch.flatten(1)
    return frobenius_norms((flat - flat.mean(dim=1, keepdim=True))[:, None])


def _check_size(norms):
    """Refuse weights whose squared distances would leave the range of float32."""
    largest = norms.argmax()
    if norms[largest] < _LARGEST_NORM and not 0 < norms[largest] < _SMALLEST_NORM:
        return
    raise ValueError(
        f"The weights of model {largest} have norm {norms[largest]:.1e}, the largest "
        f"of all. Distances are computed for norms from {_SMALLEST_NORM:.0e} to "
        f"{_LARGEST_NORM:.0e}: multiply all weights by one number."
    )


def squared_distances(F, G=None):
    """Squared Euclidean distances between rows, float32, computed in float64."""
    shift = F.mean(axis=0, dtype=np.float64)
    columns = F - shift if G is None else G - shift  # (m, k)
    column_norms = np.einsum("ij,ij->i", columns, columns)
    D2 = np.empty((len(F), len(columns)), dtype=np.float32)
    for start in range(0, len(F), _BLOCK):
        part = slice(start, start + _BLOCK)
        rows = F[part] - shift
        norms = np.einsum("ij,ij->i", rows, rows)
        block = norms[:, None] + column_norms - 2 * rows @ columns.T
        # What rounding leaves of the distance between equal rows is no distance.
        floor = 1e-13 * (norms[:, None] + column_norms)
        D2[part] = np.where(block > floor, block, 0)
    if G is None:
        np.fill_diagonal(D2, 0)
        D2 = np.minimum(D2, D2.T)
    return D2


def relative(D2, norms, other_norms=None):
    """Divide squared distances by the sum of squared norms.

    Unrelated weights are near 1 whatever their size; twins are 0.
    """
    other_norms = norms if other_norms is None else other_norms
    sums = (norms[:, None] + other_norms).astype(np.float32)
    return np.divide(D2, sums, out=(D2 > 0).astype(np.float32), where=sums > 0)


def pendant_lengths(D2):
    r"""Squared length of the pendant branch of each model, ``(n,)``.

    A pendant branch, in phylogenetics, joins a leaf to the rest of its tree: it is what
    a model was trained by itself. Fine-tunes go off in directions almost at right
    angles, so that squared distances add up along branches. Model i then leaves the
    path from j to k at the squared distance
    :math:`(d_{ij}^2 + d_{ik}^2 - d_{jk}^2) / 2`, the Gromov product of j and k at i,
    which is least where j and k are on either side of its branch. A low quantile over
    pairs of nearest neighbours stands for that minimum.
    """
    n = len(D2)
    k = min(_N_NEIGHBOURS, n - 1)
    if k < 2:
        return np.zeros(n)
    lengths = np.empty(n)
    pairs = np.triu_indices(k, 1)
    for i in range(n):
        nearest = np.argpartition(D2[i], k)[: k + 1]
        nearest = nearest[nearest != i][:k]
        own = D2[i, nearest].astype(np.float64)
        products = own[:, None] + own - D2[np.ix_(nearest, nearest)]
        lengths[i] = np.quantile(products[pairs] / 2, 0.1)
    return np.maximum(lengths, 0)


def branch_distances(D2, norms):
    """Relative squared distances without the models' pendant branches.

    Siblings are near 0 however long either was trained.
    """
    lengths = pendant_lengths(D2).astype(np.float32)
    between = np.maximum(D2 - lengths[:, None] - lengths, 0)
    np.fill_diagonal(between, 0)
    return relative(between, norms)


@saved
class SubspaceSketcher:
    """Describe adapters by the subspaces that they write to and read from.

    Parameters
    ----------
    weight_shape : (int, int)
    size : int
    generator : torch.Generator
    """

    def __init__(self, weight_shape, size, generator):
        self.projections = [
            _draw(size, d, generator) if d > size else None for d in weight_shape
        ]

    def sketch(self, weights, device):
        """Return unit features of both subspaces, side by side, ``(n, m)``."""
        rows = []
        for batch in weights.batches(device):
            _, P, S, Q = thin_svd_of_product(*batch)
            kept = (S > _RANK_TOLERANCE * S[:, :1])[:, None]
            features = []
            for basis, draw in zip((P, Q), self.projections, strict=True):
                basis = basis * kept
                if draw is not None:
                    basis = draw.to(basis) @ basis
                gram = basis @ basis.mT  # (b, k, k)
                upper = torch.triu_indices(*gram.shape[1:])
                features.append(gram[:, upper[0], upper[1]])
            joined = torch.cat([torch.nn.functional.normalize(f) for f in features], 1)
            rows.append(as_array(joined))
        return np.concatenate(rows)
