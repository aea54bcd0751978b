"""What each layer knows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sklearn.utils.validation import check_is_fitted

from .._typing import Self
from ._display import Display

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LayerSearchDisplay(Display):
    """Draw what each layer knows: its score, by its depth and kind.

    A layer's depth is the first number that ends a word of its name, and its kind the
    name without that number: ``"blocks.7.attention.weight"`` has depth 7, and is a
    ``"blocks.*.attention.weight"``. Layers without a number are lines across.

    Made by `from_estimator`.

    Parameters
    ----------
    scores : dict of str to float
        The score of each layer.
    stds : dict of str to float, default=None
        Their standard deviations over folds.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        Where it was drawn.
    figure_ : matplotlib.figure.Figure
        The figure of `ax_`.

    See Also
    --------
    skprobex.LayerSearchCV : Finds the layer that knows.
    skprobex.LayerFusion : Joins several.
    """

    def __init__(
        self, scores: dict[str, float], *, stds: dict[str, float] | None = None
    ) -> None:
        self.scores = scores
        self.stds = stds

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Axes | None = None) -> Self:
        """Draw the layer scores of a fitted estimator.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``layer_scores_``: a `LayerSearchCV`, a `LayerFusion`, or an
            expert that was fitted on several layers.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        LayerSearchDisplay
            Drawn.

        Raises
        ------
        ValueError
            If the estimator has no scores of layers.
        """
        check_is_fitted(estimator)
        scores = getattr(estimator, "layer_scores_", None)
        if scores is None:
            raise ValueError(
                f"This {type(estimator).__name__} has no layer_scores_: fit it on "
                "several layers, a ModelCollection or a dict; a LayerSearchCV with "
                "several metrics needs refit to name one."
            )
        stds = None
        if hasattr(estimator, "cv_results_"):
            metric = estimator.refit if estimator.multimetric_ else "score"
            found = estimator.cv_results_[f"std_test_{metric}"]
            stds = dict(zip(scores, found.tolist(), strict=True))
        return cls(scores, stds=stds).plot(ax=ax)

    def _draw(self, ax):
        kinds = {}
        for name in self.scores:
            depth, kind = depth_and_kind(name)
            kinds.setdefault(kind, []).append((depth, name))
        for i, (kind, layers) in enumerate(kinds.items()):
            color = f"C{i % 10}"
            if layers[0][0] is None:
                ax.axhline(self.scores[kind], color=color, linestyle="--", label=kind)
                continue
            depths, names = zip(*sorted(layers), strict=True)
            ax.errorbar(
                depths,
                [self.scores[name] for name in names],
                yerr=None if self.stds is None else [self.stds[n] for n in names],
                color=color,
                marker="o",
                capsize=3,
                label=kind,
            )
        ax.set(xlabel="depth", ylabel="score")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(loc="best", fontsize="small")


def depth_and_kind(name):
    """Divide a layer's name into its number and the rest.

    Parameters
    ----------
    name : str

    Returns
    -------
    depth : int or None
        The first number that ends a word; None if there is none.
    kind : str
        The name with a star in its place.
    """
    found = re.search(r"[0-9]+(?![0-9A-Za-z])", name)
    if found is None:
        return None, name
    return int(found.group()), f"{name[: found.start()]}*{name[found.end() :]}"
