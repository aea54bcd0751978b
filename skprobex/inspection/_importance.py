"""Which inputs, or outputs, of a layer carry the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._typing import Self
from ..probing.ridge.expert import ClosedFormExpert
from ..probing.views import MATRIX_VIEWS
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
        if layer not in names:
            expected = f"one of {names}" if names != [None] else "None: it has one"
            raise ValueError(f"layer={layer!r}: expected {expected}.")
        coef = expert.coef
        if output is not None:
            coef = coef[[_find_output(estimator, output, len(coef))]]
        importances = dimension_importances(expert, coef, BASES[side], layer)
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


def dimension_importances(expert, coef, basis, layer_name):
    """Squared sensitivities of decisions to each dimension of a layer.

    Parameters
    ----------
    expert : ClosedFormExpert
        Of arrays.
    coef : ndarray of shape (n_outputs, n_features)
        Some of its coefficients.
    basis : {"left", "right"}
        The outputs or the inputs of the layer.
    layer_name : str or None

    Returns
    -------
    dict of str to ndarray of shape (d,)
        Views that do not look at this side are left out.
    """
    importances, start, total = {}, 0, 0.0
    for layer in expert.layers:
        for view, share in zip(layer.views, layer.shares, strict=True):
            width = count_features(view)
            block = coef[:, start : start + width].astype(np.float64) * share**0.5
            start += width
            total += np.square(block).sum()
            if layer.name != layer_name or view.left is None:
                continue
            sides = MATRIX_VIEWS[view.name]
            matrices = coefficient_matrices(view, block)  # (n_outputs, p, q)
            if sides.left == basis:
                moments, probes = (
                    np.einsum("tpk,tqk->pq", matrices, matrices),
                    view.left,
                )
            elif sides.right == basis:
                moments = np.einsum("tkp,tkq->pq", matrices, matrices)
                probes = view.right
            else:
                continue
            importances[view.name] = ((probes @ moments) * probes).sum(axis=1)  # (d,)
    return {name: values / (total or 1.0) for name, values in importances.items()}


def count_features(view):
    """Count the features of a probed view."""
    if view.left is None:
        return view.length + 1
    n_left, n_right = view.left.shape[1], view.right.shape[1]
    if MATRIX_VIEWS[view.name].symmetric:
        return n_left * (n_left + 1) // 2
    return n_left * n_right


def coefficient_matrices(view, coef):
    """Put coefficients on ``vec(U^T M V)`` back into matrices C.

    Parameters
    ----------
    view : ProbedView
        A matrix view.
    coef : ndarray of shape (n_outputs, n_features)

    Returns
    -------
    ndarray of shape (n_outputs, n_probes, n_probes)
        Such that ``coef @ vec(U^T M V)`` is ``<C, U^T M V>``.
    """
    n_left, n_right = view.left.shape[1], view.right.shape[1]
    if not MATRIX_VIEWS[view.name].symmetric:
        return coef.reshape(-1, n_left, n_right)
    rows, columns = np.triu_indices(n_left)
    # Off the diagonal a feature is sqrt(2) times its entry, which C holds twice.
    halves = np.where(rows == columns, 1.0, 0.5**0.5) * coef
    matrices = np.zeros((len(coef), n_left, n_left), dtype=coef.dtype)
    matrices[:, rows, columns] = halves
    matrices[:, columns, rows] = halves
    return matrices
