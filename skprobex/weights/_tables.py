"""Tables that say something about models by name: aligned, never taken by position."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping

from .._warnings import listed
from ..exceptions import WeightFileError
from ._metadata import is_missing


def is_table(values):
    """Whether this is a pandas Series or DataFrame, or a dict by name."""
    return isinstance(values, Mapping) or is_frame(values)


def is_frame(values):
    """Whether this is a pandas Series or DataFrame."""
    return hasattr(values, "index") and hasattr(values, "iloc")


def series_values(series, names):
    """Take the value of each model from a Series or a dict; None where it has none."""
    if isinstance(series, Mapping):
        keys, values = list(series), list(series.values())
    else:
        keys, values = list(series.index), list(series.to_numpy(dtype=object))
    rows = rows_by_name(keys, names, "The labels")
    return [None if row is None else values[row] for row in rows]


def frame_rows(frame, names):
    """Take each model's row from a DataFrame, whose index or a column names models.

    Returns
    -------
    list of dict
        Without missing values; empty for a model that has no row.
    """
    columns = [str(column) for column in frame.columns]
    table = [list(frame.iloc[:, i].to_numpy(dtype=object)) for i in range(len(columns))]
    return _rows(list(frame.index), columns, table, names)


def csv_rows(path, names):
    """Take each model's row from a CSV file, one column of which names models."""
    path = os.path.expanduser(path)
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = list(csv.reader(file))
    if len(lines) < 2:
        raise WeightFileError(f"{path} is no table: expected a header and a row.")
    columns, lines = lines[0], [line for line in lines[1:] if line]
    if any(len(line) != len(columns) for line in lines):
        raise WeightFileError(f"{path} has rows of other lengths than its header.")
    table = [[line[i] for line in lines] for i in range(len(columns))]
    return _rows(None, columns, table, names)


def _rows(index, columns, table, names):
    wanted = set(names)
    candidates = [(None, index)] if index is not None else []
    candidates += list(enumerate(table))
    # The one that names most models; the index, where a column says the same.
    number, keys = max(
        candidates, key=lambda c: len(wanted & set(map(_plain, c[1]))), default=(0, [])
    )
    rows = rows_by_name(keys, names, "The table")
    return [
        {}
        if row is None
        else {
            column: table[i][row]
            for i, column in enumerate(columns)
            if i != number and not is_missing(table[i][row])
        }
        for row in rows
    ]


def rows_by_name(keys, names, what):
    """Find the row of each model.

    Returns
    -------
    list of int or None

    Raises
    ------
    ValueError
        If no row is named as any model is, or two rows as one.
    """
    where, twice = {}, set()
    for row, key in enumerate(map(_plain, keys)):
        if key in where:
            twice.add(key)
        where.setdefault(key, row)
    ambiguous = [name for name in names if name in twice]
    if ambiguous:
        raise ValueError(
            f"{what} have {listed(ambiguous)} more than once: give each model one row."
        )
    if names and not any(name in where for name in names):
        raise ValueError(
            f"{what} have no row named as any of the {len(names)} models, such as "
            f"{names[0]!r}, but such as {listed(list(where)[:2])}: expected the "
            "models' names as the index, as in frame.set_index('name')."
        )
    return [where.get(name) for name in names]


def _plain(key):
    """A row's name as a model's: tables often hold names of files."""
    if not isinstance(key, (str, os.PathLike)):
        return str(key)
    return os.fspath(key).removesuffix(".safetensors")


def check_order(entries, names):
    """Refuse one dict per model in another order than the models.

    Raises
    ------
    ValueError
        Naming the key whose values are the models' names, elsewhere.
    """
    wanted = set(names)
    for key in entries[0] if entries else ():
        found = [entry.get(key) for entry in entries]
        if all(isinstance(value, str) for value in found) and found != names:
            if set(found) == wanted:
                raise ValueError(
                    f"metadata are in another order than the models: by {key!r} the "
                    f"first is {found[0]!r}, but the first model is {names[0]!r}. Pass "
                    f"a DataFrame, which is aligned by name, or sort them."
                )


def entries_of(metadata, names, before=None):
    """Turn what is known of models into one dict each, in their order.

    A table is aligned by name, and adds to what there was `before`; a list takes its
    place.
    """
    if metadata is None:
        return [{} for _ in names]
    rows = None
    is_path = isinstance(metadata, str) and metadata.endswith(".csv")
    if is_path or isinstance(metadata, os.PathLike):
        rows = csv_rows(metadata, names)
    elif is_frame(metadata):
        rows = frame_rows(
            metadata.to_frame() if metadata.ndim == 1 else metadata, names
        )
    elif isinstance(metadata, Mapping):
        rows = [entry or {} for entry in series_values(metadata, names)]
    if rows is not None:
        before = before or [{} for _ in names]
        metadata = [{**old, **new} for old, new in zip(before, rows, strict=True)]
    metadata = list(metadata)
    if len(metadata) != len(names):
        raise ValueError(
            f"metadata has {len(metadata)} entries for {len(names)} models."
        )
    if not all(isinstance(entry, Mapping) for entry in metadata):
        raise ValueError("metadata must hold one dict per model.")
    metadata = [dict(entry) for entry in metadata]
    check_order(metadata, names)
    return metadata
