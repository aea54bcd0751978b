"""The centre: how far each is from the base, what it costs, and what poison does.

Run ``python benchmarks/centre.py``; `results/centre.txt` holds what it printed. Digit
jungle of 40 classes, whose base is known; accuracy is the share of right labels on 200
other models. ``--help`` lists the options.
"""

import argparse
import time
import warnings

import numpy as np
import torch
from output import saying

from skprobex import ProbeXClassifier
from skprobex.datasets import make_digit_jungle
from skprobex.exceptions import OutlierWarning

LAYERS = ("hidden1.weight", "hidden2.weight")
N_TEST = 200
CENTERS = ("mean", "median", "robust", "the base")
FACTORS = (1e-3, 10, 1e3, 1e6, 1e9)
PARTS = ("centres", "poison")


def split(n_models, n_train, seed):
    """Positions of training and of test models."""
    order = np.random.default_rng(seed).permutation(n_models)
    return order[N_TEST : N_TEST + n_train], order[:N_TEST]


def fit_and_score(jungle, layer, W, train, test, center):
    """Fit on weights W of the training models.

    Returns
    -------
    classifier, accuracy, seconds
    """
    start = time.perf_counter()
    clf = ProbeXClassifier(center=center, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutlierWarning)
        clf.fit(W, jungle.target[train])
    seconds = time.perf_counter() - start
    right = clf.predict(jungle.layers[layer][test]) == jungle.target[test]
    return clf, right.mean(), seconds


def compare_centers(jungle, seeds, say):
    """Distance from the base, accuracy and time of the default with each centre."""
    say(
        f"{'layer':<16}{'models':>6}  {'centre':<10}{'from base':>10}{'accuracy':>10}"
        f"{'std':>7}{'fit s':>8}"
    )
    for layer in LAYERS:
        base = jungle.bases[layer][0]
        for n_train in (50, 100, 200):
            rows = {name: [] for name in CENTERS}
            for seed in seeds:
                train, test = split(len(jungle.data), n_train, seed)
                W = jungle.layers[layer][train]
                given = {"median": np.median(W, axis=0), "the base": base}
                for name in CENTERS:
                    clf, accuracy, seconds = fit_and_score(
                        jungle, layer, W, train, test, given.get(name, name)
                    )
                    distance = np.linalg.norm(clf.center_ - base)
                    rows[name].append((distance, accuracy, seconds))
            for name, values in rows.items():
                distance, accuracy, seconds = np.mean(values, axis=0)
                say(
                    f"{layer:<16}{n_train:>6}  {name:<10}{distance:>10.3f}"
                    f"{accuracy:>10.4f}{np.std(values, axis=0)[1]:>7.4f}{seconds:>8.2f}"
                )


def poison(W, kind, n_poisoned, rng):
    """Copy W, and spoil some of its models.

    Returns
    -------
    W, positions
    """
    W, victims = W.copy(), rng.permutation(len(W))[:n_poisoned]
    if kind == "noise":
        W[victims] = W.std() * rng.standard_normal(W[victims].shape)
    elif kind == "copies":
        W[victims] = W[victims[0]]
    elif kind == "permuted":
        W[victims] = W[victims][:, rng.permutation(W.shape[1])]
    else:
        W[victims] *= np.float32(kind)
    return W, victims


def compare_poison(jungle, seeds, say):
    """Accuracy of the default, and which models it names, with some spoiled."""
    say(
        f"{'layer':<16}{'spoiled':>8}  {'how':<10}{'mean':>8}{'default':>9}{'clean':>8}"
        f"{'named':>7}{'others named':>14}"
    )
    kinds = [(f"x {factor:g}", factor) for factor in FACTORS]
    kinds += [(kind, kind) for kind in ("noise", "permuted", "copies")]
    for layer in LAYERS:
        splits = [split(len(jungle.data), 200, seed) for seed in seeds]
        clean = [
            fit_and_score(jungle, layer, jungle.layers[layer][t], t, test, "auto")[1]
            for t, test in splits
        ]
        for n_poisoned in (1, 10):
            for name, kind in kinds[: None if n_poisoned > 1 else -1]:
                rows = []
                for seed, (train, test) in zip(seeds, splits, strict=True):
                    rng = np.random.default_rng(seed)
                    W, victims = poison(
                        jungle.layers[layer][train], kind, n_poisoned, rng
                    )
                    _, old, _ = fit_and_score(jungle, layer, W, train, test, "mean")
                    clf, new, _ = fit_and_score(jungle, layer, W, train, test, "auto")
                    found = np.isin(clf.outliers_, victims).sum()
                    rows.append((old, new, found, len(clf.outliers_) - found))
                old, new, found, others = np.mean(rows, axis=0)
                say(
                    f"{layer:<16}{n_poisoned:>8}  {name:<10}{old:>8.4f}{new:>9.4f}"
                    f"{np.mean(clean):>8.4f}{found:>7.1f}{others:>14.1f}"
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--poison-seeds", type=int, default=1, help="default: 1")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--output", help="also write what is printed to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    jungle = make_digit_jungle(600, 40, random_state=0)
    with saying(options.output) as say:
        if "centres" in options.parts:
            say("Digit jungle of 40 classes; distances are Frobenius norms")
            say("")
            compare_centers(jungle, range(options.seeds), say)
            say("")
        if "poison" in options.parts:
            say("200 training models, some spoiled; mean: the default, center='mean'")
            say("")
            compare_poison(jungle, range(options.poison_seeds), say)
