"""With many models, some of them decide which views are used; all of them are fitted.

Comparing views takes an eigendecomposition of all models for each view and each sum of
views. On a sample of bounded size that is a fixed cost, and the time of a fit grows
with the number of models as reading them does.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..device import solver_device
from .path import AT_ONCE, centred_span

# Views are compared, and probes computed, on at most so many models. Measured on 700
# models of 40 classes (benchmarks/sampling.py): within .15 points of all.
MAX_COMPARED = 512
# Where there are more models, and more features, than this, features are reduced to the
# span of those of so many models and of the sample. Measured on 2400 models of 40
# classes (benchmarks/sampling.py): that loses .05 points at most.
MAX_DECOMPOSED = 1024


def draw_sample(deltas, task):
    """Choose the models that views are compared on, where there are too many for all.

    Parameters
    ----------
    deltas : DecomposedDeltas
        Of any layer.
    task : Task

    Returns
    -------
    Tensor of int, shape (n_sampled,), or None
        Their positions, ascending. None: all models.
    """
    if len(task) <= MAX_COMPARED:
        return None
    return choose_models(MAX_COMPARED, deltas.sizes, task)


def probe_all(layers, opened, sample, task, progress):
    """Probe the models that are not in the sample, and put all in order.

    Parameters
    ----------
    layers : list of (ProbedLayer, Tensor of shape (n_sampled, n_features))
        With the features of the sample; emptied, so that they are let go of.
    opened : dict of str to DecomposedDeltas
        Of all models, by layer.
    sample : Tensor of int, shape (n_sampled,)
    task : Task
        Of all models.
    progress : callable or None
        Called with the number of models that were decomposed.

    Returns
    -------
    features : Tensor of shape (n_models, n_features)
        Reduced where both are more than `MAX_DECOMPOSED`.
    reduction : Reduction or None
    """
    is_known = torch.zeros(len(task), dtype=torch.bool)
    is_known[sample] = True
    added = sample[:0]
    widths = [features.shape[1] for _, features in layers]
    is_reduced = min(len(task), sum(widths)) > MAX_DECOMPOSED
    if is_reduced:
        sizes = next(iter(opened.values())).sizes
        some = choose_models(MAX_DECOMPOSED, sizes, task)
        added = some[~is_known[some]]
        is_known[added] = True
    known, rest = torch.cat([sample, added]), (~is_known).nonzero().squeeze(1)

    def probe(layer, models, reduce=None):
        if not len(models):
            return []
        deltas = opened[layer.name].take(models)
        return [layer.probe(deltas, reduce, progress)]

    probed, parts = [layer for layer, _ in layers], []
    while layers:
        layer, features = layers.pop(0)
        parts.append(torch.cat([features, *probe(layer, added)]))
        del features
    seen, reduction = torch.cat(parts, dim=1), None
    del parts
    if is_reduced:
        weight = None if task.weight is None else task.weight[known]
        reduction = Reduction.fit(seen, weight)
        seen = reduction.reduce(seen)
        parts = [
            probe(layer, rest, part.reduce)
            for layer, part in zip(probed, reduction.split(widths), strict=True)
        ]
        unseen = [sum(part) for part in zip(*parts, strict=True)]
    else:
        unseen = [torch.cat([probe(layer, rest)[0] for layer in probed], dim=1)]
    features = seen.new_empty(len(task), seen.shape[1])
    features[known] = seen
    for part in unseen:  # one, or none where all models are known
        features[rest] = part
    return features, reduction


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


def choose_models(n_chosen, sizes, task):
    """Choose models that stand for all, whatever order they come in.

    They are spread evenly over the sizes of the models. Half of them are shared out
    between the classes, so that the rare ones are heard.

    Parameters
    ----------
    n_chosen : int
        Fewer than there are.
    sizes : Tensor of shape (n_models,)
        See `batches.sizes_of`.
    task : Task

    Returns
    -------
    Tensor of int, shape (at most n_chosen,)
        Positions, ascending.
    """
    targets, rarity = task.targets.cpu(), task.rarity
    # Models of one size come in the order of their targets.
    order = torch.from_numpy(np.lexsort((*targets.T.numpy(), sizes.numpy())))
    frequency = 1 / len(sizes) + rarity / rarity.sum().clamp_min(1)
    passed = frequency[order].cumsum(0)
    steps = (torch.arange(n_chosen, dtype=passed.dtype) + 0.5) / n_chosen
    return order[torch.searchsorted(passed, steps * passed[-1])].unique()
