"""The closed-form expert: HOSVD probes, ridge, and everything chosen by leave-one-out.

Linear ProbeX is the dense expert under a Tucker decomposition (Horwitz et al., CVPR
2025, proposition 1). Here the decomposition is computed instead of trained.
"""

from dataclasses import dataclass, field

import torch

from ..._registry import saved
from ..._warnings import warn
from ..deltas import DecomposedDeltas
from ..device import solver_device
from ..linalg import fix_signs, leading_directions
from ..naming import Naming, TextSide
from .fusion import as_blocks, best_blocks, fuse, in_order, keep_best
from .path import RidgePath
from .probes import ProbedView, fit_features
from .sampling import MAX_DECOMPOSED, Sample
from .selection import (
    Ridges,
    candidate_views,
    choose_penalty,
    compare_normalizations,
    join,
    search_views,
)


@saved
@dataclass
class ProbedLayer:
    """What turns the weights of one layer into features.

    Attributes
    ----------
    name : str or None
        None if W is this one layer.
    center : Tensor of shape (d_out, d_in) or None
    sketch : Tensor or None
        See `spectral.thin_svd`.
    views : list of ProbedView
    shares : list of float
        Share of each view in the squared norm of all features.
    normalize : bool
    """

    name: str | None
    center: torch.Tensor | None
    sketch: torch.Tensor | None
    views: list[ProbedView]
    shares: list[float]
    normalize: bool

    def features(self, weights, device, dtype):
        """Compute the probed features, ``(n_models, n_features)``."""
        return self.probe(
            DecomposedDeltas(weights, self.center, self.sketch, device, dtype)
        )

    def probe(self, deltas, reduce=None):
        """Compute the probed features of decomposed deltas, reduced batch by batch."""
        batches = (
            join([view.features(factors) for view in self.views], self.shares)
            for factors in deltas.once()
        )
        return torch.cat(list(map(reduce, batches) if reduce else batches))


@saved
@dataclass
class ClosedFormExpert:
    """A fitted closed-form expert, on one layer or on several."""

    layers: list[ProbedLayer]
    feature_mean: torch.Tensor
    coef: torch.Tensor
    intercept: torch.Tensor
    components: torch.Tensor | None
    alpha: torch.Tensor
    view_scores: dict = field(default_factory=dict)
    layer_scores: dict = field(default_factory=dict)
    loo_predictions: torch.Tensor | None = None
    text_side: TextSide | None = None

    def per_layer(self, get):
        """Collect something of each layer: by its name, where there are several."""
        if self.layers[0].name is None:
            return get(self.layers[0])
        return {layer.name: get(layer) for layer in self.layers}

    @property
    def center(self):
        return self.per_layer(lambda layer: layer.center)

    @property
    def normalize(self):
        return self.per_layer(lambda layer: layer.normalize)

    @property
    def view_names(self):
        return self.per_layer(lambda layer: tuple(view.name for view in layer.views))

    @property
    def probes(self):
        """Probes of each matrix view: U and V."""
        return self.per_layer(
            lambda layer: {
                view.name: (view.left, view.right)
                for view in layer.views
                if view.left is not None
            }
        )

    @property
    def n_components(self):
        parts = self.coef.T if self.components is None else self.components
        return len(parts)

    def scale_outputs(self, slope, offset):
        """Replace every prediction f by ``slope * f + offset``, one pair a target."""
        self.coef = self.coef * slope[:, None]
        self.intercept = self.intercept * slope + offset

    def features(self, weights, device):
        """Compute the centred probed features, ``(n_models, n_features)``.

        Parameters
        ----------
        weights : weights, or mapping of str to weights
        device : torch.device
        """
        parts = [
            layer.features(
                weights if layer.name is None else weights[layer.name],
                device,
                self.coef.dtype,
            )
            for layer in self.layers
        ]
        return torch.cat(parts, dim=1) - self.feature_mean

    def predict(self, weights, device):
        """Ridge predictions, ``(n_models, n_targets)``."""
        return self.features(weights, device) @ self.coef.T + self.intercept

    def transform(self, weights, device):
        """Probed features, along the principal directions where there are any."""
        features = self.features(weights, device)
        return features if self.components is None else features @ self.components.T


def fit_closed_form(
    layers,
    targets,
    task,
    *,
    views,
    normalize,
    n_probes,
    alphas,
    n_components,
    generator,
    sample_weight=None,
    n_layers=None,
):
    """Fit probes, features and ridge; choose by exact leave-one-out.

    Parameters
    ----------
    layers : iterable of (str or None, DecomposedDeltas)
        One pair named None, or several layers of the same models.
    targets : Tensor of shape (n_models, n_targets)
        With Naming, the task's own are taken.
    task : one of ``tasks.TASKS``, or Naming
    views : "auto" or tuple of str
    normalize : "auto" or bool
    n_probes : int
    alphas : sequence of float
        In units of the features' mean squared norm.
    n_components : int or None
    generator : torch.Generator
    sample_weight : Tensor of shape (n_models,), optional
    n_layers : int, optional
        Layers to use at most.

    Returns
    -------
    ClosedFormExpert
    """
    home, dtype = targets.device, targets.dtype
    solver = solver_device(home)
    is_naming = isinstance(task, Naming)
    targets = task.targets if is_naming else targets.to(solver, torch.float64)
    if sample_weight is not None:
        sample_weight = sample_weight.to(solver, torch.float64)

    candidates = candidate_views(views, normalize)
    blocks, opened, view_scores, layer_scores = [], {}, {}, {}
    sample = None
    for name, deltas in layers:
        if sample is None:
            sample = Sample.draw(deltas, targets, task, sample_weight)
        part = sample.of(deltas)
        probed, features = fit_features(part, candidates, n_probes, generator)
        ridges = sample.ridges(features, alphas)
        opened[name] = deltas
        found = as_blocks(name, deltas, candidates, probed, features)
        if name is None:
            search = search_views if views == "auto" else compare_normalizations
            choice, view_scores = search(candidates, ridges.fit)
            blocks = found
            break
        chosen, scores = best_blocks(found, candidates, ridges, views == "auto")
        blocks = keep_best(blocks + chosen)
        view_scores[name], layer_scores[name] = scores, max(scores.values())
        deltas.progress = part.progress = None
    else:
        features, kernels = zip(*((b.features, b.kernel) for b in blocks), strict=True)
        ridges = sample.ridges(features, alphas, list(kernels))
        choice = in_order(fuse(blocks, ridges.fit, n_layers), blocks, list(opened))
    chosen = probed_layers(blocks, choice.members, choice.shares)
    reduction = None
    if sample.models is None:
        ridges.settle(choice)
        path, penalty = choice.path, choice.penalty
    else:
        sample.keep(blocks, choice)
        # What was compared is not needed any more, and may take as much memory.
        del blocks, found, features, ridges, choice
        features, reduction = sample.probe_all(
            chosen, opened, targets, task, sample_weight
        )
        path = RidgePath(features.to(solver), targets, sample_weight)
        penalty = choose_penalty(path, task, alphas)
    if not len(path.eigenvalues):
        warn(
            "All models look alike: every prediction will be the same. Are these the "
            "weights that training changed?"
        )

    alpha, text_side = penalty.alpha, None
    if is_naming:
        text_side, alpha = task.tune(path, alphas)
        text_side = text_side.to(home, dtype)
    coef, intercept = path.solve(alpha)
    components = None
    if n_components is not None:
        # Views come from Gram matrices: what is left of their precision is its root.
        precision = 10 * torch.finfo(dtype).eps
        components = path.principal_directions(n_components, precision)
    # Predictions add the intercept to centred features.
    feature_mean = path.feature_mean
    intercept = intercept + coef @ feature_mean
    if reduction is not None:
        coef = reduction.restore(coef)
        if components is not None:
            components = fix_signs(reduction.restore(components))
        feature_mean = reduction.mean.to(coef) + reduction.restore(feature_mean)

    def settle(tensor):
        return None if tensor is None else tensor.to(home, dtype)

    return ClosedFormExpert(
        layers=chosen,
        feature_mean=settle(feature_mean),
        coef=settle(coef),
        intercept=settle(intercept),
        components=settle(components),
        alpha=alpha,
        view_scores=view_scores,
        layer_scores=layer_scores,
        loo_predictions=penalty.predictions,
        text_side=text_side,
    )


def fit_unsupervised(layers, *, views, normalize, n_probes, n_components, generator):
    """Probe views without targets: principal components of all layers side by side.

    Parameters
    ----------
    layers : iterable of (str or None, DecomposedDeltas)
    views : tuple of str
    normalize : bool
    n_probes, n_components : int
    generator : torch.Generator

    Returns
    -------
    ClosedFormExpert
        Without outputs.
    """
    candidates = candidate_views(views, normalize)
    blocks = []
    for name, deltas in layers:
        probed, features = fit_features(deltas, candidates, n_probes, generator)
        blocks += as_blocks(name, deltas, candidates, probed, features)
    home, dtype = features[0].device, features[0].dtype
    solver = solver_device(home)
    no_targets = torch.zeros(len(features[0]), 0, dtype=torch.float64, device=solver)
    ridges = Ridges([b.features for b in blocks], no_targets, None, ())
    members = tuple(range(len(blocks)))
    features, precision = ridges.joined(members), 10 * torch.finfo(dtype).eps
    feature_mean = features.mean(dim=0)
    if len(features) <= MAX_DECOMPOSED:
        path = RidgePath(features, no_targets)
        components = path.principal_directions(n_components, precision)
    else:
        components = leading_directions(
            features.sub_(feature_mean), n_components, precision
        )
    shares = (1 / len(blocks),) * len(blocks)
    return ClosedFormExpert(
        layers=probed_layers(blocks, members, shares),
        feature_mean=feature_mean.to(home, dtype),
        coef=torch.zeros(0, components.shape[1], dtype=dtype, device=home),
        intercept=torch.zeros(0, dtype=dtype, device=home),
        components=components.to(home, dtype),
        alpha=torch.zeros(0),
    )


def probed_layers(blocks, members, shares):
    """Put the chosen blocks of each layer together."""
    layers = {}
    for i, share in zip(members, shares, strict=True):
        block = blocks[i]
        if block.name not in layers:
            layers[block.name] = ProbedLayer(
                block.name, block.center, block.sketch, [], [], block.normalize
            )
        layer = layers[block.name]
        layer.views += block.views
        layer.shares += [share / len(block.views)] * len(block.views)
    return list(layers.values())
