"""Which layer knows: cross-validation on each, prefiltered, kept, and from files."""

import json
import os
import subprocess
import sys
import time

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import make_pipeline

import skprobex
from skprobex import (
    LayerFusion,
    LayerSearchCV,
    ModelCollection,
    ProbeXClassifier,
    ProbeXEmbedder,
    ProbeXRegressor,
    open_models,
    save_models,
)
from skprobex.baselines import WeightStatistics
from skprobex.datasets import make_digit_jungle, make_model_tree
from skprobex.exceptions import MissingLayerError
from skprobex.inspection import LayerSearchDisplay
from skprobex.inspection._layers import depth_and_kind
from skprobex.layers import _evaluation
from skprobex.probing.device import resolve_device
from skprobex.weights._in_files import LayerHandle

QUICK = {"views": ("log_xtx",), "normalize": True, "n_probes": 8, "random_state": 0}
NAMES = ["first.bias", "first.weight", "noise.weight", "second.weight"]


@pytest.fixture(scope="module")
def layers():
    """One layer knows, one knows a little, two know nothing; one of those is 1-D."""
    rng = np.random.default_rng(0)
    known, y = make_model_tree(
        80, (12, 10), view="xtxu", random_state=0, return_X_y=True
    )
    a_little = known + rng.normal(size=known.shape) * 0.15 * known.std()
    W = {
        "first.bias": rng.normal(size=(80, 12)),
        "first.weight": a_little,
        "noise.weight": rng.normal(size=(80, 6, 9)),
        "second.weight": known,
    }
    return W, y


def make_search(*args, **kwargs):
    return LayerSearchCV(ProbeXClassifier(**QUICK), *args, **{"cv": 3, **kwargs})


def test_results_are_those_of_cross_validation(layers):
    W, y = layers
    search = make_search().fit(W, y)
    for i, (name, layer) in enumerate(W.items()):
        scores = cross_validate(ProbeXClassifier(**QUICK), layer, y, cv=3)["test_score"]
        for fold in range(3):
            assert search.cv_results_[f"split{fold}_test_score"][i] == scores[fold]
        assert search.cv_results_["mean_test_score"][i] == scores.mean()
        assert search.cv_results_["std_test_score"][i] == scores.std()
        assert search.layer_scores_[name] == scores.mean()
    assert search.best_layer_ == "second.weight" == NAMES[search.best_index_]
    assert search.best_score_ == max(search.layer_scores_.values())
    assert search.cv_results_["rank_test_score"][search.best_index_] == 1
    assert search.n_splits_ == 3 and not search.multimetric_


def test_the_table_is_that_of_a_grid_search(layers):
    W, y = layers
    search = make_search().fit(W, y)
    grid = GridSearchCV(ProbeXClassifier(**QUICK), {"n_probes": [4, 8]}, cv=3)
    expected = grid.fit(W["second.weight"], y).cv_results_
    assert list(search.cv_results_) == [
        key.replace("n_probes", "layer") for key in expected
    ]
    for key, values in search.cv_results_.items():
        assert type(values) is type(expected[key.replace("layer", "n_probes")])
        assert len(values) == 4
    assert search.cv_results_["params"] == [{"layer": name} for name in NAMES]
    assert search.cv_results_["param_layer"].tolist() == NAMES
    assert (search.cv_results_["mean_fit_time"] > 0).all()


def test_answers_are_those_of_the_best_layer(layers):
    W, y = layers
    search = make_search().fit(W, y)
    best = ProbeXClassifier(**QUICK).fit(W["second.weight"], y)
    for method in ("predict", "predict_proba", "decision_function", "transform"):
        expected = getattr(best, method)(W["second.weight"])
        for given in (W, ModelCollection.from_layers(W), W["second.weight"]):
            np.testing.assert_array_equal(getattr(search, method)(given), expected)
    assert search.score(W, y) == best.score(W["second.weight"], y)
    assert search.classes_.tolist() == best.classes_.tolist()
    assert search.n_features_in_ == 12 and search.refit_time_ > 0


def test_containers_and_workers_are_the_same(layers):
    W, y = layers
    expected = make_search().fit(W, y).layer_scores_
    models = ModelCollection.from_layers(W)
    assert make_search().fit(models, y).layer_scores_ == expected
    assert make_search(n_jobs=2).fit(models, y).layer_scores_ == expected
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert make_search().fit(models, y).layer_scores_ == expected


def test_the_bunch_of_a_jungle_is_its_layers(data_home):
    jungle = make_digit_jungle(60, 4, data_home=data_home)
    search = LayerSearchCV(ProbeXClassifier(), ["hidden?.bias", "head.weight"], cv=2)
    search.fit(jungle, jungle.target)
    assert list(search.layer_scores_) == ["hidden1.bias", "hidden2.bias", "head.weight"]
    assert search.predict(jungle).shape == jungle.target.shape


def test_patterns_select_layers(layers):
    W, y = layers
    search = make_search("*.weight", refit=False).fit(W, y)
    assert list(search.layer_scores_) == NAMES[1:]
    with pytest.raises(ValueError, match=r"'third\*' matches none of 4 layers"):
        make_search(["first.bias", "third*"]).fit(W, y)


def test_layers_that_not_all_models_share_are_left_out(layers, tmp_path):
    W, y = layers
    body, head = W["second.weight"], W["first.bias"]
    save_models(tmp_path / "a", {"body": body[:40], "head": head[:40]})
    save_models(tmp_path / "b", {"body": body[40:]})
    models = open_models([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.warns(UserWarning, match=r"1 of 2 layers were left out.*'head'"):
        search = make_search().fit(models, y)
    assert list(search.layer_scores_) == ["body"]


def test_several_metrics(layers):
    W, y = layers
    scoring = ["accuracy", "neg_log_loss"]
    search = make_search(scoring=scoring, refit="neg_log_loss").fit(W, y)
    assert search.multimetric_ and set(search.scorer_) == set(scoring)
    for metric in scoring:
        scores = cross_validate(
            ProbeXClassifier(**QUICK), W["first.weight"], y, cv=3, scoring=metric
        )["test_score"]
        assert search.cv_results_[f"mean_test_{metric}"][1] == scores.mean()
    assert search.best_score_ == search.cv_results_["mean_test_neg_log_loss"].max()
    assert search.score(W, y) < 0
    search.set_params(scoring={"own": lambda *args: 0.5}, refit=False).fit(W, y)
    assert list(search.scorer_) == ["own"] and not hasattr(search, "best_layer_")
    with pytest.raises(ValueError, match=r"refit=True.*'accuracy', 'neg_log_loss'"):
        make_search(scoring=scoring).fit(W, y)
    for nothing in ({}, [], ["accuracy"] * 2):
        with pytest.raises(ValueError, match="scoring"):
            make_search(scoring=nothing).fit(W, y)


def test_layers_that_fail(layers):
    W, y = layers
    W = {**W, "noise.weight": np.full_like(W["noise.weight"], np.nan)}
    with pytest.warns(FitFailedWarning, match=r"1 of 4 layers.*'noise.weight': .*NaN"):
        search = make_search().fit(W, y)
    assert np.isnan(search.layer_scores_["noise.weight"])
    assert search.cv_results_["rank_test_score"].tolist()[2] == 4
    assert search.best_layer_ == "second.weight"
    with pytest.warns(FitFailedWarning):
        search = make_search(error_score=-1).fit(W, y)
    assert search.layer_scores_["noise.weight"] == -1
    with pytest.raises(ValueError, match=r"Layer 'noise.weight': .*NaN: model 0"):
        make_search(error_score="raise").fit(W, y)
    with pytest.raises(ValueError, match=r"1 of 1 layers.*'noise.weight': .*NaN"):
        make_search("noise*").fit(W, y)
    with pytest.raises(ValueError, match=r"Layer 'noise.weight': .*NaN: model 0"):
        make_search(prefilter=2).fit(W, y)


@pytest.mark.filterwarnings("ignore:Scoring failed")
def test_folds_that_fail(layers):
    W, y = layers
    W = {**W, "first.bias": W["first.bias"].copy()}
    W["first.bias"][3] = np.nan
    with (
        pytest.warns(FitFailedWarning, match="2 fits failed"),
        pytest.warns(
            FitFailedWarning, match=r"1 of 4 layers.*'first.bias': some folds"
        ),
    ):
        search = make_search(error_score=0).fit(W, y)
    assert search.layer_scores_["first.bias"] == 0


def test_prefilter_keeps_the_best(layers):
    W, y = layers
    search = make_search(prefilter=2).fit(W, y)
    assert set(search.prefilter_scores_) == set(W)
    assert list(search.layer_scores_) == ["first.weight", "second.weight"]
    expected = make_search().fit(W, y)
    for name, score in search.layer_scores_.items():
        assert score == expected.layer_scores_[name]
    assert not hasattr(search.set_params(prefilter=None).fit(W, y), "prefilter_scores_")
    with pytest.raises(ValueError, match="requires y to be passed"):
        make_search(prefilter=2).fit(W)
    embedder = LayerSearchCV(ProbeXEmbedder(), prefilter=2, scoring=lambda *_: 0.0)
    with pytest.raises(ValueError, match="pass y"):
        embedder.fit(W)


def test_prefilter_takes_integers_for_numbers_where_the_estimator_does(layers):
    W, y = layers
    search = LayerSearchCV(ProbeXRegressor(**QUICK), cv=2, prefilter=1, refit=False)
    scores = search.fit(W, y).prefilter_scores_
    # R^2 of noise is about zero; the share of right labels would be a third.
    assert scores["noise.weight"] < 0.2 < 0.5 < scores["second.weight"]
    assert search.best_layer_ == "second.weight"


def test_the_contract_of_meta_estimators(layers):
    W, y = layers
    models = ModelCollection.from_layers(W)
    search = make_search()
    assert is_classifier(search) and not is_classifier(LayerSearchCV(ProbeXRegressor()))
    assert search.get_params()["estimator__views"] == ("log_xtx",)
    copy = clone(search.set_params(estimator__n_probes=7))
    assert copy.estimator.n_probes == 7 and copy.estimator is not search.estimator
    assert "ProbeXClassifier" in search._repr_html_()
    with pytest.raises(NotFittedError):
        search.predict(W)
    assert not hasattr(LayerSearchCV(ProbeXRegressor()), "predict_proba")
    assert cross_val_score(search, models, y, cv=2).mean() > 0.8
    grid = GridSearchCV(search, {"layers": ["noise*", "second*"]}, cv=2).fit(models, y)
    assert grid.best_params_ == {"layers": "second*"}
    unfitted = make_search(refit=False).fit(W, y)
    with pytest.raises(AttributeError, match="refit=False"):
        unfitted.predict(W)


def test_any_estimator_is_searched(layers):
    W, y = layers
    pipeline = make_pipeline(WeightStatistics(), LogisticRegression())
    search = LayerSearchCV(pipeline, "*.weight", cv=2).fit(W, y)
    assert search.predict(W).shape == (80,)
    ridge = LayerSearchCV(Ridge(), "*.bias", cv=2).fit(W, y)
    assert ridge.best_layer_ == "first.bias"


@pytest.mark.filterwarnings("ignore:All models look alike")
def test_groups_stay_together(layers):
    W, y = layers
    groups = np.arange(80) // 20
    scores = make_search(cv=GroupKFold(4)).fit(W, y, groups=groups).layer_scores_
    for name, layer in W.items():
        expected = cross_val_score(
            ProbeXClassifier(**QUICK), layer, y, groups=groups, cv=GroupKFold(4)
        )
        assert scores[name] == expected.mean()


def test_wrong_input(layers):
    W, y = layers
    search = make_search()
    with pytest.raises(TypeError, match="needs several layers"):
        search.fit(W["first.weight"], y)
    with pytest.raises(ValueError, match=r"'first\.bias' holds 80 models, and 79"):
        search.fit(W, y[:79])
    with pytest.raises(ValueError, match=r"'noise\.weight' holds 9 models, and 80"):
        search.fit({**W, "noise.weight": W["noise.weight"][:9]}, y)
    assert not [name for name in vars(search) if name.endswith("_")]
    search.fit(W, y)
    with pytest.raises(MissingLayerError, match=r"lacks the layer 'second\.weight'"):
        search.predict({"first.weight": W["first.weight"]})


def test_saved_and_loaded(layers, tmp_path):
    W, y = layers
    search = make_search(scoring="accuracy").fit(W, y)
    search.save(tmp_path / "search.safetensors")
    loaded = skprobex.load(tmp_path / "search.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(W), search.predict_proba(W))
    assert loaded.score(W, y) == search.score(W, y)
    assert list(loaded.cv_results_) == list(search.cv_results_)
    for key, values in search.cv_results_.items():
        assert type(loaded.cv_results_[key]) is type(values)
        np.testing.assert_array_equal(loaded.cv_results_[key], values)


@pytest.fixture
def models(layers, tmp_path):
    save_models(tmp_path / "models", layers[0])
    return open_models(tmp_path / "models")


def test_each_layer_is_read_once(models, layers, monkeypatch):
    reads = []

    def spy_on(method):
        read = getattr(LayerHandle, method)

        def spy(handle, *out):
            reads.append((handle.name, handle.spec))
            return read(handle, *out)

        monkeypatch.setattr(LayerHandle, method, spy)

    spy_on("read")
    spy_on("read_into")
    search = make_search(refit=False).fit(models, layers[1])
    assert len(reads) == len(set(reads)) == 4 * 80
    reads.clear()
    # Too large to hold: every fold reads for itself.
    monkeypatch.setattr(_evaluation, "LOAD_BYTES", 80 * 12 * 8)
    lazy = make_search(refit=False).fit(models, layers[1])
    shapes = [spec.shape for name, spec in reads if name == "model_0000"]
    assert shapes.count((12,)) == 1
    assert shapes.count((12, 10)) > 2 * 3
    assert lazy.layer_scores_ == pytest.approx(search.layer_scores_)


class CountingClassifier(ClassifierMixin, BaseEstimator):
    """Counts fits."""

    n_fits = 0

    def __init__(self, answer=0):
        self.answer = answer

    def fit(self, W, y):
        CountingClassifier.n_fits += 1
        self.classes_ = np.unique(y)
        return self

    def predict(self, W):
        return np.full(len(W), self.answer)


@pytest.mark.parametrize("in_files", [False, True])
def test_memory_keeps_what_does_not_change(in_files, layers, models, tmp_path):
    W, y = layers

    def count(estimator=None, W=models if in_files else W, y=y, **kwargs):
        estimator = estimator or CountingClassifier()
        options = {"cv": 3, "refit": False, "memory": tmp_path / "cache", **kwargs}
        CountingClassifier.n_fits = 0
        LayerSearchCV(estimator, **options).fit(W, y)
        return CountingClassifier.n_fits

    assert count() == 4 * 3
    assert count() == 0
    assert count(layers="*.weight", memory=str(tmp_path / "cache")) == 0
    assert count(memory=joblib.Memory(str(tmp_path / "cache"), verbose=0)) == 0
    assert count(cv=4) == 4 * 4
    assert count(CountingClassifier(1)) == 4 * 3
    assert count(y=y[::-1]) == 4 * 3
    changed = {**W, "noise.weight": W["noise.weight"] + 1}
    if in_files:
        save_models(tmp_path / "models", changed)
        # Each file is another; so is every layer.
        assert count(W=open_models(tmp_path / "models")) == 4 * 3
    else:
        assert count(W=changed) == 3


SCRIPT = """
import json, sys
from pathlib import Path
from skprobex import LayerSearchCV, ProbeXClassifier, open_models
from skprobex.layers._evaluation import CrossValidation

folder, cache = sys.argv[1:]
n_layers, call = 0, CrossValidation.__call__

def count(*args):
    global n_layers
    n_layers += 1
    return call(*args)

CrossValidation.__call__ = count
models = open_models(folder)
clf = ProbeXClassifier(views=("log_xtx",), normalize=True, n_probes=8, random_state=0)
y = models.labels("label")


def memory(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(l.split()[1]) for l in lines if l.startswith(kind))

# What torch loads on first use is not the search's.
clf.fit(models["blocks.0.attention.query.weight"].load(), y)
is_known = Path("/proc/self/clear_refs").exists()
if is_known:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
search = LayerSearchCV(clf, cv=2, memory=cache).fit(models, y)
peak = memory("VmHWM") - before if is_known else None
print(json.dumps([n_layers, peak, search.best_layer_, search.layer_scores_]))
"""


@pytest.fixture(scope="module")
def transformers(tmp_path_factory):
    """200 transformers of 6 blocks, 38 layers, one of which knows the label."""
    rng = np.random.default_rng(0)
    width, wide = 32, 128
    shapes = {"embedding.weight": (64, width)}
    for block in range(6):
        for kind in ("query", "key", "value", "output"):
            shapes[f"blocks.{block}.attention.{kind}.weight"] = (width, width)
        shapes[f"blocks.{block}.mlp.up.weight"] = (wide, width)
        shapes[f"blocks.{block}.mlp.down.weight"] = (width, wide)
    shapes["norm.bias"] = (width,)
    y = np.arange(200) % 2
    layers = {
        name: rng.standard_normal((200, *shape), dtype=np.float32)
        for name, shape in shapes.items()
    }
    layers["blocks.4.attention.value.weight"][y == 1, :, :4] *= 2
    assert len(layers) == 38
    folder = tmp_path_factory.mktemp("transformers")
    save_models(folder, layers, metadata=[{"label": int(label)} for label in y])
    return folder, sum(layer.nbytes for layer in layers.values())


def test_a_transformer_s_search_is_killed_and_goes_on(transformers, tmp_path):
    folder, n_bytes = transformers
    command = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path)]
    killed = subprocess.Popen(command)

    def n_kept():
        return len(list(tmp_path.rglob("output.pkl")))

    deadline = time.monotonic() + 300  # on a busy machine
    while n_kept() < 10 and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    before = n_kept()
    assert 10 <= before < 38
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    n_searched, peak, best, scores = json.loads(printed)
    assert n_searched == 38 - before
    assert n_kept() == len(scores) == 38
    assert best == "blocks.4.attention.value.weight"
    assert peak is None or peak < n_bytes / 3


def test_workers_share_the_cores():
    code = """
import joblib, torch
run = joblib.Parallel(2)
print(max(run(joblib.delayed(torch.get_num_threads)() for _ in range(8))))
"""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.endswith("_NUM_THREADS")
    }
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert int(printed.stdout) <= max(1, joblib.cpu_count() // 2)


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_forked_workers_cannot_use_cuda(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(RuntimeError, match=r"forked.*\"loky\".*device='cpu'"):
        resolve_device(device)
    assert resolve_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blocks.7.attn.q.weight", (7, "blocks.*.attn.q.weight")),
        ("layers.12.experts.3.w1", (12, "layers.*.experts.3.w1")),
        ("hidden2.bias", (2, "hidden*.bias")),
        ("down_4_conv2d.weight", (4, "down_*_conv2d.weight")),
        ("conv2d.weight", (None, "conv2d.weight")),
        ("head.weight", (None, "head.weight")),
    ],
)
def test_depth_and_kind(name, expected):
    assert depth_and_kind(name) == expected


def test_display(layers):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    W, y = layers
    W = {
        "blocks.10.weight": W["second.weight"],
        "blocks.2.weight": W["first.weight"],
        "norm.bias": W["first.bias"],
    }
    search = make_search().fit(W, y)
    _, ax = plt.subplots()
    display = LayerSearchDisplay.from_estimator(search, ax=ax)
    assert display.ax_ is ax and display.figure_ is ax.figure
    line, bars = ax.containers[0].lines[0], ax.containers[0].lines[2][0]
    assert line.get_xdata().tolist() == [2, 10]
    scores = [search.layer_scores_[f"blocks.{depth}.weight"] for depth in (2, 10)]
    assert line.get_ydata().tolist() == scores
    stds = search.cv_results_["std_test_score"][[1, 0]]
    for segment, score, std in zip(bars.get_segments(), scores, stds, strict=True):
        np.testing.assert_allclose(segment[:, 1], [score - std, score + std])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(labels) == ["blocks.*.weight", "norm.bias"]
    several = make_search(scoring=["accuracy", "neg_log_loss"], refit="accuracy")
    assert (
        LayerSearchDisplay.from_estimator(several.fit(W, y)).scores
        == search.layer_scores_
    )
    for fused in (ProbeXClassifier(**QUICK), LayerFusion(**QUICK)):
        display = LayerSearchDisplay.from_estimator(fused.fit(W, y))
        assert display.scores == fused.layer_scores_ and display.stds is None
    plt.close("all")
    with pytest.raises(ValueError, match="has no layer_scores_"):
        LayerSearchDisplay.from_estimator(search.best_estimator_)
