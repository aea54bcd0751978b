"""Many models and their layers, opened but not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse

from .._natural import natural
from .._typing import Numbers, Selection, Self
from .._warnings import warn
from ..exceptions import MissingLayerError
from ._bases import base_model, canonical_bases
from ._in_files import StoredModel
from ._metadata import check_key, encode_columns, encode_labels
from ._metadata import labelled as has_label
from ._selection import as_condition, matching
from ._stores import InFiles, InMemory, LayerInfo
from ._tables import entries_of, is_table, series_values

if TYPE_CHECKING:
    import pandas as pd

_N_NAMED = 5
_N_ROWS = 20
_N_SHOWN = 12

# What models or layers are called, a pattern, or a function of the name.
Named: TypeAlias = str | Sequence[str] | Callable[[str], bool]
# One dict per model, or a table by name: a DataFrame, a dict, or a CSV file's path.
Metadata: TypeAlias = Any


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
        base, however that is spelt; 0 is the largest group.
    shape : (n_models, n_layers)
    metadata : list of dict
        One per model. What is assigned may be a list of dicts, or a DataFrame or the
        path of a CSV file that name the models: its columns are added by name.
    skipped_ : dict of str to str
        Of what `open_models` found: the files and folders that are not among the
        models, and why.

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

    # `skprobex.files` puts it here: what is an adapter in memory, it knows.
    _read_state_dicts: ClassVar[Callable[..., list[StoredModel]]]

    def __init__(
        self,
        names: Iterable[str],
        metadata: Iterable[dict[str, Any]],
        store: InMemory | InFiles,
        on_missing: Literal["raise", "drop"] = "raise",
    ) -> None:
        self.names = list(names)
        self._metadata = list(metadata)
        # Of the collection that this one was selected from, if it was.
        self._all_names = frozenset(self.names)
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
        metadata: Metadata | None = None,
    ) -> Self:
        """Make a collection in memory.

        Parameters
        ----------
        layers : dict of str to weights
            Arrays, tensors, `LowRankWeights` or `LayerWeights`, by layer name, all of
            the same models in the same order.
        names : sequence of str, default=None
            None means ``model_0``, ``model_1``, and so on.
        metadata : sequence of dict or DataFrame, default=None
            One dict per model, or a table whose index names the models.

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
        if len(names) != n_models:
            raise ValueError(f"names has {len(names)} entries for {n_models} models.")
        names = list(map(str, names))
        metadata = entries_of(metadata, names)
        return cls(names, metadata, InMemory(layers))

    @classmethod
    def from_state_dicts(
        cls,
        models: Mapping[str, Any] | Sequence[Any],
        metadata: Metadata | None = None,
        *,
        on_missing: Literal["raise", "drop"] = "raise",
    ) -> Self:
        """Make a collection of networks in memory.

        Parameters
        ----------
        models : dict of str to (state dict or Module)
            By the model's name; of a list the names are ``model_0``, ``model_1``, and
            so on. Their layers may differ. Adapters are read as those in files are,
            with the scale in the module's ``peft_config``.
        metadata : sequence of dict or DataFrame, default=None
            One dict per model, or a table whose index names the models.
        on_missing : {"raise", "drop"}, default="raise"
            As in `open_models`.

        Returns
        -------
        ModelCollection
            The weights are not copied: training on would change them.

        Raises
        ------
        TypeError
            If a model is neither a state dict nor a module.
        ValueError
            If two models are the same memory.

        Examples
        --------
        >>> import torch
        >>> from skprobex import ModelCollection
        >>> nets = {f"run_{i}": torch.nn.Linear(4, 3) for i in range(5)}
        >>> ModelCollection.from_state_dicts(nets)["weight"].shape
        (5, 3, 4)
        """
        if isinstance(models, (list, tuple)):
            models = {f"model_{i}": model for i, model in enumerate(models)}
        if not isinstance(models, Mapping) or not models:
            raise TypeError(
                "models must be a dict of state dicts or modules by name, with one at "
                f"least; got {type(models).__name__}."
            )
        models = {str(name): model for name, model in models.items()}
        entries = entries_of(metadata, list(models))
        return cls._from_models(cls._read_state_dicts(models, entries), on_missing)

    @classmethod
    def concat(cls, collections: Iterable[ModelCollection]) -> Self:
        """Put collections one after another, as ``+`` does with two.

        Parameters
        ----------
        collections : iterable of ModelCollection
            From files or in memory; their layers may differ.

        Returns
        -------
        ModelCollection
            Nothing is read or copied. Of models with the same name the later ones are
            numbered: ``"run (2)"``.
        """
        collections = list(collections)
        for collection in collections:
            if not isinstance(collection, ModelCollection):
                raise TypeError(
                    f"A {type(collection).__name__} is no collection: expected what "
                    "open_models or from_layers return."
                )
        if not collections:
            raise ValueError("concat needs one collection at least.")
        models = [
            model
            for collection in collections
            for model in collection._store.stored(collection.names, collection.metadata)
        ]
        joined = cls._from_models(make_unique(models), collections[0]._on_missing)
        for collection in collections:
            joined.skipped_.update(collection.skipped_)
        return joined

    def __add__(self, other: ModelCollection) -> ModelCollection:
        if not isinstance(other, ModelCollection):
            return NotImplemented
        return ModelCollection.concat([self, other])

    @classmethod
    def _from_models(cls, models, on_missing):
        """Make a collection of opened models."""
        names = [model.name for model in models]
        metadata = [model.metadata for model in models]
        return cls(names, metadata, InFiles(models), on_missing)

    @property
    def metadata(self) -> list[dict[str, Any]]:
        return self._metadata

    @metadata.setter
    def metadata(self, metadata: Metadata) -> None:
        self._metadata = entries_of(metadata, self.names, self._metadata)

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
        selected = ModelCollection(
            [self.names[i] for i in positions],
            [self.metadata[i] for i in positions],
            self._store.take(positions, layers),
            self._on_missing,
        )
        selected._all_names = self._all_names
        return selected

    def _layer_of_all(self, name):
        """One layer of all models, whatever is to be done where some lack it."""
        return self._store.layer(name)

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

    def labels(self, key: Any, *, missing: Literal["raise", "drop"] = "raise") -> Any:
        """Turn one metadata entry of all models, or a column of a table, into `y`.

        Parameters
        ----------
        key : str, Series, DataFrame or dict
            The metadata's. Values may be numbers, text, or lists as text; they are
            parsed as JSON or as Python literals, and never run. Or labels by the
            models' names, such as ``frame["task"]``: they are brought into the order
            of the models, whatever order they have, and rows of other models are left
            out.
        missing : {"raise", "drop"}, default="raise"
            What to do about models without a value (None, NaN, or empty text): raise,
            or return the labels of the others, which are
            ``models.select(labelled=key)``.

        Returns
        -------
        ndarray of shape (n_models,), or Bunch
            Numbers or text; for lists a Bunch of `y`, an indicator matrix of shape
            (n_models, n_classes), and `classes`. Of a DataFrame with several columns,
            an array of shape (n_models, n_columns).

        Raises
        ------
        ValueError
            If models lack a value, or have values of several forms; the message names
            them.
        """
        if isinstance(key, str):
            check_key(key, self.metadata)
            values = [entry.get(key) for entry in self.metadata]
            return encode_labels(values, key, self.names, missing)
        if not is_table(key):
            raise TypeError(
                f"labels takes a key of the metadata, or labels by the models' names "
                f"(a Series, a DataFrame or a dict), got {type(key).__name__}."
            )
        if getattr(key, "ndim", 1) == 1:
            name = str(getattr(key, "name", None) or "labels")
            values = series_values(key, self.names)
            return encode_labels(values, name, self.names, missing)
        columns = {
            str(column): series_values(key.iloc[:, i], self.names)
            for i, column in enumerate(key.columns)
        }
        return encode_columns(columns, self.names, missing)

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
        names: Named | None = None,
        *,
        mask: ArrayLike | None = None,
        metadata: Mapping[str, Any] | None = None,
        labelled: Any = None,
        layers: Named | None = None,
        on_missing: Literal["raise", "drop"] = "raise",
    ) -> ModelCollection:
        """Select models, layers, or both.

        Parameters
        ----------
        names : str, sequence of str or callable, default=None
            Names of models, or patterns such as ``"run_00*"``, in the order wanted; or
            a function of the name that says whether to keep the model.
        mask : array-like of bool, default=None
            One per model.
        metadata : dict, default=None
            For each key a value, a list of allowed values, or a function of the
            value (None where a model has none) that says whether to keep the model.
        labelled : str, Series or dict, default=None
            Keep the models for which ``labels(labelled)`` has a value.
        layers : str, sequence of str or callable, default=None
            Layers to keep: names, patterns such as ``"*.attention.*"``, or a function
            of the name. All are kept otherwise.
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
            positions = np.array(matching(self.names, names, "models"), dtype=np.int64)
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
        if labelled is not None:
            if isinstance(labelled, str):
                check_key(labelled, self.metadata)
                values = [entry.get(labelled) for entry in self.metadata]
            else:
                values = series_values(labelled, self.names)
            positions = positions[np.array(has_label(values), dtype=bool)[positions]]
        if layers is not None:
            known = list(self.layers)
            layers = [known[i] for i in matching(known, layers, "layers")]
        selected = self._take(positions, layers)
        if on_missing == "drop":
            for name in layers or []:
                selected = selected._take(selected._store.with_layer(name))
        return selected

    def __repr__(self) -> str:
        return f"ModelCollection({len(self)} models, {len(self.layers)} layers)"

    def _repr_html_(self):
        keys = sorted({key for entry in self.metadata for key in entry})
        rows = "".join(
            f"<tr><td style='text-align:left'><code>{escape(name)}</code></td>"
            f"<td>{' x '.join(map(str, info.shape))}{' LoRA' * info.is_low_rank}</td>"
            f"<td>{info.dtype}</td><td>{info.n_models}</td></tr>"
            for name, info in list(self.layers.items())[:_N_ROWS]
        )
        rest = len(self.layers) - _N_ROWS
        more = f"<tr><td colspan=4>… and {rest} more</td></tr>" if rest > 0 else ""
        return (
            f"<b>ModelCollection</b>: {len(self)} models, {len(self.layers)} layers"
            f"<br>models: {_listed(self.names)}<br>metadata: {_listed(keys)}"
            "<table><tr><th>layer</th><th>shape</th><th>dtype</th><th>models</th></tr>"
            f"{rows}{more}</table>"
        )


def _listed(names):
    """Show the first names, shortened, and count the rest."""
    shown = ", ".join(
        f"<code>{escape(name if len(name) <= 60 else f'{name[:57]}...')}</code>"
        for name in map(str, names[:_N_SHOWN])
    )
    rest = len(names) - _N_SHOWN
    return (shown or "none") + (f" … and {rest} more" if rest > 0 else "")


def make_unique(models):
    """Number the later ones of models with the same name."""
    taken, unique = set(), []
    for model in models:
        name, number = model.name, 2
        while name in taken:
            name, number = f"{model.name} ({number})", number + 1
        taken.add(name)
        unique.append(model._replace(name=name))
    return unique


def check_is_layer(name, W):
    """Refuse what is no layer of several models."""
    is_sequence = isinstance(W, (list, tuple)) or len(getattr(W, "shape", ())) > 0
    if issparse(W) or not is_sequence:
        raise TypeError(
            f"Layer {name!r} is of type {type(W).__name__}: expected weights of shape "
            "(n_models, d_out, d_in), dense or low-rank."
        )
