"""With many models, some of them decide which views are used; all of them are fitted.

Comparing views takes an eigendecomposition of all models for each view and each sum of
views. On a sample of bounded size that is a fixed cost, and the time of a fit grows
with the number of models as reading them does.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from ..device import solver_device
from ..naming import Naming
from .path import AT_ONCE, centred_span
from .selection import Ridges

# Views are compared, and probes computed, on at most so many models. Measured on 700
# models of 40 classes (benchmarks/sampling.py): within .15 points of all.
MAX_COMPARED = 512
# Where there are more models, and more features, than this, features are reduced to the
# span of those of so many models and of the sample. Measured on 2400 models of 40
# classes (benchmarks/sampling.py): that loses .05 points at most.
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
    features : dict of str to list of Tensor of shape (n_sampled, n_features)
        Of the chosen views, once they are chosen, by layer.
    """

    models: torch.Tensor | None
    sizes: torch.Tensor | None
    targets: torch.Tensor
    task: object
    sample_weight: torch.Tensor | None
    features: dict = field(default_factory=dict)

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

    def keep(self, blocks, choice):
        """Keep the features of the chosen blocks, as they are joined.

        Parameters
        ----------
        blocks : list of Block
        choice : Choice
        """
        for i, share in zip(choice.members, choice.shares, strict=True):
            parts = self.features.setdefault(blocks[i].name, [])
            parts.append(blocks[i].features * share**0.5)

    def probe_all(self, layers, opened, targets, task, sample_weight):
        """Probe all models; the features of the sample are known, and let go of.

        Parameters
        ----------
        layers : list of ProbedLayer
        opened : dict of str to DecomposedDeltas
            Of all models, by layer.
        targets, task, sample_weight
            Of all models.

        Returns
        -------
        features : Tensor of shape (n_models, n_features)
            Reduced where both are more than `MAX_DECOMPOSED`.
        reduction : Reduction or None
        """
        is_known = torch.zeros(len(targets), dtype=torch.bool)
        is_known[self.models] = True
        added = self.models[:0]
        n_features = sum(
            part.shape[1] for parts in self.features.values() for part in parts
        )
        is_reduced = min(len(targets), n_features) > MAX_DECOMPOSED
        if is_reduced:
            some = choose_models(MAX_DECOMPOSED, self.sizes, targets, task)
            added = some[~is_known[some]]
            is_known[added] = True
        known, rest = torch.cat([self.models, added]), (~is_known).nonzero().squeeze(1)

        def probe(layer, models, reduce=None):
            deltas = opened[layer.name].take(models)
            return [layer.probe(deltas, reduce)] if len(models) else []

        parts = []
        for layer in layers:
            of_sample = torch.cat(self.features.pop(layer.name), dim=1)
            parts.append(torch.cat([of_sample, *probe(layer, added)]))
        del of_sample
        widths = [part.shape[1] for part in parts]
        seen, reduction = torch.cat(parts, dim=1), None
        del parts
        if is_reduced:
            weight = None if sample_weight is None else sample_weight[known]
            reduction = Reduction.fit(seen, weight)
            seen = reduction.reduce(seen)
            parts = [
                probe(layer, rest, part.reduce)
                for layer, part in zip(layers, reduction.split(widths), strict=True)
            ]
            unseen = [sum(part) for part in zip(*parts, strict=True)]
        else:
            unseen = [torch.cat([probe(layer, rest)[0] for layer in layers], dim=1)]
        features = seen.new_empty(len(targets), seen.shape[1])
        features[known] = seen
        for part in unseen:  # one, or none where all models are known
            features[rest] = part
        return features, reduction

    def ridges(self, features, alphas, kernels=None):
        """Ridges on candidates' features of the sample."""
        return Ridges(
            features, self.targets, self.task, alphas, self.sample_weight, kernels
        )


@dataclass
class Reduction:
    """Features of all models, in the span of the features of some.

    The ridge on them is the Nyström approximation of that on all features (Williams &
    Seeger, 2001): its coefficients are sums of the features of some models. What it
    takes does not grow with the square of the number of models.

    Attributes
    ----------
    mean : Tensor of shape (n_features,)
    directions : Tensor of shape (n_directions, n_features)
        Orthonormal rows.
    """

    mean: torch.Tensor
    directions: torch.Tensor

    @classmethod
    def fit(cls, features, sample_weight):
        """Take the span of the features of some models.

        Parameters
        ----------
        features : Tensor of shape (n_models, n_features)
        sample_weight : Tensor of shape (n_models,) or None
        """
        mean, directions = centred_span(
            features.to(solver_device(features.device)), sample_weight
        )
        return cls(mean.to(features), directions.to(features))

    def reduce(self, features):
        """Reduce features to coordinates, ``(n_models, n_directions)``."""
        rows = features.split(AT_ONCE)
        return torch.cat([(some - self.mean) @ self.directions.T for some in rows])

    def split(self, widths):
        """What reduces parts of the features, of these widths; the sum is reduced."""
        means, directions = self.mean.split(widths), self.directions.split(widths, 1)
        return [Reduction(*part) for part in zip(means, directions, strict=True)]

    def restore(self, vectors):
        """Take vectors of coordinates, ``(n, n_directions)``, back to features."""
        columns = self.directions.split(AT_ONCE, dim=1)
        return torch.cat([vectors @ part.to(vectors) for part in columns], dim=-1)


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
