"""The same answers whoever computes them: processes, threads, and a cluster of dask."""

import os
import signal
import threading
from contextlib import contextmanager

import joblib
import numpy as np
import pytest

from skprobex import (
    LayerSearchCV,
    LowRankWeights,
    ProbeXClassifier,
    ProbeXRegressor,
    open_models,
    save_models,
)
from skprobex.exceptions import FileChangedError
from skprobex.probing import batches
from skprobex.weights import _contract

LAYERS = ["dense.weight", "dense.bias", "lora.weight"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    dense = rng.normal(size=(90, 20, 16)).astype("f")
    dense[y == 0, :, :2] *= 2
    dense[y == 1, :, 2:4] *= 2
    B = rng.normal(size=(90, 20, 3)).astype("f")
    A = rng.normal(size=(90, 3, 16)).astype("f") * (1 + (y == 2))[:, None, None]
    layers = {
        "dense.weight": dense,
        "dense.bias": dense[:, :, 0],
        "lora.weight": LowRankWeights(B, A.astype("f")),
    }
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, layers, metadata=[{"label": int(label)} for label in y])
    return folder


@pytest.fixture
def models(folder, monkeypatch):
    # Batches of a few models, so that there are several.
    monkeypatch.setattr(_contract, "BATCH_BYTES", 20 * 16 * 4 * 7)
    return open_models(folder)


def fit_all(models):
    """What a fit from files learns and answers, of every kind of layer and of all."""
    y = models.labels("label")
    answers = []
    for W in (*(models[layer] for layer in LAYERS), models):
        clf = ProbeXClassifier(random_state=0).fit(W, y)
        answers += [clf.transform(W), clf.decision_function(W)]
    # A centre that must be computed, of factors.
    reg = ProbeXRegressor(center="mean", random_state=0)
    answers.append(
        reg.fit(models["lora.weight"], 1.0 * y).predict(models["lora.weight"])
    )
    return [*answers, reg.center_]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def dispatched(monkeypatch):
    """Numbers of batches that were given out at once."""
    sizes, parallel = [], joblib.Parallel.__call__

    def spy(self, iterable):
        tasks = list(iterable)
        sizes.append(len(tasks))
        return parallel(self, tasks)

    monkeypatch.setattr(joblib.Parallel, "__call__", spy)
    return sizes


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_workers_fit_what_one_process_fits(backend, models, dispatched):
    expected = fit_all(models)
    assert dispatched == []
    with joblib.parallel_config(backend, n_jobs=2):
        assert_same(fit_all(models), expected)
    # No more in flight than a window of them.
    assert max(dispatched) == 2 * batches.BATCHES_AHEAD < 90 // 7


def test_within_a_worker_a_fit_stays_there(models, dispatched):
    W, y = models["dense.weight"], models.labels("label")

    def fit():
        return batches.count_workers(), ProbeXClassifier(random_state=0).fit(W, y).coef_

    expected = fit()
    for backend in ("loky", "threading"):
        dispatched.clear()
        with joblib.parallel_config(backend, n_jobs=2):
            assert batches.count_workers() == 2
            found = joblib.Parallel()(joblib.delayed(fit)() for _ in range(2))
        assert dispatched == [2]
        for n_workers, coef in found:
            assert n_workers == 1
            # Processes have batches of the usual size, and round differently.
            np.testing.assert_allclose(coef, expected[1], rtol=0.01, atol=1e-3)


def test_errors_of_workers_name_the_file(folder, models, tmp_path):
    save_models(tmp_path, {"w": np.ones((20, 20, 16))})
    W = open_models(tmp_path)["w"]
    victim = sorted(tmp_path.glob("*.safetensors"))[9]
    victim.write_bytes(victim.read_bytes() + b"0")
    with (
        joblib.parallel_config("loky", n_jobs=2),
        pytest.raises(FileChangedError, match=victim.name),
    ):
        ProbeXClassifier().fit(W, np.arange(20) % 2)


@contextmanager
def two_workers():
    """A cluster of two processes on this machine, and its client."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit=None,
            dashboard_address=":0",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def client():
    with two_workers() as client:
        yield client


def make_search():
    return LayerSearchCV(ProbeXClassifier(random_state=0), cv=3)


def search_all(models):
    search = make_search().fit(models, models.labels("label"))
    scores = [
        values
        for key, values in search.cv_results_.items()
        if key.endswith("score") and "time" not in key
    ]
    return [*scores, search.predict_proba(models)]


def test_a_cluster_gives_the_same_answers(client, models):
    expected = [*search_all(models), *fit_all(models)]
    with joblib.parallel_config("dask"):
        assert batches.count_workers() == 2
        assert_same([*search_all(models), *fit_all(models)], expected)


def test_a_cluster_is_sent_layers_not_folds(client, models):
    """Folds would take what a worker has read to the others."""
    stream = pytest.importorskip("distributed").get_task_stream(client, plot=False)
    with stream, joblib.parallel_config("dask"):
        make_search().set_params(refit=False).fit(models, models.labels("label"))
    assert len(stream.data) == len(LAYERS)


def test_a_cluster_is_prefiltered_and_keeps(client, models, tmp_path):
    y = models.labels("label")
    search = make_search().set_params(prefilter=2, memory=tmp_path)
    expected = search.fit(models, y).layer_scores_
    n_kept = len(list(tmp_path.rglob("output.pkl")))
    assert n_kept == 3 + 2
    with joblib.parallel_config("dask"):
        assert search.fit(models, y).layer_scores_ == expected
    assert len(list(tmp_path.rglob("output.pkl"))) == n_kept


@pytest.mark.parametrize("work", [search_all, fit_all])
def test_a_killed_worker_loses_nothing(work, models):
    expected = work(models)
    killed, is_done = [], threading.Event()

    def kill_while_it_works(client):
        pids = client.run(os.getpid)
        while not (killed or is_done.wait(0.001)):
            tasks = client.processing()
            busy = max(tasks, key=lambda worker: len(tasks[worker]))
            if tasks[busy]:
                os.kill(pids[busy], signal.SIGKILL)
                killed.append(pids[busy])

    with two_workers() as client:
        killer = threading.Thread(target=kill_while_it_works, args=(client,))
        killer.start()
        with joblib.parallel_config("dask"):
            found = work(models)
        is_done.set()
        killer.join()
        assert killed and killed[0] not in client.run(os.getpid).values()
    assert_same(found, expected)
