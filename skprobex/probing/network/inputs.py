"""What the networks multiply by their probes, held in memory or read as needed."""

import math
from dataclasses import dataclass

import torch

from ..._registry import saved
from ..batches import LowRankBatch, subtract
from ..deltas import decompose, delta_norms
from ..views import VIEWS

# Layers of all training models larger than this are read again in every epoch.
HELD_BYTES = 2**31


@saved
@dataclass
class ViewInputs:
    """Turn weights into what the network multiplies by its probes.

    Every matrix view is scaled by one number, so that its entries have unit root mean
    square over the training models whatever the unit of the weights.

    Attributes
    ----------
    center : Tensor of shape (d_out, d_in) or None
    sketch : Tensor or None
        See `spectral.thin_svd`.
    views : tuple of str
    normalize : bool
    typical_norm : float
    view_scales : dict of str to float
    n_singular : int or None
        Singular values in ``spectrum`` where ranks differ between models.
    spectrum_mean : Tensor or None
    spectrum_std : float
    """

    center: torch.Tensor | None
    sketch: torch.Tensor | None
    views: tuple
    normalize: bool
    typical_norm: float
    view_scales: dict
    n_singular: int | None = None
    spectrum_mean: torch.Tensor | None = None
    spectrum_std: float = 1.0

    def __call__(self, batch):
        """Compute the inputs of a batch of weights.

        Returns
        -------
        dict of str to Tensor
            ``delta`` (b, d_out, d_in), or ``up`` (b, d_out, r) and ``down``
            (b, r, d_in) whose product it is; for a logarithmic view its square root
            (b, d, k); ``spectrum`` (b, k + 1).
        """
        deltas = subtract(batch, self.center)
        norms = delta_norms(deltas)
        tiny = torch.finfo(norms.dtype).tiny
        divisors = norms.clamp_min(tiny) if self.normalize else self.typical_norm
        gains = norms / divisors  # (b,)
        unit = gains / norms.clamp_min(tiny)
        if isinstance(deltas, LowRankBatch):
            up, down = deltas
            inputs = {"up": up * unit[:, None, None], "down": down}
        else:
            inputs = {"delta": deltas * unit[:, None, None]}
        decomposed = [VIEWS[name] for name in self.views if is_decomposed(name)]
        if decomposed:
            factors = decompose(deltas, self.sketch)
            for view in decomposed:
                if view.sides:
                    gain = view.gain(factors.singular * gains[:, None])
                    basis = getattr(factors, view.left)
                    inputs[view.name] = basis * gain.sqrt()[:, None, :]  # (b, d, k)
                else:
                    length = self.n_singular or factors.singular.shape[1]
                    inputs[view.name] = view.values(factors, length, self.typical_norm)
        return self.scaled(inputs)

    def scaled(self, inputs):
        """Standardise the spectrum, once its mean is known."""
        if self.spectrum_mean is not None:
            deviations = inputs["spectrum"] - self.spectrum_mean
            inputs["spectrum"] = deviations / self.spectrum_std
        return inputs

    def fit_scales(self, batches, weight_shape):
        """Set the scales from one pass over the training models.

        Parameters
        ----------
        batches : iterable of dict
            What calling this object returned for each batch.
        weight_shape : (int, int)
            ``(d_out, d_in)``.
        """
        names = [name for name in self.views if VIEWS[name].sides]
        totals, n_models, moments = dict.fromkeys(names, 0.0), 0, []
        for inputs in batches:
            for name in names:
                totals[name] += _squared_norms(VIEWS[name], inputs)
            n_models += len(next(iter(inputs.values())))
            if "spectrum" in inputs:
                values = inputs["spectrum"].double()
                moments.append((values.sum(dim=0), values.square().sum(dim=0)))
        for name in names:
            rows, columns = VIEWS[name].shape(weight_shape)
            mean_square = totals[name] / n_models
            self.view_scales[name] = (
                (rows * columns / mean_square) ** 0.5 if mean_square > 0 else 1.0
            )
        if moments:
            first, second = (
                sum(parts) / n_models for parts in zip(*moments, strict=True)
            )
            self.spectrum_mean = first.to(inputs["spectrum"].dtype)
            # One unit for all: a column of its own would be blown up where it is noise.
            variance = (second - first.square()).mean().item()
            self.spectrum_std = variance**0.5 if variance > 1e-12 else 1.0


def is_decomposed(name):
    """Whether a view takes the singular vectors of a delta, or its values."""
    return not VIEWS[name].sides or VIEWS[name].logarithmic


class HeldInputs:
    """Inputs of all training models, in memory; indexed by models."""

    def __init__(self, data):
        self.data = data

    def __getitem__(self, index):
        return {key: values[index] for key, values in self.data.items()}


class StreamedInputs:
    """Inputs of layers too large to hold: read anew for every training step."""

    def __init__(self, make, weights, device):
        self.make, self.weights, self.device = make, weights, device

    def __getitem__(self, index):
        chosen = self.weights[index.cpu().numpy()]
        batches = chosen.batches(self.device, self.weights.compute_dtype)
        return concatenate([self.make(batch) for batch in batches])


def training_inputs(make, weights, device):
    """Fit the scales and give access to the training models, held where they fit.

    Parameters
    ----------
    make : ViewInputs
    weights : weights
    device : torch.device

    Returns
    -------
    HeldInputs or StreamedInputs
    """
    dtype = weights.compute_dtype
    n_models, *weight_shape = weights.lifted_shape
    batches = (make(batch) for batch in weights.batches(device, dtype))
    is_dense = not weights.is_low_rank or make.center is not None
    if is_dense and n_models * math.prod(weight_shape) * dtype.itemsize > HELD_BYTES:
        make.fit_scales(batches, weight_shape)
        return StreamedInputs(make, weights, device)
    batches = list(batches)
    make.fit_scales(batches, weight_shape)
    return HeldInputs(make.scaled(concatenate(batches)))


def concatenate(batches):
    """Join the inputs of several batches; smaller ranks are padded with zeros."""
    joined = {}
    for key in batches[0]:
        parts = [batch[key] for batch in batches]
        # The axis of the rank, where there is one that may differ.
        axis = {"up": 2, "down": 1}.get(key, parts[0].ndim - 1)
        if key != "delta":
            size = max(part.shape[axis] for part in parts)
            parts = [_pad(part, axis, size) for part in parts]
        joined[key] = torch.cat(parts)
    return joined


def _pad(tensor, axis, size):
    missing = list(tensor.shape)
    missing[axis] = size - missing[axis]
    return torch.cat([tensor, tensor.new_zeros(missing)], dim=axis)


def factor_names(inputs):
    """Names of the first and the last factor of the deltas."""
    return ("delta", "delta") if "delta" in inputs else ("up", "down")


def _squared_norms(view, inputs):
    """Sum over models of the view's squared Frobenius norm."""
    names = (view.name,) if view.logarithmic else dict.fromkeys(factor_names(inputs))
    total = 0.0
    # In parts, as a Gram matrix may be larger than what it is of.
    for factors in zip(*(inputs[name].split(64) for name in names), strict=True):
        gram = _gram(factors)  # (b, k, k), the eigenvalues of the view's own
        if view.symmetric:
            total += (gram * gram.mT).sum().item()
        else:
            total += gram.diagonal(dim1=1, dim2=2).sum().item()
    return total


def _gram(factors):
    """A small matrix with the non-zero eigenvalues of ``D^T D``, D the product."""
    first, last = factors[0], factors[-1]
    if len(factors) == 2:
        return (first.mT @ first) @ (last @ last.mT)
    if first.shape[1] > first.shape[2]:
        return first.mT @ first
    return first @ first.mT
