"""Who descends from whom within a Model Tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from sklearn.utils import check_random_state

from .._typing import Device, Numbers, RandomState
from ..probing.batches import as_dense
from ..probing.device import as_array, resolve_device
from ..weights import ModelCollection, WeightsLike, as_weights
from ._architectures import split_forms
from ._clustering import ModelTreeClustering
from ._distances import Sketcher, squared_distances

if TYPE_CHECKING:
    import networkx as nx

_SKETCH_SIZE = 128


@dataclass(eq=False)
class Heritage:
    """Who descends from whom; what `recover_heritage` returns.

    Parameters
    ----------
    parents_ : ndarray of shape (n_models,)
        The model that each model was fine-tuned from; -1 for roots.
    scores_ : ndarray of shape (n_models,)
        How sure each parent is: the share by which the next best is farther, from 0 to
        1; NaN for roots.
    roots_ : ndarray of shape (n_trees,)
        The root of each tree.
    labels_ : ndarray of shape (n_models,)
        The tree of each model.
    statistic_ : ndarray of shape (n_models,)
        What grows with training; the roots have the least of it.
    names : list of str, default=None
        The models' names.

    See Also
    --------
    recover_heritage : Makes these.
    skprobex.inspection.ModelTreeDisplay : Draws them.
    """

    parents_: np.ndarray
    scores_: np.ndarray
    roots_: np.ndarray
    labels_: np.ndarray
    statistic_: np.ndarray
    names: list | None = None

    @property
    def generation_(self) -> np.ndarray:
        """Number of steps from the root, ``(n_models,)``; 0 for roots."""
        generation = np.zeros(len(self.parents_), dtype=np.int64)
        above = self.parents_.copy()
        while (above >= 0).any():
            generation += above >= 0
            above = np.where(above >= 0, self.parents_[above], -1)
        return generation

    def to_networkx(self) -> nx.DiGraph:
        """Make a directed graph with an edge from each parent to each child.

        Returns
        -------
        networkx.DiGraph
            Nodes are the models' names, if there are any, or their positions, with
            attributes ``tree`` and ``generation``; edges have a ``score``.

        Raises
        ------
        ImportError
            If networkx is not installed.
        """
        try:
            import networkx as nx
        except ImportError as error:
            raise ImportError(
                "to_networkx needs networkx (pip install networkx); parents_ has the "
                "same as an array."
            ) from error
        names = self.names or list(range(len(self.parents_)))
        graph = nx.DiGraph()
        generation = self.generation_
        for i, name in enumerate(names):
            graph.add_node(
                name, tree=int(self.labels_[i]), generation=int(generation[i])
            )
        for i, parent in enumerate(self.parents_):
            if parent >= 0:
                graph.add_edge(names[parent], names[i], score=float(self.scores_[i]))
        return graph


def recover_heritage(
    W: WeightsLike,
    n_trees: int | None = 1,
    *,
    statistic: Literal["norm"] | Numbers = "norm",
    roots: int | Sequence[int] | None = None,
    layer: str | None = None,
    device: Device = "auto",
    random_state: RandomState = 0,
) -> Heritage:
    r"""Recover who was fine-tuned from whom.

    A model is closer to its parent than to any other model that is not its own
    descendant: fine-tunes go off at almost right angles, so that squared distances add
    up along the branches. So each tree is the spanning tree that minimises

    .. math:: \sum_{c} \|X_{p(c)} - X_c\|^2,

    seen from its root. And training leaves a trace that only grows: the root is the
    model with the least of it. The idea is that of Model Tree Heritage Recovery [1]_.

    Parameters
    ----------
    W : array-like of shape (n_models, d_out, d_in)
        One layer of each model; also a `ModelCollection` or a list of arrays, as in
        `ModelTreeClustering`.
    n_trees : int, default=1
        Number of Model Trees; None finds it. Models are first divided by a
        `ModelTreeClustering`.
    statistic : "norm" or array-like of shape (n_models,), default="norm"
        What grows with training: the Frobenius norm of the weights, or numbers of your
        own, such as dates. It names the roots; see Notes.
    roots : int or sequence of int, default=None
        Positions of models known to be roots. Other trees find theirs.
    layer : str, default=None
        The layer to look at, where W holds several.
    device : str, default="auto"
        ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or
        ``"mps"``.
    random_state : int, RandomState instance or None, default=0
        Draws the projection of layers with more than 16,384 weights.

    Returns
    -------
    Heritage
        With `parents_`, `scores_`, `roots_`, `labels_` and `to_networkx`.

    Raises
    ------
    ValueError
        Models of more architectures than `n_trees`, two roots in one tree, a statistic
        of another length.

    Notes
    -----
    On digit jungles of 1 base, 4 children and 16 grandchildren the defaults find all
    but 0.5 % of parents from the first hidden layer, and all from the second. Steering
    every edge by the statistic was worse: weights grow with training on average, not in
    every single step.

    The norm grows where nothing holds it back: training with strong weight decay may
    shrink it; name the root then. A base that is not among the models has no stand-in:
    its children become each other's.

    References
    ----------
    .. [1] E. Horwitz, A. Shul, Y. Hoshen, "Unsupervised Model Tree Heritage Recovery",
       arXiv 2405.18432.

    Examples
    --------
    >>> import numpy as np
    >>> from skprobex.datasets import make_digit_jungle
    >>> from skprobex.trees import recover_heritage
    >>> jungle = make_digit_jungle(6, n_generations=2, cache=False)
    >>> base = jungle.bases["hidden2.weight"]
    >>> heritage = recover_heritage(np.concatenate([base, jungle.data]))
    >>> heritage.roots_
    array([0])
    >>> bool((heritage.parents_[1:] == jungle.parents + 1).all())
    True
    """
    device = resolve_device(device)
    random_state = check_random_state(random_state)
    parts = split_forms(partial(as_weights, min_models=2), W, layer)
    n_models = sum(len(part.positions) for part in parts)
    values = _check_statistic(statistic, n_models)
    if n_trees == 1 and len(parts) == 1:
        labels = np.zeros(n_models, dtype=np.int64)
    else:
        clustering = ModelTreeClustering(n_trees, layer=layer, device=device)
        labels = clustering.fit(W).labels_
    known_roots = _check_roots(roots, labels)
    if values is None:
        values = _frobenius_norms(parts, n_models, device)

    roots = np.empty(labels.max() + 1, dtype=np.int64)
    parents = np.full(n_models, -1, dtype=np.int64)
    scores = np.full(n_models, np.nan)
    for part in parts:
        generator = torch.Generator().manual_seed(random_state.randint(2**31 - 1))
        sketcher = Sketcher(part.weights.lifted_shape[1:], _SKETCH_SIZE, generator)
        own_labels = labels[part.positions]
        for tree in np.unique(own_labels):
            rows = np.flatnonzero(own_labels == tree)
            own = part.positions[rows]
            sketches, _ = sketcher.sketch(part.weights[rows], device)
            D2 = squared_distances(sketches).astype(np.float64)
            roots[tree] = known_roots.get(tree, own[values[own].argmin()])
            found, scores[own] = find_parents(D2, np.searchsorted(own, roots[tree]))
            parents[own] = np.where(found >= 0, own[found], -1)
    return Heritage(
        parents_=parents,
        scores_=scores,
        roots_=roots,
        labels_=labels,
        statistic_=values,
        names=list(W.names) if isinstance(W, ModelCollection) else None,
    )


def find_parents(D2, root):
    """Find the parents within one tree, and how sure they are.

    Parameters
    ----------
    D2 : ndarray of shape (n, n)
        Squared distances, symmetric.
    root : int

    Returns
    -------
    parents : ndarray of shape (n,)
        -1 for the root.
    scores : ndarray of shape (n,)
        The share by which the next best is farther; NaN for the root.
    """
    n = len(D2)
    # Zero would be no edge: twins are as close as can be instead. Of dense arrays SciPy
    # drops all that is close to zero, too.
    edges = csr_array(np.triu(np.maximum(D2, np.finfo(D2.dtype).tiny), 1))
    spanning = minimum_spanning_tree(edges)
    order, parents = breadth_first_order(spanning, root, directed=False)
    parents = np.where(np.arange(n) == root, -1, parents).astype(np.int64)
    # Where b is a, or a's ancestor: is_above[a, b].
    is_above = np.eye(n, dtype=bool)
    for child in order[1:]:
        is_above[child] |= is_above[parents[child]]
    # Its own descendants cannot be its parents.
    others = np.where(is_above, np.inf, D2)
    children = np.flatnonzero(parents >= 0)
    chosen = D2[parents[children], children]
    others[parents[children], children] = np.inf
    second = others[:, children].min(axis=0)
    scores = np.full(n, np.nan)
    # Nothing else to descend from: sure. Twins are as likely as each other.
    ratio = np.divide(chosen, second, out=np.ones_like(chosen), where=second > 0)
    scores[children] = np.clip(1 - ratio, 0, 1)
    return parents, scores


def _frobenius_norms(parts, n_models, device):
    """Norm of each model's weights, ``(n_models,)``."""
    values = np.empty(n_models)
    for part in parts:
        norms = [
            as_array(torch.linalg.vector_norm(flat.double(), dim=1))
            for flat in (as_dense(b).flatten(1) for b in part.weights.batches(device))
        ]
        values[part.positions] = np.concatenate(norms)
    return values


def _check_statistic(statistic, n_models):
    """Return the numbers given, or None for the norm."""
    if isinstance(statistic, str):
        if statistic == "norm":
            return None
        raise ValueError(
            f"statistic must be 'norm' or an array of numbers, got {statistic!r}."
        )
    try:
        values = np.array(statistic, dtype=float)
    except (TypeError, ValueError):
        values = np.full(np.shape(statistic), np.nan)
    if values.shape != (n_models,) or not np.isfinite(values).all():
        raise ValueError(
            f"statistic must be one finite number for each of {n_models} models, got "
            f"shape {values.shape}."
        )
    return values


def _check_roots(roots, labels):
    """Map the tree of each root that is given to its position."""
    if roots is None:
        return {}
    found = {}
    for root in np.atleast_1d(roots).tolist():
        if type(root) is not int or not 0 <= root < len(labels):
            raise ValueError(
                f"roots must be positions of models, from 0 to {len(labels) - 1}, got "
                f"{root!r}."
            )
        tree = int(labels[root])
        if tree in found:
            raise ValueError(
                f"Models {found[tree]} and {root} are in one Model Tree, which has one "
                "root: raise n_trees, or give one of them."
            )
        found[tree] = int(root)
    return found
