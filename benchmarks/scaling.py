"""What one model costs: to open, to read, to learn from, to embed; and a million.

Run ``python benchmarks/scaling.py``; `results/scaling.txt` holds what it printed. It
writes 1.3 GB into a temporary folder, and takes about two minutes.
"""

import os
import platform
import tempfile
import time

import joblib
import numpy as np
import torch

from skprobex import LowRankWeights, ProbeXClassifier, open_models, save_models

N_MODELS = {"dense": 300, "adapters": 500}
WIDTH, RANK, N_LAYERS = 768, 16, 24
MILLION, N_WORKERS = 1_000_000, 100


def write(kind, folder):
    """Write models of either kind, a few at a time; return their labels."""
    rng = np.random.default_rng(0)
    y = np.arange(N_MODELS[kind]) % 5
    for start in range(0, len(y), 50):
        labels = y[start : start + 50]
        names = [f"model-{i:05d}" for i in range(start, start + len(labels))]
        if kind == "dense":
            layers = {"layer.weight": draw(rng, labels, (WIDTH, WIDTH))}
        else:
            layers = {
                f"blocks.{i}.weight": LowRankWeights(
                    draw(rng, labels, (WIDTH, RANK)), draw(rng, labels, (RANK, WIDTH))
                )
                for i in range(N_LAYERS)
            }
        save_models(folder, layers, names=names)
    return y


def draw(rng, labels, shape):
    """Draw matrices whose inputs tell the label."""
    W = rng.standard_normal((len(labels), *shape), dtype=np.float32)
    for label in np.unique(labels):
        W[labels == label, :, label * 3 : label * 3 + 3] *= 2
    return W.astype(np.float16)


def timed(function, clock=time.process_time):
    """Seconds of one core, whatever else runs beside; or of another clock."""
    start = clock()
    result = function()
    return clock() - start, result


def measure(kind):
    """Measure seconds of each step."""
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        y = write(kind, folder)
        size = sum(entry.stat().st_size for entry in os.scandir(folder))
        seconds = {}
        seconds["open (all layers)"], models = timed(lambda: open_models(folder))
        W = models[next(iter(models.layers))]
        seconds["read one layer"], _ = timed(lambda: sum(1 for _ in W.batches(cpu)))
        clf = ProbeXClassifier(random_state=0)
        seconds["fit on it"], _ = timed(lambda: clf.fit(W, y))
        seconds["read and embed"], once = timed(lambda: clf.transform(W))
        # What is left to do here while workers read and decompose.
        with joblib.parallel_config("loky", n_jobs=2):
            clf.transform(W)  # starts them
            left, again = timed(lambda: clf.transform(W))
        assert np.array_equal(once, again)
        seconds["of it not given to workers"] = left
    return seconds, size / len(y), W.nbytes / len(y)


def main():
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread a process; float16 files, page cache warm"
    )
    cost = {}
    for kind, n_models in N_MODELS.items():
        seconds, size, layer_size = measure(kind)
        what = "one layer" if kind == "dense" else f"{N_LAYERS} layers of rank {RANK}"
        print(
            f"\n{kind}: {n_models} models, {what}, {WIDTH} x {WIDTH}; "
            f"{size / 2**20:.2f} MiB a model, of which a layer is "
            f"{layer_size / 2**20:.2f}"
        )
        for step, value in seconds.items():
            print(f"  {step:<28}{1e3 * value / n_models:>8.2f} ms of a core a model")
        cost[kind] = (
            seconds["open (all layers)"] / n_models,
            seconds["read and embed"] / n_models,
            layer_size,
        )
    print(f"\n{MILLION:,} models, one layer each, at this price")
    for kind, (opening, embedding, layer_size) in cost.items():
        hours = [MILLION * seconds / 3600 for seconds in (opening, embedding)]
        print(
            f"  {kind:<10}open {hours[0]:.2f} h, embed {hours[1]:.2f} h of one core; "
            f"divided among {N_WORKERS} workers embed "
            f"{60 * hours[1] / N_WORKERS:.1f} min; {layer_size * MILLION / 1e12:.2f} TB"
        )


if __name__ == "__main__":
    main()
