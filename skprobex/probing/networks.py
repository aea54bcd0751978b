"""The papers' networks: probes and projections learnt end to end.

ProbeX (Horwitz et al., CVPR 2025, section 4) has one view, the weights themselves;
MVProbe (ICML 2026) has several, standardised per sample. For each view M_i::

    S = M_i U                 probes U, (d, n_probes)
    Z = relu(V^T S)           projection V shared by all probes, (d, projection_dim)
    e = T vec(Z) + t          encoder, to n_components: the representation
    y = H e + h               head

With several views the encoder reads them side by side.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .deltas import LowRankBatch, decompose, delta_norms, subtract
from .views import MATRIX_VIEWS, spectrum


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
        shares = norms / divisors  # (b,)
        unit = shares / norms.clamp_min(tiny)
        if isinstance(deltas, LowRankBatch):
            up, down = deltas
            inputs = {"up": up * unit[:, None, None], "down": down}
        else:
            inputs = {"delta": deltas * unit[:, None, None]}
        if any(name.startswith("log_") or name == "spectrum" for name in self.views):
            factors = decompose(deltas, self.sketch)
            for name in self.views:
                if name.startswith("log_"):
                    view = MATRIX_VIEWS[name]
                    gain = view.gain(factors.singular * shares[:, None])
                    basis = getattr(factors, view.left)
                    inputs[name] = basis * gain.sqrt()[:, None, :]  # (b, d, k)
                elif name == "spectrum":
                    length = self.n_singular or factors.singular.shape[1]
                    inputs[name] = spectrum(factors, length, self.typical_norm)
        return self._scale(inputs)

    def _scale(self, inputs):
        if self.spectrum_mean is not None:
            deviations = inputs["spectrum"] - self.spectrum_mean
            inputs["spectrum"] = deviations / self.spectrum_std
        return inputs

    def fit_scales(self, inputs):
        """Set the scales from the inputs of all training models, and apply them."""
        left, right = (inputs[k] for k in _factor_names(inputs))
        sides = {"left": left.shape[1], "right": right.shape[2]}
        for name in self.views:
            if name == "spectrum":
                continue
            view = MATRIX_VIEWS[name]
            mean_square = _mean_squared_norm(view, inputs)
            entries = sides[view.left] * sides[view.right]
            self.view_scales[name] = (
                (entries / mean_square) ** 0.5 if mean_square > 0 else 1.0
            )
        if "spectrum" in self.views:
            values = inputs["spectrum"]
            self.spectrum_mean = values.mean(dim=0)
            # One unit for all: a column of its own would be blown up where it is noise.
            deviation = (values - self.spectrum_mean).square().mean().sqrt().item()
            self.spectrum_std = deviation if deviation > 0 else 1.0
        return self._scale(inputs)


def multiply(name, inputs, vectors):
    """Multiply a batch of views by vectors, first order: ``X^T (X u)``, never X^T X.

    Returns
    -------
    Tensor of shape (b, d, n_vectors)
    """
    if name.startswith("log_"):
        root = inputs[name]
        return root @ (root.mT @ vectors)
    factors = [inputs[key] for key in dict.fromkeys(_factor_names(inputs))]
    transposed = [factor.mT for factor in reversed(factors)]
    chain = {
        "xu": factors,
        "xtu": transposed,
        "xtxu": transposed + factors,
        "xxtu": factors + transposed,
    }
    for factor in reversed(chain[name]):
        vectors = factor @ vectors
    return vectors


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


def _factor_names(inputs):
    """Names of the first and the last factor of the deltas."""
    return ("delta", "delta") if "delta" in inputs else ("up", "down")


def _mean_squared_norm(view, inputs):
    """Mean over models of the view's squared Frobenius norm, in batches."""
    total, n_models = 0.0, 0
    names = (view.name,) if view.logarithmic else dict.fromkeys(_factor_names(inputs))
    for factors in zip(*(inputs[name].split(64) for name in names), strict=True):
        gram = _gram(factors)  # (b, k, k), the eigenvalues of the view's own
        if view.symmetric:
            total += (gram * gram.mT).sum().item()
        else:
            total += gram.diagonal(dim1=1, dim2=2).sum().item()
        n_models += len(gram)
    return total / n_models


def _gram(factors):
    """A small matrix with the non-zero eigenvalues of ``D^T D``, D the product."""
    first, last = factors[0], factors[-1]
    if len(factors) == 2:
        return (first.mT @ first) @ (last @ last.mT)
    if first.shape[1] > first.shape[2]:
        return first.mT @ first
    return first @ first.mT


class ProbingNetwork(nn.Module):
    """Probes, shared projections, encoder and head.

    Parameters
    ----------
    view_shapes : dict of str to (int, int)
        Rows and columns of each view's matrix; ``spectrum``: (length, 0).
    view_scales : dict of str to float
    n_probes, projection_dim, n_components, n_outputs : int
    standardize : bool
        Standardise S over its entries, for each model and view.
    generator : torch.Generator, optional
        Draws the initial weights; without it they are whatever lies in memory, to be
        loaded over.
    """

    def __init__(
        self,
        view_shapes,
        view_scales,
        *,
        n_probes,
        projection_dim,
        n_components,
        n_outputs,
        standardize,
        generator=None,
    ):
        super().__init__()
        self.view_scales = view_scales
        self.standardize = standardize
        self.activation = nn.ReLU()
        self.probes, self.projections = nn.ParameterDict(), nn.ParameterDict()
        width = 0
        for name, (rows, columns) in view_shapes.items():
            if name == "spectrum":
                width += rows
                continue
            self.probes[name] = _normal(columns, n_probes, columns, generator)
            self.projections[name] = _normal(rows, projection_dim, rows, generator)
            width += projection_dim * n_probes
        self.encoder = _linear(width, n_components, generator)
        self.head = _linear(n_components, n_outputs, generator)

    def encode(self, inputs):
        """Compute the representation, ``(b, n_components)``."""
        parts = []
        for name, probes in self.probes.items():
            probed = multiply(name, inputs, probes) * self.view_scales[name]
            if self.standardize:  # (b, rows, n_probes)
                mean = probed.mean(dim=(1, 2), keepdim=True)
                std = probed.std(dim=(1, 2), keepdim=True, correction=0)
                probed = (probed - mean) / std.clamp_min(1e-6)
            projected = self.activation(self.projections[name].T @ probed)
            parts.append(projected.flatten(1))
        if "spectrum" in inputs:
            parts.append(inputs["spectrum"])
        return self.encoder(torch.cat(parts, dim=1))

    def forward(self, inputs):
        return self.head(self.encode(inputs))


def _normal(rows, columns, fan_in, generator):
    values = torch.empty(rows, columns)
    if generator is not None:
        values.normal_(std=fan_in**-0.5, generator=generator)
    return nn.Parameter(values)


def _linear(n_inputs, n_outputs, generator):
    """Linear layer drawn from `generator`; torch's own would use the global one."""
    layer = nn.utils.skip_init(nn.Linear, n_inputs, n_outputs)
    if generator is not None:
        bound = n_inputs**-0.5
        with torch.no_grad():
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
