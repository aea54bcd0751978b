"""Deltas in the coordinates of a subspace of each side, for networks to train on.

The subspaces are those that probes are taken from: the leading left and right singular
directions of all training models (HOSVD; De Lathauwer et al., 2000), with bases L and
R. In the place of a delta D the network sees ``L^T D R``. What it learns there, probes
U and projections V, it computes from D itself with ``R U`` and ``L V``: so the trained
network is taken back, and predicts from weights as they are. What D has outside of the
subspaces is not seen in training.
"""

from dataclasses import dataclass

from .deltas import root_mean_square
from .inputs import factor_names
from .probes import SubspaceDeltas, fit_probes
from .views import MATRIX_VIEWS


@dataclass
class Compression:
    """Orthonormal bases of the subspaces.

    Attributes
    ----------
    bases : dict of str to Tensor of shape (d, size)
        "left" and "right", where the side has more than `size` dimensions.
    """

    bases: dict

    @classmethod
    def fit(cls, deltas, normalize, size, generator):
        """Find the leading directions of the training models.

        Parameters
        ----------
        deltas : DecomposedDeltas
        normalize : bool
        size : int
            Dimensions to keep of each side.
        generator : torch.Generator
        """
        deltas = SubspaceDeltas(deltas, {"left", "right"}, size, generator)
        norm = root_mean_square(deltas.norms)
        (view,) = fit_probes(deltas, [("xu", normalize)], norm, size)
        bases = {s: deltas.lift(getattr(view, s), s) for s in ("left", "right")}
        return cls({s: b for s, b in bases.items() if b.shape[1] < b.shape[0]})

    def shape(self, weight_shape):
        """Shape of a compressed delta, of one of ``(d_out, d_in)``."""
        d_out, d_in = weight_shape
        return self._size("left", d_out), self._size("right", d_in)

    def _size(self, side, d):
        return self.bases[side].shape[1] if side in self.bases else d

    def compress(self, inputs):
        """Compress the inputs of a batch, as `ViewInputs` makes them."""
        inputs = dict(inputs)
        first, last = factor_names(inputs)
        if "left" in self.bases:
            inputs[first] = self.bases["left"].T @ inputs[first]
        if "right" in self.bases:
            inputs[last] = inputs[last] @ self.bases["right"]
        for name in inputs:
            if (basis := self._basis_of_rows(name)) is not None:
                inputs[name] = basis.T @ inputs[name]
        return inputs

    def ones(self, views):
        """A compressed column of ones, and how many, for views with fewer rows now."""
        return {
            name: (basis.sum(dim=0)[:, None], len(basis))
            for name in views
            if (basis := self._basis_of_rows(name)) is not None
        }

    def _basis_of_rows(self, name):
        return self.bases.get(MATRIX_VIEWS[name].left) if name in MATRIX_VIEWS else None

    def restore(self, state):
        """Take a trained network's state back to the weights."""
        return self._convert(state, lambda basis, vectors: basis @ vectors)

    def reduce(self, state):
        """Take the state of a network that was restored to the subspaces."""
        return self._convert(state, lambda basis, vectors: basis.T @ vectors)

    def _convert(self, state, convert):
        state = dict(state)
        for key, vectors in state.items():
            kind, _, name = key.partition(".")
            if kind in ("probes", "projections"):
                view = MATRIX_VIEWS[name]
                side = view.right if kind == "probes" else view.left
                if side in self.bases:
                    state[key] = convert(self.bases[side], vectors)
        return state
