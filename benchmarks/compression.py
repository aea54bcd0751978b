"""The papers' networks, trained on whole deltas and in subspaces: loss and seconds.

First on the digit jungle of 40 classes, for accuracy; then on wide layers, for time.
See ``python benchmarks/compression.py --help``.
"""

import argparse

import numpy as np
import torch
from accuracy import METHODS, N_TEST, machine
from fit import Case, draw, seconds_of
from output import saying

from skprobex.datasets import make_digit_jungle

NETWORKS = ("probex-2025", "mvprobe-2026")
HEADER = (
    f"{'weights':<10}{'network':<14}{'compress':>9}{'outside':>9}{'loss':>8}"
    f"{'accuracy':>10}{'fit s':>8}{'epochs':>8}{'epoch s':>9}"
)
LEGEND = """\
weights    models x width (square layers)
compress   dimensions of the subspace of each side
outside    share of the deltas' squared norm that is left out
loss       of training, in the last epoch
accuracy   share of right labels on 200 other models; of 40 classes, chance .50
fit s      of the processor, on one thread; what epochs do not take prepares deltas
epoch s    the same, mean of all epochs but one"""


def share_outside(W, size):
    """Share of the squared norm outside the leading directions of each side."""
    if size is None:
        return 0.0
    rows = W.reshape(-1, W.shape[2]).astype(np.float64)
    columns = W.swapaxes(1, 2).reshape(-1, W.shape[1]).astype(np.float64)
    left, right = (
        np.linalg.eigh(vectors.T @ vectors)[1][:, -size:] for vectors in (columns, rows)
    )
    squares = sum(np.square(left.T @ delta @ right).sum() for delta in W)
    return 1 - squares / np.square(rows).sum()


def run(args, say):
    """Measure every network at every size, saying each row as it is ready."""
    torch.set_num_threads(1)
    say(f"{machine()}\n{LEGEND}\n\n{HEADER}")
    W, Y = make_digit_jungle(
        args.n_models + N_TEST, n_classes=40, random_state=0, return_X_y=True
    )
    # What a process loads on first use is not a fit's.
    seconds_of(METHODS["probex-2025"].make(0, 1), W[:20], Y[:20])
    narrow = (None, 48, 32, 16), args.epochs, W, Y
    wide = (None, 192, 64), 3, *draw(Case(args.n_wide, 768))
    for (sizes, n_epochs, W, Y), n_models in (
        (narrow, args.n_models),
        (wide, args.n_wide),
    ):
        train, test = slice(n_models), slice(n_models, n_models + N_TEST)
        for name in args.networks:
            for size in sizes:
                outside = share_outside(W[train], size)
                once, all_epochs = (
                    METHODS[name].make(0, n).set_params(compress=size)
                    for n in (1, n_epochs)
                )
                first = seconds_of(once, W[train], Y[train])
                seconds = seconds_of(all_epochs, W[train], Y[train])
                epoch = (seconds - first) / (n_epochs - 1)
                # After three epochs there is nothing to be told from outputs.
                accuracy = loss = ""
                if W is narrow[2]:
                    accuracy = np.mean(all_epochs.predict(W[test]) == Y[test])
                    accuracy = f"{accuracy:.3f}"
                    loss = f"{all_epochs.loss_curve_[-1]:.4f}"
                say(
                    f"{f'{n_models}x{W.shape[2]}':<10}{name:<14}{size or 'no':>9}"
                    f"{outside:>9.1%}{loss:>8}{accuracy:>10}{seconds:>8.1f}"
                    f"{n_epochs:>8}{epoch:>9.2f}"
                )


def main():
    """Print the table and, where asked, write it to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--n-models", type=int, default=400, help="networks of the jungle")
    add("--epochs", type=int, default=100, help="on the jungle; the wide layers have 3")
    add("--n-wide", type=int, default=300, help="layers of 768 x 768")
    add("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    add("--output", help="text file that also receives the table")
    args = parser.parse_args()
    if args.epochs < 2:
        parser.error("an epoch is timed by the others: --epochs must be 2 or more")
    with saying(args.output) as say:
        run(args, say)


if __name__ == "__main__":
    main()
