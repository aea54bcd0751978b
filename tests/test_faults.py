"""Faults: Ctrl-C, full disks, files that change or go, memory that runs out."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import flat

from skprobex import (
    LayerFusion,
    LayerSearchCV,
    LowRankWeights,
    ModelIndex,
    ModelTreeClustering,
    ProbeXClassifier,
    ProbeXEmbedder,
    ProbeXRegressor,
    TreeExperts,
    open_models,
    save_models,
)
from skprobex.baselines import FlatDeltas, WeightStatistics
from skprobex.datasets import make_model_tree
from skprobex.exceptions import FileChangedError, WeightFileError
from skprobex.files._sources import LocalFile
from skprobex.probing import batches as shards
from skprobex.probing import center, deltas
from skprobex.probing.network import inputs
from skprobex.weights import _contract

N = 24
W, y = make_model_tree(N, (12, 8), view="xtxu", random_state=0, return_X_y=True)
VECTORS = np.random.default_rng(0).standard_normal((3, 4))[y]
ADAM = {"solver": "adam", "n_probes": 4, "projection_dim": 4, "random_state": 0}


# Ctrl-C


def interrupt_after(monkeypatch, n_epochs):
    calls = []

    def update(self, n, **shown):
        calls.append(shown)
        if len(calls) == n_epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr("skprobex._base.ProgressBar.update", update)


@pytest.mark.filterwarnings("ignore:The adam solver reached max_iter")
def test_an_interrupted_embedder_is_fitted_and_warns(monkeypatch):
    options = ADAM | {"views": ("xu",), "normalize": True}
    expected = ProbeXEmbedder(**flat(**options, max_iter=3)).fit(W, VECTORS)
    interrupt_after(monkeypatch, 3)
    with pytest.warns(UserWarning, match="interrupted by user after 3 epochs"):
        embedder = ProbeXEmbedder(**flat(**options, max_iter=50)).fit(W, VECTORS)
    np.testing.assert_array_equal(embedder.transform(W), expected.transform(W))
    np.testing.assert_array_equal(embedder.predict(W), expected.predict(W))


def test_an_interrupted_embedder_keeps_the_best_epoch(monkeypatch):
    """Ctrl-C long after the best one: its weights come back."""
    options = ADAM | {
        "views": ("xu",),
        "normalize": True,
        "early_stopping": True,
        "validation_fraction": 0.3,
        "learning_rate_init": 0.1,
    }
    never = {"n_iter_no_change": 99, "max_iter": 50}
    interrupt_after(monkeypatch, 12)
    with pytest.warns(UserWarning, match="interrupted by user after 12 epochs"):
        embedder = ProbeXEmbedder(**flat(**options, **never)).fit(W, VECTORS)
    # The last epoch's validation had not begun when it was interrupted.
    scores = embedder.validation_scores_
    assert len(scores) == 11
    best = int(np.argmax(scores)) + 1
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="has not converged"):
        expected = ProbeXEmbedder(
            **flat(**options | {"max_iter": best, "n_iter_no_change": 99})
        ).fit(W, VECTORS)
    np.testing.assert_array_equal(embedder.transform(W), expected.transform(W))


def test_interrupting_a_closed_form_leaves_the_estimator_as_it_was(monkeypatch):
    fitted = ProbeXClassifier().fit(W, y)
    expected = fitted.predict_proba(W)
    before = dict(vars(fitted))

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(deltas, "decompose", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fitted.fit(W[:, ::-1], 2 - y)
    assert vars(fitted) == before
    np.testing.assert_array_equal(fitted.predict_proba(W), expected)


# A full disk


FILL = """
import resource, sys, warnings
from pathlib import Path
import numpy as np
import skprobex
from skprobex.datasets import _cache
from skprobex.files._range_cache import RangeCache

folder = Path(sys.argv[1])
W = np.random.default_rng(0).standard_normal((12, 64, 64))
y = np.arange(12) % 2
expert = skprobex.ProbeXClassifier(views=("xu",)).fit(W, y)
build = lambda: {"a": W}
cache = RangeCache(folder / "ranges")
# Files may not grow beyond 10 kB from here on.
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
said = []
for write in (
    lambda: expert.save(folder / "expert"),
    lambda: skprobex.save_models(folder / "models", {"w": W}),
):
    try:
        write()
    except OSError as error:
        said.append(error.strerror)
assert said == ["File too large"] * 2, said
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    built = _cache.load_or_build("big", {}, build, folder)
assert "could not be cached" in str(caught[0].message), caught
np.testing.assert_array_equal(built["a"], W)
cache.write("http://x", "tag", 0, bytes(20_000))
assert cache.read("http://x", "tag", 0, 20_000) is None
cache.write("http://x", "tag", 0, bytes(2_000))
assert cache.read("http://x", "tag", 0, 2_000) == bytes(2_000)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_full_disk_leaves_the_old_files_and_no_others(tmp_path):
    """A real limit of the system on what may be written, in a process of its own."""
    old = {"expert": b"old", "models/model_0000.safetensors": b"old"}
    for name, content in old.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    here = str(Path(__file__).parents[1])
    subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": here},
        check=True,
    )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    left = {str(path.relative_to(tmp_path)): path for path in files}
    ranges = [name for name in left if name.startswith("ranges")]
    assert len(ranges) == 1
    # That only one process trains a jungle is a lock, which has no content.
    locks = {name for name in left if name.endswith(".lock")}
    assert all(left[name].stat().st_size == 0 for name in locks)
    assert set(left) - locks == {*old, *ranges}
    for name, content in old.items():
        assert left[name].read_bytes() == content


# Files that change, or go, between passes of a fit


@pytest.fixture
def lazy(tmp_path, monkeypatch):
    """Layers in files that no pass holds on to, in batches of some models."""
    save_models(tmp_path, {"a.weight": W, "b.weight": W[:, ::-1].copy()})
    monkeypatch.setattr(deltas, "CACHE_BYTES", 0)
    monkeypatch.setattr(inputs, "HELD_BYTES", 0)
    monkeypatch.setattr(_contract, "BATCH_BYTES", 7 * W[0].nbytes)
    return open_models(tmp_path)


def touch(path):
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


FAULTS = {
    "touched": (touch, FileChangedError, "has changed since it was opened"),
    "grown": (grow, FileChangedError, "has changed since it was opened"),
    "gone": (Path.unlink, WeightFileError, "was there when the models were opened"),
}
LAZY_FITS = {
    "classifier": ProbeXClassifier(),
    "regressor": ProbeXRegressor(),
    "adam": ProbeXClassifier(**flat(**ADAM, max_iter=3)),
    "embedder": ProbeXEmbedder(),
    "embedder, adam": ProbeXEmbedder(**flat(**ADAM, max_iter=3)),
    "experts": TreeExperts(ProbeXClassifier()),
    "trees": ModelTreeClustering(),
    "deltas": FlatDeltas(),
    "fusion": LayerFusion(),
    "search": LayerSearchCV(ProbeXClassifier(), cv=2, error_score="raise"),
}


def fit(name, models):
    several = name in ("fusion", "search")
    layers = models if several else models["a.weight"]
    targets = VECTORS if name.startswith("embedder") else y
    return LAZY_FITS[name].fit(layers, targets)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", LAZY_FITS)
def test_a_file_that_changes_between_passes(name, fault, lazy, tmp_path, monkeypatch):
    damage, error, said = FAULTS[fault]
    victim = tmp_path / "model_0005.safetensors"
    reads = []
    read = LocalFile.read_into

    def count(self, start, view):
        if self.path == str(victim):
            if reads:
                damage(victim)  # after the first pass, before the next
                monkeypatch.setattr(LocalFile, "read_into", read)
            reads.append(start)
        return read(self, start, view)

    monkeypatch.setattr(LocalFile, "read_into", count)
    estimator = LAZY_FITS[name]
    with pytest.raises(error, match=rf"model_0005\.safetensors.*{said}"):
        fit(name, lazy)
    assert len(reads) == 2
    assert not [attribute for attribute in vars(estimator) if attribute.endswith("_")]


def test_nothing_is_added_to_an_index_from_a_file_that_goes(lazy, tmp_path):
    embedder = ProbeXEmbedder().fit(W, VECTORS)
    index = ModelIndex(embedder, batch_size=4).add(W, [f"old-{i}" for i in range(N)])
    before = index.embeddings_.copy()
    (tmp_path / "model_0023.safetensors").unlink()
    with pytest.raises(WeightFileError, match="model_0023"):
        index.add(lazy["a.weight"])
    assert len(index) == N
    np.testing.assert_array_equal(index.embeddings_, before)


def test_one_pass_reads_one_state(lazy, tmp_path):
    """What is read once is read of files that are still the ones opened."""
    touch(tmp_path / "model_0005.safetensors")
    with pytest.raises(FileChangedError, match="model_0005"):
        WeightStatistics().fit(lazy["a.weight"])


# Memory of a GPU


def limited(function, n_models):
    """As if the device had memory for so many models."""
    sizes = []

    def wrapper(batch, *constants):
        size = len(batch[0]) if isinstance(batch, tuple) else len(batch)
        if size > n_models:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        sizes.append(size)
        return function(batch, *constants)

    return wrapper, sizes


ADAPTERS = LowRankWeights(W[:, :, :2], W[:, :2])


@pytest.mark.parametrize("weights", [W, ADAPTERS], ids=["dense", "low-rank"])
def test_out_of_memory_halves_the_batch(weights, monkeypatch):
    expected = ProbeXClassifier().fit(weights, y)
    decompose, sizes = limited(deltas.decompose_models, 4)
    sketch, _ = limited(center.sketches_and_sizes, 4)
    monkeypatch.setattr(deltas, "decompose_models", decompose)
    monkeypatch.setattr(center, "sketches_and_sizes", sketch)
    fitted = ProbeXClassifier().fit(weights, y)
    assert sizes == [3] * 8
    assert fitted.views_ == expected.views_
    np.testing.assert_allclose(
        fitted.decision_function(weights),
        expected.decision_function(weights),
        rtol=0,
        atol=1e-3,
    )


def test_out_of_memory_for_one_model_says_what_to_do(monkeypatch):
    decompose, _ = limited(deltas.decompose_models, 0)
    monkeypatch.setattr(deltas, "decompose_models", decompose)
    estimator = ProbeXClassifier()
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"no room for one.*cpu"):
        estimator.fit(W, y)
    assert not hasattr(estimator, "coef_")


def test_out_of_memory_in_training_says_what_to_lower(monkeypatch):
    def fail(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("skprobex.probing.tasks.Task.loss", fail)
    options = ADAM | {"views": ("xu",), "normalize": True}
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"Lower batch_size \(24\)"):
        ProbeXClassifier(**flat(**options)).fit(W, y)


def test_parts_come_in_order():
    def lengths(batch):
        if len(batch) > 2:
            raise torch.cuda.OutOfMemoryError
        return batch.tolist()

    parts = shards.apply_in_parts(lengths, torch.arange(7), ())
    assert [i for part in parts for i in part] == list(range(7))
