"""Scale, shift, precision and degenerate spectra: the same answers, and no warning."""

import numpy as np
import pytest
from networks import flat

from skprobex import (
    LayerFusion,
    LowRankWeights,
    ModelTreeClustering,
    ProbeXClassifier,
    ProbeXEmbedder,
    ProbeXRegressor,
    TreeExperts,
    recover_heritage,
)
from skprobex._base import DEFAULT_ALPHAS
from skprobex.baselines import SpectralStatistics
from skprobex.datasets import make_model_tree
from skprobex.probing.views import VIEWS

N = 40
W, y = make_model_tree(
    N, (10, 8), view="xtxu", random_state=0, dtype=np.float64, return_X_y=True
)
RNG = np.random.default_rng(0)
BASE = 10 * RNG.standard_normal((10, 8))
r = np.linalg.norm(W - BASE / 10, axis=(1, 2))
VECTORS = RNG.standard_normal((3, 4))[y]

EXPERTS = {
    "classifier": (ProbeXClassifier, y, "decision_function"),
    "regressor": (ProbeXRegressor, r, "predict"),
    "embedder": (ProbeXEmbedder, VECTORS, "transform"),
    "embedder without texts": (ProbeXEmbedder, None, "transform"),
}


def answer(expert, W, **parameters):
    cls, targets, method = EXPERTS[expert]
    return getattr(cls(**flat(**parameters)).fit(W, targets), method)(W)


UNITS = [1e-12, 1e-6, 1e6, 1e12]


@pytest.mark.parametrize(("dtype", "atol"), [("f8", 1e-8), ("f4", 2e-3)])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("expert", EXPERTS)
def test_the_unit_of_the_weights_is_nothing(expert, unit, dtype, atol):
    got = answer(expert, (unit * W).astype(dtype))
    expected = answer(expert, W.astype(dtype))
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("view", VIEWS)
def test_the_unit_is_nothing_to_any_view(view, unit):
    options = {"views": (view,), "normalize": False}
    got = answer("classifier", unit * W, **options)
    expected = answer("classifier", W, **options)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_of_factors_is_nothing(unit):
    B, A = W[:, :, :3], W[:, :3]
    expected = answer("classifier", LowRankWeights(B, A))
    for scaled in (
        LowRankWeights(unit * B, A),
        LowRankWeights(B, unit * A),
        LowRankWeights(B, A, unit),
        LowRankWeights(unit * B, A / unit),
    ):
        got = answer("classifier", scaled)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-8)


@pytest.mark.filterwarnings("ignore:The adam solver reached max_iter")
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("view", VIEWS)
def test_the_unit_is_nothing_to_networks(view, unit):
    options = {
        "solver": "adam",
        "views": (view,),
        "normalize": False,
        "max_iter": 3,
        "n_probes": 4,
        "random_state": 0,
    }
    got = answer("classifier", unit * W, **options)
    expected = answer("classifier", W, **options)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_is_nothing_to_layers_and_trees(unit):
    layers = {"a": W, "b": unit * W}
    fused = LayerFusion(views=("xtxu",)).fit(layers, y)
    assert fused.layer_scores_["a"] == pytest.approx(fused.layer_scores_["b"])
    forest = np.concatenate([W, W + BASE])
    expected = ModelTreeClustering().fit(forest).labels_
    np.testing.assert_array_equal(
        ModelTreeClustering().fit(unit * forest).labels_, expected
    )
    experts = TreeExperts(ProbeXClassifier())
    both = np.concatenate([y, y])
    np.testing.assert_allclose(
        experts.fit(unit * forest, both).decision_function(unit * forest),
        experts.fit(forest, both).decision_function(forest),
        rtol=0,
        atol=1e-8,
    )
    np.testing.assert_array_equal(
        recover_heritage(unit * W).parents_, recover_heritage(W).parents_
    )


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_of_spectral_statistics(unit):
    power = np.array([1, 1, 0, 0, 0])
    np.testing.assert_allclose(
        SpectralStatistics().fit_transform(unit * W),
        SpectralStatistics().fit_transform(W) * unit**power,
        rtol=1e-9,
    )


@pytest.mark.parametrize("expert", EXPERTS)
def test_a_shift_by_the_centre_is_nothing(expert):
    expected = answer(expert, W)
    got = answer(expert, W + BASE)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-8)
    known = answer(expert, W + BASE, center=BASE)
    np.testing.assert_allclose(known, answer(expert, W, center=None), rtol=0, atol=1e-8)


# Float32 has 7 digits; Gram matrices halve them. Views that everything agrees on.
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("expert", ["classifier", "regressor"])
def test_float32_is_float64_to_three_digits(expert, view):
    double = answer(expert, W, views=(view,), normalize=True)
    single = answer(expert, W.astype("f4"), views=(view,), normalize=True)
    # Real targets are put back in their units, which takes the digits of float64.
    assert single.dtype == (np.float64 if expert == "regressor" else np.float32)
    scale = np.abs(double).max()
    np.testing.assert_allclose(single, double, rtol=0, atol=1e-3 * scale)


def test_far_shift_in_float32():
    """A base a thousand times as long as the deltas costs three digits, no more."""
    shifted = (W + 1000 * BASE).astype("f4")
    assert ProbeXClassifier().fit(shifted, y).score(shifted, y) > 0.95


def with_spectrum(singular):
    """Models whose deltas have these singular values, in random bases."""
    rng = np.random.default_rng(1)
    left = np.linalg.qr(rng.standard_normal((N, 10, 8)))[0]
    right = np.linalg.qr(rng.standard_normal((N, 8, 8)))[0]
    return (left * singular) @ right.swapaxes(1, 2)


SPECTRA = {
    "all equal": np.ones(8),
    "two ties": np.repeat([2.0, 1.0], 4),
    "rank one": np.eye(8)[0],
    "rank two, tied": np.repeat([1.0, 0.0], [2, 6]),
    "steep": 10.0 ** -np.arange(0, 16, 2),
}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("view", ["auto", *VIEWS])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_degenerate_spectra(spectrum, view, dtype):
    deltas = with_spectrum(SPECTRA[spectrum]).astype(dtype)
    views = view if view == "auto" else (view,)
    for expert in ("classifier", "embedder without texts"):
        outputs = answer(expert, deltas, views=views, center=None)
        assert np.isfinite(outputs).all()


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_ties_have_no_preferred_basis(spectrum):
    """Bases of tied directions are arbitrary: what is computed is not."""
    deltas = with_spectrum(SPECTRA[spectrum])
    signs = np.random.default_rng(0).choice([-1, 1], (N, 1, 1))
    for view in ("xtxu", "xxtu", "log_xtx", "log_xxt", "spectrum"):
        options = {"views": (view,), "center": None}
        got = answer("classifier", signs * deltas, **options)
        expected = answer("classifier", deltas, **options)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-7)


ENDS = [DEFAULT_ALPHAS[0], DEFAULT_ALPHAS[-1], 1e-300, 1e300]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("alpha", ENDS)
@pytest.mark.parametrize("expert", ["classifier", "regressor", "embedder"])
def test_both_ends_of_the_penalties(expert, alpha, dtype):
    outputs = answer(expert, W.astype(dtype), alphas=[alpha])
    assert np.isfinite(outputs).all()
    if expert == "regressor" and alpha == 1e300:
        np.testing.assert_allclose(outputs, r.mean(), rtol=1e-5)


def test_no_penalty_interpolates():
    fitted = ProbeXRegressor(views=("xu",), alphas=[1e-12]).fit(W, r)
    np.testing.assert_allclose(fitted.predict(W), r, rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e9])
def test_large_targets_are_predicted_to_the_digits_that_differ(offset):
    target = r.astype(float)
    expected = ProbeXRegressor().fit(W.astype("f4"), target).predict(W)
    model = ProbeXRegressor().fit(W.astype("f4"), target + offset)
    np.testing.assert_allclose(model.predict(W) - offset, expected, rtol=0, atol=1e-5)
    assert model.intercept_.dtype == np.float64
