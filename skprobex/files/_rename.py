"""Give layers their names: dots that only other files tell, and names of the user's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from ..exceptions import CorruptFileError
from ._module_names import dotted, underscore
from ._recipes import RefusedSpec

Rename: TypeAlias = (
    Mapping[Any, str] | Iterable[tuple[Any, str]] | Callable[[str], str] | None
)
_MAX_STARS = 8


def name_layers(models, rename=None):
    """Rename the layers of models in place.

    Parameters
    ----------
    models : list of StoredModel
        Their `specs` are those of `_adapters.Layers`; models may share them.
    rename : dict, list of pairs, callable or None
        As for `open_models`.

    Returns
    -------
    named : list of StoredModel
        Without those whose names cannot be made out.
    errors : dict of str to CorruptFileError
        Of these, by the model's name.
    """
    distinct = {id(model.specs): model.specs for model in models}
    known = _known_names(distinct.values())
    function = as_function(rename)
    failed = {}
    for number, specs in distinct.items():
        try:
            keys = [_with_dots(key, known) for key in specs]
        except Exception as error:  # of names that a stranger thought of
            failed[number] = error
            continue
        named = {}
        for key, spec in zip(keys, specs.values(), strict=True):
            name = function(key)
            if name in named:
                spec = RefusedSpec(
                    name,
                    "the name of two layers",
                    "They would be one layer in two spellings, or `rename` gives both "
                    "one name.",
                    spec.file,
                )
            named[name] = spec
        specs.clear()
        specs.update(named)
    errors = {
        model.name: CorruptFileError(
            f"{model.sources[0]} has names of layers that cannot be made out "
            f"({type(error).__name__}: {str(error)[:100]})."
        )
        for model in models
        if (error := failed.get(id(model.specs))) is not None
    }
    return [model for model in models if model.name not in errors], errors


def _known_names(distinct):
    """Dotted names of modules, by how they are written with underscores."""
    known = {}
    if any(isinstance(key, tuple) for specs in distinct for key in specs):
        for specs in distinct:
            for name in specs:
                if isinstance(name, str):
                    module = name.removesuffix(".weight").removesuffix(".bias")
                    known[underscore(module)] = module
    return known


def _with_dots(key, known):
    if not isinstance(key, tuple):
        return key
    component, underscored, leaf = key
    return f"{dotted(component, underscored, known)}.{leaf}"


def as_function(rename):
    """Turn what a user may pass as `rename` into a function of a name.

    Raises
    ------
    TypeError
        If it is neither, or gives a name that is no text.
    """
    if rename is None:
        return lambda name: name
    if callable(rename):
        return lambda name: _as_name(rename(name), name)
    pairs = rename.items() if isinstance(rename, Mapping) else rename
    try:
        pairs = [tuple(pair) if not isinstance(pair, str) else () for pair in pairs]
    except TypeError:
        pairs = None
    if pairs is None or not all(map(_is_pair, pairs)):
        raise TypeError(
            "rename must be a dict of new names by names or patterns, such as "
            "{'encoder.*': 'backbone.*'}, a list of such pairs, or a function of a "
            f"name; got {rename!r:.200}."
        )
    exact = {p: new for p, new in pairs if isinstance(p, str) and "*" not in p}
    patterns = [pair for pair in pairs if pair[0] not in exact]
    return lambda name: exact[name] if name in exact else _renamed(name, patterns)


def _is_pair(pair):
    return (
        len(pair) == 2
        and isinstance(pair[0], (str, re.Pattern))
        and isinstance(pair[1], str)
    )


def _as_name(new, name):
    if not isinstance(new, str) or not new:
        raise TypeError(f"rename({name!r}) gave {new!r}: expected a name.")
    return new


def _renamed(name, patterns):
    """Rename by the first pattern that matches."""
    for pattern, new in patterns:
        if isinstance(pattern, re.Pattern):
            if pattern.search(name):
                return _as_name(pattern.sub(new, name), name)
            continue
        found = match_stars(pattern, name)
        if found is not None:
            for text in found:
                new = new.replace("*", text, 1)
            return _as_name(new, name)
    return name


def match_stars(pattern, name):
    """Return what each ``*`` of a pattern stands for in a name, or None.

    The first ones stand for as little as can be, the last for all that is left.
    """
    first, *middle = pattern.split("*")
    if len(middle) > _MAX_STARS:
        raise ValueError(f"{pattern!r} has more than {_MAX_STARS} stars.")
    *middle, last = middle
    if not name.startswith(first) or not name.endswith(last):
        return None
    at, end, found = len(first), len(name) - len(last), []
    for part in middle:
        start = name.find(part, at, end)
        if start < 0:
            return None
        found.append(name[at:start])
        at = start + len(part)
    if at > end:
        return None
    return [*found, name[at:end]]
