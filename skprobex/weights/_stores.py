"""Where a collection's layers are, in memory or in files, behind the same methods."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from .._warnings import listed
from ..exceptions import MissingLayerError
from ._held import held_models
from ._in_files import LayerHandle, LayerWeights, StoredModel, check_one_form, form


class LayerInfo(NamedTuple):
    """What a collection knows of a layer without reading it.

    `shape` is one model's, and `dtype` that of reading it; where models differ, that
    of most of them, and `n_forms` is more than one.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    n_models: int
    is_low_rank: bool = False
    n_forms: int = 1


class InMemory:
    """Layers as arrays, or as whatever else weights can be."""

    def __init__(self, weights):
        self._weights = weights

    def layers(self):
        return {
            name: LayerInfo(
                tuple(W.shape[1:]),
                W.dtype,
                len(W),
                bool(getattr(W, "is_low_rank", False)),
            )
            for name, W in self._weights.items()
        }

    def layer(self, name):
        return self._weights[name]

    def with_layer(self, name):
        return np.arange(len(self._weights[name]))

    def take(self, positions, layers=None):
        names = self._weights if layers is None else layers
        return InMemory({name: self._weights[name][positions] for name in names})

    def architectures(self):
        return [0] * len(next(iter(self._weights.values())))

    def stored(self, names, metadata):
        """Turn the layers of many models into many models."""
        return held_models(self._weights, names, metadata)


class InFiles:
    """Layers in files; models with the same header share one dict of specs."""

    def __init__(self, models, selected=None):
        self.models = models
        self._selected = selected

    def _named(self, model):
        if self._selected is None:
            return model.specs
        return {n: model.specs[n] for n in self._selected if n in model.specs}

    def layers(self):
        # Once for each header, however many models have it.
        shared = {id(model.specs): model for model in self.models}
        counts = Counter(id(model.specs) for model in self.models)
        forms, dtypes = {}, {}
        for key, model in shared.items():
            for name, spec in self._named(model).items():
                found = forms.setdefault(name, Counter())
                found[form(spec)] += counts[key]
                dtypes.setdefault((name, form(spec)), spec.dtype)
        infos = {}
        for name, found in forms.items():
            usual = found.most_common(1)[0][0]
            infos[name] = LayerInfo(
                usual[0], dtypes[name, usual], found.total(), usual[1], len(found)
            )
        return infos

    def layer(self, name):
        missing = [model.name for model in self.models if name not in model.specs]
        if missing:
            raise MissingLayerError(
                f"{len(missing)} of {len(self.models)} models have no layer {name!r}: "
                f"{listed(missing)}. Leave them out with "
                f"models.select(layers=[{name!r}], on_missing='drop')."
            )
        handles = self._handles(range(len(self.models)), name)
        for handle in handles:
            if handle.spec.is_refused:
                handle.read()
        check_one_form(name, handles)
        return LayerWeights(name, handles)

    def with_layer(self, name):
        where = [
            i
            for i, model in enumerate(self.models)
            if name in model.specs and not model.specs[name].is_refused
        ]
        forms = Counter(form(self.models[i].specs[name]) for i in where)
        usual = forms.most_common(1)[0][0] if forms else None
        return np.array(
            [i for i in where if form(self.models[i].specs[name]) == usual],
            dtype=np.int64,
        )

    def _handles(self, positions, name):
        models = [self.models[i] for i in positions]
        return [LayerHandle(m.name, m.sources, m.specs[name]) for m in models]

    def take(self, positions, layers=None):
        selected = self._selected if layers is None else list(layers)
        return InFiles([self.models[i] for i in positions], selected)

    def stored(self, names, metadata):
        """The models, of the layers that are selected."""
        return [
            StoredModel(name, model.sources, self._named(model), entry)
            for name, model, entry in zip(names, self.models, metadata, strict=True)
        ]

    def architectures(self):
        of_specs = {
            id(model.specs): frozenset(
                (name, spec.shape, spec.is_low_rank)
                for name, spec in self._named(model).items()
            )
            for model in self.models
        }
        return [of_specs[id(model.specs)] for model in self.models]
