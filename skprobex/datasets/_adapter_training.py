"""How the adapter jungle is grown: drawings, the base, and adapters of all concepts.

The base passes a drawing through a stem of two convolutions and then through residual
blocks of two layers each:

    h <- h + down relu(up norm(h))

It is trained to name every attribute of the drawing, and then frozen. An adapter is
LoRA on `up` and `down` of all blocks, with a fresh head of one logit: is this drawing
of my concept? The stem has no adapters, so each drawing passes through it only once.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch.nn import functional as F

from .._progress import ProgressBar
from ..probing.linalg import one_thread
from . import _finetune
from ._drawings import IMAGE_SIZE, N_VALUES, all_concepts, draw_images

WIDTH, N_BLOCKS = 64, 3
# An adapter is not trained to convergence: how far it got is in its weights too. The
# learning rate is drawn log-uniformly.
LEARNING_RATES = (1e-3, 1e-2)
N_STEPS = (50, 150)

_N_CHANNELS = (16, 32)
_N_IMAGES, _N_TEST_IMAGES = 16, 8  # drawings of each combination
_TEST_SIZE = 64  # drawings that an adapter's accuracy is measured on
_BASE_LEARNING_RATE, _BASE_N_STEPS, _BASE_BATCH_SIZE = 4e-3, 1200, 32
_BATCH_SIZE = 16
_CHUNK_SIZE = 1024  # drawings, or adapters, evaluated together


def grow_adapters(codes, *, rank, rng, verbose):
    """Train the base and an adapter for each concept.

    Parameters
    ----------
    codes : ndarray of shape (n_models, n_attributes)
        Codes of each adapter's concept.
    rank : int
    rng : RandomState
    verbose : int

    Returns
    -------
    dict of str to ndarray
        Arrays of the Bunch, under prefixed names.
    """
    n_models = len(codes)
    learning_rate = np.exp(rng.uniform(*np.log(LEARNING_RATES), n_models))
    learning_rate = learning_rate.astype(np.float32)
    n_steps = rng.randint(N_STEPS[0], N_STEPS[1] + 1, n_models).astype(np.int64)
    # torch draws from a generator of its own, never from the global one
    generator = torch.Generator().manual_seed(int(rng.randint(2**31 - 1)))
    images, test_images = (
        torch.from_numpy(draw_images(np.repeat(all_concepts(), n, axis=0), rng))
        for n in (_N_IMAGES, _N_TEST_IMAGES)
    )  # (n_combinations * n, height, width, 3)
    own = torch.from_numpy(np.ravel_multi_index(codes.T, N_VALUES))

    n_updates = _BASE_N_STEPS + int(n_steps.sum())
    with ProgressBar(verbose, "training adapters", n_updates, "step") as bar:
        base = train_base(images, generator, bar.update)
        adapters = train_adapters(
            base,
            Batches(embed(base, images), own, _BATCH_SIZE, generator),
            rank=rank,
            learning_rate=torch.from_numpy(learning_rate),
            n_steps=torch.from_numpy(n_steps),
            on_step=bar.update,
        )
    test = Batches(embed(base, test_images), own, _TEST_SIZE, generator)
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


def base_shapes():
    """Shapes of the base's layers, by name."""
    first, second = _N_CHANNELS
    shapes = {
        "conv1.weight": (first, 3, 3, 3),
        "conv1.bias": (first,),
        "conv2.weight": (second, first, 3, 3),
        "conv2.bias": (second,),
        "embed.weight": (WIDTH, second * (IMAGE_SIZE // 4) ** 2),
        "embed.bias": (WIDTH,),
    }
    for b in range(1, N_BLOCKS + 1):
        shapes[f"block{b}.up.weight"] = (2 * WIDTH, WIDTH)
        shapes[f"block{b}.up.bias"] = (2 * WIDTH,)
        shapes[f"block{b}.down.weight"] = (WIDTH, 2 * WIDTH)
        shapes[f"block{b}.down.bias"] = (WIDTH,)
    shapes["head.weight"] = (sum(N_VALUES), WIDTH)
    shapes["head.bias"] = (sum(N_VALUES),)
    return shapes


def train_base(images, generator, on_step):
    """Train the base to name the attributes of drawings; its layers, by name."""
    codes = torch.from_numpy(all_concepts())
    n_images = len(images) // len(codes)

    def draw(n):
        rows = torch.randint(len(images), (_BASE_BATCH_SIZE,), generator=generator)
        return images[rows], codes[rows // n_images]

    def loss(layers, x, y):
        base = {name: values[0] for name, values in layers.items()}
        h = blocks(base, stem(base, x))
        scores = F.linear(h, base["head.weight"], base["head.bias"])
        parts = scores.split(N_VALUES, dim=1)
        return sum(F.cross_entropy(part, y[:, k]) for k, part in enumerate(parts))

    shapes = base_shapes()
    trained = _finetune.train_groups(
        _finetune.draw_parameters(1, shapes, generator),
        shapes,
        lambda group: (draw, loss),
        learning_rate=torch.tensor([_BASE_LEARNING_RATE]),
        schedule=["warmup"],
        n_steps=torch.tensor([_BASE_N_STEPS]),
        on_step=on_step,
    )
    layers = _finetune.split_layers(trained, shapes)
    return {name: values[0] for name, values in layers.items()}


def train_adapters(base, batches, *, rank, learning_rate, n_steps, on_step):
    """Train an adapter for each row of `batches`; their layers, by name."""
    head_shapes = {"head.weight": (1, WIDTH), "head.bias": (1,)}
    adapted = [
        f"block{b}.{name}" for b in range(1, N_BLOCKS + 1) for name in ("up", "down")
    ]
    shapes = _finetune.adapter_shapes(base_shapes() | head_shapes, rank, adapted)
    n_models = len(n_steps)
    loss = functools.partial(concept_loss, base)
    trained = _finetune.train_groups(
        _finetune.draw_parameters(n_models, shapes, batches.generator),
        shapes,
        lambda group: (batches.take(group).draw, loss),
        learning_rate=learning_rate,
        schedule=["cosine"] * n_models,
        n_steps=n_steps,
        on_step=on_step,
    )
    return _finetune.split_layers(trained, shapes)


class Batches:
    """Draws drawings for a group of adapters: half of each one's concept, half not.

    Half of the others differ from the concept in one attribute, so that an adapter
    must mind all of them; the rest are any.

    Parameters
    ----------
    embedded : tensor of shape (n_combinations * n_images, width)
        What the stem makes of the drawings, in the order of `all_concepts`.
    own : int64 tensor of shape (n_models,)
        The combination that each adapter is of.
    batch_size : int
        Drawings for each adapter and step.
    generator : torch.Generator
    """

    def __init__(self, embedded, own, batch_size, generator):
        self.embedded, self.own, self.generator = embedded, own, generator
        self.batch_size = batch_size
        self.n_own = batch_size // 2
        self.n_others = batch_size - self.n_own
        self.n_combinations = math.prod(N_VALUES)
        self.n_values = torch.tensor(N_VALUES)
        # How far apart two combinations are that differ by one in the attribute.
        self.strides = torch.tensor(
            [math.prod(N_VALUES[k + 1 :]) for k in range(len(N_VALUES))]
        )

    def take(self, models):
        """Batches of some of the adapters."""
        return Batches(self.embedded, self.own[models], self.batch_size, self.generator)

    def draw(self, n):
        """Draw ``(n, batch_size, width)`` and ``(n, batch_size)``, 1 for own ones."""
        own = self.own[:n, None].expand(n, self.n_own)
        combinations = torch.cat([own, self.draw_others(n)], dim=1)
        n_images = len(self.embedded) // self.n_combinations
        rows = n_images * combinations
        rows += torch.randint(n_images, rows.shape, generator=self.generator)
        is_own = torch.zeros(rows.shape)
        is_own[:, : self.n_own] = 1
        return self.embedded[rows], is_own

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


@torch.no_grad()
def embed(base, images):
    """Pass any number of drawings through the stem, in chunks."""
    with one_thread(images):
        return torch.cat([stem(base, chunk) for chunk in images.split(_CHUNK_SIZE)])


def stem(base, images):
    """Pass drawings through the stem: ``(n_images, width)``."""
    h = images.movedim(-1, 1)
    for name in ("conv1", "conv2"):
        h = F.conv2d(h, base[f"{name}.weight"], base[f"{name}.bias"], padding=1)
        h = F.max_pool2d(h, 2).relu()
    return F.linear(h.flatten(1), base["embed.weight"], base["embed.bias"])


def blocks(base, h, adapters=None):
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


def logits(base, adapters, embedded):
    """Logits ``(n_models, n_images)`` that drawings are of each adapter's concept."""
    h = blocks(base, embedded, adapters)
    return (h @ adapters["head.weight"].mT).squeeze(2) + adapters["head.bias"]


def concept_loss(base, adapters, embedded, is_own):
    """Cross-entropy, its mean over drawings summed over adapters."""
    scores = logits(base, adapters, embedded)
    loss = F.binary_cross_entropy_with_logits(scores, is_own, reduction="sum")
    return loss / is_own.shape[1]


@torch.no_grad()
def measure_accuracy(base, adapters, batches):
    """Share of one batch for each adapter that it gets right, ``(n_models,)``."""
    n_models = len(batches.own)
    embedded, is_own = batches.draw(n_models)
    accuracy = []
    with one_thread(embedded):
        for rows in torch.arange(n_models).split(_CHUNK_SIZE):
            part = {name: values[rows] for name, values in adapters.items()}
            right = (logits(base, part, embedded[rows]) > 0) == (is_own[rows] > 0)
            accuracy.append(right.double().mean(dim=1))
    return torch.cat(accuracy).numpy()
