"""Figures of the page on speed, drawn from what ``benchmarks/fit.py`` printed."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "fit.txt"
FOLDER = Path(__file__).parent / "generated"
ROW = re.compile(
    r"(?P<n>\d+)x(?P<width>\d+)(-r(?P<rank>\d+))?(?P<dense>-dense)?\s+"
    r"(?P<method>[a-z0-9-]+)\s+(?P<seconds>[\d.]+)"
)
LABELS = {
    "default": "ProbeXClassifier()",
    "pca-logistic": "PCA and logistic regression",
    "ridge-cv": "ridge regression on all weights",
    "probex-2025": "ProbeX, 500 epochs (extrapolated)",
    "mvprobe-2026": "MVProbe, 3000 epochs (extrapolated)",
}
COLORS = dict(zip(LABELS, ("C0", "C1", "C2", "C3", "C4"), strict=True))


def read_rows():
    """Rows of the table: n, width, rank, dense, method, seconds."""
    rows = []
    for line in RESULTS.read_text().splitlines():
        if match := ROW.match(line):
            row = match.groupdict()
            for key in ("n", "width", "rank"):
                row[key] = row[key] and int(row[key])
            rows.append({**row, "seconds": float(row["seconds"])})
    return rows


def draw(*_):
    """Draw both figures into the folder of generated files."""
    rows = read_rows()
    FOLDER.mkdir(exist_ok=True)
    full = [row for row in rows if row["rank"] is None]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for width, style in ((64, "o-"), (256, "s--")):
        # The networks are there for one number of models only.
        some = [row for row in full if row["width"] == width]
        some = [row for row in some if not row["method"].startswith(("probex", "mv"))]
        plot_lines(axes[0], some, "n", style, f", {width} wide")
    axes[0].set(xlabel="models", title="more models", ylim=(0.02, 2000))
    some = [row for row in full if row["n"] == 700]
    plot_lines(axes[1], some, "width", "o-", "")
    axes[1].set(xlabel="width of the (square) layer", title="wider layers, 700 models")
    finish(axes, "speed_dense.png", figure)

    figure, ax = plt.subplots(figsize=(4.8, 3.4), layout="constrained")
    some = [row for row in rows if row["rank"] and row["n"] == 300 and not row["dense"]]
    plot_lines(ax, some, "rank", "o-", ", factors")
    for row in rows:
        if row["dense"] and row["n"] == 300:
            ax.plot(row["rank"], row["seconds"], "k^", label="the same, multiplied out")
    ax.set(xlabel="rank of 300 LoRA layers, 1280 wide", ylim=(0.1, 10))
    finish([ax], "speed_factors.png", figure)


def plot_lines(ax, rows, x, style, suffix):
    """Plot seconds against `x`, one line a method."""
    for method, label in LABELS.items():
        own = sorted(
            (row[x], row["seconds"]) for row in rows if row["method"] == method
        )
        if own:
            color = COLORS[method]
            ax.plot(*zip(*own, strict=True), style, color=color, label=label + suffix)


def finish(axes, name, figure):
    """Label the axes and save the figure."""
    for ax in axes:
        ax.set(xscale="log", yscale="log", ylabel="seconds of one core")
        ticks = sorted({x for line in ax.lines for x in line.get_xdata()})
        ax.set_xticks(ticks, labels=ticks, fontsize=8)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.tick_params(axis="x", which="minor", length=0)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_formatter(NullFormatter())
        ax.legend(fontsize=7)
        ax.grid(alpha=0.3)
    figure.savefig(FOLDER / name, dpi=150)
    plt.close(figure)
