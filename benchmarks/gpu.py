"""Fits on one GPU: the closed form and the published network, data on the host before.

Times are a clock's, of fits that end on the host: the copy to the device, every kernel
and the copy back are in them. See ``python benchmarks/gpu.py --help``.
"""

import argparse
import time
import warnings

import numpy as np
import torch
from accuracy import METHODS, machine
from fit import CASES, draw
from output import saying
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score

from skprobex import ProbeXClassifier

CLOSED_FORM = ("700x64", "700x256", "700x768", "4000x64", "1000x1280-r16")
NETWORKS = ("probex-2025", "mvprobe-2026")


def seconds_of(estimator, W, y):
    """Seconds of a fit by the clock."""
    with warnings.catch_warnings():
        # A network that runs a given number of epochs stops before it converges.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # The published 128 probes are clipped where layers have fewer dimensions.
        warnings.filterwarnings("ignore", "n_probes=128", UserWarning)
        start = time.perf_counter()
        estimator.fit(W, y)
        return time.perf_counter() - start


def main():
    """Print the table and, where asked, write it to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda")
    add("--cases", nargs="+", default=CLOSED_FORM, choices=CASES, metavar="CASE")
    add("--network-cases", nargs="*", default=("700x768",), choices=CASES)
    add("--networks", nargs="*", default=NETWORKS[:1], choices=NETWORKS)
    add("--epochs", type=int, help="in place of the published ones")
    add("--repeats", type=int, default=3)
    add("--output", help="text file that also receives the table")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu tries the script")
    small = np.random.default_rng(0).standard_normal((20, 8, 8), dtype="f")
    ProbeXClassifier(device=args.device).fit(small, np.arange(20) % 2)
    with saying(args.output) as say:
        say(f"{machine()}\nfits with device={args.device!r}; medians of the runs\n")
        say(f"{'weights':<18}{'method':<14}{'epochs':>7}{'seconds':>9}{'accuracy':>10}")
        for name in args.cases:
            W, y = draw(CASES[name])
            n_models = CASES[name].n_models
            clf = ProbeXClassifier(device=args.device, random_state=0)
            seconds = np.median(
                [
                    seconds_of(clf, W[:n_models], y[:n_models])
                    for _ in range(args.repeats)
                ]
            )
            right = accuracy_score(y[n_models:], clf.predict(W[n_models:]))
            say(f"{name:<18}{'default':<14}{'':>7}{seconds:>9.2f}{right:>10.2f}")
        for name in args.network_cases:
            W, y = draw(CASES[name])
            n_models = CASES[name].n_models
            for method in args.networks:
                n_epochs = args.epochs or METHODS[method].published_epochs
                network = METHODS[method].make(0, n_epochs)
                network.set_params(device=args.device)
                seconds = seconds_of(network, W[:n_models], y[:n_models])
                right = accuracy_score(y[n_models:], network.predict(W[n_models:]))
                say(f"{name:<18}{method:<14}{n_epochs:>7}{seconds:>9.2f}{right:>10.2f}")


if __name__ == "__main__":
    main()
