"""The closed-form expert: what leave-one-out chooses, and what it is invariant to."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from skprobex import ProbeXClassifier, ProbeXRegressor
from skprobex.datasets import make_digit_jungle, make_model_tree
from skprobex.probing.ridge.choice import ViewSearch, join
from skprobex.probing.ridge.path import RidgePath
from skprobex.probing.ridge.probes import Candidate, ProbedView, list_candidates
from skprobex.probing.tasks import Classes, Labels, Numbers
from skprobex.probing.views import AUTO_VIEWS, VIEWS
from skprobex.weights import _contract

N_TRAIN = 60
# xtu holds what xu does; a Gram view and its logarithm look at the same side.
EQUIVALENT = {
    "xu": {"xu"},
    "xtu": {"xu"},
    "xtxu": {"xtxu", "log_xtx"},
    "xxtu": {"xxtu", "log_xxt"},
    "log_xtx": {"log_xtx"},
    "log_xxt": {"log_xxt"},
    "spectrum": {"spectrum"},
}


def make_tree(view="xtxu", **kwargs):
    kwargs = {"random_state": 0, "dtype": np.float64} | kwargs
    return make_model_tree(2 * N_TRAIN, (24, 20), view=view, return_X_y=True, **kwargs)


def to_tensors(*arrays):
    return [torch.from_numpy(np.asarray(array, dtype=float)) for array in arrays]


# Which views


@pytest.mark.parametrize("task", ["classification", "multilabel"])
@pytest.mark.parametrize("view", VIEWS)
def test_auto_finds_the_planted_view(view, task):
    W, y = make_tree(view, task=task)
    expert = ProbeXClassifier().fit(W[:N_TRAIN], y[:N_TRAIN])
    assert EQUIVALENT[view] & set(expert.views_)
    right = expert.predict(W[N_TRAIN:]) == y[N_TRAIN:]
    assert right.mean() > 0.9


@pytest.mark.parametrize("view", VIEWS)
def test_auto_finds_the_planted_view_of_a_real_target(view):
    kwargs = {"task": "regression", "noise": 0.1, "rank": 2, "random_state": 0}
    W, y = make_model_tree(200, (24, 20), view=view, return_X_y=True, **kwargs)
    expert = ProbeXRegressor().fit(W[:150], y[:150])
    assert EQUIVALENT[view] & set(expert.views_)
    assert expert.score(W[150:], y[150:]) > 0.7


def test_auto_joins_views_that_know_different_things():
    inputs, y_inputs = make_tree("xtxu", task="multilabel", n_classes=2)
    outputs, y_outputs = make_tree(
        "xxtu", task="multilabel", n_classes=2, random_state=1
    )
    W, y = inputs + outputs, np.hstack([y_inputs, y_outputs])
    expert = ProbeXClassifier().fit(W[:N_TRAIN], y[:N_TRAIN])
    sides = [EQUIVALENT["xtxu"], EQUIVALENT["xxtu"]]
    assert all(side & set(expert.views_) for side in sides)
    joined = max(expert.view_scores_.values())
    assert joined > max(
        value for name, value in expert.view_scores_.items() if "+" not in name
    )


def test_view_scores_hold_all_single_views_and_the_chosen():
    W, y = make_tree()
    expert = ProbeXClassifier().fit(W, y)
    assert set(AUTO_VIEWS) <= set(expert.view_scores_)
    chosen = [
        value
        for name, value in expert.view_scores_.items()
        if set(name.split("+")) == set(expert.views_)
    ]
    assert chosen == [max(expert.view_scores_.values())]


def test_view_scores_are_leave_one_out_scores():
    W, y = make_tree("xtxu", signal=0.3)
    for view in ("xtxu", "log_xtx", "xu"):
        expert = ProbeXClassifier(views=(view,), normalize=True).fit(W, y)
        predicted = expert.expert_.loo_predictions.argmax(axis=1)
        assert expert.view_scores_ == {
            view: pytest.approx(accuracy_score(y, predicted))
        }


def test_candidates_probe_the_spectrum_once():
    both = list_candidates("auto", "auto")
    assert len(both) == len(set(both)) == 2 * (len(AUTO_VIEWS) - 1) + 1
    assert list_candidates(("xu", "spectrum"), False) == [
        Candidate(VIEWS["xu"], False),
        Candidate(VIEWS["spectrum"], None),
    ]


# With or without the norm


@pytest.mark.parametrize("scale_matters", [True, False])
def test_auto_normalizes_unless_the_norm_knows(scale_matters):
    """The same deltas, with a norm that is the target or that is noise."""
    rng = np.random.default_rng(0)
    n_models = 2 * N_TRAIN
    direction = rng.standard_normal((10, 8))
    sign = rng.choice([-1, 1], n_models)
    size = rng.uniform(0.5, 8, n_models)
    noise = rng.standard_normal((n_models, 10, 8))
    W = (size * sign)[:, None, None] * (direction + 0.5 * noise)
    y = size * sign if scale_matters else sign.astype(float)
    expert = ProbeXRegressor(views=("xu",), center=None).fit(W[:N_TRAIN], y[:N_TRAIN])
    assert expert.normalize_ is not scale_matters
    assert expert.score(W[N_TRAIN:], y[N_TRAIN:]) > 0.9
    other = ProbeXRegressor(views=("xu",), center=None, normalize=scale_matters)
    other.fit(W[:N_TRAIN], y[:N_TRAIN])
    assert other.normalize_ is scale_matters
    assert expert.view_scores_["xu"] > other.view_scores_["xu"]


# The search


def search(candidates, features, targets, is_auto=True, layers=("only",)):
    """Search the views of layers that all have the same features."""
    candidates = [Candidate(VIEWS[name], option) for name, option in candidates]
    found = ViewSearch(candidates, is_auto, Labels(targets), (1e-2, 1.0))
    for layer in layers:
        found.add_layer(
            layer, [ProbedView(c.view.name, None) for c in candidates], features
        )
    return found.choose(), found.scores


@pytest.fixture
def blocks():
    """Three blocks of features: two know one label each, the third knows nothing."""
    rng = np.random.default_rng(0)
    targets = rng.choice([-1.0, 1.0], (40, 2))
    noise = rng.standard_normal((3, 40, 8))
    features = [
        targets[:, :1] + 0.3 * noise[0],
        noise[1],
        targets[:, 1:] + 0.3 * noise[2],
    ]
    (targets,) = to_tensors(targets)
    return to_tensors(*features), targets


def test_the_search_adds_what_improves_the_sum(blocks):
    candidates = [("xu", True), ("xtxu", True), ("xxtu", True)]
    best, scores = search(candidates, *blocks)
    assert best.name == "xu+xxtu"
    assert best.score == 1
    # Nothing is added to a perfect score.
    assert set(scores["only"]) == {"xu", "xtxu", "xxtu", "xu+xxtu"}
    assert scores["only"]["xu+xxtu"] == 1
    assert scores["only"]["xtxu"] < 0.8


def test_the_search_joins_only_equal_normalizations(blocks):
    candidates = [("xu", True), ("xtxu", False), ("xxtu", False)]
    best, scores = search(candidates, *blocks)
    assert best.name in ("xu", "xtxu+xxtu", "xxtu")
    assert not any("xu+" in name for name in scores["only"] if name.startswith("xu"))


def test_a_view_and_its_logarithm_compete(blocks):
    candidates = [("xxtu", True), ("xtxu", True), ("log_xxt", True)]
    best, scores = search(candidates, *blocks)
    assert not any(
        {"xxtu", "log_xxt"} <= set(name.split("+")) for name in scores["only"]
    )
    assert len(best.blocks) <= 2


def test_all_views_asked_for_are_joined(blocks):
    candidates = [("xu", True), ("xu", False), ("spectrum", None)]
    _, scores = search(candidates, *blocks, is_auto=False)
    assert set(scores["only"]) == {"xu+spectrum"}


def test_blocks_are_joined_in_the_order_of_their_layers(blocks):
    features, targets = blocks
    search_of_two = ViewSearch(
        [Candidate(VIEWS["xu"], True)], True, Labels(targets), (1e-2, 1.0)
    )
    # The second layer is the better one, and is added to.
    noisy = features[0] + 2 * features[1]
    search_of_two.add_layer("first", [ProbedView("xu", None)], [features[2]])
    search_of_two.add_layer("second", [ProbedView("xu", None)], [noisy])
    best = search_of_two.choose()
    assert [block.layer for block in best.blocks] == ["first", "second"]
    width = features[2].shape[1]
    joined = best.joined_features()
    np.testing.assert_allclose(
        joined[:, :width], features[2] * best.shares[0] ** 0.5, rtol=0, atol=1e-12
    )


def test_joined_views_share_the_norm():
    first, second = to_tensors(np.eye(4, 3), 2 * np.eye(4, 5))
    joined = join([first, second], [0.5, 0.5])
    assert joined.shape == (4, 8)
    np.testing.assert_allclose(joined[:, :3], first / 2**0.5)
    np.testing.assert_allclose(joined[:, 3:], second / 2**0.5)


# The penalty


@pytest.fixture
def noisy():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((30, 12))
    targets = features[:, :3] + [0.1, 1, 10] * rng.standard_normal((30, 3))
    return features, targets, rng.uniform(0.5, 2, 30)


ALPHAS = (1e-3, 1e-1, 1.0, 10.0, 100.0, 1000.0)


def test_real_targets_choose_the_least_squared_error_each(noisy):
    features, targets, weight = noisy
    path = RidgePath(*to_tensors(features, targets, weight))
    choice = Numbers(path.targets, path.shares).choose_penalty(path, ALPHAS)
    left_out = path.leave_one_out(torch.tensor(ALPHAS, dtype=torch.float64)).numpy()
    for t in range(3):
        errors = [
            np.average((one[:, t] - targets[:, t]) ** 2, weights=weight)
            for one in left_out
        ]
        best = int(np.argmin(errors))
        assert choice.alpha[t].item() == ALPHAS[best]
        np.testing.assert_array_equal(choice.predictions[:, t], left_out[best, :, t])
    assert len(set(choice.alpha.tolist())) == 3
    expected = r2_score(targets, choice.predictions.numpy(), sample_weight=weight)
    assert choice.score == pytest.approx(expected)


@pytest.mark.parametrize("task", ["binary", "multilabel", "multiclass"])
def test_classes_share_the_penalty_of_highest_correlation(task, noisy):
    features, targets, weight = noisy
    targets = np.where(targets > 0, 1.0, -1.0)
    if task == "binary":
        targets = targets[:, :1]
    elif task == "multiclass":
        targets = 2 * np.eye(3)[features[:, :3].argmax(axis=1)] - 1
    path = RidgePath(*to_tensors(features, targets, weight))
    kind = Classes if task == "multiclass" else Labels
    choice = kind(path.targets).choose_penalty(path, ALPHAS)
    left_out = path.leave_one_out(torch.tensor(ALPHAS, dtype=torch.float64)).numpy()
    known = targets - np.average(targets, axis=0, weights=weight)
    correlations = []
    for one in left_out:
        deviations = one - np.average(one, axis=0, weights=weight)
        both = np.average(deviations * known, axis=0, weights=weight).sum()
        own = np.average(deviations**2, axis=0, weights=weight).sum()
        correlations.append(both / own**0.5)
    best = int(np.argmax(correlations))
    assert choice.alpha.tolist() == [ALPHAS[best]] * targets.shape[1]
    np.testing.assert_array_equal(choice.predictions, left_out[best])
    assert choice.error == pytest.approx(-correlations[best])


@pytest.mark.parametrize("weighted", [False, True])
def test_score_is_sklearns(weighted, noisy):
    _, targets, weight = noisy
    rng = np.random.default_rng(1)
    predictions = targets + rng.standard_normal(targets.shape)
    signs = np.where(targets > 0, 1.0, -1.0)
    onehot = 2 * np.eye(3)[targets.argmax(axis=1)] - 1
    weight = weight if weighted else np.ones(30)
    shares = to_tensors(weight / weight.sum())[0] if weighted else None
    expected = {
        "regression": r2_score(targets, predictions, sample_weight=weight),
        "multiclass": accuracy_score(
            targets.argmax(axis=1), predictions.argmax(axis=1), sample_weight=weight
        ),
        "multilabel": np.average(
            [
                accuracy_score(s, p)
                for s, p in zip(signs > 0, predictions > 0, strict=True)
            ],
            weights=weight,
        ),
    }
    known = {"regression": targets, "multiclass": onehot, "multilabel": signs}
    kinds = {"regression": Numbers, "multiclass": Classes, "multilabel": Labels}
    for task, value in expected.items():
        predicted, truth = to_tensors(predictions, known[task])
        got = kinds[task](truth).score(predicted, shares)
        assert got == pytest.approx(value, abs=1e-12)


def test_alpha_is_one_number_or_one_a_target():
    W, y = make_tree("xu", task="regression")
    rng = np.random.default_rng(0)
    targets = np.column_stack([y, rng.standard_normal(len(y))])
    expert = ProbeXRegressor(views=("xu",)).fit(W, targets)
    assert expert.alpha_.shape == (2,)
    assert expert.alpha_[1] > expert.alpha_[0]
    assert isinstance(ProbeXRegressor(views=("xu",)).fit(W, y).alpha_, float)


# Leave-one-out against refits from the weights


@pytest.mark.parametrize("n_classes", [10, 40])
def test_leave_one_out_accuracy_is_that_of_refits(n_classes):
    W, Y = make_digit_jungle(50, n_classes, cache=False, return_X_y=True)
    classifier = ProbeXClassifier(views=("log_xtx",), normalize=True).fit(W, Y)
    left_out = ((classifier.expert_.loo_predictions > 0) == Y).mean()
    refitted = cross_val_predict(classifier, W, Y, cv=LeaveOneOut())
    assert left_out == pytest.approx((refitted == Y).mean(), abs=0.02)


# Predictions


@pytest.mark.parametrize("views", ["auto", ("xu",), ("log_xtx", "xxtu", "spectrum")])
def test_coefficients_predict_from_the_features(views):
    W, y = make_tree("xtxu")
    expert = ProbeXClassifier(views=views, n_components=None).fit(W, y)
    features = expert.transform(W)
    np.testing.assert_allclose(features.mean(axis=0), 0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        features @ expert.coef_.T + expert.intercept_,
        expert.decision_function(W),
        rtol=0,
        atol=1e-10,
    )


def test_principal_components_of_the_features():
    W, y = make_tree("xtxu")
    views = ("xtxu", "xu")
    features = ProbeXClassifier(views=views, n_components=None).fit(W, y).transform(W)
    components = ProbeXClassifier(views=views, n_components=5).fit(W, y).transform(W)
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    expected = u[:, :5] * s[:5]
    np.testing.assert_allclose(np.abs(components), np.abs(expected), rtol=0, atol=1e-8)


def test_ridge_on_the_features_is_sklearns():
    W, y = make_tree("xtxu", task="regression")
    expert = ProbeXRegressor(views=("xtxu", "xu"), n_components=None).fit(W, y)
    features = expert.transform(W)
    ridge = Ridge(expert.alpha_).fit(features, y)
    fresh, _ = make_tree("xtxu", task="regression", random_state=1)
    np.testing.assert_allclose(
        expert.predict(fresh), ridge.predict(expert.transform(fresh)), rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(expert.coef_[0], ridge.coef_, rtol=0, atol=1e-9)


# Invariances


@pytest.mark.parametrize("normalize", [True, False, "auto"])
def test_the_order_of_views_does_not_matter(normalize):
    W, y = make_tree("xtxu")
    views = ("xu", "log_xtx", "spectrum")
    first, second = (
        ProbeXClassifier(views=order, normalize=normalize).fit(W, y)
        for order in (views, views[::-1])
    )
    assert first.views_ == second.views_
    np.testing.assert_array_equal(
        first.decision_function(W), second.decision_function(W)
    )


@pytest.mark.parametrize("views", ["auto", *((view,) for view in VIEWS)])
def test_the_order_of_models_does_not_matter(views):
    W, y = make_tree("xtxu", noise=0.5)
    order = np.random.default_rng(0).permutation(N_TRAIN)
    fresh = W[N_TRAIN:]
    first = ProbeXClassifier(views=views).fit(W[:N_TRAIN], y[:N_TRAIN])
    second = ProbeXClassifier(views=views).fit(W[:N_TRAIN][order], y[:N_TRAIN][order])
    assert first.views_ == second.views_
    np.testing.assert_allclose(
        second.decision_function(fresh),
        first.decision_function(fresh),
        rtol=0,
        atol=1e-10,
    )


def test_the_order_of_models_does_not_matter_to_a_real_target():
    W, y = make_tree("spectrum", task="regression")
    order = np.random.default_rng(0).permutation(N_TRAIN)
    fresh = W[N_TRAIN:]
    first = ProbeXRegressor().fit(W[:N_TRAIN], y[:N_TRAIN])
    second = ProbeXRegressor().fit(W[:N_TRAIN][order], y[:N_TRAIN][order])
    np.testing.assert_allclose(
        second.predict(fresh), first.predict(fresh), rtol=0, atol=1e-10
    )


def test_the_order_of_large_models_does_not_matter():
    """Nor the batches, where the decomposition is randomised."""
    rng = np.random.default_rng(0)
    y = rng.standard_normal(12)
    left, right = rng.standard_normal((180, 3)), rng.standard_normal((3, 170))
    W = y[:, None, None] * (left @ right) + rng.standard_normal((12, 180, 170))
    order = rng.permutation(12)
    model = ProbeXRegressor(random_state=0, n_probes=8)
    first = model.fit(W, y).predict(W)
    second = model.fit(W[order], y[order]).predict(W)
    np.testing.assert_allclose(second, first, rtol=0, atol=1e-10)


def test_batches_do_not_matter(monkeypatch):
    W, y = make_tree("xtxu", task="regression")
    expected = ProbeXRegressor().fit(W, y).predict(W)
    monkeypatch.setattr(_contract, "BATCH_BYTES", 7 * W[0].nbytes)
    model = ProbeXRegressor().fit(W, y)
    np.testing.assert_allclose(model.predict(W), expected, rtol=0, atol=1e-10)
    one_by_one = np.concatenate([model.predict(W[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(one_by_one, expected[:5], rtol=0, atol=1e-10)


@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_the_unit_of_the_weights_does_not_matter(unit):
    W, y = make_tree("xtxu", task="regression", dtype=np.float32)
    expected = ProbeXRegressor().fit(W, y).predict(W)
    scaled = ProbeXRegressor().fit(np.float32(unit) * W, y)
    got = scaled.predict(np.float32(unit) * W)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3)


def test_what_is_subtracted_does_not_matter():
    W, y = make_tree("xtxu", task="regression")
    base = 10 * np.random.default_rng(0).standard_normal(W[0].shape)
    for center, moved_center in ((None, base), ("mean", "mean")):
        plain = ProbeXRegressor(center=center).fit(W, y)
        moved = ProbeXRegressor(center=moved_center).fit(W + base, y)
        np.testing.assert_allclose(
            moved.predict(W + base), plain.predict(W), rtol=0, atol=1e-9
        )


@pytest.mark.filterwarnings("ignore:All models look alike")
@pytest.mark.parametrize("views", ["auto", ("spectrum",), ("xu", "log_xtx")])
@pytest.mark.parametrize("shape", [(20, 3, 2), (6, 8, 7)])
def test_equal_models_predict_the_mean(views, shape):
    W = np.ones(shape)
    y = np.arange(len(W), dtype=float)
    model = ProbeXRegressor(views=views).fit(W, y)
    np.testing.assert_allclose(model.predict(W), y.mean(), rtol=0, atol=1e-9)
    assert np.isfinite(model.transform(W)).all()


def test_a_class_of_no_weight_is_ignored():
    W, y = make_tree("xtxu")
    model = ProbeXClassifier(views=("xtxu",), class_weight={0: 1, 1: 1, 2: 0})
    probabilities = model.fit(W, y).predict_proba(W)
    assert np.isfinite(probabilities).all()
    known = y != 2
    assert (model.predict(W[known]) == y[known]).mean() > 0.9


def test_fit_leaves_the_weights_alone():
    W, y = make_tree("xtxu", dtype=np.float32)
    before = W.copy()
    for center in (None, "mean"):
        ProbeXClassifier(center=center).fit(W, y).predict(W)
    np.testing.assert_array_equal(W, before)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_ridge_on_cuda_is_ridge_on_the_cpu():
    W, y = make_tree("xtxu")
    cpu, cuda = (
        ProbeXClassifier(device=device).fit(W, y) for device in ("cpu", "cuda")
    )
    assert cuda.views_ == cpu.views_
    assert isinstance(cuda.coef_, np.ndarray)
    np.testing.assert_allclose(
        cuda.predict_proba(W), cpu.predict_proba(W), rtol=0, atol=1e-6
    )
