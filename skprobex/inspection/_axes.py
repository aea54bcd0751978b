"""Where Displays draw; matplotlib is imported on first use."""


def get_axes(ax):
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
