"""The baselines against plain loops, SciPy and scikit-learn's Ridge."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    check_set_output_transform,
    check_transformer_get_feature_names_out,
    parametrize_with_checks,
)

from skprobex.baselines import (
    FlatDeltas,
    SpectralStatistics,
    WeightStatistics,
    make_dense_expert,
)

TRANSFORMERS = [WeightStatistics(), SpectralStatistics(), FlatDeltas()]
SHAPES = [(6, 5, 3), (6, 3, 5), (6, 7), (6, 4, 3, 2, 2)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@parametrize_with_checks(TRANSFORMERS)
def test_sklearn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("transformer", TRANSFORMERS)
@pytest.mark.parametrize(
    "check",
    [
        check_transformer_get_feature_names_out,
        check_set_output_transform,
        check_dataframe_column_names_consistency,
    ],
)
def test_checks_outside_the_battery(check, transformer):
    check(type(transformer).__name__, clone(transformer))


@pytest.mark.parametrize("shape", SHAPES)
def test_weight_statistics_match_a_loop(rng, shape):
    W = rng.standard_normal(shape)
    expected = [
        [w.mean(), w.var(), *(np.percentile(w, q) for q in (0, 25, 50, 75, 100))]
        for w in W
    ]
    np.testing.assert_allclose(WeightStatistics().fit_transform(W), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_spectral_statistics_match_a_loop(rng, shape):
    W = rng.standard_normal(shape)
    expected = []
    for w in W:
        s = np.linalg.svd(w.reshape(shape[1], -1), compute_uv=False)
        energy = s**2 / np.sum(s**2)
        expected.append(
            [
                s[0],
                np.linalg.norm(w),
                energy[0],
                stats.entropy(energy),
                stats.kurtosis(w, axis=None),
            ]
        )
    result = SpectralStatistics().fit_transform(W)
    np.testing.assert_allclose(result, expected, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_flat_deltas_are_centred_and_of_unit_mean_square(rng, shape):
    W = 1e-3 * rng.standard_normal(shape) + rng.standard_normal(shape[1:])
    flat = W.reshape(len(W), -1)
    centred = flat - flat.mean(axis=0)
    scale = np.sqrt(np.mean([row @ row for row in centred]))
    deltas = FlatDeltas().fit(W)
    np.testing.assert_allclose(deltas.transform(W), centred / scale, atol=1e-12)
    assert deltas.scale_ == pytest.approx(scale)


@pytest.mark.parametrize("transformer", TRANSFORMERS)
def test_dtype_and_tensors(rng, transformer):
    W = rng.standard_normal((8, 5, 4))
    double = transformer.fit_transform(W)
    single = clone(transformer).fit_transform(W.astype(np.float32))
    tensor = clone(transformer).fit_transform(torch.from_numpy(W))
    half = clone(transformer).fit_transform(torch.from_numpy(W).bfloat16())
    assert double.dtype == tensor.dtype == np.float64
    assert single.dtype == half.dtype == np.float32
    np.testing.assert_array_equal(tensor, double)
    np.testing.assert_allclose(single, double, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("transformer", TRANSFORMERS)
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_equal_weights_give_finite_numbers(transformer, value):
    W = np.full((3, 8, 9), value, dtype=np.float32)
    assert np.isfinite(transformer.fit_transform(W)).all()
    assert clone(transformer).fit_transform(W)[:, -1] == pytest.approx(
        value if isinstance(transformer, WeightStatistics) else 0, abs=1e-6
    )


def test_tiny_weights_do_not_underflow(rng):
    W = rng.standard_normal((3, 8, 9))
    large, tiny = (
        SpectralStatistics().fit_transform((W * scale).astype(np.float32))
        for scale in (1, 1e-25)
    )
    np.testing.assert_allclose(tiny[:, :2] * 1e25, large[:, :2], rtol=1e-4)
    np.testing.assert_allclose(tiny[:, 2:4], large[:, 2:4], rtol=1e-4)


@pytest.mark.parametrize("transformer", TRANSFORMERS)
def test_another_shape_is_refused(rng, transformer):
    transformer = clone(transformer).fit(rng.standard_normal((4, 5, 3)))
    with pytest.raises(ValueError, match=r"\(5, 4\).*\(5, 3\)"):
        transformer.transform(rng.standard_normal((4, 5, 4)))


def test_names(rng):
    W = rng.standard_normal((4, 5, 3))
    weight, spectral = WeightStatistics().fit(W), SpectralStatistics().fit(W)
    assert list(weight.get_feature_names_out())[1:4] == [
        "variance",
        "percentile_0",
        "percentile_25",
    ]
    assert list(spectral.get_feature_names_out())[-1] == "kurtosis"


@pytest.mark.parametrize("transformer", TRANSFORMERS)
def test_random_forest_sees_the_scale_of_the_weights(rng, transformer):
    y = rng.integers(0, 2, size=60)
    W = rng.standard_normal((60, 6, 5)) * (1 + 4 * y)[:, None, None]
    forest = RandomForestClassifier(n_estimators=20, random_state=0)
    scores = cross_val_score(make_pipeline(transformer, forest), W, y, cv=3)
    assert scores.mean() > 0.9


@pytest.mark.parametrize("shape", [(30, 5, 4), (10, 6, 5), (12, 4, 3, 2, 2)])
@pytest.mark.parametrize("n_targets", [1, 3])
def test_dense_expert_is_ridge_on_flat_centred_weights(rng, shape, n_targets):
    W = rng.standard_normal(shape) + rng.standard_normal(shape[1:])
    Y = rng.standard_normal((len(W), n_targets)).squeeze()
    new = rng.standard_normal((4, *shape[1:]))
    expert = make_dense_expert("regression", alphas=[0.3]).fit(W, Y)

    center = W.reshape(len(W), -1).mean(axis=0)
    scale = np.sqrt(np.mean(np.sum((W.reshape(len(W), -1) - center) ** 2, axis=1)))
    # Dividing the rows by a scale is the same as a penalty times its square.
    ridge = Ridge(alpha=0.3 * scale**2).fit(W.reshape(len(W), -1) - center, Y)
    expected = ridge.predict(new.reshape(len(new), -1) - center)
    np.testing.assert_allclose(expert.predict(new), expected)


def test_dense_expert_chooses_its_penalty_by_leave_one_out(rng):
    W = rng.standard_normal((12, 4, 5))
    y = W[:, 0, 0] + 0.5 * rng.standard_normal(12)
    alphas = [1e-3, 0.1, 1.0, 10.0]
    expert = make_dense_expert("regression", alphas=alphas).fit(W, y)
    deltas = expert[0].transform(W)
    errors = []
    for alpha in alphas:
        left_out = [
            Ridge(alpha=alpha)
            .fit(np.delete(deltas, i, axis=0), np.delete(y, i))
            .predict(deltas[[i]])[0]
            for i in range(len(y))
        ]
        errors.append(np.mean((np.array(left_out) - y) ** 2))
    assert expert[-1].alpha_ == alphas[int(np.argmin(errors))]


@pytest.mark.parametrize("kind", ["labels", "indicator"])
def test_dense_expert_classifies(rng, kind):
    W = rng.standard_normal((200, 4, 4))
    Y = (W[:, :3, 0] > 0).astype(int)
    y = Y if kind == "indicator" else np.array(["no", "yes"])[Y[:, 0]]
    expert = make_dense_expert().fit(W[:150], y[:150])
    predicted = expert.predict(W[150:])
    assert predicted.shape == y[150:].shape
    assert np.mean(predicted == y[150:]) > 0.85


def test_dense_expert_does_not_depend_on_the_unit_of_the_weights(rng):
    W = rng.standard_normal((30, 6, 5))
    y = W[:, 0, 0]
    small, large = (
        make_dense_expert("regression").fit(scale * W, y).predict(scale * W)
        for scale in (1e-6, 1e3)
    )
    np.testing.assert_allclose(small, large)


def test_unknown_task():
    with pytest.raises(ValueError, match=r"classification.*regression.*'ranking'"):
        make_dense_expert(task="ranking")
