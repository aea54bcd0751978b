"""collect_activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from .._progress import ProgressBar
from .._typing import Device
from ._batches import (
    count_inputs,
    count_samples,
    iterate_batches,
    own_inputs,
    run_module,
    to_device,
)
from ._layer import Layer, Seen, at_rest, named_mask
from ._moments import (
    Activations,
    ClassMoments,
    MomentSums,
    check_rows,
    number_classes,
    settle_moments,
)


def collect_activations(
    module: torch.nn.Module,
    layer: str,
    inputs: Any,
    y: ArrayLike | None = None,
    *,
    max_rows: int | None = None,
    collate: Callable[[list], Any] | None = None,
    forward: Callable[[torch.nn.Module, Any], Any] | None = None,
    batch_size: int = 32,
    device: Device | None = None,
    verbose: int = 0,
) -> Activations | ClassMoments:
    """Run a base over examples, and collect what one of its layers is given.

    Each position of each example, a token or a patch, is a row. Padding is not: it is
    told by the ``attention_mask`` of a batch.

    Parameters
    ----------
    module : torch.nn.Module
        The base that the models were fine-tuned from: any module, also of
        transformers, sentence-transformers or timm. It is run without gradients, in
        evaluation mode, and left as it was.
    layer : str
        Name of the layer as ``module.named_modules()`` has it, or the end of it where
        only one layer ends so; with or without ".weight". Linear, Conv2d (whose rows
        are patches, unfolded as its filters are), or Conv1D of transformers.
    inputs : Tensor, dict of tensors, sequence, or iterable of batches
        Tensors have an example a row. Items of a sequence are examples. Anything else,
        such as a DataLoader, yields batches; of batches of pairs, the first is taken.
    y : array-like of shape (n_samples,), default=None
        The class of each example. Then rows are not kept, but summed up, class by
        class, as they come.
    max_rows : int, default=None
        Rows of one example that are kept at most, evenly spaced. None keeps all. Has
        no part in the sums, which hold all.
    collate : callable, default=None
        Turns a list of examples into a batch; by default they are stacked, and texts
        become tokens where the module can do that.
    forward : callable, default=None
        ``forward(module, batch)`` runs the module, where it is not called with the
        batch (with its entries by name, if it is a dict).
    batch_size : int, default=32
        Examples that are run at once, unless `inputs` yields batches.
    device : str or torch.device, default=None
        Where to run; None is where the module is.
    verbose : int, default=0
        0 prints nothing; 1 shows a progress bar on stderr.

    Returns
    -------
    Activations or ClassMoments
        Without `y`, the rows, and the example that each belongs to: memory grows with
        them. With `y`, the second moments of the classes, ``d_in * d_in`` numbers each.

    Raises
    ------
    ValueError, TypeError
        No such layer, one of another kind, or one that the module does not run; NaN; a
        class without rows; labels that are not as many as examples; positions that
        cannot be told from padding, or whose example cannot be told.

    See Also
    --------
    collect_gradients : Says more, where the module can be differentiated.
    simulate_models : What fine-tuning on these examples would do to the layer.

    Examples
    --------
    >>> import torch
    >>> from skprobex.simulation import collect_activations
    >>> base = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3))
    >>> images = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    >>> collect_activations(base, "1", images)
    Activations(8 samples, 8 rows of 5)
    >>> collect_activations(base, "1", images, y=["cat", "dog"] * 4)
    ClassMoments(2 classes, 3 x 5, '1')
    """
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows={max_rows}: expected 1 at least, or None.")
    target = Layer(module, layer)
    if y is None:
        keep = _Rows(max_rows)
    else:
        keep = _Sums(y, target.weight_shape[1])
    n_samples = 0
    total = count_inputs(inputs)
    with (
        ProgressBar(verbose, "collecting activations", total, "sample") as bar,
        at_rest(module, device) as home,
        torch.no_grad(),
    ):
        for batch in iterate_batches(inputs, batch_size, collate, module):
            batch = to_device(own_inputs(batch), home)
            size, mask = count_samples(batch), named_mask(batch)
            if not size:
                continue
            seen: list[Seen] = []

            def look(given, seen=seen, size=size, mask=mask):
                seen.append(target.assign(given, size, mask))

            with target.watched(look):
                run_module(module, batch, forward)
            if not seen:
                raise ValueError(
                    f"The module does not run layer {target.name!r} on these inputs, "
                    "or uses its weights without calling it: take another layer."
                )
            for rows, samples in seen:
                check_rows(rows, samples, n_samples)
                keep.add(rows.float(), samples + n_samples)
            n_samples += size
            bar.update(size)
    if not n_samples:
        raise ValueError("inputs holds no examples: expected one at least.")
    return keep.settle(n_samples, target)


class _Rows:
    """Keeps rows, evenly spaced where there are too many of an example."""

    def __init__(self, max_rows):
        self.max_rows, self.parts = max_rows, []

    def add(self, rows, samples):
        if self.max_rows is not None:
            kept = _thin_out(samples.cpu(), self.max_rows).to(rows.device)
            rows, samples = rows[kept], samples[kept]
        # A copy, not a view that would keep all rows alive.
        self.parts.append((rows.cpu().clone(), samples.cpu().clone()))

    def settle(self, n_samples, layer):
        rows, samples = (
            torch.cat(part).numpy() for part in zip(*self.parts, strict=True)
        )
        return Activations(rows, samples, n_samples, layer.weight_shape, layer.name)


class _Sums:
    """Sums rows up by the class of their example."""

    def __init__(self, y, d_in):
        self.classes, self.codes = number_classes(y)
        self.sums = MomentSums(len(self.classes), d_in)

    def add(self, rows, samples):
        last = int(samples.max()) if len(samples) else 0
        if last >= len(self.codes):
            raise ValueError(
                f"y has {len(self.codes)} entries, but inputs holds more examples: "
                "expected the class of each."
            )
        self.sums.add(rows, torch.from_numpy(self.codes).to(samples.device)[samples])

    def settle(self, n_samples, layer):
        number_classes(self.codes, n_samples)
        return settle_moments(
            self.sums, self.classes, self.codes, layer.weight_shape, layer.name
        )


def _thin_out(samples, max_rows):
    """Positions of at most `max_rows` rows of each sample, evenly spaced."""
    samples = samples.numpy()
    starts = np.flatnonzero(np.r_[True, samples[1:] != samples[:-1]])
    kept = []
    for start, count in zip(starts, np.diff(np.r_[starts, len(samples)]), strict=True):
        n_kept = min(count, max_rows)
        kept.append(start + (np.arange(n_kept) * count) // n_kept)
    return torch.from_numpy(np.concatenate(kept)) if kept else torch.empty(0).long()
