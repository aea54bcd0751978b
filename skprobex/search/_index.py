"""ModelIndex."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.parallel import Parallel, delayed

from .._progress import ProgressBar
from .._registry import saved
from .._sklearn import HasMethods, Interval
from .._typing import PathLike, Self
from .._warnings import listed
from ..saving import Saveable
from ..weights import LayerWeights, ModelCollection, WeightsLike, take_models
from ..weights._metadata import check_key
from ..weights._selection import as_condition
from ._checks import (
    as_rows,
    as_weights,
    check_has_model_axis,
    check_metadata,
    check_names,
)
from ._nearest import append_rows, nearest
from ._result import SearchResult

# Which models to look among.
Where: TypeAlias = (
    Mapping[str, Any] | Callable[[dict[str, Any]], Any] | Sequence[bool] | np.ndarray
)


@saved
class ModelIndex(Saveable, BaseEstimator):
    """Find the models that fit a text, or are like other models.

    Models are embedded once, when they are added. A query, embedded in the same space,
    is compared with all of them by one matrix product, and the models of the largest
    inner products are its answer.

    Parameters
    ----------
    embedder : estimator
        Fitted; ``transform(W)`` returns unit rows of shape (n_models, n_dimensions),
        and ``encode_text(texts)``, needed only for queries that are text, rows of the
        same space. It must stay as it is while there are models in the index.
    batch_size : int, default=256
        Models that are embedded at a time.
    n_jobs : int, default=None
        Batches that are embedded in parallel, as in `joblib.Parallel`; None is 1
        unless in a `joblib.parallel_config` context.
    verbose : int, default=0
        1 shows a progress bar on stderr while models are embedded.

    Attributes
    ----------
    names : list of str
        The models, in the order in which they were added.
    embeddings_ : ndarray of shape (n_models, n_dimensions)
        Their embeddings, float32; cannot be written to.

    See Also
    --------
    skprobex.load : Load a saved index.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import Normalizer
    >>> from skprobex import ModelIndex
    >>> from skprobex.baselines import FlatDeltas
    >>> from skprobex.datasets import make_model_tree
    >>> W, y = make_model_tree(30, (16, 12), random_state=0, return_X_y=True)
    >>> embedder = make_pipeline(FlatDeltas(), Normalizer()).fit(W)
    >>> index = ModelIndex(embedder)
    >>> index = index.add(W, names=[f"model-{i}" for i in range(30)])
    >>> len(index)
    30
    >>> index.search(W[[7, 3]], k=1).names
    [['model-7'], ['model-3']]
    """

    _parameter_constraints = {
        "embedder": [HasMethods("transform")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "n_jobs": [None, Integral],
        "verbose": ["verbose"],
    }
    # Made again from the names where it is missing.
    _unsaved = ("_positions",)

    def __init__(
        self,
        embedder: Any,
        *,
        batch_size: int = 256,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.embedder = embedder
        self.batch_size = batch_size
        self.n_jobs = n_jobs
        self.verbose = verbose

    @property
    def names(self) -> list[str]:
        return list(getattr(self, "_names", ()))

    @property
    def embeddings_(self) -> np.ndarray:
        if not len(self):
            return np.empty((0, 0), dtype=np.float32)
        view = self._rows[: len(self)]  # beyond is room to grow
        view.flags.writeable = False
        return view

    @cached_property
    def _positions(self):
        return {name: i for i, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(getattr(self, "_names", ()))

    def __contains__(self, name: object) -> bool:
        return name in self._positions

    def __repr__(self) -> str:
        n_dimensions = self.embeddings_.shape[1]
        return (
            f"ModelIndex({len(self)} models, {n_dimensions} dimensions, "
            f"embedder={type(self.embedder).__name__})"
        )

    def add(
        self,
        W: WeightsLike,
        names: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Self:
        """Embed models and add them; all of them, or none if anything is wrong.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            Weights as the embedder takes them: arrays, `LowRankWeights`,
            `LayerWeights`, or a `ModelCollection` or a dict of layers.
        names : sequence of str, default=None
            What the models are called. None: as `W` calls them, if it is a
            `ModelCollection` or `LayerWeights`.
        metadata : sequence of dict, default=None
            What is known of each model, in numbers, text, lists and dicts: what JSON
            has. None: what `W` knows if it is a `ModelCollection`, else nothing.

        Returns
        -------
        ModelIndex
            The index itself.

        Raises
        ------
        ValueError
            Names that are in the index already or come twice, metadata that JSON does
            not have, another number of them than of models.
        """
        self._validate_params()
        W = as_weights(W)
        n_models = len(W)
        if not n_models:
            raise ValueError("W holds no models: expected at least one.")
        if names is None:
            if not isinstance(W, (ModelCollection, LayerWeights)):
                raise ValueError(
                    f"names must be given for W of type {type(W).__name__}, which "
                    "does not say what its models are called."
                )
            names = W.names
        if metadata is None:
            metadata = W.metadata if isinstance(W, ModelCollection) else [{}] * n_models
        names = check_names(names, n_models, self)
        metadata = check_metadata(metadata, names)
        rows = self._embed(W, n_models)

        n_held = len(self)
        if not n_held:
            self._names, self._metadata, self._rows = [], [], rows
        else:
            self._check_dimensions(rows)
            self._rows = append_rows(self._rows, n_held, rows)
        self._positions.update({name: n_held + i for i, name in enumerate(names)})
        self._names.extend(names)
        self._metadata.extend(metadata)
        return self

    def remove(self, names: str | Sequence[str]) -> Self:
        """Take models out of the index.

        Parameters
        ----------
        names : str or sequence of str
            What they are called.

        Returns
        -------
        ModelIndex
            The index itself.

        Raises
        ------
        KeyError
            If there is no model of a name; then none is removed.
        """
        names = [names] if isinstance(names, str) else list(names)
        unknown = [name for name in names if name not in self]
        if unknown:
            raise KeyError(f"There are no models named {listed(unknown)}.")
        gone = {self._positions[name] for name in names}
        kept = [i for i in range(len(self)) if i not in gone]
        self._rows = self._rows[kept]
        self._names = [self._names[i] for i in kept]
        self._metadata = [self._metadata[i] for i in kept]
        self.__dict__.pop("_positions", None)
        return self

    def search(
        self,
        query: str | Sequence[str] | WeightsLike,
        k: int = 10,
        where: Where | None = None,
    ) -> SearchResult:
        """Find the models nearest to a query, the nearest first.

        Parameters
        ----------
        query : str, sequence of str, or weights of shape (n_models, d_out, d_in)
            A text, several texts, or models. One model needs its axis as well:
            ``W[:1]``.
        k : int, default=10
            How many models to find; all, if there are fewer.
        where : dict, callable or array-like of bool, default=None
            Which models to look among: for each key of their metadata a value, a list
            of allowed values, or a function of the value (None where a model has
            none); or a function of the metadata; or a mask, one per model.

        Returns
        -------
        SearchResult
            `names`, `scores` and `metadata` of the models found: for one text, a list,
            an array of inner products, and a list; otherwise a list of such for each
            query. Models of equal scores come in the order in which they were added.

        Raises
        ------
        ValueError
            An empty index or query, or weights without the axis of models.
        TypeError
            What is no query.
        """
        self._validate_params()
        if not len(self):
            raise ValueError("The index is empty: add models before searching.")
        if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
            raise ValueError(f"k must be an integer of at least 1, got {k!r}.")
        allowed = self._select(where)
        vectors = self._embed_query(query)
        self._check_dimensions(vectors)
        found = nearest(self.embeddings_, vectors, k, allowed)
        names = [[self._names[i] for i in positions] for positions, _ in found]
        scores = [values for _, values in found]
        metadata = [[dict(self._metadata[i]) for i in rows] for rows, _ in found]
        if isinstance(query, str):
            names, scores, metadata = names[0], scores[0], metadata[0]
        return SearchResult(names=names, scores=scores, metadata=metadata)

    def save(self, path: PathLike) -> None:
        """Save the index, and the embedder with it, for `skprobex.load`.

        A text encoder is not part of it: after loading, texts are encoded by whatever
        the embedder's parameters name.

        Parameters
        ----------
        path : path-like
            The file. Its folder is made if it does not exist.

        Raises
        ------
        TypeError
            If the embedder cannot be saved; the message says why, and nothing is
            written.
        """
        if len(self):
            self._rows = self._rows[: len(self)]
        super().save(path)

    def _check_dimensions(self, rows):
        if rows.shape[1] != self._rows.shape[1]:
            raise ValueError(
                f"The embedder gives {rows.shape[1]} dimensions, but the models in the "
                f"index have {self._rows.shape[1]}: it is not the one that they were "
                "added with."
            )

    def _embed(self, W, n_models):
        batches = (
            take_models(W, np.arange(start, min(start + self.batch_size, n_models)))
            for start in range(0, n_models, self.batch_size)
        )
        parts = []
        parallel = Parallel(n_jobs=self.n_jobs, return_as="generator")
        with ProgressBar(self.verbose, "ModelIndex", n_models, "model") as bar:
            for part in parallel(delayed(_embed)(self.embedder, b) for b in batches):
                parts.append(part)
                bar.update(len(part))
        return np.concatenate(parts)

    def _embed_query(self, query):
        texts = [query] if isinstance(query, str) else query
        if isinstance(texts, (list, tuple, np.ndarray)):
            if not len(texts):
                raise ValueError("query is empty: expected a text, or several.")
            is_text = [isinstance(text, str) for text in texts]
            if all(is_text):
                return self._encode_texts([str(text) for text in texts])
            if any(is_text):
                odd = type(texts[is_text.index(False)]).__name__
                raise TypeError(f"query must hold texts only, got a {odd} among them.")
        W = as_weights(query, "text, or weights")
        if not isinstance(W, ModelCollection):
            check_has_model_axis(W, self.embedder)
        if not len(W):
            raise ValueError("query holds no models: expected at least one.")
        return self._embed(W, len(W))

    def _encode_texts(self, texts):
        if not hasattr(self.embedder, "encode_text"):
            raise TypeError(
                f"{type(self.embedder).__name__} has no method encode_text, so that "
                "only weights can be a query: use an embedder fitted on texts."
            )
        if not all(text.strip() for text in texts):
            raise ValueError("query has an empty text: say what to look for.")
        return as_rows(self.embedder.encode_text(texts), len(texts), self.embedder)

    def _select(self, where):
        """Mask of the models to look among; None for all."""
        if where is None:
            return None
        if isinstance(where, Mapping):
            allowed = np.ones(len(self), dtype=bool)
            for key, wanted in where.items():
                check_key(key, self._metadata)
                is_wanted = as_condition(wanted)
                found = [is_wanted(entry.get(key)) for entry in self._metadata]
                allowed &= np.array(found, dtype=bool)
            return allowed
        if callable(where):
            kept = [bool(where(dict(entry))) for entry in self._metadata]
            return np.array(kept, dtype=bool)
        allowed = np.asarray(where)
        if allowed.dtype != bool or allowed.shape != (len(self),):
            raise ValueError(
                f"where must be a dict, a function, or {len(self)} booleans, got "
                f"{type(where).__name__}."
            )
        return allowed


def _embed(embedder, W):
    return as_rows(embedder.transform(W), len(W), embedder)
