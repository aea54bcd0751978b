"""The digit jungle: real networks fine-tuned on handwritten digits, in seconds."""

from __future__ import annotations

import contextlib
import numbers
import os

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.utils import Bunch, check_random_state

from ..weights import ModelCollection
from . import _finetune
from ._cache import load_or_build
from ._synthetic import check_integer

_N_HIDDEN = 64
_BATCH_SIZE = 32
_HELD_OUT = 0.2

# A base sees all classes and is trained to convergence, a model of the tree is not:
# how far it got is part of what its weights tell.
_BASE_LEARNING_RATE, _BASE_N_STEPS = 2e-3, 2000
_LEARNING_RATES = (5e-4, 5e-3)
_N_STEPS = (50, 300)

_DESCR = """\
Digit jungle
------------
{n_models} networks, each with two hidden layers of {n_hidden} units with ReLU and a
linear head, in {n_trees} Model Tree(s). The base of each tree was trained on all
{n_classes} classes of scikit-learn's 8 x 8 digits. Every model starts from its base's
hidden layers and a fresh random head and is fine-tuned, all weights, by Adam on
{n_classes_per_model} classes drawn at random. Drawn at random are also its learning
rate (log-uniform from {lr[0]} to {lr[1]}), its schedule, and its number of
steps ({steps[0]} to {steps[1]}).
`accuracy` is measured on held-out images of the model's own classes.
"""


def make_digit_jungle(
    n_models: int = 600,
    n_classes: int = 10,
    n_trees: int = 1,
    *,
    n_classes_per_model: int | None = None,
    random_state: int | np.random.RandomState | None = 0,
    return_X_y: bool = False,
    data_home: str | os.PathLike | None = None,
    cache: bool = True,
    verbose: int = 0,
):
    """Fine-tune a jungle of small networks on subsets of the handwritten digits.

    Every Model Tree has a base, trained on all classes. Each of its models copies the
    base's two hidden layers, gets a fresh random head, and is fine-tuned, all weights
    and biases, on a random half of the classes. The task is to read from a layer's
    weights which classes that were.

    Nothing is downloaded: the images are those of
    :func:`sklearn.datasets.load_digits`, and 600 models take a few seconds. They are
    then kept in the data home and read from there the next time.

    Parameters
    ----------
    n_models : int, default=600
        Number of fine-tuned models, at least `n_trees`.
    n_classes : int, default=10
        Number of classes, from 2 to 40. The first ten are the upright digits; then
        come the digits rotated anticlockwise by 90, 180 and 270 degrees.
    n_trees : int, default=1
        Number of Model Trees. Bases differ in their initial weights and in the order
        of their data; models are spread evenly over them and shuffled.
    n_classes_per_model : int, default=None
        Number of classes that each model is fine-tuned on, from 2 to `n_classes`.
        None means half of them, ``max(2, n_classes // 2)``.
    random_state : int, RandomState instance or None, default=0
        Draws everything that is random. An int gives the same models, bit for bit, on
        every call on the same machine, and is needed for the cache.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.
    data_home : str or path-like, default=None
        Where the cache is; see :func:`sklearn.datasets.get_data_home`.
    cache : bool, default=True
        Keep the models on disk. Without effect unless `random_state` is an int.
    verbose : int, default=0
        0 prints nothing; 1 shows a progress bar on stderr.

    Returns
    -------
    jungle : :class:`~sklearn.utils.Bunch`
        With these attributes:

        data : ndarray of shape (n_models, 64, 64), float32
            Weights ``(d_out, d_in)`` of the second hidden layer.
        target : ndarray of shape (n_models, n_classes), int64
            1 where the model was fine-tuned on the class, else 0.
        target_names : ndarray of shape (n_classes,)
            Names of the classes, such as "digit 3" or "digit 3 rotated 90".
        layers : dict of str to ndarray of shape (n_models, ...)
            All weights and biases: "hidden1.weight", "hidden1.bias",
            "hidden2.weight" (which is `data`), "hidden2.bias", "head.weight" and
            "head.bias". Units of a head stand for the model's classes in ascending
            order.
        models : ModelCollection
            The same layers as a collection, with classes, settings and accuracy as
            metadata.
        settings : dict of str to ndarray of shape (n_models,)
            How each model was fine-tuned: "learning_rate" (its peak), "schedule"
            ("constant", "cosine" or "linear") and "n_steps" (batches of 32 images).
        accuracy : ndarray of shape (n_models,)
            Share of held-out images of the model's own classes that it names rightly.
        tree : ndarray of shape (n_models,), int64
            The Model Tree that each model belongs to.
        bases : dict of str to ndarray of shape (n_trees, ...)
            Hidden layers of the bases, named as in `layers`.
        DESCR : str
            A short description.

    (data, target) : tuple of ndarray
        Only these two, if `return_X_y` is True.

    Raises
    ------
    ValueError, TypeError
        If a parameter is out of its range or of another type.

    References
    ----------
    .. [1] E. Horwitz, B. Cavia, J. Kahana and Y. Hoshen, "Learning on Model Weights
       using Tree Experts", CVPR 2025, arXiv:2410.13569.

    Examples
    --------
    >>> from skprobex.datasets import make_digit_jungle
    >>> jungle = make_digit_jungle(n_models=4, cache=False)
    >>> jungle.data.shape
    (4, 64, 64)
    >>> jungle.target.sum(axis=1)
    array([5, 5, 5, 5])
    >>> W, Y = make_digit_jungle(n_models=4, cache=False, return_X_y=True)
    >>> bool((W == jungle.data).all())
    True
    """
    check_integer("n_models", n_models, 1)
    check_integer("n_classes", n_classes, 2, 40)
    check_integer("n_trees", n_trees, 1)
    if n_trees > n_models:
        raise ValueError(
            f"n_trees must be at most n_models, so that no tree is empty; got "
            f"n_trees={n_trees} and n_models={n_models}."
        )
    if n_classes_per_model is None:
        n_classes_per_model = max(2, n_classes // 2)
    check_integer("n_classes_per_model", n_classes_per_model, 2, n_classes)
    rng = check_random_state(random_state)

    sizes = {
        "n_models": int(n_models),
        "n_classes": int(n_classes),
        "n_trees": int(n_trees),
        "n_classes_per_model": int(n_classes_per_model),
    }

    def build():
        return _train_jungle(**sizes, rng=rng, verbose=verbose)

    if cache and isinstance(random_state, numbers.Integral):
        key = {**sizes, "random_state": int(random_state)}
        arrays = load_or_build("digit_jungle", key, build, data_home)
    else:
        arrays = build()

    layers = _with_prefix(arrays, "layers:")
    data, target = layers["hidden2.weight"], arrays["target"]
    if return_X_y:
        return data, target
    target_names = np.array([_class_name(c) for c in range(n_classes)])
    settings = _with_prefix(arrays, "settings:")
    return Bunch(
        data=data,
        target=target,
        target_names=target_names,
        layers=layers,
        models=ModelCollection.from_layers(
            layers, metadata=_metadata(arrays, settings, target_names)
        ),
        settings=settings,
        accuracy=arrays["accuracy"],
        tree=arrays["tree"],
        bases=_with_prefix(arrays, "bases:"),
        DESCR=_DESCR.format(
            **sizes, n_hidden=_N_HIDDEN, lr=_LEARNING_RATES, steps=_N_STEPS
        ),
    )


def _metadata(arrays, settings, target_names):
    """What is known of each model, as the header of its file would have it."""
    return [
        {
            "trained_on": target_names[row == 1].tolist(),
            **{name: values[i].item() for name, values in settings.items()},
            "accuracy": arrays["accuracy"][i].item(),
        }
        for i, row in enumerate(arrays["target"])
    ]


def _train_jungle(n_models, n_classes, n_trees, n_classes_per_model, rng, verbose):
    """Train bases and models; all arrays of the Bunch, under prefixed names."""
    x_train, y_train, x_test, y_test = _images(n_classes, rng)
    tree = rng.permutation(np.arange(n_models) % n_trees)
    subsets = np.sort(
        [rng.permutation(n_classes)[:n_classes_per_model] for _ in range(n_models)]
    )  # (n_models, n_classes_per_model)
    learning_rate = np.exp(rng.uniform(*np.log(_LEARNING_RATES), n_models))
    learning_rate = learning_rate.astype(np.float32)
    schedule = rng.choice(_finetune.SCHEDULES, n_models)
    n_steps = rng.randint(_N_STEPS[0], _N_STEPS[1] + 1, n_models).astype(np.int64)
    # torch draws from a generator of its own, never from the global one
    generator = torch.Generator().manual_seed(int(rng.randint(2**31 - 1)))

    units = np.full((n_models, n_classes), -1)
    np.put_along_axis(units, subsets, np.arange(n_classes_per_model)[None], axis=1)
    units = torch.from_numpy(units)
    base_shapes = _finetune.layer_shapes(x_train.shape[1], _N_HIDDEN, n_classes)
    shapes = _finetune.layer_shapes(x_train.shape[1], _N_HIDDEN, n_classes_per_model)

    n_updates = n_trees * _BASE_N_STEPS + int(n_steps.sum())
    with _progress(n_updates, verbose) as on_step:
        common = {
            "batch_size": _BATCH_SIZE,
            "generator": generator,
            "on_step": on_step,
        }
        bases = _finetune.train(
            _finetune.draw_parameters(n_trees, base_shapes, generator),
            base_shapes,
            x_train,
            y_train,
            torch.arange(n_classes).repeat(n_trees, 1),
            learning_rate=torch.full((n_trees,), _BASE_LEARNING_RATE),
            schedule=["cosine"] * n_trees,
            n_steps=torch.full((n_trees,), _BASE_N_STEPS),
            **common,
        )
        models = _finetune.train(
            _finetune.draw_parameters(n_models, shapes, generator, hidden=bases[tree]),
            shapes,
            x_train,
            y_train,
            units,
            learning_rate=torch.from_numpy(learning_rate),
            schedule=schedule.tolist(),
            n_steps=torch.from_numpy(n_steps),
            **common,
        )

    layers = _finetune.split_layers(models, shapes)
    base_layers = _finetune.split_layers(bases, base_shapes)
    arrays = {
        "target": (units.numpy() >= 0).astype(np.int64),
        "accuracy": _accuracy(layers, units, x_test, y_test),
        "tree": tree.astype(np.int64),
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


def _images(n_classes, rng):
    """Training and held-out images, standardised, ``(n_images, 64)``, and classes."""
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


@contextlib.contextmanager
def _progress(total, verbose):
    if not verbose:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc="fine-tuning", unit="step", unit_scale=True) as bar:
        yield bar.update


def _class_name(index):
    turns, digit = divmod(index, 10)
    return f"digit {digit} rotated {90 * turns}" if turns else f"digit {digit}"


def _with_prefix(arrays, prefix):
    return {
        name.removeprefix(prefix): values
        for name, values in arrays.items()
        if name.startswith(prefix)
    }
