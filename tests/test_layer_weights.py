"""One layer in many files: lazy, bounded in memory, and faithful."""

import os
import pickle
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.model_selection import KFold, train_test_split

from skprobex.exceptions import FileChangedError, MissingLayerError, WeightFileError
from skprobex.files import open_models, save_models
from skprobex.weights import _contract
from skprobex.weights import _in_files as _layer

CPU = torch.device("cpu")


@pytest.fixture
def W():
    return np.random.default_rng(0).normal(size=(7, 6, 5)).astype(np.float32)


@pytest.fixture
def weights(W, tmp_path):
    save_models(tmp_path, {"a.weight": W})
    return open_models(tmp_path)["a.weight"]


def low_rank(tmp_path, n=5):
    generator = torch.Generator().manual_seed(0)
    products = []
    for i in range(n):
        up = torch.randn(6, 1 + i % 3, generator=generator)
        down = torch.randn(1 + i % 3, 5, generator=generator)
        save_file(
            {
                "a.lora_A.weight": down,
                "a.lora_B.weight": up,
                "a.alpha": torch.tensor(float(len(down))),
            },
            tmp_path / f"m{i}.safetensors",
        )
        products.append((up @ down).numpy())
    return open_models(tmp_path)["a.weight"], np.stack(products)


def test_shape_without_reading(weights, W, monkeypatch):
    monkeypatch.setattr(_layer.LayerHandle, "read", None)
    assert weights.shape == W.shape and weights.ndim == 3 and len(weights) == 7
    assert weights.dtype == np.float32 and not weights.is_low_rank
    assert weights.compute_dtype == torch.float32
    assert weights[2:4].shape == (2, 6, 5)
    assert "7 models, 6 x 5" in repr(weights) and "a.weight" in weights._repr_html_()
    train, test = train_test_split(weights, random_state=0)
    assert len(train) + len(test) == 7 and type(train) is type(weights)


@pytest.mark.parametrize(
    "key",
    [
        slice(1, 5),
        slice(None, None, -2),
        [3, 0, 0],
        np.array([True, False] * 3 + [True]),
        (np.array([1, 2]), Ellipsis),
        (slice(2, 4), slice(None), slice(None)),
        Ellipsis,
        [],
        -1,
        np.int64(2),
    ],
)
def test_indexes_like_an_array(weights, W, key):
    np.testing.assert_array_equal(np.asarray(weights[key]), W[key])


def test_bad_indices(weights):
    with pytest.raises(IndexError):
        weights[7]
    with pytest.raises(IndexError, match="by model only"):
        weights[:, 0]
    with pytest.raises(IndexError):
        weights[[[0, 1]]]
    with pytest.raises(ValueError, match="without a copy"):
        weights.__array__(copy=False)  # np.array(copy=False) of numpy 2


def test_reads_everything(weights, W):
    np.testing.assert_array_equal(weights.load(), W)
    assert np.asarray(weights, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.stack(list(weights)), W)


@pytest.mark.parametrize("batch_bytes", [1, 500, 10**9])
def test_batches(weights, W, monkeypatch, batch_bytes):
    monkeypatch.setattr(_contract, "BATCH_BYTES", batch_bytes)
    batches = list(weights.batches(CPU))
    size = -(-batch_bytes // 120)  # not smaller than asked for
    assert [len(batch) for batch in batches] == [
        min(size, 7 - start) for start in range(0, 7, size)
    ]
    np.testing.assert_array_equal(torch.cat(batches), W)
    double = torch.cat(list(weights.batches(CPU, torch.float64)))
    assert double.dtype == torch.float64
    np.testing.assert_array_equal(double, W.astype(np.float64))


@pytest.mark.parametrize("batch_bytes", [1, 10**9])
def test_low_rank_batches(tmp_path, monkeypatch, batch_bytes):
    weights, products = low_rank(tmp_path)
    monkeypatch.setattr(_contract, "BATCH_BYTES", batch_bytes)
    batches = list(weights.batches(CPU))
    assert batches[0].B.shape[2] == (1 if batch_bytes == 1 else 3)
    rebuilt = torch.cat([batch.B @ batch.A for batch in batches])
    np.testing.assert_allclose(rebuilt, products, atol=1e-6)
    np.testing.assert_allclose(np.asarray(weights), products, atol=1e-6)
    np.testing.assert_allclose(np.asarray(weights.load()), products, atol=1e-6)
    np.testing.assert_allclose(weights[1], products[1], atol=1e-6)


@pytest.mark.parametrize(
    "dtype, expected",
    [
        (torch.float64, np.float64),
        (torch.float32, np.float32),
        (torch.float16, np.float16),
        (torch.bfloat16, np.float32),
        (torch.int8, np.int8),
    ],
)
def test_dtypes(tmp_path, dtype, expected):
    tensors = (torch.randn(3, 4, 2) * 5).to(dtype)
    for i, tensor in enumerate(tensors):
        save_file({"w": tensor}, tmp_path / f"{i}.safetensors")
    weights = open_models(tmp_path)["w"]
    assert weights.dtype == expected and np.asarray(weights).dtype == expected
    np.testing.assert_array_equal(weights, tensors.to(torch.float64))
    (batch,) = weights.batches(CPU)
    is_double = dtype == torch.float64
    assert batch.dtype == (torch.float64 if is_double else torch.float32)


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (5,), ()])
def test_convolutions_biases_and_scalars(tmp_path, shape):
    tensors = torch.randn(3, *shape)
    for i, tensor in enumerate(tensors):
        save_file({"w": tensor.clone()}, tmp_path / f"{i}.safetensors")
    weights = open_models(tmp_path)["w"]
    assert weights.shape == (3, *shape)
    np.testing.assert_array_equal(weights, tensors)
    (batch,) = weights.batches(CPU)
    d_out = shape[0] if shape else 1
    assert batch.shape == weights.lifted_shape == (3, d_out, int(np.prod(shape[1:])))


@pytest.mark.parametrize("value, kind", [(np.nan, "NaN"), (np.inf, "infinity")])
def test_what_is_not_finite_is_named(tmp_path, W, value, kind):
    W[4, 1, 1] = value
    save_models(tmp_path, {"a": W})
    weights = open_models(tmp_path)["a"]
    with pytest.raises(ValueError, match=rf"{kind}: model 'model_0004' in .*0004\.saf"):
        list(weights.batches(CPU))
    assert np.isnan(weights[4]).any() or np.isinf(weights[4]).any()
    # Large values whose sum overflows are finite all the same.
    W[:] = 3e38
    save_models(tmp_path, {"a": W})
    assert len(list(open_models(tmp_path)["a"].batches(CPU))) == 1


def test_a_file_that_changes_is_named(weights, tmp_path):
    path = tmp_path / "model_0003.safetensors"
    os.utime(path, ns=(1, 1))
    for read in (np.asarray, lambda w: list(w.batches(CPU)), lambda w: w[3]):
        with pytest.raises(FileChangedError, match="model_0003"):
            read(weights)
    path.unlink()
    with pytest.raises(WeightFileError, match="model_0003"):
        np.asarray(weights)
    assert np.asarray(weights[:3]).shape == (3, 6, 5)


def test_pickles_are_handles(tmp_path):
    W = np.zeros((20, 100, 100), dtype=np.float32)
    save_models(tmp_path, {"a.weight": W})
    weights = open_models(tmp_path)["a.weight"]
    data = pickle.dumps(weights)
    assert len(data) < 200 * len(weights)
    again = pickle.loads(data)
    np.testing.assert_array_equal(again, weights)


def test_reading_stays_a_batch_ahead_and_stops_when_left(weights, monkeypatch):
    monkeypatch.setattr(_contract, "BATCH_BYTES", 240)  # two models
    read, lock = [], threading.Lock()
    original = _layer.LayerHandle.read

    def spy(handle):
        with lock:
            read.append(handle.name)
        return original(handle)

    monkeypatch.setattr(_layer.LayerHandle, "read", spy)
    n_threads = threading.active_count()
    batches = weights.batches(CPU)
    next(batches)
    assert len(read) <= 4
    batches.close()
    assert len(read) <= 4 and threading.active_count() <= n_threads


def test_models_of_another_shape_are_named(tmp_path):
    for i in range(4):
        save_file({"w": torch.zeros(2, 3 + (i == 2))}, tmp_path / f"m{i}.safetensors")
    models = open_models(tmp_path)
    with pytest.raises(MissingLayerError, match=r"m2: \(2, 4\)"):
        models["w"]
    models = open_models(tmp_path, on_missing="drop")
    with pytest.warns(UserWarning, match="1 of 4 models"):
        assert models["w"].names == ["m0", "m1", "m3"]
    assert models["w"].shape == (3, 2, 3)  # said once


def test_full_weights_and_adapters_do_not_mix(tmp_path):
    low_rank(tmp_path, 3)
    save_file({"a.weight": torch.zeros(6, 5)}, tmp_path / "base.safetensors")
    with pytest.raises(MissingLayerError, match="as LoRA"):
        open_models(tmp_path)["a.weight"]


def test_folds_cover_all_models(weights, W):
    for train, test in KFold(3).split(weights):
        np.testing.assert_array_equal(weights[test], W[test])
        assert len(weights[train]) == len(train)
