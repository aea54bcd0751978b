"""Accuracy of every method on the digit jungles, in one table from one run.

The task is the same for all: from one hidden layer's weights, say which classes each
model was trained on. Accuracy is the share of labels that are right, on models that
were not trained on. ``python benchmarks/accuracy.py --help`` lists the options.
"""

import argparse
import os
import platform
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
from output import saying
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline

from skprobex import ProbeXClassifier
from skprobex.baselines import (
    SpectralStatistics,
    WeightStatistics,
    make_dense_expert,
)
from skprobex.datasets import make_digit_jungle
from skprobex.solvers import mvprobe, probex

N_TEST = 200
LAYERS = ("hidden1.weight", "hidden2.weight")


@dataclass(frozen=True)
class Method:
    """How to make an estimator from a seed and a number of epochs."""

    make: callable
    published_epochs: int | None = None  # of a network; None where there are none


def forest(statistics):
    """Random forest on the statistics of a layer."""
    return lambda seed, epochs: make_pipeline(
        statistics(),
        RandomForestClassifier(n_estimators=300, n_jobs=-1, random_state=seed),
    )


def network(published):
    """A published network, run for exactly the epochs asked for."""
    return lambda seed, epochs: ProbeXClassifier(
        **published(max_iter=epochs), random_state=seed
    )


METHODS = {
    "constant": Method(lambda seed, epochs: DummyClassifier(strategy="most_frequent")),
    "weight-statistics": Method(forest(WeightStatistics)),
    "spectral-statistics": Method(forest(SpectralStatistics)),
    "dense-expert": Method(lambda seed, epochs: make_dense_expert()),
    "probex-2025": Method(network(probex), probex()["solver"].max_iter),
    "mvprobe-2026": Method(network(mvprobe), mvprobe()["solver"].max_iter),
    "default": Method(lambda seed, epochs: ProbeXClassifier(random_state=seed)),
}

HEADER = (
    f"{'classes':>7}  {'layer':<14}  {'models':>6}  {'method':<19}  {'accuracy':>8}  "
    f"{'std':>5}  {'fit s':>8}  {'epochs':>6}  {'published':>9}  {'fit s there':>11}"
)

LEGEND = """\
accuracy, std   share of right labels on {n_test} models; mean and standard deviation
                over {n_seeds} seeds, each its own choice of training and test models
fit s           seconds of one fit, mean over seeds
epochs          passes over the training models that were run (networks only)
published       epochs that the method's authors trained for
fit s there     NOT RUN: seconds per epoch of this run x published epochs
A network run for fewer epochs than published may not have reached its accuracy."""


def machine():
    """One line per fact that a timing depends on."""
    packages = ("skprobex", "torch", "numpy", "scikit-learn")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} torch threads, GPU: {device}\n"
        f"Python {platform.python_version()}, {versions}"
    )


def measure(method, W, Y, n_train, seed, epochs):
    """Fit on `n_train` models and score on others.

    Returns
    -------
    accuracy, seconds, n_iter : float, float, int or None
    """
    order = np.random.default_rng(seed).permutation(len(W))
    # The same test models for every n_train, and nested training sets.
    test, train = order[:N_TEST], order[N_TEST : N_TEST + n_train]
    estimator = method.make(seed, epochs)
    start = time.perf_counter()
    with warnings.catch_warnings():
        # A network that runs a fixed number of epochs stops before it converges.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # The published 128 probes are clipped to the 64 dimensions of these layers.
        warnings.filterwarnings("ignore", "n_probes=128", UserWarning)
        estimator.fit(W[train], Y[train])
    seconds = time.perf_counter() - start
    accuracy = np.mean(estimator.predict(W[test]) == Y[test])
    n_iter = estimator.n_iter_ if method.published_epochs else None
    return accuracy, seconds, n_iter


def row(n_classes, layer, n_train, name, results):
    """One line of the table, from the results of all seeds."""
    accuracies, seconds, n_iters = zip(*results, strict=True)
    published = METHODS[name].published_epochs
    cells = (
        f"{n_classes:>7}  {layer:<14}  {n_train:>6}  {name:<19}  "
        f"{np.mean(accuracies):>8.3f}  {np.std(accuracies):>5.3f}  "
        f"{np.mean(seconds):>8.2f}"
    )
    if not published:
        return cells
    there = np.sum(seconds) / np.sum(n_iters) * published
    return f"{cells}  {np.mean(n_iters):>6.0f}  {published:>9}  {there:>11.0f}"


def parse_args():
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", type=int, default=5, help="how many seeds")
    add("--n-train", type=int, nargs="+", default=[100, 200, 400, 700])
    add("--n-classes", type=int, nargs="+", default=[10, 40])
    add("--layers", nargs="+", default=list(LAYERS), choices=LAYERS)
    add("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    add("--epochs", type=int, default=100, help="epochs of the networks")
    add("--output", help="text file that also receives what is printed")
    return parser.parse_args()


def run(args, say):
    """Measure what was asked for, saying each row as it is ready."""
    say(machine())
    say(LEGEND.format(n_test=N_TEST, n_seeds=args.seeds))
    n_models = N_TEST + max(args.n_train)
    for n_classes in args.n_classes:
        start = time.perf_counter()
        jungle = make_digit_jungle(
            n_models=n_models, n_classes=n_classes, random_state=0
        )
        seconds = time.perf_counter() - start
        say(
            f"\n{n_models} models, {n_classes} classes: made or read in {seconds:.0f} s"
        )
        say(HEADER)
        for layer in args.layers:
            W, Y = jungle.layers[layer], jungle.target
            for n_train in args.n_train:
                for name in args.methods:
                    results = [
                        measure(METHODS[name], W, Y, n_train, seed, args.epochs)
                        for seed in range(args.seeds)
                    ]
                    say(row(n_classes, layer, n_train, name, results))


def main():
    """Print the table and, where asked, write it to a file."""
    args = parse_args()
    with saying(args.output) as say:
        run(args, say)


if __name__ == "__main__":
    main()
