"""Models and texts, in one map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import check_is_fitted

from .._typing import RandomState, Self
from ..weights import WeightsLike
from ._display import Display

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .._embedder import ProbeXEmbedder


class TextSpaceDisplay(Display):
    """Draw models and the texts that describe them in one map.

    Texts are crosses, models dots, and a line joins a model to its own text. The space
    that an embedder shares between them has many dimensions: the map keeps neighbours
    together (t-SNE), or the directions of largest variance (PCA).

    Made by `from_estimator`.

    Parameters
    ----------
    texts : ndarray of str, shape (n_texts,)
        The distinct texts.
    text_points : ndarray of shape (n_texts, 2)
        Where they are in the map.
    points : ndarray of shape (n_models, 2)
        Where the models are.
    codes : ndarray of int, shape (n_models,)
        The number of each model's text.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        Where it was drawn.
    figure_ : matplotlib.figure.Figure
        The figure of `ax_`.

    See Also
    --------
    skprobex.ProbeXEmbedder : Learns the space.

    Examples
    --------
    >>> import numpy as np
    >>> from skprobex import ProbeXEmbedder
    >>> from skprobex.inspection import TextSpaceDisplay
    >>> rng = np.random.default_rng(0)
    >>> vector_of = {f"concept {i}": rng.normal(size=8) for i in range(10)}
    >>> def encode(texts):
    ...     return np.array([vector_of[text] for text in texts])
    >>> texts = np.repeat(list(vector_of), 6)
    >>> W = (encode(texts) @ rng.normal(size=(8, 192))).reshape(60, 16, 12)
    >>> W += 0.1 * rng.normal(size=W.shape)
    >>> embedder = ProbeXEmbedder(text_encoder=encode, views=("xu",)).fit(W, texts)
    >>> display = TextSpaceDisplay.from_estimator(embedder, W, texts, method="pca")
    >>> display.points.shape, display.text_points.shape
    ((60, 2), (10, 2))
    """

    def __init__(
        self,
        texts: np.ndarray,
        text_points: np.ndarray,
        points: np.ndarray,
        codes: np.ndarray,
    ) -> None:
        self.texts = texts
        self.text_points = text_points
        self.points = points
        self.codes = codes

    @classmethod
    def from_estimator(
        cls,
        estimator: ProbeXEmbedder,
        W: WeightsLike,
        y: Sequence[str] | np.ndarray,
        *,
        method: Literal["tsne", "pca"] = "tsne",
        colors: Mapping[str, Any] | None = None,
        annotate: bool = False,
        random_state: RandomState = 0,
        ax: Axes | None = None,
    ) -> Self:
        """Draw models and their texts in the space of a fitted embedder.

        Parameters
        ----------
        estimator : ProbeXEmbedder
            Fitted with texts.
        W : array-like of shape (n_models, d_out, d_in)
            The same layer, or layers, of each model as in fit.
        y : sequence of str, shape (n_models,)
            The text of each model, seen in training or not.
        method : {"tsne", "pca"}, default="tsne"
            How the map is made: scikit-learn's `TSNE` of cosine distances, or its
            `PCA`.
        colors : dict of str to color, default=None
            As in `plot`.
        annotate : bool, default=False
            As in `plot`.
        random_state : int, RandomState instance or None, default=0
            Where t-SNE starts.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        TextSpaceDisplay
            Drawn.

        Raises
        ------
        ValueError
            If the embedder was fitted without texts, or the method is unknown.
        """
        check_is_fitted(estimator)
        if method not in ("tsne", "pca"):
            raise ValueError(f"method={method!r}: expected 'tsne' or 'pca'.")
        check_consistent_length(W, y)
        texts, codes = np.unique(y, return_inverse=True)
        T, Z = estimator.encode_text(texts.tolist()), estimator.transform(W)
        both = np.concatenate([T, Z])
        if method == "tsne":
            from sklearn.manifold import TSNE

            reducer = TSNE(
                metric="cosine",
                init="random",
                perplexity=min(12, (len(both) - 1) / 3),
                random_state=random_state,
            )
        else:
            from sklearn.decomposition import PCA

            reducer = PCA(n_components=2, random_state=random_state)
        points = reducer.fit_transform(both)
        display = cls(texts, points[: len(T)], points[len(T) :], codes)
        return display.plot(ax=ax, colors=colors, annotate=annotate)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        colors: Mapping[str, Any] | None = None,
        annotate: bool = False,
    ) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None makes a figure.
        colors : dict of str to color, default=None
            The colour of each text and its models. None takes matplotlib's colours in
            turn.
        annotate : bool, default=False
            Write the texts beside their crosses.

        Returns
        -------
        TextSpaceDisplay
            The display itself, with `ax_` and `figure_`.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If a text has no colour.
        """
        texts = self.texts.tolist()
        if colors is None:
            colors = {text: f"C{i % 10}" for i, text in enumerate(texts)}
        missing = [text for text in texts if text not in colors]
        if missing:
            raise ValueError(
                f"colors lacks {len(missing)} of the texts, such as {missing[0]!r}."
            )
        return self._plot(ax, colors=colors, annotate=annotate)

    def _draw(self, ax, colors, annotate):
        texts = self.texts.tolist()
        shades = [colors[text] for text in texts]
        # From each model to its text.
        ends = np.stack([self.points, self.text_points[self.codes]], axis=1)
        ax.plot(*ends.transpose(2, 1, 0), color="0.8", linewidth=0.8, zorder=0)
        ax.scatter(*self.text_points.T, c=shades, marker="x", s=60)
        ax.scatter(*self.points.T, c=[shades[code] for code in self.codes], s=25)
        if annotate:
            for text, point in zip(texts, self.text_points, strict=True):
                ax.annotate(
                    text,
                    point,
                    xytext=(5, 3),
                    textcoords="offset points",
                    fontsize="small",
                )
        ax.set(title="models (dots) and texts (crosses)", xticks=[], yticks=[])
