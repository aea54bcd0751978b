"""Fits with many models: a sample compares the views, all of them are fitted."""

import numpy as np
import pytest
import torch

from skprobex import (
    LayerFusion,
    LowRankWeights,
    ProbeXClassifier,
    ProbeXEmbedder,
    ProbeXRegressor,
)
from skprobex.datasets import make_model_tree
from skprobex.probing import deltas as deltas_module
from skprobex.probing.center import mean_and_sizes
from skprobex.probing.deltas import DecomposedDeltas
from skprobex.probing.linalg import leading_directions
from skprobex.probing.ridge import path as ridge_module
from skprobex.probing.ridge import sampling
from skprobex.probing.ridge.path import RidgePath
from skprobex.probing.ridge.sampling import Reduction, choose_models
from skprobex.probing.spectral import thin_svd
from skprobex.probing.tasks import Classes, Labels, Names, Numbers
from skprobex.weights import _contract
from skprobex.weights._dense import DenseWeights

N_TRAIN, N_TEST = 90, 60
ALPHAS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
WEIGHTED = pytest.mark.parametrize("weighted", [False, True])


@pytest.fixture
def few(monkeypatch):
    """Limits that ninety models exceed."""
    monkeypatch.setattr(sampling, "MAX_COMPARED", 40)
    monkeypatch.setattr(sampling, "MAX_DECOMPOSED", 60)


def tree(task="classification", **settings):
    return make_model_tree(
        N_TRAIN + N_TEST,
        (24, 20),
        view="xtxu",
        task=task,
        dtype=np.float64,
        random_state=0,
        return_X_y=True,
        **settings,
    )


# Which models


def draw_norms(n_models=1000, n_classes=3):
    rng = np.random.default_rng(0)
    labels = rng.choice(n_classes, n_models, p=[0.9, 0.09, 0.01])
    targets = 2.0 * torch.from_numpy(np.eye(n_classes)[labels]) - 1
    return torch.from_numpy(rng.lognormal(size=n_models)), targets, labels


def test_whatever_order_the_same_models_are_chosen():
    norms, targets, _ = draw_norms()
    norms[500:] = norms[:500].clone()  # pairs of one norm, told apart by their targets
    targets[500:] = -targets[:500]
    chosen = choose_models(200, norms, Labels(targets))
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    again = choose_models(200, norms[order], Labels(targets[order]))
    assert set(order[again].tolist()) == set(chosen.tolist())
    assert len(chosen) <= 200
    assert (chosen.diff() > 0).all()


def test_chosen_models_spread_over_the_norms():
    norms, targets, _ = draw_norms()
    chosen = choose_models(100, norms, Numbers(targets))
    assert len(chosen) == 100
    ranks = norms.argsort().argsort()[chosen].sort().values
    np.testing.assert_allclose(ranks, np.arange(100) * 10 + 4.5, atol=0.5)


def test_rare_classes_are_chosen_more_often():
    norms, targets, labels = draw_norms()
    chosen = labels[choose_models(300, norms, Classes(targets))]
    counts = np.bincount(labels), np.bincount(chosen)
    assert counts[1][2] == counts[0][2] > 5
    # Half in proportion, half to each class alike.
    expected = 150 * counts[0] / 1000 + 50
    np.testing.assert_allclose(counts[1][:2], expected[:2], atol=6)


def test_naming_some_of_the_models():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 12, 50))
    vectors = torch.from_numpy(rng.standard_normal((12, 8)))
    models = torch.tensor([3, 9, 20, 41])
    part = Names.of(vectors, labels, 3).take(models)
    torch.testing.assert_close(part.vectors[part.labels], vectors[labels[models]])
    assert part.n_components == 3
    assert len(part.vectors) == len(labels[models].unique())


# Deltas of some models


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("is_low_rank", [True, False])
def test_taken_deltas_are_those_of_the_models(kept, is_low_rank, monkeypatch):
    monkeypatch.setattr(deltas_module, "CACHE_BYTES", 2**20 if kept else 0)
    monkeypatch.setattr(_contract, "BATCH_BYTES", 3000)
    W, _ = tree()
    models = torch.tensor([0, 1, 17, 30, 31, 88])
    center = None if is_low_rank else torch.from_numpy(W.mean(axis=0))
    weights = LowRankWeights(W[:, :, :5], W[:, :5]) if is_low_rank else DenseWeights(W)
    arguments = None, torch.device("cpu"), torch.float64
    deltas = DecomposedDeltas(weights, center, *arguments)
    taken = list(deltas.take(models))
    whole = list(deltas)
    for name in ("norms", "singular"):
        got = torch.cat([getattr(factors, name) for factors in taken])
        want = torch.cat([getattr(factors, name) for factors in whole])[models]
        torch.testing.assert_close(got, want)


def test_some_of_an_array_are_not_copied():
    W, _ = tree()
    some = DenseWeights(W)[np.array([5, 3, 8])]
    assert some._array is W
    (batch,) = some[1:].batches(torch.device("cpu"))
    np.testing.assert_array_equal(batch, W[[3, 8]])


@pytest.mark.parametrize("dtype", ["f", "d"])
def test_sizes_are_norms_or_products_of_them(dtype):
    W = tree()[0].astype(dtype)
    torch_dtype = torch.float64 if dtype == "d" else torch.float32
    arguments = None, None, torch.device("cpu"), torch_dtype
    norms = np.linalg.norm(W.astype("d"), axis=(1, 2))
    sizes = DecomposedDeltas(DenseWeights(W), *arguments).sizes
    np.testing.assert_allclose(sizes, norms, rtol=1e-6)
    adapters = LowRankWeights(W[:, :, :5], W[:, :5], scale=2.0)
    sizes = DecomposedDeltas(adapters, *arguments).sizes
    expected = 2 * np.linalg.norm(W[:, :, :5].astype("d"), axis=(1, 2))
    expected *= np.linalg.norm(W[:, :5].astype("d"), axis=(1, 2))
    np.testing.assert_allclose(sizes, expected, rtol=1e-6)


def test_models_that_hardly_differ_have_different_sizes():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((40, 40)) + 1e-4 * rng.standard_normal((500, 40, 40))
    weights = DenseWeights(W.astype("f"))
    sizes = DecomposedDeltas(weights, None, None, torch.device("cpu"), torch.float32)
    assert len(sizes.sizes.unique()) == 500


def test_the_mean_brings_the_sizes():
    W = tree()[0]
    weights = DenseWeights(W)
    arguments = torch.device("cpu"), torch.float64
    mean, sizes = mean_and_sizes(weights, *arguments)
    np.testing.assert_allclose(mean, W.mean(axis=0, dtype=float), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        sizes, DecomposedDeltas(weights, None, None, *arguments).sizes
    )


# The ridge of many models


def draw_ridge(weighted, n_models=30, n_features=50, n_targets=3):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((n_models, n_features)) / n_features**0.5 + 2
    targets = features[:, :n_targets] * 8 + rng.standard_normal((n_models, n_targets))
    weight = torch.from_numpy(rng.uniform(0.2, 3, n_models)) if weighted else None
    return torch.from_numpy(features), torch.from_numpy(targets), weight


def test_some_columns_at_a_time_are_all_columns(monkeypatch):
    """Also of float32 features, which are widened on the way."""
    features, targets, weight = draw_ridge(True)
    features = features.float().double()
    alpha = torch.full((3,), 0.1, dtype=torch.float64)

    def fit(features):
        fitted = RidgePath(features, targets, weight)
        left_out = fitted.leave_one_out(alpha[:1])
        directions = fitted.principal_directions(4, 1e-12)
        return left_out, *fitted.solve(alpha), directions, fitted.feature_mean

    expected = fit(features)
    monkeypatch.setattr(ridge_module, "AT_ONCE", 7)
    for got, want in zip(fit(features.float()), expected, strict=True):
        assert got.dtype == torch.float64
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_components", [4, 200])
def test_leading_directions_by_iteration(n_components):
    features, targets, _ = draw_ridge(False)
    features = features * torch.linspace(3, 0.1, 50, dtype=torch.float64) ** 3
    expected = RidgePath(features, targets).principal_directions(n_components, 1e-12)
    got = leading_directions(features - features.mean(dim=0), n_components, 1e-12)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got[:4], expected[:4], rtol=0, atol=1e-6)
    np.testing.assert_allclose(got @ got.T, np.eye(len(got)), rtol=0, atol=1e-8)


def test_one_direction_where_nothing_varies():
    rows = torch.zeros(5, 7, dtype=torch.float64)
    assert leading_directions(rows, 3, 1e-12).shape == (1, 7)


@WEIGHTED
def test_a_reduction_to_all_directions_loses_nothing(weighted):
    """Of fewer models than features: the ridge stays in the span of the models."""
    features, targets, weight = draw_ridge(weighted)
    full = RidgePath(features, targets, weight)
    reduction = Reduction.fit(features, weight)
    reduced = RidgePath(reduction.reduce(features), targets, weight)
    alphas = torch.tensor(ALPHAS, dtype=torch.float64)
    np.testing.assert_allclose(
        reduced.leave_one_out(alphas), full.leave_one_out(alphas), rtol=0, atol=1e-6
    )
    coef, intercept = reduced.solve(0.1)
    expected, expected_intercept = full.solve(0.1)
    np.testing.assert_allclose(reduction.restore(coef), expected, rtol=0, atol=1e-6)
    mean = reduction.mean + reduction.restore(reduced.feature_mean)
    np.testing.assert_allclose(mean, full.feature_mean, rtol=0, atol=1e-9)
    intercept = intercept + coef @ reduced.feature_mean
    expected_intercept = expected_intercept + expected @ full.feature_mean
    np.testing.assert_allclose(intercept, expected_intercept, rtol=0, atol=1e-6)


def test_a_reduction_is_the_sum_of_its_parts():
    features, _, _ = draw_ridge(False)
    reduction = Reduction.fit(features, None)
    widths = [9, 30, 11]
    parts = reduction.split(widths)
    total = sum(
        part.reduce(columns)
        for part, columns in zip(parts, features.split(widths, 1), strict=True)
    )
    np.testing.assert_allclose(total, reduction.reduce(features), rtol=0, atol=1e-10)


@WEIGHTED
def test_reduced_models_span_what_they_span(weighted):
    features, _, weight = draw_ridge(weighted)
    features[7] = features[5]  # a copy adds nothing
    reduction = Reduction.fit(features, weight)
    centred = (features - reduction.mean).numpy()
    directions = reduction.directions.numpy()
    np.testing.assert_allclose(
        centred @ directions.T @ directions, centred, rtol=0, atol=1e-7
    )
    assert np.linalg.matrix_rank(directions, tol=1e-3) == 28


def test_models_without_variance_span_nothing():
    reduction = Reduction.fit(torch.ones(5, 9), None)
    assert (reduction.reduce(torch.ones(2, 9)) == 0).all()


# Whole fits


@pytest.mark.parametrize("limit", [60, 200])
@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_a_sampled_fit_is_nearly_as_good(few, task, limit, monkeypatch):
    monkeypatch.setattr(sampling, "MAX_DECOMPOSED", limit)
    W, y = tree(task)
    expert = ProbeXRegressor() if task == "regression" else ProbeXClassifier()
    train, test = slice(N_TRAIN), slice(N_TRAIN, None)
    sampled = expert.fit(W[train], y[train]).score(W[test], y[test])
    monkeypatch.setattr(sampling, "MAX_COMPARED", 512)
    full = expert.fit(W[train], y[train]).score(W[test], y[test])
    assert sampled > full - 0.05
    assert full > 0.8


def test_the_ridge_of_a_sampled_fit_sees_all_models(few):
    """With the views fixed and probes for every dimension, sampling changes nothing."""
    sampling.MAX_DECOMPOSED = 200  # both are put back by the fixture
    W, y = tree()
    settings = {"views": ("xtxu",), "normalize": True, "alphas": [0.5]}
    sampled = ProbeXClassifier(**settings).fit(W, y)
    sampling.MAX_COMPARED = 512
    full = ProbeXClassifier(**settings).fit(W, y)
    np.testing.assert_allclose(
        sampled.decision_function(W), full.decision_function(W), rtol=0, atol=1e-2
    )


def fit_classifier(W, y, at):
    return ProbeXClassifier(random_state=0).fit(W, y)


def fit_weighted(W, y, at):
    clf = ProbeXClassifier(random_state=0, class_weight=[{0: 1, 1: 3}] * y.shape[1])
    return clf.fit(W, y)


def fit_fusion(W, y, at):
    layers = {"a": W, "b": np.ascontiguousarray(W[:, ::-1, :7])}
    return LayerFusion(random_state=0).fit(layers, y)


def fit_embedder(W, y, at):
    vectors = np.random.default_rng(0).standard_normal((N_TRAIN + N_TEST, 6))
    return ProbeXEmbedder(random_state=0).fit(W, vectors[at // 2])


def fit_unsupervised(W, y, at):
    return ProbeXEmbedder(random_state=0, n_components=4).fit(W)


@pytest.mark.parametrize(
    "fit",
    [fit_classifier, fit_weighted, fit_fusion, fit_embedder, fit_unsupervised],
)
def test_the_order_of_many_models(fit, few):
    W, y = tree("multilabel")
    at = np.arange(len(W))
    order = np.random.default_rng(0).permutation(len(W))
    query = {"a": W, "b": W[:, ::-1, :7]} if fit is fit_fusion else W
    expected = fit(W, y, at).transform(query)
    got = fit(W[order], y[order], order).transform(query)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("cache_bytes", [2**29, 0])
def test_every_model_is_decomposed_once(few, cache_bytes, monkeypatch):
    monkeypatch.setattr(deltas_module, "CACHE_BYTES", cache_bytes)
    decomposed = []

    def count(batch, sketch):
        decomposed.append(len(batch))
        return thin_svd(batch, sketch)

    monkeypatch.setattr(deltas_module, "thin_svd", count)
    W, y = tree()
    ProbeXClassifier().fit(W, y)
    once = cache_bytes > 0
    # Otherwise the sample is: for the subspaces, the probes, and the features.
    assert sum(decomposed) == (len(W) if once else len(W) + 2 * 40)


def test_progress_counts_every_model_once(few, capsys):
    W, y = tree()
    ProbeXClassifier(verbose=1).fit(W, y)
    assert f"{len(W)}/{len(W)}" in capsys.readouterr().err
    # Of several layers, those that are compared.
    LayerFusion(verbose=1).fit({"a": W, "b": W[:, :5]}, y)
    assert "80/80" in capsys.readouterr().err
