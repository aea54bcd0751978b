"""Fits from files and from LoRA factors, against fits from arrays: time and memory.

Every fit runs in a process of its own; its peak is the most memory it held above what
Python, torch and skprobex take before. See ``python benchmarks/memory.py --help``.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version

import numpy as np
from output import saying


def draw_factors(n_models, width, rank=16):
    """Adapters whose inputs tell one of five classes."""
    rng = np.random.default_rng(0)
    y = np.arange(n_models) % 5
    B = rng.normal(size=(n_models, width, rank)).astype("f")
    A = rng.normal(size=(n_models, rank, width)).astype("f")
    for label in range(5):
        A[y == label, :, 30 * label : 30 * (label + 1)] *= 2
    return B, A, y


def write(folder, n_models, width):
    """Write dense models, a few at a time."""
    from skprobex import save_models

    B, A, _ = draw_factors(n_models, width)
    for start in range(0, n_models, 50):
        part = slice(start, min(start + 50, n_models))
        names = [f"model-{i:05d}" for i in range(part.start, part.stop)]
        save_models(folder, {"layer.weight": B[part] @ A[part]}, names=names)


class PeakMemory(threading.Thread):
    """Most resident memory above that at the start, in MB; looks every 2 ms.

    Not ``ru_maxrss``, which begins at what the parent process held.
    """

    def __enter__(self):
        self.before, self.peak, self.is_over = resident_mb(), 0, threading.Event()
        self.start()
        return self

    def __exit__(self, *error):
        self.is_over.set()
        self.join()

    def run(self):
        while not self.is_over.wait(0.002):
            self.peak = max(self.peak, resident_mb() - self.before)


def resident_mb():
    """Resident memory of this process (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def fit(source, folder, n_models, width, settings):
    """Fit once; print seconds, peak memory and some predictions as JSON."""
    from skprobex import LowRankWeights, ProbeXClassifier, open_models

    # What a process loads on first use is not the fit's.
    rng = np.random.default_rng(0)
    ProbeXClassifier().fit(rng.normal(size=(20, 8, 8)).astype("f"), np.arange(20) % 2)
    # The labels need no weights: factors are drawn again where they are asked for.
    y = np.arange(n_models) % 5
    with PeakMemory() as memory:
        if source == "files":
            W = open_models(folder)["layer.weight"]
        elif source == "array":
            W = np.asarray(open_models(folder)["layer.weight"])
        else:
            W = LowRankWeights(*draw_factors(n_models, width)[:2])
        start = time.process_time()
        if source == "product":
            W = W.to_dense()
        clf = ProbeXClassifier(random_state=0, **settings).fit(W, y)
        seconds = time.process_time() - start
    decisions = clf.decision_function(W[:50]).tolist()
    print(json.dumps({"seconds": seconds, "peak": memory.peak, "decisions": decisions}))


def measure(repeats, *args):
    """Run `fit` in processes of its own; medians."""
    command = [sys.executable, __file__, "--fit", json.dumps(args)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.run(command, stdout=subprocess.PIPE, check=True, env=one_thread)
        for _ in range(repeats)
    ]
    results = [json.loads(run.stdout) for run in runs]
    seconds, peak = (
        float(np.median([result[key] for result in results]))
        for key in ("seconds", "peak")
    )
    return seconds, peak, np.array(results[-1]["decisions"])


def compare(say, title, rows, repeats):
    """Say a table of two rows, the second against the first.

    Of each row the arguments of `fit` are given.
    """
    say(f"\n{title}\n{'':<36}{'seconds':>9}{'peak MB':>9}{'faster':>8}{'less':>7}")
    first = None
    for label, args in rows.items():
        seconds, peak, decisions = measure(repeats, *args)
        first = first or (seconds, peak, decisions)
        say(
            f"{label:<36}{seconds:>9.2f}{peak:>9.0f}{first[0] / seconds:>7.1f}x"
            f"{first[1] / peak:>6.1f}x"
        )
    if len({args[2] for args in rows.values()}) == 1:  # the same models
        difference = np.abs(decisions - first[2]).max() / np.abs(first[2]).max()
        say(f"largest difference of decisions, relative: {difference:.0e}")


def run(args, say):
    """Measure fits from files, and from factors."""
    from skprobex.probing.views import VIEWS

    n_models = args.n_models
    say(
        f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {version('torch')}, skprobex "
        f"{version('skprobex')}; medians of {args.repeats} runs\n"
        "seconds of the processor, on one thread: about a clock's on an idle machine"
    )
    with tempfile.TemporaryDirectory() as folder:
        write(folder, n_models, 768)
        rows = {
            "array in memory": ("array", folder, n_models, 768, {}),
            "files, page cache warm": ("files", folder, n_models, 768, {}),
        }
        title = f"{n_models} models, 768 x 768, float32, default settings"
        compare(say, title, rows, args.repeats)
    few, many = args.growth
    with tempfile.TemporaryDirectory() as folder:
        rows = {}
        for count in (few, many):
            part = os.path.join(folder, str(count))
            write(part, count, 768)
            rows[f"{count} files"] = ("files", part, count, 768, {})
        title = f"{few} and {many} files of 768 x 768"
        compare(say, title, rows, args.repeats)
    cases = {f"view {view}": {"views": (view,), "normalize": True} for view in VIEWS}
    cases["default settings: eleven views tried"] = {}
    for name, settings in cases.items():
        # The same centre for both: none.
        settings = {"center": None, **settings}
        rows = {
            "multiplied out, then fitted": ("product", "", n_models, 1280, settings),
            "LowRankWeights": ("factors", "", n_models, 1280, settings),
        }
        title = f"{n_models} models, 1280 x 1280, rank 16, {name}"
        compare(say, title, rows, args.repeats)


def main():
    """Print the tables and, where asked, write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--n-models", type=int, default=300)
    parser.add_argument("--growth", type=int, nargs=2, default=(500, 4000))
    parser.add_argument("--output", help="text file that also receives the tables")
    parser.add_argument("--fit", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fit:
        fit(*json.loads(args.fit))
        return
    with saying(args.output) as say:
        run(args, say)


if __name__ == "__main__":
    main()
