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

from .spectral import frobenius_norms, thin_svd
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
    spectrum_mean, spectrum_std : Tensor or None
    """

    center: torch.Tensor | None
    sketch: torch.Tensor | None
    views: tuple
    normalize: bool
    typical_norm: float
    view_scales: dict
    spectrum_mean: torch.Tensor | None = None
    spectrum_std: torch.Tensor | None = None

    def __call__(self, batch):
        """Compute the inputs of a batch of weights ``(b, d_out, d_in)``.

        Returns
        -------
        dict of str to Tensor
            ``delta`` (b, d_out, d_in); for a logarithmic view its square root
            (b, d, k); ``spectrum`` (b, k + 1).
        """
        deltas = batch if self.center is None else batch - self.center
        norms = frobenius_norms(deltas)
        tiny = torch.finfo(norms.dtype).tiny
        divisors = norms.clamp_min(tiny) if self.normalize else self.typical_norm
        shares = norms / divisors  # (b,)
        inputs = {"delta": deltas / norms.clamp_min(tiny)[:, None, None]}
        inputs["delta"] *= shares[:, None, None]
        if any(name.startswith("log_") or name == "spectrum" for name in self.views):
            factors = thin_svd(deltas, self.sketch)
            for name in self.views:
                if name.startswith("log_"):
                    view = MATRIX_VIEWS[name]
                    gain = view.gain(factors.singular * shares[:, None])
                    basis = getattr(factors, view.left)
                    inputs[name] = basis * gain.sqrt()[:, None, :]  # (b, d, k)
                elif name == "spectrum":
                    length = factors.singular.shape[1]
                    inputs[name] = spectrum(factors, length, self.typical_norm)
        return self._scale(inputs)

    def _scale(self, inputs):
        if self.spectrum_mean is not None:
            deviations = inputs["spectrum"] - self.spectrum_mean
            inputs["spectrum"] = deviations / self.spectrum_std
        return inputs

    def fit_scales(self, inputs):
        """Set the scales from the inputs of all training models, and apply them."""
        _, d_out, d_in = inputs["delta"].shape
        sides = {"left": d_out, "right": d_in}
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
            std = values.std(dim=0, correction=0)
            self.spectrum_std = torch.where(std > 0, std, torch.ones_like(std))
        return self._scale(inputs)


def multiply(name, inputs, vectors):
    """Multiply a batch of views by vectors, first order: ``X^T (X u)``, never X^T X.

    Returns
    -------
    Tensor of shape (b, d, n_vectors)
    """
    delta = inputs["delta"]
    if name == "xu":
        return delta @ vectors
    if name == "xtu":
        return delta.mT @ vectors
    if name == "xtxu":
        return delta.mT @ (delta @ vectors)
    if name == "xxtu":
        return delta @ (delta.mT @ vectors)
    root = inputs[name]
    return root @ (root.mT @ vectors)


def _mean_squared_norm(view, inputs):
    """Mean over models of the view's squared Frobenius norm."""
    roots = inputs[view.name] if view.logarithmic else inputs["delta"]
    if not view.symmetric:
        return roots.square().sum(dim=(1, 2)).mean().item()
    # Both Gram matrices of a root have the same norm: take the smaller, in batches.
    if roots.shape[1] > roots.shape[2]:
        roots = roots.mT
    squares = [(part @ part.mT).square().sum() for part in roots.split(64)]
    return (sum(squares) / len(roots)).item()


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
        Draws the initial weights.
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
    values = torch.randn(rows, columns, generator=generator)
    return nn.Parameter(values / fan_in**0.5)


def _linear(n_inputs, n_outputs, generator):
    """Linear layer drawn from `generator`; torch's own would use the global one."""
    layer = nn.utils.skip_init(nn.Linear, n_inputs, n_outputs)
    bound = n_inputs**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
