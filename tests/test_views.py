"""Views: each against its matrix, built by numpy for one model at a time."""

import numpy as np
import pytest
import torch

from skprobex.probing.ridge.probes import (
    Candidate,
    ProbedView,
    collect_features,
    fit_probes,
)
from skprobex.probing.spectral import thin_svd, thin_svd_of_product
from skprobex.probing.views import (
    AUTO_VIEWS,
    MATRIX_VIEWS,
    SPECTRUM,
    VIEWS,
    symmetric_features,
)

SCALE = 2.5
BOTH_NORMALIZATIONS = pytest.mark.parametrize("normalize", [True, False])


@pytest.fixture
def deltas():
    """Deltas of twelve models, one of them zero, one of rank one, two nearly so."""
    rng = np.random.default_rng(0)
    deltas = rng.standard_normal((12, 7, 5)) * np.geomspace(0.1, 10, 12)[:, None, None]
    deltas[3] = 0
    deltas[5] = np.outer(rng.standard_normal(7), rng.standard_normal(5))
    for i in (7, 8):
        strong = np.outer(rng.standard_normal(7), rng.standard_normal(5))
        deltas[i] = strong + 1e-2 * deltas[i]
    return deltas


def view_matrix(name, delta, scale):
    """One model's view; the delta is divided by `scale`, or by its own norm."""
    scaled = delta / (scale or np.linalg.norm(delta) or 1)
    if name == "xu":
        return scaled
    if name == "xtu":
        return scaled.T
    if name in ("xxtu", "log_xxt"):
        scaled = scaled.T
    _, singular, rows = np.linalg.svd(scaled)
    energies = np.zeros(len(rows))
    energies[: len(singular)] = singular**2
    if name.startswith("log_"):
        energies = np.log(1 + energies / 1e-3)
    return rows.T @ np.diag(energies) @ rows


def decompose(deltas, dtype=torch.float64):
    return thin_svd(torch.from_numpy(deltas).to(dtype), None)


def full_features(deltas, name, normalize, dtype=torch.float64):
    """Features with as many probes as dimensions, their spread undone."""
    factors = [decompose(deltas, dtype)]
    # A vector is that of both normalisations.
    candidate = Candidate(VIEWS[name], normalize if VIEWS[name].sides else None)
    probed = fit_probes(factors, [candidate], SCALE, max(deltas.shape))
    (features,), (view,) = collect_features(factors, probed)
    return features.double().numpy() * view.spread


def naive_matrices(deltas, name, normalize):
    scale = None if normalize else SCALE
    return np.stack([view_matrix(name, delta, scale) for delta in deltas])


@BOTH_NORMALIZATIONS
@pytest.mark.parametrize("name", MATRIX_VIEWS)
def test_full_probes_keep_the_inner_products(name, normalize, deltas):
    features = full_features(deltas, name, normalize)
    matrices = naive_matrices(deltas, name, normalize)
    flat = matrices.reshape(len(deltas), -1)
    expected = flat @ flat.T
    np.testing.assert_allclose(
        features @ features.T, expected, rtol=0, atol=1e-11 * expected.max()
    )


@BOTH_NORMALIZATIONS
@pytest.mark.parametrize("name", MATRIX_VIEWS)
def test_float32_features_are_close_to_float64(name, normalize, deltas):
    features = full_features(deltas, name, normalize, torch.float32)
    matrices = naive_matrices(deltas, name, normalize)
    flat = matrices.reshape(len(deltas), -1)
    expected = flat @ flat.T
    # What is heard of rounding: s^2 of one part in 1e7, a thousandfold by the log.
    tolerance = 1e-3 if name.startswith("log_") else 1e-5
    np.testing.assert_allclose(
        features @ features.T, expected, rtol=0, atol=tolerance * expected.max()
    )


@BOTH_NORMALIZATIONS
@pytest.mark.parametrize("name", MATRIX_VIEWS)
def test_identity_probes_read_the_matrix(name, normalize, deltas):
    view = MATRIX_VIEWS[name]
    matrices = naive_matrices(deltas, name, normalize)
    _, rows, columns = matrices.shape
    left, right = torch.eye(rows).double(), torch.eye(columns).double()
    probed = ProbedView(name, None if normalize else SCALE, left, right)
    features = probed.features(decompose(deltas)).numpy()
    if view.symmetric:
        upper = np.triu_indices(rows)
        weights = np.where(upper[0] == upper[1], 1, np.sqrt(2))
        expected = matrices[:, upper[0], upper[1]] * weights
    else:
        expected = matrices.reshape(len(deltas), -1)
    np.testing.assert_allclose(
        features, expected, rtol=0, atol=1e-11 * np.abs(expected).max()
    )


@BOTH_NORMALIZATIONS
def test_xtu_is_xu_transposed(normalize, deltas):
    factors = [decompose(deltas)]
    candidates = [Candidate(VIEWS[name], normalize) for name in ("xu", "xtu")]
    probed = fit_probes(factors, candidates, SCALE, 3)
    xu, xtu = collect_features(factors, probed)[0]
    transposed = xtu.reshape(-1, 3, 3).mT.flatten(1)
    np.testing.assert_allclose(xu, transposed, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", VIEWS)
def test_transposed_deltas_swap_the_sides(name, deltas):
    swapped = {"xu": "xtu", "xtxu": "xxtu", "log_xtx": "log_xxt"}
    swapped |= {value: key for key, value in swapped.items()}
    here = full_features(deltas, name, True)
    there = full_features(
        np.swapaxes(deltas, 1, 2).copy(), swapped.get(name, name), True
    )
    np.testing.assert_allclose(here @ here.T, there @ there.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "name, power", [("xu", 1), ("xtu", 1), ("xtxu", 2), ("xxtu", 2)]
)
def test_only_unnormalized_views_hear_the_norm(name, power, deltas):
    louder = 3 * deltas
    normalized = full_features(deltas, name, True)
    np.testing.assert_allclose(
        full_features(louder, name, True), normalized, rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
        full_features(louder, name, False),
        3**power * full_features(deltas, name, False),
        rtol=1e-10,
        atol=1e-9,
    )


@BOTH_NORMALIZATIONS
@pytest.mark.parametrize("name", MATRIX_VIEWS)
def test_zero_delta_gives_zero_features(name, normalize, deltas):
    features = full_features(deltas, name, normalize)
    np.testing.assert_array_equal(features[3], 0)
    assert np.abs(features[[0, 1, 2, 4]]).max(axis=1).all()


def test_symmetric_features_weigh_the_triangle():
    matrix = torch.tensor([[[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]]])
    root = 2**0.5
    expected = [[1, 2 * root, 3 * root, 4, 5 * root, 6]]
    np.testing.assert_allclose(symmetric_features(matrix), expected, rtol=1e-6)


def test_symmetric_features_keep_the_inner_product():
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((6, 5, 5))
    matrices += np.swapaxes(matrices, 1, 2)
    features = symmetric_features(torch.from_numpy(matrices)).numpy()
    assert features.shape == (6, 15)
    expected = np.einsum("aij,bij->ab", matrices, matrices)
    np.testing.assert_allclose(features @ features.T, expected, rtol=1e-12)


@pytest.mark.parametrize("length", [3, 5, 8])
def test_spectrum_by_definition(length, deltas):
    values = SPECTRUM.values(decompose(deltas), length, SCALE).numpy()
    assert values.shape == (len(deltas), length + 1)
    for value, delta in zip(values, deltas, strict=True):
        norm = np.linalg.norm(delta)
        singular = np.zeros(length)
        known = np.linalg.svd(delta, compute_uv=False)[:length]
        singular[: len(known)] = known / (norm or 1)
        energies = np.array([*singular, norm / SCALE]) ** 2
        expected = np.log(energies + 1e-5) / 2
        # Rounding in the energies, over the floor.
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rank", [2, 5])
def test_spectrum_is_blind_to_the_rank_that_is_stored(rank):
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((3, 7, 2)), rng.standard_normal((3, 2, 5))
    zeros = np.zeros((3, 7, rank - 2)), np.zeros((3, rank - 2, 5))
    padded = (
        np.concatenate([B, zeros[0]], axis=2),
        np.concatenate([A, zeros[1]], axis=1),
    )
    stored = thin_svd_of_product(*(torch.from_numpy(part) for part in padded))
    np.testing.assert_allclose(
        SPECTRUM.values(stored, 5, SCALE),
        SPECTRUM.values(decompose(B @ A), 5, SCALE),
        rtol=0,
        atol=1e-9,
    )


def test_spectrum_is_blind_to_the_unit():
    rng = np.random.default_rng(0)
    deltas = rng.standard_normal((4, 6, 5))
    here = SPECTRUM.values(decompose(deltas), 5, 1.0)
    there = SPECTRUM.values(decompose(1e-6 * deltas), 5, 1e-6)
    np.testing.assert_allclose(here, there, rtol=0, atol=1e-12)


def test_spectrum_tells_the_norm_from_the_shape():
    deltas = np.random.default_rng(0).standard_normal((1, 6, 5))
    quiet, loud = (
        SPECTRUM.values(decompose(factor * deltas), 5, 1.0).numpy()[0]
        for factor in (1e3, 1e4)
    )
    np.testing.assert_allclose(loud - quiet, [*[0] * 5, np.log(10)], rtol=0, atol=1e-9)


def test_auto_leaves_out_only_the_redundant_view():
    assert set(VIEWS) - set(AUTO_VIEWS) == {"xtu"}
    assert len(set(AUTO_VIEWS)) == len(AUTO_VIEWS)
