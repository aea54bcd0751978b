"""Calibration: planted odds recovered, against scikit-learn and plain descent."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn.linear_model import LogisticRegression, Ridge

from skprobex import ProbeXClassifier
from skprobex.datasets import make_model_tree
from skprobex.targets._labels import LabelSets, ManyClasses, TwoClasses

CODINGS = {"binary": TwoClasses, "multilabel": LabelSets, "multiclass": ManyClasses}


def fit_log_odds(kind, decisions, targets, weight=None):
    coding = CODINGS[kind](np.arange(targets.shape[1]))
    return coding.calibrate(decisions, targets, weight)


def draw_binary(n, slope=3.0, offset=-1.0, seed=0):
    rng = np.random.default_rng(seed)
    decisions = rng.standard_normal((n, 1))
    positive = rng.random((n, 1)) < expit(slope * decisions + offset)
    return decisions, np.where(positive, 1.0, -1.0)


def draw_classes(n, slope=2.0, n_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    decisions = rng.standard_normal((n, n_classes))
    cumulated = softmax(slope * decisions, axis=1).cumsum(axis=1)
    classes = (rng.random((n, 1)) > cumulated).sum(axis=1)
    return decisions, 2 * np.eye(n_classes)[classes] - 1


# Platt's sigmoid


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_planted_slope_and_offset_are_recovered(unit):
    decisions, targets = draw_binary(40_000)
    slope, offset = fit_log_odds("binary", unit * decisions, targets)
    assert slope.shape == offset.shape == (1,)
    assert slope[0] * unit == pytest.approx(3, abs=0.1)
    assert offset[0] == pytest.approx(-1, abs=0.05)


@pytest.mark.parametrize("weighted", [False, True])
def test_sigmoid_is_logistic_regression_on_smoothed_targets(weighted):
    decisions, targets = draw_binary(60)
    rng = np.random.default_rng(1)
    weight = rng.uniform(0.2, 3, 60) if weighted else None
    slope, offset = fit_log_odds("binary", decisions, targets, weight)
    weight = weight if weighted else np.ones(60)
    positive = targets[:, 0] > 0
    n_positive, n_negative = weight[positive].sum(), weight[~positive].sum()
    smoothed = np.where(
        positive, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2)
    )
    # A target between 0 and 1 is a share of each of the two.
    twice = np.r_[decisions, decisions]
    labels = np.repeat([1, 0], 60)
    shares = np.r_[weight * smoothed, weight * (1 - smoothed)]
    oracle = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000)
    oracle.fit(twice, labels, shares)
    assert slope[0] == pytest.approx(oracle.coef_[0, 0], rel=1e-3)
    assert offset[0] == pytest.approx(oracle.intercept_[0], abs=1e-3)


def test_each_label_has_its_own_odds():
    first, second = draw_binary(500), draw_binary(500, slope=0.5, offset=2, seed=1)
    decisions, targets = (np.hstack(pair) for pair in zip(first, second, strict=True))
    together = np.stack(fit_log_odds("multilabel", decisions, targets))
    alone = np.hstack(
        [np.stack(fit_log_odds("binary", *one)) for one in (first, second)]
    )
    np.testing.assert_array_equal(together, alone)
    assert together[0, 0] > 2 * together[0, 1]
    assert together[1, 0] < 0 < together[1, 1]


@pytest.mark.parametrize("gap", [1e-3, 1.0, 1e3])
def test_separable_decisions_get_a_finite_slope(gap):
    targets = np.repeat([-1.0, 1.0], 10)[:, None]
    decisions = gap * targets * np.linspace(1, 2, 20)[:, None]
    slope, offset = fit_log_odds("binary", decisions, targets)
    assert np.isfinite(slope).all()
    assert np.isfinite(offset).all()
    probabilities = expit(slope * decisions + offset)[:, 0]
    assert probabilities[:10].max() < 0.2
    assert probabilities[10:].min() > 0.8
    # No surer than the smoothing: eleven of twelve, a little more for the farthest.
    assert probabilities.max() < 0.99
    assert probabilities.min() > 0.01


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_slopes_are_positive_where_the_decisions_are_wrong(task):
    decisions, targets = draw_binary(200)
    slope, offset = fit_log_odds(task, -decisions, targets)
    assert slope[0] > 0
    # As good as the share of positives alone.
    share = (targets > 0).mean()
    probabilities = expit(-slope * decisions + offset)
    np.testing.assert_allclose(probabilities, share, rtol=0, atol=0.03)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_label_that_all_models_share(sign):
    decisions, _ = draw_binary(30)
    slope, offset = fit_log_odds("multilabel", decisions, np.full((30, 1), sign))
    assert np.isfinite([slope, offset]).all()
    assert slope[0] > 0
    probabilities = expit(slope * decisions + offset)
    assert (np.where(sign > 0, probabilities, 1 - probabilities) > 0.9).all()


def test_decisions_of_zero_give_the_share():
    targets = np.repeat([-1.0, 1.0, 1.0, 1.0], 25)[:, None]
    slope, offset = fit_log_odds("binary", np.zeros((100, 1)), targets)
    assert np.isfinite(slope).all()
    assert expit(offset[0]) == pytest.approx(0.75, abs=0.01)


# Temperature


def cross_entropy(slope, decisions, targets, weight=None):
    losses = -log_softmax(slope * decisions, axis=1)[targets > 0]
    return np.average(losses, weights=weight)


@pytest.mark.parametrize("unit", [1e-2, 1.0, 1e2])
def test_planted_temperature_is_recovered(unit):
    decisions, targets = draw_classes(20_000)
    slope, offset = fit_log_odds("multiclass", unit * decisions, targets)
    assert slope.shape == (4,)
    assert np.ptp(slope) == 0
    np.testing.assert_array_equal(offset, 0)
    assert slope[0] * unit == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("weighted", [False, True])
def test_temperature_minimizes_the_cross_entropy(weighted):
    decisions, targets = draw_classes(5000)
    # Half the models are drawn at another temperature, so that weights matter.
    other, labels = draw_classes(5000, slope=0.3, seed=1)
    decisions, targets = np.vstack([decisions, other]), np.vstack([targets, labels])
    weight = np.repeat([9.0, 1.0], 5000) if weighted else None
    slope = fit_log_odds("multiclass", decisions, targets, weight)[0][0]
    grid = np.linspace(0.2, 3, 561)
    losses = [cross_entropy(value, decisions, targets, weight) for value in grid]
    # Smoothing by one vote in ten thousand moves it a little.
    assert slope == pytest.approx(grid[np.argmin(losses)], abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_temperature_keeps_the_predicted_class(seed):
    rng = np.random.default_rng(seed)
    decisions = rng.standard_normal((30, 5))
    # Nothing to be learnt from, and as wrong as can be.
    for classes in (rng.integers(5, size=30), decisions.argmin(axis=1)):
        targets = 2 * np.eye(5)[classes] - 1
        slope, offset = fit_log_odds("multiclass", decisions, targets)
        assert slope[0] > 0
        calibrated = slope * decisions + offset
        np.testing.assert_array_equal(calibrated.argmax(1), decisions.argmax(1))


def test_separable_classes_get_a_finite_temperature():
    targets = 2 * np.eye(3)[np.arange(30) % 3] - 1
    slope, _ = fit_log_odds("multiclass", targets, targets)
    probabilities = softmax(slope * targets, axis=1)
    assert 0.8 < probabilities.max() < 0.99


# Weights


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_weights_are_repetitions(task):
    draw = draw_binary if task == "binary" else draw_classes
    # What comes twice is drawn at another slope, so that weights matter.
    parts = zip(draw(2000, slope=2.0), draw(2000, slope=0.5, seed=1), strict=True)
    decisions, targets = (np.vstack(pair) for pair in parts)
    repeats = np.repeat([1, 3], 2000)
    weighted = fit_log_odds(task, decisions, targets, repeats.astype(float))
    repeated = fit_log_odds(
        task, np.repeat(decisions, repeats, axis=0), np.repeat(targets, repeats, axis=0)
    )
    plain = fit_log_odds(task, decisions, targets)
    np.testing.assert_allclose(weighted, repeated, rtol=0, atol=1e-10)
    assert plain[0][0] > repeated[0][0] + 0.1


# In the classifier


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_classifier_calibrates_on_leave_one_out(task):
    kwargs = {
        "binary": {"n_classes": 2},
        "multiclass": {"n_classes": 3},
        "multilabel": {"task": "multilabel"},
    }[task]
    W, y = make_model_tree(
        80, (8, 6), signal=0.5, noise=1, random_state=0, return_X_y=True, **kwargs
    )
    W = W.astype(np.float64)
    model = ProbeXClassifier(views=("xtxu",), n_components=None).fit(W, y)
    left_out = model.expert_.loo_predictions
    codes = {
        "binary": y[:, None],
        "multiclass": np.eye(3)[y.ravel()[:80]],
        "multilabel": y,
    }[task]
    slope, offset = fit_log_odds(task, left_out, 2.0 * codes - 1)
    decisions = np.reshape(model.decision_function(W), (80, -1))
    raw = (decisions - offset) / slope
    features = model.transform(W)
    # The ridge itself, refitted on the features without its calibration.
    expected = Ridge(model.alpha_).fit(features, 2.0 * codes - 1).predict(features)
    np.testing.assert_allclose(raw, expected.reshape(80, -1), rtol=0, atol=1e-8)


def test_probabilities_are_honest_on_unseen_models():
    W, y = make_model_tree(
        3000,
        (10, 8),
        n_classes=2,
        signal=0.25,
        noise=1,
        random_state=0,
        return_X_y=True,
    )
    model = ProbeXClassifier(views=("xtxu",)).fit(W[:1000], y[:1000])
    probabilities = model.predict_proba(W[1000:])[:, 1]
    assert 0.65 < model.score(W[1000:], y[1000:]) < 0.85
    edges = np.quantile(probabilities, [0, 0.25, 0.5, 0.75, 1])
    bins = np.clip(np.searchsorted(edges, probabilities, side="right") - 1, 0, 3)
    gaps = [
        abs(probabilities[bins == b].mean() - y[1000:][bins == b].mean())
        for b in range(4)
    ]
    assert max(gaps) < 0.06


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_logarithms_of_probabilities(task):
    settings = {"n_classes": 2} if task == "binary" else {}
    settings |= {"task": "multilabel"} if task == "multilabel" else {}
    W, y = make_model_tree(
        60, (10, 8), view="xtxu", random_state=0, return_X_y=True, **settings
    )
    model = ProbeXClassifier().fit(W, y)
    found = model.predict_log_proba(W)
    np.testing.assert_allclose(np.exp(found), model.predict_proba(W), atol=1e-6)
    # Where a probability is no number above zero, its logarithm is one.
    decisions = np.full((3, 1 if task == "binary" else 3), -1e3)
    decisions[:, 0] = 1e3
    coding = model._coding
    log = coding.log_probabilities(coding.squeeze(decisions))
    assert np.isfinite(log).all() and log.min() < -900
