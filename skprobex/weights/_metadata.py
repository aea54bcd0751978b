"""What files say about their models: text, until it is parsed as data."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings

import numpy as np
from sklearn.utils import Bunch

from .._warnings import listed

# Parsing bounds: no label is longer or nested deeper than this.
_MAX_CHARS = 20_000
_MAX_DEPTH = 8
_NUMBER = re.compile(
    r"[+-]?(0|[1-9][0-9]*|(?:[0-9]+\.[0-9]*|\.[0-9]+))([eE][+-]?[0-9]+)?"
)
_CONSTANTS = {
    "true": True,
    "True": True,
    "false": False,
    "False": False,
    "inf": math.inf,
    "Infinity": math.inf,
    "-inf": -math.inf,
    "-Infinity": -math.inf,
}
# How writers put that there is no value: JSON, NumPy and pandas.
_MISSING = {"", "null", "nan", "NaN", "<NA>", "NaT"}


def check_key(key, metadata):
    """Refuse a key that none of some models has."""
    known = {known for entry in metadata for known in entry}
    if metadata and key not in known:
        raise ValueError(
            f"No model has metadata {key!r}. There are: {sorted(known)}. Labels from a "
            "table: models.labels(frame[column]), or models.metadata = frame, with the "
            "models' names as its index."
        )


def is_missing(value):
    """Whether a metadata value says that there is none."""
    if isinstance(value, str):
        return value.strip() in _MISSING
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and math.isnan(value)


def parse_value(value):
    """Read a metadata value as a number, a list of them, or text.

    Text is tried as JSON, then as a Python literal; neither can run anything. Numbers
    that do not fit into an array's stay text.

    Examples
    --------
    >>> parse_value("['cat', 'dog']")
    ['cat', 'dog']
    >>> parse_value("1e-3")
    0.001
    >>> parse_value("__import__('os').system('true')")
    "__import__('os').system('true')"
    """
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) is int and abs(value) >= 2**63:
        return str(value)
    if isinstance(value, (tuple, set, frozenset)):
        return list(value)
    if not isinstance(value, str) or len(value) > _MAX_CHARS:
        return value
    text = value.strip()
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _NUMBER.fullmatch(text):
        return _parse_number(text, value)
    if text[:1] not in "[({" or _depth(text) > _MAX_DEPTH:
        return value
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings():
                # Of odd escapes in the text, which are no concern of its reader.
                warnings.simplefilter("ignore")
                parsed = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return value
    if isinstance(parsed, (list, tuple, set, frozenset)):
        return list(parsed) if all(map(_is_scalar, parsed)) else value
    return value


def _parse_number(text, value):
    """An integer or a float, or the text of one that is too large."""
    if len(text) < 20 and text.lstrip("+-").isdecimal():
        number = int(text)
        return number if abs(number) < 2**63 else value
    if text.lstrip("+-").isdecimal():
        return value
    number = float(text)
    return number if math.isfinite(number) else value


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


def encode_labels(values, key, names, missing="raise"):
    """Turn one metadata value per model into `y`.

    Parameters
    ----------
    values : list
        As found; None where a model has none.
    key : str
    names : list of str
        Of the models, for the error.
    missing : {"raise", "drop"}, default="raise"

    Returns
    -------
    ndarray of shape (n_models,), or Bunch
        Numbers if all values are; an indicator matrix ``y (n_models, n_classes)`` of
        0 and 1 with its `classes`, if all values are lists; else text.

    Raises
    ------
    ValueError
        Naming the models without a value, or those whose values are of another form
        than most.
    """
    if missing not in ("raise", "drop"):
        raise ValueError(f"missing={missing!r}: expected 'raise' or 'drop'.")
    has_value = labelled(values)
    if not all(has_value):
        if missing == "raise":
            _refuse_missing(has_value, key, names)
        kept = np.flatnonzero(has_value)
        values, names = [values[i] for i in kept], [names[i] for i in kept]
    parsed = [parse_value(value) for value in values]
    forms = [_form(value) for value in parsed]
    distinct = set(forms)
    if distinct == {"a list"}:
        return _indicator(parsed)
    if distinct == {"a truth value"}:
        return np.array(parsed, dtype=bool)
    if distinct == {"a number"}:
        return np.array(parsed)
    if "a list" not in distinct and all(isinstance(value, str) for value in values):
        # Written as text, and not all of it is anything else: words.
        return np.array(values, dtype=str)
    if distinct <= {"text"}:
        return np.array([str(value) for value in parsed], dtype=str)
    shown = ", ".join(
        f"{form} at {names[forms.index(form)]!r}" for form in sorted(distinct)
    )
    raise ValueError(
        f"metadata {key!r} have several forms: {shown}. Give all models a list, a "
        "number, or text, in models.metadata."
    )


def encode_columns(columns, names, missing="raise"):
    """Turn several columns of labels into one `y` of as many.

    Parameters
    ----------
    columns : dict of str to list
        A value per model in each.
    names : list of str
    missing : {"raise", "drop"}, default="raise"
        With "drop" a model is left out that lacks a value in any column.

    Returns
    -------
    ndarray of shape (n_models,) or (n_models, n_columns)
        One axis where there is one column, as `encode_labels` gives. Truth values of
        several columns are 0 and 1.
    """
    if missing == "drop":
        has_all = np.all([labelled(values) for values in columns.values()], axis=0)
        kept = np.flatnonzero(has_all)
        columns = {key: [values[i] for i in kept] for key, values in columns.items()}
        names = [names[i] for i in kept]
    encoded = [encode_labels(v, key, names, missing) for key, v in columns.items()]
    if len(encoded) == 1:
        return encoded[0]
    if not all(isinstance(column, np.ndarray) for column in encoded):
        raise ValueError("Several columns of lists are no labels: pass one of them.")
    kinds = {column.dtype.kind for column in encoded}
    if "U" in kinds and len(kinds) > 1:
        raise ValueError("Columns of text and of numbers are no labels: pass one kind.")
    stacked = np.column_stack(encoded)
    return stacked.astype(np.int64) if kinds == {"b"} else stacked


def labelled(values):
    """Say of each model's value whether it is one."""
    has_value = [not is_missing(value) for value in values]
    forms = {
        _form(parse_value(value))
        for value, is_there in zip(values, has_value, strict=True)
        if is_there and value != "None"
    }
    if forms and "text" not in forms:
        # Python's word for nothing, unless it is a word among words.
        has_value = [
            is_there and not (isinstance(value, str) and value == "None")
            for value, is_there in zip(values, has_value, strict=True)
        ]
    return has_value


def _refuse_missing(has_value, key, names):
    lacking = [name for name, has in zip(names, has_value, strict=True) if not has]
    raise ValueError(
        f"{len(lacking)} of {len(names)} models have no metadata {key!r}: "
        f"{listed(lacking)}. Leave them out: models = "
        f"models.select(labelled={key!r}); or take "
        "the labels of the others, models.labels(..., missing='drop')."
    )


def _form(value):
    if isinstance(value, (list, np.ndarray)):
        return "a list"
    if isinstance(value, bool):
        return "a truth value"
    return "a number" if isinstance(value, (int, float)) else "text"


def _indicator(lists):
    lists = [list(labels) for labels in lists]
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
