"""The centre of a Model Tree: what is subtracted from the weights of its models.

Fine-tuned models lie around their base at distances that differ by orders of magnitude,
and those that moved most drag the mean along. The robust centre weighs each model by
``1 / d^2``, d its distance from the centre: the location of a multivariate Cauchy
distribution, by iterated weights (Kent & Tyler, 1991). Distances come from a short
sketch of each model, so that the rounds read nothing.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import pad

from .batches import (
    as_dense,
    count_models,
    count_workers,
    map_batches,
    sizes_of,
    sum_models,
    take,
)
from .device import as_tensor

# Numbers that stand for a model: a distance is within some per cent of the true one.
N_SKETCHED = 512
N_ROUNDS = 10
# The nearest are heard alike: this share of all, and this many at least.
NEAREST_SHARE, MIN_NEAREST = 0.05, 3
# Models that differ by less than this share of their norm, which rounding makes, are
# copies; and near copies if by less than this share of their distances from the centre.
SAME, NEARLY_SAME = 1e-6, 0.1
# Copies are looked for in so many numbers of a sketch.
N_COMPARED = 64
# Weights in files are held between the two looks at them up to this size, else read
# again.
HELD_BYTES = 2**29
# Models compared with all others at once, and entries that are sketched.
AT_ONCE, ENTRIES_AT_ONCE = 1024, 2**18
# Entries of a sketch, in units of the models' median norm, at most.
FARTHEST = 1e100
# A model is far out if its log distance is this many times as far above the median as
# that of the tenth that is farthest, and its distance so many medians; among so many.
OUT_OF_TAIL, MIN_RATIO, MIN_JUDGED = 2.0, 4.0, 20


class Located(NamedTuple):
    """Where the models are.

    Attributes
    ----------
    center : Tensor of shape (d_out, d_in) or None
    sizes : Tensor of shape (n_models,) or None
        See `batches.sizes_of`; where a pass was made.
    outliers : Tensor of int
        Positions of models far out, ascending; see `far_out`.
    """

    center: torch.Tensor | None
    sizes: torch.Tensor | None = None
    outliers: torch.Tensor = torch.empty(0, dtype=torch.int64)


def find_center(weights, center, device, dtype):
    """Find the centre.

    Parameters
    ----------
    weights : Weights
    center : {"auto", "robust", "mean"}, None or array-like of shape (d_out, d_in)
        "robust" is the centre that models far away do not move, "mean" the mean of the
        models; None subtracts nothing. "auto" is the robust one, and nothing for
        low-rank weights, which are deltas from their base already.
    device : torch.device
    dtype : torch.dtype

    Returns
    -------
    Located
    """
    if not isinstance(center, str):
        return Located(None if center is None else as_tensor(center, dtype, device))
    if center == "mean":
        return Located(*mean_and_sizes(weights, device, dtype))
    if center == "auto" and weights.is_low_rank:
        return Located(None)
    return locate(weights, device, dtype)


def robust_center(weights, device, dtype):
    """The robust centre, ``(d_out, d_in)``; see `find_center`."""
    return locate(weights, device, dtype).center


def locate(weights, device, dtype):
    """Find the robust centre, and the models that are far from it.

    Weights are looked at twice: sketches say how much each model is heard, before any
    is summed.

    Returns
    -------
    Located
    """
    looks = TwoLooks(weights, dtype)
    d = math.prod(weights.lifted_shape[1:])
    signs = draw_signs(d).to(device, dtype)
    parts = map_batches(sketches_and_sizes, looks, device, dtype, signs)
    sketches, sizes = (torch.cat(part) for part in zip(*parts, strict=True))
    shares, outliers = weigh(sketches, sizes)
    center = weighted_mean(looks.batches(device, dtype), shares)
    return Located(center.to(dtype), sizes, outliers)


class TwoLooks:
    """Weights whose batches are held between two passes, where they are small enough.

    Attributes
    ----------
    is_lazy : bool
        Whether workers read batches for themselves; then nothing is held.
    """

    def __init__(self, weights, dtype):
        self._weights, self._held = weights, None
        self.is_lazy = weights.is_lazy and count_workers() > 1
        n_bytes = math.prod(weights.lifted_shape) * dtype.itemsize
        self._is_kept = not self.is_lazy and n_bytes <= HELD_BYTES

    def shards(self, dtype):
        return self._weights.shards(dtype)

    def batches(self, device, dtype):
        """Yield the batches of the weights."""
        if self._held is not None:
            yield from self._held
        elif not self._is_kept:
            yield from self._weights.batches(device, dtype)
        else:
            held = []
            for batch in self._weights.batches(device, dtype):
                held.append(batch)
                yield batch
            self._held = held


def draw_signs(d):
    """Random signs by which `d` entries are summed in N_SKETCHED buckets.

    The same for all weights of a shape, whatever their order.

    Returns
    -------
    Tensor of shape (n_in_bucket, n_sketched)
    """
    n_sketched = min(d, N_SKETCHED)
    shape = -(-d // n_sketched), n_sketched
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, shape, generator=generator) * 2 - 1


def sketches_and_sizes(batch, signs):
    """Sketch models (Charikar et al., 2002), and see `sizes_of`.

    Parameters
    ----------
    batch : Tensor of shape (b, d_out, d_in), or LowRankBatch
    signs : Tensor of shape (n_in_bucket, n_sketched)

    Returns
    -------
    sketches : Tensor of shape (b, n_sketched)
        float64, on the CPU.
    sizes : Tensor of shape (b,)
    """
    sketches = []
    step = max(1, ENTRIES_AT_ONCE // signs.numel())
    for start in range(0, count_models(batch), step):
        entries = as_dense(take(batch, slice(start, start + step))).flatten(1)
        entries = pad(entries, (0, signs.numel() - entries.shape[1]))
        sketches.append((entries.unflatten(1, signs.shape) * signs).sum(dim=1))
    return torch.cat(sketches).cpu().double(), sizes_of(batch)


def weigh(sketches, sizes):
    """Say how much each model is heard.

    Parameters
    ----------
    sketches : Tensor of shape (n_models, n_sketched)
    sizes : Tensor of shape (n_models,)

    Returns
    -------
    shares : Tensor of shape (n_models,)
        They sum to one.
    outliers : Tensor of int
        See `far_out`; their shares are zero.
    """
    # Sums come in one order, whatever that of the models is.
    order = sizes.argsort(stable=True)
    sketches = sketches[order]
    unit = sketches.norm(dim=1).median()
    # What overflows is far away all the same.
    sketches = (sketches / (unit if 0 < unit < math.inf else 1)).nan_to_num(FARTHEST)
    sketches = sketches.clamp(-FARTHEST, FARTHEST)
    center = _median(sketches)
    distances = (sketches - center).norm(dim=1)
    votes = 1 / count_copies(sketches - center, sketches.norm(dim=1), distances)
    for _ in range(N_ROUNDS):
        shares = _shares(distances, votes)
        distances = (sketches - shares @ sketches).norm(dim=1)
    is_out = far_out(distances)
    shares = _shares(distances, votes) * ~is_out
    back = order.argsort()
    return (shares / shares.sum())[back], is_out[back].nonzero()[:, 0]


def _median(sketches):
    """Median of each number of the sketches."""
    # torch sorts the whole column, and takes the lower of two.
    columns = np.ascontiguousarray(sketches.T.numpy())
    return torch.from_numpy(np.median(columns, axis=1, overwrite_input=True))


def _shares(distances, votes):
    """Votes over squared distances, those of the nearest all the same."""
    ordered, order = distances.sort()
    wanted = max(MIN_NEAREST, NEAREST_SHARE * votes.sum())
    nearest = torch.searchsorted(votes[order].cumsum(0), wanted * (1 - SAME))
    floor = ordered[min(int(nearest), len(ordered) - 1)]
    if floor == 0:
        return votes / votes.sum()
    shares = votes * (floor / distances.clamp_min(floor)).square()
    return shares / shares.sum()


def count_copies(deltas, norms, distances):
    """Count the copies and near copies of each model, itself included.

    Parameters
    ----------
    deltas : Tensor of shape (n_models, n_sketched)
    norms : Tensor of shape (n_models,)
        Of the models, before anything was subtracted.
    distances : Tensor of shape (n_models,)
        Norms of the deltas.

    Returns
    -------
    Tensor of shape (n_models,)
    """
    if deltas.shape[1] > N_COMPARED:
        generator = torch.Generator().manual_seed(1)
        test = torch.randn(deltas.shape[1], N_COMPARED, generator=generator)
        deltas = deltas @ (test.double() / N_COMPARED**0.5)
    limits = torch.maximum(SAME * norms, NEARLY_SAME * distances)
    squares = deltas.square().sum(dim=1)
    counts = []
    for some, own, limit in zip(
        *(part.split(AT_ONCE) for part in (deltas, squares, limits)), strict=True
    ):
        between = own[:, None] + squares - 2 * some @ deltas.T
        near = between <= torch.minimum(limit[:, None], limits).square()
        counts.append(near.sum(dim=1))
    return torch.cat(counts).clamp_min(1).double()


def far_out(distances):
    """Mark models that are far out, by the upper tail of the logarithms of distances.

    Returns
    -------
    Tensor of bool, shape (n_models,)
    """
    nearest = distances[distances > 0]
    if len(nearest) < MIN_JUDGED:
        return torch.zeros_like(distances, dtype=torch.bool)
    logs = nearest.log()
    middle, upper = torch.quantile(logs, torch.tensor([0.5, 0.9]).double())
    reach = max(math.log(MIN_RATIO), OUT_OF_TAIL * float(upper - middle))
    return distances > torch.exp(middle + reach)


def weighted_mean(batches, shares):
    """Weighted mean of models, summed in float64; models without a share are skipped.

    Returns
    -------
    Tensor of shape (d_out, d_in)
    """
    total, n_seen = 0.0, 0
    for batch in batches:
        total = total + weighted_sum(
            batch, shares[n_seen : n_seen + count_models(batch)]
        )
        n_seen += count_models(batch)
    return total


def weighted_sum(batch, shares):
    """Sum a batch of either kind over its models, each times its share."""
    first = as_dense(take(batch, slice(0, 1)))[0]
    # MPS has no float64.
    wide = first.dtype if first.device.type == "mps" else torch.float64
    total = torch.zeros_like(first, dtype=wide)
    for i, share in enumerate(shares.tolist()):
        if share:
            total.add_(as_dense(take(batch, slice(i, i + 1)))[0], alpha=share)
    return total


def mean_and_sizes(weights, device, dtype):
    """Mean over models, and sizes of the models, in one pass.

    Returns
    -------
    mean : Tensor of shape (d_out, d_in)
    sizes : Tensor of shape (n_models,)
        See `sizes_of`.
    """
    # Nothing small stays behind between the large sums: malloc could not join what they
    # leave, and memory would grow with the number of models.
    total, n_seen = 0.0, 0
    sizes = torch.empty(len(weights), dtype=torch.float64)
    for models, some_sizes in map_batches(sums_and_sizes, weights, device, dtype):
        total += models
        sizes[n_seen : n_seen + len(some_sizes)] = some_sizes
        n_seen += len(some_sizes)
    return (total / len(weights)).to(dtype), sizes


def sums_and_sizes(batch):
    """See `sum_models` and `sizes_of`."""
    return sum_models(batch), sizes_of(batch)
