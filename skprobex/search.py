"""Search models by a sentence, or by the weights of other models."""

import json
import warnings
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from numbers import Integral

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Bunch
from sklearn.utils.parallel import Parallel, delayed

from ._progress import ProgressBar
from ._sklearn import HasMethods, Interval
from .exceptions import UnsupportedFormatError
from .io._persistence import Saveable, load
from .io._save import as_plain
from .trees._forms import take
from .weights import LayerWeights, ModelCollection
from .weights._collection import as_condition

__all__ = ["ModelIndex", "SearchResult"]

# By how much products in float32 may be wrong: so close to the k-th, all are compared
# again in float64, in which equal models are equal wherever they stand.
_ROUNDING = 1e-5
# Scores held at a time.
_N_SCORES = 2**24
# Share of faiss's cells that a query looks into.
_SHARE_PROBED = 0.1


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
    faiss_above : int or None, default=None
        With more models than this, queries look only into the parts of the space that
        are nearest to them, found by faiss (``pip install skprobex[faiss]``): faster,
        but now and then a model is missed. None: never.
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
    load : Load a saved index.

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
        "faiss_above": [None, Interval(Integral, 0, None, closed="left")],
        "n_jobs": [None, Integral],
        "verbose": ["verbose"],
    }
    # Made again from the rest where they are missing.
    _unsaved = ("_positions", "_cells")

    def __init__(
        self, embedder, *, batch_size=256, faiss_above=None, n_jobs=None, verbose=0
    ):
        self.embedder = embedder
        self.batch_size = batch_size
        self.faiss_above = faiss_above
        self.n_jobs = n_jobs
        self.verbose = verbose

    @property
    def names(self):
        return list(getattr(self, "_names", ()))

    @property
    def embeddings_(self):
        if not len(self):
            return np.empty((0, 0), dtype=np.float32)
        view = self._rows[: len(self)]  # beyond is room to grow
        view.flags.writeable = False
        return view

    @cached_property
    def _positions(self):
        return {name: i for i, name in enumerate(self.names)}

    def __len__(self):
        return len(getattr(self, "_names", ()))

    def __contains__(self, name):
        return name in self._positions

    def __repr__(self):
        n_dimensions = self.embeddings_.shape[1]
        return (
            f"ModelIndex({len(self)} models, {n_dimensions} dimensions, "
            f"embedder={type(self.embedder).__name__})"
        )

    def add(self, W, names=None, metadata=None):
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
        W = _as_weights(W)
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
            known = isinstance(W, ModelCollection)
            metadata = W.metadata if known else [{}] * n_models
        names = self._check_names(names, n_models)
        metadata = _check_metadata(metadata, names)
        rows = self._embed(W, n_models)

        if not len(self):
            self._names, self._metadata, self._rows = [], [], rows
        else:
            self._rows = _append(self._rows, len(self), rows)
        self._names.extend(names)
        self._metadata.extend(metadata)
        self._forget()
        return self

    def remove(self, names):
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
            raise KeyError(f"There are no models named {unknown[:5]}.")
        gone = {self._positions[name] for name in names}
        kept = [i for i in range(len(self)) if i not in gone]
        self._rows = self._rows[kept]
        self._names = [self._names[i] for i in kept]
        self._metadata = [self._metadata[i] for i in kept]
        self._forget()
        return self

    def search(self, query, k=10, where=None):
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
        if vectors.shape[1] != self.embeddings_.shape[1]:
            raise ValueError(
                f"The query has {vectors.shape[1]} dimensions and the models of the "
                f"index {self.embeddings_.shape[1]}: is the embedder the one that they "
                "were added with?"
            )
        found = self._nearest(vectors, k, allowed)
        names = [[self._names[i] for i in positions] for positions, _ in found]
        scores = [values for _, values in found]
        metadata = [[dict(self._metadata[i]) for i in rows] for rows, _ in found]
        if isinstance(query, str):
            names, scores, metadata = names[0], scores[0], metadata[0]
        return SearchResult(names=names, scores=scores, metadata=metadata)

    def save(self, path):
        """Save the index, and the embedder with it, for `load`.

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

    @classmethod
    def load(cls, path):
        """Load a saved index.

        Parameters
        ----------
        path : path-like
            The file.

        Returns
        -------
        ModelIndex
            Answers as the one that was saved.

        Raises
        ------
        CorruptFileError
            If the file is cut short or damaged.
        UnsupportedFormatError
            If it holds something else.
        """
        index = load(path)
        if not isinstance(index, cls):
            raise UnsupportedFormatError(
                f"{path} holds a {type(index).__name__}, no index: use skprobex.load."
            )
        return index

    def _forget(self):
        for name in self._unsaved:
            vars(self).pop(name, None)

    def _check_names(self, names, n_models):
        names = list(names)
        if len(names) != n_models:
            raise ValueError(f"names has {len(names)} entries for {n_models} models.")
        for name in names:
            if not isinstance(name, str):
                raise ValueError(
                    f"names must be str, got {name!r} of type {type(name).__name__}."
                )
        names = [str(name) for name in names]  # numpy's own kind of str, too
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise ValueError(f"names has {name!r} {count} times: each must be unique.")
        for name in names:
            if name in self:
                raise ValueError(
                    f"There is a model {name!r} in the index already: remove it first, "
                    "or add this one by another name."
                )
        return names

    def _embed(self, W, n_models):
        batches = (
            take(W, np.arange(start, min(start + self.batch_size, n_models)))
            for start in range(0, n_models, self.batch_size)
        )
        parts = []
        parallel = Parallel(n_jobs=self.n_jobs, return_as="generator")
        with ProgressBar(self.verbose, "ModelIndex", n_models, "model") as bar:
            for part in parallel(delayed(_embed)(self.embedder, b) for b in batches):
                parts.append(part)
                bar.update(len(part))
        rows = np.concatenate(parts)
        if len(self) and rows.shape[1] != self.embeddings_.shape[1]:
            raise ValueError(
                f"The embedder now gives {rows.shape[1]} dimensions, but the models in "
                f"the index have {self.embeddings_.shape[1]}: start a new index."
            )
        return rows

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
        W = _as_weights(query)
        if not isinstance(W, ModelCollection):
            self._check_has_model_axis(W)
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
        return _as_rows(self.embedder.encode_text(texts), len(texts), self.embedder)

    def _check_has_model_axis(self, W):
        shape = getattr(W, "shape", None)
        shape = tuple(np.shape(W) if shape is None else shape)
        if len(shape) < 2 or shape == getattr(self.embedder, "weight_shape_", None):
            raise ValueError(
                f"query of shape {shape} is one model's weights: pass query[None], "
                "with an axis for models."
            )

    def _select(self, where):
        """Mask of the models to look among; None for all."""
        if where is None:
            return None
        if isinstance(where, Mapping):
            allowed = np.ones(len(self), dtype=bool)
            for key, wanted in where.items():
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

    def _nearest(self, vectors, k, allowed):
        """Positions and scores of each query's nearest."""
        n_allowed = len(self) if allowed is None else np.count_nonzero(allowed)
        k = min(k, n_allowed)
        if k == 0:
            return [(np.empty(0, dtype=np.intp), np.empty(0)) for _ in vectors]
        is_large = self.faiss_above is not None and len(self) > self.faiss_above
        if is_large and allowed is None:
            _, found = self._cells.search(vectors, k)
            if found.min() >= 0:  # else its cells hold fewer than k
                pairs = zip(vectors, found, strict=True)
                return [self._rank(vector, rows, k) for vector, rows in pairs]
        size = max(1, _N_SCORES // len(self))
        found = []
        for start in range(0, len(vectors), size):
            block = vectors[start : start + size]
            scores = block @ self.embeddings_.T  # (b, n_models)
            if allowed is not None:
                scores[:, ~allowed] = -np.inf
            for vector, own in zip(block, scores, strict=True):
                least = np.partition(own, -k)[-k]
                margin = _ROUNDING * max(1.0, abs(least))
                found.append(
                    self._rank(vector, np.flatnonzero(own >= least - margin), k)
                )
        return found

    def _rank(self, vector, positions, k):
        """Order candidates by their exact products, then by position."""
        positions = np.sort(positions)
        rows = self.embeddings_[positions].astype(np.float64)
        scores = (rows * vector).sum(axis=1)
        order = np.argsort(-scores, kind="stable")[:k]
        return positions[order], scores[order]

    @cached_property
    def _cells(self):
        """Faiss's index of the models, by the part of the space they are in."""
        try:
            with warnings.catch_warnings():
                # Of how its bindings were made.
                warnings.simplefilter("ignore", DeprecationWarning)
                import faiss
        except ImportError as error:
            raise ImportError(
                f"faiss_above={self.faiss_above} needs faiss: pip install "
                "skprobex[faiss], or set faiss_above=None."
            ) from error
        rows = np.ascontiguousarray(self.embeddings_)
        n_cells = max(1, int(len(rows) ** 0.5))
        metric = faiss.METRIC_INNER_PRODUCT
        centers = faiss.IndexFlatIP(rows.shape[1])
        cells = faiss.IndexIVFFlat(centers, rows.shape[1], n_cells, metric)
        cells.nprobe = max(1, round(_SHARE_PROBED * n_cells))
        cells.cp.min_points_per_centroid = 1  # else it warns of small indices
        cells.train(rows)
        cells.add(rows)
        return cells


class SearchResult(Bunch):
    """What a search has found, best first: a Bunch of names, scores and metadata.

    Parameters
    ----------
    names : list of str, or list of such lists
        Of the models found; for several queries a list for each.
    scores : ndarray of shape (n_found,), or list of such arrays
        Their inner products with the query.
    metadata : list of dict, or list of such lists
        What is known of them.

    See Also
    --------
    ModelIndex : Where it comes from.
    """

    def __init__(self, names, scores, metadata):
        super().__init__(names=names, scores=scores, metadata=metadata)

    def to_frame(self):
        """Return what was found as a table.

        Returns
        -------
        pandas.DataFrame
            A row per model found, indexed by its name (and before that, for several
            queries, by the query's number); the score, and a column per key of the
            metadata.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "to_frame needs pandas (pip install pandas); names, scores and "
                "metadata have the same."
            ) from error
        if isinstance(self.scores, np.ndarray):
            scores, metadata = self.scores, self.metadata
            index = pd.Index(self.names, name="model", dtype=object)
        else:
            scores = np.concatenate(self.scores)
            metadata = [entry for entries in self.metadata for entry in entries]
            pairs = [(i, name) for i, found in enumerate(self.names) for name in found]
            index = pd.MultiIndex.from_tuples(pairs, names=["query", "model"])
        frame = pd.DataFrame.from_records(metadata, index=index)
        frame = frame.rename(columns={"score": "metadata_score"})
        frame.insert(0, "score", scores)
        return frame


def _embed(embedder, W):
    return _as_rows(embedder.transform(W), len(W), embedder)


def _as_rows(rows, n_rows, embedder):
    """Check what an embedder returned."""
    if isinstance(rows, torch.Tensor):
        rows = rows.detach().cpu().numpy()
    rows = np.asarray(rows, dtype=np.float32)
    if rows.ndim != 2 or len(rows) != n_rows or not rows.size:
        raise ValueError(
            f"{type(embedder).__name__} returned embeddings of shape {rows.shape} "
            f"for {n_rows} models or texts: expected one row for each."
        )
    if not np.isfinite(rows).all():
        raise ValueError(f"{type(embedder).__name__} returned NaN or infinity.")
    return rows


def _as_weights(W):
    if isinstance(W, str) or not hasattr(W, "__len__"):
        raise TypeError(
            "Expected weights of shape (n_models, d_out, d_in), got a "
            f"{type(W).__name__}."
        )
    return ModelCollection.from_layers(W) if isinstance(W, Mapping) else W


def _check_metadata(metadata, names):
    """Copy the metadata, as JSON has them."""
    metadata = list(metadata)
    if len(metadata) != len(names):
        raise ValueError(
            f"metadata has {len(metadata)} entries for {len(names)} models."
        )
    checked = []
    for name, entry in zip(names, metadata, strict=True):
        if not isinstance(entry, Mapping):
            raise ValueError(
                f"metadata of model {name!r} is a {type(entry).__name__}: expected a "
                "dict."
            )
        copied = {}
        for key, value in entry.items():
            try:
                if not isinstance(key, str):
                    raise TypeError("the key is no str")
                copied[key] = json.loads(json.dumps(value, default=as_plain))
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(
                    f"metadata {key!r} of model {name!r} cannot be written as JSON "
                    f"({error}): expected numbers, text, lists and dicts."
                ) from None
        checked.append(copied)
    return checked


def _append(held, n_held, rows):
    """Put rows behind those held, growing by half so that adding stays cheap."""
    n_rows = n_held + len(rows)
    if n_rows > len(held):
        grown = np.empty((max(n_rows, 3 * n_held // 2), held.shape[1]), held.dtype)
        grown[:n_held] = held[:n_held]
        held = grown
    held[n_held:n_rows] = rows
    return held
