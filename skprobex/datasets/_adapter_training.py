"""How the adapter jungle is grown: drawings, the base, and adapters of all concepts.

The base looks at a drawing through a stem of two convolutions and refines what it saw
in residual blocks of two layers each:

    h <- h + down relu(up norm(h))

It is trained to name every attribute of the drawing, and then frozen. An adapter is
LoRA on `up` and `down` of all blocks, with a fresh head of one logit: is this drawing
of my concept? The stem has no adapters, so each drawing passes through it only once.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from .._progress import ProgressBar
from . import _finetune
from ._drawings import IMAGE_SIZE, N_VALUES, all_concepts, draw_images

_N_CHANNELS = (16, 32)
_CHUNK_SIZE = 1024  # drawings, or adapters, evaluated together


class Recipe(NamedTuple):
    """How networks are built and trained.

    Ranges are of what is drawn for each adapter, the learning rate's log-uniformly.
    """

    width: int
    n_blocks: int
    n_images: int
    n_test_images: int
    test_size: int
    base_learning_rate: float
    base_n_steps: int
    base_batch_size: int
    batch_size: int
    learning_rates: tuple[float, float]
    n_steps: tuple[int, int]


def grow_adapters(recipe, *, concepts, labels, rank, rng, verbose):
    """Train the base and an adapter for each label.

    Parameters
    ----------
    recipe : Recipe
    concepts : ndarray of shape (n_concepts, n_attributes)
        Their codes.
    labels : ndarray of shape (n_models,)
        Position of each adapter's concept among `concepts`.
    rank : int
    rng : RandomState
    verbose : int

    Returns
    -------
    dict of str to ndarray
        Arrays of the Bunch, under prefixed names.
    """
    n_models = len(labels)
    learning_rate = np.exp(rng.uniform(*np.log(recipe.learning_rates), n_models))
    learning_rate = learning_rate.astype(np.float32)
    n_steps = rng.randint(recipe.n_steps[0], recipe.n_steps[1] + 1, n_models)
    n_steps = n_steps.astype(np.int64)
    # torch draws from a generator of its own, never from the global one
    generator = torch.Generator().manual_seed(int(rng.randint(2**31 - 1)))
    images, test_images = (
        torch.from_numpy(draw_images(np.repeat(all_concepts(), n, axis=0), rng))
        for n in (recipe.n_images, recipe.n_test_images)
    )  # (n_combinations * n, height, width, 3)
    own = torch.from_numpy(np.ravel_multi_index(concepts[labels].T, N_VALUES))

    shapes = base_shapes(recipe)
    adapted = [
        name.removesuffix(".weight")
        for name in shapes
        if name.startswith("block") and name.endswith(".weight")
    ]
    head_shapes = {"head.weight": (1, recipe.width), "head.bias": (1,)}
    adapter_shapes = _finetune.adapter_shapes(shapes | head_shapes, rank, adapted)
    n_updates = recipe.base_n_steps + int(n_steps.sum())
    with ProgressBar(verbose, "training adapters", n_updates, "step") as bar:
        base = train_base(recipe, shapes, images, generator, bar.update)
        seen, test_seen = (look(base, drawings) for drawings in (images, test_images))

        def start_group(group):
            batches = Batches(seen, own[group], recipe.batch_size, generator)
            return batches.draw, backward_of(functools.partial(tell_loss, base))

        trained = _finetune.train_groups(
            _finetune.draw_parameters(n_models, adapter_shapes, generator),
            adapter_shapes,
            start_group,
            learning_rate=torch.from_numpy(learning_rate),
            schedule=["cosine"] * n_models,
            n_steps=torch.from_numpy(n_steps),
            on_step=bar.update,
        )
    adapters = _finetune.split_layers(trained, adapter_shapes)
    test = Batches(test_seen, own, recipe.test_size, generator)
    arrays = {
        "accuracy": measure_accuracy(base, adapters, test),
        "settings:learning_rate": learning_rate,
        "settings:n_steps": n_steps,
    }
    for name, values in adapters.items():
        kind = "heads" if name.startswith("head") else "layers"
        arrays[f"{kind}:{name}"] = np.ascontiguousarray(values.numpy())
    for name, values in base.items():
        if not name.startswith("head"):
            arrays[f"bases:{name}"] = values[None].numpy().copy()
    return arrays


def base_shapes(recipe):
    """Shapes of the base's layers, by name."""
    first, second = _N_CHANNELS
    width, hidden = recipe.width, 2 * recipe.width
    shapes = {
        "conv1.weight": (first, 3, 3, 3),
        "conv1.bias": (first,),
        "conv2.weight": (second, first, 3, 3),
        "conv2.bias": (second,),
        "embed.weight": (width, second * (IMAGE_SIZE // 4) ** 2),
        "embed.bias": (width,),
    }
    for b in range(1, recipe.n_blocks + 1):
        shapes[f"block{b}.up.weight"] = (hidden, width)
        shapes[f"block{b}.up.bias"] = (hidden,)
        shapes[f"block{b}.down.weight"] = (width, hidden)
        shapes[f"block{b}.down.bias"] = (width,)
    shapes["head.weight"] = (sum(N_VALUES), width)
    shapes["head.bias"] = (sum(N_VALUES),)
    return shapes


def train_base(recipe, shapes, images, generator, on_step):
    """Train the base to name the attributes of drawings; its layers, by name."""
    codes = torch.from_numpy(all_concepts())

    def draw(n):
        size = (recipe.base_batch_size,)
        rows = torch.randint(len(images), size, generator=generator)
        return images[rows], codes[rows // recipe.n_images]

    def loss(layers, x, y):
        base = {name: values[0] for name, values in layers.items()}
        h = refine(base, see(base, x))
        logits = F.linear(h, base["head.weight"], base["head.bias"])
        parts = logits.split(N_VALUES, dim=1)
        return sum(F.cross_entropy(part, y[:, k]) for k, part in enumerate(parts))

    trained = _finetune.train_groups(
        _finetune.draw_parameters(1, shapes, generator),
        shapes,
        lambda group: (draw, backward_of(loss)),
        learning_rate=torch.tensor([recipe.base_learning_rate]),
        schedule=["warmup"],
        n_steps=torch.tensor([recipe.base_n_steps]),
        on_step=on_step,
    )
    layers = _finetune.split_layers(trained, shapes)
    return {name: values[0] for name, values in layers.items()}


class Batches:
    """Draws drawings for a group of adapters: half of each one's concept, half not.

    Half of the others differ from the concept in one attribute, so that an adapter
    must mind all of them; the rest are any.

    Parameters
    ----------
    seen : tensor of shape (n_combinations * n_images, width)
        What the stem makes of the drawings, in the order of `all_concepts`.
    own : int64 tensor of shape (n_models,)
        The combination that each adapter is of.
    batch_size : int
        Drawings for each adapter and step.
    generator : torch.Generator
    """

    def __init__(self, seen, own, batch_size, generator):
        self.seen, self.own, self.generator = seen, own, generator
        self.n_own = batch_size // 2
        self.n_others = batch_size - self.n_own
        self.n_combinations = math.prod(N_VALUES)
        self.n_values = torch.tensor(N_VALUES)
        # How far apart two combinations are that differ by one in the attribute.
        self.strides = torch.tensor(
            [math.prod(N_VALUES[k + 1 :]) for k in range(len(N_VALUES))]
        )

    def draw(self, n):
        """Draw ``(n, batch_size, width)`` and ``(n, batch_size)``, 1 for own ones."""
        own = self.own[:n, None].expand(n, self.n_own)
        combinations = torch.cat([own, self.draw_others(n)], dim=1)
        n_images = len(self.seen) // self.n_combinations
        rows = n_images * combinations
        rows += torch.randint(n_images, rows.shape, generator=self.generator)
        is_own = torch.zeros(rows.shape)
        is_own[:, : self.n_own] = 1
        return self.seen[rows], is_own

    def draw_others(self, n):
        """Draw combinations ``(n, n_others)``, none the adapter's own."""
        shape, own = (n, self.n_others), self.own[:n, None]
        far = own + self._below(torch.tensor(self.n_combinations), shape)
        attribute = torch.randint(len(N_VALUES), shape, generator=self.generator)
        n_values, stride = self.n_values[attribute], self.strides[attribute]
        value = own // stride % n_values
        other = (value + self._below(n_values, shape)) % n_values
        near = own + (other - value) * stride
        is_near = torch.rand(shape, generator=self.generator) < 0.5
        return torch.where(is_near, near, far % self.n_combinations)

    def _below(self, n, shape):
        """Draw integers from 1 to ``n - 1``."""
        drawn = torch.rand(shape, dtype=torch.float64, generator=self.generator)
        return 1 + (drawn * (n - 1)).long()


def backward_of(loss):
    """Make a function that writes the gradient of ``loss(layers, x, y)``."""

    def backward(layers, grads, x, y):
        leaves = {n: values.detach().requires_grad_() for n, values in layers.items()}
        with torch.enable_grad():
            found = torch.autograd.grad(loss(leaves, x, y), list(leaves.values()))
        for grad, values in zip(grads.values(), found, strict=True):
            grad.copy_(values)

    return backward


@torch.no_grad()
@_finetune.one_thread()
def look(base, images):
    """Pass any number of drawings through the stem, in chunks."""
    return torch.cat([see(base, chunk) for chunk in images.split(_CHUNK_SIZE)])


def see(base, images):
    """Pass drawings through the stem: ``(n_images, width)``."""
    h = images.movedim(-1, 1)
    for name in ("conv1", "conv2"):
        h = F.conv2d(h, base[f"{name}.weight"], base[f"{name}.bias"], padding=1)
        h = F.max_pool2d(h, 2).relu()
    return F.linear(h.flatten(1), base["embed.weight"], base["embed.bias"])


def refine(base, h, adapters=None):
    """Pass `h` through all blocks: ``(n_images, width)``, for each adapter if any."""
    n_blocks = sum(name.endswith(".up.weight") for name in base)
    for b in range(1, n_blocks + 1):
        inner = F.layer_norm(h, h.shape[-1:])
        inner = _affine(base, f"block{b}.up", inner, adapters).relu()
        h = h + _affine(base, f"block{b}.down", inner, adapters)
    return F.layer_norm(h, h.shape[-1:])


def _affine(base, name, h, adapters):
    weight = f"{name}.weight"
    out = F.linear(h, base[weight], base[f"{name}.bias"])
    if adapters is None:
        return out
    up, down = adapters[f"{weight}.lora_B"], adapters[f"{weight}.lora_A"]
    return out + h @ down.mT @ up.mT


def tell(base, adapters, seen):
    """Logits ``(n_models, n_images)`` that drawings are of each adapter's concept."""
    h = refine(base, seen, adapters)
    return (h @ adapters["head.weight"].mT).squeeze(2) + adapters["head.bias"]


def tell_loss(base, adapters, seen, is_own):
    """Cross-entropy, its mean over drawings summed over adapters."""
    logits = tell(base, adapters, seen)
    loss = F.binary_cross_entropy_with_logits(logits, is_own, reduction="sum")
    return loss / is_own.shape[1]


@torch.no_grad()
@_finetune.one_thread()
def measure_accuracy(base, adapters, batches):
    """Share of one batch for each adapter that it gets right, ``(n_models,)``."""
    n_models = len(batches.own)
    seen, is_own = batches.draw(n_models)
    accuracy = []
    for rows in torch.arange(n_models).split(_CHUNK_SIZE):
        part = {name: values[rows] for name, values in adapters.items()}
        right = (tell(base, part, seen[rows]) > 0) == (is_own[rows] > 0)
        accuracy.append(right.double().mean(dim=1))
    return torch.cat(accuracy).numpy()
