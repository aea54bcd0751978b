"""What it costs, in accuracy, that some models stand for all.

With many models the views are compared on a sample of them, and features are reduced to
the span of some. Both are put beside the fit that spares nothing, on the digit jungle
of 40 classes. See ``python benchmarks/sampling.py --help``.
"""

import argparse
import time

import numpy as np
import torch
from accuracy import LAYERS, N_TEST, machine
from output import saying

from skprobex import ProbeXClassifier
from skprobex.datasets import make_digit_jungle
from skprobex.probing.ridge import sampling

ALL = 10**9
HEADER = (
    f"{'layer':<16}{'models':>7}{'views':>8}{'compared':>10}{'span':>7}{'accuracy':>10}"
    f"{'std':>8}{'fit s':>8}"
)
LEGEND = """\
compared       models that views are compared on
span           models whose features span those of all, besides those compared
accuracy, std  share of right labels on {n_test} other models of 40 classes, chance .50;
               mean and standard deviation over {n_seeds} choices of models
fit s          of the processor, on one thread"""


def measure(W, Y, n_train, seed, views):
    """Accuracy on other models, and seconds of the fit."""
    models = np.random.default_rng(seed).permutation(len(W))[: n_train + N_TEST]
    train, test = models[:n_train], models[n_train:]
    clf = ProbeXClassifier(views=views, random_state=seed)
    start = time.process_time()
    clf.fit(W[train], Y[train])
    seconds = time.process_time() - start
    return np.mean(clf.predict(W[test]) == Y[test]), seconds


def run(args, say):
    """Measure every size of sample and span, saying each row as it is ready."""
    torch.set_num_threads(1)
    legend = LEGEND.format(n_test=N_TEST, n_seeds=args.seeds)
    say(f"{machine()}\n{legend}\n\n{HEADER}")
    jungle = make_digit_jungle(args.n_models + N_TEST, n_classes=40, random_state=0)
    Y = jungle["target"]
    usual = sampling.MAX_COMPARED, sampling.MAX_DECOMPOSED
    few = [(700, "auto", compared, ALL) for compared in (ALL, usual[0], usual[0] // 2)]
    many = [
        (args.n_models, views, usual[0], span)
        for views in ("auto", ("xtxu",))
        for span in (ALL, usual[1])
    ]
    for layer in LAYERS:
        W = jungle["layers"][layer]
        for n_train, views, compared, span in few + many:
            sampling.MAX_COMPARED, sampling.MAX_DECOMPOSED = compared, span
            rows = [measure(W, Y, n_train, seed, views) for seed in range(args.seeds)]
            accuracy, seconds = np.transpose(rows)
            names = "auto" if views == "auto" else "+".join(views)
            shown = ("all" if n >= n_train else n for n in (compared, span))
            say(
                f"{layer:<16}{n_train:>7}{names:>8}{next(shown):>10}{next(shown):>7}"
                f"{accuracy.mean():>10.4f}{accuracy.std():>8.4f}{seconds.mean():>8.1f}"
            )


def main():
    """Print the table and, where asked, write it to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--n-models", type=int, default=2400, help="of the larger fits")
    parser.add_argument("--seeds", type=int, default=3, help="choices of models")
    parser.add_argument("--output", help="text file that also receives the table")
    args = parser.parse_args()
    with saying(args.output) as say:
        run(args, say)


if __name__ == "__main__":
    main()
