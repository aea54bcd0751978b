"""Which models or layers are meant by names, patterns, values and functions."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import numpy as np

from .._warnings import listed


def matching(known, wanted, what):
    """Find the positions of names, of patterns, or of what a function says.

    Raises
    ------
    KeyError
        If there is none of a name, or none that a pattern fits.
    """
    if callable(wanted):
        return [i for i, name in enumerate(known) if wanted(name)]
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    where = {name: i for i, name in enumerate(known)}
    positions, unknown = [], []
    for name in wanted:
        # A name may hold brackets; it means itself first.
        if name in where:
            positions.append(where[name])
            continue
        found = [i for i, other in enumerate(known) if fnmatchcase(other, str(name))]
        if not found:
            unknown.append(name)
        positions += [i for i in found if i not in set(positions)]
    if unknown:
        raise KeyError(
            f"There are no {what} named {listed(unknown)}, but {len(known)} others, "
            f"such as {listed(list(known)[:5])}."
        )
    return positions


def as_condition(wanted):
    """Turn a value, a list of them or a function into a function that returns bool."""
    if callable(wanted):
        return lambda value: bool(wanted(value))
    if isinstance(wanted, (list, tuple, set, frozenset, np.ndarray)):
        return list(wanted).__contains__
    return lambda value: value == wanted


def take_models(W, positions):
    """Select models by position.

    Parameters
    ----------
    W : weights, ModelCollection, dict of weights, data frame or sequence
    positions : ndarray of int

    Returns
    -------
    Of the kind that W is; nothing is read from files.
    """
    if isinstance(W, Mapping):
        return {name: take_models(layer, positions) for name, layer in W.items()}
    if isinstance(W, (list, tuple)):
        return [W[i] for i in positions]
    if hasattr(W, "iloc"):
        return W.iloc[positions]
    return (W if hasattr(W, "__getitem__") else np.asarray(W))[positions]
