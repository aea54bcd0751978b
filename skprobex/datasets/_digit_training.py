"""How the digit jungle is grown: images, bases, and models of every generation."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch

from .._progress import ProgressBar
from ..probing.linalg import one_thread
from . import _finetune

N_HIDDEN = 64
# A base sees all classes and is trained to convergence, a model of the tree is not: how
# far it got is part of what its weights tell. The learning rate is drawn log-uniformly.
LEARNING_RATES = (5e-4, 5e-3)
N_STEPS = (50, 300)

_N_PIXELS = 64
_HELD_OUT = 0.2
_BATCH_SIZE = 32
_BASE_LEARNING_RATE, _BASE_N_STEPS = 2e-3, 2000


class _Plan(NamedTuple):
    """What is drawn for each model before anything is trained, n_models rows each."""

    tree: np.ndarray
    units: torch.Tensor  # (n_models, n_classes), as `train_on_classes` takes them
    learning_rate: np.ndarray
    schedule: np.ndarray
    n_steps: np.ndarray
    parents: np.ndarray
    generation: np.ndarray


def grow_jungle(
    *,
    n_models,
    n_classes,
    n_trees,
    n_classes_per_model,
    n_generations,
    rank,
    rng,
    verbose,
):
    """Train bases and models; all arrays of the Bunch, under prefixed names."""
    x_train, y_train, x_test, y_test = draw_images(n_classes, rng)
    plan, generator = draw_plan(
        n_models, n_classes, n_trees, n_classes_per_model, n_generations, rng
    )
    base_shapes = _finetune.layer_shapes(_N_PIXELS, N_HIDDEN, n_classes)
    shapes = _finetune.layer_shapes(_N_PIXELS, N_HIDDEN, n_classes_per_model)
    n_updates = n_trees * _BASE_N_STEPS + int(plan.n_steps.sum())
    with ProgressBar(verbose, "fine-tuning", n_updates, "step") as bar:
        train = functools.partial(
            _finetune.train_on_classes,
            images=x_train,
            classes=y_train,
            batch_size=_BATCH_SIZE,
            generator=generator,
            on_step=bar.update,
        )
        bases = train_bases(train, base_shapes, n_trees, n_classes, generator)
        base_layers = _hidden_layers(bases, base_shapes)
        if rank is None:
            frozen, hidden = None, bases[plan.tree]
        else:
            frozen = {n: values[plan.tree] for n, values in base_layers.items()}
            hidden, shapes = None, _finetune.adapter_shapes(shapes, rank)
        start = _finetune.draw_parameters(n_models, shapes, generator, hidden)
        models = train_generations(train, start, shapes, plan, frozen)
    layers = _finetune.split_layers(models, shapes)
    dense = layers if frozen is None else _finetune.merge_adapters(layers, frozen)
    return {
        "target": (plan.units.numpy() >= 0).astype(np.int64),
        "accuracy": measure_accuracy(dense, plan.units, x_test, y_test),
        "tree": plan.tree,
        "parents": plan.parents,
        "generation": plan.generation,
        "settings:learning_rate": plan.learning_rate,
        "settings:schedule": plan.schedule,
        "settings:n_steps": plan.n_steps,
        **_as_arrays("layers:", layers),
        **_as_arrays("bases:", base_layers),
    }


def draw_plan(n_models, n_classes, n_trees, n_classes_per_model, n_generations, rng):
    """Draw trees, classes, settings and parents, and torch's generator."""
    tree = rng.permutation(np.arange(n_models) % n_trees).astype(np.int64)
    subsets = np.sort(
        [rng.permutation(n_classes)[:n_classes_per_model] for _ in range(n_models)]
    )  # (n_models, n_classes_per_model)
    learning_rate = np.exp(rng.uniform(*np.log(LEARNING_RATES), n_models))
    schedule = rng.choice(_finetune.SCHEDULES, n_models)
    n_steps = rng.randint(N_STEPS[0], N_STEPS[1] + 1, n_models)
    # torch draws from a generator of its own, never from the global one
    generator = torch.Generator().manual_seed(int(rng.randint(2**31 - 1)))
    # Drawn last: however many generations there are, the rest is the same.
    parents, generation = plant_generations(tree, n_generations, rng)
    units = np.full((n_models, n_classes), -1)
    np.put_along_axis(units, subsets, np.arange(n_classes_per_model)[None], axis=1)
    plan = _Plan(
        tree,
        torch.from_numpy(units),
        learning_rate.astype(np.float32),
        schedule,
        n_steps.astype(np.int64),
        parents,
        generation,
    )
    return plan, generator


def train_bases(train, shapes, n_trees, n_classes, generator):
    """Train a base for each tree on all classes, one row of parameters each."""
    return train(
        _finetune.draw_parameters(n_trees, shapes, generator),
        shapes,
        units=torch.arange(n_classes).repeat(n_trees, 1),
        learning_rate=torch.full((n_trees,), _BASE_LEARNING_RATE),
        schedule=["cosine"] * n_trees,
        n_steps=torch.full((n_trees,), _BASE_N_STEPS),
    )


def train_generations(train, start, shapes, plan, frozen):
    """Train all models, parents before their children.

    Models of later generations start from their parent's hidden layers, where those of
    the first start from `start`, ``(n_models, n_params)``.
    """
    models = start.clone()
    n_hidden_params = _finetune.count_hidden(shapes)
    for number in range(1, plan.generation.max() + 1):
        rows = np.flatnonzero(plan.generation == number)
        if number > 1:
            hidden = models[plan.parents[rows], :n_hidden_params]
            models[rows, :n_hidden_params] = hidden
        models[rows] = train(
            models[rows],
            shapes,
            units=plan.units[rows],
            learning_rate=torch.from_numpy(plan.learning_rate[rows]),
            schedule=plan.schedule[rows].tolist(),
            n_steps=torch.from_numpy(plan.n_steps[rows]),
            frozen=frozen,
        )
    return models


def _hidden_layers(params, shapes):
    return {
        name: values
        for name, values in _finetune.split_layers(params, shapes).items()
        if name.startswith(_finetune.HIDDEN_LAYERS)
    }


def _as_arrays(prefix, layers):
    return {
        f"{prefix}{name}": np.ascontiguousarray(values.numpy())
        for name, values in layers.items()
    }


def plant_generations(tree, n_generations, rng):
    """Give every model a parent in the generation before its own.

    With n models to a tree and g generations, each model but those of the last one
    has b children, ``b + b^2 + ... + b^g = n``; what does not divide is spread.

    Returns
    -------
    parents : ndarray of shape (n_models,)
        -1 for a child of its tree's base.
    generation : ndarray of shape (n_models,)
        1 for a child of the base, 2 for a grandchild, and so on.
    """
    parents = np.full(len(tree), -1, dtype=np.int64)
    generation = np.ones(len(tree), dtype=np.int64)
    if n_generations == 1:
        return parents, generation
    for number in range(tree.max() + 1):
        rows = rng.permutation(np.flatnonzero(tree == number))
        above = None
        for level, size in enumerate(_generation_sizes(len(rows), n_generations), 1):
            own, rows = rows[:size], rows[size:]
            generation[own] = level
            if above is not None:
                parents[own] = np.resize(above, size)
            above = own
    return parents, generation


def _generation_sizes(n_models, n_generations):
    """Split n models geometrically, one at least for every generation."""
    low, high = 0.0, float(n_models)
    for _ in range(60):
        ratio = (low + high) / 2
        total = sum(ratio**g for g in range(1, n_generations + 1))
        low, high = (ratio, high) if total < n_models else (low, ratio)
    sizes = [max(1, round(high**g)) for g in range(1, n_generations)]
    # All before the last are rounded; the last gets the rest, which is most.
    while sum(sizes) >= n_models:
        sizes[int(np.argmax(sizes))] -= 1
    return [*sizes, n_models - sum(sizes)]


def draw_images(n_classes, rng):
    """Training and held-out images, standardised, ``(n_images, 64)``, and classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    n_digits = len(digits.target)
    n_turns = -(-n_classes // 10)
    held_out = np.zeros(n_digits, dtype=bool)
    held_out[rng.permutation(n_digits)[: int(_HELD_OUT * n_digits)]] = True

    images = np.stack([np.rot90(digits.images, k, axes=(1, 2)) for k in range(n_turns)])
    images = images.reshape(n_turns * n_digits, -1).astype(np.float32)
    classes = (digits.target + 10 * np.arange(n_turns)[:, None]).ravel()
    # A digit held out is held out in all its rotations.
    held_out = np.tile(held_out, n_turns)
    wanted = classes < n_classes
    train, test = wanted & ~held_out, wanted & held_out

    # One scale for all pixels: scaling each by its own would blow up the border
    # pixels, which are almost always empty.
    images -= images[train].mean(axis=0)
    images /= images[train].std()
    return tuple(
        torch.from_numpy(values[rows])
        for rows in (train, test)
        for values in (images, classes.astype(np.int64))
    )


@torch.no_grad()
def measure_accuracy(layers, units, images, classes):
    """Share of the images of its own classes that each network names rightly."""
    accuracy = np.empty(len(units))
    with one_thread(images):
        for i, own_units in enumerate(units):
            own = own_units[classes] >= 0
            logits = _finetune.predict(
                {name: values[i : i + 1] for name, values in layers.items()},
                images[own][None],
            )  # (1, n_classes_per_model, n_images)
            right = logits[0].argmax(dim=0) == own_units[classes[own]]
            accuracy[i] = right.double().mean()
    return accuracy
