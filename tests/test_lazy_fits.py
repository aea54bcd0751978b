"""Estimators on layers that stay in their files."""

import pickle

import numpy as np
import pytest
from networks import flat
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split

from skprobex import (
    LayerWeights,
    LowRankWeights,
    ProbeXClassifier,
    ProbeXRegressor,
    open_models,
    save_models,
)
from skprobex.baselines import WeightStatistics, make_dense_expert
from skprobex.datasets import make_model_tree
from skprobex.exceptions import FileChangedError
from skprobex.probing.network import inputs
from skprobex.weights import _contract


@pytest.fixture(scope="module")
def tree():
    return make_model_tree(
        48, (12, 8), n_classes=3, view="xtxu", random_state=0, return_X_y=True
    )


@pytest.fixture(scope="module")
def folder(tree, tmp_path_factory):
    W, y = tree
    rng = np.random.default_rng(0)
    kernels = W.reshape(48, 12, 2, 2, 2)
    adapters = LowRankWeights(
        rng.normal(size=(48, 12, 3)).astype("f"),
        (rng.normal(size=(48, 3, 8)) * (1 + 2 * (y[:, None, None] == 0))).astype("f"),
        scale=0.5,
    )
    layers = {
        "dense.weight": W,
        "conv.weight": kernels,
        "dense.bias": W[:, :, 0],
        "lora.weight": adapters,
    }
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, layers, metadata=[{"label": int(label)} for label in y])
    return folder


@pytest.fixture
def models(folder, monkeypatch):
    # Batches of a few models, so that there are several.
    monkeypatch.setattr(_contract, "BATCH_BYTES", 4000)
    return open_models(folder)


@pytest.mark.filterwarnings("ignore:The adam solver reached max_iter")
@pytest.mark.parametrize("solver", ["ridge", "adam"])
@pytest.mark.parametrize(
    "layer", ["dense.weight", "conv.weight", "dense.bias", "lora.weight"]
)
def test_the_same_fit_as_in_memory(models, tree, layer, solver):
    y = tree[1]
    lazy = models[layer]
    assert isinstance(lazy, LayerWeights)
    settings = {"solver": solver, "max_iter": 5, "random_state": 0}
    fitted = ProbeXClassifier(**flat(**settings)).fit(lazy, y)
    expected = ProbeXClassifier(**flat(**settings)).fit(lazy.load(), y)
    for method in ("decision_function", "transform"):
        np.testing.assert_allclose(
            getattr(fitted, method)(lazy),
            getattr(expected, method)(lazy.load()),
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.filterwarnings("ignore:The adam solver reached max_iter")
@pytest.mark.parametrize("layer", ["dense.weight", "lora.weight"])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_networks_read_what_they_cannot_hold(
    models, tree, layer, early_stopping, monkeypatch
):
    settings = {
        "solver": "adam",
        "center": "mean",
        "views": ("xu", "log_xtx", "spectrum"),
        "max_iter": 4,
        "batch_size": 9,
        "early_stopping": early_stopping,
        "random_state": 0,
    }
    held = ProbeXClassifier(**flat(**settings)).fit(models[layer].load(), tree[1])
    monkeypatch.setattr(inputs, "HELD_BYTES", 0)
    for W in (models[layer], models[layer].load()):
        streamed = ProbeXClassifier(**flat(**settings)).fit(W, tree[1])
        np.testing.assert_allclose(streamed.loss_curve_, held.loss_curve_, rtol=1e-4)


def test_low_rank_layers_need_no_center(models, tree):
    assert ProbeXClassifier().fit(models["lora.weight"], tree[1]).center_ is None


def test_regression_and_baseline(models):
    W, y = models["dense.weight"], np.arange(48.0)
    lazy, loaded = ProbeXRegressor().fit(W, y), ProbeXRegressor().fit(W.load(), y)
    np.testing.assert_allclose(lazy.predict(W), loaded.predict(W), atol=1e-3)
    assert make_dense_expert("regression").fit(W, y).predict(W).shape == (48,)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_cross_validation_hands_out_handles(models, n_jobs):
    W, y = models["dense.weight"], models.labels("label")
    scores = cross_val_score(ProbeXClassifier(), W, y, cv=3, n_jobs=n_jobs)
    assert scores.mean() > 0.8
    train, test, y_train, y_test = train_test_split(W, y, random_state=0)
    assert isinstance(train, LayerWeights)
    assert ProbeXClassifier().fit(train, y_train).score(test, y_test) > 0.8


@pytest.mark.filterwarnings("ignore:The adam solver reached max_iter")
def test_networks_do_not_centre_what_the_closed_form_has(models, tree, monkeypatch):
    reads = []
    batches = LayerWeights.batches

    def count(self, *args, **kwargs):
        reads.append(len(self))
        return batches(self, *args, **kwargs)

    monkeypatch.setattr(LayerWeights, "batches", count)
    settings = {"solver": "adam", "max_iter": 1, "normalize": True, "random_state": 0}
    W = models["dense.weight"]
    ProbeXClassifier(**flat(views=("xu",), **settings)).fit(W, tree[1])
    fixed = len(reads)
    reads.clear()
    ProbeXClassifier(**flat(views="auto", **settings)).fit(W, tree[1])
    # Once more, for the closed form's decomposition; the mean is at hand.
    assert len(reads) == fixed + 1


def test_grid_search_in_two_processes(models, tree):
    grid = {"views": [("xu",), ("xtxu",)]}
    search = GridSearchCV(ProbeXClassifier(), grid, cv=2, n_jobs=2)
    search.fit(models["dense.weight"], tree[1])
    assert search.best_params_ == {"views": ("xtxu",)}


def test_several_layers_are_not_one(models, tree):
    with pytest.raises(TypeError, match=r"W holds 4 layers: pick one by its name"):
        WeightStatistics().fit(models)
    with pytest.raises(TypeError, match=r"W holds 1 layers.*W\['a'\]"):
        WeightStatistics().fit({"a": tree[0]})


def test_another_layer_at_predict(models, tree):
    clf = ProbeXClassifier().fit(models["dense.weight"], tree[1])
    with pytest.raises(ValueError, match=r"shape \(12, 1\).*fitted on .*\(12, 8\)"):
        clf.predict(models["dense.bias"])


def test_a_file_that_changes_is_noticed(tree, tmp_path):
    W, y = tree
    save_models(tmp_path, {"w": W})
    lazy = open_models(tmp_path)["w"]
    other = tmp_path / "other"
    save_models(other, {"w": np.concatenate([W, W], axis=2)})
    victim = sorted(tmp_path.glob("*.safetensors"))[5]
    victim.write_bytes((other / victim.name).read_bytes())
    clf = ProbeXClassifier()
    with pytest.raises(FileChangedError, match=victim.name):
        clf.fit(lazy, y)
    assert not hasattr(clf, "coef_")


def test_another_layer_than_that_of_fit(tmp_path):
    W, y = make_model_tree(24, (8, 6), view="xtxu", random_state=0, return_X_y=True)
    save_models(tmp_path, {"first": W, "second": W})
    models = open_models(tmp_path)
    clf = ProbeXClassifier().fit(models["first"], y)
    clf.predict(models["first"][:3])
    with pytest.warns(UserWarning, match="W is layer 'second', but .* on 'first'"):
        clf.predict(models["second"])
    with pytest.warns(UserWarning, match="W is layer 'second'"):
        pickle.loads(pickle.dumps(clf)).predict(models["second"])
    # Arrays have no name, and what is fitted on one afterwards knows of none.
    clf.predict(W)
    clf.fit(W, y).predict(models["second"])
