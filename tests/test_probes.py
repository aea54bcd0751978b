"""Probes: higher-order singular value decomposition, against numpy's of unfoldings."""

import numpy as np
import pytest
import torch

from skprobex.probing.deltas import (
    DecomposedDeltas,
    RepeatedPasses,
    root_mean_square,
)
from skprobex.probing.device import make_generator
from skprobex.probing.ridge import probes as probes_module
from skprobex.probing.ridge.probes import (
    Candidate,
    ProbedView,
    SubspaceDeltas,
    collect_features,
    fit_features,
    fit_probes,
    leading_eigenvectors,
    list_candidates,
)
from skprobex.probing.spectral import thin_svd
from skprobex.probing.views import MATRIX_VIEWS, VIEWS
from skprobex.weights import _contract
from skprobex.weights._dense import DenseWeights

CPU = torch.device("cpu")
N_PROBES = 3
CANDIDATES = list_candidates(tuple(VIEWS), "auto")


@pytest.fixture(scope="module")
def deltas():
    rng = np.random.default_rng(0)
    # Uneven directions, so that every cut after N_PROBES has a gap.
    return (
        rng.standard_normal((20, 8, 6))
        * np.geomspace(1, 0.2, 8)[:, None]
        * np.geomspace(1, 0.3, 6)
        * rng.uniform(0.5, 2, (20, 1, 1))
    )


@pytest.fixture(scope="module")
def typical_norm(deltas):
    return np.sqrt((np.linalg.norm(deltas, axis=(1, 2)) ** 2).mean())


@pytest.fixture(scope="module")
def factors(deltas):
    return [thin_svd(part, None) for part in torch.from_numpy(deltas).split(7)]


def matrices_of(deltas, name, scale):
    """The views, from Gram matrices: log(I + G / e) = Q log(1 + L / e) Q^T."""
    matrices = []
    for delta in deltas:
        x = delta / (np.linalg.norm(delta) if scale is None else scale)
        if name in ("xu", "xtu"):
            matrices.append(x if name == "xu" else x.T)
            continue
        gram = x.T @ x if name in ("xtxu", "log_xtx") else x @ x.T
        if name.startswith("log_"):
            values, vectors = np.linalg.eigh(np.eye(len(gram)) + gram / 1e-3)
            gram = (vectors * np.log(values)) @ vectors.T
        matrices.append(gram)
    return np.stack(matrices)


def projector(basis):
    basis = np.asarray(basis)
    return basis @ basis.T


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", MATRIX_VIEWS)
def test_probes_span_the_leading_singular_vectors_of_the_unfoldings(
    name, normalize, deltas, factors, typical_norm
):
    (probed,) = fit_probes(
        factors, [Candidate(VIEWS[name], normalize)], typical_norm, N_PROBES
    )
    matrices = matrices_of(deltas, name, None if normalize else typical_norm)
    sides = (
        (probed.left, np.concatenate(list(matrices), axis=1)),
        (probed.right, np.concatenate([matrix.T for matrix in matrices], axis=1)),
    )
    for probes, unfolding in sides:
        leading = np.linalg.svd(unfolding)[0][:, :N_PROBES]
        assert probes.shape == leading.shape
        np.testing.assert_allclose(
            projector(probes), projector(leading), rtol=0, atol=1e-8
        )
        np.testing.assert_allclose(
            probes.T @ probes, np.eye(N_PROBES), rtol=0, atol=1e-13
        )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", MATRIX_VIEWS)
def test_features_are_probed_matrices(name, normalize, deltas, factors, typical_norm):
    (probed,) = fit_probes(
        factors, [Candidate(VIEWS[name], normalize)], typical_norm, N_PROBES
    )
    (features,), (probed,) = collect_features(factors, [probed])
    left, right = probed.left.numpy(), probed.right.numpy()
    matrices = matrices_of(deltas, name, None if normalize else typical_norm)
    expected = []
    for matrix in matrices:
        small = left.T @ matrix @ right
        if MATRIX_VIEWS[name].symmetric:
            upper = np.triu_indices(N_PROBES)
            small = small[upper] * np.where(upper[0] == upper[1], 1, 2**0.5)
        expected.append(small.ravel())
    expected = np.stack(expected)
    lengths = np.linalg.norm(expected - expected.mean(axis=0), axis=1)
    spread = np.sqrt((lengths**2).mean())
    assert probed.spread == pytest.approx(spread, rel=1e-8)
    np.testing.assert_allclose(features, expected / spread, rtol=0, atol=1e-8)


def test_collected_features_are_those_of_later_batches(factors, typical_norm):
    probed = fit_probes(factors, CANDIDATES, typical_norm, N_PROBES)
    collected, probed = collect_features(factors, probed)
    assert [view.view for view in probed] == [c.view for c in CANDIDATES]
    for view, features in zip(probed, collected, strict=True):
        again = torch.cat([view.features(batch) for batch in factors])
        np.testing.assert_allclose(again, features, rtol=0, atol=1e-12)
        deviations = features - features.mean(dim=0)
        assert deviations.square().sum(dim=1).mean() == pytest.approx(1, rel=1e-10)


def test_all_candidates_at_once_are_each_on_its_own(factors, typical_norm):
    together = fit_probes(factors, CANDIDATES, typical_norm, N_PROBES)
    for candidate, probed in zip(CANDIDATES, together, strict=True):
        (alone,) = fit_probes(factors, [candidate], typical_norm, N_PROBES)
        assert (alone.name, alone.scale) == (probed.name, probed.scale)
        if not candidate.view.sides:
            assert probed.left is None
            assert probed.length == 6
        else:
            assert torch.equal(alone.left, probed.left)
            assert torch.equal(alone.right, probed.right)


def test_symmetric_views_share_one_probe_tensor(factors, typical_norm):
    probed = fit_probes(
        factors,
        [Candidate(VIEWS["xtxu"], True), Candidate(VIEWS["xu"], True)],
        typical_norm,
        N_PROBES,
    )
    assert probed[0].left is probed[0].right
    assert probed[1].left.shape == (8, N_PROBES)
    assert probed[1].right.shape == (6, N_PROBES)


def test_no_more_probes_than_dimensions(factors, typical_norm):
    (probed,) = fit_probes(factors, [Candidate(VIEWS["xu"], True)], typical_norm, 7)
    assert probed.left.shape == (8, 7)
    assert probed.right.shape == (6, 6)


def test_independent_of_batches_and_model_order(deltas, typical_norm, monkeypatch):
    order = np.random.default_rng(1).permutation(len(deltas))

    def run(array, batch_bytes):
        monkeypatch.setattr(_contract, "BATCH_BYTES", batch_bytes)
        decomposed = DecomposedDeltas(
            DenseWeights(array), None, None, CPU, torch.float64
        )
        norms = torch.cat([factors.norms for factors in decomposed])
        typical = root_mean_square(norms)
        probed = fit_probes(decomposed, CANDIDATES, typical, N_PROBES)
        return torch.cat(collect_features(decomposed, probed)[0], dim=1).numpy()

    expected = run(deltas, 2**25)
    np.testing.assert_allclose(run(deltas, 3 * 8 * 6 * 8), expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(
        run(deltas[order], 2**25), expected[order], rtol=0, atol=1e-11
    )


def test_sketched_layers_get_the_same_features():
    rng = np.random.default_rng(0)
    # What all models share comes first, so that the probes have a gap after them.
    shared = rng.standard_normal((170, N_PROBES)), rng.standard_normal((N_PROBES, 165))
    deltas = np.stack(
        [
            (shared[0] * rng.uniform(1, 3, N_PROBES)) @ shared[1]
            + 0.1 * rng.standard_normal((170, 8)) @ rng.standard_normal((8, 165))
            for _ in range(6)
        ]
    )
    batch = torch.from_numpy(deltas)
    sketch = torch.from_numpy(rng.standard_normal((165, 56)))
    candidates = [Candidate(VIEWS[name], True) for name in MATRIX_VIEWS]
    features = []
    for test_matrix in (None, sketch):
        decomposed = [thin_svd(batch, test_matrix)]
        probed = fit_probes(decomposed, candidates, 1.0, N_PROBES)
        features.append(collect_features(decomposed, probed)[0])
    for exact, sketched in zip(*features, strict=True):
        np.testing.assert_allclose(sketched, exact, rtol=0, atol=1e-7)


# Wide layers: probes within a subspace


class Batches(RepeatedPasses):
    """Batches that are there already."""

    n_bytes = 0

    def __init__(self, batches):
        self._batches = list(batches)

    def _compute(self):
        return iter(self._batches)


@pytest.fixture
def wide(monkeypatch):
    """Low-rank models whose sides are wider than the subspace."""
    monkeypatch.setattr(probes_module, "MIN_SUBSPACE", 24)
    rng = np.random.default_rng(0)
    loudness = np.geomspace(1, 0.2, 20)
    left = np.linalg.qr(rng.standard_normal((60, 20)))[0] * loudness
    right = np.linalg.qr(rng.standard_normal((50, 20)))[0] * loudness
    deltas = left @ rng.standard_normal((15, 20, 20)) @ right.T
    return Batches(thin_svd(part, None) for part in torch.from_numpy(deltas).split(4))


@pytest.mark.parametrize("candidate", CANDIDATES, ids=str)
def test_probes_of_wide_layers_are_those_of_the_whole(candidate, wide):
    typical_norm = root_mean_square(torch.cat([factors.norms for factors in wide]))
    (whole,) = fit_probes(wide, [candidate], typical_norm, N_PROBES)
    (expected,), (whole,) = collect_features(wide, [whole])
    (probed,), (features,) = fit_features(
        wide, [candidate], N_PROBES, make_generator(0)
    )
    # But for signs, which are fixed within the subspace.
    np.testing.assert_allclose(
        features @ features.T, expected @ expected.T, rtol=0, atol=1e-8
    )
    assert probed.spread == pytest.approx(whole.spread, rel=1e-10)
    later = torch.cat([probed.features(factors) for factors in wide])
    np.testing.assert_allclose(later, features, rtol=0, atol=1e-10)
    if candidate.view.sides:
        for mine, other in ((probed.left, whole.left), (probed.right, whole.right)):
            assert mine.shape == other.shape
            np.testing.assert_allclose(
                projector(mine), projector(other), rtol=0, atol=1e-8
            )


def test_only_sides_wider_than_the_subspace_are_projected(wide):
    tall = Batches(f._replace(right=f.right[:, :20]) for f in wide)
    deltas = SubspaceDeltas(tall, {"left", "right"}, N_PROBES, make_generator(0))
    for factors, projected in zip(tall, deltas, strict=True):
        assert projected.left.shape[1] == 24
        assert torch.equal(projected.right, factors.right)
    probes = torch.randn(20, 2, generator=make_generator(1)).double()
    assert deltas.lift(probes, "right") is probes
    basis = deltas.bases["left"]
    np.testing.assert_allclose(basis.T @ basis, np.eye(24), rtol=0, atol=1e-12)


def test_the_subspace_has_room_for_three_times_the_probes(wide):
    (factors, *_) = SubspaceDeltas(wide, {"left", "right"}, 10, make_generator(0))
    assert factors.left.shape[1] == factors.right.shape[1] == 30


def test_equal_models_have_spread_one(deltas):
    factors = [thin_svd(torch.zeros(4, 8, 6), None)]
    probed = fit_probes(factors, CANDIDATES, 1.0, N_PROBES)
    collected, probed = collect_features(factors, probed)
    for view, features in zip(probed, collected, strict=True):
        assert view.spread == 1
        assert (features == features[0]).all()


def test_leading_eigenvectors_have_fixed_signs():
    rng = np.random.default_rng(0)
    square = rng.standard_normal((6, 6))
    matrix = square @ square.T
    vectors = leading_eigenvectors(torch.from_numpy(matrix), 4).numpy()
    values = np.linalg.eigvalsh(matrix)[::-1][:4]
    np.testing.assert_allclose(matrix @ vectors, vectors * values, rtol=0, atol=1e-12)
    assert (np.abs(vectors).max(axis=0) == vectors.max(axis=0)).all()
    assert leading_eigenvectors(torch.from_numpy(matrix), 40).shape == (6, 6)


def test_features_of_unseen_models_use_the_fitted_scale(deltas, factors):
    unseen = np.random.default_rng(5).standard_normal((2, 8, 6))
    (probed,) = fit_probes(factors, [Candidate(VIEWS["xu"], False)], 4.0, 8)
    probed.spread = 0.5
    features = probed.features(thin_svd(torch.from_numpy(unseen), None)).numpy()
    left, right = probed.left.numpy(), probed.right.numpy()
    expected = (left.T @ unseen @ right).reshape(2, -1) / 4.0 / 0.5
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-12)


def test_spectrum_takes_its_length_from_training(factors):
    (probed,) = fit_probes(factors, [Candidate(VIEWS["spectrum"], None)], 2.0, N_PROBES)
    assert probed == ProbedView("spectrum", 2.0, length=6)
    assert probed.features(factors[0]).shape == (7, 7)
