"""What digit networks were trained on, read without a single labelled model.

Run ``OMP_NUM_THREADS=1 python benchmarks/simulation.py --seeds 2``;
`results/simulation.txt` holds what it printed, in under ten minutes.
"""

import argparse
import os
import platform
import time

import numpy as np
import torch
from output import saying
from sklearn.metrics import roc_auc_score

from skprobex import ProbeXClassifier
from skprobex.datasets import make_digit_jungle
from skprobex.datasets._digit_training import draw_images
from skprobex.simulation import (
    RandomHead,
    collect_activations,
    collect_gradients,
    score_examples,
    simulate_models,
)

LAYERS = ("hidden1", "hidden2")
N_TRAIN, N_TEST = 400, 200


def base_of(jungle):
    """The two layers that the jungle's networks were fine-tuned from."""
    base = torch.nn.Sequential()
    for name in LAYERS:
        base.add_module(name, torch.nn.Linear(64, 64))
        base.add_module(f"relu_{name}", torch.nn.ReLU())
    base.load_state_dict(
        {n: torch.from_numpy(v[0]) for n, v in jungle.bases.items() if "hidden" in n}
    )
    return base


def pick(classes, n_each, rng):
    """Positions of `n_each` examples of each class, or of all there are."""
    groups = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    return np.concatenate([rng.permutation(group)[:n_each] for group in groups])


def read(deltas, target, simulated):
    """AUC and accuracy of an expert on simulated models, asked of real ones.

    A model is said to know a class if it scores above the median of all models.
    """
    clf = ProbeXClassifier(random_state=0).fit(simulated.data, simulated.target)
    return measure(clf.decision_function(deltas), target)


def measure(decisions, target):
    above = decisions > np.median(decisions, axis=0)
    auc = roc_auc_score(target, decisions, average="macro")
    return auc, np.mean(above == (target > 0))


def moments(kind, base, layer, images, classes):
    if kind == "activations":
        return collect_activations(base, layer, images, classes)
    of_class = {c: images[classes == c] for c in np.unique(classes)}
    return collect_gradients(base, layer, of_class, RandomHead())


def say_row(say, *cells):
    say("{:>7} {:<8} {:<22} {:>8} {:>6} {:>9}".format(*cells))


def without_labels(jungle, n_classes, args, say):
    """The table: zero labelled models, beside as many as the jungle has."""
    base = base_of(jungle)
    images, classes = draw_images(n_classes, np.random.RandomState(0))[2:]
    classes = classes.numpy()
    for layer in LAYERS:
        name = f"{layer}.weight"
        deltas = jungle.layers[name] - jungle.bases[name][0]
        test, target = deltas[N_TRAIN:], jungle.target[N_TRAIN:]
        for kind in ("activations", "gradients"):
            for n_each in (5, 36):
                found = []
                for seed in range(args.seeds):
                    rows = pick(classes, n_each, np.random.default_rng(seed))
                    X = moments(kind, base, layer, images[rows], classes[rows])
                    simulated = simulate_models(X, n_models=1000, random_state=seed)
                    found.append(read(test, target, simulated))
                auc, accuracy = np.mean(found, axis=0)
                cells = n_classes, layer, kind, n_each, f"{auc:.3f}", f"{accuracy:.3f}"
                say_row(say, *cells)
        clf = ProbeXClassifier(random_state=0)
        clf.fit(deltas[:N_TRAIN], jungle.target[:N_TRAIN])
        auc, accuracy = measure(clf.decision_function(test), target)
        kind = f"{N_TRAIN} labelled models"
        say_row(say, n_classes, layer, kind, "-", f"{auc:.3f}", f"{accuracy:.3f}")


def single_examples(jungle, say):
    """AUC of `score_examples`: own classes, and own examples among their class."""
    base = base_of(jungle)
    drawn = draw_images(10, np.random.RandomState(0))
    rng = np.random.default_rng(0)
    rows = [pick(classes.numpy(), 36, rng) for classes in drawn[1::2]]
    images = torch.cat([drawn[0][rows[0]], drawn[2][rows[1]]])
    classes = np.concatenate([drawn[1][rows[0]], drawn[3][rows[1]]])
    was_trained_on = np.arange(len(images)) < len(rows[0])
    target = jungle.target[N_TRAIN:]
    for layer in LAYERS:
        name = f"{layer}.weight"
        deltas = jungle.layers[name][N_TRAIN:] - jungle.bases[name][0]
        scores = score_examples(deltas, collect_activations(base, layer, images))
        is_own = target[:, classes] > 0
        own = [roc_auc_score(*pair) for pair in zip(is_own, scores, strict=True)]
        among = [
            roc_auc_score(was_trained_on[here], row[here])
            for row, known in zip(scores, target, strict=True)
            for c in np.flatnonzero(known)
            for here in [classes == c]
        ]
        say(f"{layer:<8} {np.mean(own):>9.3f} {np.mean(among):>16.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="draws of the examples")
    parser.add_argument("--n-classes", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--output", help="a file for the tables as well")
    args = parser.parse_args()
    start = time.perf_counter()
    jungles = {n: make_digit_jungle(N_TRAIN + N_TEST, n) for n in args.n_classes}
    with saying(args.output) as say:
        say(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
        say(
            f"{N_TEST} real fine-tunes, read by ProbeXClassifier(random_state=0) "
            f"fitted on 1000 simulated models; mean of {args.seeds} draws of held-out "
            "examples. Accuracy at the median."
        )
        say_row(say, "classes", "layer", "from", "examples", "AUC", "accuracy")
        for n_classes, jungle in jungles.items():
            without_labels(jungle, n_classes, args, say)
        say("")
        say(
            "score_examples on 10 classes, AUC: examples of the model's own classes "
            "among all; those it was trained on among held-out ones of their class."
        )
        say(f"{'layer':<8} {'own class':>9} {'own in its class':>16}")
        single_examples(jungles.get(10) or make_digit_jungle(N_TRAIN + N_TEST), say)
        say(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
