"""What was found in one place, and in several."""

from __future__ import annotations

from typing import NamedTuple

from ..exceptions import WeightFileError
from ..weights._collection import make_unique
from ._layouts import LeftOut, ModelFiles


class Found(NamedTuple):
    """What a source holds: models, files left out, and items that hold no model."""

    models: list[ModelFiles]
    left_out: list[LeftOut]
    errors: dict[str, WeightFileError]


def join_found(looks, what):
    """Join what was found in several repositories."""
    errors = {name: look for name, look in looks.items() if isinstance(look, Exception)}
    found = [look for name, look in looks.items() if name not in errors]
    models = [model for look in found for model in look.models]
    if not models:
        raise next(
            iter(errors.values()),
            WeightFileError(f"{what}: there are no such repositories in the cache."),
        )
    left_out = [entry for look in found for entry in look.left_out]
    # Of a search, repositories without weights are no faults.
    left_out += [LeftOut(name, str(error)) for name, error in errors.items()]
    return Found(make_unique(models), left_out, {})


def called(models, name):
    """Put a name before those of models; the one that has none gets it."""
    if not name:
        return models
    return [
        model._replace(name=f"{name}/{model.name}" if model.name else name)
        for model in models
    ]
