"""The adapter jungle: LoRA adapters of concepts that have names, in half a minute."""

from __future__ import annotations

import os

import numpy as np
from sklearn.utils import Bunch

from .._typing import Dataset
from ..weights import ModelCollection
from ._adapter_training import LEARNING_RATES, N_BLOCKS, N_STEPS, WIDTH, grow_adapters
from ._cache import load_or_grow
from ._digits import as_layers, with_prefix
from ._drawings import ATTRIBUTES, N_VALUES, all_concepts, concept_name
from ._synthetic import check_integer, check_real

_N_COMBINATIONS = len(all_concepts())

_DESCR = """\
Adapter jungle
--------------
{n_models} LoRA adapters of rank {rank}, {n_adapters_per_concept} for each of
{n_concepts} concepts such as "three small striped red stars". A concept is one value
of each of five attributes, count, size, texture, color and shape; {n_held_out}
concepts are held out.

The base is a small residual network, trained to name the attributes of drawings and
then frozen. Each adapter, on the two layers of all {n_blocks} blocks, was trained with
a fresh random head by Adam to tell drawings of its concept from others, half of which
differ from it in one attribute only. Drawn at random are its learning rate
(log-uniform from {lr[0]} to {lr[1]}) and its number of steps ({steps[0]} to
{steps[1]}). `accuracy` is measured on fresh drawings; guessing gives 0.5.
"""


def make_adapter_jungle(
    n_concepts: int = 400,
    n_adapters_per_concept: int = 2,
    *,
    rank: int = 4,
    held_out: float = 0.15,
    random_state: int | np.random.RandomState | None = 0,
    return_X_y: bool = False,
    data_home: str | os.PathLike | None = None,
    cache: bool = True,
    verbose: int = 0,
) -> Dataset:
    """Train a jungle of LoRA adapters, each to recognise one concept with a name.

    A concept is a count, a size, a texture, a color and a shape; its name says so, as
    "a large green ring" and "three small striped red stars" do. Each adapter is
    trained, on one frozen base, to tell drawings of its concept from others. The task
    is to read from an adapter's weights what its concept is called, also where no
    other adapter is of that concept.

    That is what `held_out` is for: adapters of the concepts held out are for testing.
    Every value of theirs occurs in concepts that are not, their combination does not.

    Nothing is downloaded: 800 adapters take half a minute. They are then kept in the
    data home and read from there the next time.

    Parameters
    ----------
    n_concepts : int, default=400
        Number of concepts, from 2 to 864, which is all combinations of attributes.
    n_adapters_per_concept : int, default=2
        Number of adapters of each concept. They differ in all that is random.
    rank : int, default=4
        Rank of the adapters, from 1 to 64.
    held_out : float, default=0.15
        Share of the concepts that are held out, from 0 to 1.
    random_state : int, RandomState instance or None, default=0
        Draws everything that is random. An int gives the same adapters, bit for bit,
        on every call on the same machine, and is needed for the cache.
    return_X_y : bool, default=False
        Return ``(models, target)`` instead of a Bunch.
    data_home : str or path-like, default=None
        Where the cache is; see :func:`sklearn.datasets.get_data_home`.
    cache : bool, default=True
        Keep the adapters on disk. Without effect unless `random_state` is an int.
    verbose : int, default=0
        0 prints nothing; 1 shows a progress bar on stderr.

    Returns
    -------
    jungle : :class:`~sklearn.utils.Bunch`
        With these attributes, where ``n_models = n_concepts * n_adapters_per_concept``:

        data : LowRankWeights of shape (n_models, 64, 128)
            The adapters of one layer, the last: "block3.down.weight".
        target : ndarray of shape (n_models,)
            Name of each adapter's concept.
        concepts : ndarray of shape (n_concepts,)
            All names.
        attributes : dict of str to ndarray of shape (n_models,)
            What the names are made of: "count", "size", "texture", "color" and
            "shape" of each adapter's concept.
        held_out : ndarray of shape (n_models,), bool
            Whether the adapter's concept is held out.
        layers : dict of str to LowRankWeights
            All layers that have adapters: "block1.up.weight", of shape
            ``(n_models, 128, 64)``, "block1.down.weight", of shape
            ``(n_models, 64, 128)``, and so on for three blocks.
        models : ModelCollection
            The same layers as a collection, with concept, attributes, settings and
            accuracy as metadata.
        heads : dict of str to ndarray of shape (n_models, ...)
            "head.weight" and "head.bias" of each adapter, with one output.
        settings : dict of str to ndarray of shape (n_models,)
            How each adapter was trained: "learning_rate" (its peak; all fall by a
            cosine to zero) and "n_steps" (batches of 16 drawings).
        accuracy : ndarray of shape (n_models,)
            Share of fresh drawings, half of them of the concept, that it gets right.
        bases : dict of str to ndarray of shape (1, ...)
            Weights and biases of the base that all adapters share.
        DESCR : str
            A short description.

    (models, target) : tuple of ModelCollection and ndarray
        Only these two, if `return_X_y` is True.

    Raises
    ------
    ValueError, TypeError
        If a parameter is out of its range or of another type, or if so many concepts
        are to be held out that one of their values would occur nowhere else.

    Examples
    --------
    >>> from skprobex.datasets import make_adapter_jungle
    >>> jungle = make_adapter_jungle(n_concepts=30, cache=False)
    >>> jungle.data
    LowRankWeights(60 models, 64 x 128, rank 4, float32)
    >>> jungle.models
    ModelCollection(60 models, 6 layers)
    """
    check_integer("n_concepts", n_concepts, 2, _N_COMBINATIONS)
    check_integer("n_adapters_per_concept", n_adapters_per_concept, 1)
    check_integer("rank", rank, 1, WIDTH)
    check_real("held_out", held_out, 0, 1)
    sizes = {
        "n_concepts": int(n_concepts),
        "n_adapters_per_concept": int(n_adapters_per_concept),
        "rank": int(rank),
        "held_out": float(held_out),
    }
    arrays = load_or_grow(
        "adapter_jungle",
        sizes,
        _grow,
        random_state=random_state,
        data_home=data_home,
        cache=cache,
        verbose=verbose,
    )
    jungle = _as_bunch(arrays, sizes)
    return (jungle.models, jungle.target) if return_X_y else jungle


def _as_bunch(arrays, sizes):
    concepts = np.array([concept_name(codes) for codes in arrays["codes"]])
    target = concepts[arrays["labels"]]
    layers = as_layers(with_prefix(arrays, "layers:"))
    settings = with_prefix(arrays, "settings:")
    attributes = _attributes(arrays["codes"][arrays["labels"]])
    described = {"concept": target, **attributes, **settings}
    described["accuracy"] = arrays["accuracy"]
    return Bunch(
        data=layers[f"block{N_BLOCKS}.down.weight"],
        target=target,
        concepts=concepts,
        attributes=attributes,
        held_out=arrays["is_held_out"][arrays["labels"]],
        layers=layers,
        models=ModelCollection.from_layers(layers, metadata=_metadata(described)),
        heads=with_prefix(arrays, "heads:"),
        settings=settings,
        accuracy=arrays["accuracy"],
        bases=with_prefix(arrays, "bases:"),
        DESCR=_DESCR.format(
            **sizes,
            n_models=len(target),
            n_held_out=arrays["is_held_out"].sum(),
            n_blocks=N_BLOCKS,
            lr=LEARNING_RATES,
            steps=N_STEPS,
        ),
    )


def _grow(n_concepts, n_adapters_per_concept, rank, held_out, rng, verbose):
    """Draw concepts and train their adapters; all arrays, under prefixed names."""
    codes = all_concepts()
    codes = codes[rng.permutation(len(codes))[:n_concepts]]
    is_held_out = _hold_out(codes, held_out)
    labels = rng.permutation(np.repeat(np.arange(n_concepts), n_adapters_per_concept))
    grown = grow_adapters(codes[labels], rank=rank, rng=rng, verbose=verbose)
    return {"codes": codes, "labels": labels, "is_held_out": is_held_out, **grown}


def _attributes(codes):
    """Values of each model's attributes, by the attribute's name."""
    columns = zip(ATTRIBUTES.items(), codes.T, strict=True)
    return {name: np.array(values)[column] for (name, values), column in columns}


def _metadata(columns):
    """One dict a model, as the header of its file would have it."""
    return [
        {name: values[i].item() for name, values in columns.items()}
        for i in range(len(columns["concept"]))
    ]


def _hold_out(codes, share):
    """Hold out a share of the concepts whose every value is in one that is not."""
    n_wanted = round(share * len(codes))
    held_out = np.zeros(len(codes), dtype=bool)
    # How many concepts that are not held out have each value of each attribute.
    n_left = [
        np.bincount(column, minlength=n)
        for column, n in zip(codes.T, N_VALUES, strict=True)
    ]
    for i, values in enumerate(codes):
        if held_out.sum() == n_wanted:
            break
        if all(n[value] > 1 for n, value in zip(n_left, values, strict=True)):
            held_out[i] = True
            for n, value in zip(n_left, values, strict=True):
                n[value] -= 1
    if held_out.sum() < n_wanted:
        raise ValueError(
            f"held_out={share} of n_concepts={len(codes)} asks for {n_wanted} "
            f"concepts, but only {held_out.sum()} can be held out with every value of "
            "theirs left in others. Lower held_out, or make more concepts."
        )
    return held_out
