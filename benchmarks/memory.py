"""Fits from files and from factors, against fits from arrays: time and peak memory.

Every fit runs in a process of its own; its peak is the most memory it held above what
Python, torch and skprobex take before. ``python benchmarks/memory.py --help``.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

import numpy as np

CASES = {
    "files": ("dense layer, from memory", "the same, from files"),
    "factors": ("dense layer, from memory", "LoRA factors, from memory"),
}


def draw_models(n_models, width, rank, seed=0):
    """Low-rank deltas whose inputs tell one of five classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(n_models) % 5
    B = rng.normal(size=(n_models, width, rank)).astype("f")
    A = rng.normal(size=(n_models, rank, width)).astype("f")
    for label in range(5):
        A[y == label, :, 30 * label : 30 * (label + 1)] *= 2
    return B, A, y


def write(folder, n_models, width):
    """Write dense models, a few at a time."""
    from skprobex import save_models

    B, A, y = draw_models(n_models, width, 16)
    for start in range(0, n_models, 50):
        part = slice(start, start + 50)
        names = [f"model-{i:05d}" for i in range(*part.indices(n_models))]
        save_models(folder, {"layer.weight": B[part] @ A[part]}, names=names)
    np.save(os.path.join(folder, "labels.npy"), y)


def peak_mb():
    """Peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fit(kind, folder, n_models, width, rank):
    """Fit once, and report seconds, peak memory and predictions."""
    import torch

    from skprobex import LowRankWeights, ProbeXClassifier, open_models

    torch.linalg.eigh(torch.eye(8))  # what torch loads on first use is not the fit's
    baseline = peak_mb()
    if kind == "factors":
        B, A, y = draw_models(n_models, width, rank)
        W = LowRankWeights(B, A)
    elif folder:
        y = np.load(os.path.join(folder, "labels.npy"))
        W = open_models(folder)["layer.weight"]
        W = W if kind == "files" else np.asarray(W)
    else:
        B, A, y = draw_models(n_models, width, rank)
        W = LowRankWeights(B, A).to_dense()
        del B, A
    center = "mean" if folder else None
    clf = ProbeXClassifier(center=center, random_state=0)
    start = time.perf_counter()
    clf.fit(W, y)
    seconds = time.perf_counter() - start
    peak = peak_mb() - baseline
    decisions = clf.decision_function(W[:50]).tolist()
    print(json.dumps({"seconds": seconds, "peak": peak, "decisions": decisions}))


def measure(repeats, *args):
    """Run `fit` in processes of its own; medians."""
    results = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "--fit", *map(str, args)]
        printed = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        results.append(json.loads(printed))
    seconds, peak = (
        float(np.median([result[key] for result in results]))
        for key in ("seconds", "peak")
    )
    return seconds, peak, np.array(results[-1]["decisions"])


def compare(name, rows, repeats):
    """Print a table of two rows, the second against the first."""
    print(f"\n{name}\n{'':<28}{'seconds':>9}{'peak MB':>9}{'faster':>8}{'less':>7}")
    first = None
    for label, args in rows:
        seconds, peak, decisions = measure(repeats, *args)
        first = first or (seconds, peak, decisions)
        print(
            f"{label:<28}{seconds:>9.2f}{peak:>9.0f}{first[0] / seconds:>7.1f}x"
            f"{first[1] / peak:>6.1f}x",
            flush=True,
        )
    difference = np.abs(decisions - first[2]).max() / np.abs(first[2]).max()
    print(f"largest difference of decisions, relative: {difference:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--n-models", type=int, default=300)
    parser.add_argument("--fit", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fit:
        kind, folder, *numbers = args.fit
        fit(kind, "" if folder == "-" else folder, *map(int, numbers))
        return
    n_models = args.n_models
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {version('torch')}, skprobex "
        f"{version('skprobex')}; medians of {args.repeats} runs"
    )
    with tempfile.TemporaryDirectory() as folder:
        write(folder, n_models, 768)
        labels = CASES["files"]
        rows = [
            (labels[0], ("arrays", folder, n_models, 768, 0)),
            (labels[1], ("files", folder, n_models, 768, 0)),
        ]
        compare(f"{n_models} models, 768 x 768, float32", rows, args.repeats)
    labels = CASES["factors"]
    rows = [
        (labels[0], ("arrays", "-", n_models, 1280, 16)),
        (labels[1], ("factors", "-", n_models, 1280, 16)),
    ]
    compare(f"{n_models} models, 1280 x 1280, rank 16", rows, args.repeats)


if __name__ == "__main__":
    main()
