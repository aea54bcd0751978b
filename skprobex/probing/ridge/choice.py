"""Which features the ridge reads: views, layers and how loud, by exact leave-one-out.

A block is what may be added to the sum: the features of one view of one layer (or of
the views asked for, joined), at unit spread. Blocks are ranked by the leave-one-out
score that each reaches alone, and added in that order where the score of the sum rises.
One layer is chosen from as several are.
"""

from dataclasses import dataclass, replace

import torch

from ..tasks import Penalty
from .path import RidgePath, centred_kernel
from .probes import ProbedView

# Blocks considered at most, and bytes of their kernels.
MAX_BLOCKS = 32
KERNEL_BYTES = 2**31
# Share of what is left to gain that a block must win to be added.
MIN_GAIN = 0.01
# How much louder or softer a chosen block may become.
FACTORS = (0.25, 0.5, 2.0, 4.0)


@dataclass(frozen=True)
class Block:
    """Features that may be added to a sum, and where they are from.

    Attributes
    ----------
    place : (int, int)
        Numbers of its layer and view, by which blocks are joined.
    layer : str
    views : list of ProbedView
    normalize : bool or None
        None where the views are those of both normalisations.
    features : Tensor of shape (n_models, n_features)
    kernel : Tensor of shape (n_models, n_models) or None
        None where the primal is the smaller.
    penalty : Penalty or None
        That of the block alone.
    """

    place: tuple
    layer: str
    views: list[ProbedView]
    normalize: bool | None
    features: torch.Tensor
    kernel: torch.Tensor | None = None
    penalty: Penalty | None = None

    @property
    def name(self):
        return "+".join(view.name for view in self.views)

    @property
    def is_constant(self):
        """Whether all models have the same features; otherwise their spread is one."""
        deviations = self.features - self.features.mean(dim=0)
        return bool(deviations.square().sum(dim=1).mean() < 0.5)


@dataclass(frozen=True)
class Choice:
    """Blocks that are joined, and the ridge on them.

    Attributes
    ----------
    blocks : tuple of Block
        Those of a layer stand together.
    shares : tuple of float
        Share of each in the squared norm of the joined features; they sum to one.
    path : RidgePath
    penalty : Penalty
    """

    blocks: tuple
    shares: tuple
    path: RidgePath
    penalty: Penalty

    @property
    def score(self):
        return self.penalty.score

    @property
    def rank(self):
        return self.penalty.rank

    @property
    def name(self):
        return "+".join(block.name for block in self.blocks)

    @property
    def layers(self):
        return {block.layer for block in self.blocks}

    def joined_features(self):
        """Features of all blocks, ``(n_models, n_features)``."""
        features = [block.features.to(self.path.targets) for block in self.blocks]
        return join(features, self.shares)


def join(features, shares):
    """Join the features of several views, each with its share of the squared norm."""
    parts = [part * share**0.5 for part, share in zip(features, shares, strict=True)]
    return torch.cat(parts, dim=1)


def fit_blocks(blocks, task, alphas, shares=None):
    """Fit a ridge to joined blocks, and choose its penalty.

    Parameters
    ----------
    blocks : sequence of Block
        In any order.
    task : Task
    alphas : sequence of float
    shares : sequence of float, optional
        None shares equally.

    Returns
    -------
    Choice
    """
    shares = shares or (1 / len(blocks),) * len(blocks)
    order = sorted(range(len(blocks)), key=lambda i: blocks[i].place)
    blocks, shares = (tuple(part[i] for i in order) for part in (blocks, shares))
    n_features = sum(block.features.shape[1] for block in blocks)
    if len(task) <= n_features:
        kernels = [_kernel_of(block, task) for block in blocks]
        kernel = sum(k * share for k, share in zip(kernels, shares, strict=True))
        path = RidgePath(None, task.targets, task.weight, kernel)
    else:
        features = join([block.features.to(task.targets) for block in blocks], shares)
        path = RidgePath(features, task.targets, task.weight)
    return Choice(blocks, shares, path, task.choose_penalty(path, alphas))


def _kernel_of(block, task):
    if block.kernel is not None:
        return block.kernel
    return centred_kernel(block.features.to(task.targets), task.weight)


class ViewSearch:
    """The search for the blocks whose sum leave-one-out scores best.

    Parameters
    ----------
    candidates : list of Candidate
    is_auto : bool
        Whether views compete; otherwise all that are asked for are one block, and only
        their normalisation is compared.
    task : Task
        Of the models that are compared.
    alphas : sequence of float

    Attributes
    ----------
    scores : dict of str to dict of str to float
        By layer, the best leave-one-out score of every view, or sum of views, that was
        compared.
    """

    def __init__(self, candidates, is_auto, task, alphas):
        self.candidates, self.is_auto = candidates, is_auto
        self.task, self.alphas = task, alphas
        self.scores = {}
        self._blocks = []

    def add_layer(self, layer, probed, features):
        """Compare the views of one layer, and keep the blocks worth considering.

        Parameters
        ----------
        layer : str
        probed : list of ProbedView
            One for each candidate.
        features : list of Tensor of shape (n_models, n_features)
        """
        number = len(self.scores)
        self.scores[layer] = {}
        parts = zip(self.candidates, probed, features, strict=True)
        blocks = [
            Block((number, i), layer, [view], candidate.normalize, own)
            for i, (candidate, view, own) in enumerate(parts)
        ]
        blocks = self._rank_views(blocks) if self.is_auto else self._join_views(blocks)
        blocks = sorted(self._blocks + blocks, key=_rank, reverse=True)
        n_kept = min(MAX_BLOCKS, max(4, KERNEL_BYTES // (8 * len(self.task) ** 2)))
        self._blocks = blocks[:n_kept]

    def _rank_views(self, blocks):
        """One block of each kind of view, in the normalisation of the best."""
        blocks = [self._fit_alone(block) for block in blocks]
        best = max(blocks, key=_rank)
        normalize = True if best.normalize is None else best.normalize
        of_kind = {}
        for block in blocks:
            is_joinable = block.normalize in (None, normalize)
            if not is_joinable or (block.is_constant and block is not best):
                continue
            kind = block.views[0].view.kind
            if kind not in of_kind or _rank(block) > _rank(of_kind[kind]):
                of_kind[kind] = block
        return list(of_kind.values())

    def _join_views(self, blocks):
        """All views as one block, in the normalisation that does best."""
        options = {block.normalize for block in blocks} - {None} or {True}
        joined = [
            self._join([b for b in blocks if b.normalize in (None, normalize)])
            # Normalised first: without a better score, that is kept.
            for normalize in sorted(options, reverse=True)
        ]
        return [max(map(self._fit_alone, joined), key=_rank)]

    def _join(self, blocks):
        options = {block.normalize for block in blocks} - {None}
        shares = (1 / len(blocks),) * len(blocks)
        return replace(
            blocks[0],
            views=[view for block in blocks for view in block.views],
            normalize=options.pop() if options else None,
            features=join([block.features for block in blocks], shares),
        )

    def _fit_alone(self, block):
        """Fit the ridge on one block, and keep what it takes to join it."""
        kernel = None
        if len(self.task) <= block.features.shape[1]:
            kernel = _kernel_of(block, self.task)
        block = replace(block, kernel=kernel)
        choice = self._fit([block])
        return replace(block, penalty=choice.penalty)

    def _fit(self, blocks, shares=None):
        choice = fit_blocks(blocks, self.task, self.alphas, shares)
        if len(choice.layers) == 1:
            scores = self.scores[blocks[0].layer]
            scores[choice.name] = max(choice.score, scores.get(choice.name, -torch.inf))
        return choice

    def choose(self, n_layers=None):
        """Add blocks, best first, where the sum gains; then find how loud each is.

        Parameters
        ----------
        n_layers : int, optional
            Layers to use at most.

        Returns
        -------
        Choice
        """
        blocks = self._blocks
        best, chosen = self._fit(blocks[:1]), blocks[:1]
        for block in blocks[1:]:
            if best.score >= 1:
                return best
            if n_layers is not None and len(best.layers | {block.layer}) > n_layers:
                continue
            choice = self._fit([*chosen, block])
            if _gains(choice, best):
                best, chosen = choice, [*chosen, block]
        if n_layers is None or len({block.layer for block in blocks}) <= n_layers:
            # Many that gain little one by one may gain much together.
            everything = self._fit(blocks)
            if everything.rank > best.rank:
                best = everything
        return self._tune_shares(best)

    def _tune_shares(self, best):
        """Try each block louder and softer."""
        for position in range(len(best.blocks) if len(best.blocks) > 1 else 0):
            for factor in FACTORS:
                shares = list(best.shares)
                shares[position] *= factor
                total = sum(shares)
                shares = tuple(share / total for share in shares)
                choice = self._fit(best.blocks, shares)
                if choice.rank > best.rank:
                    best = choice
        return best


def _rank(block):
    return block.penalty.rank


def _gains(choice, best):
    return choice.score > best.score + MIN_GAIN * (1 - best.score)
