"""Saved estimators: the same predictions, bit for bit, or a clear error."""

import json
import struct
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import flat
from safetensors import safe_open
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

import skprobex
from skprobex import (
    LowRankWeights,
    ModelTreeClustering,
    ProbeXClassifier,
    ProbeXRegressor,
    TreeExperts,
)
from skprobex._registry import SAVED_CLASSES, class_named
from skprobex.baselines import FlatDeltas, SpectralStatistics, WeightStatistics
from skprobex.datasets import make_model_tree
from skprobex.exceptions import (
    CorruptFileError,
    UnsupportedFormatError,
    VersionWarning,
    WeightFileError,
)
from skprobex.files._safetensors import write_arrays
from skprobex.saving import _save_load as _persistence
from skprobex.saving._decode import StateReader
from skprobex.saving._format import MAX_DEPTH

DATA = Path(__file__).parent / "data"
METHODS = ("predict", "decision_function", "predict_proba", "transform", "labels_")

W, label = make_model_tree(40, (12, 8), view="xtxu", random_state=0, return_X_y=True)
NAMES = np.array(["birds", "cars", "dogs"])[label]
MULTILABEL = np.stack([label == 0, label != 1], axis=1).astype(int)
RNG = np.random.default_rng(0)
# Three trees, the last too small for an expert of its own; wide enough for a sketch.
TREE = np.repeat([0, 1, 2], [16, 16, 3])
FOREST = RNG.normal(size=(3, 70, 70))[TREE] + 0.1 * RNG.normal(size=(35, 70, 70))
FOREST_LABEL = np.arange(35) % 2
ADAPTERS = LowRankWeights(RNG.normal(size=(40, 12, 3)), RNG.normal(size=(40, 3, 8)))
ADAM = {"solver": "adam", "max_iter": 3, "n_probes": 4, "projection_dim": 4}
FRAME = pd.DataFrame(RNG.normal(size=(40, 5)), columns=list("abcde"))

CASES = {
    "binary": (ProbeXClassifier(), W, label == 0),
    "multiclass": (ProbeXClassifier(), W, NAMES),
    "objects": (ProbeXClassifier(), W, NAMES.astype(object)),
    "multilabel": (ProbeXClassifier(), W, MULTILABEL),
    "float64": (ProbeXClassifier(views=("xu", "spectrum")), W.astype("f8"), label),
    "all-features": (ProbeXClassifier(n_components=None, alphas=(1, 2)), W, label),
    "tensors": (ProbeXClassifier(center=torch.ones(12, 8)), torch.tensor(W), label),
    "data-frame": (ProbeXClassifier(), FRAME, label),
    "adapters": (ProbeXClassifier(class_weight={0: 2, 1: 1, 2: 1}), ADAPTERS, label),
    "adam-binary": (ProbeXClassifier(**flat(**ADAM)), W, label == 0),
    "adam-multiclass": (
        ProbeXClassifier(
            **flat(early_stopping=True, views=("log_xtx", "spectrum"), **ADAM)
        ),
        W,
        NAMES,
    ),
    "adam-multilabel": (ProbeXClassifier(**flat(**ADAM)), W, MULTILABEL),
    "adam-adapters": (ProbeXClassifier(**flat(**ADAM)), ADAPTERS, label),
    "regressor": (ProbeXRegressor(), W, label.astype(float)),
    "regressor-two": (ProbeXRegressor(), W, MULTILABEL.astype(float)),
    "adam-regressor": (ProbeXRegressor(**flat(**ADAM)), W, label.astype(float)),
    "trees": (ModelTreeClustering(), FOREST, None),
    "trees-of-adapters": (ModelTreeClustering(2), ADAPTERS, None),
    "trees-of-layers": (ModelTreeClustering(), {"a": W, "b": W}, None),
    "tree-experts": (TreeExperts(ProbeXClassifier()), FOREST, FOREST_LABEL),
    "tree-experts-adam": (
        TreeExperts(
            ProbeXRegressor(**flat(**ADAM)), ModelTreeClustering(3), min_models=3
        ),
        FOREST,
        FOREST_LABEL.astype(float),
    ),
    "tree-experts-dummy": (
        TreeExperts(ProbeXClassifier(), min_models=20),
        FOREST[16:],
        FOREST_LABEL[16:],
    ),
    "weight-statistics": (WeightStatistics(), W, None),
    "spectral-statistics": (SpectralStatistics(), W, None),
    "flat-deltas": (FlatDeltas(), W, None),
}


def fit(estimator, W, y):
    estimator = clone(estimator)
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message=".*of their own|.*min_models.*")
        return estimator.fit(W, y)


def answers(estimator, W):
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name in METHODS:
            # Not every estimator has it, nor every expert of a tree.
            with suppress(AttributeError):
                method = getattr(estimator, name)
                found[name] = method(W) if callable(method) else method
    return found


@pytest.mark.parametrize("case", CASES)
def test_loaded_estimators_answer_the_same(case, tmp_path):
    estimator, W, y = CASES[case]
    fitted = fit(estimator, W, y)
    expected = answers(fitted, W)
    state = set(vars(fitted))
    fitted.save(tmp_path / "saved")
    assert set(vars(fitted)) == state
    loaded = skprobex.load(tmp_path / "saved")
    assert type(loaded) is type(fitted)
    assert set(vars(loaded)) == state
    assert str(loaded) == str(fitted)
    found = answers(loaded, W)
    assert expected and set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert found[name].dtype == value.dtype
    # A second generation is the first, byte for byte.
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "saved").read_bytes()


@pytest.fixture(scope="module")
def classifier():
    return fit(ProbeXClassifier(), W, NAMES)


@pytest.fixture
def saved(classifier, tmp_path):
    classifier.save(tmp_path / "saved.safetensors")
    return tmp_path / "saved.safetensors"


def test_loaded_estimators_go_on(saved, tmp_path):
    loaded = skprobex.load(saved)
    loaded.fit(W, label)  # its arrays can be written to, its parameters are whole
    network = fit(ProbeXClassifier(**flat(warm_start=True, **ADAM)), W, label)
    network.save(tmp_path / "network")
    with pytest.warns(ConvergenceWarning):
        network.fit(W, label)
    loaded = skprobex.load(tmp_path / "network")
    with pytest.warns(ConvergenceWarning):
        loaded.fit(W, label)
    np.testing.assert_array_equal(loaded.predict_proba(W), network.predict_proba(W))


def test_unfitted_estimators_and_their_parameters(tmp_path):
    parameters = {
        "center": RNG.normal(size=(8, 12)).T,  # transposed in memory
        "random_state": np.random.RandomState(7),
        "device": torch.device("cpu"),
        "alphas": np.array([1, np.inf, np.nan], dtype=">f8"),
        "tol": np.float32(1e-3),
        "class_weight": {"a": 1.5, 3: np.int64(2), None: float("-inf")},
        "views": ("xu", "xtu"),
    }
    estimator = ProbeXClassifier(**flat(solver="adam", **parameters))
    TreeExperts(estimator, layer="é\ud800").save(tmp_path / "saved")
    loaded = skprobex.load(tmp_path / "saved")
    assert loaded.layer == "é\ud800" and loaded.router is None
    found = loaded.estimator.get_params()
    for name in ("center", "alphas"):
        np.testing.assert_array_equal(found[name], parameters[name])
    assert found["center"].flags.f_contiguous and found["center"].flags.writeable
    found["tol"] = found["solver__tol"]
    for name in ("device", "tol", "class_weight", "views"):
        assert found[name] == parameters[name]
        assert type(found[name]) is type(parameters[name])
    expected = parameters["random_state"].rand(5)
    np.testing.assert_array_equal(found["random_state"].rand(5), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_tensors_of_every_kind(dtype, tmp_path):
    center = torch.randn(3, 4).to(dtype)
    ProbeXClassifier(center=center).save(tmp_path / "saved")
    found = skprobex.load(tmp_path / "saved").center
    assert found.dtype == dtype and torch.equal(found.float(), center.float())


def test_shared_arrays_are_written_once(classifier, saved):
    with safe_open(saved, "np") as file:
        names = list(file.keys())
        metadata = file.metadata()
        coef = file.get_tensor("expert_.coef")
    np.testing.assert_array_equal(coef, classifier.coef_)
    assert "coef_" not in names
    assert metadata["class"] == "ProbeXClassifier"
    assert metadata["weight_shape"] == "[12, 8]"
    assert metadata["skprobex"] == skprobex.__version__
    loaded = skprobex.load(saved)
    assert loaded.coef_ is loaded.expert_.coef


def test_experts_that_trees_share_are_one(tmp_path):
    estimator, W, y = CASES["tree-experts-dummy"]
    experts = fit(estimator, W, y)
    experts.save(tmp_path / "saved")
    loaded = skprobex.load(tmp_path / "saved")
    assert len({id(expert) for expert in experts.experts_}) == len(
        {id(expert) for expert in loaded.experts_}
    )


@pytest.mark.parametrize("wrap", [lambda v: {"k": v}, lambda v: (v,), lambda v: [v]])
def test_what_is_nested_as_deep_as_may_be(wrap, tmp_path):
    value = np.arange(3.0)
    for _ in range(MAX_DEPTH):
        value = wrap(value)
    ProbeXClassifier(views=value).save(tmp_path / "saved")
    assert str(skprobex.load(tmp_path / "saved").views) == str(value)
    with pytest.raises(TypeError, match="nested more than"):
        ProbeXClassifier(views=wrap(value)).save(tmp_path / "saved")


def test_long_attributes_do_not_make_long_headers(tmp_path):
    views = tuple(f"view {i}" for i in range(20_000))
    ProbeXClassifier(views=views).save(tmp_path / "saved")
    n_bytes = int.from_bytes((tmp_path / "saved").read_bytes()[:8], "little")
    assert n_bytes < 10_000
    assert skprobex.load(tmp_path / "saved").views == views


def test_a_file_of_before_stays_loadable():
    sys.path.insert(0, str(DATA))
    try:
        from make_saved import draw_models
    finally:
        sys.path.remove(str(DATA))
    W, _ = draw_models()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VersionWarning)
        loaded = skprobex.load(DATA / "saved.safetensors")
    expected = json.loads((DATA / "saved.json").read_text())
    assert loaded.predict(W).tolist() == expected["predict"]
    for name in ("decision_function", "transform"):
        found = getattr(loaded, name)(W)
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-5)


def test_a_file_of_an_older_format_is_refused_by_its_version():
    with pytest.raises(
        UnsupportedFormatError, match=r"an older skprobex.*Fit and save"
    ):
        skprobex.load(DATA / "saved_v1.safetensors")


def test_every_class_in_the_table_is_there():
    for name in SAVED_CLASSES:
        assert class_named(name).__name__ == name


# What cannot be saved


def some_function(value):
    return value


class OwnClassifier(ProbeXClassifier):
    pass


CYCLE = ProbeXClassifier()
CYCLE.views = [CYCLE]
DEEP = []
for _ in range(100):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (ProbeXClassifier(views=some_function), "ProbeXClassifier.views is a function"),
        (ProbeXClassifier(class_weight={1: [object()]}), r"class_weight\[1\]\[0\] is"),
        (ProbeXClassifier(views=np.zeros(2, complex)), "views is an array of dtype c"),
        (ProbeXClassifier(center=torch.eye(2).to_sparse()), "center is a sparse"),
        (ProbeXClassifier(alphas=range(3)), "alphas is a range"),
        (ProbeXClassifier(views=DEEP), "nested more than 20 deep"),
        (CYCLE, "holds itself"),
        (TreeExperts(OwnClassifier()), "estimator is a OwnClassifier"),
        (OwnClassifier(), "OwnClassifier is no class of skprobex"),
    ],
)
def test_what_cannot_be_saved_is_named(estimator, message, tmp_path):
    path = tmp_path / "saved"
    path.write_bytes(b"before")
    with pytest.raises(TypeError, match=message):
        estimator.save(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_classes_say_what_is_not_saved(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(ProbeXClassifier, "_unsaved", ("_cache",))
    fitted = fit(ProbeXClassifier(), W, label)
    fitted._cache = object()
    fitted.save(tmp_path / "saved")
    assert not hasattr(skprobex.load(tmp_path / "saved"), "_cache")


def test_parameters_that_are_missing_keep_their_defaults(saved):
    parts = contents(saved)
    del parts.objects[-1]["parameters"]["n_probes"]
    rewrite(saved, parts)
    assert skprobex.load(saved).n_probes == ProbeXClassifier().n_probes
    experts = TreeExperts(ProbeXClassifier())
    experts.save(saved)
    parts = contents(saved)
    del parts.objects[0], parts.objects[-1]["parameters"]["estimator"]
    rewrite(saved, parts)
    with pytest.raises(CorruptFileError, match="its TreeExperts cannot be made"):
        skprobex.load(saved)


# Files nobody vouches for


def contents(path):
    """Take a file apart: objects, metadata, arrays."""
    with safe_open(path, "np") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    return SimpleNamespace(
        objects=json.loads(metadata.pop("objects")), metadata=metadata, arrays=arrays
    )


def rewrite(path, parts):
    """Write it again, with a digest that is right."""
    metadata = {**parts.metadata, "objects": json.dumps(parts.objects)}
    metadata.pop("digest", None)
    metadata["digest"] = _persistence._digest(metadata, parts.arrays)
    with open(path, "wb") as file:
        write_arrays(file, parts.arrays, metadata)


def test_rewriting_is_saving(classifier, saved):
    rewrite(saved, contents(saved))
    found = skprobex.load(saved).decision_function(W)
    np.testing.assert_array_equal(found, classifier.decision_function(W))


def test_truncated_at_every_tenth_byte(saved, tmp_path):
    data = saved.read_bytes()
    path = tmp_path / "cut"
    for n_bytes in range(0, len(data), 10):
        path.write_bytes(data[:n_bytes])
        with pytest.raises(CorruptFileError):
            skprobex.load(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(CorruptFileError, match="belong to no tensor"):
        skprobex.load(path)


def test_any_byte_that_changes_is_noticed(saved, tmp_path):
    data = saved.read_bytes()
    path = tmp_path / "changed"
    for i in range(0, len(data), 61):
        changed = bytearray(data)
        changed[i] ^= 0xFF
        path.write_bytes(changed)
        with pytest.raises(WeightFileError):
            skprobex.load(path)
    n_header = int.from_bytes(data[:8], "little")
    for i in range(8, 8 + n_header, 61):
        changed = bytearray(data)
        changed[i] ^= 0x01
        path.write_bytes(changed)
        if changed[i : i + 1].isspace() and data[i : i + 1].isspace():
            continue
        with pytest.raises(WeightFileError):
            skprobex.load(path)


def last(parts):
    return parts.objects[-1]


def set_attribute(name, node):
    return lambda parts: last(parts)["attributes"].update({name: node})


def set_parameter(name, node):
    return lambda parts: last(parts)["parameters"].update({name: node})


def set_metadata(**entries):
    return lambda parts: parts.metadata.update(entries)


def set_class(name):
    return lambda parts: last(parts).update({"class": name})


def nested(depth):
    node = []
    for _ in range(depth):
        node = [node]
    return node


HOSTILE = {
    "os.system": (set_class("os.system"), UnsupportedFormatError, "os.system"),
    "system": (set_class("system"), UnsupportedFormatError, "'system'"),
    "no class": (set_class(None), UnsupportedFormatError, "None"),
    "no estimator": (
        lambda parts: (
            parts.objects.__setitem__(
                slice(None), [{"class": "History", "parameters": {}, "attributes": {}}]
            )
            or parts.arrays.clear()
        ),
        UnsupportedFormatError,
        "holds a History by itself",
    ),
    "another class": (set_metadata(**{"class": "TreeExperts"}), CorruptFileError, "Tr"),
    "another shape": (set_metadata(weight_shape="[1]"), CorruptFileError, "of weights"),
    "version 999": (
        set_metadata(format_version="999", skprobex="9.1"),
        UnsupportedFormatError,
        r"written by a newer skprobex \(9.1\).*999",
    ),
    "version x": (set_metadata(format_version="x"), CorruptFileError, "the version"),
    "no format": (set_metadata(format=""), UnsupportedFormatError, "open_models"),
    "unknown parameter": (
        set_parameter("shell", "rm"),
        UnsupportedFormatError,
        "parameter 'shell'",
    ),
    "method": (set_attribute("predict", "rm"), CorruptFileError, "named 'predict'"),
    "dunder": (set_attribute("__class__", "rm"), CorruptFileError, "__class__"),
    "parameter twice": (set_attribute("views", "xu"), CorruptFileError, "'views'"),
    "no name": (set_attribute("a b", "rm"), CorruptFileError, "'a b'"),
    "missing tensor": (
        lambda parts: parts.arrays.pop("expert_.coef"),
        CorruptFileError,
        "lacks the tensor 'expert_.coef'",
    ),
    "extra tensor": (
        lambda parts: parts.arrays.update(extra=np.zeros(3)),
        CorruptFileError,
        "nothing refers to its tensor 'extra'",
    ),
    "wrong dtype": (
        lambda parts: parts.arrays.update(
            {"expert_.coef": parts.arrays["expert_.coef"].view("i4")}
        ),
        CorruptFileError,
        "'expert_.coef' is I32",
    ),
    "wrong shape": (
        lambda parts: parts.arrays.update(
            {"expert_.coef": np.ascontiguousarray(parts.arrays["expert_.coef"].T)}
        ),
        CorruptFileError,
        "should be F32 of shape",
    ),
    "extra object": (
        lambda parts: parts.objects.insert(0, dict(parts.objects[0])),
        CorruptFileError,
        "object",
    ),
    "no objects": (lambda parts: parts.objects.clear(), CorruptFileError, "no objects"),
    "forward reference": (
        set_attribute("expert_", {"object": 99}),
        CorruptFileError,
        "an object that is not there",
    ),
    "holds itself": (
        lambda parts: set_attribute("x_", {"object": len(parts.objects) - 1})(parts),
        CorruptFileError,
        "an object that is not there",
    ),
    "deep": (set_attribute("x_", nested(100)), CorruptFileError, "nested too deep"),
    "wide text": (
        set_attribute("x_", {"strings": [2**30, [1], ["a"]]}),
        CorruptFileError,
        "impossible width",
    ),
    "narrow text": (
        set_attribute("x_", {"strings": [1, [1], ["abc"]]}),
        CorruptFileError,
        "impossible width",
    ),
    "large shape": (
        set_attribute("x_", {"elements": [[2**40], []]}),
        CorruptFileError,
        "whose shape",
    ),
    "masked": (
        set_attribute("x_", {"masked": [{"strings": [1, [1], ["a"]]}] * 2}),
        CorruptFileError,
        "a masked array that is none",
    ),
    "unknown kind": (
        set_attribute("x_", {"eval": "1"}),
        CorruptFileError,
        r"unknown kind, \['eval'\]",
    ),
    "list as key": (
        set_attribute("x_", {"dict": [[[], 1]]}),
        CorruptFileError,
        "a dict that is none",
    ),
    "key twice": (
        set_attribute("x_", {"dict": [[1, 1], [1, 2]]}),
        CorruptFileError,
        "a key twice",
    ),
    "device": (set_attribute("x_", {"device": "x"}), CorruptFileError, "device"),
    "random state": (
        set_attribute("x_", {"random_state": {"dict": []}}),
        CorruptFileError,
        "random state",
    ),
    "tensor of text": (
        set_attribute("x_", {"tensor": [{"strings": [1, [1], ["a"]]}, "float32"]}),
        CorruptFileError,
        "torch tensor",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case, saved):
    change, error, message = HOSTILE[case]
    parts = contents(saved)
    change(parts)
    rewrite(saved, parts)
    with pytest.raises(error, match=message) as caught:
        skprobex.load(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "[" * 100_000, '{"a": 1, "a": 2}', "[NaN]", "[" + "9" * 5000 + "]", "1"],
)
def test_bad_json(text, saved):
    parts = contents(saved)
    metadata = {**parts.metadata, "objects": text}
    metadata.pop("digest")
    metadata["digest"] = _persistence._digest(metadata, parts.arrays)
    with open(saved, "wb") as file:
        write_arrays(file, parts.arrays, metadata)
    with pytest.raises(CorruptFileError):
        skprobex.load(saved)


def test_huge_header_length(tmp_path):
    for length in (2**63 - 1, 10**9, 100):
        (tmp_path / "saved").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(CorruptFileError, match="announces a header"):
            skprobex.load(tmp_path / "saved")


def test_booleans_are_0_or_1(tmp_path):
    estimator, W, y = CASES["tree-experts"]
    fit(estimator, W, y).save(tmp_path / "saved")
    parts = contents(tmp_path / "saved")
    (name,) = (n for n, a in parts.arrays.items() if a.dtype == bool)
    parts.arrays[name] = np.full(3, 7, dtype=np.uint8).view(bool)
    rewrite(tmp_path / "saved", parts)
    with pytest.raises(CorruptFileError, match="neither 0 nor 1"):
        skprobex.load(tmp_path / "saved")


def test_what_is_no_saved_estimator(tmp_path):
    skprobex.save_models(tmp_path, {"w": np.zeros((1, 2))}, names=["weights"])
    with pytest.raises(UnsupportedFormatError, match="open_models"):
        skprobex.load(tmp_path / "weights.safetensors")
    (tmp_path / "pickle").write_bytes(b"\x80\x04]\x94." * 20)
    with pytest.raises(CorruptFileError):
        skprobex.load(tmp_path / "pickle")
    with pytest.raises(FileNotFoundError):
        skprobex.load(tmp_path / "nothing")


def test_versions_that_differ_are_told_of(saved, tmp_path):
    parts = contents(saved)
    parts.metadata.update(skprobex="0.0.1", sklearn="0.0.2")
    rewrite(saved, parts)
    with pytest.warns(VersionWarning, match="saved by skprobex 0.0.1") as caught:
        skprobex.load(saved)
    assert len(caught) == 1  # nothing of scikit-learn's is in it
    assert caught[0].filename == __file__
    estimator, W, y = CASES["tree-experts-dummy"]
    fit(estimator, W, y).save(saved)
    parts = contents(saved)
    parts.metadata.update(sklearn="0.0.2")
    rewrite(saved, parts)
    with pytest.warns(VersionWarning, match="saved by sklearn 0.0.2"):
        skprobex.load(saved)


KINDS = st.sampled_from([*StateReader._KINDS, "json", "class", "x"])
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-3, 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["nan", "cpu", "xu", "F32", "C", "F", "expert_.coef", "MT19937"])
    | st.text(max_size=5)
)
NODES = st.recursive(
    PLAIN,
    lambda nodes: (
        st.lists(nodes, max_size=4) | st.dictionaries(KINDS, nodes, max_size=2)
    ),
    max_leaves=8,
)


def places(node, path=()):
    """List the paths to all values in nested lists and dicts."""
    if isinstance(node, (dict, list)):
        keys = node if isinstance(node, dict) else range(len(node))
        for key in keys:
            yield (*path, key)
            yield from places(node[key], (*path, key))


@given(data=st.data())
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_state_is_read_or_refused(data, saved):
    original = saved.read_bytes()
    parts = contents(saved)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(parts.objects))))
        target = parts.objects
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = data.draw(NODES)
        if not parts.objects:
            break
    rewrite(saved, parts)
    try:
        skprobex.load(saved)
    except WeightFileError as error:
        assert str(saved) in str(error)
    finally:
        saved.write_bytes(original)


# Interrupted writing


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_full_disk_leaves_the_old_file(error, saved, monkeypatch):
    before = saved.read_bytes()

    def write(file, arrays, metadata):
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(_persistence, "write_arrays", write)
    with pytest.raises(type(error)):
        ProbeXRegressor().save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_folders_are_made(classifier, tmp_path):
    classifier.save(str(tmp_path / "a" / "b" / "saved"))
    assert skprobex.load(str(tmp_path / "a" / "b" / "saved")).classes_.tolist()
