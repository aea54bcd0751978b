"""collect_gradients, and the random heads that gradients are taken under."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .._progress import ProgressBar
from .._typing import Device
from ..probing.device import make_generator
from ._batches import own_labels, run_module, to_device
from ._layer import Layer, at_rest, named_mask
from ._moments import ClassMoments

Loss = Callable[[Any, Any, torch.Generator], torch.Tensor]


class RandomHead:
    """Loss under a fresh random linear head, as fine-tuning begins with one.

    Parameters
    ----------
    n_outputs : int, default=20
        Units of the head. Examples are of the unit that their label says, of unit 0 if
        they have none. One unit tells examples labelled 1 from those labelled 0.
    pool : callable, default=None
        Turns what the module returns into features ``(n_samples, width)``. None: a
        tensor as it is, the mean of its positions if it has any, without padding; of a
        sentence-transformer its embedding.

    Examples
    --------
    >>> import torch
    >>> from skprobex.simulation import RandomHead
    >>> features = torch.ones(4, 8)
    >>> loss = RandomHead(n_outputs=5)
    >>> loss(features, features, torch.Generator().manual_seed(0)).ndim
    0
    """

    def __init__(
        self, n_outputs: int = 20, pool: Callable[[Any], torch.Tensor] | None = None
    ) -> None:
        if n_outputs < 1:
            raise ValueError(f"n_outputs={n_outputs}: expected 1 at least.")
        self.n_outputs, self.pool = n_outputs, pool

    def __call__(
        self, outputs: Any, batch: Any, generator: torch.Generator
    ) -> torch.Tensor:
        """Draw a head, and compute the mean loss of a batch."""
        features = self.pool(outputs) if self.pool else _pooled(outputs, batch)
        bound = features.shape[1] ** -0.5
        # Within one over the root of d_in, as torch.nn.Linear begins.
        weight, bias = (
            torch.empty(shape).uniform_(-bound, bound, generator=generator).to(features)
            for shape in ((self.n_outputs, features.shape[1]), (self.n_outputs,))
        )
        logits = F.linear(features, weight, bias)
        labels = own_labels(batch)
        if self.n_outputs == 1:
            if labels is None:
                raise ValueError(
                    "A head of one unit needs labels, 1 for examples of the concept "
                    'and 0 for others: pass batches of pairs, or with "labels".'
                )
            return F.binary_cross_entropy_with_logits(
                logits[:, 0], labels.to(logits).flatten()
            )
        if labels is None:
            labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return F.cross_entropy(logits, labels.to(logits.device).long().flatten())


def collect_gradients(
    module: torch.nn.Module,
    layer: str,
    batches: Mapping[Any, Any],
    loss: Loss,
    n_heads: int = 6,
    *,
    forward: Callable[[torch.nn.Module, Any], Any] | None = None,
    device: Device | None = None,
    random_state: int = 0,
    verbose: int = 0,
) -> ClassMoments:
    r"""Collect the gradients of a layer's weight on examples of each class.

    .. math:: M_c = E[G^T G / \|G\|^2], \quad E[G G^T / \|G\|^2],

    G the gradient of the loss on a batch of class c, the mean taken over its batches
    and over fresh random heads. The moments are those of the gradient of a *batch*, in
    which examples that agree add up: pass them together, not one by one.

    Parameters
    ----------
    module : torch.nn.Module
        The base that the models were fine-tuned from. It is run in evaluation mode and
        left as it was; no ``.grad`` is touched.
    layer : str
        As `collect_activations` has it.
    batches : dict
        For each class, concept or data set, by its name, a batch that the module is
        called with, or a list of batches. A batch may be a pair of inputs and labels,
        or have "labels" beside its inputs. Of a concept that models tell from others,
        pass both: as many others, labelled 0.
    loss : callable
        ``loss(outputs, batch, generator)`` draws a fresh head from the generator and
        returns a scalar; `RandomHead` does, for classes and for concepts.
    n_heads : int, default=6
        Heads that are drawn for each batch.
    forward : callable, default=None
        ``forward(module, batch)`` runs the module, as in `collect_activations`.
    device : str or torch.device, default=None
        Where to run; None is where the module is.
    random_state : int, default=0
        Seeds the heads, the same ones for all classes.
    verbose : int, default=0
        0 prints nothing; 1 shows a progress bar on stderr.

    Returns
    -------
    ClassMoments
        On both sides, each moment of trace 1.

    Raises
    ------
    ValueError, TypeError
        No such layer, or of another kind; a loss that is no scalar, does not depend on
        the layer, or whose gradient is zero or NaN; the message names the class.

    See Also
    --------
    collect_activations : Where the module cannot be differentiated.
    DataMatcher : Which of these data sets a model was trained on.

    Examples
    --------
    >>> import torch
    >>> from skprobex.simulation import RandomHead, collect_gradients
    >>> base = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU())
    >>> drawn = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))
    >>> batches = {"cat": drawn[0], "dog": drawn[1]}
    >>> collect_gradients(base, "0", batches, RandomHead())
    ClassMoments(2 classes, 5 x 6, '0')
    """
    if not isinstance(batches, Mapping) or not batches:
        raise TypeError(
            f"batches is of type {type(batches).__name__}: expected a dict with the "
            "batches of each class, by its name."
        )
    if n_heads < 1:
        raise ValueError(f"n_heads={n_heads}: expected 1 at least.")
    target = Layer(module, layer)
    d_out, d_in = target.weight_shape
    inputs = np.zeros((len(batches), d_in, d_in), dtype=np.float32)
    outputs = np.zeros((len(batches), d_out, d_out), dtype=np.float32)
    n_samples = np.zeros(len(batches), dtype=np.int64)
    weight = target.module.weight
    needed = weight.requires_grad
    with (
        ProgressBar(verbose, "collecting gradients", len(batches), "class") as bar,
        at_rest(module, device) as home,
    ):
        weight = target.module.weight
        weight.requires_grad_(True)
        try:
            for c, (name, own) in enumerate(batches.items()):
                found = []
                for batch in own if isinstance(own, list) else [own]:
                    moved = to_device(batch, home)
                    n_samples[c] += len(next(_tensors(moved), ()))
                    for number in range(n_heads):
                        generator = make_generator(random_state + number)
                        with torch.enable_grad():
                            value = loss(
                                run_module(module, moved, forward), moved, generator
                            )
                            gradient = _gradient(value, weight, name, target.name)
                        found.append(target.as_matrix(gradient))
                for gradient in found:
                    inputs[c] += (gradient.mT @ gradient / len(found)).cpu().numpy()
                    outputs[c] += (gradient @ gradient.mT / len(found)).cpu().numpy()
                bar.update(1)
        finally:
            weight.requires_grad_(needed)
    classes = np.empty(len(batches), dtype=object)
    classes[:] = list(batches)
    if all(isinstance(name, (str, int, np.integer)) for name in batches):
        classes = np.array(list(batches))
    return ClassMoments(classes, inputs, n_samples, (d_out, d_in), target.name, outputs)


def _gradient(value, weight, name, layer):
    """Gradient of unit norm, or say why there is none."""
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        raise ValueError(
            f"The loss of class {name!r} is no scalar: expected the mean over a batch."
        )
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, weight, allow_unused=True)
    if gradient is None:
        raise ValueError(
            f"The loss of class {name!r} does not depend on layer {layer!r}: is it "
            "run, and is nothing detached on the way?"
        )
    gradient = gradient.detach().float()
    norm = torch.linalg.vector_norm(gradient)
    if not torch.isfinite(norm) or norm == 0:
        what = "zero" if norm == 0 else "NaN or infinite"
        raise ValueError(
            f"The gradient of layer {layer!r} on class {name!r} is {what}: look at its "
            "examples and at the loss."
        )
    return gradient / norm


def _pooled(outputs, batch):
    """Features of what the module returned, one row a sample."""
    if isinstance(outputs, Mapping) and "sentence_embedding" in outputs:
        return outputs["sentence_embedding"]
    if hasattr(outputs, "last_hidden_state"):
        outputs = outputs.last_hidden_state
    if not isinstance(outputs, torch.Tensor) or outputs.ndim < 2:
        raise TypeError(
            f"The module returns {type(outputs).__name__}: pass RandomHead(pool=...), "
            "a function that makes features (n_samples, width) of it."
        )
    if outputs.ndim == 2:
        return outputs
    if outputs.ndim == 4:  # (n_samples, channels, height, width)
        return outputs.mean(dim=(2, 3))
    mask = named_mask(batch[0] if isinstance(batch, (tuple, list)) else batch)
    if mask is None:
        return outputs.mean(dim=1)
    mask = mask.to(outputs)[:, :, None]
    return (outputs * mask).sum(dim=1) / mask.sum(dim=1)


def _tensors(batch):
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from _tensors(part)
    elif isinstance(batch, (tuple, list)):
        for part in batch:
            yield from _tensors(part)
