"""The views: which matrix is computed from a delta.

Every matrix view is ``L diag(g(s)) R^T``, built from the delta's thin singular value
decomposition ``P diag(s) Q^T``: the bases L and R say which sides it looks at, the gain
g how loud each singular direction is heard.

======== === === =============== ====================================================
view     L   R   gain g(s)       answers to
======== === === =============== ====================================================
xu       P   Q   s               what moved, and where to
xtu      Q   P   s               the same, transposed
xtxu     Q   Q   s^2             which inputs drove the change, whatever the outputs
xxtu     P   P   s^2             which outputs the change feeds
log_xtx  Q   Q   log(1 + s^2/e)  as xtxu, with weak directions heard as well
log_xxt  P   P   log(1 + s^2/e)  as xxtu, with weak directions heard as well
======== === === =============== ====================================================

``spectrum`` is a vector: the log singular values and the log norm.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from .spectral import rows, unrow

# log(1 + s^2 / EPSILON): the square of the singular value, as a share of the delta's
# squared norm, at which a direction begins to be heard.
EPSILON = 1e-3
# Squared singular values below this share of the squared norm are, in float32, rounding
# errors: the spectrum does not look below.
ENERGY_FLOOR = 1e-5


@dataclass(frozen=True)
class View(ABC):
    """What is computed from a delta.

    Attributes
    ----------
    name : str
    """

    name: str

    @property
    @abstractmethod
    def sides(self):
        """The sides of the layer that it looks at, some of "left" and "right"."""

    @property
    @abstractmethod
    def kind(self):
        """What it looks at, however loud: views of a kind tell much the same."""

    @abstractmethod
    def shape(self, weight_shape):
        """Rows and columns of the view of a layer ``(d_out, d_in)``."""

    @abstractmethod
    def probe(self, factors, probed):
        """Compute the features of a batch of deltas.

        Parameters
        ----------
        factors : SpectralFactors
        probed : ProbedView

        Returns
        -------
        Tensor of shape (b, n_features)
        """

    @abstractmethod
    def count_features(self, probed):
        """Count the features of a `ProbedView`."""


@dataclass(frozen=True)
class MatrixView(View):
    """A matrix: the bases it stands on, and the gain of its directions."""

    left: str
    right: str
    logarithmic: bool = False

    @property
    def sides(self):
        return {self.left, self.right}

    @property
    def kind(self):
        return self.left, self.right

    @property
    def symmetric(self):
        return self.left == self.right

    def shape(self, weight_shape):
        sides = dict(zip(("left", "right"), weight_shape, strict=True))
        return sides[self.left], sides[self.right]

    def gain(self, singular):
        """Turn the delta's singular values into the view's, same shape."""
        if self.logarithmic:
            return torch.log1p(singular.square() / EPSILON)
        return singular.square() if self.symmetric else singular

    def probe(self, factors, probed):
        """Compute ``vec(U^T M V)``; the upper triangle where M is symmetric."""
        gain = self.gain(scaled_singular(factors, probed.scale))  # (b, k)
        left = project(getattr(factors, self.left), probed.left)  # (b, n_probes, k)
        if self.symmetric:
            return symmetric_features((left * gain[:, None, :]) @ left.mT)
        right = project(getattr(factors, self.right), probed.right)
        return ((left * gain[:, None, :]) @ right.mT).flatten(1)

    def count_features(self, probed):
        n_left, n_right = probed.left.shape[1], probed.right.shape[1]
        return n_left * (n_left + 1) // 2 if self.symmetric else n_left * n_right


@dataclass(frozen=True)
class SpectrumView(View):
    """A vector: log singular values of the normalised delta, and its log norm before.

    Singular values that are missing or zero have one constant value, so that the rank a
    delta is stored with does not matter; nor does the unit of the weights.
    """

    @property
    def sides(self):
        return set()

    @property
    def kind(self):
        return self.name

    def shape(self, weight_shape):
        return min(weight_shape) + 1, 0

    def probe(self, factors, probed):
        return self.values(factors, probed.length, probed.scale)

    def values(self, factors, length, scale):
        """Compute the spectrum, ``(b, length + 1)``.

        Parameters
        ----------
        factors : SpectralFactors
        length : int
            Number of singular values; missing ones are zero.
        scale : float
            Typical norm of a delta.
        """
        singular = factors.singular[:, :length]
        missing = length - singular.shape[1]
        singular = torch.nn.functional.pad(singular, (0, missing))
        log_norms = torch.log((factors.norms / scale).square() + ENERGY_FLOOR)
        log_singular = torch.log(singular.square() + ENERGY_FLOOR)
        return torch.cat([log_singular, log_norms[:, None]], dim=1) / 2

    def count_features(self, probed):
        return probed.length + 1


MATRIX_VIEWS = {
    view.name: view
    for view in (
        MatrixView("xu", "left", "right"),
        MatrixView("xtu", "right", "left"),
        MatrixView("xtxu", "right", "right"),
        MatrixView("xxtu", "left", "left"),
        MatrixView("log_xtx", "right", "right", logarithmic=True),
        MatrixView("log_xxt", "left", "left", logarithmic=True),
    )
}
SPECTRUM = SpectrumView("spectrum")
VIEWS = {**MATRIX_VIEWS, SPECTRUM.name: SPECTRUM}
# For the closed form xtu is xu transposed: the same features in another order.
AUTO_VIEWS = tuple(name for name in VIEWS if name != "xtu")


def project(bases, basis):
    """Coordinates of vectors ``(b, d, k)`` in a basis ``(d, m)``, ``(b, m, k)``."""
    return unrow(rows(bases) @ basis, len(bases))


def scaled_singular(factors, scale):
    """Scale singular values by the delta's norm over `scale`; None leaves unit norm."""
    if scale is None:
        return factors.singular
    return factors.singular * (factors.norms / scale)[:, None]


def symmetric_features(matrices):
    """Upper triangles, off-diagonal entries times sqrt(2).

    The inner product of two such vectors is that of the matrices.

    Parameters
    ----------
    matrices : Tensor of shape (b, p, p)

    Returns
    -------
    Tensor of shape (b, p * (p + 1) / 2)
    """
    n = matrices.shape[-1]
    upper, columns = torch.triu_indices(n, n, device=matrices.device)
    weights = torch.full_like(matrices[0, 0, :1], math.sqrt(2)).repeat(len(upper))
    weights[upper == columns] = 1.0
    # Several times as fast as indexing by rows and columns.
    return matrices.flatten(1).index_select(1, upper * n + columns) * weights
