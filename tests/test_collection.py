"""Collections: what is in the files, and indexing that scikit-learn understands."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import cross_val_score, train_test_split

from skprobex import ProbeXClassifier
from skprobex.exceptions import MissingLayerError, WeightFileError
from skprobex.files import open_models, save_models
from skprobex.weights import LowRankWeights
from skprobex.weights._collection import ModelCollection

CPU = torch.device("cpu")


@pytest.fixture
def layers():
    rng = np.random.default_rng(0)
    return {
        "layer.10.weight": rng.normal(size=(6, 4, 3)),
        "layer.2.weight": rng.normal(size=(6, 5, 2)).astype(np.float32),
        "layer.2.bias": rng.normal(size=(6, 5)).astype(np.float32),
    }


METADATA = [
    {
        "targets": str(["cat", "dog"][: 1 + i % 2]),
        "epochs": i,
        "name": "ab"[i % 2],
        "lr": 10.0**-i,
        "base_model": "xyz"[i // 4],
    }
    for i in range(6)
]


@pytest.fixture(params=["memory", "files"])
def models(request, layers, tmp_path):
    names = [f"m{i}" for i in range(6)]
    if request.param == "memory":
        return ModelCollection.from_layers(layers, names, METADATA)
    save_models(tmp_path / "jungle", layers, METADATA, names)
    return open_models(tmp_path / "jungle")


def test_names_layers_and_shapes(models, layers):
    assert models.names == [f"m{i}" for i in range(6)]
    # Natural order: 2 before 10.
    assert list(models.layers) == ["layer.2.bias", "layer.2.weight", "layer.10.weight"]
    assert models.shape == (6, 3) and len(models) == 6
    info = models.layers["layer.10.weight"]
    assert info.shape == (4, 3) and info.dtype == np.float64 and info.n_models == 6
    for name, W in layers.items():
        assert models[name].shape == W.shape
        np.testing.assert_array_equal(np.asarray(models[name]), W)
    assert "layer.2.bias" in models and "nope" not in models
    assert repr(models) == "ModelCollection(6 models, 3 layers)"
    assert "layer.10.weight" in models._repr_html_()


@pytest.mark.parametrize(
    "key",
    [
        slice(1, 4),
        [5, 0],
        np.array([True, False] * 3),
        (np.array([3, 1]), Ellipsis),
        (slice(None, 2), slice(None)),
        2,
        Ellipsis,
    ],
)
def test_indexing_by_model(models, layers, key):
    selected = models[key]
    wanted = np.atleast_1d(np.arange(6)[key[0] if isinstance(key, tuple) else key])
    assert isinstance(selected, ModelCollection)
    assert selected.names == [f"m{i}" for i in wanted]
    for name, W in layers.items():
        np.testing.assert_array_equal(np.asarray(selected[name]), W[wanted])
    assert selected.labels("epochs").tolist() == wanted.tolist()


def test_bad_indexing(models):
    with pytest.raises(
        MissingLayerError, match=r"No model has a layer 'nope'.*layer\.2"
    ):
        models["nope"]
    with pytest.raises(TypeError, match="by position"):
        models[["m0"]]
    with pytest.raises(IndexError):
        models[[17]]
    with pytest.raises(IndexError, match="several layers"):
        models[:, 0]
    with pytest.raises(TypeError, match="not iterated"):
        list(models)


def test_labels(models):
    assert models.labels("epochs").tolist() == list(range(6))
    assert models.labels("lr").dtype == np.float64
    assert models.labels("name").tolist() == list("ababab")
    targets = models.labels("targets")
    assert targets.classes.tolist() == ["cat", "dog"]
    assert targets.y.tolist() == [[1, 0], [1, 1]] * 3
    with pytest.raises(ValueError, match=r"No model has metadata 'nope'.*epochs"):
        models.labels("nope")


def test_labels_of_odd_values():
    def labels(*values):
        metadata = [{"k": value} if value is not None else {} for value in values]
        W = np.zeros((len(values), 2, 2))
        return ModelCollection.from_layers({"a": W}, metadata=metadata).labels("k")

    assert labels("1", "2.5").tolist() == [1, 2.5]
    assert labels("true", "False").tolist() == [True, False]
    assert labels("1", "x").tolist() == ["1", "x"]
    assert labels("None", "a").tolist() == ["None", "a"]
    assert labels("[1, 'a']", "('a',)").classes.tolist() == ["1", "a"]
    assert labels("[]", "[3]").y.tolist() == [[0], [1]]
    assert labels(str(2**80), "1").tolist() == [str(2**80), "1"]


def test_select(models):
    assert models.select(["m4", "m1"]).names == ["m4", "m1"]
    assert models.select(mask=np.arange(6) > 3).names == ["m4", "m5"]
    assert models.select(metadata={"name": "a"}).names == ["m0", "m2", "m4"]
    assert models.select(metadata={"base_model": ["y"]}).names == ["m4", "m5"]
    assert models.select(metadata={"epochs": lambda v: int(v) > 4}).names == ["m5"]
    assert models.select("m2", layers="layer.2.bias").shape == (1, 1)
    for arguments in ({"names": ["x"]}, {"layers": ["x"]}):
        with pytest.raises(KeyError, match="named"):
            models.select(**arguments)
    with pytest.raises(ValueError, match="6 booleans"):
        models.select(mask=[True])


def test_groups_by_declared_base(models):
    assert models.groups.tolist() == [0, 0, 0, 0, 1, 1]


def test_groups_by_architecture(tmp_path):
    for i in range(3):
        tensors = {"w": torch.zeros(2, 2 + (i == 0))}
        save_file(tensors, tmp_path / f"{i}.safetensors")
    assert open_models(tmp_path).groups.tolist() == [1, 0, 0]


def test_to_frame(models):
    frame = models.to_frame()
    assert frame.index.tolist() == models.names and frame.index.name == "model"
    assert frame["name"].tolist() == list("ababab")


def test_missing_layers(tmp_path):
    for i in range(8):
        tensors = {"w": torch.full((2, 2), float(i))}
        if i > 5:
            tensors = {"v": torch.zeros(2)}
        save_file(tensors, tmp_path / f"m{i}.safetensors")
    models = open_models(tmp_path)
    assert models.layers["w"].n_models == 6
    with pytest.raises(MissingLayerError, match=r"2 of 8 models.*'m6', 'm7'"):
        models["w"]
    kept = models.select(layers="w", on_missing="drop")
    assert kept.names == [f"m{i}" for i in range(6)] and list(kept.layers) == ["w"]
    models = open_models(tmp_path, on_missing="drop")
    with pytest.warns(UserWarning, match=r"2 of 8 models lack layer 'w'"):
        W = models["w"]
    assert W.names == kept.names
    assert models["w"].shape == (6, 2, 2)  # said once


class Reads(ClassifierMixin, BaseEstimator):
    """An estimator that only looks whether its folds are what they should be."""

    def fit(self, X, y):
        assert np.asarray(X["layer.2.weight"]).shape[0] == len(y) == len(X)
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return X.labels("name")


def test_passes_through_scikit_learn(models):
    y = models.labels("name")
    train, test, y_train, y_test = train_test_split(models, y, random_state=0)
    assert train.labels("name").tolist() == y_train.tolist()
    assert test.labels("name").tolist() == y_test.tolist()
    scores = cross_val_score(Reads(), models, y, cv=3, n_jobs=2)
    assert scores.tolist() == [1, 1, 1]
    again = pickle.loads(pickle.dumps(models))
    assert again.names == models.names and again.layers == models.layers


def test_from_layers_checks_lengths(layers):
    with pytest.raises(ValueError, match="different numbers"):
        ModelCollection.from_layers({"a": np.zeros((2, 1)), "b": np.zeros((3, 1))})
    with pytest.raises(ValueError, match="names has 1 entries for 6"):
        ModelCollection.from_layers(layers, names=["a"])
    with pytest.raises(ValueError, match="dict of weights"):
        ModelCollection.from_layers({})
    with pytest.raises(ValueError, match="one dict per model"):
        ModelCollection.from_layers(layers, metadata="abcdef")


# ------------------------------------------------------------- patterns, joining


def test_select_by_patterns_and_functions(models):
    assert models.select("m[13]").names == ["m1", "m3"]
    assert models.select(["m4", "m*"]).names == ["m4", "m0", "m1", "m2", "m3", "m5"]
    assert models.select(lambda name: name > "m3").names == ["m4", "m5"]
    assert list(models.select(layers="*.weight").layers) == [
        "layer.2.weight",
        "layer.10.weight",
    ]
    assert list(models.select(layers=lambda name: "bias" in name).layers) == [
        "layer.2.bias"
    ]
    with pytest.raises(KeyError, match=r"no layers named '\*query\*',.*layer\.2"):
        models.select(layers="*query*")
    with pytest.raises(KeyError, match="no models named"):
        models.select(["m1", "x*"])


def test_names_with_brackets_mean_themselves_first():
    layers = {"w[0]": np.zeros((2, 2, 2)), "w0": np.ones((2, 2, 2))}
    models = ModelCollection.from_layers(layers)
    assert list(models.select(layers="w[0]").layers) == ["w[0]"]
    assert list(models.select(layers="w[[]0]").layers) == ["w[0]"]


def test_concatenation(models, layers):
    both = models + models[[5, 0]]
    assert both.names == [*models.names, "m5 (2)", "m0 (2)"]
    assert both.metadata == [*models.metadata, models.metadata[5], models.metadata[0]]
    for name, W in layers.items():
        np.testing.assert_array_equal(
            np.asarray(both[name]), np.concatenate([W, W[[5, 0]]])
        )
    assert both[6:].names == ["m5 (2)", "m0 (2)"]
    (batch,) = both["layer.10.weight"][4:7].batches(CPU)
    np.testing.assert_array_equal(batch, layers["layer.10.weight"][[4, 5, 5]])
    again = pickle.loads(pickle.dumps(both))
    np.testing.assert_array_equal(again["layer.2.bias"], both["layer.2.bias"])
    selected = models.select(layers="layer.2.bias") + models
    assert selected.layers["layer.2.weight"].n_models == 6
    with pytest.raises(MissingLayerError, match="6 of 12 models"):
        selected["layer.2.weight"]
    with pytest.raises(TypeError):
        models + [1]
    with pytest.raises(TypeError, match="A dict is no collection"):
        ModelCollection.concat([models, {}])
    with pytest.raises(ValueError, match="one collection"):
        ModelCollection.concat([])


def test_concatenation_of_memory_and_files(tmp_path):
    rng = np.random.default_rng(0)
    B, A = rng.normal(size=(2, 6, 2)), rng.normal(size=(2, 2, 5))
    low_rank = LowRankWeights(B, A, scale=[0.5, 2.0])
    save_models(tmp_path, {"q.weight": low_rank}, names=["x", "y"])
    files = open_models(tmp_path)
    held = ModelCollection.from_layers({"q.weight": low_rank}, ["a", "b"])
    both = ModelCollection.concat([held, files, held[[1]]])
    assert both.names == ["a", "b", "x", "y", "b (2)"]
    W = both["q.weight"]
    assert W.is_low_rank and W.rank == 2
    dense = np.asarray(low_rank)
    np.testing.assert_allclose(W, dense[[0, 1, 0, 1, 1]])
    assert isinstance(W.load(), LowRankWeights)
    lazy = ModelCollection.from_layers({"q.weight": files["q.weight"]}, ["a", "b"])
    np.testing.assert_allclose((lazy + held)["q.weight"], dense[[0, 1, 0, 1]])
    tensors = ModelCollection.from_layers({"w": torch.ones(2, 3, 4).bfloat16()})
    joined = tensors + tensors
    assert joined["w"].dtype == np.float32 and joined["w"].shape == (4, 3, 4)
    np.testing.assert_array_equal(joined["w"], np.ones((4, 3, 4)))


# ------------------------------------------------------------------- networks in memory


def test_from_state_dicts():
    torch.manual_seed(0)
    nets = {f"net_{i}": torch.nn.Linear(4, 3) for i in range(3)}
    models = ModelCollection.from_state_dicts(nets, [{"k": i} for i in range(3)])
    assert models.names == list(nets) and list(models.layers) == ["bias", "weight"]
    weights = [net.weight.detach().numpy() for net in nets.values()]
    np.testing.assert_array_equal(models["weight"], weights)
    np.testing.assert_array_equal(models["weight"][1], weights[1])
    assert models[[2, 0]].labels("k").tolist() == [2, 0]
    (batch,) = models["weight"].batches(CPU)
    np.testing.assert_array_equal(batch, weights)
    states = [net.state_dict() for net in nets.values()]
    listed = ModelCollection.from_state_dicts(states)
    assert listed.names == ["model_0", "model_1", "model_2"]
    np.testing.assert_array_equal(listed["bias"], models["bias"])
    arrays = {"a": {"w": weights[0]}, "b": {"w": weights[1]}}
    np.testing.assert_array_equal(
        ModelCollection.from_state_dicts(arrays)["w"], weights[:2]
    )
    half = ModelCollection.from_state_dicts(
        {"a": {"w": torch.ones(2, 3, dtype=torch.bfloat16), "n": 3}}
    )
    assert half["w"].dtype == np.float32 and half["w"].shape == (1, 2, 3)
    again = pickle.loads(pickle.dumps(models))
    np.testing.assert_array_equal(again["weight"], weights)


def test_state_dicts_of_several_architectures():
    states = {"a": {"w": torch.ones(2, 2)}, "b": {"w": torch.ones(2, 2)}}
    states["c"] = {"w": torch.ones(3, 2), "v": torch.ones(1)}
    models = ModelCollection.from_state_dicts(states)
    assert models.groups.tolist() == [0, 0, 1]
    with pytest.raises(MissingLayerError, match="c: "):
        models["w"]
    models = ModelCollection.from_state_dicts(states, on_missing="drop")
    with pytest.warns(UserWarning, match="1 of 3 models"):
        assert models["w"].names == ["a", "b"]


def test_adapters_in_memory():
    A, B = torch.randn(2, 5), torch.randn(6, 2)
    keys = {
        "base_model.model.q.lora_A.weight": A,
        "base_model.model.q.lora_B.weight": B,
    }
    models = ModelCollection.from_state_dicts(
        {"a": {**keys, "base_model.model.q.alpha": torch.tensor(4.0)}}
    )
    assert list(models.layers) == ["q.weight"] and models["q.weight"].is_low_rank
    np.testing.assert_allclose(models["q.weight"][0], 2 * (B @ A), rtol=1e-6)


def test_a_peft_model_in_memory_keeps_its_scale():
    from peft import LoraConfig, get_peft_model

    net = torch.nn.Sequential(torch.nn.Linear(5, 6))
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["0"])
    net = get_peft_model(net, config)
    layer = net.base_model.model[0]
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    models = ModelCollection.from_state_dicts({"a": net})
    delta = layer.get_delta_weight("default").detach()
    lora = next(n for n, i in models.layers.items() if i.is_low_rank)
    np.testing.assert_allclose(models[lora][0], delta, rtol=1e-6)


def test_state_dicts_that_are_none():
    net = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"'a' and 'b' are the same memory.*deepcopy"):
        ModelCollection.from_state_dicts({"a": net, "b": net.state_dict()})
    with pytest.raises(TypeError, match="'a' is a int"):
        ModelCollection.from_state_dicts({"a": 3})
    with pytest.raises(TypeError, match="got dict"):
        ModelCollection.from_state_dicts({})
    with pytest.raises(TypeError, match=r"dict at 'state_dict'"):
        ModelCollection.from_state_dicts({"a": {"state_dict": net.state_dict()}})
    with pytest.raises(ValueError, match="'a' holds no tensors"):
        ModelCollection.from_state_dicts({"a": {"epoch": 3}})
    with pytest.raises(WeightFileError, match=r"complex|dtype|torch\.complex64"):
        ModelCollection.from_state_dicts(
            {"a": {"w": torch.ones(2).to(torch.complex64)}}
        )
    with pytest.raises(ValueError, match="metadata has 1 entries for 2"):
        ModelCollection.from_state_dicts([torch.nn.Linear(2, 2) for _ in "ab"], [{}])


def test_html_shows_models_metadata_and_layers():
    models = ModelCollection.from_layers(
        {"<w>": np.zeros((30, 2, 2))},
        names=[f"run_{i}" for i in range(29)] + ["x" * 500],
        metadata=[{"task<": "a"}] * 30,
    )
    html = models._repr_html_()
    assert "<code>run_0</code>" in html and "and 18 more" in html
    assert "<code>task&lt;</code>" in html and "<code>&lt;w&gt;</code>" in html
    assert "xxx..." in models[[29]]._repr_html_() and "x" * 100 not in html


def test_names_of_any_digits_are_sorted():
    names = ["a" + "9" * 5000, "a10", "a9", "a09", "b", "a" + "1" + "0" * 5000]
    models = ModelCollection.from_layers({n: np.zeros((2, 2)) for n in names})
    assert list(models.layers) == ["a09", "a9", "a10", names[0], names[5], "b"]
    assert repr(models) == "ModelCollection(2 models, 6 layers)"


def test_several_layers_of_a_collection_that_drops(tmp_path):
    """What not all models have is left out, with one warning, and y stays y."""
    for i in range(12):
        tensors = {"a": torch.randn(6, 6), "b": torch.randn(6, 6)}
        if i % 3 == 0:
            tensors["head"] = torch.randn(2, 6)
        save_file(tensors, tmp_path / f"m{i:02}.safetensors")
    models = open_models(tmp_path, on_missing="drop")
    with pytest.warns(UserWarning) as caught:
        fitted = ProbeXClassifier().fit(models, np.arange(12) % 2)
    assert [str(w.message) for w in caught if "left out" in str(w.message)] == [
        "1 of 3 layers were left out, as not all models have them in one shape: 'head'."
    ]
    assert list(fitted.weight_shape_) == ["a", "b"]


# ---------------------------------------------------------------------------- saving


def test_saving_low_rank_layers_as_peft_does(tmp_path):
    rng = np.random.default_rng(0)
    B, A = rng.normal(size=(3, 6, 2)), rng.normal(size=(3, 2, 5))
    W = LowRankWeights(B, A, scale=[0.5, 2.0, 0.0])
    paths = save_models(tmp_path, {"m.q.weight": W})
    tensors = load_file(paths[0])
    assert set(tensors) == {"m.q.lora_A.weight", "m.q.lora_B.weight", "m.q.alpha"}
    lazy = open_models(tmp_path)["m.q.weight"]
    assert lazy.is_low_rank and lazy.dtype == np.float64
    np.testing.assert_allclose(lazy, np.asarray(W))
    assert isinstance(lazy.load(), LowRankWeights)
    # And from lazy weights again.
    save_models(tmp_path / "again", {"m.q.weight": lazy})
    np.testing.assert_allclose(
        open_models(tmp_path / "again")["m.q.weight"], np.asarray(W)
    )
    with pytest.raises(ValueError, match=r"<module>\.weight"):
        save_models(tmp_path / "x", {"q": W})


def test_saving_tensors_and_metadata(tmp_path):
    W = torch.randn(2, 3, 4).to(torch.bfloat16).mT
    metadata = [{"s": "text", "n": 3, "l": [1, "a"], "x": np.float32(0.5)}] * 2
    (path, _) = save_models(tmp_path, {"w": W}, metadata, names=["a/b", "c"])
    assert path == tmp_path / "a" / "b.safetensors"
    models = open_models(tmp_path)
    assert models.names == ["a/b", "c"]
    expected = {"s": "text", "n": "3", "l": json.dumps([1, "a"]), "x": "0.5"}
    assert models.metadata[0] == expected
    np.testing.assert_array_equal(models["w"], W.float())
    (batch,) = models["w"].batches(CPU)
    assert torch.equal(batch, W.float())


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "", "a\\b", "."])
def test_saving_stays_in_its_folder(tmp_path, name):
    with pytest.raises(ValueError, match="no file name"):
        save_models(tmp_path / "f", {"w": np.zeros((1, 2))}, names=[name])
    assert not list(tmp_path.rglob("*.safetensors"))


def test_saving_checks_lengths(tmp_path):
    with pytest.raises(ValueError, match="same number"):
        save_models(tmp_path, {"w": np.zeros((1, 2)), "v": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="metadata has 2"):
        save_models(tmp_path, {"w": np.zeros((1, 2))}, [{}, {}])
    with pytest.raises(ValueError, match="names must differ"):
        save_models(tmp_path, {"w": np.zeros((2, 2))}, names=["a", "a"])


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("skprobex.files._atomic.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_models(tmp_path, {"w": np.zeros((1, 2))})
    assert not list(tmp_path.iterdir())


def test_a_model_s_name_in_brackets_is_told_from_a_layer_s():
    models = ModelCollection.from_layers({"w": np.ones((2, 3, 3))}, names=["a", "b"])
    with pytest.raises(MissingLayerError, match=r"'a' is a model.*select\(names"):
        models["a"]
