"""Which features the ridge reads, and its penalty: chosen by exact leave-one-out."""

from dataclasses import dataclass

import torch

from ..naming import Naming
from ..tasks import score
from ..views import AUTO_VIEWS
from .path import Penalty, RidgePath, centred_kernel

# At most so many views are joined by views="auto".
MAX_JOINED_VIEWS = 3


@dataclass
class Choice:
    """What leave-one-out chose.

    Attributes
    ----------
    members : tuple of int
        Positions of the chosen candidates.
    shares : tuple of float
        Share of each in the squared norm of the joined features; they sum to one.
    path : RidgePath
        The ridge on their joined features.
    penalty : Penalty
    """

    members: tuple
    shares: tuple
    path: RidgePath
    penalty: Penalty

    @property
    def score(self):
        return self.penalty.score

    @property
    def rank(self):
        """The larger the better; the error decides between equal scores."""
        return self.penalty.score, -self.penalty.error


def join(features, shares=None):
    """Join the features of several views, each with its share of the squared norm.

    None shares equally.
    """
    if shares is None:
        shares = [1 / len(features)] * len(features)
    parts = [part * share**0.5 for part, share in zip(features, shares, strict=True)]
    return torch.cat(parts, dim=1)


class Ridges:
    """Ridges on joined features of any of several candidates.

    Parameters
    ----------
    features : list of Tensor of shape (n_models, p_i)
        Of each candidate.
    targets : Tensor of shape (n_models, n_targets)
        float64, on the device that solves.
    task : one of ``tasks.TASKS``, or Naming
    alphas : sequence of float
    sample_weight : Tensor of shape (n_models,), optional
    kernels : list of Tensor of shape (n_models, n_models), optional
        Of the candidates, None where they are not yet known.
    """

    def __init__(
        self, features, targets, task, alphas, sample_weight=None, kernels=None
    ):
        self.features, self.targets, self.task = features, targets, task
        self.alphas, self.sample_weight = alphas, sample_weight
        self.kernels = kernels or [None] * len(features)

    def joined(self, members, shares=None):
        """Join the candidates' features."""
        return join([self.features[i].to(self.targets) for i in members], shares)

    def joined_kernel(self, members, shares):
        """Sum the candidates' kernels: that of their joined features."""
        total = 0
        for i, share in zip(members, shares, strict=True):
            if self.kernels[i] is None:
                features = self.features[i].to(self.targets)
                self.kernels[i] = centred_kernel(features, self.sample_weight)
            total = total + self.kernels[i] * share
        return total

    def fit(self, members, shares=None):
        """Fit the candidates `members`, joined, and choose the penalty.

        Returns
        -------
        Choice
        """
        if shares is None:
            shares = (1 / len(members),) * len(members)
        n_features = sum(self.features[i].shape[1] for i in members)
        if len(self.targets) <= n_features:
            kernel = self.joined_kernel(members, shares)
            path = RidgePath(None, self.targets, self.sample_weight, kernel)
        else:
            joined = self.joined(members, shares)
            path = RidgePath(joined, self.targets, self.sample_weight)
        penalty = choose_penalty(path, self.task, self.alphas)
        return Choice(members, shares, path, penalty)

    def settle(self, choice):
        """Give the chosen ridge its features, where it was fitted on kernels."""
        if choice.path.features is None:
            choice.path.features = self.joined(choice.members, choice.shares)


def choose_penalty(path, task, alphas):
    """Choose the penalty by leave-one-out.

    One for all classes, one for each real target. Real targets want the least squared
    error. Classes want the highest correlation: how far the decisions are shrunk does
    not matter, as calibration undoes it. Names want to be found.

    Returns
    -------
    Penalty
    """
    alphas = torch.as_tensor(alphas, dtype=path.targets.dtype).to(path.targets.device)
    if isinstance(task, Naming):
        return task.choose_penalty(path, alphas)
    predictions, shares = path.leave_one_out(alphas), path.shares
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
    return Penalty(
        alphas[best],
        chosen,
        score(task, chosen, path.targets, shares),
        errors[best, columns].mean().item(),
    )


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


def search_views(candidates, fit):
    """Greedy forward selection: the best view, then whatever improves the sum most.

    Nothing is added to a perfect score, and what did not improve a sum is not tried
    with the next, which holds that sum.

    Parameters
    ----------
    candidates : list of (str, bool)
    fit : callable
        ``Ridges.fit``.

    Returns
    -------
    best : Choice
    scores : dict of str to float
        Best score of every view, or sum of views, that was tried.
    """
    scores = {}

    def rank_all(choices):
        best, ranks = None, []
        for members in choices:
            choice = fit(members)
            _note(scores, candidates, choice)
            ranks.append(choice.rank)
            if best is None or choice.rank > best.rank:
                best = choice
        return best, ranks

    best, _ = rank_all([(i,) for i in range(len(candidates))])
    pool = with_normalization(candidates, is_normalized(candidates, best.members))
    while best.score < 1 and len(best.members) < MAX_JOINED_VIEWS:
        pool = [i for i in pool if i not in best.members]
        joined, ranks = rank_all([(*best.members, i) for i in pool])
        pool = [i for i, rank in zip(pool, ranks, strict=True) if rank > best.rank]
        if not pool:
            break
        best = joined
    return best, scores


def compare_normalizations(candidates, fit):
    """Join all views asked for, with and without normalising.

    Returns
    -------
    best : Choice
    scores : dict of str to float
        As `search_views` has them.
    """
    best, scores = None, {}
    for option in sorted({option for _, option in candidates}, reverse=True):
        choice = fit(tuple(with_normalization(candidates, option)))
        _note(scores, candidates, choice)
        if best is None or choice.rank > best.rank:
            best = choice
    return best, scores


def with_normalization(candidates, normalized):
    """Positions of the candidates of one normalisation; the spectrum goes with both."""
    return [
        i
        for i, (name, option) in enumerate(candidates)
        if name == "spectrum" or option == normalized
    ]


def is_normalized(candidates, members):
    """Whether the deltas of the candidates `members` are normalised."""
    options = [candidates[i][1] for i in members if candidates[i][0] != "spectrum"]
    return options[0] if options else True


def _note(scores, candidates, choice):
    name = "+".join(candidates[i][0] for i in choice.members)
    scores[name] = max(choice.score, scores.get(name, choice.score))
