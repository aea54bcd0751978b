"""What files say about their models: text, until it is parsed as data."""

from __future__ import annotations

import ast
import json
import warnings

import numpy as np
from sklearn.utils import Bunch

# Parsing bounds: no label is longer or nested deeper than this.
_MAX_CHARS = 1_000_000
_MAX_DEPTH = 8


def check_key(key, metadata):
    """Refuse a key that none of some models has."""
    known = {known for entry in metadata for known in entry}
    if metadata and key not in known:
        raise ValueError(f"No model has metadata {key!r}. There are: {sorted(known)}.")


def parse_value(value):
    """Read a metadata value as a number, a list of them, or text.

    Text is tried as JSON, then as a Python literal; neither can run anything.

    Examples
    --------
    >>> parse_value("['cat', 'dog']")
    ['cat', 'dog']
    >>> parse_value("1e-3")
    0.001
    >>> parse_value("__import__('os').system('true')")
    "__import__('os').system('true')"
    """
    if not isinstance(value, str):
        return value
    if len(value) > _MAX_CHARS or _depth(value) > _MAX_DEPTH:
        return value
    if value in ("nan", "inf", "-inf"):  # as Python writes them
        return float(value)
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings():
                # Of odd escapes in the text, which are no concern of its reader.
                warnings.simplefilter("ignore")
                parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return value
    if isinstance(parsed, (list, tuple, set, frozenset)):
        return list(parsed) if all(map(_is_scalar, parsed)) else value
    # Words that happen to be constants, such as "None", stay words; and an integer
    # must fit into an array.
    is_integer = isinstance(parsed, int) and abs(parsed) < 2**63
    return parsed if is_integer or isinstance(parsed, float) else value


def _depth(text):
    """Count how deep brackets are nested, an upper bound where text holds some."""
    depth = deepest = 0
    for sign in text:
        if sign in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in ")]}":
            depth -= 1
    return deepest


def _is_scalar(value):
    return isinstance(value, (str, bool, int, float))


def encode_labels(values, key, names):
    """Turn one metadata value per model into `y`.

    Parameters
    ----------
    values : list
        As found; None where a model has none.
    key : str
    names : list of str
        Of the models, for the error.

    Returns
    -------
    ndarray of shape (n_models,), or Bunch
        Numbers if all values are; an indicator matrix ``y (n_models, n_classes)`` of
        0 and 1 with its `classes`, if all values are lists; else text.

    Raises
    ------
    ValueError
        Naming the models without the key.
    """
    missing = [name for name, v in zip(names, values, strict=True) if v is None]
    if missing:
        named = ", ".join(map(repr, missing[:5]))
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(
            f"{len(missing)} of {len(names)} models have no metadata {key!r}: {named}"
            f"{more}. Leave them out: models.select(metadata={{{key!r}: "
            "lambda value: value is not None})."
        )
    parsed = [parse_value(value) for value in values]
    if parsed and all(isinstance(value, list) for value in parsed):
        return _indicator(parsed)
    if all(isinstance(value, (bool, np.bool_)) for value in parsed):
        return np.array(parsed, dtype=bool)
    if all(isinstance(value, (int, float, np.number, bool)) for value in parsed):
        return np.array(parsed)
    return np.array([v if isinstance(v, str) else json.dumps(v) for v in values])


def _indicator(lists):
    distinct = {label for labels in lists for label in labels}
    try:
        classes = sorted(distinct)
    except TypeError:
        # Numbers and text mixed: all are text then.
        lists = [[str(label) for label in labels] for labels in lists]
        classes = sorted({label for labels in lists for label in labels})
    position = {label: i for i, label in enumerate(classes)}
    y = np.zeros((len(lists), len(classes)), dtype=np.int64)
    for row, labels in zip(y, lists, strict=True):
        row[[position[label] for label in labels]] = 1
    return Bunch(y=y, classes=np.array(classes))
