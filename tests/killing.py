"""Kill processes at random moments while they write.

As a script it prints, for each kind of file, what 50 kills left of it. Its processes
are forks of one that has imported everything and runs no threads.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np

import skprobex
from skprobex import ModelIndex, ProbeXClassifier, ProbeXEmbedder, open_models
from skprobex.datasets import _cache
from skprobex.files import save_models
from skprobex.files._range_cache import RangeCache
from skprobex.layers._evaluation import map_layers

N_KILLS = 50
OLD, NEW = 1, 2


def value_of(*arrays):
    """Return the one value that the arrays are full of."""
    values = {value for array in arrays for value in np.unique(array).tolist()}
    assert len(values) == 1, f"half of it old, half of it new: {values}"
    return values.pop()


# Each of these returns two functions: one writes a value, the other reads which value
# is there, and raises an error where that is neither the old one nor the new.


def estimator(folder):
    def write(value):
        ProbeXClassifier(center=np.full((300, 400), value)).save(folder / "saved")

    def read():
        return value_of(skprobex.load(folder / "saved").center)

    return write, read


def index(folder):
    W = np.random.default_rng(0).normal(size=(300, 8, 6))
    embedder = ProbeXEmbedder(n_components=4).fit(W)
    indices = {}
    for value, own in ((OLD, W), (NEW, W[::-1])):
        names = [f"{value}-{i}" for i in range(len(W))]
        metadata = [{"value": value, "card": "words " * 50}] * len(W)
        indices[value] = ModelIndex(embedder).add(own, names, metadata)

    def write(value):
        indices[value].save(folder / "index")

    def read():
        loaded = skprobex.load(folder / "index")
        value = int(loaded.names[0].split("-")[0])
        expected = indices[value]
        assert loaded.names == expected.names
        np.testing.assert_array_equal(loaded.embeddings_, expected.embeddings_)
        found = loaded.search(W[:1], k=300).metadata[0]
        assert value_of([entry["value"] for entry in found]) == value
        return value

    return write, read


def models(folder):
    def write(value):
        weights = {"w": np.full((4, 200, 100), value)}
        save_models(folder, weights, metadata=[{"value": value}] * 4)

    def read():
        found = open_models(folder)
        assert len(found) == 4
        # Each model is a file: some may be old and others new.
        values = [value_of(weights) for weights in found["w"]]
        assert values == [int(entry["value"]) for entry in found.metadata]
        return values

    return write, read


def remote_range(folder):
    cache, n_bytes = RangeCache(folder), 2**18

    def write(value):
        cache.write("url", "tag", 0, bytes([value]) * n_bytes)

    def read():
        return value_of(np.frombuffer(cache.read("url", "tag", 0, n_bytes), "u1"))

    return write, read


def remote_facts(folder):
    cache, n_bytes = RangeCache(folder), 2**16

    def write(value):
        cache.write_facts("url", value, str(value), bytes([value]) * n_bytes)

    def read():
        size, tag, first = cache.read_facts("url")
        assert len(first) == n_bytes
        return value_of([size, int(tag)], np.frombuffer(first, "u1"))

    return write, read


def dataset(folder):
    numbers = itertools.count()

    def write(value):
        # Nothing is written twice: each number is another data set.
        def build():
            return {name: np.full(20_000, value) for name in "WY"}

        _cache.load_or_build("arrays", {"number": next(numbers)}, build, folder)

    def read():
        paths = list(folder.rglob("*.npz"))
        for path in paths:
            value_of(*_cache._read(path).values())
            path.unlink()
        return len(paths)

    return write, read


class Work:
    """What is done with a layer; each number is another search."""

    n_calls = 0

    def __init__(self, number):
        self.number = number

    def __call__(self, name, layer):
        Work.n_calls += 1
        return layer + self.number


def layer_memory(folder):
    # Different ones: a layer like another is not looked at twice.
    layers = {name: np.full(20_000, i) for i, name in enumerate("abc")}
    numbers = itertools.count()

    def search():
        """Search as nobody did before; return for how many layers."""
        before, number = Work.n_calls, next(numbers)
        results = map_layers(
            Work(number), layers, list(layers), memory=folder, n_jobs=1, verbose=0
        )
        assert [value_of(result) - number for result in results] == [0, 1, 2]
        return Work.n_calls - before

    def write(value):
        search()

    def read():
        n_kept = 0
        while (n_done := search()) < len(layers):
            n_kept += len(layers) - n_done
        return n_kept

    return write, read


KINDS = [estimator, index, models, remote_range, remote_facts, dataset, layer_memory]


def kill_while_writing(kind, folder):
    """Kill writers of one kind; return what each left, and how many left parts."""
    folder.mkdir()
    write, read = kind(folder)
    write(OLD)
    start = time.perf_counter()
    for value in (NEW, OLD):
        write(value)
    # Long enough to write several times; in a fork the first takes longer.
    longest = max(2 * (time.perf_counter() - start), 0.02)
    random.seed(0)
    states, parts = [], set()
    for _ in range(N_KILLS):
        child = os.fork()
        if child == 0:
            try:
                for value in itertools.cycle((NEW, OLD)):
                    write(value)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        time.sleep(random.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer had ended by itself"
        left = {str(path) for path in folder.rglob("*") if is_part(path)}
        parts |= left
        states.append(read())
    return states, len(parts)


def is_part(path):
    # joblib's names end with the process.
    return path.name.startswith(".") or "-pid-" in path.name


if __name__ == "__main__":
    outcomes = {}
    for kind in KINDS:
        try:
            outcomes[kind.__name__] = kill_while_writing(
                kind, Path(sys.argv[1]) / kind.__name__
            )
        except Exception:
            outcomes[kind.__name__] = traceback.format_exc()
    print(json.dumps(outcomes))
