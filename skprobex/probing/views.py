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
from dataclasses import dataclass

import torch

# log(1 + s^2 / EPSILON): the square of the singular value, as a share of the delta's
# squared norm, at which a direction begins to be heard.
EPSILON = 1e-3
# Squared singular values below this share of the squared norm are, in float32, rounding
# errors: the spectrum does not look below.
ENERGY_FLOOR = 1e-5


@dataclass(frozen=True)
class View:
    """A matrix view: the bases it stands on and the gain of its directions."""

    name: str
    left: str
    right: str
    logarithmic: bool = False

    @property
    def symmetric(self):
        return self.left == self.right

    def shape(self, weight_shape):
        """Rows and columns of the view of a layer ``(d_out, d_in)``."""
        sides = dict(zip(("left", "right"), weight_shape, strict=True))
        return sides[self.left], sides[self.right]

    def gain(self, singular):
        """Turn the delta's singular values into the view's, same shape."""
        if self.logarithmic:
            return torch.log1p(singular.square() / EPSILON)
        return singular.square() if self.symmetric else singular


MATRIX_VIEWS = {
    view.name: view
    for view in (
        View("xu", "left", "right"),
        View("xtu", "right", "left"),
        View("xtxu", "right", "right"),
        View("xxtu", "left", "left"),
        View("log_xtx", "right", "right", logarithmic=True),
        View("log_xxt", "left", "left", logarithmic=True),
    )
}
VIEWS = (*MATRIX_VIEWS, "spectrum")
# For the closed form xtu is xu transposed: the same features in another order.
AUTO_VIEWS = tuple(name for name in VIEWS if name != "xtu")


def scaled_singular(factors, scale):
    """Scale singular values by the delta's norm over `scale`; None leaves unit norm."""
    if scale is None:
        return factors.singular
    return factors.singular * (factors.norms / scale)[:, None]


def spectrum(factors, length, scale):
    """Log singular values of the normalised delta, and its log norm before.

    Singular values that are missing or zero have one constant value, so that the rank a
    delta is stored with does not matter.

    Parameters
    ----------
    factors : SpectralFactors
    length : int
        Number of singular values; missing ones are zero.
    scale : float
        Typical norm of a delta, so that the unit of the weights does not matter.

    Returns
    -------
    Tensor of shape (b, length + 1)
    """
    singular = factors.singular[:, :length]
    missing = length - singular.shape[1]
    singular = torch.nn.functional.pad(singular, (0, missing))
    log_norms = torch.log((factors.norms / scale).square() + ENERGY_FLOOR)[:, None]
    log_singular = torch.log(singular.square() + ENERGY_FLOOR)
    return torch.cat([log_singular, log_norms], dim=1) / 2


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
    rows, columns = torch.triu_indices(n, n, device=matrices.device)
    weights = torch.full_like(matrices[0, 0, :1], math.sqrt(2)).repeat(len(rows))
    weights[rows == columns] = 1.0
    # Several times as fast as indexing by rows and columns.
    return matrices.flatten(1).index_select(1, rows * n + columns) * weights
