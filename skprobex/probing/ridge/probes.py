"""Probes from the training models (HOSVD), and the features they give."""

from dataclasses import dataclass

import torch

from ..._registry import saved
from ..deltas import RepeatedPasses, root_mean_square
from ..linalg import eigh_descending, fix_signs, gram, qr
from ..spectral import rows, unrow
from ..views import MATRIX_VIEWS, View, scaled_singular, spectrum, symmetric_features

# Sides wider than this are first projected to a subspace of as many dimensions, or of
# three times as many as probes. Measured on layers of 64 with 8 to 16 probes: as
# accurate as the whole side; twice as many lose up to a point on LoRA layers.
MIN_SUBSPACE = 192


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

    def features(self, factors):
        """Compute ``vec(U^T M_i V) / spread`` of a batch of deltas.

        Returns
        -------
        Tensor of shape (b, n_features)
        """
        if self.name == "spectrum":
            return spectrum(factors, self.length, self.scale) / self.spread
        view = MATRIX_VIEWS[self.name]
        gain = view.gain(scaled_singular(factors, self.scale))  # (b, k)
        left = project(getattr(factors, view.left), self.left)  # (b, n_probes, k)
        if view.symmetric:
            probed = (left * gain[:, None, :]) @ left.mT
            return symmetric_features(probed) / self.spread
        right = project(getattr(factors, view.right), self.right)
        return ((left * gain[:, None, :]) @ right.mT).flatten(1) / self.spread


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

    Attributes
    ----------
    norms : Tensor of shape (n_models,)
    bases : dict of str to Tensor of shape (d, width)
        The subspaces, of sides wider than them.
    """

    def __init__(self, deltas, sides, n_probes, generator):
        width = max(MIN_SUBSPACE, 3 * n_probes)
        loudness = View("log", "", "", logarithmic=True).gain
        tests, sums = {}, {}
        self.norms, self.n_bytes = [], 0
        for factors in deltas:
            self.norms.append(factors.norms)
            for side in sides:
                basis = getattr(factors, side)  # (b, d, k)
                n_kept = min(width, basis.shape[1]) * len(basis) * basis.shape[2]
                self.n_bytes += n_kept * basis.itemsize
            gain = loudness(factors.singular).reshape(-1, 1)
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


def fit_features(deltas, candidates, n_probes, generator):
    """Find the probes of each candidate view, and probe the training models.

    The probes of a view are the leading eigenvectors of ``sum M_i M_i^T`` and
    ``sum M_i^T M_i`` over the training models: the Tucker factors that keep most of
    the views' squared norm (HOSVD; De Lathauwer et al., 2000).

    Parameters
    ----------
    deltas : DecomposedDeltas
    candidates : list of (str, bool)
        Views and whether their deltas are normalised.
    n_probes : int
    generator : torch.Generator

    Returns
    -------
    probed : list of ProbedView
    features : list of Tensor of shape (n_models, n_features)
    """
    views = [MATRIX_VIEWS[name] for name, _ in candidates if name != "spectrum"]
    sides = {side for view in views for side in (view.left, view.right)}
    deltas = SubspaceDeltas(deltas, sides, n_probes, generator)
    typical_norm = root_mean_square(deltas.norms)
    probed = fit_probes(deltas, candidates, typical_norm, n_probes)
    features = collect_features(deltas, probed)
    for view in probed:
        if view.left is not None:
            sides = MATRIX_VIEWS[view.name]
            view.left = deltas.lift(view.left, sides.left)
            view.right = (
                view.left if sides.symmetric else deltas.lift(view.right, sides.right)
            )
    return probed, features


def fit_probes(deltas, candidates, typical_norm, n_probes):
    """Compute the leading eigenvectors of each candidate's second moments.

    Returns
    -------
    list of ProbedView
        With `spread` not yet known.
    """
    sums = {}
    length = 0
    for factors in deltas:
        length = max(length, factors.singular.shape[1])
        for name, normalize in candidates:
            if name == "spectrum":
                continue
            view = MATRIX_VIEWS[name]
            scale = None if normalize else typical_norm
            gain = view.gain(scaled_singular(factors, scale))
            for side in {view.left, view.right}:
                moment = _second_moment(getattr(factors, side), gain)
                key = (name, normalize, side)
                sums[key] = sums.get(key, 0) + moment
    probes = {key: leading_eigenvectors(total, n_probes) for key, total in sums.items()}
    probed = []
    for name, normalize in candidates:
        if name == "spectrum":
            probed.append(ProbedView(name, typical_norm, length=length))
            continue
        view = MATRIX_VIEWS[name]
        scale = None if normalize else typical_norm
        left, right = (
            probes[name, normalize, side] for side in (view.left, view.right)
        )
        probed.append(ProbedView(name, scale, left, right))
    return probed


def collect_features(deltas, probed):
    """Probe every delta, and set the spread of every view.

    Returns
    -------
    list of Tensor of shape (n_models, n_features), one for each view
    """
    batches = [[view.features(factors) for view in probed] for factors in deltas]
    collected = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    for view, features in zip(probed, collected, strict=True):
        mean = features.mean(dim=0)
        spread = (features - mean).square().sum(dim=1).mean().sqrt().item()
        # Rounding errors of what is the same for all models are not blown up.
        floor = 100 * torch.finfo(features.dtype).eps * mean.norm().item()
        view.spread = spread if spread > floor else 1.0
        features /= view.spread
    return collected


def project(bases, basis):
    """Coordinates of vectors ``(b, d, k)`` in a basis ``(d, m)``, ``(b, m, k)``."""
    return unrow(rows(bases) @ basis, len(bases))


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
