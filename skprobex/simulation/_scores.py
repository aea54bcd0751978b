"""score_examples."""

from __future__ import annotations

import numpy as np
import torch

from .._typing import Device, Numbers
from ..probing.device import as_array, as_tensor, resolve_device
from ..weights import WeightsLike, as_weights, check_weight_shape
from ._alignment import align, iterate_views, unit_trace
from ._moments import Activations, ClassMoments, check_moments, check_rows


def score_examples(
    W: WeightsLike,
    examples: Activations | ClassMoments,
    *,
    center: Numbers | None = None,
    device: Device = "auto",
) -> np.ndarray:
    r"""Score single examples by their likeness to what models were trained on.

    How much of a delta's input-side log view `L_i` lies along the rows x of example e,

    .. math:: s_{ie} = \frac{\sum_{x \in e} x^T L_i x}{\|L_i\| \sum_{x \in e} \|x\|^2},

    or along the moment of its gradients, less the mean over examples. It ranks a pool:
    which of these are like the training data?

    Parameters
    ----------
    W : array-like of shape (n_models, d_out, d_in)
        One layer: deltas from the base, or weights if `center` is the base's.
    examples : Activations or ClassMoments
        What `collect_activations` returned, without `y`; or the moments of
        `collect_gradients`, one "class" for each example.
    center : array-like of shape (d_out, d_in), default=None
        Weights of the base.
    device : str, default="auto"
        ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or
        ``"mps"``.

    Returns
    -------
    ndarray of shape (n_models, n_examples)
        The higher the more alike. Each model's scores have mean zero.

    Raises
    ------
    ValueError, TypeError
        Another layer's shape, NaN, or an example without rows.

    Notes
    -----
    This tells of what kind the training data was, hardly which examples were in it. On
    the digit networks of `make_digit_jungle` the area under the ROC curve was .88
    (hidden1) and .93 (hidden2) for examples of a model's own classes among all, and .50
    and .53 for those it was trained on among held-out ones of their class.

    Examples
    --------
    >>> import numpy as np
    >>> from skprobex.simulation import Activations, score_examples, simulate_models
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(40, 12)), np.repeat(["a", "b"], 20)
    >>> X += 3 * np.repeat(rng.normal(size=(2, 12)), 20, axis=0)
    >>> models = simulate_models(X, y, 2, task="single")
    >>> pool = Activations(X, np.arange(40), 40, (12, 12))
    >>> scores = score_examples(models.data, pool)
    >>> [y[row.argmax()] for row in scores] == models.target.tolist()
    True
    """
    if not isinstance(examples, (Activations, ClassMoments)):
        raise TypeError(
            f"examples is of type {type(examples).__name__}: expected what "
            "collect_activations or collect_gradients returned."
        )
    weights = as_weights(W)
    if weights.lifted_shape[1:] != examples.weight_shape:
        raise ValueError(
            f"W holds weights of shape {weights.lifted_shape[1:]}, but the examples "
            f"are of a layer of shape {examples.weight_shape}: pass that layer of the "
            "models."
        )
    where, dtype = resolve_device(device), weights.compute_dtype
    if center is not None:
        center = check_weight_shape(center, examples.weight_shape, "center")
        center = as_tensor(center, dtype, where)
    if isinstance(examples, ClassMoments):
        check_moments(examples)
        moments = unit_trace(torch.from_numpy(examples.moments))
        scores = align(weights, center, moments, where, dtype)
    else:
        scores = _score_rows(weights, center, examples, where, dtype)
    return as_array(scores - scores.mean(dim=1, keepdim=True))


def _score_rows(weights, center, examples, device, dtype):
    rows = as_tensor(examples.rows, dtype, device)
    samples = as_tensor(examples.samples, torch.int64, device)
    check_rows(rows, samples)
    counts = torch.bincount(samples, minlength=len(examples))
    if (counts == 0).any():
        first = int((counts == 0).nonzero()[0])
        raise ValueError(f"Example {first} has no rows: leave it out.")
    energies = _sum_by(samples, rows.square().sum(dim=1), len(examples))
    energies = energies.clamp_min(torch.finfo(dtype).tiny)
    scores = []
    for views in iterate_views(weights, center, device, dtype):
        for view in views:
            along = ((rows @ view) * rows).sum(dim=1)  # (n_rows,)
            scores.append(_sum_by(samples, along, len(examples)) / energies)
    return torch.stack(scores)


def _sum_by(samples, values, n_samples):
    """Add up the values of each sample, ``(n_samples,)``."""
    return values.new_zeros(n_samples).index_add_(0, samples, values)
