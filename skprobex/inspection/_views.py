"""How well each view, and sum of views, answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn.utils.validation import check_is_fitted

from .._typing import Self
from ._display import Display

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ViewScoresDisplay(Display):
    """Draw the leave-one-out score of each view, and sum of views, that was compared.

    Made by `from_estimator`.

    Parameters
    ----------
    scores : dict of str to float
        The score of each view, or sum of views, such as ``"xu+spectrum"``.
    chosen : str, default=None
        The one in use, drawn in full colour.

    Attributes
    ----------
    bars_ : matplotlib.container.BarContainer
        One bar for each score, the best on top.
    ax_ : matplotlib.axes.Axes
        Where it was drawn.
    figure_ : matplotlib.figure.Figure
        The figure of `ax_`.

    See Also
    --------
    LayerSearchDisplay : The scores of layers.
    skprobex.ProbeXClassifier : Says in ``view_scores_`` what is drawn.

    Examples
    --------
    >>> from skprobex import ProbeXClassifier
    >>> from skprobex.datasets import make_model_tree
    >>> from skprobex.inspection import ViewScoresDisplay
    >>> W, y = make_model_tree(
    ...     60, (16, 12), view="xtxu", random_state=0, return_X_y=True
    ... )
    >>> clf = ProbeXClassifier().fit(W, y)
    >>> display = ViewScoresDisplay.from_estimator(clf)
    >>> display.scores == clf.view_scores_
    True
    """

    def __init__(self, scores: dict[str, float], *, chosen: str | None = None) -> None:
        self.scores = scores
        self.chosen = chosen

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, layer: str | None = None, ax: Axes | None = None
    ) -> Self:
        """Draw the view scores of a fitted expert.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``view_scores_``: an expert, or a `LayerFusion`.
        layer : str, default=None
            Which layer's, where the expert was fitted on several.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        ViewScoresDisplay
            Drawn.

        Raises
        ------
        ValueError
            If no views were compared, or there are several layers and none is named.
        """
        check_is_fitted(estimator)
        scores = getattr(estimator, "view_scores_", None)
        if not scores:
            raise ValueError(
                f"This {type(estimator).__name__} has not compared views: fit it with "
                "views='auto', on labels, numbers or texts."
            )
        views = estimator.views_
        if hasattr(estimator, "layers_"):
            if layer not in scores:
                raise ValueError(
                    f"The estimator was fitted on several layers: layer={layer!r} "
                    f"is none of {list(scores)}."
                )
            scores, views = scores[layer], views.get(layer, ())
        elif layer is not None:
            raise ValueError(
                f"layer={layer!r}: the estimator was fitted on one layer, leave it out."
            )
        return cls(scores, chosen="+".join(views)).plot(ax=ax)

    def _draw(self, ax):
        # Bars are drawn upwards; of equal scores, the first compared is on top.
        names = sorted(self.scores, key=self.scores.__getitem__, reverse=True)[::-1]
        values = [self.scores[name] for name in names]
        colors = ["C0" if name == self.chosen else "0.75" for name in names]
        self.bars_ = ax.barh(
            [n.replace("+", " + ") for n in names], values, color=colors
        )
        ax.bar_label(self.bars_, fmt="%.3f", padding=3, fontsize="small")
        ax.margins(x=0.18)
        ax.set(xlabel="leave-one-out score")
