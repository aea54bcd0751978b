"""Jungle datasets: shapes, reproducibility, the cache, and what the weights carry."""

import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from skprobex.datasets import (
    _cache,
    _digit_training,
    _finetune,
    make_digit_jungle,
    make_model_tree,
)

SMALL = {"n_models": 50, "n_classes": 4, "n_trees": 2}
VIEWS = ("xu", "xtu", "xtxu", "xxtu", "log_xtx", "log_xxt", "spectrum")


@pytest.fixture(scope="module")
def jungle():
    return make_digit_jungle(n_models=30, n_trees=2, cache=False)


@pytest.fixture
def brief(monkeypatch):
    """Train for a few steps only, where it does not matter what is learnt."""
    monkeypatch.setattr(_digit_training, "_BASE_N_STEPS", 5)
    monkeypatch.setattr(_digit_training, "N_STEPS", (2, 5))


def flatten(bunch):
    """All arrays of a jungle, by name."""
    arrays = {}
    for name, value in bunch.items():
        if isinstance(value, dict):
            arrays |= {f"{name}.{key}": array for key, array in value.items()}
        elif isinstance(value, np.ndarray):
            arrays[name] = value
    return arrays


def assert_same(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# The digit jungle


def test_jungle_keys_and_shapes(jungle):
    n = 30
    assert set(jungle) == {
        *("data", "target", "target_names", "layers", "models", "settings", "accuracy"),
        *("tree", "parents", "generation", "bases", "DESCR"),
    }
    assert jungle.data.shape == (n, 64, 64) and jungle.data.dtype == np.float32
    assert jungle.data is jungle.layers["hidden2.weight"]
    shapes = {
        "hidden1.weight": (64, 64),
        "hidden1.bias": (64,),
        "hidden2.weight": (64, 64),
        "hidden2.bias": (64,),
        "head.weight": (5, 64),
        "head.bias": (5,),
    }
    assert {k: v.shape[1:] for k, v in jungle.layers.items()} == shapes
    assert all(len(v) == n and v.flags.c_contiguous for v in jungle.layers.values())
    del shapes["head.weight"], shapes["head.bias"]
    assert {k: v.shape for k, v in jungle.bases.items()} == {
        k: (2, *shape) for k, shape in shapes.items()
    }
    assert set(jungle.settings) == {"learning_rate", "schedule", "n_steps"}
    assert all(v.shape == (n,) for v in jungle.settings.values())
    assert set(jungle.settings["schedule"]) <= {"constant", "cosine", "linear"}
    assert jungle.target.shape == (n, 10)
    assert np.issubdtype(jungle.target.dtype, np.integer)
    assert (jungle.target.sum(axis=1) == 5).all()
    assert (np.bincount(jungle.tree) == [15, 15]).all()
    assert all(np.isfinite(v).all() for v in jungle.layers.values())


def test_jungle_class_names(brief):
    names = make_digit_jungle(1, 12, cache=False).target_names
    assert names[3] == "digit 3" and names[11] == "digit 1 rotated 90"
    bunch = make_digit_jungle(2, 6, n_classes_per_model=2, cache=False)
    assert (bunch.target.sum(axis=1) == 2).all()
    assert bunch.layers["head.weight"].shape == (2, 2, 64)


def test_models_learn_their_classes(jungle):
    # Chance is 0.2.
    assert jungle.accuracy.mean() > 0.9
    assert (jungle.accuracy <= 1).all()


def test_weights_returned_are_the_networks_measured(jungle):
    digits = load_digits()
    x = digits.images.reshape(-1, 64)
    x = (x - x.mean(axis=0)) / (x - x.mean(axis=0)).std()
    for i in range(3):
        layer = {k: v[i].astype(float) for k, v in jungle.layers.items()}
        own = np.flatnonzero(jungle.target[i])
        rows = np.isin(digits.target, own)
        h = x[rows]
        for name in ("hidden1", "hidden2"):
            h = np.maximum(h @ layer[f"{name}.weight"].T + layer[f"{name}.bias"], 0)
        logits = h @ layer["head.weight"].T + layer["head.bias"]
        right = own[logits.argmax(axis=1)] == digits.target[rows]
        assert abs(right.mean() - jungle.accuracy[i]) < 0.1


def test_trees(jungle):
    base = jungle.bases["hidden2.weight"]
    assert np.linalg.norm(base[0] - base[1]) > 1
    distance = np.linalg.norm(jungle.data[:, None] - base, axis=(2, 3))
    np.testing.assert_array_equal(distance.argmin(axis=1), jungle.tree)
    assert (distance.min(axis=1) > 0.01).all()
    # Models of different trees are mixed.
    assert len(set(jungle.tree[:10])) == 2


def test_heads_are_fresh(jungle):
    heads = jungle.layers["head.weight"].reshape(30, -1)
    correlation = np.corrcoef(heads) - np.eye(30)
    assert np.abs(correlation).max() < 0.5


def test_same_seed_same_bits(brief):
    # The legacy generator is the global one.
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    torch_state = torch.get_rng_state()
    n_threads = torch.get_num_threads()
    first = make_digit_jungle(**SMALL, cache=False)
    assert_same(first, make_digit_jungle(**SMALL, cache=False))
    rng = np.random.RandomState(0)
    assert_same(first, make_digit_jungle(**SMALL, random_state=rng))
    other = make_digit_jungle(**SMALL, random_state=1, cache=False)
    assert not np.array_equal(first.data, other.data)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(torch_state, torch.get_rng_state())
    assert torch.get_num_threads() == n_threads


def test_verbose(brief, capsys):
    make_digit_jungle(1, 4, cache=False)
    assert capsys.readouterr() == ("", "")
    make_digit_jungle(1, 4, cache=False, verbose=1)
    out, err = capsys.readouterr()
    assert out == "" and "fine-tuning" in err


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"n_models": 0}, ValueError, "n_models .* at least 1; got 0"),
        ({"n_models": 2.0}, TypeError, "n_models must be an integer"),
        ({"n_models": True}, TypeError, "n_models must be an integer"),
        ({"n_classes": 1}, ValueError, "n_classes .* from 2 to 40; got 1"),
        ({"n_classes": 41}, ValueError, "n_classes .* from 2 to 40; got 41"),
        ({"n_trees": 0}, ValueError, "n_trees"),
        ({"n_models": 2, "n_trees": 3}, ValueError, "n_trees must be at most"),
        ({"n_classes_per_model": 1}, ValueError, "n_classes_per_model"),
        ({"n_classes_per_model": 11}, ValueError, "n_classes_per_model"),
        ({"random_state": "x"}, ValueError, "seed"),
    ],
)
def test_jungle_argument_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        make_digit_jungle(**arguments)


# Training


def test_batched_training_equals_torch():
    """Against autograd and torch.optim.Adam, one network at a time."""
    shapes = _finetune.layer_shapes(6, 5, 3)
    generator = torch.Generator().manual_seed(0)
    start = _finetune.draw_parameters(3, shapes, generator).double()
    # One image per class and network: the batches are then known without drawing them.
    images = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    units = torch.tensor([[1, -1, -1], [-1, 2, -1], [-1, -1, 0]])
    rates = torch.tensor([0.01, 0.02, 0.03])
    schedule = ["constant", "cosine", "linear"]
    n_steps = torch.tensor([4, 7, 5])
    before = start.clone()
    trained = _finetune.train_on_classes(
        start,
        shapes,
        images,
        torch.arange(3),
        units,
        learning_rate=rates,
        schedule=schedule,
        n_steps=n_steps,
        batch_size=2,
        generator=generator,
    )
    assert torch.equal(start, before)
    factor = {
        "constant": lambda done: 1.0,
        "cosine": lambda done: (1 + np.cos(np.pi * done)) / 2,
        "linear": lambda done: 1 - done,
    }
    for i in range(3):
        row = start[i].clone().requires_grad_()
        adam = torch.optim.Adam([row], lr=1.0)
        for step in range(n_steps[i]):
            done = step / int(n_steps[i])
            adam.param_groups[0]["lr"] = float(rates[i]) * factor[schedule[i]](done)
            p = {k: v[0] for k, v in _finetune.split_layers(row[None], shapes).items()}
            h = torch.relu(p["hidden1.weight"] @ images[i] + p["hidden1.bias"])
            h = torch.relu(p["hidden2.weight"] @ h + p["hidden2.bias"])
            logits = p["head.weight"] @ h + p["head.bias"]
            adam.zero_grad()
            torch.nn.functional.cross_entropy(logits, units[i, i]).backward()
            adam.step()
        torch.testing.assert_close(trained[i], row.detach(), rtol=1e-5, atol=1e-6)


def test_batches_hold_only_the_networks_classes():
    classes = torch.arange(40) % 4
    images = classes[:, None].float()
    units = torch.tensor([[0, -1, 1, -1], [-1, -1, -1, 0]])
    generator = torch.Generator().manual_seed(0)
    batches = _finetune._Batches(images, classes, units, 500, generator)
    x, y = batches.draw(2)
    assert set(x[0].ravel().tolist()) == {0.0, 2.0}
    assert set(x[1].ravel().tolist()) == {3.0}
    torch.testing.assert_close(y[0], (x[0, :, 0] / 2).long())
    assert (y[1] == 0).all()
    x, _ = batches.draw(1)
    assert x.shape == (1, 500, 1)


# The cache


@pytest.fixture
def counted(monkeypatch):
    """Count the networks trained."""
    calls = []
    train = _finetune.train_on_classes

    def counting(*args, **kwargs):
        calls.append(1)
        return train(*args, **kwargs)

    monkeypatch.setattr(_finetune, "train_on_classes", counting)
    return calls


def test_cached_equals_uncached(tmp_path, brief, counted):
    uncached = make_digit_jungle(**SMALL, cache=False, data_home=tmp_path)
    assert not list(tmp_path.iterdir())
    built = make_digit_jungle(**SMALL, data_home=tmp_path)
    n_calls = len(counted)
    read = make_digit_jungle(**SMALL, data_home=tmp_path)
    assert len(counted) == n_calls
    assert_same(uncached, built)
    assert_same(uncached, read)
    W, Y = make_digit_jungle(**SMALL, data_home=str(tmp_path), return_X_y=True)
    np.testing.assert_array_equal(W, uncached.data)
    np.testing.assert_array_equal(Y, uncached.target)
    assert len(counted) == n_calls
    (file,) = (tmp_path / "skprobex").glob("*.npz")
    make_digit_jungle(**SMALL, random_state=1, data_home=tmp_path)
    assert len(list(file.parent.glob("*.npz"))) == 2


def test_unseeded_jungles_are_not_cached(tmp_path, brief):
    rng = np.random.RandomState(0)
    make_digit_jungle(1, 4, random_state=rng, data_home=tmp_path)
    make_digit_jungle(1, 4, random_state=None, data_home=tmp_path)
    assert not list(tmp_path.iterdir())


def test_who_comes_while_arrays_are_built_waits_for_them(tmp_path):
    begun, n_built = threading.Event(), []

    def build():
        n_built.append(1)
        begun.set()
        time.sleep(0.2)
        return {"a": np.arange(3)}

    def load(_):
        return _cache.load_or_build("test", {}, build, tmp_path)

    with ThreadPoolExecutor(2) as executor:
        first = executor.submit(load, 0)
        assert begun.wait(10)
        second = executor.submit(load, 1)
        for done in (first, second):
            np.testing.assert_array_equal(done.result()["a"], np.arange(3))
    assert len(n_built) == 1


def damage_half(content):
    return content[: len(content) // 2]


def damage_bits(content):
    middle = len(content) // 2
    return content[:middle] + bytes(100) + content[middle + 100 :]


@pytest.mark.parametrize(
    "damage", [damage_half, damage_bits, lambda _: b"", lambda _: b"not a zip file"]
)
def test_damaged_cache_is_rebuilt(tmp_path, damage):
    rng = np.random.RandomState(0)
    arrays = {"a": rng.rand(50, 50), "names": np.array(["x", "yz"])}

    def load(build):
        return _cache.load_or_build("test", {"n": 1}, build, tmp_path)

    load(lambda: arrays)
    (file,) = (tmp_path / "skprobex").glob("*.npz")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    again = load(lambda: arrays)
    np.testing.assert_array_equal(again["a"], arrays["a"])
    assert file.read_bytes() == whole

    read = load(lambda: pytest.fail("the rebuilt file was not read"))
    np.testing.assert_array_equal(read["a"], arrays["a"])
    np.testing.assert_array_equal(read["names"], arrays["names"])


def test_pickled_arrays_are_refused(tmp_path):
    good = {"a": np.arange(3)}
    _cache.load_or_build("test", {}, lambda: good, tmp_path)
    (file,) = (tmp_path / "skprobex").glob("*.npz")
    np.savez(file, a=np.array([{}], dtype=object))
    read = _cache.load_or_build("test", {}, lambda: good, tmp_path)
    np.testing.assert_array_equal(read["a"], good["a"])


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    good = {"a": np.arange(3)}
    with monkeypatch.context() as patched:

        def fail(source, target):
            assert Path(source).parent == Path(target).parent
            raise OSError("disk on fire")

        patched.setattr(os, "replace", fail)
        with pytest.warns(UserWarning, match="could not be cached.*disk on fire"):
            read = _cache.load_or_build("test", {}, lambda: good, tmp_path)
    np.testing.assert_array_equal(read["a"], good["a"])
    assert {p.suffix for p in (tmp_path / "skprobex").iterdir()} <= {".lock"}

    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _cache.load_or_build("test", {}, lambda: good, tmp_path)
    assert {p.suffix for p in (tmp_path / "skprobex").iterdir()} <= {".lock"}


def test_unwritable_data_home_warns_once(tmp_path, brief):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bunch = make_digit_jungle(1, 4, data_home=blocked / "home")
    assert bunch.data.shape == (1, 64, 64)
    assert len(caught) == 1
    assert "could not be cached" in str(caught[0].message)
    assert caught[0].filename == __file__


# Synthetic trees


def view_features(W, base, view):
    """The view of each delta, flattened."""
    delta = W.astype(float) - base
    if view in ("xtu", "xxtu", "log_xxt"):
        delta = delta.transpose(0, 2, 1)
    if view == "spectrum":
        return np.log(np.linalg.svd(delta, compute_uv=False)[:, :4])
    delta /= np.linalg.norm(delta, axis=(1, 2), keepdims=True)
    if view in ("xu", "xtu"):
        return delta.reshape(len(W), -1)
    _, s, qt = np.linalg.svd(delta, full_matrices=False)
    values = np.log1p(s**2 / 1e-3) if view.startswith("log_") else s**2
    return ((qt.transpose(0, 2, 1) * values[:, None]) @ qt).reshape(len(W), -1)


def ridge_predictions(F, T, n_train):
    F = F - F[:n_train].mean(axis=0)
    mean = T[:n_train].mean(axis=0)
    K = F[:n_train] @ F[:n_train].T
    K[np.diag_indices(n_train)] += 0.1 * np.trace(K) / n_train
    return F[n_train:] @ F[:n_train].T @ np.linalg.solve(K, T[:n_train] - mean) + mean


def held_out_score(view, task="classification", planted=None, **kwargs):
    """Accuracy, or R^2 in regression, of a ridge on `view`."""
    n_train = 240
    tree = make_model_tree(
        360, view=planted or view, task=task, random_state=0, **kwargs
    )
    y = tree.target
    T = np.eye(3)[y] if task == "classification" else y.astype(float)
    predicted = ridge_predictions(view_features(tree.data, tree.base, view), T, n_train)
    y = y[n_train:]
    if task == "classification":
        return (predicted.argmax(axis=1) == y).mean()
    if task == "multilabel":
        return ((predicted > 0.5) == y).mean()
    return 1 - np.sum((predicted - y) ** 2) / np.sum((y - y.mean()) ** 2)


@pytest.mark.parametrize("view", VIEWS)
def test_planted_view_carries_the_target(view):
    assert held_out_score(view) > 0.9
    assert held_out_score(view, "multilabel") > 0.9
    assert held_out_score(view, "regression") > 0.5


@pytest.mark.parametrize("view", VIEWS)
def test_no_signal_is_chance(view):
    assert held_out_score(view, signal=0) < 0.5
    assert 0.4 < held_out_score(view, "multilabel", signal=0) < 0.6
    assert held_out_score(view, "regression", signal=0) < 0.1


@pytest.mark.parametrize(
    "planted, deaf",
    [
        ("xtxu", "xu"),
        ("xtxu", "xxtu"),
        ("xxtu", "xu"),
        ("xxtu", "xtxu"),
        ("log_xtx", "xu"),
        ("log_xtx", "log_xxt"),
        ("log_xxt", "log_xtx"),
        ("spectrum", "xu"),
        ("spectrum", "log_xtx"),
    ],
)
def test_other_views_do_not_hear_it(planted, deaf):
    assert held_out_score(deaf, planted=planted) < 0.5


@pytest.mark.parametrize("planted, plain", [("log_xtx", "xtxu"), ("log_xxt", "xxtu")])
def test_logarithm_hears_more_than_gram(planted, plain):
    assert held_out_score(planted) > held_out_score(plain, planted=planted) + 0.1


def test_model_tree_shapes_and_types():
    tree = make_model_tree(
        10, (7, 5), n_classes=4, task="multilabel", dtype=np.float64, random_state=3
    )
    assert set(tree) == {"data", "target", "target_names", "base", "DESCR"}
    assert tree.data.shape == (10, 7, 5) and tree.data.dtype == np.float64
    assert tree.base.shape == (7, 5) and tree.base.dtype == np.float64
    assert tree.target.shape == (10, 4) and set(np.unique(tree.target)) <= {0, 1}
    assert tree.target_names.tolist() == [f"class {c}" for c in range(4)]
    single = make_model_tree(
        10, (7, 5), n_classes=4, task="multilabel", random_state=3
    ).data
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, tree.data, rtol=1e-5, atol=1e-6)

    W, y = make_model_tree(9, random_state=3, return_X_y=True)
    assert W.shape == (9, 32, 24) and np.bincount(y).tolist() == [3, 3, 3]
    again, _ = make_model_tree(9, random_state=3, return_X_y=True)
    np.testing.assert_array_equal(W, again)
    y = make_model_tree(9, task="regression", random_state=3).target
    assert y.shape == (9,) and np.abs(y).max() <= 1


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (4, 4)])
def test_model_tree_of_any_shape(view, shape):
    tree = make_model_tree(6, shape, view=view, random_state=0)
    assert tree.data.shape == (6, *shape)
    assert np.isfinite(tree.data).all()
    assert len(np.unique(tree.data.reshape(6, -1), axis=0)) == 6


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"n_models": 0}, ValueError, "n_models"),
        ({"shape": 3}, ValueError, r"pair \(d_out, d_in\)"),
        ({"shape": (3, 0)}, ValueError, "shape"),
        ({"shape": (3.0, 4)}, TypeError, "shape"),
        ({"n_classes": 1}, ValueError, "n_classes"),
        ({"view": "gram"}, ValueError, "view must be one of .*'gram'"),
        ({"task": "ranking"}, ValueError, "task must be one of"),
        ({"signal": -0.1}, ValueError, "signal .* from 0 to 1"),
        ({"signal": "all"}, TypeError, "signal"),
        ({"noise": -1}, ValueError, "noise .* at least 0"),
        ({"noise": float("nan")}, ValueError, "noise"),
        ({"rank": 25}, ValueError, "rank .* from 1 to 24"),
        ({"dtype": np.float16}, ValueError, "dtype"),
        ({"view": "spectrum", "n_classes": 30}, ValueError, "one singular value per"),
    ],
)
def test_model_tree_argument_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        make_model_tree(**arguments)
