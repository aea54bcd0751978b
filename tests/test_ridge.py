"""Ridge: against scikit-learn's, and leave-one-out against as many refits."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from skprobex.probing.ridge.path import RidgePath, centred_kernel

N_MODELS, N_TARGETS = 14, 3
# The ends of the default grid, and between.
ALPHAS = (1e-4, 0.1, 1e3)
# More features than models (dual), fewer (primal), and as many.
WIDTHS = pytest.mark.parametrize("n_features", [30, 5, N_MODELS])
WEIGHTED = pytest.mark.parametrize("weighted", [False, True])


def draw(n_features, n_models=N_MODELS, seed=0):
    """Features of unit spread, targets, neither centred; weights from 0.2 to 3."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n_models, n_features)) + 2
    targets = features[:, :1] + rng.standard_normal((n_models, N_TARGETS)) - 3
    features /= np.sqrt(features.var(axis=0).sum())
    return features, targets, rng.uniform(0.2, 3, n_models)


def to_tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays if array is not None]


def as_path(features, targets, weight=None):
    return RidgePath(*to_tensors(features, targets, weight))


def solve_naively(features, targets, alpha, weight):
    """Solve the normal equations, with a column of ones that is not penalised."""
    n_models, n_features = features.shape
    design = np.column_stack([features, np.ones(n_models)])
    penalty = alpha * np.diag([*np.ones(n_features), 0])
    weighted = design.T * weight
    solution = np.linalg.solve(weighted @ design + penalty, weighted @ targets)
    return solution[:-1].T, solution[-1]


def solve_by_sklearn(features, targets, alpha, weight):
    ridge = Ridge(alpha, solver="cholesky").fit(features, targets, weight)
    return ridge.coef_, ridge.intercept_


def leave_one_out_naively(features, targets, alpha, weight, solve=solve_naively):
    predictions = np.empty_like(targets)
    for i in range(len(targets)):
        rest = np.arange(len(targets)) != i
        coef, intercept = solve(features[rest], targets[rest], alpha, weight[rest])
        predictions[i] = coef @ features[i] + intercept
    return predictions


@WEIGHTED
@WIDTHS
@pytest.mark.parametrize("solve", [solve_naively, solve_by_sklearn])
def test_leave_one_out_is_as_many_refits(n_features, weighted, solve):
    features, targets, weight = draw(n_features)
    path = as_path(features, targets, weight if weighted else None)
    weight = weight if weighted else np.ones(N_MODELS)
    predictions = path.leave_one_out(torch.tensor(ALPHAS, dtype=torch.float64))
    assert predictions.shape == (len(ALPHAS), N_MODELS, N_TARGETS)
    for alpha, prediction in zip(ALPHAS, predictions, strict=True):
        expected = leave_one_out_naively(features, targets, alpha, weight, solve)
        np.testing.assert_allclose(prediction, expected, rtol=0, atol=1e-8)


@WEIGHTED
@WIDTHS
@pytest.mark.parametrize("n_groups", [2, 5, 13])
def test_leave_group_out_is_as_many_refits(n_groups, n_features, weighted):
    features, targets, weight = draw(n_features)
    groups = np.random.default_rng(1).integers(0, n_groups, N_MODELS)
    groups[:2] = 0, 1  # two at least
    path = as_path(features, targets, weight if weighted else None)
    weight = weight if weighted else np.ones(N_MODELS)
    predictions = path.leave_group_out(
        torch.tensor(ALPHAS, dtype=torch.float64), torch.from_numpy(groups)
    )
    for alpha, prediction in zip(ALPHAS, predictions, strict=True):
        for group in np.unique(groups):
            own, rest = groups == group, groups != group
            coef, intercept = solve_naively(
                features[rest], targets[rest], alpha, weight[rest]
            )
            expected = features[own] @ coef.T + intercept
            np.testing.assert_allclose(prediction[own], expected, rtol=0, atol=1e-7)


@WIDTHS
def test_groups_of_one_are_leave_one_out(n_features):
    features, targets, _ = draw(n_features)
    path, alphas = as_path(features, targets), torch.tensor(ALPHAS).double()
    np.testing.assert_allclose(
        path.leave_group_out(alphas, torch.arange(N_MODELS).flip(0)),
        path.leave_one_out(alphas),
        rtol=0,
        atol=1e-8,
    )


@WIDTHS
def test_other_targets_are_another_ridge(n_features):
    features, targets, _ = draw(n_features)
    path = as_path(features, targets)
    other = path.with_targets(torch.from_numpy(2 * targets[:, :1] + 1))
    coef, intercept = other.solve(0.5)
    expected = as_path(features, targets).solve(0.5)
    np.testing.assert_allclose(coef, 2 * expected[0][:1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(intercept, 2 * expected[1][:1] + 1, rtol=0, atol=1e-12)


@WIDTHS
def test_without_the_intercepts_leverage_leave_one_out_is_wrong(n_features):
    """The oracle above would notice the loss of that term."""
    features, targets, _ = draw(n_features)
    path = as_path(features, targets)
    alpha = ALPHAS[0]
    (exact,) = path.leave_one_out(torch.tensor([alpha], dtype=torch.float64)).numpy()
    centred = features - features.mean(axis=0)
    gram = centred @ centred.T
    hat = gram @ np.linalg.inv(gram + alpha * np.eye(N_MODELS))
    means = targets.mean(axis=0)
    residuals = targets - means - hat @ (targets - means)
    naive = targets - residuals / (1 - np.diag(hat))[:, None]
    assert np.abs(naive - exact).max() > 0.1


@WEIGHTED
@WIDTHS
@pytest.mark.parametrize("alpha", ALPHAS)
def test_solution_is_sklearns(n_features, weighted, alpha):
    features, targets, weight = draw(n_features)
    path = as_path(features, targets, weight if weighted else None)
    coef, intercept = path.solve(alpha)
    weight = weight if weighted else None
    expected = solve_by_sklearn(features, targets, alpha, weight)
    np.testing.assert_allclose(coef, expected[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(intercept, expected[1], rtol=0, atol=1e-9)


@WEIGHTED
@WIDTHS
def test_kernels_are_inner_products_of_centred_features(n_features, weighted):
    features, targets, weight = draw(n_features)
    tensors = to_tensors(features, targets, weight if weighted else None)
    kernel = centred_kernel(tensors[0], *tensors[2:])
    weight = weight if weighted else np.ones(N_MODELS)
    centred = features - np.average(features, axis=0, weights=weight)
    centred *= np.sqrt(weight)[:, None]
    np.testing.assert_allclose(kernel, centred @ centred.T, rtol=0, atol=1e-13)
    plain, given = RidgePath(*tensors), RidgePath(*tensors, kernel=kernel)
    alphas = torch.tensor(ALPHAS, dtype=torch.float64)
    # Given a kernel the dual is solved, also where the primal is smaller.
    np.testing.assert_allclose(
        given.leave_one_out(alphas), plain.leave_one_out(alphas), rtol=0, atol=1e-9
    )


@WIDTHS
def test_each_target_has_its_own_penalty(n_features):
    features, targets, weight = draw(n_features)
    path = as_path(features, targets, weight)
    coef, intercept = path.solve(torch.tensor(ALPHAS, dtype=torch.float64))
    for t, alpha in enumerate(ALPHAS):
        expected = solve_naively(features, targets[:, t], alpha, weight)
        np.testing.assert_allclose(coef[t], expected[0], rtol=0, atol=1e-9)
        np.testing.assert_allclose(intercept[t], expected[1], rtol=0, atol=1e-9)


@WEIGHTED
def test_primal_equals_dual(weighted):
    features, targets, weight = draw(5)
    weight = weight if weighted else None
    primal = as_path(features, targets, weight)
    # Columns of zeros change nothing but the way it is solved.
    padded = np.hstack([features, np.zeros((N_MODELS, 20))])
    dual = as_path(padded, targets, weight)
    assert features.shape[1] < N_MODELS < padded.shape[1]
    alphas = torch.tensor(ALPHAS, dtype=torch.float64)
    np.testing.assert_allclose(
        primal.leave_one_out(alphas), dual.leave_one_out(alphas), rtol=0, atol=1e-9
    )
    for alpha in ALPHAS:
        coef, intercept = primal.solve(alpha)
        dual_coef, dual_intercept = dual.solve(alpha)
        np.testing.assert_allclose(dual_coef[:, :5], coef, rtol=0, atol=1e-10)
        np.testing.assert_array_equal(dual_coef[:, 5:], 0)
        np.testing.assert_allclose(dual_intercept, intercept, rtol=0, atol=1e-10)


@WEIGHTED
@WIDTHS
def test_constant_features_weigh_nothing(n_features, weighted):
    features, targets, weight = draw(n_features)
    features[:, [0, 2]] = [0, 1e3]
    path = as_path(features, targets, weight if weighted else None)
    weight = weight if weighted else np.ones(N_MODELS)
    coef, intercept = (part.numpy() for part in path.solve(0.3))
    rest = np.delete(features, [0, 2], axis=1)
    expected = solve_naively(rest, targets, 0.3, weight)
    np.testing.assert_allclose(coef[:, [0, 2]], 0, rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.delete(coef, [0, 2], axis=1), expected[0], atol=1e-9)
    predictions = features @ coef.T + intercept
    np.testing.assert_allclose(predictions, rest @ expected[0].T + expected[1])
    (left_out,) = path.leave_one_out(torch.tensor([0.3], dtype=torch.float64))
    expected = leave_one_out_naively(rest, targets, 0.3, weight)
    np.testing.assert_allclose(left_out, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("n_features", [1, 6])
@pytest.mark.parametrize("constant", [0.0, 0.1])
def test_nothing_but_constant_features_predict_the_mean(n_features, constant):
    _, targets, weight = draw(2, n_models=5)
    path = as_path(np.full((5, n_features), constant), targets, weight)
    coef, intercept = path.solve(1e-3)
    np.testing.assert_allclose(coef, 0, rtol=0, atol=1e-10)
    mean = np.average(targets, axis=0, weights=weight)
    np.testing.assert_allclose(intercept, mean, rtol=0, atol=1e-10)
    (left_out,) = path.leave_one_out(torch.tensor([1e-3], dtype=torch.float64))
    expected = [
        np.average(np.delete(targets, i, 0), axis=0, weights=np.delete(weight, i))
        for i in range(5)
    ]
    np.testing.assert_allclose(left_out, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("n_features", [1, 6])
def test_nothing_but_constant_features_have_one_direction(n_features):
    _, targets, _ = draw(2, n_models=5)
    path = as_path(np.zeros((5, n_features)), targets)
    directions = path.principal_directions(3, 1e-15)
    assert directions.shape == (1, n_features)
    assert torch.isfinite(directions).all()


@pytest.mark.parametrize("n_features", [1, 4])
def test_two_models(n_features):
    features, targets, weight = draw(n_features, n_models=2)
    path = as_path(features, targets, weight)
    alphas = torch.tensor(ALPHAS, dtype=torch.float64)
    for prediction in path.leave_one_out(alphas):
        # All that can be learnt from one model is its target.
        np.testing.assert_allclose(prediction, targets[::-1], rtol=0, atol=1e-8)
    coef, intercept = path.solve(0.3)
    expected = solve_naively(features, targets, 0.3, weight)
    np.testing.assert_allclose(coef, expected[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(intercept, expected[1], rtol=0, atol=1e-12)


@WIDTHS
def test_equal_weights_are_no_weights(n_features):
    features, targets, _ = draw(n_features)
    alphas = torch.tensor(ALPHAS, dtype=torch.float64)
    plain = as_path(features, targets).leave_one_out(alphas)
    ones = as_path(features, targets, np.ones(N_MODELS)).leave_one_out(alphas)
    np.testing.assert_array_equal(ones, plain)


@WIDTHS
def test_a_weight_of_two_is_the_model_twice(n_features):
    features, targets, _ = draw(n_features)
    weight = np.where(np.arange(N_MODELS) < 4, 2.0, 1.0)
    twice = np.r_[np.arange(N_MODELS), np.arange(4)]
    coef, intercept = as_path(features, targets, weight).solve(0.3)
    expected = as_path(features[twice], targets[twice]).solve(0.3)
    np.testing.assert_allclose(coef, expected[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(intercept, expected[1], rtol=0, atol=1e-10)


@WIDTHS
def test_a_weight_of_zero_is_no_model(n_features):
    features, targets, weight = draw(n_features)
    weight[[1, 6]] = 0
    path = as_path(features, targets, weight)
    coef, intercept = path.solve(0.3)
    expected = solve_naively(features, targets, 0.3, weight)
    np.testing.assert_allclose(coef, expected[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(intercept, expected[1], rtol=0, atol=1e-9)
    (left_out,) = path.leave_one_out(torch.tensor([0.3], dtype=torch.float64))
    expected = leave_one_out_naively(features, targets, 0.3, weight)
    np.testing.assert_allclose(left_out, expected, rtol=0, atol=1e-8)


@WIDTHS
def test_leave_one_out_is_invariant_to_model_order(n_features):
    features, targets, weight = draw(n_features)
    order = np.random.default_rng(1).permutation(N_MODELS)
    alphas = torch.tensor(ALPHAS, dtype=torch.float64)
    expected = as_path(features, targets, weight).leave_one_out(alphas)
    shuffled = as_path(features[order], targets[order], weight[order])
    np.testing.assert_allclose(
        shuffled.leave_one_out(alphas), expected[:, order], rtol=0, atol=1e-9
    )


@WEIGHTED
@WIDTHS
def test_principal_directions_are_the_right_singular_vectors(n_features, weighted):
    features, targets, weight = draw(n_features)
    path = as_path(features, targets, weight if weighted else None)
    weight = weight if weighted else np.ones(N_MODELS)
    directions = path.principal_directions(4, 1e-15).numpy()
    centred = features - np.average(features, axis=0, weights=weight)
    expected = np.linalg.svd(np.sqrt(weight)[:, None] * centred)[2][:4]
    assert directions.shape == expected.shape
    for mine, other in zip(directions, expected, strict=True):
        np.testing.assert_allclose(
            np.outer(mine, mine), np.outer(other, other), rtol=0, atol=1e-9
        )
        assert mine[np.abs(mine).argmax()] > 0


@WIDTHS
def test_no_more_principal_directions_than_the_rank(n_features):
    features, targets, _ = draw(n_features)
    features = features[:, :2] @ np.random.default_rng(2).random((2, n_features))
    assert as_path(features, targets).principal_directions(10, 1e-15).shape == (
        2,
        n_features,
    )


@pytest.mark.parametrize("n_features", [30, 5])
def test_directions_below_the_precision_are_noise(n_features):
    rng = np.random.default_rng(4)
    features = rng.standard_normal((N_MODELS, 2)) * [30, 0.03]
    features = features @ np.linalg.qr(rng.standard_normal((n_features, 2)))[0].T
    path = as_path(features, rng.standard_normal((N_MODELS, N_TARGETS)))
    # A thousandth of the length is a millionth of the variance.
    assert len(path.principal_directions(4, 1e-4)) == 1
    assert len(path.principal_directions(4, 1e-8)) == 2


def test_leaving_out_needs_the_kernel_only():
    features, targets, weight = draw(5)
    tensors = to_tensors(features, targets, weight)
    kernel = centred_kernel(tensors[0], tensors[2])
    path = RidgePath(None, *tensors[1:], kernel=kernel)
    alphas = torch.tensor(ALPHAS, dtype=torch.float64)
    np.testing.assert_allclose(
        path.leave_one_out(alphas),
        RidgePath(*tensors).leave_one_out(alphas),
        rtol=0,
        atol=1e-9,
    )


def test_no_penalty_and_nothing_to_learn_from():
    _, targets, _ = draw(2)
    path = as_path(np.zeros((N_MODELS, 3)), targets)
    left_out = path.leave_one_out(torch.zeros(1, dtype=torch.float64))[0]
    means = (targets.sum(axis=0) - targets) / (N_MODELS - 1)
    np.testing.assert_allclose(left_out, means, rtol=0, atol=1e-12)
    coef, intercept = path.solve(0.0)
    assert not coef.any()
    np.testing.assert_allclose(intercept, targets.mean(axis=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_models", [2, 4, 8, 16])
def test_models_that_are_fitted_exactly_have_finite_predictions(n_models):
    features = np.eye(n_models)
    path = as_path(features, np.arange(n_models, dtype=float)[:, None])
    assert torch.isfinite(path.leave_one_out(torch.zeros(1, dtype=torch.float64))).all()
