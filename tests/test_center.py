"""The robust centre: near the base, whatever lies far away; what does, is named."""

import warnings

import numpy as np
import pytest
import torch

from skprobex import (
    LowRankWeights,
    ProbeXClassifier,
    ProbeXEmbedder,
    ProbeXRegressor,
    open_models,
    save_models,
)
from skprobex.datasets import make_model_tree
from skprobex.exceptions import OutlierWarning
from skprobex.layers import LayerFusion
from skprobex.probing import center as center_module
from skprobex.probing.center import (
    MIN_NEAREST,
    N_ROUNDS,
    NEAREST_SHARE,
    draw_signs,
    find_center,
    sketches_and_sizes,
)
from skprobex.weights import LayerWeights
from skprobex.weights._dense import DenseWeights

CPU = torch.device("cpu")
SHAPE = (20, 16)


def draw_tree(n_models=60, shape=SHAPE, decades=2, seed=0, dtype=np.float64):
    """Models about a base, at distances spread over decades; and the base."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(shape)
    scales = 0.3 * 10.0 ** -rng.uniform(0, decades, n_models)
    deltas = scales[:, None, None] * rng.standard_normal((n_models, *shape))
    return (base + deltas).astype(dtype), base


def locate(W, center="auto"):
    weights = W if hasattr(W, "batches") else DenseWeights(W)
    return find_center(weights, center, CPU, weights.compute_dtype)


def robust(W):
    return locate(W).center.numpy()


def iterate_weights(W):
    """Iterated weights on all entries, as the formula has them."""
    flat = W.reshape(len(W), -1)
    center = np.median(flat, axis=0)
    k = int(max(MIN_NEAREST, np.ceil(NEAREST_SHARE * len(W)))) - 1
    for _ in range(N_ROUNDS + 1):
        d = np.linalg.norm(flat - center, axis=1)
        weight = 1 / np.maximum(d, np.sort(d)[k]) ** 2
        center = weight @ flat / weight.sum()
    return center.reshape(W.shape[1:])


# Where it is


@pytest.mark.parametrize("n_models", [3, 7, 60])
def test_it_is_the_location_of_iterated_weights(n_models):
    W, _ = draw_tree(n_models)
    np.testing.assert_allclose(robust(W), iterate_weights(W), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [SHAPE, (60, 50)])
def test_it_is_nearer_to_the_base_than_mean_and_median(shape):
    W, base = draw_tree(shape=shape)
    distance, mean, median = (
        np.linalg.norm(center - base)
        for center in (robust(W), W.mean(axis=0), np.median(W, axis=0))
    )
    assert distance < mean / 4 and distance < 0.6 * median


def test_sketches_keep_distances():
    W, base = draw_tree(shape=(60, 50))
    both = torch.from_numpy(np.concatenate([W, base[None]]))
    sketches, sizes = sketches_and_sizes(both, draw_signs(3000).double())
    found = (sketches[:-1] - sketches[-1]).norm(dim=1).numpy()
    true = np.linalg.norm((W - base).reshape(len(W), -1), axis=1)
    np.testing.assert_allclose(found, true, rtol=0.15)
    np.testing.assert_allclose(sizes[-1], np.linalg.norm(base))


def test_order_and_unit_do_not_matter():
    W, _ = draw_tree(40)
    W[5] *= 1e6
    order = np.random.default_rng(0).permutation(40)
    found, again = locate(W), locate(W[order])
    np.testing.assert_allclose(again.center, found.center, rtol=0, atol=1e-13)
    assert found.outliers.tolist() == [5]
    assert order[again.outliers.numpy()].tolist() == [5]
    for unit in (1e-100, 1e100):
        np.testing.assert_allclose(robust(unit * W), unit * robust(W), rtol=1e-9)


@pytest.mark.parametrize("noise", [0, 1e-4])
def test_copies_share_one_vote(noise):
    W, base = draw_tree(60, decades=1)
    copies = np.repeat(W[:1], 30, axis=0)
    copies *= 1 + noise * np.random.default_rng(0).standard_normal(copies.shape)
    once = robust(W)
    moved = np.linalg.norm(robust(np.concatenate([copies, W])) - once)
    plain = np.linalg.norm(iterate_weights(np.concatenate([copies, W])) - once)
    assert moved < 0.05 * np.linalg.norm(once - base)
    assert plain > 10 * moved


def test_it_falls_on_no_single_model():
    """All as far from the base: none may draw the centre to itself."""
    W, base = draw_tree(60, decades=0)
    center = robust(W)
    nearest = np.linalg.norm((W - center).reshape(60, -1), axis=1).min()
    assert nearest > 0.9 * np.linalg.norm((W - base).reshape(60, -1), axis=1).min()
    np.testing.assert_allclose(
        np.linalg.norm(center - base), np.linalg.norm(W.mean(0) - base), rtol=0.05
    )


@pytest.mark.parametrize("n_models", [1, 2])
def test_of_one_or_two_it_is_the_mean(n_models):
    W, _ = draw_tree(n_models)
    np.testing.assert_allclose(robust(W), W.mean(axis=0), rtol=0, atol=1e-14)


def test_of_equal_models_it_is_theirs():
    W = np.full((30, 4, 3), 0.1)
    np.testing.assert_allclose(robust(W), W[0], rtol=1e-14)


def test_factors_have_none_unless_asked():
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((30, 8, 2)), rng.standard_normal((30, 2, 6))
    weights = LowRankWeights(B, A)
    assert locate(weights).center is None
    np.testing.assert_allclose(
        locate(weights, "robust").center, robust(B @ A), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("held", [True, False])
def test_files_are_read_once_where_they_can_be_held(held, tmp_path, monkeypatch):
    W, _ = draw_tree(dtype=np.float32)
    save_models(tmp_path, {"w": W})
    reads = []
    batches = LayerWeights.batches

    def count(self, *args):
        reads.append(len(self))
        return batches(self, *args)

    monkeypatch.setattr(LayerWeights, "batches", count)
    if not held:
        monkeypatch.setattr(center_module, "HELD_BYTES", W.nbytes - 1)
    found = robust(open_models(tmp_path)["w"])
    np.testing.assert_array_equal(found, robust(W))
    assert reads == [60] * (1 if held else 2)


# What is far out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("factor", [1e-3, 10, 1e3, 1e6, 1e9, 1e30])
def test_scaled_models_are_named_and_do_not_pull(factor, dtype):
    W, base = draw_tree(60, decades=1, dtype=dtype)
    clean = np.linalg.norm(robust(W) - base)
    W[[4, 30, 31]] *= dtype(factor)
    found = locate(W)
    assert found.outliers.tolist() == [4, 30, 31]
    assert np.linalg.norm(found.center.numpy() - base) < 1.2 * clean


@pytest.mark.parametrize("decades", [0, 1, 3])
@pytest.mark.parametrize("n_models", [30, 300])
def test_few_of_a_clean_tree_are_named(decades, n_models):
    named = [
        len(locate(draw_tree(n_models, decades=decades, seed=seed)[0]).outliers)
        for seed in range(5)
    ]
    assert np.mean(named) <= 0.01 * n_models


def make_tree(task="classification"):
    W, y = make_model_tree(
        100, (16, 12), view="xtxu", task=task, random_state=0, return_X_y=True
    )
    spoiled = W.copy()
    spoiled[[3, 50]] *= 1e6
    return W, spoiled, y


def test_a_fit_leaves_them_out_and_says_so():
    W, spoiled, y = make_tree()
    clf = ProbeXClassifier(random_state=0)
    with pytest.warns(OutlierWarning, match=r"2 of 80 models .*: 3, 50\. Have"):
        clf.fit(spoiled[:80], y[:80])
    assert clf.outliers_.tolist() == [3, 50]
    kept = np.setdiff1d(np.arange(80), [3, 50])
    without = ProbeXClassifier(center=clf.center_, random_state=0)
    without.fit(W[kept], y[kept])
    np.testing.assert_allclose(
        clf.predict_proba(W[80:]), without.predict_proba(W[80:]), rtol=0, atol=1e-9
    )
    assert without.outliers_.tolist() == []
    clean = ProbeXClassifier(random_state=0).fit(W[:80], y[:80])
    assert clf.score(W[80:], y[80:]) >= clean.score(W[80:], y[80:]) - 0.05


@pytest.mark.filterwarnings("ignore:The adam solver reached max_iter")
@pytest.mark.parametrize(
    "make",
    [
        lambda: ProbeXClassifier(class_weight="balanced"),
        lambda: ProbeXClassifier(solver="adam").set_params(n_components=4),
        lambda: ProbeXRegressor(),
        lambda: ProbeXEmbedder(),
    ],
)
def test_every_expert_leaves_them_out(make):
    is_regressor = isinstance(make(), ProbeXRegressor)
    _, spoiled, y = make_tree("regression" if is_regressor else "classification")
    if isinstance(make(), ProbeXEmbedder):
        y = np.random.default_rng(0).standard_normal((len(np.unique(y)), 8))[y]
    with pytest.warns(OutlierWarning, match="3, 50"):
        fitted = make().fit(spoiled, y)
    assert fitted.outliers_.tolist() == [3, 50]


def test_a_model_is_left_out_of_all_layers(tmp_path):
    W, spoiled, y = make_tree()
    save_models(tmp_path, {"a": W, "b": spoiled})
    models = open_models(tmp_path)
    with pytest.warns(OutlierWarning, match=rf"in 'b', .*'{models['a'].names[3]}' in "):
        fusion = LayerFusion().fit(models, y)
    assert fusion.outliers_.tolist() == [3, 50]


def test_what_tells_a_label_is_kept():
    W, y = make_model_tree(60, (16, 12), random_state=0, return_X_y=True)
    y = np.zeros(60, dtype=int)
    y[[7, 8]] = 1
    W[[7, 8]] *= 1e3
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutlierWarning)
        clf = ProbeXClassifier(random_state=0).fit(W, y)
    assert clf.outliers_.tolist() == []


def test_nothing_is_left_out_of_a_mean():
    _, spoiled, y = make_tree()
    clf = ProbeXClassifier(center="mean", random_state=0).fit(spoiled, y)
    assert clf.outliers_.tolist() == []
