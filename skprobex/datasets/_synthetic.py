"""Synthetic Model Trees with the information planted in a view of one's choice."""

from __future__ import annotations

import math
import numbers

import numpy as np
from sklearn.utils import Bunch, check_random_state

from .._typing import Dataset
from ..probing.views import MATRIX_VIEWS, VIEWS

_TASKS = ("classification", "multilabel", "regression")

# Sizes in units of the base, whose Frobenius norm is sqrt(d_out).
_DELTA_NORM = 0.1
# Norm of what tells classes apart in the log views, relative to the strong directions
# beside it. In each of four directions that is a squared singular value of 1e-2: well
# above the 1e-3 at which these views begin to hear, too little for a Gram matrix.
_WEAK = 0.2
# Largest over smallest singular value in the spectrum view.
_SPECTRUM_RANGE = 30.0

_DESCR = """\
Synthetic Model Tree
--------------------
{n} models of shape {shape}: one base plus a delta of its own for each. What {task}
asks for is planted in the view {view!r} with signal {signal} and noise {noise}.
"""


def make_model_tree(
    n_models: int = 100,
    shape: tuple[int, int] = (32, 24),
    *,
    n_classes: int = 3,
    view: str = "xtxu",
    signal: float = 1.0,
    task: str = "classification",
    rank: int = 4,
    noise: float = 0.3,
    random_state: int | np.random.RandomState | None = None,
    dtype: type = np.float32,
    return_X_y: bool = False,
) -> Dataset:
    r"""Draw one Model Tree whose deltas carry a target in a view of one's choice.

    Each model is the base plus a delta, ``W_i = B + D_i``. The target sets a
    non-negative energy :math:`e_{ic}` for each of several *codes* c, and the energies
    shape the delta, up to a common factor, as follows:

    - "xu", "xtu": :math:`D_i = \sum_c e_{ic} M_c`, with fixed directions
      :math:`M_c` of rank `rank`.
    - "xtxu": :math:`D_i = \sum_c \sqrt{e_{ic}} R_{ic} V_c^T`, with fixed input
      subspaces :math:`V_c` and output frames :math:`R_{ic}` drawn anew for each model.
      The mean of `D_i` is then zero whatever the target; its Gram matrix is not.
    - "log_xtx": the same, faint, beside strong directions that are random for each
      model and say nothing.
    - "xxtu", "log_xxt": the transposes of these two, with the target in the outputs.
    - "spectrum": random singular vectors; code c shifts the c-th log singular value.

    The codes are the classes, with :math:`e_{ic} = (1 - s) / n + s [y_i = c]` for
    signal s and n classes; the labels, with :math:`(1 - s) / 2 + s y_{ic}`; or, for
    regression, two codes with :math:`(1 \pm s y_i) / 2`.

    Parameters
    ----------
    n_models : int, default=100
        Number of models.
    shape : tuple of two int, default=(32, 24)
        ``(d_out, d_in)`` of the weights.
    n_classes : int, default=3
        Number of classes or labels, at least 2; ignored in regression.
    view : str, default="xtxu"
        Where the information is: "xu", "xtu", "xtxu", "xxtu", "log_xtx", "log_xxt" or
        "spectrum".
    signal : float, default=1.0
        How far the target decides the energies, from 0, not at all, to 1.
    task : {"classification", "multilabel", "regression"}, default="classification"
        What the target is.
    rank : int, default=4
        Rank of each code's part of a delta, at most ``min(shape)``.
    noise : float, default=0.3
        Norm of the Gaussian noise in a delta, relative to the part that the target
        shapes. In the spectrum, the standard deviation of the log singular values
        relative to a code's shift.
    random_state : int, RandomState instance or None, default=None
        Draws everything that is random; an int gives the same tree on every call.
    dtype : {numpy.float32, numpy.float64}, default=numpy.float32
        Type of the weights. All is computed in float64.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    tree : :class:`~sklearn.utils.Bunch`
        With these attributes:

        data : ndarray of shape (n_models, d_out, d_in)
            The weights.
        target : ndarray
            Labels 0 to ``n_classes - 1`` in almost equal numbers, ``(n_models,)``; an
            int indicator matrix, ``(n_models, n_classes)``; or real values between -1
            and 1, ``(n_models,)``.
        target_names : ndarray of str
            Names of the classes or labels, or of the one regression target.
        base : ndarray of shape (d_out, d_in)
            Weights of the base.
        DESCR : str
            A short description.

    (data, target) : tuple of ndarray
        Only these two, if `return_X_y` is True.

    Raises
    ------
    ValueError, TypeError
        If a parameter is out of its range or of another type.

    Examples
    --------
    >>> from skprobex.datasets import make_model_tree
    >>> tree = make_model_tree(n_models=6, shape=(8, 5), random_state=0)
    >>> tree.data.shape
    (6, 8, 5)
    >>> tree.target
    array([2, 2, 1, 0, 0, 1])
    >>> W, y = make_model_tree(task="regression", view="spectrum", return_X_y=True)
    >>> W.shape, y.shape
    ((100, 32, 24), (100,))
    """
    shape = _check_arguments(
        n_models, shape, n_classes, view, signal, task, rank, noise, dtype
    )
    rng = check_random_state(random_state)
    target, energy, names = _draw_target(n_models, n_classes, signal, task, rng)
    if view == "spectrum" and energy.shape[1] > min(shape):
        raise ValueError(
            f"view='spectrum' needs one singular value per class; got "
            f"n_classes={n_classes} for weights of shape {shape}, which have only "
            f"{min(shape)}."
        )

    delta = _draw_deltas(energy, shape, view, rank, noise, rng)
    base = rng.standard_normal(shape) / math.sqrt(shape[1])
    data = (base + _DELTA_NORM * math.sqrt(shape[0]) * delta).astype(dtype)
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        target=target,
        target_names=names,
        base=base.astype(dtype),
        DESCR=_DESCR.format(
            n=n_models, shape=shape, task=task, view=view, signal=signal, noise=noise
        ),
    )


def _draw_target(n_models, n_classes, signal, task, rng):
    """Targets, energies ``(n_models, n_codes)``, and names."""
    names = np.array([f"class {c}" for c in range(n_classes)])
    if task == "classification":
        y = rng.permutation(np.arange(n_models) % n_classes)
        return y, (1 - signal) / n_classes + signal * np.eye(n_classes)[y], names
    if task == "multilabel":
        y = rng.randint(2, size=(n_models, n_classes)).astype(np.int64)
        return y, (1 - signal) / 2 + signal * y, names
    y = rng.uniform(-1, 1, n_models)
    return y, (1 + signal * np.stack([y, -y], axis=1)) / 2, np.array(["target"])


def _draw_deltas(energy, shape, view, rank, noise, rng):
    """Deltas ``(n_models, d_out, d_in)`` that say in a view what the energies are."""
    if view == "spectrum":
        return _spectra(energy, *shape, rank, noise, rng)
    # What is planted on the output side is planted on the input side of the transpose.
    output_side = MATRIX_VIEWS[view].right == "left"
    d_out, d_in = shape[::-1] if output_side else shape
    if MATRIX_VIEWS[view].symmetric:
        strong = MATRIX_VIEWS[view].logarithmic
        delta = _input_subspaces(energy, d_out, d_in, rank, noise, strong, rng)
    else:
        delta = _fixed_directions(energy, d_out, d_in, rank, noise, rng)
    return delta.transpose(0, 2, 1) if output_side else delta


def _fixed_directions(energy, d_out, d_in, rank, noise, rng):
    n_models, n_codes = energy.shape
    directions = rng.standard_normal((n_codes, d_out, rank)) @ rng.standard_normal(
        (n_codes, rank, d_in)
    )
    directions /= np.linalg.norm(directions, axis=(1, 2), keepdims=True)
    planted = np.tensordot(energy, directions, axes=1)
    return planted + noise * _unit_noise((n_models, d_out, d_in), rng)


def _input_subspaces(energy, d_out, d_in, rank, noise, strong, rng):
    n_models, n_codes = energy.shape
    inputs = _frames((n_codes, d_in, rank), rng)
    outputs = _frames((n_models, n_codes, d_out, rank), rng)
    outputs *= np.sqrt(energy / rank)[:, :, None, None]
    planted = np.einsum("ncor,cir->noi", outputs, inputs, optimize=True)
    delta = planted + noise * _unit_noise((n_models, d_out, d_in), rng)
    if strong:
        left = _frames((n_models, d_out, rank), rng)
        right = _frames((n_models, d_in, rank), rng)
        # (n_models, d_out, d_in)
        delta = _WEAK * delta + left @ right.transpose(0, 2, 1) / math.sqrt(rank)
    return delta


def _spectra(energy, d_out, d_in, rank, noise, rng):
    n_models, n_codes = energy.shape
    k = min(max(rank, n_codes), d_out, d_in)
    gap = math.log(_SPECTRUM_RANGE) / k
    # A shift is smaller than the gap, so the order of the singular values stands.
    shift = 0.8 * gap
    log_s = np.tile(-gap * np.arange(k), (n_models, 1))
    log_s[:, :n_codes] += shift * energy
    log_s += noise * shift * rng.standard_normal((n_models, k))
    left = _frames((n_models, d_out, k), rng)
    right = _frames((n_models, d_in, k), rng)
    return (left * np.exp(log_s)[:, None]) @ right.transpose(0, 2, 1)


def _frames(shape, rng):
    """Random matrices ``(..., d, k)`` with orthonormal columns, no direction favoured.

    QR alone fixes the signs of the columns by a convention of its own, and their mean
    over models would not be zero.
    """
    frames, upper = np.linalg.qr(rng.standard_normal(shape))
    signs = np.sign(np.diagonal(upper, axis1=-2, axis2=-1))
    return frames * signs[..., None, :]


def _unit_noise(shape, rng):
    """Gaussian matrices of expected squared Frobenius norm one."""
    return rng.standard_normal(shape) / math.sqrt(shape[-2] * shape[-1])


def check_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise unless `value` is an integer from `low` to `high`."""
    wanted = f"an integer of at least {low}"
    if high is not None:
        wanted = f"an integer from {low} to {high}"
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be {wanted}; got {value!r}.")
    if int(value) < low or (high is not None and int(value) > high):
        raise ValueError(f"{name} must be {wanted}; got {value}.")


def check_real(name, value, low, high=math.inf):
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a real number; got {value!r}.")
    if not low <= value <= high or math.isinf(value):
        wanted = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{name} must be {wanted}; got {value}.")


def _check_arguments(
    n_models, shape, n_classes, view, signal, task, rank, noise, dtype
):
    check_integer("n_models", n_models, 1)
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise ValueError(f"shape must be a pair (d_out, d_in); got {shape!r}.")
    for d in shape:
        check_integer("each number in shape", d, 1)
    check_integer("n_classes", n_classes, 2)
    for name, value, known in (("view", view, tuple(VIEWS)), ("task", task, _TASKS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}; got {value!r}.")
    check_real("signal", signal, 0, 1)
    check_real("noise", noise, 0)
    check_integer("rank", rank, 1, min(shape))
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64; got {np.dtype(dtype)}.")
    return tuple(int(d) for d in shape)
