"""What all Displays share; matplotlib is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._typing import Self

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Display:
    """A picture that can be drawn again, into any axes.

    A kind of it holds what is to be drawn, and draws it in `_draw`.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        Where it was drawn.
    figure_ : matplotlib.figure.Figure
        The figure of `ax_`.
    """

    ax_: Axes
    figure_: Any  # a figure, or a part of one

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        Display
            The display itself, with `ax_` and `figure_`.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        return self._plot(ax)

    def _plot(self, ax, **options):
        """Draw with the options of this kind, and remember where."""
        ax = _get_axes(ax)
        self._draw(ax, **options)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw(self, ax, **options):
        raise NotImplementedError


def _get_axes(ax):
    """Return the axes to draw in; make a figure if there are none."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Plotting needs matplotlib (pip install matplotlib)."
        ) from error
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    return ax
