"""What a fit costs, by number and width of the weights: ours, and what else there is.

Every fit runs in a process of its own. See ``python benchmarks/fit.py --help``.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from accuracy import METHODS, machine
from memory import PeakMemory
from output import saying
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skprobex import LowRankWeights, ProbeXClassifier
from skprobex.probing.ridge.probes import MIN_SUBSPACE
from skprobex.probing.ridge.sampling import MAX_COMPARED, MAX_DECOMPOSED
from skprobex.probing.spectral import EXACT_BELOW, N_DIRECTIONS, N_OVERSAMPLES

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
N_TEST = 100
N_CLASSES = 5
N_PROBES = 64
# How much larger a delta is on the inputs of its class: no method finds all of them.
LOUDER, LOUDER_FACTORS = 1.4, 1.8
# Epochs that are timed of a network, after one that is not.
N_EPOCHS = 3


@dataclass(frozen=True)
class Case:
    """Models of one shape; of a rank, held as factors or multiplied out."""

    n_models: int
    width: int
    rank: int | None = None
    multiplied: bool = False

    @property
    def name(self):
        rank = "" if self.rank is None else f"-r{self.rank}"
        return f"{self.n_models}x{self.width}{rank}{'-dense' * self.multiplied}"


CASES = {
    case.name: case
    for case in (
        *(Case(n, 64) for n in (250, 500, 1000, 2000, 4000)),
        *(Case(n, 256) for n in (250, 1000, 4000)),
        *(Case(700, width) for width in (64, 128, 256, 768)),
        *(Case(300, 1280, rank) for rank in (4, 16, 64)),
        Case(300, 1280, 16, multiplied=True),
        Case(1000, 1280, 16),
        Case(1000, 1280, 16, multiplied=True),
    )
}


def flat(model):
    """Put the weights of each model into one row before `model`."""
    return make_pipeline(FunctionTransformer(flatten), model)


def flatten(W):
    """Weights as rows."""
    return W.reshape(len(W), -1)


def pca_logistic(n_models):
    """Logistic regression on 256 principal components."""
    pca = PCA(min(256, n_models), random_state=0)
    return flat(make_pipeline(pca, LogisticRegression(max_iter=1000)))


RIVALS = {
    "default": lambda n_models: ProbeXClassifier(random_state=0),
    "pca-logistic": pca_logistic,
    "ridge-cv": lambda n_models: flat(RidgeClassifierCV(np.logspace(-3, 3, 7))),
}
NETWORKS = ("probex-2025", "mvprobe-2026")

HEADER = (
    f"{'weights':<22}{'method':<14}{'seconds':>9}{'runs':>5}{'peak MB':>9}"
    f"{'accuracy':>10}{'share':>7}{'floor s':>9}{'over':>7}{'epoch s':>9}"
)
LEGEND = f"""\
weights    models x width (square layers), -r16: factors of rank 16, -dense: the same
           multiplied out beforehand
seconds    of the processor, on one thread: about a clock's on an idle machine.
           Of one fit, median. Of a network: NOT RUN to its end, seconds an epoch
           (of {N_EPOCHS} after the first) times the published 500 or 3000 epochs
peak MB    most memory held above Python, libraries and weights
accuracy   on {N_TEST} other models of {N_CLASSES} classes; a network's is not measured
share      of the float32 rate, of the multiplications counted for the default fit
floor s    the longer of these multiplications, and of reading the weights twice;
           over is by how much it was missed"""


def draw(case):
    """Models whose delta is larger on the inputs of their class.

    Returns
    -------
    W : ndarray or LowRankWeights of case.n_models + N_TEST models
    y : ndarray of int
    """
    rng = np.random.default_rng(0)
    n_models, width = case.n_models + N_TEST, case.width
    rank = case.rank or 16
    y = np.arange(n_models) % N_CLASSES
    B = rng.standard_normal((n_models, width, rank), dtype="f")
    A = rng.standard_normal((n_models, rank, width), dtype="f")
    step = width // 16
    for label in range(N_CLASSES):
        louder = LOUDER if case.rank is None else LOUDER_FACTORS
        A[y == label, :, step * label : step * (label + 1)] *= louder
    if case.rank is not None and not case.multiplied:
        return LowRankWeights(B, A), y
    W = np.empty((n_models, width, width), dtype="f")
    for i in range(n_models):
        np.matmul(B[i], A[i], out=W[i])
    if case.rank is None:
        # What all models share, and what is each model's own on all directions.
        base = rng.standard_normal((width, width), dtype="f")
        for w in W:
            w += 10 * base + rng.standard_normal(base.shape, dtype="f")
    return W, y


def fit(case, method):
    """Fit once; print seconds, peak memory and accuracy as JSON."""
    W, y = draw(CASES[case])
    n_models = CASES[case].n_models
    train, labels = W[:n_models], y[:n_models]
    # What a process loads on first use is not the fit's.
    small = np.random.default_rng(0).standard_normal((20, 8, 8), dtype="f")
    ProbeXClassifier().fit(small, np.arange(20) % 2)
    result = {}
    with PeakMemory() as memory:
        if method in NETWORKS:
            once, more = (
                seconds_of(METHODS[method].make(0, n_epochs), train, labels)
                for n_epochs in (1, 1 + N_EPOCHS)
            )
            result["epoch"] = (more - once) / N_EPOCHS
            result["seconds"] = result["epoch"] * METHODS[method].published_epochs
        else:
            estimator = RIVALS[method](n_models)
            result["seconds"] = seconds_of(estimator, train, labels)
    result["peak"] = memory.peak
    if method in RIVALS:
        right = estimator.predict(W[n_models:]) == y[n_models:]
        result["accuracy"] = float(np.mean(right))
    print(json.dumps(result))


def seconds_of(estimator, W, y):
    """Seconds of the processor of a fit."""
    with warnings.catch_warnings():
        # A network that runs a few epochs stops before it converges.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # The published 128 probes are clipped where layers have fewer dimensions.
        warnings.filterwarnings("ignore", "n_probes=128", UserWarning)
        start = time.process_time()
        estimator.fit(W, y)
        return time.process_time() - start


def median_of_runs(case, method, repeats, patience):
    """Run `fit` in processes of its own; no more once they took `patience` seconds."""
    command = [sys.executable, __file__, "--fit", case, method]
    results, start = [], time.perf_counter()
    while len(results) < repeats:
        output = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, env=ONE_THREAD
        ).stdout
        results.append(json.loads(output))
        if time.perf_counter() - start > patience:
            break
    middle = sorted(results, key=lambda result: result["seconds"])[len(results) // 2]
    return middle, len(results)


def measured_rate():
    """Multiplications and additions a second of a float32 product of 2048 rows."""
    square = torch.ones(2048, 2048)
    return 2 * 2048**3 / shortest(lambda: square @ square)


def measured_bandwidth():
    """Bytes read a second, by a sum of 256 MB."""
    array = torch.ones(2**26)
    return 2**28 / shortest(array.sum)


def shortest(call):
    """Seconds of the processor of the fastest of seven calls."""
    seconds = []
    for _ in range(7):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


def counted(case):
    """Operations of the matrix products, and bytes of the weights, of a default fit.

    See README.rst.
    """
    n, d = case.n_models, case.width
    sampled = min(n, MAX_COMPARED)
    is_factored = case.rank is not None and not case.multiplied
    if is_factored:
        k = case.rank
        # The triangle times the other factor, its Gram matrix, and both bases.
        operations, n_bytes = 8 * n * d * k**2, 2 * n * d * k * 4
    elif d <= EXACT_BELOW:
        # The Gram matrix, and the deltas times its eigenvectors.
        k = d
        operations, n_bytes = 4 * n * d**3, 2 * n * d * d * 4
    else:
        k, sketch = N_DIRECTIONS, N_DIRECTIONS + N_OVERSAMPLES
        operations, n_bytes = 4 * n * d**2 * sketch, 2 * n * d * d * 4
        # An orthonormal basis, and the small decomposition.
        operations += 10 * n * d * sketch**2
    p = min(N_PROBES, d)
    m = max(MIN_SUBSPACE, 3 * p)
    if d > m:
        operations += 2 * 6 * sampled * d * k * m
    else:
        m = d
    # Of two normalisations: six second moments, half of each; four symmetric views
    # and the delta, probed.
    operations += 2 * 6 * sampled * k * m**2
    operations += 2 * (6 * 2 * sampled * k * m * p + 5 * 2 * sampled * k * p**2)
    n_symmetric, n_full = p * (p + 1) // 2, p**2
    for n_features in (n_symmetric,) * 4 + (n_full,):
        # The smaller of both sides of the ridge, half of it.
        operations += 2 * sampled * n_features * min(sampled, n_features)
    if n > sampled:
        # Two symmetric views of one side, of all models that are not yet probed.
        operations += 2 * (n - sampled) * (2 * k * d * p + 2 * k * p**2)
        if n <= MAX_DECOMPOSED:
            operations += n * 2 * n_symmetric * min(n, 2 * n_symmetric)
        else:
            # Reduced to the span of some models, and half of a Gram matrix.
            span = 1400
            operations += 2 * n * 2 * n_symmetric * span + n * span**2
    return operations, n_bytes


def is_measured(case, method):
    """Whether a row takes seconds or minutes, and no more memory than there is."""
    if case.rank is not None:
        return method == "default"
    if method == "mvprobe-2026":
        return (case.n_models, case.width) == (700, 256)
    if method == "probex-2025":
        return case.n_models == 700 and case.width >= 256
    return True


def run(args, say):
    """Measure what was asked for, saying each row as it is ready."""
    torch.set_num_threads(1)
    rate, bandwidth = measured_rate(), measured_bandwidth()
    say(machine())
    say(
        f"float32 products: {rate / 1e9:.0f} billion operations a second; reading: "
        f"{bandwidth / 1e9:.1f} GB/s\n{LEGEND}\n\n{HEADER}"
    )
    seconds = {}
    for name in args.cases:
        case = CASES[name]
        operations, n_bytes = counted(case)
        for method in args.methods:
            if not is_measured(case, method):
                continue
            result, n_runs = median_of_runs(name, method, args.repeats, args.patience)
            seconds[name, method] = result["seconds"]
            cells = f"{name:<22}{method:<14}{result['seconds']:>9.2f}{n_runs:>5}"
            cells += f"{result['peak']:>9.0f}"
            if method in RIVALS:
                cells += f"{result['accuracy']:>10.2f}"
            else:
                cells += f"{result['epoch']:>42.2f}"
            if method == "default":
                share = operations / rate / result["seconds"]
                floor = max(operations / rate, n_bytes / bandwidth)
                cells += f"{share:>7.0%}{floor:>9.2f}{result['seconds'] / floor:>6.1f}x"
            say(cells)
    say("")
    for line in ratios(seconds):
        say(line)


def ratios(seconds):
    """Compare the rows that were measured."""
    for (name, method), value in seconds.items():
        default = seconds.get((name, "default"))
        if method != "default" and default:
            yield f"{name}: default takes 1/{value / default:.1f} of {method}"
        dense = seconds.get((f"{name}-dense", method))
        if dense:
            yield f"{name}: {method} takes 1/{dense / value:.1f} of the dense one"
    for width in sorted({case.width for case in CASES.values()}):
        sizes = {
            CASES[name].n_models: value
            for (name, method), value in seconds.items()
            if method == "default" and CASES[name] == Case(CASES[name].n_models, width)
        }
        if len(sizes) > 1:
            small, large = min(sizes), max(sizes)
            growth = np.log(sizes[large] / sizes[small]) / np.log(large / small)
            yield (
                f"width {width}, {small} to {large} models: time grows with "
                f"n^{growth:.2f}"
            )


def main():
    """Print the table and, where asked, write it to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    methods = [*RIVALS, *NETWORKS]
    add("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE")
    add("--methods", nargs="+", default=methods, choices=methods)
    add("--repeats", type=int, default=3, help="runs of a row at most")
    add("--patience", type=float, default=10, help="seconds after which a row ends")
    add("--output", help="text file that also receives the table")
    add("--fit", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fit:
        fit(*args.fit)
        return
    with saying(args.output) as say:
        run(args, say)


if __name__ == "__main__":
    main()
