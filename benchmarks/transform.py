"""Models embedded a second: from memory, from files, and against reading alone.

Everything is in one process, in turns, so that all rows see the same machine. See
``python benchmarks/transform.py --help``.
"""

import argparse
import tempfile
import time

import numpy as np
import torch
from accuracy import machine
from output import saying

from skprobex import LowRankWeights, ProbeXClassifier, open_models, save_models

RANK = 16
CASES = {
    "300 dense 768 x 768": (300, 768, False),
    "1000 LoRA 1280 x 1280": (1000, 1280, True),
}
LEGEND = """\
models a second of one thread, by the processor's clock; the better of turns; float32
files, page cache warm"""


def draw(n_models, width, is_low_rank):
    """Models whose inputs tell one of five classes."""
    rng = np.random.default_rng(0)
    y = np.arange(n_models) % 5
    B = rng.standard_normal((n_models, width, RANK), dtype="f")
    A = rng.standard_normal((n_models, RANK, width), dtype="f")
    for label in range(5):
        A[y == label, :, 30 * label : 30 * (label + 1)] *= 2
    return (LowRankWeights(B, A) if is_low_rank else B @ A), y


def seconds_of(call):
    """Seconds of the processor."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(n_models, width, is_low_rank, turns):
    """Seconds of each way, and how many bytes a model has.

    Returns
    -------
    seconds : dict of str to float
    n_bytes : float
    """
    W, y = draw(n_models, width, is_low_rank)
    clf = ProbeXClassifier(random_state=0).fit(W, y)
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, n_models, 50):
            part = slice(start, start + 50)
            names = [f"model-{i:05d}" for i in range(n_models)[part]]
            save_models(folder, {"layer.weight": W[part]}, names=names)
        lazy = open_models(folder)["layer.weight"]

        def read():
            for _ in lazy.batches(cpu):
                pass

        ways = {
            "read alone": read,
            "transform, memory": lambda: clf.transform(W),
            "transform, files": lambda: clf.transform(lazy),
            "predict_proba, memory": lambda: clf.predict_proba(W),
        }
        taken = [
            {name: seconds_of(call) for name, call in ways.items()}
            for _ in range(turns)
        ]
        best = {name: min(turn[name] for turn in taken) for name in ways}
        return best, lazy.nbytes / n_models


def main():
    """Print the table and, where asked, write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", help="text file that also receives the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with saying(args.output) as say:
        say(f"{machine()}\n{LEGEND}")
        for title, case in CASES.items():
            seconds, n_bytes = measure(*case, args.turns)
            say(f"\n{title}, {n_bytes / 2**20:.2f} MiB a model")
            for way, value in seconds.items():
                rate = case[0] / value
                say(
                    f"  {way:<24}{rate:>8.0f} models/s{rate * n_bytes / 1e9:>7.2f} GB/s"
                    f"{value / seconds['read alone']:>7.1f} x reading"
                )


if __name__ == "__main__":
    main()
