"""The closed-form expert: HOSVD probes, ridge, and everything chosen by leave-one-out.

Linear ProbeX is the dense expert under a Tucker decomposition (Horwitz et al., CVPR
2025, proposition 1). Here the decomposition is computed instead of trained.
"""

from dataclasses import dataclass, field, replace

import torch

from ..._registry import saved
from ..._warnings import warn
from ..deltas import DecomposedDeltas
from ..device import solver_device
from ..linalg import fix_signs, leading_directions
from ..text_side import TextSide
from .choice import ViewSearch, join
from .path import RidgePath
from .probes import ProbedView, fit_features, list_candidates
from .sampling import MAX_DECOMPOSED, draw_sample, probe_all


@saved
@dataclass
class ProbedLayer:
    """What turns the weights of one layer into features.

    Attributes
    ----------
    name : str
    center : Tensor of shape (d_out, d_in) or None
    sketch : Tensor or None
        See `spectral.thin_svd`.
    views : list of ProbedView
    shares : list of float
        Share of each view in the squared norm of all features.
    normalize : bool
    """

    name: str
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

    def probe(self, deltas, reduce=None, progress=None):
        """Compute the probed features of decomposed deltas, reduced batch by batch."""
        parts = []
        for factors in deltas.once():
            features = [view.features(factors) for view in self.views]
            joined = join(features, self.shares)
            parts.append(reduce(joined) if reduce else joined)
            if progress is not None:
                progress(len(joined))
        return torch.cat(parts)


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
    loo_predictions: torch.Tensor | None = None
    text_side: TextSide | None = None

    @property
    def n_components(self):
        parts = self.coef.T if self.components is None else self.components
        return len(parts)

    def scaled(self, slope, offset):
        """The expert that predicts ``slope * f + offset``, arrays of one per target."""
        slope, offset = (part.astype(self.coef.dtype) for part in (slope, offset))
        return replace(
            self,
            coef=self.coef * slope[:, None],
            intercept=self.intercept * slope + offset,
        )

    def features(self, layers, device):
        """Compute the centred probed features, ``(n_models, n_features)``.

        Parameters
        ----------
        layers : mapping of str to Weights
        device : torch.device
        """
        parts = [
            layer.features(layers[layer.name], device, self.coef.dtype)
            for layer in self.layers
        ]
        return torch.cat(parts, dim=1) - self.feature_mean

    def predict(self, layers, device):
        """Ridge predictions, ``(n_models, n_targets)``."""
        return self.features(layers, device) @ self.coef.T + self.intercept

    def transform(self, layers, device):
        """Probed features, along the principal directions where there are any."""
        features = self.features(layers, device)
        return features if self.components is None else features @ self.components.T

    def sensitivities(self, rows, side, layer_name):
        """Squared sensitivities of predictions to each dimension of a layer.

        Parameters
        ----------
        rows : list of int
            Numbers of the predictions.
        side : {"left", "right"}
            The outputs or the inputs of the layer.
        layer_name : str

        Returns
        -------
        dict of str to ndarray of shape (d,)
            By view, as shares of the squared norm of all coefficients; views that do
            not look at this side are left out. The expert holds arrays.
        """
        found, start = {}, 0
        coef = self.coef[rows].astype("float64")
        total = 0.0
        for layer in self.layers:
            for view, share in zip(layer.views, layer.shares, strict=True):
                block = coef[:, start : start + view.n_features] * share**0.5
                start += view.n_features
                total += (block**2).sum()
                if layer.name == layer_name and side in view.view.sides:
                    found[view.name] = view.sensitivities(block, side)
        return {name: values / (total or 1.0) for name, values in found.items()}


def fit_ridge(problem, progress):
    """Fit probes, features and ridge; choose by exact leave-one-out.

    Parameters
    ----------
    problem : Problem
    progress : callable
        Called with the number of models that were decomposed.

    Returns
    -------
    ClosedFormExpert
    """
    task, alphas = problem.task, problem.alphas
    choice, opened, sample, scores = choose_features(problem, progress)
    layers = probed_layers(choice.blocks, choice.shares, opened)
    reduction, penalty = None, choice.penalty
    if sample is None:
        path = choice.path
        if path.features is None:
            path = path.with_features(choice.joined_features())
        del choice
    else:
        layers_and_features = [(layer, _features_of(layer, choice)) for layer in layers]
        # What was compared is not needed any more, and may take as much memory.
        del choice
        if len(problem.layers) > 1:
            progress = None  # which layers are read again was not known before
        features, reduction = probe_all(
            layers_and_features, opened, sample, task, progress
        )
        path = RidgePath(features.to(task.targets.device), task.targets, task.weight)
        penalty = task.choose_penalty(path, alphas)
    if not len(path.eigenvalues):
        warn(
            "All models look alike: every prediction will be the same. Are these the "
            "weights that training changed?"
        )
    path, alpha, text_side = task.tune(path, penalty, alphas)
    # An embedding is what is predicted, not what predicts it.
    n_components = None if text_side is not None else problem.n_components
    fitted = solve(path, alpha, n_components, problem.dtype, reduction)
    home = problem.device, problem.dtype
    return ClosedFormExpert(
        layers,
        **{k: None if v is None else v.to(*home) for k, v in fitted.items()},
        alpha=alpha,
        view_scores=scores,
        loo_predictions=penalty.predictions,
        text_side=None if text_side is None else text_side.to(*home),
    )


def choose_features(problem, progress):
    """Open layer after layer, compare their views, and choose what is summed.

    Returns
    -------
    choice : Choice
        On the models of the sample.
    opened : dict of str to DecomposedDeltas
        Of all models, by layer.
    sample : Tensor of int or None
        See `draw_sample`.
    scores : dict of str to dict of str to float
        See `ViewSearch`.
    """
    task, opened = problem.task, {}
    candidates = list_candidates(problem.views, problem.normalize)
    sample = search = None
    for name in problem.layers:
        opened[name] = deltas = problem.open(name)
        if search is None:
            sample = draw_sample(deltas, task)
            compared = task if sample is None else task.take(sample)
            is_auto = problem.views == "auto"
            search = ViewSearch(candidates, is_auto, compared, problem.alphas)
        part = deltas if sample is None else deltas.take(sample)
        search.add_layer(
            name,
            *fit_features(
                part, candidates, problem.n_probes, problem.generator, progress
            ),
        )
    return search.choose(problem.n_layers), opened, sample, search.scores


def solve(path, alpha, n_components, dtype, reduction):
    """Solve the ridge, and find the principal directions of its features.

    Returns
    -------
    dict of str to Tensor
        What a `ClosedFormExpert` holds of it, in terms of all features.
    """
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
    return {
        "feature_mean": feature_mean,
        "coef": coef,
        "intercept": intercept,
        "components": components,
    }


def fit_unsupervised(problem):
    """Probe views without targets: principal components of all layers side by side.

    Parameters
    ----------
    problem : Problem
        Without a task.

    Returns
    -------
    ClosedFormExpert
        Without outputs.
    """
    candidates = list_candidates(problem.views, problem.normalize)
    layers, parts = [], []
    share = 1 / (len(candidates) * len(problem.layers))
    for name in problem.layers:
        deltas = problem.open(name)
        probed, features = fit_features(
            deltas, candidates, problem.n_probes, problem.generator
        )
        shares = [share] * len(probed)
        layers.append(
            ProbedLayer(
                name, deltas.center, deltas.sketch, probed, shares, problem.normalize
            )
        )
        parts.append(join(features, shares))
    home, dtype = problem.device, problem.dtype
    features = torch.cat(parts, dim=1).to(solver_device(home), torch.float64)
    precision = 10 * torch.finfo(dtype).eps
    feature_mean = features.mean(dim=0)
    if len(features) <= MAX_DECOMPOSED:
        path = RidgePath(features, features[:, :0])
        components = path.principal_directions(problem.n_components, precision)
    else:
        components = leading_directions(
            features.sub_(feature_mean), problem.n_components, precision
        )
    return ClosedFormExpert(
        layers=layers,
        feature_mean=feature_mean.to(home, dtype),
        coef=torch.zeros(0, components.shape[1], dtype=dtype, device=home),
        intercept=torch.zeros(0, dtype=dtype, device=home),
        components=components.to(home, dtype),
        alpha=torch.zeros(0),
    )


def probed_layers(blocks, shares, opened):
    """Put the chosen blocks of each layer together.

    Returns
    -------
    list of ProbedLayer
        In the order of their features.
    """
    layers = {}
    for block, share in zip(blocks, shares, strict=True):
        if block.layer not in layers:
            deltas = opened[block.layer]
            layers[block.layer] = ProbedLayer(
                block.layer, deltas.center, deltas.sketch, [], [], True
            )
        layer = layers[block.layer]
        layer.views += block.views
        layer.shares += [share / len(block.views)] * len(block.views)
        if block.normalize is not None:
            layer.normalize = block.normalize
    return list(layers.values())


def _features_of(layer, choice):
    """Features of the sample of one chosen layer, with their shares."""
    blocks = zip(choice.blocks, choice.shares, strict=True)
    own = [(b.features, share) for b, share in blocks if b.layer == layer.name]
    return join(*zip(*own, strict=True))
