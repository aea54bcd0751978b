"""Singular value decompositions: against numpy's, exact and randomised."""

import numpy as np
import pytest
import torch

from skprobex.probing import deltas as deltas_module
from skprobex.probing.batches import LowRankBatch, subtract
from skprobex.probing.center import mean_and_sizes
from skprobex.probing.deltas import (
    DecomposedDeltas,
    decompose_models,
    delta_norms,
    root_mean_square,
)
from skprobex.probing.device import make_generator
from skprobex.probing.linalg import GRAM_BLOCK, eigh_descending, fix_signs, gram, qr
from skprobex.probing.spectral import (
    EXACT_BELOW,
    N_DIRECTIONS,
    N_OVERSAMPLES,
    draw_sketch,
    frobenius_norms,
    rows,
    thin_svd,
    thin_svd_of_product,
    unrow,
)
from skprobex.weights import LowRankWeights, _contract
from skprobex.weights._dense import DenseWeights

CPU = torch.device("cpu")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
SHAPES = pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9), (5, 1), (1, 5)])


def draw(shape, n_models=6, rank=None, seed=0):
    rng = np.random.default_rng(seed)
    if rank is None:
        return rng.standard_normal((n_models, *shape))
    left = rng.standard_normal((n_models, shape[0], rank))
    return left @ rng.standard_normal((n_models, rank, shape[1]))


def rebuild(factors):
    """The deltas that the factors stand for, in float64."""
    norms, left, singular, right = (part.double() for part in factors)
    return (norms[:, None, None] * (left * singular[:, None, :]) @ right.mT).numpy()


def assert_decomposes(deltas, factors):
    """Compare with numpy model by model, to the precision of the factors' dtype."""
    eps = torch.finfo(factors.norms.dtype).eps
    norms, left, singular, right = (part.double().numpy() for part in factors)
    for i, delta in enumerate(deltas):
        norm = np.linalg.norm(delta)
        np.testing.assert_allclose(norms[i], norm, rtol=8 * eps)
        u, s, vt = np.linalg.svd(delta / (norm or 1), full_matrices=False)
        # Eigenvalues of the Gram matrix are exact to rounding: so are the squares.
        np.testing.assert_allclose(singular[i] ** 2, s**2, rtol=0, atol=16 * eps)
        for j in np.flatnonzero(s > 0.05):
            gap = min(np.abs(s[j] ** 2 - np.delete(s, j) ** 2), default=1)
            for mine, other in ((left[i], u), (right[i], vt.T)):
                np.testing.assert_allclose(
                    np.outer(mine[:, j], mine[:, j]),
                    np.outer(other[:, j], other[:, j]),
                    rtol=0,
                    atol=32 * eps / (gap * s[j]),
                )


@DTYPES
@SHAPES
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_exact_matches_numpy(dtype, shape, scale):
    deltas = torch.from_numpy(scale * draw(shape)).to(dtype)
    factors = thin_svd(deltas, None)
    assert all(part.dtype == dtype for part in factors)
    assert_decomposes(deltas.double().numpy(), factors)
    np.testing.assert_allclose(
        rebuild(factors), deltas, rtol=0, atol=30 * torch.finfo(dtype).eps * scale
    )


@DTYPES
@SHAPES
def test_exact_shapes_and_order(dtype, shape):
    norms, left, singular, right = thin_svd(
        torch.from_numpy(draw(shape)).to(dtype), None
    )
    k = min(shape)
    assert norms.shape == (6,)
    assert left.shape == (6, shape[0], k)
    assert singular.shape == (6, k)
    assert right.shape == (6, shape[1], k)
    assert (singular.diff(dim=1) <= 0).all()
    assert (singular >= 0).all()


@DTYPES
@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
def test_rank_deficient(dtype, shape):
    deltas = torch.from_numpy(draw(shape, rank=3)).to(dtype)
    factors = thin_svd(deltas, None)
    assert all(torch.isfinite(part).all() for part in factors)
    assert_decomposes(deltas.double().numpy(), factors)
    eps = torch.finfo(dtype).eps
    assert (factors.singular[:, 3:] < 4 * eps**0.5).all()
    np.testing.assert_allclose(rebuild(factors), deltas, rtol=0, atol=100 * eps)


@pytest.mark.parametrize("shape", [(12, 7), (EXACT_BELOW + 10, EXACT_BELOW + 20)])
def test_zero_delta_among_others(shape):
    deltas = torch.from_numpy(draw(shape, n_models=3, rank=2))
    sketch = draw_sketch(*shape, make_generator(0), torch.float64, CPU)
    alone = thin_svd(deltas[[0, 2]], sketch)
    deltas[1] = 0
    factors = thin_svd(deltas, sketch)
    assert factors.norms[1] == 0
    assert (factors.singular[1] == 0).all()
    assert all(torch.isfinite(part).all() for part in factors)
    np.testing.assert_allclose(
        rebuild(factors)[[0, 2]], rebuild(alone), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_norms_neither_overflow_nor_underflow(scale):
    deltas = torch.from_numpy(scale * draw((12, 7))).float()
    expected = [np.linalg.norm(delta) for delta in deltas.double().numpy()]
    np.testing.assert_allclose(frobenius_norms(deltas), expected, rtol=1e-6)


def test_norm_of_zero_is_zero():
    assert frobenius_norms(torch.zeros(2, 3, 4)).tolist() == [0, 0]


# The decomposition of a product


def draw_product(shape, rank, n_models=6):
    rng = np.random.default_rng(0)
    B = rng.standard_normal((n_models, shape[0], rank))
    return B, rng.standard_normal((n_models, rank, shape[1]))


@DTYPES
@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (300, 200)])
@pytest.mark.parametrize("scales", [(1, 1), (1e-12, 1), (1e12, 1e-6), (1e12, 1e12)])
def test_product_matches_numpy(dtype, shape, scales):
    B, A = draw_product(shape, 3)
    factors = thin_svd_of_product(
        torch.from_numpy(scales[0] * B).to(dtype),
        torch.from_numpy(scales[1] * A).to(dtype),
    )
    scale = scales[0] * scales[1]
    eps = torch.finfo(dtype).eps
    assert factors.singular.shape == (6, 3)
    for i, delta in enumerate(B @ A):
        norm = np.linalg.norm(delta)
        u, s, vt = np.linalg.svd(delta / norm)
        assert factors.norms[i].item() == pytest.approx(norm * scale, rel=50 * eps)
        np.testing.assert_allclose(factors.singular[i], s[:3], rtol=0, atol=50 * eps)
        for mine, other in ((factors.left[i], u), (factors.right[i], vt.T)):
            np.testing.assert_allclose(
                mine @ mine.T, other[:, :3] @ other[:, :3].T, rtol=0, atol=100 * eps
            )
    np.testing.assert_allclose(
        rebuild(factors) / scale, B @ A, rtol=0, atol=50 * eps * np.abs(B @ A).max()
    )


@DTYPES
def test_product_of_smaller_rank(dtype):
    B, A = draw_product((12, 7), 4)
    B[:, :, 2:] = 0
    tensors = [torch.from_numpy(part).to(dtype) for part in (B, A)]
    factors = thin_svd_of_product(*tensors)
    eps = torch.finfo(dtype).eps
    assert all(torch.isfinite(part).all() for part in factors)
    assert (factors.singular[:, 2:] < 4 * eps**0.5).all()
    np.testing.assert_allclose(rebuild(factors), B @ A, rtol=0, atol=100 * eps)


@DTYPES
@pytest.mark.parametrize("side", ["B", "A", "both"])
def test_product_of_zero_among_others(dtype, side):
    """An adapter that was never trained has B = 0."""
    B, A = draw_product((12, 7), 3)
    if side != "A":
        B[1] = 0
    if side != "B":
        A[1] = 0
    tensors = [torch.from_numpy(part).to(dtype) for part in (B, A)]
    factors = thin_svd_of_product(*tensors)
    eps = torch.finfo(dtype).eps
    assert all(torch.isfinite(part).all() for part in factors)
    np.testing.assert_allclose(rebuild(factors), B @ A, rtol=0, atol=100 * eps)
    assert factors.norms[1] == 0
    assert (factors.singular[1] == 0).all()


def test_product_of_more_rank_than_dimensions():
    B, A = draw_product((4, 3), 6)
    factors = thin_svd_of_product(torch.from_numpy(B), torch.from_numpy(A))
    np.testing.assert_allclose(rebuild(factors), B @ A, rtol=0, atol=1e-12)
    singular = np.linalg.svd(B @ A, compute_uv=False)
    singular /= np.linalg.norm(singular, axis=1, keepdims=True)
    assert factors.singular.shape == (6, 3)
    np.testing.assert_allclose(factors.singular, singular, rtol=0, atol=1e-13)


@DTYPES
@pytest.mark.parametrize("imbalance", [1e2, 1e4])
def test_how_a_product_is_split_does_not_matter(dtype, imbalance):
    B, A = draw_product((12, 7), 4)
    weights = np.geomspace(1, imbalance, 4)
    tensors = (B / weights, A * weights[:, None])
    factors = thin_svd_of_product(*(torch.from_numpy(p).to(dtype) for p in tensors))
    tolerance = 20 * torch.finfo(dtype).eps
    norms = np.linalg.norm(B @ A, axis=(1, 2))
    singular = np.linalg.svd(B @ A, compute_uv=False)[:, :4] / norms[:, None]
    np.testing.assert_allclose(factors.norms, norms, rtol=tolerance)
    np.testing.assert_allclose(factors.singular**2, singular**2, rtol=0, atol=tolerance)


def test_rows_of_a_decomposed_product_are_not_copied():
    B, A = (torch.from_numpy(part) for part in draw_product((12, 7), 3))
    factors = thin_svd_of_product(B, A)
    for basis in (factors.left, factors.right):
        stacked = rows(basis)
        assert stacked.data_ptr() == basis.data_ptr()
        assert torch.equal(stacked, torch.cat([part.T for part in basis]))
        assert torch.equal(unrow(stacked, len(basis)), basis)


# The randomised decomposition

LARGE = pytest.mark.parametrize("shape", [(200, 170), (170, 200)])


def test_only_large_layers_are_sketched():
    def sketch(*shape, seed=0):
        return draw_sketch(*shape, make_generator(seed), torch.float32, CPU)

    assert sketch(EXACT_BELOW, 4000) is None
    assert sketch(4000, EXACT_BELOW) is None
    drawn = sketch(300, EXACT_BELOW + 1)
    assert drawn.shape == (EXACT_BELOW + 1, N_DIRECTIONS + N_OVERSAMPLES)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, sketch(300, EXACT_BELOW + 1))
    assert not torch.equal(drawn, sketch(300, EXACT_BELOW + 1, seed=1))


@LARGE
def test_sketch_recovers_low_rank_exactly(shape):
    deltas = draw(shape, n_models=4, rank=30)
    sketch = draw_sketch(*shape, make_generator(0), torch.float64, CPU)
    factors = thin_svd(torch.from_numpy(deltas), sketch)
    assert factors.left.shape == (4, shape[0], N_DIRECTIONS)
    assert factors.right.shape == (4, shape[1], N_DIRECTIONS)
    scale = np.abs(deltas).max()
    np.testing.assert_allclose(rebuild(factors), deltas, rtol=0, atol=1e-12 * scale)
    for i, delta in enumerate(deltas):
        norm = np.linalg.norm(delta)
        u, s, vt = np.linalg.svd(delta / norm)
        np.testing.assert_allclose(factors.norms[i], norm, rtol=1e-13)
        np.testing.assert_allclose(factors.singular[i, :30], s[:30], rtol=1e-10)
        assert factors.singular[i, 30:].max() < 1e-7
        for mine, other in ((factors.left[i], u), (factors.right[i], vt.T)):
            mine = mine[:, :30].numpy()
            np.testing.assert_allclose(
                mine @ mine.T, other[:, :30] @ other[:, :30].T, rtol=0, atol=1e-10
            )


@LARGE
def test_sketch_keeps_the_leading_directions_of_a_full_rank_delta(shape):
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.standard_normal((shape[0], 170)))
    v, _ = np.linalg.qr(rng.standard_normal((shape[1], 170)))
    s = 0.85 ** np.arange(170)
    delta = (u * s) @ v.T
    sketch = draw_sketch(*shape, make_generator(0), torch.float64, CPU)
    factors = thin_svd(torch.from_numpy(delta)[None], sketch)
    singular = (factors.norms * factors.singular[0]).numpy()
    # No approximation has larger singular values than the delta itself.
    assert (singular <= s[:N_DIRECTIONS] * (1 + 1e-12)).all()
    np.testing.assert_allclose(singular[:20], s[:20], rtol=1e-3)
    error = np.linalg.norm(rebuild(factors)[0] - delta)
    best = np.linalg.norm(s[N_DIRECTIONS:])
    assert best <= error < 2 * best


@LARGE
def test_sketch_is_independent_of_batch_and_model_order(shape):
    deltas = torch.from_numpy(draw(shape, n_models=5))
    sketch = draw_sketch(*shape, make_generator(0), torch.float64, CPU)
    together = thin_svd(deltas, sketch)
    expected = rebuild(together)
    order = [3, 0, 4, 2, 1]
    shuffled = thin_svd(deltas[order], sketch)
    alone = [thin_svd(deltas[i : i + 1], sketch) for i in range(5)]
    np.testing.assert_allclose(rebuild(shuffled), expected[order], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        shuffled.singular, together.singular[order], rtol=0, atol=1e-13
    )
    for i, factors in enumerate(alone):
        np.testing.assert_allclose(rebuild(factors)[0], expected[i], rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            factors.singular[0], together.singular[i], rtol=0, atol=1e-13
        )


@pytest.mark.parametrize("shape", [(200, 170), (9, 12)])
@pytest.mark.parametrize("low_rank", [False, True])
def test_parts_make_no_difference(shape, low_rank, monkeypatch):
    rng = np.random.default_rng(0)
    B, A = (
        torch.from_numpy(rng.standard_normal(size))
        for size in ((5, shape[0], 3), (5, 3, shape[1]))
    )
    batch = LowRankBatch(B, A) if low_rank else B @ A
    center = torch.from_numpy(rng.standard_normal(shape))
    sketch = draw_sketch(*shape, make_generator(0), torch.float64, CPU)
    whole = thin_svd(B @ A - center, sketch)
    monkeypatch.setattr(deltas_module, "PART_BYTES", 2 * center.nbytes)
    parts = decompose_models(batch, center, sketch)
    for part, expected in zip(parts, whole, strict=True):
        np.testing.assert_allclose(part, expected, rtol=0, atol=1e-9)
    # Vectors stay in one piece of memory: a view of all of them takes no copy.
    assert rows(parts.left).data_ptr() == parts.left.data_ptr()
    assert rows(parts.right).data_ptr() == parts.right.data_ptr()


# Small matrices


def test_eigenvalues_descend():
    matrices = draw((6, 6))
    matrices += np.swapaxes(matrices, 1, 2)
    values, vectors = eigh_descending(torch.from_numpy(matrices))
    for matrix, value, vector in zip(matrices, values, vectors, strict=True):
        np.testing.assert_allclose(
            value, np.linalg.eigvalsh(matrix)[::-1], rtol=0, atol=1e-12
        )
        np.testing.assert_allclose(
            matrix @ vector.numpy(), vector * value, rtol=0, atol=1e-12
        )


def test_qr_is_thin():
    matrices = draw((9, 4))
    bases, triangles = qr(torch.from_numpy(matrices))
    for matrix, basis, triangle in zip(matrices, bases, triangles, strict=True):
        np.testing.assert_allclose(basis.T @ basis, np.eye(4), rtol=0, atol=1e-13)
        np.testing.assert_allclose(basis @ triangle, matrix, rtol=0, atol=1e-13)


@DTYPES
@pytest.mark.parametrize("d", [1, GRAM_BLOCK, 2 * GRAM_BLOCK + 1])
def test_gram_is_the_symmetric_product(d, dtype):
    rows = torch.from_numpy(draw((10, d), n_models=1)[0]).to(dtype)
    product = gram(rows)
    assert product.dtype == dtype
    assert torch.equal(product, product.T)
    np.testing.assert_allclose(
        product, rows.T @ rows, rtol=0, atol=20 * torch.finfo(dtype).eps
    )


def test_fix_signs_makes_the_largest_entry_positive():
    rows = torch.tensor([[1.0, -3.0, 2.0], [-1.0, 0.5, 4.0], [0.0, 0.0, 0.0]])
    expected = [[-1.0, 3.0, -2.0], [-1.0, 0.5, 4.0], [0.0, 0.0, 0.0]]
    assert fix_signs(rows).tolist() == expected


# Batches of deltas


@pytest.fixture
def small_batches(monkeypatch):
    """Two models of (6, 5) in float32 a batch, one in float64."""
    monkeypatch.setattr(_contract, "BATCH_BYTES", 2 * 6 * 5 * 4)


def test_mean_is_summed_in_float64(small_batches):
    array = np.full((7, 6, 5), 2**12, dtype=np.float32)
    array[0] += 2**-10
    mean, _ = mean_and_sizes(DenseWeights(array), CPU, torch.float32)
    assert mean.dtype == torch.float32
    expected = array.astype(np.float64).mean(axis=0).astype(np.float32)
    np.testing.assert_array_equal(mean, expected)
    # One more place than a float32 sum of these has.
    cancelling = np.float32([[2**24], [1], [1], [-(2**24)]])
    mean, _ = mean_and_sizes(DenseWeights(cancelling), CPU, torch.float32)
    assert mean.item() == 0.5


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_root_mean_square(scale):
    norms = torch.tensor([1.0, 2.0, 3.0, 0.0]) * scale
    assert root_mean_square(norms) == pytest.approx((14 / 4) ** 0.5 * scale, rel=1e-6)


def test_root_mean_square_of_nothing_is_one():
    assert root_mean_square(torch.zeros(3)) == 1


@pytest.mark.parametrize("cache_bytes", [2**29, 700, 0])
def test_every_pass_gives_the_same_deltas(cache_bytes, small_batches, monkeypatch):
    monkeypatch.setattr(deltas_module, "CACHE_BYTES", cache_bytes)
    decomposed = []

    def counting_svd(batch, sketch):
        decomposed.append(len(batch))
        return thin_svd(batch, sketch)

    monkeypatch.setattr(deltas_module, "thin_svd", counting_svd)
    array = draw((6, 5), n_models=7).astype(np.float32)
    center = torch.from_numpy(array.mean(axis=0))
    deltas = DecomposedDeltas(DenseWeights(array), center, None, CPU, torch.float32)
    for _ in range(3):
        rebuilt = np.concatenate([rebuild(factors) for factors in deltas])
        np.testing.assert_allclose(rebuilt, array - center.numpy(), rtol=0, atol=1e-5)
    passes = 1 if cache_bytes == 2**29 else 3
    assert decomposed == [2, 2, 2, 1] * passes


def test_without_a_center_the_deltas_are_the_weights():
    array = draw((6, 5))
    deltas = DecomposedDeltas(DenseWeights(array), None, None, CPU, torch.float64)
    rebuilt = np.concatenate([rebuild(factors) for factors in deltas])
    np.testing.assert_allclose(rebuilt, array, rtol=0, atol=1e-13)


# Low-rank batches


@pytest.fixture
def low_rank(monkeypatch):
    """Seven models of rank 3, read in several batches."""
    monkeypatch.setattr(_contract, "BATCH_BYTES", 600)
    B, A = draw_product((6, 5), 3, n_models=7)
    scale = np.linspace(0.5, 2, 7)
    return LowRankWeights(B, A, scale), scale[:, None, None] * (B @ A)


def test_low_rank_mean_is_that_of_the_products(low_rank):
    weights, dense = low_rank
    assert len(list(weights.batches(CPU, torch.float64))) > 1
    mean, _ = mean_and_sizes(weights, CPU, torch.float64)
    np.testing.assert_allclose(mean, dense.mean(axis=0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("centred", [True, False])
def test_low_rank_deltas_are_those_of_the_products(centred, low_rank):
    weights, dense = low_rank
    center = torch.from_numpy(dense.mean(axis=0)) if centred else None
    deltas = DecomposedDeltas(weights, center, None, CPU, torch.float64)
    rebuilt = np.concatenate([rebuild(factors) for factors in deltas])
    expected = dense - dense.mean(axis=0) if centred else dense
    np.testing.assert_allclose(rebuilt, expected, rtol=0, atol=1e-12)


def test_low_rank_stays_low_rank_without_a_center(low_rank):
    weights, dense = low_rank
    batches = list(weights.batches(CPU, torch.float64))
    assert all(isinstance(subtract(b, None), LowRankBatch) for b in batches)
    norms = torch.cat([delta_norms(batch) for batch in batches])
    np.testing.assert_allclose(norms, np.linalg.norm(dense, axis=(1, 2)), rtol=1e-12)
