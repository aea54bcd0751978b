"""The closed-form expert: HOSVD probes, ridge, and everything chosen by leave-one-out.

Linear ProbeX is the dense expert under a Tucker decomposition (Horwitz et al., CVPR
2025, proposition 1). Here the decomposition is computed instead of trained.
"""

from dataclasses import dataclass, field
from functools import cache

import torch

from .deltas import DecomposedDeltas
from .device import solver_device
from .probes import ProbedView, fit_features
from .ridge import RidgePath, centred_kernel
from .tasks import score
from .views import AUTO_VIEWS

# At most so many views are joined by views="auto".
MAX_JOINED_VIEWS = 3


@dataclass
class Choice:
    """What leave-one-out chose.

    Attributes
    ----------
    members : tuple of int
        Positions of the chosen candidates.
    path : RidgePath
        The ridge on their joined features.
    alpha : Tensor of shape (n_targets,)
        Penalty of each target; equal for all classes.
    predictions : Tensor of shape (n_models, n_targets)
        Leave-one-out predictions at these penalties.
    score : float
    error : float
        What the penalty was chosen by; the smaller the better.
    """

    members: tuple
    path: RidgePath
    alpha: torch.Tensor
    predictions: torch.Tensor
    score: float
    error: float

    def beats(self, other):
        """Compare scores; the error decides between equal ones."""
        return (self.score, -self.error) > (other.score, -other.error)


@dataclass
class ClosedFormExpert:
    """A fitted closed-form expert."""

    center: torch.Tensor | None
    sketch: torch.Tensor | None
    views: list[ProbedView]
    feature_mean: torch.Tensor
    coef: torch.Tensor
    intercept: torch.Tensor
    components: torch.Tensor | None
    alpha: torch.Tensor
    normalize: bool
    view_scores: dict = field(default_factory=dict)
    loo_predictions: torch.Tensor | None = None

    @property
    def view_names(self):
        return tuple(view.name for view in self.views)

    @property
    def probes(self):
        """Probes of each matrix view: U and V."""
        return {
            view.name: (view.left, view.right)
            for view in self.views
            if view.left is not None
        }

    @property
    def n_components(self):
        parts = self.coef.T if self.components is None else self.components
        return len(parts)

    def scale_outputs(self, slope, offset):
        """Replace every prediction f by ``slope * f + offset``, one pair a target."""
        self.coef = self.coef * slope[:, None]
        self.intercept = self.intercept * slope + offset

    def features(self, weights, device):
        """Compute the centred probed features, ``(n_models, n_features)``."""
        deltas = DecomposedDeltas(
            weights, self.center, self.sketch, device, self.coef.dtype
        )
        return torch.cat([self._batch_features(factors) for factors in deltas])

    def predict(self, weights, device):
        """Ridge predictions, ``(n_models, n_targets)``."""
        return self.features(weights, device) @ self.coef.T + self.intercept

    def transform(self, weights, device):
        """Probed features, along the principal directions where there are any."""
        features = self.features(weights, device)
        return features if self.components is None else features @ self.components.T

    def _batch_features(self, factors):
        return join([view.features(factors) for view in self.views]) - self.feature_mean


def join(features):
    """Join the features of several views, each with an equal share of the norm."""
    return torch.cat(features, dim=1) / len(features) ** 0.5


def candidate_views(views, normalize):
    """List the (view, normalised) pairs to be probed."""
    names = AUTO_VIEWS if views == "auto" else views
    options = (True, False) if normalize == "auto" else (normalize,)
    # The spectrum is that of the delta before normalising: once is enough.
    return [
        (name, option)
        for option in options
        for name in names
        if name != "spectrum" or option == options[0]
    ]


def fit_closed_form(
    deltas,
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
):
    """Fit probes, features and ridge; choose by exact leave-one-out.

    Parameters
    ----------
    deltas : DecomposedDeltas
    targets : Tensor of shape (n_models, n_targets)
    task : one of ``tasks.TASKS``
    views : "auto" or tuple of str
    normalize : "auto" or bool
    n_probes : int
    alphas : sequence of float
        In units of the features' mean squared norm.
    n_components : int or None
    generator : torch.Generator
    sample_weight : Tensor of shape (n_models,), optional

    Returns
    -------
    ClosedFormExpert
    """
    candidates = candidate_views(views, normalize)
    probed, features = fit_features(deltas, candidates, n_probes, generator)

    device = solver_device(deltas.device)
    features = [part.to(device, torch.float64) for part in features]
    targets = targets.to(device, torch.float64)
    if sample_weight is not None:
        sample_weight = sample_weight.to(device, torch.float64)

    @cache
    def kernel(i):
        return centred_kernel(features[i], sample_weight)

    def fit_path(members):
        joined = join([features[i] for i in members])
        in_dual = len(joined) <= joined.shape[1]
        # The kernel of joined features is the mean of theirs: no view's is made twice.
        shared = sum(kernel(i) for i in members) / len(members) if in_dual else None
        path = RidgePath(joined, targets, sample_weight, shared)
        return choose_penalty(path, task, alphas, members)

    if views == "auto":
        choice, tried = search_views(candidates, fit_path)
    else:
        choice, tried = compare_normalizations(candidates, fit_path)

    coef, intercept = choice.path.solve(choice.alpha)
    components = None
    if n_components is not None:
        # Views come from Gram matrices: what is left of their precision is its root.
        precision = 10 * torch.finfo(deltas.dtype).eps
        components = choice.path.principal_directions(n_components, precision)
    # Predictions add the intercept to centred features.
    feature_mean = choice.path.feature_mean
    intercept = intercept + coef @ feature_mean

    def settle(tensor):
        return None if tensor is None else tensor.to(deltas.device, deltas.dtype)

    return ClosedFormExpert(
        center=deltas.center,
        sketch=deltas.sketch,
        views=[probed[i] for i in choice.members],
        feature_mean=settle(feature_mean),
        coef=settle(coef),
        intercept=settle(intercept),
        components=settle(components),
        alpha=choice.alpha,
        normalize=_is_normalized(candidates, choice.members),
        view_scores=_best_scores(candidates, tried),
        loo_predictions=choice.predictions,
    )


def choose_penalty(path, task, alphas, members=()):
    """Choose the penalty by leave-one-out.

    One for all classes, one for each real target. Real targets want the least squared
    error. Classes want the highest correlation: how far the decisions are shrunk does
    not matter, as calibration undoes it.

    Returns
    -------
    Choice
    """
    alphas = torch.as_tensor(alphas, dtype=path.targets.dtype).to(path.targets.device)
    predictions = path.leave_one_out(alphas)
    shares = path.shares
    if task == "regression":
        squares = (predictions - path.targets).square()
        errors = torch.einsum("n,ant->at", shares, squares)  # (n_alphas, n_targets)
    else:
        means = torch.einsum("n,ant->at", shares, predictions)[:, None]
        deviations, targets = predictions - means, path.targets - path.target_mean
        shared = torch.einsum("n,ant,nt->a", shares, deviations, targets)
        lengths = torch.einsum("n,ant->a", shares, deviations.square()).sqrt()
        tiny = torch.finfo(lengths.dtype).tiny
        errors = -(shared / lengths.clamp_min(tiny))[:, None]  # (n_alphas, 1)
        errors = errors.expand(-1, path.targets.shape[1])
    best = errors.argmin(dim=0)  # (n_targets,)
    columns = torch.arange(len(best), device=best.device)
    chosen = predictions[best, :, columns].T
    return Choice(
        members,
        path,
        alphas[best],
        chosen,
        score(task, chosen, path.targets, shares),
        errors[best, columns].mean().item(),
    )


def search_views(candidates, fit_path):
    """Greedy forward selection: the best view, then whatever improves the sum most.

    Returns
    -------
    best : Choice
    tried : list of Choice
    """
    tried = [fit_path((i,)) for i in range(len(candidates))]
    best = _best(tried)
    normalized = _is_normalized(candidates, best.members)
    pool = [
        i
        for i, (name, option) in enumerate(candidates)
        if name == "spectrum" or option == normalized
    ]
    while len(best.members) < MAX_JOINED_VIEWS:
        joined = [fit_path((*best.members, i)) for i in pool if i not in best.members]
        tried += joined
        if not joined or not _best(joined).beats(best):
            break
        best = _best(joined)
    return best, tried


def compare_normalizations(candidates, fit_path):
    """Join all views asked for, with and without normalising.

    Returns
    -------
    best : Choice
    tried : list of Choice
    """
    options = sorted({option for _, option in candidates}, reverse=True)
    tried = [
        fit_path(
            tuple(
                i
                for i, (name, normalized) in enumerate(candidates)
                if name == "spectrum" or normalized == option
            )
        )
        for option in options
    ]
    return _best(tried), tried


def _best(choices):
    best = choices[0]
    for choice in choices[1:]:
        if choice.beats(best):
            best = choice
    return best


def _is_normalized(candidates, members):
    options = [candidates[i][1] for i in members if candidates[i][0] != "spectrum"]
    return options[0] if options else True


def _best_scores(candidates, tried):
    """Map joined view names to their best leave-one-out score."""
    scores = {}
    for choice in tried:
        name = "+".join(candidates[i][0] for i in choice.members)
        scores[name] = max(choice.score, scores.get(name, choice.score))
    return scores
