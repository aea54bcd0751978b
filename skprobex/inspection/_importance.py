"""Which inputs, or outputs, of a layer carry the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._typing import Self
from ..probing.ridge.expert import ClosedFormExpert
from ..weights import ONLY
from ._display import Display

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Which basis of a view stands on which side of the layer.
BASES = {"input": "right", "output": "left"}


class ProbeImportanceDisplay(Display):
    """Draw which inputs, or outputs, of a layer carry the answer.

    In closed form the decision of output t is linear in each matrix view ``M``: the
    head's coefficients on ``vec(U^T M V)``, put back into a matrix ``C_t``, make it
    ``<G_t, M>`` with ``G_t = U C_t V^T``, plus what other views add. An entry of
    ``G_t`` is the derivative of the decision with respect to that entry of the view.
    The importance of an input j is the squared norm of what belongs to it, summed over
    the outputs t, and for a view on both sides of which are inputs::

        importance_j = sum_t sum_k (G_t)_jk^2 = (U (sum_t C_t C_t^T) U^T)_jj

    where views are in units of their spread over the training models. Importances are
    divided by the squared norm of all coefficients, so that over all inputs they sum to
    the share of the views that look at inputs: one, if all do.

    Made by `from_estimator`.

    Parameters
    ----------
    importances : dict of str to ndarray of shape (d,)
        The importance of each input, or output, to each view that looks at that side.
    side : {"input", "output"}, default="input"
        Which side of the layer.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        Where it was drawn.
    figure_ : matplotlib.figure.Figure
        The figure of `ax_`.

    See Also
    --------
    ViewScoresDisplay : How well each view answers.

    Notes
    -----
    The decision is linear in the views, but a view such as ``log_xtx`` is not linear in
    the weights: what is measured is which rows of the view are read, not what a change
    of one weight would do. Inputs that say the same share what they say.

    Examples
    --------
    >>> from skprobex import ProbeXClassifier
    >>> from skprobex.datasets import make_model_tree
    >>> from skprobex.inspection import ProbeImportanceDisplay
    >>> W, y = make_model_tree(
    ...     60, (16, 12), view="xtxu", random_state=0, return_X_y=True
    ... )
    >>> clf = ProbeXClassifier(views=("xtxu",)).fit(W, y)
    >>> display = ProbeImportanceDisplay.from_estimator(clf)
    >>> display.importances["xtxu"].shape
    (12,)
    """

    def __init__(
        self,
        importances: dict[str, np.ndarray],
        *,
        side: Literal["input", "output"] = "input",
    ) -> None:
        self.importances = importances
        self.side = side

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        side: Literal["input", "output"] = "input",
        output: Any = None,
        layer: str | None = None,
        shape: tuple[int, int] | None = None,
        ax: Axes | None = None,
    ) -> Self:
        """Draw the importances of a fitted expert.

        Parameters
        ----------
        estimator : estimator
            Fitted with ``solver="ridge"``.
        side : {"input", "output"}, default="input"
            Which side of the layer.
        output : label or int, default=None
            One class or label of a classifier with several, or the number of one
            target. None takes all together.
        layer : str, default=None
            Which layer's, where the expert was fitted on several.
        shape : tuple of (int, int), default=None
            As in `plot`.
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        ProbeImportanceDisplay
            Drawn.

        Raises
        ------
        ValueError
            If the estimator is no expert in closed form, no view of it looks at this
            side, or there is no such layer or output.
        """
        check_is_fitted(estimator)
        expert = getattr(estimator, "expert_", None)
        if not isinstance(expert, ClosedFormExpert) or not len(expert.coef):
            raise ValueError(
                f"This {type(estimator).__name__} has no coefficients on probed views: "
                "fit an expert with solver='ridge', and with y."
            )
        if side not in BASES:
            raise ValueError(f"side={side!r}: expected one of {tuple(BASES)}.")
        names = [known.name for known in expert.layers]
        name = ONLY if layer is None else layer
        if name not in names:
            expected = f"one of {names}" if names != [ONLY] else "None: it has one"
            raise ValueError(f"layer={layer!r}: expected {expected}.")
        rows = list(range(len(expert.coef)))
        if output is not None:
            rows = [_find_output(estimator, output, len(rows))]
        importances = expert.sensitivities(rows, BASES[side], name)
        if not importances:
            raise ValueError(
                f"None of the views in use looks at the {side}s of the layer: "
                f"{estimator.views_}."
            )
        return cls(importances, side=side).plot(ax=ax, shape=shape)

    def plot(
        self, ax: Axes | None = None, *, shape: tuple[int, int] | None = None
    ) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None makes a figure.
        shape : tuple of (int, int), default=None
            Draw the sum over views as an image, for inputs that are pixels. None draws
            one bar for each input, or output, stacked by views.

        Returns
        -------
        ProbeImportanceDisplay
            The display itself, with `ax_` and `figure_`.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If the shape does not hold as many pixels as there are inputs.
        """
        n_dimensions = len(next(iter(self.importances.values())))
        if shape is not None and np.prod(shape) != n_dimensions:
            raise ValueError(
                f"shape={shape} has {np.prod(shape)} pixels, but there are "
                f"{n_dimensions} {self.side}s."
            )
        return self._plot(ax, shape=shape)

    def _draw(self, ax, shape=None):
        total = sum(self.importances.values())
        if shape is not None:
            ax.imshow(total.reshape(shape), cmap="viridis", vmin=0)
            ax.set(xticks=[], yticks=[])
        else:
            below = np.zeros_like(total)
            edges = np.arange(len(total) + 1) - 0.5
            for name, values in self.importances.items():
                above = below + values
                ax.stairs(above, edges, baseline=below, fill=True, label=name)
                below = above
            ax.set(xlabel=f"{self.side} of the layer", ylabel="importance")
            ax.margins(x=0)
            ax.legend(fontsize="small")


def _find_output(estimator, output, n_outputs):
    """Find the row of the coefficients that belongs to a class, label or target."""
    # Two classes share one decision.
    has_labels = n_outputs > 1 and hasattr(estimator, "classes_")
    labels = estimator.classes_.tolist() if has_labels else list(range(n_outputs))
    if output not in labels:
        raise ValueError(f"output={output!r}: expected one of {labels}.")
    return labels.index(output)
