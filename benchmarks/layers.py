"""Several layers: does fusing them pay, and does the prefilter find the best one?

Run ``python benchmarks/layers.py``; `results/layers.txt` holds what it printed. About
ten minutes on one core; jungles are kept in the data home.
"""

import time
import warnings

import numpy as np

from skprobex import LayerSearchCV, ProbeXClassifier
from skprobex.datasets import make_digit_jungle

SEEDS = range(5)
SIZES = (50, 100, 200, 400)
TEST = slice(800, 1000)
# Of the layers of the wide collection, how many the prefilter keeps.
N_KEPT = 3


def label_accuracy(estimator, W, Y):
    return np.mean(estimator.predict(W) == Y)


def take(layers, rows):
    return {name: W[rows] for name, W in layers.items()}


def fuse():
    print("Fusion: digit jungle, 40 classes, label accuracy on 200 models held out")
    print(
        f"{'models':>8}{'best single layer':>22}{'all layers':>20}"
        f"{'difference':>22}{'worst':>9}  best layers"
    )
    for n_models in SIZES:
        single, fused, best = [], [], []
        for seed in SEEDS:
            jungle = make_digit_jungle(1000, 40, random_state=seed)
            layers, Y = jungle.layers, jungle.target
            clf = ProbeXClassifier(random_state=0)
            scores = {}
            for name, W in layers.items():
                clf.fit(W[:n_models], Y[:n_models])
                scores[name] = label_accuracy(clf, W[TEST], Y[TEST])
            # Known only afterwards.
            best.append(max(scores, key=scores.get))
            single.append(scores[best[-1]])
            clf.fit(take(layers, slice(n_models)), Y[:n_models])
            fused.append(label_accuracy(clf, take(layers, TEST), Y[TEST]))
        gains = np.subtract(fused, single)
        print(
            f"{n_models:>8}{spread(single):>22}{spread(fused):>20}{spread(gains):>22}"
            f"{gains.min():>9.4f}  {', '.join(sorted(set(best)))}",
            flush=True,
        )


def widen(layers, seed):
    """Add 24 layers: noisier and noisier copies of the hidden ones, and noise."""
    rng = np.random.default_rng(seed)
    wide = dict(layers)
    for name in ("hidden1.weight", "hidden2.weight"):
        W = layers[name]
        spread = (W - W.mean(axis=0)).std()
        for level in (0.25, 0.5, 1, 2, 4, 8):
            noise = rng.standard_normal(W.shape, dtype=np.float32)
            wide[f"{name} + noise x {level}"] = W + level * spread * noise
    for i in range(12):
        wide[f"noise {i}"] = rng.standard_normal((len(W), 64, 64), dtype=np.float32)
    return wide


def search(n_models=200):
    print(
        f"\nSearch: 30 layers of {n_models} models, 5 folds; the prefilter keeps "
        f"{N_KEPT}; seconds of one core"
    )
    print(
        f"{'seed':>6}{'all, s':>9}{'prefiltered, s':>16}{'share':>8}"
        f"{'best of all':>32}{'found':>7}{'score lost':>12}{'held out':>10}"
    )
    shares, losses = [], []
    for seed in SEEDS:
        jungle = make_digit_jungle(1000, 40, random_state=seed)
        wide, Y = widen(jungle.layers, seed), jungle.target
        train, held_out = take(wide, slice(n_models)), take(wide, TEST)
        seconds, searches = [], []
        for prefilter in (None, N_KEPT):
            own = LayerSearchCV(
                ProbeXClassifier(random_state=0),
                scoring=label_accuracy,
                refit=False,
                prefilter=prefilter,
            )
            # Not the clock's: other programs may run beside.
            start = time.process_time()
            searches.append(own.fit(train, Y[:n_models]))
            seconds.append(time.process_time() - start)
        full, quick = searches
        shares.append(seconds[1] / seconds[0])
        losses.append(full.best_score_ - full.layer_scores_[quick.best_layer_])
        on_held_out = []
        for name in (full.best_layer_, quick.best_layer_):
            clf = ProbeXClassifier(random_state=0).fit(train[name], Y[:n_models])
            on_held_out.append(label_accuracy(clf, held_out[name], Y[TEST]))
        print(
            f"{seed:>6}{seconds[0]:>9.1f}{seconds[1]:>16.1f}{shares[-1]:>8.2f}"
            f"{full.best_layer_:>32}"
            f"{'yes' if quick.best_layer_ == full.best_layer_ else 'no':>7}"
            f"{losses[-1]:>12.4f}{on_held_out[1] - on_held_out[0]:>+10.4f}",
            flush=True,
        )
    print(
        f"  share of the full search's time {spread(shares, 3)}, worst "
        f"{max(shares):.3f}; score lost {spread(losses)}, worst {max(losses):.4f}"
    )


def spread(values, digits=4):
    return f"{np.mean(values):.{digits}f} +- {np.std(values):.{digits}f}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fuse()
    search()
