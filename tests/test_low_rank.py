"""LoRA layers as factors: the same answers as the products, none of them formed."""

import pickle

import numpy as np
import pytest
import torch
from networks import flat
from sklearn.model_selection import cross_val_score, train_test_split

from skprobex import LowRankWeights, ProbeXClassifier, ProbeXRegressor
from skprobex.probing.views import VIEWS


def draw(n_models=40, d_out=20, d_in=16, rank=3, seed=0):
    """Adapters whose inputs tell the class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n_models) % 2
    B = rng.normal(size=(n_models, d_out, rank))
    A = rng.normal(size=(n_models, rank, d_in))
    A[:, :, :4] *= np.where(y == 0, 3, 0.3)[:, None, None]
    return LowRankWeights(B, A, scale=rng.uniform(0.5, 2, n_models)), y


def test_products():
    W, _ = draw()
    expected = [s * b @ a for s, b, a in zip(W.scale, W.B, W.A, strict=True)]
    np.testing.assert_allclose(np.asarray(W), expected)
    np.testing.assert_allclose(W.to_dense(), expected)
    np.testing.assert_allclose(W[3], expected[3])
    assert np.asarray(W, dtype=np.float32).dtype == np.float32
    assert W.shape == (40, 20, 16) and W.ndim == 3 and len(W) == 40 and W.rank == 3


@pytest.mark.parametrize(
    "key",
    [slice(3, 20, 2), [5, 1, 1], np.arange(40) % 3 == 0, np.array([-1, 0])],
    ids=["slice", "list", "mask", "negative"],
)
def test_indexing_returns_its_own_kind(key):
    W, _ = draw()
    dense = W.to_dense()
    for part in (W[key], W[key, ...], W[(key, slice(None))]):
        assert isinstance(part, LowRankWeights)
        np.testing.assert_allclose(part.to_dense(), dense[key])
    with pytest.raises(IndexError, match="by model only"):
        W[key, 3]


@pytest.mark.parametrize("as_factor", [np.asarray, torch.from_numpy])
def test_every_kind_of_integer_selects_models(as_factor):
    W, _ = draw(4)
    W = LowRankWeights(as_factor(W.B), as_factor(W.A), W.scale)
    # torch takes bytes for a mask.
    for dtype in (np.uint8, np.int8, np.int64):
        part = W[np.array([1, 0, 1, 3], dtype)]
        np.testing.assert_array_equal(part.to_dense(), W.to_dense()[[1, 0, 1, 3]])
    assert len(W[[]]) == 0
    for key in ([0.0, 1.0], [[0, 1]], ["0"]):
        with pytest.raises(IndexError, match="Models are selected by"):
            W[key]


def test_arrays_have_the_precision_of_the_factors():
    B, A = np.ones((2, 3, 1), np.float32), np.ones((2, 1, 3), np.float32)
    assert np.asarray(LowRankWeights(B, A)).dtype == np.float32
    assert LowRankWeights(B, A).__array__(np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="without a copy"):
        LowRankWeights(B, A).__array__(copy=False)


def test_ranks_may_differ():
    rng = np.random.default_rng(0)
    ranks = [1, 4, 2]
    B = [rng.normal(size=(6, r)) for r in ranks]
    A = [rng.normal(size=(r, 5)) for r in ranks]
    W = LowRankWeights(B, A, scale=[1, 2, 3])
    expected = [s * b @ a for s, b, a in zip([1, 2, 3], B, A, strict=True)]
    np.testing.assert_allclose(W.to_dense(), expected)
    joined = LowRankWeights.concatenate([W, W[:1]])
    np.testing.assert_allclose(joined.to_dense(), [*expected, expected[0]])


@pytest.mark.parametrize(
    "dtype, n_at_once", [(None, 7), (torch.float32, 14), (torch.float64, 7)]
)
def test_batches_are_bounded(monkeypatch, dtype, n_at_once):
    W, _ = draw()
    expected = np.stack([s * b @ a for s, b, a in zip(W.scale, W.B, W.A, strict=True)])
    # Room for seven models in double precision: rank 3, 20 x 16.
    monkeypatch.setattr("skprobex.weights._contract.BATCH_BYTES", 7 * 3 * (20 + 16) * 8)
    batches = list(W.batches(torch.device("cpu"), dtype))
    sizes = [len(batch.B) for batch in batches]
    assert set(sizes[:-1]) == {n_at_once} and sum(sizes) == 40
    products = torch.cat([batch.B @ batch.A for batch in batches])
    assert products.dtype == (dtype or torch.float64)
    np.testing.assert_allclose(products, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(W.to_dense(), expected)
    for factor in "BA":
        factors = {"B": W.B.copy(), "A": W.A.copy()}
        factors[factor][30, 1, 2] = np.inf
        broken = LowRankWeights(**factors, scale=W.scale)
        with pytest.raises(ValueError, match=f"factor {factor} of W .*model 30"):
            list(broken.batches(torch.device("cpu"), dtype))


def test_what_is_selected_is_not_copied_before_it_is_needed():
    W, _ = draw()
    selected = W[10:][[5, 0, 5]][::-1]
    (batch,) = selected.batches(torch.device("cpu"))
    assert selected._held[0][0] is W.B
    np.testing.assert_allclose(batch.B @ batch.A, W.to_dense()[[15, 10, 15]])
    # What is sent to another process, or kept, is no more than was selected.
    for kept in (pickle.loads(pickle.dumps(selected)), selected):
        assert len(kept._held[0][0]) == len(kept) == 3
        np.testing.assert_array_equal(kept.A, W.A[[15, 10, 15]])
        np.testing.assert_array_equal(kept.scale, W.scale[[15, 10, 15]])


def test_a_batch_has_one_model_at_least(monkeypatch):
    W, _ = draw(3)
    monkeypatch.setattr("skprobex.weights._contract.BATCH_BYTES", 1)
    assert [len(batch.B) for batch in W.batches(torch.device("cpu"))] == [1, 1, 1]


def test_lists_hold_what_arrays_may():
    up, down = torch.ones(4, 2, requires_grad=True), np.ones((2, 3), np.float16)
    W = LowRankWeights([up, up], [down, down])
    np.testing.assert_array_equal(W.to_dense(), np.full((2, 4, 3), 2.0))
    for imaginary in (down * 1j, torch.from_numpy(down * 1j)):
        with pytest.raises(ValueError, match="omplex"):
            LowRankWeights([up], [imaginary])


def test_mixed_precisions_are_computed_in_the_wider():
    single, double = np.ones((1, 2, 2), np.float32), np.ones((1, 2, 2))
    assert LowRankWeights(single, single).dtype == np.float32
    assert LowRankWeights(double, double).dtype == np.float64
    lists = LowRankWeights([single[0], double[0]], [single[0], single[0]])
    assert lists.dtype == np.float64 and lists.B.dtype == np.float64
    assert LowRankWeights([single[0]], [single[0]]).B.dtype == np.float32
    np.testing.assert_array_equal(lists.to_dense(), np.full((2, 2, 2), 2.0))


@pytest.mark.parametrize("solver", ["ridge", "adam"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("center", [None, "mean"])
def test_the_same_model_as_the_products(view, normalize, solver, center):
    W, y = draw()
    settings = {
        "views": (view,),
        "normalize": normalize,
        "solver": solver,
        "center": center,
        "max_iter": 4,
        "tol": 10,
        "n_iter_no_change": 3,
        "projection_dim": 8,
        "random_state": 0,
    }
    if (view, solver) == ("spectrum", "adam"):
        # The network is as wide as there are singular values: make them as many.
        W = LowRankWeights(W.to_dense(), np.broadcast_to(np.eye(16), (40, 16, 16)))
    factored = ProbeXClassifier(**flat(**settings)).fit(W, y)
    dense = ProbeXClassifier(**flat(**settings)).fit(W.to_dense(), y)
    np.testing.assert_allclose(
        factored.decision_function(W), dense.decision_function(W.to_dense()), atol=1e-4
    )


def test_wide_layers_are_probed_in_a_subspace():
    W, y = draw(60, 700, 600, rank=8)
    views = ("xu", "log_xtx", "log_xxt")
    factored = ProbeXClassifier(views=views, center=None, random_state=0).fit(W, y)
    dense = ProbeXClassifier(views=views, center=None, random_state=0)
    dense.fit(W.to_dense(), y)
    np.testing.assert_allclose(
        factored.decision_function(W), dense.decision_function(W.to_dense()), atol=1e-4
    )


def test_default_center_is_none_for_deltas():
    W, y = draw()
    assert ProbeXClassifier().fit(W, y).center_ is None
    assert ProbeXClassifier().fit(W.to_dense(), y).center_ is not None
    assert ProbeXClassifier(center="mean").fit(W, y).center_.shape == (20, 16)


def test_the_split_of_the_product_does_not_matter():
    W, y = draw()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(40, 3, 3)))[0] * 5
    other = LowRankWeights(W.B @ turn, np.linalg.inv(turn) @ W.A, W.scale)
    a, b = (ProbeXClassifier(random_state=0).fit(w, y) for w in (W, other))
    np.testing.assert_allclose(a.decision_function(W), b.decision_function(W), 1e-6)


def test_cross_validation_and_pickle():
    W, y = draw(60)
    assert cross_val_score(ProbeXClassifier(), W, y, cv=3).mean() > 0.9
    train, test, y_train, y_test = train_test_split(W, y, random_state=0)
    assert isinstance(train, LowRankWeights)
    assert ProbeXClassifier().fit(train, y_train).score(test, y_test) > 0.9
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(W)).B, W.B)
    assert ProbeXRegressor().fit(W, W.scale).predict(W).shape == (60,)


def test_half_precision_tensors():
    W, y = draw()
    B, A = (torch.from_numpy(part).bfloat16() for part in (W.B, W.A))
    half = LowRankWeights(B, A, W.scale)
    assert half.dtype == np.float32
    assert ProbeXClassifier().fit(half[:30], y[:30]).score(half[30:], y[30:]) > 0.9


@pytest.mark.parametrize(
    "B, A, scale, message",
    [
        (np.ones((3, 4, 2)), np.ones((3, 3, 5)), 1, "do not multiply"),
        (np.ones((3, 4, 2)), np.ones((2, 2, 5)), 1, "do not multiply"),
        (np.ones((4, 2)), np.ones((2, 5)), 1, "do not multiply"),
        ([np.ones((4, 2))], [np.ones((3, 5))], 1, "model 0: B of shape"),
        (
            [np.ones((4, 2)), np.ones((4, 1))],
            [np.ones((2, 5)), np.ones((1, 6))],
            1,
            r"model 1 has weights of shape \(4, 6\), the first of \(4, 5\)",
        ),
        ([np.ones((4, 2))], [], 1, "B holds 1 models and A 0"),
        (np.ones((3, 4, 2)), np.ones((3, 2, 5)), [1, 2], "one for each of 3 models"),
        (np.ones((3, 4, 2)), np.ones((3, 2, 5)), [1, np.inf, 1], "model 1 is inf"),
    ],
)
def test_factors_that_do_not_fit(B, A, scale, message):
    with pytest.raises(ValueError, match=message):
        LowRankWeights(B, A, scale)


def test_nan_names_the_factor_and_the_model():
    W, y = draw()
    W.A[7, 0, 0] = np.nan
    with pytest.raises(ValueError, match="factor A of W contains NaN: model 7"):
        ProbeXClassifier().fit(W, y)
