"""The papers' networks: probes and projections learnt end to end.

ProbeX (Horwitz et al., CVPR 2025, section 4) has one view, the weights themselves;
MVProbe (ICML 2026) has several, standardised per sample. For each view M_i::

    S = M_i U                 probes U, (d, n_probes)
    Z = relu(V^T S)           projection V shared by all probes, (d, projection_dim)
    e = T vec(Z) + t          encoder, to n_components: the representation
    y = H e + h               head

With several views the encoder reads them side by side. For text alignment the head is
a tower of its own: text vectors are mapped next to the representations, and the outputs
are cosines over a temperature.
"""

import math

import torch
from torch import nn
from torch.nn.functional import normalize as unit_rows

from .inputs import factor_names


def multiply(name, inputs, vectors):
    """Multiply a batch of views by vectors, first order: ``X^T (X u)``, never X^T X.

    Returns
    -------
    Tensor of shape (b, d, n_vectors)
    """
    if name in inputs:  # the root of a logarithmic view
        root = inputs[name]
        return root @ (root.mT @ vectors)
    factors = [inputs[key] for key in dict.fromkeys(factor_names(inputs))]
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


def standardize(probed):
    """Standardise over the entries of each matrix, ``(b, rows, n_probes)``."""
    mean = probed.mean(dim=(1, 2), keepdim=True)
    std = probed.std(dim=(1, 2), keepdim=True, correction=0)
    return (probed - mean) / std.clamp_min(1e-6)


class ProbingNetwork(nn.Module):
    """Probes, shared projections, encoder and head.

    Parameters
    ----------
    view_shapes : dict of str to (int, int)
        Rows and columns of each view's matrix; of a vector, (length, 0).
    view_scales : dict of str to float
    n_probes, projection_dim, n_components, n_outputs : int
    standardize : bool
        Standardise S over its entries, for each model and view.
    text_dim : int, optional
        Dimension of the text vectors that models are aligned with, `n_outputs` of
        them. None has a linear head.
    learn_temperature : bool
        See `TextHead`.
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
        text_dim=None,
        learn_temperature=True,
        generator=None,
    ):
        super().__init__()
        self.view_scales = view_scales
        self.standardize = standardize
        self.activation = nn.ReLU()
        self.probes, self.projections = nn.ParameterDict(), nn.ParameterDict()
        width = 0
        for name, (rows, columns) in view_shapes.items():
            if not columns:  # a vector, read as it is
                width += rows
                continue
            self.probes[name] = _normal(columns, n_probes, columns, generator)
            self.projections[name] = _normal(rows, projection_dim, rows, generator)
            width += projection_dim * n_probes
        self.encoder = _linear(width, n_components, generator)
        if text_dim is None:
            self.head = _linear(n_components, n_outputs, generator)
        else:
            self.head = TextHead(
                n_outputs, text_dim, n_components, learn_temperature, generator
            )

    def encode(self, inputs):
        """Compute the representation, ``(b, n_components)``."""
        parts = []
        for name, probes in self.probes.items():
            probed = multiply(name, inputs, probes) * self.view_scales[name]
            if self.standardize:
                probed = standardize(probed)
            projected = self.activation(self.projections[name].T @ probed)
            parts.append(projected.flatten(1))
        if "spectrum" in inputs:
            parts.append(inputs["spectrum"])
        return self.encoder(torch.cat(parts, dim=1))

    def forward(self, inputs):
        return self.head(self.encode(inputs))


class TextHead(nn.Module):
    """Cosines between representations and embedded text vectors, over a temperature.

    Parameters
    ----------
    n_labels, text_dim, n_components : int
    learn_temperature : bool
        If not, it is one, as published: cosines lie in [-1, 1], and the cross-entropy
        over many labels cannot fall far below the logarithm of their number.
    generator : torch.Generator, optional

    Attributes
    ----------
    vectors : Tensor of shape (n_labels, text_dim)
        Text vectors of the labels.
    """

    # That of CLIP (Radford et al., 2021): where it starts, and its least.
    _INITIAL, _LEAST = 0.07, 0.01

    def __init__(self, n_labels, text_dim, n_components, learn_temperature, generator):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(n_labels, text_dim))
        self.tower = _linear(text_dim, n_components, generator)
        scale = -math.log(self._INITIAL) if learn_temperature else 0.0
        self.log_scale = nn.Parameter(torch.tensor(scale), learn_temperature)

    def forward(self, representations):
        labels = unit_rows(self.tower(self.vectors))  # (n_labels, n_components)
        scale = self.log_scale.clamp(max=-math.log(self._LEAST)).exp()
        return scale * (unit_rows(representations) @ labels.T)


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
