"""Models that are simulated, and data sets that are matched with models."""

import pickle

import numpy as np
import pytest
import torch

import skprobex
from skprobex import LowRankWeights, ProbeXClassifier, ProbeXRegressor
from skprobex.datasets import make_digit_jungle
from skprobex.datasets._digit_training import draw_images
from skprobex.simulation import (
    Activations,
    ClassMoments,
    DataMatcher,
    RandomHead,
    _draw,
    collect_activations,
    collect_gradients,
    score_examples,
    simulate_models,
)
from skprobex.simulation._draw import draw_batch, reduce_moments
from skprobex.weights import Weights

CPU = torch.device("cpu")


def draw_moments(n_classes=4, d_in=12, d_out=9, seed=0, names=None):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n_classes, 20, d_in)) * rng.uniform(
        0.1, 2, (n_classes, 1, d_in)
    )
    moments = (rows.transpose(0, 2, 1) @ rows / 20).astype(np.float32)
    classes = np.arange(n_classes) if names is None else np.array(names)
    return ClassMoments(
        classes, moments, np.full(n_classes, 20), (d_out, d_in), "layer"
    )


def moments_of_draws(reduced, weights, n_draws=4000):
    drawn = draw_batch(
        reduced,
        np.repeat(weights[None], n_draws, axis=0),
        np.arange(n_draws),
        CPU,
        torch.float64,
    )
    return drawn, (drawn.A.mT @ drawn.A).mean(dim=0).numpy()


def test_mean_of_the_gram_matrices_is_the_sum_of_the_moments():
    found = draw_moments()
    weights = np.array([0.5, 0, 2, 1])
    drawn, mean = moments_of_draws(reduce_moments(found.moments, 9), weights)
    scale = np.trace(found.moments, axis1=1, axis2=2).mean()
    expected = np.einsum("c,cij->ij", weights, found.moments) / scale
    expected += 0.03 * np.trace(expected) / 12 * np.eye(12)
    # A Wishart matrix of r directions: variance of an entry (S_ij^2 + S_ii S_jj) / r.
    variances = np.diag(expected)
    spread = np.sqrt((expected**2 + np.outer(variances, variances)) / drawn.A.shape[1])
    assert (np.abs(mean - expected) < 5 * spread / np.sqrt(len(drawn.A)) + 1e-5).all()
    spread_found = (drawn.A.mT @ drawn.A).std(dim=0).numpy()
    np.testing.assert_allclose(spread_found, spread, rtol=0.1)


def test_output_side_is_orthonormal_and_drawn_anew():
    found = draw_moments(d_out=20)
    drawn, _ = moments_of_draws(reduce_moments(found.moments, 20), np.ones(4), 5)
    eye = torch.eye(12, dtype=torch.float64).expand(5, -1, -1)
    torch.testing.assert_close(drawn.B.mT @ drawn.B, eye)
    assert not torch.allclose(drawn.B[0], drawn.B[1])


def test_only_what_is_heard_is_drawn(monkeypatch):
    """A tail below the threshold is left out; the rest is as it would be."""
    found = draw_moments()
    found.moments[:] = 0
    found.moments[:, :3, :3] = np.eye(3)
    found.moments[:, 3:, 3:] = 1e-7 * np.eye(9)
    reduced = reduce_moments(found.moments, 9)
    assert reduced.basis.shape == (12, 3)
    monkeypatch.setattr(_draw, "TAIL", 0.0)
    assert reduce_moments(found.moments, 9).basis.shape == (12, 12)


def test_singular_moments_can_be_drawn_from():
    """Of a class with one example: what is outside its row is the spread."""
    row = np.ones(12, dtype=np.float32) / np.sqrt(12)
    moments = np.outer(row, row)[None].repeat(4, axis=0)
    reduced = _draw.ReducedMoments(torch.eye(12), torch.from_numpy(moments), 9)
    drawn, _ = moments_of_draws(reduced, np.ones(4), 500)
    along = (drawn.A @ torch.from_numpy(row).double()).square().sum()
    share = 1 - along / drawn.A.square().sum()
    assert abs(share - 0.03 / 1.03 * 11 / 12) < 0.003


def test_weights_index_and_slice_like_arrays():
    models = simulate_models(draw_moments(), n_models=10).data
    dense = np.asarray(models)
    assert models.shape == dense.shape == (10, 9, 12)
    assert (models.ndim, models.dtype, len(models)) == (3, np.float32, 10)
    for key in (slice(2, 9, 3), [4, 4, 0], np.arange(10) % 2 == 1, (slice(3), ...)):
        part = models[key]
        assert type(part) is type(models)
        np.testing.assert_allclose(np.asarray(part), dense[key], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(models[-1], dense[-1], rtol=1e-4, atol=1e-6)
    with pytest.raises(IndexError):
        models[10]
    with pytest.raises(IndexError, match="by model only"):
        models[:, 0]


def test_same_seed_same_models_also_through_a_pickle():
    first, again = (simulate_models(draw_moments(), n_models=6) for _ in "ab")
    other = simulate_models(draw_moments(), n_models=6, random_state=1)
    np.testing.assert_array_equal(np.asarray(first.data), np.asarray(again.data))
    np.testing.assert_array_equal(first.target, again.target)
    assert not np.array_equal(first.target, other.target)
    thawed = pickle.loads(pickle.dumps(first.data))
    np.testing.assert_array_equal(np.asarray(first.data), np.asarray(thawed))


def test_with_a_base_they_are_full_weights():
    base = np.random.default_rng(0).normal(size=(9, 12))
    deltas = simulate_models(draw_moments(), n_models=5).data
    models = simulate_models(draw_moments(), n_models=5, base=base).data
    assert deltas.is_low_rank and not models.is_low_rank
    (batch,) = models.batches(CPU)
    difference = np.asarray(batch) - base
    scaled = difference / np.linalg.norm(difference, axis=(1, 2), keepdims=True)
    expected = np.asarray(deltas)
    expected = expected / np.linalg.norm(expected, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(scaled, expected, atol=1e-4)
    assert (np.linalg.norm(difference, axis=(1, 2)) < np.linalg.norm(base)).all()


@pytest.mark.parametrize(
    ("classes_per_model", "counts"),
    [
        (0.5, {3}),
        (2, {2}),
        ((2, 4), {2, 3, 4}),
        ((0.5, 1.0), {3, 4, 5, 6}),
        ([0.5, 0, 0.5], {1, 3}),
    ],
)
def test_numbers_of_classes(classes_per_model, counts):
    names = list("fbdaec")
    models = simulate_models(
        draw_moments(6, names=names), n_models=200, classes_per_model=classes_per_model
    )
    assert set(models.target.sum(axis=1)) == counts
    assert models.target_names.tolist() == names
    chances = models.target.mean() * np.ones(6)
    np.testing.assert_allclose(models.target.mean(axis=0), chances, atol=0.12)


def test_single_classes_and_mixtures():
    found = draw_moments(3, names=["x", "y", "z"])
    single = simulate_models(found, n_models=9, task="single")
    assert sorted(single.target) == sorted("xyz" * 3)
    mixed = simulate_models(found, n_models=50, task="mixtures", classes_per_model=1.0)
    np.testing.assert_allclose(mixed.target.sum(axis=1), 1)
    assert (mixed.target > 0).all()
    # What a model is drawn with is what the target says.
    exact = simulate_models(found, n_models=9, task="single").data
    gram = np.asarray(exact).transpose(0, 2, 1) @ np.asarray(exact)
    fit = np.einsum(
        "nij,cij->nc",
        gram,
        found.moments / np.linalg.norm(found.moments, axis=(1, 2))[:, None, None],
    )
    assert (found.classes[fit.argmax(axis=1)] == single.target).mean() > 0.8


def test_estimators_take_them():
    found = draw_moments(3, d_in=16, d_out=14)
    train = simulate_models(found, n_models=120)
    test = simulate_models(found, n_models=60, random_state=1)
    clf = ProbeXClassifier(random_state=0).fit(train.data, train.target)
    assert clf.score(np.asarray(test.data), test.target) > 0.8
    full = simulate_models(found, n_models=120, base=np.ones((14, 16)))
    # The centre is told: lengths differ so much that no mean finds it.
    clf = ProbeXClassifier(center=np.ones((14, 16)), random_state=0)
    clf.fit(full.data, full.target)
    deltas = np.asarray(test.data)
    deltas *= 0.1 / np.linalg.norm(deltas, axis=(1, 2), keepdims=True)
    assert clf.score(1 + deltas, test.target) > 0.8
    found = draw_moments(3, d_in=40, d_out=40)
    mixed = simulate_models(found, n_models=300, task="mixtures", classes_per_model=1.0)
    reg = ProbeXRegressor(random_state=0).fit(mixed.data, mixed.target)
    held = simulate_models(
        found, n_models=60, task="mixtures", classes_per_model=1.0, random_state=1
    )
    error = np.abs(reg.predict(held.data) - held.target).mean()
    assert error < 0.5 * np.abs(1 / 3 - held.target).mean()


def score_by_hand(deltas, moments):
    """What DataMatcher scores before it standardises, in float64."""
    unit = [m / np.trace(m) for m in moments.astype(float)]
    common = sum(unit) / len(unit)
    scores = np.empty((len(deltas), len(unit)))
    for i, delta in enumerate(deltas.astype(float)):
        _, s, q = np.linalg.svd(delta / np.linalg.norm(delta), full_matrices=False)
        view = q.T @ np.diag(np.log1p(s**2 / 1e-3)) @ q
        view /= np.linalg.norm(view)
        scores[i] = [np.trace(view @ (m - common)) for m in unit]
    return scores


def views_by_hand(deltas):
    """Log views of the input side, of unit norm, flattened."""
    views = []
    for delta in deltas.astype(float):
        _, s, q = np.linalg.svd(delta / np.linalg.norm(delta), full_matrices=False)
        view = q.T @ np.diag(np.log1p(s**2 / 1e-3)) @ q
        views.append((view / np.linalg.norm(view)).ravel())
    return np.stack(views)


def test_decisions_are_standardised_inner_products():
    found = draw_moments(5)
    deltas = np.random.default_rng(1).normal(size=(8, 9, 12))
    views = views_by_hand(deltas)
    matcher = DataMatcher(n_simulated=20).fit(found, W=deltas)
    (drawn,) = matcher._simulate()[0].values()
    pairs = views_by_hand(np.asarray(drawn))
    apart = pairs[::2] - pairs[1::2]
    covariance = apart.T @ apart / np.square(apart).sum() + 0.003 * np.eye(144)
    unit = np.stack([m / np.trace(m) for m in found.moments.astype(float)])
    templates = np.linalg.solve(covariance, (unit - unit.mean(axis=0)).reshape(5, -1).T)
    scores = views @ templates
    expected = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    np.testing.assert_allclose(matcher.decision_function(deltas), expected, atol=1e-3)


def test_a_large_batch_is_its_own_population():
    found = draw_moments(5)
    deltas = np.random.default_rng(1).normal(size=(8, 9, 12))
    alone = DataMatcher(min_population=8).fit(found)
    expected = DataMatcher(min_population=9).fit(found).decision_function(deltas)
    expected = (expected - expected.mean(axis=0)) / expected.std(axis=0)
    np.testing.assert_allclose(alone.decision_function(deltas), expected, atol=1e-4)
    # One fewer, and scores do not depend on the batch.
    part = alone.decision_function(deltas[:7])
    np.testing.assert_allclose(part[:3], alone.decision_function(deltas[:3]), atol=1e-4)
    assert np.abs(part - expected[:7]).max() > 0.1


def test_low_rank_and_dense_are_matched_alike():
    found, rng = draw_moments(), np.random.default_rng(1)
    B, A = rng.normal(size=(6, 9, 3)), rng.normal(size=(6, 3, 12))
    base = rng.normal(size=(9, 12))
    low_rank = DataMatcher().fit(found).decision_function(LowRankWeights(B, A))
    np.testing.assert_allclose(
        DataMatcher().fit(found).decision_function(B @ A), low_rank, atol=1e-4
    )
    centred = DataMatcher(center=base).fit(found).decision_function(base + B @ A)
    np.testing.assert_allclose(centred, low_rank, atol=1e-4)


def test_one_model_alone_gets_an_answer():
    found = draw_moments(3, d_in=30, d_out=30, names=["x", "y", "z"])
    models = simulate_models(found, n_models=30, task="single", random_state=3)
    matcher = DataMatcher(min_population=31).fit(found)
    alone = np.array([matcher.predict(models.data[[i]])[0] for i in range(30)])
    np.testing.assert_array_equal(alone, matcher.predict(models.data))
    assert (alone == models.target).mean() > 0.9
    chances = matcher.predict_proba(models.data)
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-6)
    right = chances[np.arange(30), np.searchsorted(found.classes, models.target)]
    assert right.mean() > 0.8


def test_several_layers_add_up():
    layers = {"a": draw_moments(seed=0), "b": draw_moments(d_in=7, seed=1)}
    rng = np.random.default_rng(0)
    W = {"a": rng.normal(size=(5, 9, 12)), "b": rng.normal(size=(5, 9, 7))}
    both = DataMatcher().fit(layers, W=W)
    assert both.layers_ == ["a", "b"]
    apart = 0
    for matched in both.matched_:
        templates = matched.templates.reshape(4, -1).astype(float)
        scores = views_by_hand(W[matched.name]) @ templates.T
        apart = apart + (scores - scores.mean(axis=0)) / scores.std(axis=0)
    np.testing.assert_allclose(both.decision_function(W), apart, atol=1e-3)
    models = simulate_models(layers, n_models=20, task="single")
    assert both.predict(models.data).shape == (20,)


@pytest.mark.parametrize("with_population", [False, True])
def test_added_classes_are_scored_as_if_they_had_been_there(with_population):
    found, more = draw_moments(4), draw_moments(2, seed=9, names=[7, 8])
    deltas = np.random.default_rng(1).normal(size=(30, 9, 12))
    W = deltas if with_population else None
    matcher = DataMatcher(n_simulated=60, min_population=31).fit(found, W=W)
    before = matcher.decision_function(deltas)
    assert matcher.add(more, W=W) is matcher
    after = matcher.decision_function(deltas)
    np.testing.assert_array_equal(after[:, :4], before)
    assert matcher.classes_.tolist() == [0, 1, 2, 3, 7, 8]
    assert matcher.predict_proba(deltas).shape == (30, 6)
    if with_population:
        np.testing.assert_allclose(after.mean(axis=0), 0, atol=1e-3)
        np.testing.assert_allclose(after.std(axis=0), 1, atol=1e-3)
    with pytest.raises(ValueError, match="Class 7 is known"):
        matcher.add(more, W=W)
    with pytest.raises(ValueError, match="standardised over"):
        matcher.add(
            draw_moments(1, names=["new"]), W=None if with_population else deltas
        )


def test_matcher_is_saved(tmp_path):
    found = draw_moments(3, names=["x", "y", "z"])
    deltas = np.random.default_rng(1).normal(size=(4, 9, 12))
    matcher = DataMatcher(n_simulated=30).fit(found)
    matcher.save(tmp_path / "matcher.skprobex")
    loaded = skprobex.load(tmp_path / "matcher.skprobex")
    np.testing.assert_array_equal(
        loaded.decision_function(deltas), matcher.decision_function(deltas)
    )
    loaded.add(draw_moments(1, seed=5, names=["w"]))
    assert loaded.classes_.tolist() == ["x", "y", "z", "w"]


def test_examples_are_scored_by_their_rows():
    rng = np.random.default_rng(0)
    rows, samples = rng.normal(size=(6, 12)), np.array([0, 0, 1, 2, 2, 2])
    deltas = rng.normal(size=(3, 9, 12))
    found = score_examples(deltas, Activations(rows, samples, 3, (9, 12)))
    moments = np.stack([rows[samples == i].T @ rows[samples == i] for i in range(3)])
    expected = score_by_hand(deltas, moments)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    gradients = ClassMoments(
        np.arange(3), moments.astype(np.float32), np.ones(3), (9, 12)
    )
    np.testing.assert_allclose(score_examples(deltas, gradients), expected, atol=1e-4)
    base = rng.normal(size=(9, 12))
    again = score_examples(base + deltas, gradients, center=base)
    np.testing.assert_allclose(again, expected, atol=1e-4)


def test_real_models_are_read_without_a_label():
    """Ten digits, six held-out pictures of each: which five was a network tuned on?"""
    jungle = make_digit_jungle(n_models=80, random_state=0, cache=False)
    _, _, images, digits = draw_images(10, np.random.RandomState(0))
    rows = torch.cat([torch.where(digits == c)[0][:6] for c in range(10)])
    images, digits = images[rows], digits[rows]
    base = torch.nn.Sequential()
    for name in ("hidden1", "hidden2"):
        base.add_module(name, torch.nn.Linear(64, 64))
        base.add_module(f"relu_{name}", torch.nn.ReLU())
    base.load_state_dict({n: torch.from_numpy(v[0]) for n, v in jungle.bases.items()})
    deltas = jungle.data - jungle.bases["hidden2.weight"]
    gradients = collect_gradients(
        base, "hidden2", {c: images[digits == c] for c in range(10)}, RandomHead(5)
    )
    activations = collect_activations(base, "hidden2", images)
    for X, y in ((gradients, None), (activations, digits.numpy())):
        simulated = simulate_models(X, y, n_models=500)
        clf = ProbeXClassifier(random_state=0).fit(simulated.data, simulated.target)
        decisions = clf.decision_function(deltas)
        decisions -= np.median(decisions, axis=0)
        assert ((decisions > 0) == (jungle.target > 0)).mean() > 0.93


FOUND = draw_moments()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: simulate_models(np.ones((4, 3)), [0, 0, 1]),
            "3 entries for 4 samples",
        ),
        (lambda: simulate_models(np.ones((4, 3)), [0, 0, 0, 0]), "There is 1 class, 0"),
        (lambda: simulate_models(np.ones((4, 3))), "y is None"),
        (
            lambda: simulate_models(np.full((4, 3), np.nan), list("aabb")),
            "sample 0 hold NaN",
        ),
        (lambda: simulate_models(np.ones(4), list("aabb")), r"shape \(4,\)"),
        (
            lambda: simulate_models(np.zeros((4, 3)), list("aabb")),
            "class 'a' holds zeros",
        ),
        (
            lambda: simulate_models(np.ones((4, 3)), [0, 1, np.nan, 0]),
            "sample 2 is nan",
        ),
        (lambda: simulate_models(FOUND, ["a", "b"]), "a name of its own"),
        (lambda: simulate_models({}), "empty dict"),
        (lambda: simulate_models({"a": FOUND, "b": draw_moments(5)}), "other classes"),
        (lambda: simulate_models(FOUND, task="all"), "task='all'"),
        (lambda: simulate_models(FOUND, n_models=1), "n_models=1"),
        (lambda: simulate_models(FOUND, classes_per_model=5), "integer from 1 to 4"),
        (lambda: simulate_models(FOUND, classes_per_model=1.5), "share above 0"),
        (lambda: simulate_models(FOUND, classes_per_model=(3, 2)), "low is above high"),
        (lambda: simulate_models(FOUND, classes_per_model=[0.5, 0.4]), "probabilities"),
        (lambda: simulate_models(FOUND, base=np.ones((9, 11))), r"shape \(9, 11\)"),
        (
            lambda: simulate_models({"a": FOUND}, base=np.ones((9, 12))),
            "dict of arrays",
        ),
        (lambda: simulate_models({"a": FOUND}, base={"b": 1}), "it lacks 'a'"),
        (lambda: DataMatcher().fit(FOUND, W=np.ones((3, 9, 11))), r"\(9, 11\)"),
        (lambda: DataMatcher().fit(FOUND, W=np.ones((1, 9, 12))), "1 model"),
        (lambda: DataMatcher(center=np.ones((9, 11))).fit(FOUND), r"\(9, 11\)"),
        (lambda: DataMatcher(center={"b": 1}).fit({"a": FOUND}), "it lacks 'a'"),
        (lambda: DataMatcher().fit(FOUND).predict(np.ones((3, 9, 11))), r"\(9, 11\)"),
        (lambda: DataMatcher().fit(FOUND).add({"a": FOUND}), "fitted on"),
        (
            lambda: DataMatcher().fit(FOUND).add(draw_moments(1, 11, names=["n"])),
            "11 inputs",
        ),
        (
            lambda: score_examples(
                np.ones((2, 9, 12)),
                Activations(np.ones((1, 12)), np.array([1]), 2, (9, 12)),
            ),
            "Example 0 has no rows",
        ),
        (lambda: score_examples(np.ones((2, 9, 11)), FOUND), r"\(9, 11\)"),
        (lambda: DataMatcher(center={"a": 1}).fit(FOUND), "there is one layer"),
        (
            lambda: DataMatcher(center=np.ones((9, 12))).fit({"a": FOUND}),
            "there are several layers",
        ),
        (
            lambda: DataMatcher().fit(FOUND).predict({"a": np.ones((3, 9, 12))}),
            "was fitted on one",
        ),
        (
            lambda: DataMatcher().fit({"a": FOUND}).predict(np.ones((3, 9, 12))),
            "was fitted on several",
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_moments_with_nan_are_refused():
    found = draw_moments(names=["w", "x", "y", "z"])
    found.moments[2, 0, 0] = np.nan
    for call in (simulate_models, DataMatcher().fit):
        with pytest.raises(ValueError, match="class 'y' holds NaN"):
            call(found)


def test_a_failed_fit_leaves_the_matcher_as_it_was():
    matcher = DataMatcher(n_simulated=10).fit(FOUND)
    before = vars(matcher).copy()
    with pytest.raises(ValueError):
        matcher.fit(FOUND, W=np.ones((3, 9, 11)))
    assert vars(matcher) == before
    with pytest.raises(TypeError, match="collect_activations"):
        score_examples(np.ones((2, 9, 12)), np.ones((2, 12)))


def test_a_batch_has_room_for_what_its_models_are_drawn_from():
    models = simulate_models(draw_moments(d_in=40, d_out=30), n_models=5).data
    assert isinstance(models, Weights) and models.rank == 30
    n_values = 30 * (30 + 40) + 2 * models._moments.basis.shape[1] ** 2
    expected = np.ceil(2**25 / (4 * n_values))
    assert models.batch_size(torch.float32) == expected
