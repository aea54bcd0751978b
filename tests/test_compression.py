"""Networks trained in subspaces of the deltas: the same networks, taken back."""

import numpy as np
import pytest
import torch

from skprobex import LowRankWeights, ProbeXClassifier, ProbeXRegressor
from skprobex.datasets import make_model_tree
from skprobex.probing.compression import Compression
from skprobex.probing.deltas import DecomposedDeltas, LowRankBatch
from skprobex.probing.device import make_generator
from skprobex.probing.inputs import ViewInputs
from skprobex.probing.networks import ProbingNetwork
from skprobex.probing.views import MATRIX_VIEWS, VIEWS
from skprobex.weights import DenseWeights

D_OUT, D_IN, RANK, SIZE = 9, 12, 2, 5
CPU = torch.device("cpu")
SETTINGS = {
    "solver": "adam",
    "views": ("xu", "xtxu", "log_xxt", "spectrum"),
    "normalize": True,
    "n_probes": 4,
    "projection_dim": 6,
    "n_components": 8,
    "learning_rate_init": 1e-2,
    "max_iter": 20,
    "random_state": 0,
    "device": "cpu",
}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def orthonormal(d, size, seed):
    return torch.linalg.qr(draw(d, size, seed=seed))[0]


def draw_batch(low_rank, compression=None):
    """Deltas, within the subspaces where there are some."""
    B, A = draw(7, D_OUT, RANK), draw(7, RANK, D_IN, seed=1)
    if compression is not None:
        left, right = compression.bases["left"], compression.bases["right"]
        B, A = left @ (left.T @ B), A @ right @ right.T
    return LowRankBatch(B, A) if low_rank else B @ A


@pytest.fixture
def compression():
    bases = {"left": orthonormal(D_OUT, SIZE, 2), "right": orthonormal(D_IN, SIZE, 3)}
    return Compression(bases)


def networks(views, standardize, compression):
    """One for compressed inputs, and the same taken back."""
    settings = {
        "n_probes": 4,
        "projection_dim": 6,
        "n_components": 3,
        "n_outputs": 2,
        "standardize": standardize,
        "generator": make_generator(0),
    }
    scales = dict.fromkeys(views, 1.7)

    def build(shape, **options):
        shapes = {
            name: (SIZE, 0) if name == "spectrum" else MATRIX_VIEWS[name].shape(shape)
            for name in views
        }
        return ProbingNetwork(shapes, scales, **settings, **options).double()

    shape = compression.shape((D_OUT, D_IN))
    small = build(shape, ones=compression.ones(views))
    large = build((D_OUT, D_IN))
    large.load_state_dict(compression.restore(small.state_dict()))
    return small, large


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize(
    "within, standardize", [(True, False), (True, True), (False, False)]
)
def test_a_network_taken_back_computes_the_same(
    within, standardize, low_rank, compression
):
    # Where deltas leave the subspaces, what lies outside is in their mean, and in views
    # that multiply them by themselves.
    views = [v for v in MATRIX_VIEWS if within or v not in ("xtxu", "xxtu")]
    make = ViewInputs(None, None, views, True, 1.0, {})
    inputs = make(draw_batch(low_rank, compression if within else None))
    small, large = networks(views, standardize, compression)
    with torch.no_grad():
        expected = small(compression.compress(inputs))
        np.testing.assert_allclose(large(inputs), expected, rtol=0, atol=1e-10)
        # It is no accident: other networks compute something else.
        large.projections["xu"].mul_(1.1)
        assert (large(inputs) - expected).abs().max() > 1e-3


def test_reducing_undoes_restoring(compression):
    small, _ = networks(VIEWS[:-1], True, compression)
    state = small.state_dict()
    again = compression.reduce(compression.restore(state))
    assert again.keys() == state.keys()
    for name, values in state.items():
        np.testing.assert_allclose(again[name], values, rtol=0, atol=1e-12)


def test_what_was_compressed_is_not_changed(compression):
    make = ViewInputs(None, None, ("xu", "log_xtx", "spectrum"), True, 1.0, {})
    inputs = make(draw_batch(False))
    before = {name: values.clone() for name, values in inputs.items()}
    compressed = compression.compress(inputs)
    assert compressed["delta"].shape == (7, SIZE, SIZE)
    assert compressed["log_xtx"].shape == (7, SIZE, 9)
    assert torch.equal(compressed["spectrum"], before["spectrum"])
    for name, values in before.items():
        assert torch.equal(inputs[name], values)


@pytest.mark.parametrize("shape", [(D_OUT, D_IN), (230, 210)])
def test_subspaces_hold_what_the_deltas_have_in_common(shape):
    left, right = orthonormal(shape[0], 3, 0), orthonormal(shape[1], 3, 1)
    W = (left @ draw(20, 3, 3) @ right.T).numpy()
    deltas = DecomposedDeltas(DenseWeights(W), None, None, CPU, torch.float64)
    found = Compression.fit(deltas, True, 3, make_generator(0))
    for side, basis in (("left", left), ("right", right)):
        assert found.bases[side].shape == basis.shape
        shared = torch.linalg.svdvals(found.bases[side].T @ basis)
        np.testing.assert_allclose(shared, 1, rtol=0, atol=1e-6)


def test_only_longer_sides_are_compressed():
    deltas = DecomposedDeltas(
        DenseWeights(draw(6, 4, 10).numpy()), None, None, CPU, torch.float64
    )
    found = Compression.fit(deltas, False, 5, make_generator(0))
    assert list(found.bases) == ["right"]
    assert found.shape((4, 10)) == (4, 5)
    assert set(found.ones(VIEWS)) == {"xtu", "xtxu", "log_xtx"}


@pytest.fixture(scope="module")
def tree():
    return make_model_tree(
        120, (20, 16), view="xtxu", random_state=0, dtype=np.float64, return_X_y=True
    )


@pytest.mark.parametrize("standardize", [False, True])
def test_as_many_dimensions_as_there_are_change_nothing(standardize, tree):
    W, y = tree
    plain = ProbeXClassifier(**SETTINGS, standardize=standardize).fit(W, y)
    same = ProbeXClassifier(**SETTINGS, standardize=standardize, compress=20).fit(W, y)
    np.testing.assert_array_equal(same.decision_function(W), plain.decision_function(W))


@pytest.mark.parametrize("as_factors", [False, True])
def test_experts_are_trained_in_subspaces(as_factors, tree, monkeypatch):
    W, y = tree
    if as_factors:
        B, A = draw(120, 20, 4).numpy(), draw(120, 4, 16, seed=1).numpy()
        for label in range(3):
            A[y == label, :, 4 * label : 4 * label + 4] *= 5
        W = LowRankWeights(B, A)
    seen = []
    forward = ProbingNetwork.forward
    monkeypatch.setattr(
        ProbingNetwork,
        "forward",
        lambda self, inputs: seen.append(inputs) or forward(self, inputs),
    )
    settings = SETTINGS | {"max_iter": 60}
    clf = ProbeXClassifier(**settings, compress=6).fit(W[:80], y[:80])
    shapes = {key: tuple(values.shape[1:]) for key, values in seen[0].items()}
    assert shapes["log_xxt"][0] == 6
    if as_factors:
        assert shapes["up"][0] == shapes["down"][1] == 6
    else:
        assert shapes["delta"] == (6, 6)
    # What is fitted is as wide as the layer, and takes weights as they are.
    assert {len(probes) for probes in clf.probes_.values()} == {16, 20}
    assert clf.score(W[80:], y[80:]) > 0.8


def test_training_goes_on_where_it_stopped(tree):
    W, y = tree[0], np.random.default_rng(0).standard_normal(120)
    reg = ProbeXRegressor(**SETTINGS, compress=6, warm_start=True).fit(W, y)
    first, before = reg.loss_curve_, reg.predict(W)
    reg.set_params(max_iter=1, learning_rate_init=1e-9).fit(W, y)
    assert reg.loss_curve_[0] < first[5]
    np.testing.assert_allclose(reg.predict(W), before, rtol=0, atol=1e-3)
