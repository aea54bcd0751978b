"""How the digit jungle is grown: images, bases, and models of every generation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .._progress import ProgressBar
from . import _finetune

HELD_OUT = 0.2


class Recipe(NamedTuple):
    """How networks are trained.

    Ranges are of what is drawn for each model, the learning rate's log-uniformly.
    """

    n_hidden: int
    batch_size: int
    base_learning_rate: float
    base_n_steps: int
    learning_rates: tuple[float, float]
    n_steps: tuple[int, int]


def grow_jungle(
    recipe,
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
    tree = rng.permutation(np.arange(n_models) % n_trees)
    subsets = np.sort(
        [rng.permutation(n_classes)[:n_classes_per_model] for _ in range(n_models)]
    )  # (n_models, n_classes_per_model)
    learning_rate = np.exp(rng.uniform(*np.log(recipe.learning_rates), n_models))
    learning_rate = learning_rate.astype(np.float32)
    schedule = rng.choice(_finetune.SCHEDULES, n_models)
    n_steps = rng.randint(recipe.n_steps[0], recipe.n_steps[1] + 1, n_models)
    n_steps = n_steps.astype(np.int64)
    # torch draws from a generator of its own, never from the global one
    generator = torch.Generator().manual_seed(int(rng.randint(2**31 - 1)))
    # Drawn last: a jungle of one generation is what it was before there were more.
    parents, generation = plant_generations(tree, n_generations, rng)

    units = np.full((n_models, n_classes), -1)
    np.put_along_axis(units, subsets, np.arange(n_classes_per_model)[None], axis=1)
    units = torch.from_numpy(units)
    n_in, n_hidden = x_train.shape[1], recipe.n_hidden
    base_shapes = _finetune.layer_shapes(n_in, n_hidden, n_classes)
    shapes = _finetune.layer_shapes(n_in, n_hidden, n_classes_per_model)

    n_updates = n_trees * recipe.base_n_steps + int(n_steps.sum())
    with ProgressBar(verbose, "fine-tuning", n_updates, "step") as bar:
        common = {
            "batch_size": recipe.batch_size,
            "generator": generator,
            "on_step": bar.update,
        }
        bases = _finetune.train(
            _finetune.draw_parameters(n_trees, base_shapes, generator),
            base_shapes,
            x_train,
            y_train,
            torch.arange(n_classes).repeat(n_trees, 1),
            learning_rate=torch.full((n_trees,), recipe.base_learning_rate),
            schedule=["cosine"] * n_trees,
            n_steps=torch.full((n_trees,), recipe.base_n_steps),
            **common,
        )
        hidden = bases[tree]
        if rank is None:
            models = _finetune.draw_parameters(
                n_models, shapes, generator, hidden=hidden
            )
            frozen = None
        else:
            frozen = _finetune.split_layers(hidden, base_shapes)
            frozen = {n: v for n, v in frozen.items() if n.startswith("hidden")}
            shapes = _finetune.adapter_shapes(shapes, rank)
            models = _finetune.draw_parameters(n_models, shapes, generator)
        for number in range(1, n_generations + 1):
            rows = np.flatnonzero(generation == number)
            start = models[rows]
            if number > 1:
                n_kept = _finetune.count_hidden(shapes)
                start[:, :n_kept] = models[parents[rows], :n_kept]
            models[rows] = _finetune.train(
                start,
                shapes,
                x_train,
                y_train,
                units[rows],
                learning_rate=torch.from_numpy(learning_rate[rows]),
                schedule=schedule[rows].tolist(),
                n_steps=torch.from_numpy(n_steps[rows]),
                frozen=frozen,
                **common,
            )

    layers = _finetune.split_layers(models, shapes)
    base_layers = _finetune.split_layers(bases, base_shapes)
    dense = layers if frozen is None else _finetune.merge_adapters(layers, frozen)
    arrays = {
        "target": (units.numpy() >= 0).astype(np.int64),
        "accuracy": _accuracy(dense, units, x_test, y_test),
        "tree": tree.astype(np.int64),
        "parents": parents,
        "generation": generation,
        "settings:learning_rate": learning_rate,
        "settings:schedule": schedule,
        "settings:n_steps": n_steps,
    }
    for name, values in layers.items():
        arrays[f"layers:{name}"] = np.ascontiguousarray(values.numpy())
    for name, values in base_layers.items():
        if name.startswith(_finetune.HIDDEN_LAYERS):
            arrays[f"bases:{name}"] = np.ascontiguousarray(values.numpy())
    return arrays


def plant_generations(tree, n_generations, rng=None):
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
    held_out[rng.permutation(n_digits)[: int(HELD_OUT * n_digits)]] = True

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
@_finetune.one_thread()
def _accuracy(layers, units, images, classes):
    accuracy = np.empty(len(units))
    for i, own_units in enumerate(units):
        own = own_units[classes] >= 0
        logits = _finetune.predict(
            {name: values[i : i + 1] for name, values in layers.items()},
            images[own][None],
        )  # (1, n_images, n_classes_per_model)
        right = logits[0].argmax(dim=1) == own_units[classes[own]]
        accuracy[i] = right.double().mean()
    return accuracy
