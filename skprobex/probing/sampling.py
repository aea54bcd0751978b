"""With many models, some of them decide which views are used; all of them are fitted.

Comparing views takes an eigendecomposition of all models for each view and each sum of
views. On a sample of bounded size that is a fixed cost, and the time of a fit grows
with the number of models as reading them does.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .naming import Naming
from .ridge import CholeskyRidge, RidgePath
from .selection import Ridges, choose_penalty, penalty_of

# Views are compared, and probes computed, on at most so many models. Measured on 700
# models of 40 classes: as accurate as on all; half as many lose up to half a point.
MAX_COMPARED = 512
# On more models than this no eigendecomposition is computed: the penalty is chosen on
# so many, and then tried on all.
MAX_DECOMPOSED = 1024


@dataclass
class Sample:
    """The models that views are compared on, and what is known of them.

    Attributes
    ----------
    models : Tensor of int, shape (n_sampled,) or None
        Their positions, ascending. None: all models.
    sizes : Tensor of shape (n_models,) or None
        Of all models, where some are sampled.
    targets : Tensor of shape (n_sampled, n_targets)
    task : one of ``tasks.TASKS``, or Naming
    sample_weight : Tensor of shape (n_sampled,) or None
    """

    models: torch.Tensor | None
    sizes: torch.Tensor | None
    targets: torch.Tensor
    task: object
    sample_weight: torch.Tensor | None

    @classmethod
    def draw(cls, deltas, targets, task, sample_weight):
        """Choose some of the models, where there are too many.

        Parameters
        ----------
        deltas : DecomposedDeltas
        targets, task, sample_weight
            Of all models.
        """
        if len(targets) <= MAX_COMPARED:
            return cls(None, None, targets, task, sample_weight)
        models = choose_models(MAX_COMPARED, deltas.sizes, targets, task)
        if isinstance(task, Naming):
            task = task.take(models)
            targets = task.targets
        else:
            targets = targets[models]
        if sample_weight is not None:
            sample_weight = sample_weight[models]
        return cls(models, deltas.sizes, targets, task, sample_weight)

    def of(self, deltas):
        """Deltas of the sample alone."""
        return deltas if self.models is None else deltas.take(self.models)

    def probe_all(self, layer, deltas, part):
        """Probe all models; what is known of the sample is not computed again.

        Parameters
        ----------
        layer : ProbedLayer
        deltas, part : DecomposedDeltas
            Of all models, and of the sample.

        Returns
        -------
        Tensor of shape (n_models, n_features)
        """
        is_sampled = torch.zeros(len(self.sizes), dtype=torch.bool)
        is_sampled[self.models] = True
        rest = layer.probe(deltas.take((~is_sampled).nonzero().squeeze(1)))
        features = rest.new_empty(len(is_sampled), rest.shape[1])
        features[~is_sampled], features[is_sampled] = rest, layer.probe(part)
        return features

    def ridges(self, features, alphas, kernels=None):
        """Ridges on candidates' features of the sample."""
        return Ridges(
            features, self.targets, self.task, alphas, self.sample_weight, kernels
        )

    def fit_all(self, features, targets, task, alphas, sample_weight):
        """Fit the features that were chosen on the sample on all models.

        Parameters
        ----------
        features : Tensor of shape (n_models, p)
        targets, task, sample_weight
            Of all models.
        alphas : sequence of float

        Returns
        -------
        RidgePath or CholeskyRidge
        Penalty
        """
        features = features.to(targets.device)
        is_large = MAX_DECOMPOSED < len(features) <= features.shape[1]
        if is_large and not isinstance(task, Naming):
            some = choose_models(MAX_DECOMPOSED, self.sizes, targets, task)
            weight = None if sample_weight is None else sample_weight[some]
            start = RidgePath(features[some].to(targets), targets[some], weight)
            ridge = CholeskyRidge(features, targets, sample_weight)
            return ridge, climb(ridge, task, alphas, start)
        path = RidgePath(features.to(targets), targets, sample_weight)
        return path, choose_penalty(path, task, alphas)


def choose_models(n_chosen, sizes, targets, task):
    """Choose models that stand for all, whatever order they come in.

    They are spread evenly over the sizes of the models. Half of them are shared out
    between the classes, so that the rare ones are heard.

    Parameters
    ----------
    n_chosen : int
        Fewer than there are.
    sizes : Tensor of shape (n_models,)
        See `deltas.sizes_of`.
    targets : Tensor of shape (n_models, n_targets)
    task : one of ``tasks.TASKS``, or Naming

    Returns
    -------
    Tensor of int, shape (at most n_chosen,)
        Positions, ascending.
    """
    targets = targets.cpu()
    # Models of one size come in the order of their targets.
    order = torch.from_numpy(np.lexsort((*targets.T.numpy(), sizes.numpy())))
    frequency = torch.full_like(sizes, 1 / len(sizes))
    if task in ("binary", "multiclass", "multilabel"):
        in_class = (targets > 0).double()
        rarity = (in_class / in_class.sum(dim=0).clamp_min(1)).sum(dim=1)
        frequency += rarity / rarity.sum().clamp_min(1)
    passed = frequency[order].cumsum(0)
    steps = (torch.arange(n_chosen, dtype=passed.dtype) + 0.5) / n_chosen
    return order[torch.searchsorted(passed, steps * passed[-1])].unique()


def climb(ridge, task, alphas, start):
    """Raise the penalty chosen on some of the models as long as leave-one-out gains.

    The more models, the larger the best penalty; and each costs much.

    Parameters
    ----------
    ridge : CholeskyRidge
    task : one of ``tasks.TASKS``
    alphas : sequence of float
    start : RidgePath
        On some of the models.

    Returns
    -------
    Penalty
    """
    alphas, predictions = sorted(alphas), {}
    penalty = choose_penalty(start, task, alphas)
    while True:
        chosen = {alphas.index(alpha) for alpha in penalty.alpha.tolist()}
        wanted = chosen | {min(i + 1, len(alphas) - 1) for i in chosen}
        if wanted <= predictions.keys():
            return penalty
        for i in wanted - predictions.keys():
            alpha = torch.tensor([alphas[i]], dtype=torch.float64)
            predictions[i] = ridge.leave_one_out(alpha)[0]
        tried = sorted(predictions)
        stacked = torch.stack([predictions[i] for i in tried])
        penalty = penalty_of(stacked, ridge, task, [alphas[i] for i in tried])
