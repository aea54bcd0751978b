"""Several layers: which of them, which views of each, and how loud, by leave-one-out.

A block is what may be added to the sum: the features of one view of one layer (or of
the views asked for, joined), at unit spread. Blocks are ranked by the leave-one-out
score that each reaches alone, and added in that order where the score of the sum rises.
"""

from dataclasses import dataclass, replace

import torch

from ..views import MATRIX_VIEWS
from .probes import ProbedView
from .selection import (
    compare_normalizations,
    is_normalized,
    join,
    with_normalization,
)

# Blocks considered at most, and bytes of their kernels.
MAX_BLOCKS = 32
KERNEL_BYTES = 2**31
# Share of what is left to gain that a block must win to be added.
MIN_GAIN = 0.01
# How much louder or softer a chosen block may become.
FACTORS = (0.25, 0.5, 2.0, 4.0)


@dataclass
class Block:
    """Features that may be added to a sum, and where they are from.

    Attributes
    ----------
    name : str or None
        The layer.
    center, sketch : Tensor or None
        Of the layer.
    views : list of ProbedView
    normalize : bool
    features : Tensor of shape (n_models, n_features)
    kernel : Tensor of shape (n_models, n_models) or None
        None where the primal is the smaller.
    rank : tuple of float
        See `Choice.rank`.
    """

    name: str | None
    center: torch.Tensor | None
    sketch: torch.Tensor | None
    views: list[ProbedView]
    normalize: bool
    features: torch.Tensor
    kernel: torch.Tensor | None = None
    rank: tuple = ()

    @property
    def is_constant(self):
        """Whether all models have the same features; otherwise their spread is one."""
        deviations = self.features - self.features.mean(dim=0)
        return bool(deviations.square().sum(dim=1).mean() < 0.5)


def as_blocks(name, deltas, candidates, probed, features):
    """Make a block of each candidate of one layer."""
    return [
        Block(name, deltas.center, deltas.sketch, [view], normalize, own)
        for view, (_, normalize), own in zip(probed, candidates, features, strict=True)
    ]


def best_blocks(blocks, candidates, ridges, is_auto):
    """Choose the blocks of one layer that are worth considering.

    With ``views="auto"`` a view and its logarithm compete, and all have the
    normalisation of the best; otherwise the views asked for are one block.

    Parameters
    ----------
    blocks : list of Block
        One for each candidate.
    candidates : list of (str, bool)
    ridges : Ridges
        On the candidates' features.
    is_auto : bool

    Returns
    -------
    blocks : list of Block
        With their ranks.
    scores : dict of str to float
        Leave-one-out score of every view, or of the views asked for.
    """
    if not is_auto:
        choice, scores = compare_normalizations(candidates, ridges.fit)
        chosen = [blocks[i] for i in choice.members]
        joined = replace(
            chosen[0],
            views=[view for block in chosen for view in block.views],
            normalize=is_normalized(candidates, choice.members),
            features=join([block.features for block in chosen]),
            kernel=None,
            rank=choice.rank,
        )
        return [joined], scores
    scores = {}
    for i, ((view, _), block) in enumerate(zip(candidates, blocks, strict=True)):
        choice = ridges.fit((i,))
        block.rank, block.kernel = choice.rank, ridges.kernels[i]
        scores[view] = max(choice.score, scores.get(view, choice.score))
    best = max(range(len(blocks)), key=lambda i: blocks[i].rank)
    of_kind = {}
    for i in with_normalization(candidates, is_normalized(candidates, (best,))):
        if blocks[i].is_constant and i != best:
            continue
        kind = _kind(candidates[i][0])
        if kind not in of_kind or blocks[i].rank > of_kind[kind].rank:
            of_kind[kind] = blocks[i]
    return list(of_kind.values()), scores


def _kind(name):
    """What a view looks at, however loud."""
    if name == "spectrum":
        return name
    return MATRIX_VIEWS[name].left, MATRIX_VIEWS[name].right


def keep_best(blocks):
    """Sort blocks, best first, and forget those beyond what memory is bounded to."""
    n_models = len(blocks[0].features)
    n_kept = min(MAX_BLOCKS, max(4, KERNEL_BYTES // (8 * n_models**2)))
    return sorted(blocks, key=lambda block: block.rank, reverse=True)[:n_kept]


def fuse(blocks, fit, n_layers=None):
    """Add blocks, best first, where the sum gains; then find how loud each should be.

    Parameters
    ----------
    blocks : list of Block
        Best first.
    fit : callable
        ``Ridges.fit``.
    n_layers : int, optional
        Layers to use at most.

    Returns
    -------
    Choice
    """

    def layers_of(members):
        return {blocks[i].name for i in members}

    best = fit((0,))
    for i in range(1, len(blocks)):
        members = (*best.members, i)
        if n_layers is not None and len(layers_of(members)) > n_layers:
            continue
        choice = fit(members)
        if choice.score > best.score + MIN_GAIN * (1 - best.score):
            best = choice
    if n_layers is None or len(layers_of(range(len(blocks)))) <= n_layers:
        # Many that gain little one by one may gain much together.
        everything = fit(tuple(range(len(blocks))))
        if everything.rank > best.rank:
            best = everything
    for position in range(len(best.members) if len(best.members) > 1 else 0):
        for factor in FACTORS:
            shares = list(best.shares)
            shares[position] *= factor
            total = sum(shares)
            choice = fit(best.members, tuple(share / total for share in shares))
            if choice.rank > best.rank:
                best = choice
    return best


def in_order(choice, blocks, names):
    """Sort the members of a choice by layer, so that each layer's stand together."""
    order = sorted(
        range(len(choice.members)),
        key=lambda j: (names.index(blocks[choice.members[j]].name), j),
    )
    return replace(
        choice,
        members=tuple(choice.members[j] for j in order),
        shares=tuple(choice.shares[j] for j in order),
    )
