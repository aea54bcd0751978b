"""Model Trees: dendrograms, and who descends from whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._typing import Self
from ._display import Display

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..trees import Heritage, ModelTreeClustering


class ModelTreeDisplay(Display):
    """Draw Model Trees: how alike models are, or who descends from whom.

    Made by `from_estimator`, a dendrogram, or by `from_heritage`, a graph.

    Parameters
    ----------
    labels : ndarray of shape (n_models,)
        The tree of each model.
    linkage : ndarray of shape (n_models - 1, 4), default=None
        Merges, as :func:`scipy.cluster.hierarchy.linkage` has them.
    parents : ndarray of shape (n_models,), default=None
        Parents; -1 for roots. Either these or `linkage`.
    names : list of str, default=None
        What to write beside the models.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        Where it was drawn.
    figure_ : matplotlib.figure.Figure
        The figure of `ax_`.

    See Also
    --------
    skprobex.trees.ModelTreeClustering : Finds the trees.
    skprobex.trees.recover_heritage : Finds who descends from whom.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        linkage: np.ndarray | None = None,
        parents: np.ndarray | None = None,
        names: Sequence[object] | None = None,
    ) -> None:
        self.labels = labels
        self.linkage = linkage
        self.parents = parents
        self.names = names

    @classmethod
    def from_estimator(
        cls,
        estimator: ModelTreeClustering,
        *,
        names: Sequence[str] | None = None,
        ax: Axes | None = None,
    ) -> Self:
        """Draw the dendrogram of a fitted `ModelTreeClustering`.

        Parameters
        ----------
        estimator : ModelTreeClustering
            Fitted.
        names : list of str, default=None
            What to write below the models. None writes nothing.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        ModelTreeDisplay
            Drawn.

        Raises
        ------
        ValueError
            If there are no merges to draw: not all models were compared.
        """
        check_is_fitted(estimator)
        if estimator.linkage_ is None or len(estimator.linkage_) == 0:
            raise ValueError(
                "There are no merges to draw: one model, adapters (which were not "
                "compared), or too many models for comparing all. Fit on some of them."
            )
        display = cls(estimator.labels_, linkage=estimator.linkage_, names=names)
        return display.plot(ax=ax)

    @classmethod
    def from_heritage(
        cls,
        heritage: Heritage,
        *,
        names: Sequence[str] | None = None,
        ax: Axes | None = None,
    ) -> Self:
        """Draw who descends from whom, roots on top.

        Parameters
        ----------
        heritage : Heritage
            What `recover_heritage` returned.
        names : list of str, default=None
            What to write beside the models. None takes the heritage's names, or
            positions.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        ModelTreeDisplay
            Drawn.
        """
        names = names or heritage.names or list(range(len(heritage.parents_)))
        display = cls(heritage.labels_, parents=heritage.parents_, names=names)
        return display.plot(ax=ax)

    def _draw(self, ax):
        colors = [f"C{number % 10}" for number in range(int(self.labels.max()) + 1)]
        if self.parents is None:
            self._plot_dendrogram(ax, colors)
        else:
            self._plot_graph(ax, colors)

    def _plot_dendrogram(self, ax, colors):
        from scipy.cluster.hierarchy import dendrogram

        n_models = len(self.labels)
        # A merge has its tree's colour, or none where it joins trees.
        trees = [int(label) for label in self.labels]
        for left, right in self.linkage[:, :2].astype(int):
            trees.append(trees[left] if trees[left] == trees[right] else -1)
        dendrogram(
            self.linkage,
            ax=ax,
            no_labels=self.names is None,
            labels=self.names,
            link_color_func=lambda i: "grey" if trees[i] < 0 else colors[trees[i]],
        )
        ax.set(
            xlabel=f"{n_models} models",
            ylabel="relative squared distance",
        )

    def _plot_graph(self, ax, colors):
        x, y = lay_out(self.parents)
        for child, parent in enumerate(self.parents):
            if parent >= 0:
                ax.plot(x[[parent, child]], y[[parent, child]], color="grey", zorder=1)
        ax.scatter(x, y, c=[colors[label] for label in self.labels], s=60, zorder=2)
        has_children = np.isin(np.arange(len(x)), self.parents)
        for i, name in enumerate(self.names or []):
            # Leaves stand close to each other: their names go below.
            ax.annotate(
                str(name),
                (x[i], y[i]),
                xytext=(6, 4) if has_children[i] else (0, -6),
                textcoords="offset points",
                ha="left" if has_children[i] else "center",
                va="bottom" if has_children[i] else "top",
                fontsize="small",
            )
        ax.margins(y=0.1)
        ax.set(ylabel="generation", xticks=[], yticks=np.unique(-y) * -1)
        ax.set_yticklabels([str(int(-tick)) for tick in ax.get_yticks()])


def lay_out(parents):
    """Positions of the nodes of a forest: leaves side by side, roots on top.

    Parameters
    ----------
    parents : array-like of int, shape (n,)
        -1 for roots.

    Returns
    -------
    x, y : ndarray of shape (n,)
        y is 0 for roots and falls by one with each generation.
    """
    n = len(parents)
    children = [[] for _ in range(n)]
    roots = []
    for i, parent in enumerate(parents):
        (children[parent] if parent >= 0 else roots).append(i)
    x, y = np.zeros(n), np.zeros(n)
    order, stack = [], list(reversed(roots))
    while stack:
        node = stack.pop()
        order.append(node)
        for child in children[node]:
            y[child] = y[node] - 1
        stack.extend(reversed(children[node]))
    n_leaves = 0
    for node in order:
        if not children[node]:
            x[node] = n_leaves
            n_leaves += 1
    for node in reversed(order):
        if children[node]:
            x[node] = np.mean([x[child] for child in children[node]])
    return x, y
