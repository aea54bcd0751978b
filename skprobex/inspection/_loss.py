"""How a network was trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._typing import Self
from ._display import Display

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LossCurveDisplay(Display):
    """Draw the training loss of each epoch, and the score on models set aside.

    Made by `from_estimator`.

    Parameters
    ----------
    losses : list of float
        Training loss of each epoch.
    validation_scores : list of float, default=None
        Score of each epoch on the models set aside.

    Attributes
    ----------
    line_ : matplotlib.lines.Line2D
        The losses.
    validation_line_ : matplotlib.lines.Line2D or None
        The scores.
    validation_ax_ : matplotlib.axes.Axes or None
        Where they were drawn: the axis on the right.
    ax_ : matplotlib.axes.Axes
        Where the losses were drawn.
    figure_ : matplotlib.figure.Figure
        The figure of `ax_`.

    See Also
    --------
    skprobex.ProbeXClassifier : Has a loss curve with ``solver="adam"``.

    Examples
    --------
    >>> from skprobex import ProbeXClassifier
    >>> from skprobex.datasets import make_model_tree
    >>> from skprobex.inspection import LossCurveDisplay
    >>> W, y = make_model_tree(60, (16, 12), random_state=0, return_X_y=True)
    >>> from skprobex.solvers import Adam
    >>> clf = ProbeXClassifier(
    ...     solver=Adam(tol=0.1), views=("xu",), normalize=True, random_state=0
    ... )
    >>> display = LossCurveDisplay.from_estimator(clf.fit(W, y))
    >>> len(display.losses) == clf.n_iter_
    True
    """

    def __init__(
        self,
        losses: Sequence[float],
        *,
        validation_scores: Sequence[float] | None = None,
    ) -> None:
        self.losses = losses
        self.validation_scores = validation_scores

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Axes | None = None) -> Self:
        """Draw how a fitted expert was trained.

        Parameters
        ----------
        estimator : estimator
            Fitted with a network. With ``Adam(early_stopping=True)`` it has scores
            of validation too.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        LossCurveDisplay
            Drawn.

        Raises
        ------
        ValueError
            If the estimator has no loss curve.
        """
        check_is_fitted(estimator)
        losses = getattr(estimator, "loss_curve_", None)
        if losses is None:
            raise ValueError(
                f"This {type(estimator).__name__} has no loss_curve_: the closed form "
                "has no epochs. Fit with solver='adam'."
            )
        scores = getattr(estimator, "validation_scores_", None)
        return cls(losses, validation_scores=scores).plot(ax=ax)

    def _draw(self, ax):
        epochs = np.arange(1, len(self.losses) + 1)
        (self.line_,) = ax.plot(epochs, self.losses, color="C0", label="training loss")
        ax.set(xlabel="epoch", ylabel="training loss")
        ax.xaxis.get_major_locator().set_params(integer=True)
        self.validation_line_ = self.validation_ax_ = None
        if self.validation_scores is not None:
            self.validation_ax_ = ax.twinx()
            (self.validation_line_,) = self.validation_ax_.plot(
                epochs, self.validation_scores, color="C1", label="validation score"
            )
            self.validation_ax_.set(ylabel="validation score")
            ax.legend(handles=[self.line_, self.validation_line_], loc="center right")
