"""The closed-form expert: HOSVD probes, ridge, and everything chosen by leave-one-out.

Linear ProbeX is the dense expert under a Tucker decomposition (Horwitz et al., CVPR
2025, proposition 1). Here the decomposition is computed instead of trained.
"""

from dataclasses import dataclass, field, replace

import torch

from ..._registry import saved
from ..._warnings import listed, warn
from ...exceptions import OutlierWarning
from ..center import find_center
from ..deltas import DecomposedDeltas
from ..device import solver_device
from ..linalg import fix_signs, leading_directions
from ..spectral import draw_sketch
from ..tasks import Task
from ..text_side import TextSide
from . import sampling
from .choice import ViewSearch, join
from .path import RidgePath
from .probes import ProbedView, fit_features, list_candidates
from .sampling import MAX_DECOMPOSED, draw_sample, probe_all


@dataclass(frozen=True)
class Problem:
    """What an expert is fitted to, and what is asked of it: plain data.

    Attributes
    ----------
    layers : dict of str to Weights
    centers : dict of str to object
        Of each layer, as `find_center` takes it.
    views : "auto" or tuple of str
    normalize : "auto" or bool
    n_probes : int
    alphas : sequence of float
        In units of the features' mean squared norm.
    n_components : int or None
    device : torch.device
    dtype : torch.dtype
        Of all layers, as their features are joined.
    generator : torch.Generator
    task : Task or None
        On the device that solves, in float64.
    n_layers : int, optional
        Layers to use at most.
    sizes : dict of str to (Tensor of shape (n_models,) or None), optional
        See `batches.sizes_of`, of each layer that was located.
    kept : Tensor of bool or None
        Of all models that were given, those that the layers still hold.
    """

    layers: dict
    centers: dict
    views: str | tuple
    normalize: str | bool
    n_probes: int
    alphas: tuple
    n_components: int | None
    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator
    task: Task | None = None
    n_layers: int | None = None
    sizes: dict = field(default_factory=dict)
    kept: torch.Tensor | None = None

    def located(self):
        """Find the centres, and leave out the models that are far from one.

        Not where they are all there is of a label: then that is what tells it.

        Returns
        -------
        Problem
            With tensors or None for `centers`.

        Warns
        -----
        OutlierWarning
            Naming the models left out.
        """
        found = {
            name: find_center(weights, self.centers[name], self.device, self.dtype)
            for name, weights in self.layers.items()
        }
        kept = torch.ones(self.n_models, dtype=torch.bool)
        for own in found.values():
            kept[own.outliers] = False
        if self.task is not None and not self.task.is_told_by(kept):
            kept[:] = True
        centers = {name: own.center for name, own in found.items()}
        sizes = {name: own.sizes for name, own in found.items()}
        located = replace(self, centers=centers, sizes=sizes, kept=kept)
        if kept.all():
            return located
        warn_of_outliers(self.layers, found, kept)
        models = kept.nonzero()[:, 0]
        return replace(
            located,
            layers={name: own[models.numpy()] for name, own in self.layers.items()},
            sizes={k: None if v is None else v[models] for k, v in sizes.items()},
            task=None if self.task is None else self.task.take(models),
        )

    @property
    def n_models(self):
        return len(next(iter(self.layers.values())))

    @property
    def n_decomposed(self):
        """How many models are decomposed, of several layers while they are compared."""
        if len(self.layers) == 1:
            return self.n_models
        return len(self.layers) * min(self.n_models, sampling.MAX_COMPARED)

    def open(self, name):
        """Open one layer's deltas; nothing is held before it is asked for."""
        weights, device, dtype = self.layers[name], self.device, self.dtype
        sketch = draw_sketch(*weights.lifted_shape[1:], self.generator, dtype, device)
        return DecomposedDeltas(
            weights, self.centers[name], sketch, device, dtype, self.sizes[name]
        )


def warn_of_outliers(layers, found, kept):
    """Name the models that are left out, by what their weights call them."""
    weights = next(iter(layers.values()))
    outliers = (~kept).nonzero()[:, 0].tolist()
    where = [name for name, own in found.items() if len(own.outliers)]
    where = f" in {listed(where)}" if len(found) > 1 else ""
    named = listed(map(weights._describe, outliers), show=str)
    warn(
        f"{len(outliers)} of {len(kept)} models lie far from all others{where}, and "
        f"are left out of the fit: {named}. Have they diverged, or are they of another "
        "base? outliers_ lists them all; center='mean' leaves none out.",
        OutlierWarning,
    )


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

    @property
    def n_features(self):
        return sum(view.n_features for view in self.views)

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
    fitted = solve(path, alpha, problem.n_components, problem.dtype, reduction)
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
