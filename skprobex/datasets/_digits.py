"""The digit jungle: real networks fine-tuned on handwritten digits, in seconds."""

from __future__ import annotations

import os

import numpy as np
from sklearn.utils import Bunch

from .._typing import Dataset
from ..weights import LowRankWeights, ModelCollection
from ._cache import load_or_grow
from ._digit_training import LEARNING_RATES, N_HIDDEN, N_STEPS, grow_jungle
from ._synthetic import check_integer

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

_DESCR_GENERATIONS = """\
There are {n_generations} generations below each base: a model of a later one starts
from the hidden layers of its parent, a model of the one before.
"""
_DESCR_RANK = """\
The hidden layers are frozen: their weights move by adapters of rank {rank} (LoRA).
"""


def make_digit_jungle(
    n_models: int = 600,
    n_classes: int = 10,
    n_trees: int = 1,
    *,
    n_classes_per_model: int | None = None,
    n_generations: int = 1,
    rank: int | None = None,
    random_state: int | np.random.RandomState | None = 0,
    return_X_y: bool = False,
    data_home: str | os.PathLike | None = None,
    cache: bool = True,
    verbose: int = 0,
) -> Dataset:
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
    n_generations : int, default=1
        Generations below each base. Models of the first are fine-tuned from the base,
        those of the second from models of the first, and so on. Every model has about
        as many children: 20 models of one tree in 2 generations are 4 children of the
        base with 4 children each.
    rank : int, default=None
        Fine-tune by LoRA: hidden weights are frozen and get adapters of this rank;
        the head is trained whole. None trains all weights. Needs ``n_generations=1``.
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
            Weights ``(d_out, d_in)`` of the second hidden layer. With `rank`, the
            adapters of this layer as :class:`~skprobex.LowRankWeights`.
        target : ndarray of shape (n_models, n_classes), int64
            1 where the model was fine-tuned on the class, else 0.
        target_names : ndarray of shape (n_classes,)
            Names of the classes, such as "digit 3" or "digit 3 rotated 90".
        layers : dict of str to ndarray of shape (n_models, ...)
            All weights and biases: "hidden1.weight", "hidden1.bias",
            "hidden2.weight" (which is `data`), "hidden2.bias", "head.weight" and
            "head.bias". Units of a head stand for the model's classes in ascending
            order. With `rank`, adapters of the two weights as `LowRankWeights`, and
            the head.
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
        parents : ndarray of shape (n_models,), int64
            The model that each model was fine-tuned from, by its position; -1 for
            the base of its tree.
        generation : ndarray of shape (n_models,), int64
            1 for a child of the base, 2 for a child of its child, and so on.
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
    sizes = _check_sizes(
        n_models=n_models,
        n_classes=n_classes,
        n_trees=n_trees,
        n_classes_per_model=n_classes_per_model,
        n_generations=n_generations,
        rank=rank,
    )
    arrays = load_or_grow(
        "digit_jungle",
        sizes,
        grow_jungle,
        random_state=random_state,
        data_home=data_home,
        cache=cache,
        verbose=verbose,
    )
    jungle = _as_bunch(arrays, sizes)
    return (jungle.data, jungle.target) if return_X_y else jungle


def _as_bunch(arrays, sizes):
    layers = as_layers(with_prefix(arrays, "layers:"))
    target_names = np.array([_class_name(c) for c in range(sizes["n_classes"])])
    settings = with_prefix(arrays, "settings:")
    return Bunch(
        data=layers["hidden2.weight"],
        target=arrays["target"],
        target_names=target_names,
        layers=layers,
        models=ModelCollection.from_layers(
            layers, metadata=_metadata(arrays, settings, target_names)
        ),
        settings=settings,
        accuracy=arrays["accuracy"],
        tree=arrays["tree"],
        parents=arrays["parents"],
        generation=arrays["generation"],
        bases=with_prefix(arrays, "bases:"),
        DESCR=_describe(sizes),
    )


def _check_sizes(
    n_models, n_classes, n_trees, n_classes_per_model, n_generations, rank
):
    """Raise unless there can be such a jungle; all that its cache depends on."""
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
    check_integer("n_generations", n_generations, 1)
    if n_generations * n_trees > n_models:
        raise ValueError(
            "n_models must be enough for one in each generation of each tree, "
            f"{n_generations * n_trees}; got {n_models}."
        )
    if rank is not None:
        check_integer("rank", rank, 1, N_HIDDEN)
        if n_generations > 1:
            raise ValueError(
                "rank and n_generations do not go together: adapters descend from "
                f"the base; got rank={rank} and n_generations={n_generations}."
            )
    return {
        "n_models": int(n_models),
        "n_classes": int(n_classes),
        "n_trees": int(n_trees),
        "n_classes_per_model": int(n_classes_per_model),
        "n_generations": int(n_generations),
        "rank": rank and int(rank),
    }


def _describe(sizes):
    descr = _DESCR + (_DESCR_GENERATIONS if sizes["n_generations"] > 1 else "")
    descr += _DESCR_RANK if sizes["rank"] else ""
    return descr.format(**sizes, n_hidden=N_HIDDEN, lr=LEARNING_RATES, steps=N_STEPS)


def as_layers(arrays):
    """Join the two factors of each adapter; the rest are layers already."""
    layers = {}
    for name, values in arrays.items():
        layer, _, factor = name.rpartition(".")
        if factor == "lora_A":
            layers[layer] = LowRankWeights(arrays[f"{layer}.lora_B"], values)
        elif factor != "lora_B":
            layers[name] = values
    return layers


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


def _class_name(index):
    turns, digit = divmod(index, 10)
    return f"digit {digit} rotated {90 * turns}" if turns else f"digit {digit}"


def with_prefix(arrays, prefix):
    return {
        name.removeprefix(prefix): values
        for name, values in arrays.items()
        if name.startswith(prefix)
    }
