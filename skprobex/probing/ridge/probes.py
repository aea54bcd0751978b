"""Probes from the training models (HOSVD), and the features they give."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from ..._registry import saved
from ..deltas import RepeatedPasses, root_mean_square
from ..linalg import eigh_descending, fix_signs, gram, qr
from ..spectral import rows
from ..views import AUTO_VIEWS, VIEWS, View, project, scaled_singular

# Sides wider than this are first projected to a subspace of as many dimensions, or of
# three times as many as probes. Measured on layers of 64 with 8 to 16 probes: as
# accurate as the whole side; twice as many lose up to a point on LoRA layers.
MIN_SUBSPACE = 192


class Candidate(NamedTuple):
    """A view, and whether its deltas are scaled to unit norm.

    None: the view is that of both, before any scaling.
    """

    view: View
    normalize: bool | None


def list_candidates(names, normalize):
    """List what is to be probed.

    Parameters
    ----------
    names : "auto" or tuple of str
    normalize : "auto" or bool

    Returns
    -------
    list of Candidate
    """
    views = [VIEWS[name] for name in (AUTO_VIEWS if names == "auto" else names)]
    options = (True, False) if normalize == "auto" else (normalize,)
    candidates = [Candidate(view, o) for o in options for view in views if view.sides]
    # The spectrum is that of the delta before normalising: once is enough.
    return candidates + [Candidate(view, None) for view in views if not view.sides]


@saved
@dataclass
class ProbedView:
    """One view, its probes, and its scale among other views.

    Attributes
    ----------
    name : str
        The view.
    scale : float or None
        Norm that deltas are divided by; None: each by its own.
    left, right : Tensor of shape (d, n_probes) or None
        U and V. One tensor on both sides of a symmetric view; None for ``spectrum``.
    length : int
        Number of singular values in ``spectrum``.
    spread : float
        Root mean square length of the centred training features.
    """

    name: str
    scale: float | None
    left: torch.Tensor | None = None
    right: torch.Tensor | None = None
    length: int = 0
    spread: float = 1.0

    @property
    def view(self):
        return VIEWS[self.name]

    @property
    def n_features(self):
        return self.view.count_features(self)

    def features(self, factors):
        """Compute the features over their spread, ``(b, n_features)``."""
        return self.view.probe(factors, self) / self.spread

    def coefficient_matrices(self, coef):
        """Put coefficients on ``vec(U^T M V)`` back into matrices C.

        Parameters
        ----------
        coef : ndarray of shape (n_outputs, n_features)
            Of a matrix view.

        Returns
        -------
        ndarray of shape (n_outputs, n_probes, n_probes)
            Such that ``coef @ vec(U^T M V)`` is ``<C, U^T M V>``.
        """
        n_left, n_right = self.left.shape[1], self.right.shape[1]
        if not self.view.symmetric:
            return coef.reshape(-1, n_left, n_right)
        upper, columns = np.triu_indices(n_left)
        # Off the diagonal a feature is sqrt(2) times its entry, which C holds twice.
        halves = np.where(upper == columns, 1.0, 0.5**0.5) * coef
        matrices = np.zeros((len(coef), n_left, n_left), dtype=coef.dtype)
        matrices[:, upper, columns] = halves
        matrices[:, columns, upper] = halves
        return matrices

    def sensitivities(self, coef, side):
        """Squared sensitivity of what coefficients predict to each dimension of a side.

        Parameters
        ----------
        coef : ndarray of shape (n_outputs, n_features)
            On these features; the view holds arrays.
        side : {"left", "right"}
            A side that the view looks at.

        Returns
        -------
        ndarray of shape (d,)
            They sum to the squared norm of the coefficients.
        """
        matrices = self.coefficient_matrices(coef)  # (n_outputs, p, q)
        if self.view.left == side:
            moments = np.einsum("tpk,tqk->pq", matrices, matrices)
            probes = self.left
        else:
            moments = np.einsum("tkp,tkq->pq", matrices, matrices)
            probes = self.right
        return ((probes @ moments) * probes).sum(axis=1)


class SubspaceDeltas(RepeatedPasses):
    """Deltas of wide layers, in coordinates of a subspace on each side.

    The subspace is the range of ``sum L log(1 + s^2 / e) L^T`` over all models, found
    from one random test matrix. Probes are looked for within it: no matrix as large as
    the side squared is formed.

    Parameters
    ----------
    deltas : DecomposedDeltas
        What they keep is let go of, where the coordinates are kept.
    sides : set of {"left", "right"}
        The sides that the views look at; of the others nothing is kept.
    n_probes : int
    generator : torch.Generator
    progress : callable, optional
        Called with the number of models that were decomposed.

    Attributes
    ----------
    norms : Tensor of shape (n_models,)
    bases : dict of str to Tensor of shape (d, width)
        The subspaces, of sides wider than them.
    """

    def __init__(self, deltas, sides, n_probes, generator, progress=lambda n: None):
        width = max(MIN_SUBSPACE, 3 * n_probes)
        log_gain = VIEWS["log_xtx"].gain
        tests, sums = {}, {}
        self.norms, self.n_bytes = [], 0
        for factors in deltas:
            progress(len(factors.norms))
            self.norms.append(factors.norms)
            for side in sides:
                basis = getattr(factors, side)  # (b, d, k)
                n_kept = min(width, basis.shape[1]) * len(basis) * basis.shape[2]
                self.n_bytes += n_kept * basis.itemsize
            gain = log_gain(factors.singular).reshape(-1, 1)
            # In one order, so that the same seed draws the same matrices.
            for side in sorted(sides):
                vectors = rows(getattr(factors, side))  # (b * k, d)
                d = vectors.shape[1]
                if d <= width:
                    continue
                if side not in tests:
                    test = torch.randn(d, width, generator=generator)
                    tests[side] = test.to(vectors.device, vectors.dtype)
                seen = gain * (vectors @ tests[side])  # (b * k, width)
                sums[side] = sums.get(side, 0) + vectors.T @ seen
        self.norms = torch.cat(self.norms)
        self.bases = {side: qr(total)[0] for side, total in sums.items()}
        self._deltas, self._unseen = deltas, {"left", "right"} - sides

    def _compute(self):
        # What is kept here is all that is looked at again.
        for factors in self._deltas.once() if self.is_kept else self._deltas:
            projected = {
                side: project(getattr(factors, side), basis)
                for side, basis in self.bases.items()
            }
            yield factors._replace(**projected, **dict.fromkeys(self._unseen))

    def lift(self, probes, side):
        """Take probes back from the subspace to the weights, ``(d, n_probes)``."""
        return self.bases[side] @ probes if side in self.bases else probes


def fit_features(deltas, candidates, n_probes, generator, progress=lambda n: None):
    """Find the probes of each candidate view, and probe the training models.

    The probes of a view are the leading eigenvectors of ``sum M_i M_i^T`` and
    ``sum M_i^T M_i`` over the training models: the Tucker factors that keep most of
    the views' squared norm (HOSVD; De Lathauwer et al., 2000).

    Parameters
    ----------
    deltas : DecomposedDeltas
    candidates : list of Candidate
    n_probes : int
    generator : torch.Generator
    progress : callable, optional
        Called with the number of models that were decomposed.

    Returns
    -------
    probed : list of ProbedView
    features : list of Tensor of shape (n_models, n_features)
    """
    sides = set().union(*(candidate.view.sides for candidate in candidates))
    deltas = SubspaceDeltas(deltas, sides, n_probes, generator, progress)
    typical_norm = root_mean_square(deltas.norms)
    probed = fit_probes(deltas, candidates, typical_norm, n_probes)
    features, probed = collect_features(deltas, probed)
    return [lift(view, deltas) for view in probed], features


def lift(probed, deltas):
    """Take the probes of a view back from the subspaces to the weights."""
    view = probed.view
    if not view.sides:
        return probed
    left = deltas.lift(probed.left, view.left)
    # One tensor on both sides stays one.
    right = left if view.symmetric else deltas.lift(probed.right, view.right)
    return replace(probed, left=left, right=right)


def fit_probes(deltas, candidates, typical_norm, n_probes):
    """Compute the leading eigenvectors of each candidate's second moments.

    Returns
    -------
    list of ProbedView
        With `spread` not yet known.
    """

    def scale_of(candidate):
        return None if candidate.normalize else typical_norm

    sums = {}
    length = 0
    for factors in deltas:
        length = max(length, factors.singular.shape[1])
        for candidate in candidates:
            if not candidate.view.sides:
                continue
            gain = candidate.view.gain(scaled_singular(factors, scale_of(candidate)))
            for side in candidate.view.sides:
                moment = _second_moment(getattr(factors, side), gain)
                sums[candidate, side] = sums.get((candidate, side), 0) + moment
    probes = {key: leading_eigenvectors(total, n_probes) for key, total in sums.items()}
    probed = []
    for candidate in candidates:
        view, scale = candidate.view, scale_of(candidate)
        if view.sides:
            left, right = (probes[candidate, s] for s in (view.left, view.right))
            probed.append(ProbedView(view.name, scale, left, right))
        else:
            probed.append(ProbedView(view.name, scale, length=length))
    return probed


def collect_features(deltas, probed):
    """Probe every delta, and scale every view to unit spread.

    Returns
    -------
    features : list of Tensor of shape (n_models, n_features), one for each view
    probed : list of ProbedView
        Their spreads known.
    """
    batches = [[view.features(factors) for view in probed] for factors in deltas]
    collected = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    scaled = []
    for view, features in zip(probed, collected, strict=True):
        mean = features.mean(dim=0)
        spread = (features - mean).square().sum(dim=1).mean().sqrt().item()
        # Rounding errors of what is the same for all models are not blown up.
        floor = 100 * torch.finfo(features.dtype).eps * mean.norm().item()
        scaled.append(replace(view, spread=spread if spread > floor else 1.0))
        features /= scaled[-1].spread
    return collected, scaled


def leading_eigenvectors(matrix, n_vectors):
    """Eigenvectors of the largest eigenvalues, signs fixed.

    Returns
    -------
    Tensor of shape (d, min(d, n_vectors))
    """
    _, vectors = eigh_descending(matrix)
    return fix_signs(vectors[:, :n_vectors].T).T.contiguous()


def _second_moment(basis, gain):
    """Sum of ``L g^2 L^T`` over a batch ``(b, d, k)``."""
    return gram(rows(basis) * gain.reshape(-1, 1))
