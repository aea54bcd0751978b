"""Whether probabilities of labels mean what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.multiclass import type_of_target

from .._typing import Self
from ..weights import WeightsLike
from ._display import Display

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More labels than this are not told apart by colour.
MANY_LABELS = 10


class LabelCalibrationDisplay(Display):
    """Draw a reliability curve for each label of a multi-label problem.

    Models are put into bins by the probability that a label was given; the curve shows
    how many of each bin have the label. A calibrated one follows the diagonal. A thin
    line is one label, the thick line all of them together.

    Made by `from_estimator`, or by `from_predictions`. For one label, or classes that
    exclude each other, scikit-learn's
    :class:`~sklearn.calibration.CalibrationDisplay` does the same.

    Parameters
    ----------
    prob_true : list of ndarray
        For each label, the share of models that have it, of every bin that is not
        empty.
    prob_pred : list of ndarray
        The mean probability in each of these bins.
    pooled_true, pooled_pred : ndarray
        The same for all labels together.
    names : list of str, default=None
        Of the labels. None numbers them.

    Attributes
    ----------
    lines_ : list of matplotlib.lines.Line2D
        One for each label.
    pooled_line_ : matplotlib.lines.Line2D
        All labels together.
    ax_ : matplotlib.axes.Axes
        Where it was drawn.
    figure_ : matplotlib.figure.Figure
        The figure of `ax_`.

    See Also
    --------
    sklearn.calibration.calibration_curve : Computes a curve.

    Examples
    --------
    >>> import numpy as np
    >>> from skprobex.inspection import LabelCalibrationDisplay
    >>> proba = np.random.default_rng(0).random((200, 3))
    >>> Y = (proba > np.random.default_rng(1).random((200, 3))).astype(int)
    >>> display = LabelCalibrationDisplay.from_predictions(Y, proba, n_bins=4)
    >>> len(display.prob_true), display.pooled_pred.round(1)
    (3, array([0.1, 0.4, 0.6, 0.9]))
    """

    def __init__(
        self,
        prob_true: list[np.ndarray],
        prob_pred: list[np.ndarray],
        pooled_true: np.ndarray,
        pooled_pred: np.ndarray,
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        self.prob_true = prob_true
        self.prob_pred = prob_pred
        self.pooled_true = pooled_true
        self.pooled_pred = pooled_pred
        self.names = names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        W: WeightsLike,
        Y: ArrayLike,
        *,
        n_bins: int = 5,
        strategy: Literal["uniform", "quantile"] = "uniform",
        names: Sequence[str] | None = None,
        ax: Axes | None = None,
    ) -> Self:
        """Draw the reliability of a fitted classifier, on models it has not seen.

        Parameters
        ----------
        estimator : classifier
            Fitted, multi-label, with ``predict_proba``.
        W : array-like of shape (n_models, d_out, d_in)
            The same layer of each model as in fit.
        Y : array-like of shape (n_models, n_labels)
            Indicator matrix of their labels.
        n_bins : int, default=5
            Bins of probabilities.
        strategy : {"uniform", "quantile"}, default="uniform"
            Whether bins are of equal width, or hold equally many models.
        names : list of str, default=None
            Of the labels. None numbers them.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        LabelCalibrationDisplay
            Drawn.

        Raises
        ------
        ValueError
            If Y is no indicator matrix, or does not fit the probabilities.
        """
        return cls.from_predictions(
            Y,
            estimator.predict_proba(W),
            n_bins=n_bins,
            strategy=strategy,
            names=names,
            ax=ax,
        )

    @classmethod
    def from_predictions(
        cls,
        Y: ArrayLike,
        proba: ArrayLike,
        *,
        n_bins: int = 5,
        strategy: Literal["uniform", "quantile"] = "uniform",
        names: Sequence[str] | None = None,
        ax: Axes | None = None,
    ) -> Self:
        """Draw the reliability of probabilities.

        Parameters
        ----------
        Y : array-like of shape (n_models, n_labels)
            Indicator matrix of true labels.
        proba : array-like of shape (n_models, n_labels)
            Probability of each label.
        n_bins : int, default=5
            Bins of probabilities.
        strategy : {"uniform", "quantile"}, default="uniform"
            Whether bins are of equal width, or hold equally many models.
        names : list of str, default=None
            Of the labels. None numbers them.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        LabelCalibrationDisplay
            Drawn.

        Raises
        ------
        ValueError
            If Y is no indicator matrix, or does not fit the probabilities.
        """
        if type_of_target(Y) != "multilabel-indicator":
            raise ValueError(
                "Y must be an indicator matrix, one column for each label, got "
                f"{type_of_target(Y)!r}. For one label, or classes that exclude each "
                "other, use sklearn.calibration.CalibrationDisplay."
            )
        Y, proba = np.asarray(Y), check_array(proba, input_name="proba")
        check_consistent_length(Y, proba)
        if Y.shape != proba.shape:
            raise ValueError(
                f"Y has {Y.shape[1]} labels, but proba has {proba.shape[1]} columns."
            )
        if names is not None and len(names) != Y.shape[1]:
            raise ValueError(f"{len(names)} names for {Y.shape[1]} labels.")

        def curve(true, predicted):
            # Every label is 0 or 1, also where all models have it.
            from sklearn.calibration import calibration_curve

            return calibration_curve(
                true, predicted, pos_label=1, n_bins=n_bins, strategy=strategy
            )

        curves = [curve(*column) for column in zip(Y.T, proba.T, strict=True)]
        prob_true, prob_pred = (list(part) for part in zip(*curves, strict=True))
        pooled = curve(Y.ravel(), proba.ravel())
        return cls(prob_true, prob_pred, *pooled, names=names).plot(ax=ax)

    def _draw(self, ax):
        names = self.names or range(len(self.prob_true))
        ax.plot([0, 1], [0, 1], color="grey", linestyle=":", label="calibrated")
        self.lines_ = []
        is_many = len(self.prob_true) > MANY_LABELS
        for i, name in enumerate(names):
            self.lines_ += ax.plot(
                self.prob_pred[i],
                self.prob_true[i],
                marker="" if is_many else ".",
                linewidth=0.8,
                alpha=0.6,
                color="0.6" if is_many else f"C{i % 10}",
                # Of many labels, one stands for all in the legend.
                label=("_" if i else "one label") if is_many else str(name),
            )
        (self.pooled_line_,) = ax.plot(
            self.pooled_pred, self.pooled_true, "ko-", linewidth=2, label="all labels"
        )
        ax.set(
            xlabel="mean probability",
            ylabel="share of models with the label",
            aspect="equal",
        )
        ax.legend(fontsize="x-small")
