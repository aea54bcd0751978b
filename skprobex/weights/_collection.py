"""Many models and their layers, opened but not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse

from .._natural import natural
from .._typing import Numbers, Selection, Self
from .._warnings import warn
from ..exceptions import MissingLayerError
from ._bases import base_model, canonical_bases
from ._metadata import check_key, encode_labels
from ._stores import InFiles, InMemory, LayerInfo

if TYPE_CHECKING:
    import pandas as pd

_N_NAMED = 5
_N_ROWS = 20


class ModelCollection:
    """Several layers of the same models, with what is known about each model.

    Made by `open_models`, whose layers stay in their files, or by `from_layers`.
    ``models["layer name"]`` is one layer, as weights; all other indexing selects
    models: integers, slices, integer arrays, boolean masks. It therefore passes
    through ``train_test_split`` and ``cross_val_score`` as arrays do.

    Parameters
    ----------
    names : sequence of str
        The models' names.
    metadata : sequence of dict
        One per model.
    store : store
        Where the layers are; made by `open_models` and `from_layers`.
    on_missing : {"raise", "drop"}, default="raise"
        What ``models[layer]`` does about models that lack the layer.

    Attributes
    ----------
    layers : dict of str to LayerInfo
        Shape, dtype and number of models of every layer, in natural order.
    groups : ndarray of shape (n_models,)
        Number of each model's architecture (same layers and shapes) and declared
        base; 0 is the largest group.
    shape : (n_models, n_layers)

    See Also
    --------
    LayerWeights : A lazy layer.

    Examples
    --------
    >>> import numpy as np
    >>> from skprobex import ModelCollection
    >>> W = np.zeros((3, 8, 8))
    >>> models = ModelCollection.from_layers(
    ...     {"first": W, "second": W}, metadata=[{"label": v} for v in "aba"]
    ... )
    >>> models
    ModelCollection(3 models, 2 layers)
    >>> models[[0, 2]].labels("label")
    array(['a', 'a'], dtype='<U1')
    """

    def __init__(
        self,
        names: Iterable[str],
        metadata: Iterable[dict[str, Any]],
        store: InMemory | InFiles,
        on_missing: Literal["raise", "drop"] = "raise",
    ) -> None:
        self.names = list(names)
        self.metadata = list(metadata)
        self._store = store
        self._on_missing = on_missing
        self._layers: dict[str, LayerInfo] | None = None
        # Layers whose dropped models have been told of.
        self._said: set[str] = set()
        self.skipped_: dict[str, str] = {}

    @classmethod
    def from_layers(
        cls,
        layers: Mapping[str, Numbers],
        names: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Self:
        """Make a collection in memory.

        Parameters
        ----------
        layers : dict of str to weights
            Arrays, tensors, `LowRankWeights` or `LayerWeights`, by layer name, all of
            the same models in the same order.
        names : sequence of str, default=None
            None means ``model_0``, ``model_1``, and so on.
        metadata : sequence of dict, default=None
            One per model.

        Returns
        -------
        ModelCollection
            The weights are not copied.

        Raises
        ------
        ValueError
            If layers, names and metadata are not of the same number of models.
        """
        if not isinstance(layers, Mapping) or not layers:
            raise ValueError(
                "layers must be a dict of weights by layer name, with one at least."
            )
        for name, W in layers.items():
            check_is_layer(name, W)
        layers = {
            str(name): W if hasattr(W, "shape") else np.asarray(W)
            for name, W in layers.items()
        }
        lengths = {name: len(W) for name, W in layers.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"Layers must be of the same models, but hold different numbers of "
                f"them: {lengths}."
            )
        n_models = next(iter(lengths.values()))
        names = [f"model_{i}" for i in range(n_models)] if names is None else names
        metadata = [{} for _ in range(n_models)] if metadata is None else metadata
        for what, values in (("names", names), ("metadata", metadata)):
            if len(values) != n_models:
                raise ValueError(
                    f"{what} has {len(values)} entries for {n_models} models."
                )
        if not all(isinstance(entry, Mapping) for entry in metadata):
            raise ValueError("metadata must hold one dict per model.")
        return cls(map(str, names), map(dict, metadata), InMemory(layers))

    @classmethod
    def _from_models(cls, models, on_missing):
        """Make a collection of opened models."""
        names = [model.name for model in models]
        metadata = [model.metadata for model in models]
        return cls(names, metadata, InFiles(models), on_missing)

    @classmethod
    def _join(cls, collections):
        """Put opened collections one after another."""
        first = collections[0]
        models = [model for c in collections for model in c._store.models]
        return cls._from_models(models, first._on_missing)

    @property
    def layers(self) -> dict[str, LayerInfo]:
        if self._layers is None:
            found = self._store.layers()
            self._layers = {name: found[name] for name in sorted(found, key=natural)}
        return self._layers

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self.names), len(self.layers))

    @property
    def groups(self) -> np.ndarray:
        bases = canonical_bases([base_model(entry) for entry in self.metadata])
        keys = list(zip(self._store.architectures(), bases, strict=True))
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        counts = Counter(keys)
        order = sorted(counts, key=lambda key: (-counts[key], first[key]))
        number = {key: i for i, key in enumerate(order)}
        return np.array([number[key] for key in keys], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, key: str) -> Any: ...

    @overload
    def __getitem__(self, key: int | np.integer | Selection) -> ModelCollection: ...

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self._layer(key)
        if isinstance(key, tuple):
            key, *rest = key
            if any(k is not Ellipsis and k != slice(None) for k in rest):
                raise IndexError(
                    "A collection is indexed by model, or by one layer's name; "
                    "several layers are models.select(layers=[...])."
                )
        if key is Ellipsis:
            return self
        if isinstance(key, list) and any(isinstance(k, str) for k in key):
            raise TypeError(
                "A list selects models by position: by name it is "
                "models.select(names=[...]) or models.select(layers=[...])."
            )
        positions = np.atleast_1d(np.arange(len(self))[key])
        if positions.ndim > 1:
            raise IndexError("Models are indexed along one axis.")
        return self._take(positions)

    def __iter__(self) -> NoReturn:
        raise TypeError(
            "A collection is not iterated over: take models.names, models.layers or "
            "models[layer]."
        )

    def __contains__(self, layer: object) -> bool:
        return layer in self.layers

    def _take(self, positions, layers=None):
        return ModelCollection(
            [self.names[i] for i in positions],
            [self.metadata[i] for i in positions],
            self._store.take(positions, layers),
            self._on_missing,
        )

    def _layer(self, name):
        if name not in self.layers:
            if name in self.names:
                raise MissingLayerError(
                    f"{name!r} is a model, and a name in brackets selects a layer: "
                    f"models.select(names=[{name!r}])."
                )
            close = [known for known in self.layers if name in known][:_N_NAMED]
            close = close or list(self.layers)[:_N_NAMED]
            raise MissingLayerError(
                f"No model has a layer {name!r}. There are {len(self.layers)} layers, "
                f"such as {', '.join(map(repr, close))}."
            )
        if self._on_missing == "raise":
            return self._store.layer(name)
        kept = self._store.with_layer(name)
        n_dropped = len(self) - len(kept)
        if n_dropped and name not in self._said:
            self._said.add(name)
            warn(
                f"{n_dropped} of {len(self)} models lack layer {name!r}, or have it "
                "in another shape than most, and were left out. Labels of the others: "
                f"models.select(layers=[{name!r}], on_missing='drop').labels(...).",
            )
        return self._store.take(kept).layer(name)

    def labels(self, key: str) -> Any:
        """Turn one metadata entry of all models into `y`.

        Parameters
        ----------
        key : str
            Values may be numbers, text, or lists as text; they are parsed as JSON or
            as Python literals, and never run.

        Returns
        -------
        ndarray of shape (n_models,), or Bunch
            Numbers or text; for lists a Bunch of `y`, an indicator matrix of shape
            (n_models, n_classes), and `classes`.

        Raises
        ------
        ValueError
            If models lack the key; the message names them.
        """
        check_key(key, self.metadata)
        values = [entry.get(key) for entry in self.metadata]
        return encode_labels(values, key, self.names)

    def to_frame(self) -> pd.DataFrame:
        """Return the metadata as a table.

        Returns
        -------
        pandas.DataFrame
            A row per model, a column per key.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "to_frame needs pandas (pip install pandas); models.metadata has the "
                "same as dicts."
            ) from error
        index = pd.Index(self.names, name="model")
        return pd.DataFrame.from_records(self.metadata, index=index)

    def select(
        self,
        names: str | Sequence[str] | None = None,
        *,
        mask: ArrayLike | None = None,
        metadata: Mapping[str, Any] | None = None,
        layers: str | Sequence[str] | None = None,
        on_missing: Literal["raise", "drop"] = "raise",
    ) -> ModelCollection:
        """Select models, layers, or both.

        Parameters
        ----------
        names : sequence of str, default=None
            Names of models, in the order wanted.
        mask : array-like of bool, default=None
            One per model.
        metadata : dict, default=None
            For each key a value, a list of allowed values, or a function of the
            value (None where a model has none) that says whether to keep the model.
        layers : sequence of str, default=None
            Layers to keep. All are kept otherwise.
        on_missing : {"raise", "drop"}, default="raise"
            With "drop", models that lack one of `layers`, or have it in another shape
            than most, are left out.

        Returns
        -------
        ModelCollection
            The same handles or arrays; nothing is read.

        Raises
        ------
        KeyError
            If there is no model or layer of a name.
        """
        if on_missing not in ("raise", "drop"):
            raise ValueError(f"on_missing={on_missing!r}: expected 'raise' or 'drop'.")
        positions = np.arange(len(self))
        if names is not None:
            names = [names] if isinstance(names, str) else list(names)
            where = {name: i for i, name in enumerate(self.names)}
            unknown = [name for name in names if name not in where]
            if unknown:
                raise KeyError(f"There are no models named {unknown[:_N_NAMED]}.")
            positions = np.array([where[name] for name in names], dtype=np.int64)
        if mask is not None:
            mask = np.asarray(mask)
            if mask.dtype != bool or mask.shape != (len(self),):
                raise ValueError(f"mask must hold {len(self)} booleans.")
            positions = positions[mask[positions]]
        for key, wanted in (metadata or {}).items():
            check_key(key, self.metadata)
            is_wanted = as_condition(wanted)
            keep = [is_wanted(self.metadata[i].get(key)) for i in positions]
            positions = positions[np.array(keep, dtype=bool)]
        if layers is not None:
            layers = [layers] if isinstance(layers, str) else list(layers)
            unknown = [name for name in layers if name not in self.layers]
            if unknown:
                raise KeyError(
                    f"There are no layers named {unknown[:_N_NAMED]}, but "
                    f"{len(self.layers)} others, such as "
                    f"{list(self.layers)[:_N_NAMED]}."
                )
        selected = self._take(positions, layers)
        if on_missing == "drop":
            for name in layers or []:
                selected = selected._take(selected._store.with_layer(name))
        return selected

    def __repr__(self) -> str:
        return f"ModelCollection({len(self)} models, {len(self.layers)} layers)"

    def _repr_html_(self):
        rows = "".join(
            f"<tr><td style='text-align:left'><code>{escape(name)}</code></td>"
            f"<td>{' x '.join(map(str, info.shape))}</td><td>{info.dtype}</td>"
            f"<td>{info.n_models}</td></tr>"
            for name, info in list(self.layers.items())[:_N_ROWS]
        )
        rest = len(self.layers) - _N_ROWS
        more = f"<tr><td colspan=4>… and {rest} more</td></tr>" if rest > 0 else ""
        return (
            f"<b>ModelCollection</b>: {len(self)} models, {len(self.layers)} layers"
            "<table><tr><th>layer</th><th>shape</th><th>dtype</th><th>models</th></tr>"
            f"{rows}{more}</table>"
        )


def check_is_layer(name, W):
    """Refuse what is no layer of several models."""
    is_sequence = isinstance(W, (list, tuple)) or len(getattr(W, "shape", ())) > 0
    if issparse(W) or not is_sequence:
        raise TypeError(
            f"Layer {name!r} is of type {type(W).__name__}: expected weights of shape "
            "(n_models, d_out, d_in), dense or low-rank."
        )


def as_condition(wanted):
    """Turn a value, a list of them or a function into a function that returns bool."""
    if callable(wanted):
        return lambda value: bool(wanted(value))
    if isinstance(wanted, (list, tuple, set, frozenset, np.ndarray)):
        return list(wanted).__contains__
    return lambda value: value == wanted
