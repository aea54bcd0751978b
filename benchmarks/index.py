"""How long a query to ModelIndex takes, against scikit-learn.

See ``python benchmarks/index.py --help``.
"""

import argparse
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.neighbors import NearestNeighbors

import skprobex
from skprobex import ModelIndex
from skprobex.baselines import FlatDeltas


class Ready(BaseEstimator):
    """Takes embeddings for weights, so that only the index is measured."""

    def transform(self, W):
        return W

    def encode_text(self, texts):
        return np.stack([QUERIES[text] for text in texts])


QUERIES = {}


def draw(n_models, n_dimensions, n_topics=200):
    """Unit rows about topics: embeddings of models come in groups."""
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(n_topics, n_dimensions))
    rows = topics[rng.integers(n_topics, size=n_models)]
    rows += 0.7 * rng.normal(size=rows.shape)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("f4")
    queries = topics[:32] + 0.7 * rng.normal(size=(32, n_dimensions))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    QUERIES.update({f"query {i}": query for i, query in enumerate(queries)})
    return rows


def measure(call, repeats):
    """Median and worst of several calls, in milliseconds; the first is not counted."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1e3 * np.median(seconds), 1e3 * max(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-models", type=int, default=100_000)
    parser.add_argument("--n-dimensions", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    rows = draw(args.n_models, args.n_dimensions)
    names = [f"org/model-{i}" for i in range(len(rows))]
    metadata = [{"downloads": i, "task": f"task-{i % 10}"} for i in range(len(rows))]
    texts = list(QUERIES)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, numpy "
        f"{np.__version__}; {len(rows):,} models, "
        f"{rows.shape[1]} dimensions, k=10, without the encoder"
    )
    print(f"{'':44}{'median ms':>10}{'worst ms':>10}")

    def report(label, call):
        median, worst = measure(call, args.repeats)
        print(f"{label:44}{median:10.2f}{worst:10.2f}", flush=True)

    start = time.perf_counter()
    index = ModelIndex(Ready()).add(rows, names, metadata)
    seconds = {"add": time.perf_counter() - start}
    report("exact, one text", lambda: index.search("query 0"))
    report("exact, 32 texts", lambda: index.search(texts))
    wanted = {"task": "task-3"}
    report("exact, one text, where", lambda: index.search("query 0", where=wanted))

    neighbors = NearestNeighbors(n_neighbors=10, metric="cosine").fit(rows)
    vectors = np.stack(list(QUERIES.values())).astype("f4")
    report("NearestNeighbors, one vector", lambda: neighbors.kneighbors(vectors[:1]))
    report("NearestNeighbors, 32 vectors", lambda: neighbors.kneighbors(vectors))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.safetensors"
        index.set_params(embedder=FlatDeltas())  # of the package, as what is saved is
        for label, call in (
            ("save", lambda: index.save(path)),
            ("load", lambda: skprobex.load(path)),
        ):
            start = time.perf_counter()
            call()
            seconds[label] = time.perf_counter() - start
        size = path.stat().st_size / 1e6
    listed = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    print(f"{listed}; the file has {size:.0f} MB")


if __name__ == "__main__":
    main()
