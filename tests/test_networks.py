"""Probing networks: against matrices, finite differences and the dense linear map."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from skprobex.probing.deltas import LowRankBatch
from skprobex.probing.device import make_generator
from skprobex.probing.network.inputs import ViewInputs, concatenate
from skprobex.probing.network.networks import ProbingNetwork, multiply
from skprobex.probing.views import MATRIX_VIEWS, VIEWS

N_MODELS, D_OUT, D_IN = 6, 5, 4
N_PROBES, PROJECTION_DIM, N_COMPONENTS, N_OUTPUTS = 3, 2, 4, 3
TYPICAL_NORM = 1.7
PAPER_VIEWS = ("xu", "xtu", "xxtu", "xtxu")


@pytest.fixture(scope="module")
def W():
    return 1 + np.random.default_rng(0).standard_normal((N_MODELS, D_OUT, D_IN))


def make_inputs(W, views, normalize=True, center=None):
    """What the network multiplies, and what made it."""
    make = ViewInputs(center, None, views, normalize, TYPICAL_NORM, {})
    return make, fitted_inputs(make, torch.from_numpy(W))


def fitted_inputs(make, batch):
    """Inputs of a batch that is all there is to fit the scales on."""
    inputs = make(batch)
    make.fit_scales([inputs], (D_OUT, D_IN))
    return make.scaled(inputs)


def make_network(views, scales, standardize=False, seed=0):
    sides = {"left": D_OUT, "right": D_IN}
    shapes = {
        name: (sides[MATRIX_VIEWS[name].left], sides[MATRIX_VIEWS[name].right])
        for name in views
        if name != "spectrum"
    }
    if "spectrum" in views:
        shapes["spectrum"] = (min(D_OUT, D_IN) + 1, 0)
    return ProbingNetwork(
        shapes,
        scales,
        n_probes=N_PROBES,
        projection_dim=PROJECTION_DIM,
        n_components=N_COMPONENTS,
        n_outputs=N_OUTPUTS,
        standardize=standardize,
        generator=make_generator(seed),
    ).double()


def matrices_of(deltas, name, scale=None):
    """The views, one model at a time, from Gram matrices."""
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


# What goes in


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", MATRIX_VIEWS)
def test_multiply_is_the_matrix_product(name, normalize, W):
    _, inputs = make_inputs(W, (name,), normalize)
    matrices = matrices_of(W, name, None if normalize else TYPICAL_NORM)
    vectors = np.random.default_rng(1).standard_normal((matrices.shape[2], 3))
    product = multiply(name, inputs, torch.from_numpy(vectors))
    np.testing.assert_allclose(product, matrices @ vectors, rtol=0, atol=1e-10)


def test_the_center_is_subtracted(W):
    center = torch.from_numpy(W.mean(axis=0))
    _, inputs = make_inputs(W, ("xu",), normalize=False, center=center)
    expected = (W - W.mean(axis=0)) / TYPICAL_NORM
    np.testing.assert_allclose(inputs["delta"], expected, rtol=0, atol=1e-14)


def test_a_delta_of_zero_stays_zero(W):
    W = W.copy()
    W[2] = 0
    for normalize in (True, False):
        _, inputs = make_inputs(W, VIEWS, normalize)
        assert (inputs["delta"][2] == 0).all()
        assert (inputs["log_xtx"][2] == 0).all()
        assert all(torch.isfinite(values).all() for values in inputs.values())


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", MATRIX_VIEWS)
def test_view_scales_give_entries_of_unit_size(name, normalize, W):
    make, _ = make_inputs(W, (name,), normalize)
    matrices = matrices_of(W, name, None if normalize else TYPICAL_NORM)
    scaled = make.view_scales[name] * matrices
    assert (scaled**2).mean() == pytest.approx(1, abs=1e-9)


def test_equal_models_have_scale_one():
    make, _ = make_inputs(np.zeros((3, D_OUT, D_IN)), VIEWS)
    assert set(make.view_scales.values()) == {1.0}


def test_spectrum_is_standardized_on_the_training_models(W):
    make, inputs = make_inputs(W, ("spectrum",))
    np.testing.assert_allclose(inputs["spectrum"].mean(dim=0), 0, rtol=0, atol=1e-12)
    assert inputs["spectrum"].square().mean().item() == pytest.approx(1, abs=1e-12)
    fresh = W[:1] * 3

    def raw(deltas):
        singular = np.linalg.svd(deltas, compute_uv=False)
        norms = np.linalg.norm(singular, axis=1, keepdims=True)
        shares = np.hstack([singular / norms, norms / TYPICAL_NORM])
        return np.log(shares**2 + 1e-5) / 2

    known = raw(W)
    # One unit for all columns, so that none is blown up.
    unit = np.sqrt(known.var(axis=0).mean())
    expected = (raw(fresh) - known.mean(axis=0)) / unit
    got = make(torch.from_numpy(fresh))["spectrum"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)


def test_constant_spectrum_is_not_divided_by_zero():
    _, inputs = make_inputs(np.ones((3, D_OUT, D_IN)), ("spectrum",))
    assert torch.isfinite(inputs["spectrum"]).all()


# Low-rank weights: the same from the factors


def draw_factors(rank=2):
    rng = np.random.default_rng(3)
    B = rng.standard_normal((N_MODELS, D_OUT, rank))
    A = rng.standard_normal((N_MODELS, rank, D_IN))
    return LowRankBatch(torch.from_numpy(B), torch.from_numpy(A))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", MATRIX_VIEWS)
def test_factors_multiply_like_their_product(name, normalize):
    batch = draw_factors()
    make = ViewInputs(None, None, (name,), normalize, TYPICAL_NORM, {})
    inputs = fitted_inputs(make, batch)
    assert "delta" not in inputs
    deltas = (batch.B @ batch.A).numpy()
    matrices = matrices_of(deltas, name, None if normalize else TYPICAL_NORM)
    vectors = np.random.default_rng(1).standard_normal((matrices.shape[2], 3))
    product = multiply(name, inputs, torch.from_numpy(vectors))
    np.testing.assert_allclose(product, matrices @ vectors, rtol=0, atol=1e-10)
    scaled = make.view_scales[name] * matrices
    assert (scaled**2).mean() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_networks_read_factors_like_their_product(normalize, centred):
    batch = draw_factors()
    dense = batch.B @ batch.A
    center = dense.mean(dim=0) if centred else None
    outputs = []
    for form in (dense, batch):
        make = ViewInputs(
            center, None, VIEWS, normalize, TYPICAL_NORM, {}, n_singular=D_IN
        )
        inputs = fitted_inputs(make, form)
        network = make_network(VIEWS, make.view_scales)
        outputs.append(network(inputs).detach().numpy())
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-9)


def test_batches_of_different_ranks_are_padded():
    first, second = draw_factors(1), draw_factors(3)
    views = ("xu", "xtxu", "log_xxt")
    make = ViewInputs(None, None, views, True, TYPICAL_NORM, {})
    parts = [make(first), make(second)]
    joined = concatenate(parts)
    assert joined["up"].shape == (2 * N_MODELS, D_OUT, 3)
    assert joined["down"].shape == (2 * N_MODELS, 3, D_IN)
    for name in views:
        vectors = torch.eye(D_OUT if name == "log_xxt" else D_IN).double()
        expected = torch.cat([multiply(name, part, vectors) for part in parts])
        np.testing.assert_allclose(
            multiply(name, joined, vectors), expected, rtol=0, atol=1e-12
        )


# What comes out


def encode_naively(network, matrices, spectrum, standardize):
    """The equations of the papers, one model and one view at a time."""
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    outputs = []
    for i in range(N_MODELS):
        parts = []
        for name, stack in matrices.items():
            probed = network.view_scales[name] * stack[i] @ state[f"probes.{name}"]
            if standardize:
                probed = (probed - probed.mean()) / probed.std()
            projected = state[f"projections.{name}"].T @ probed
            parts.append(np.maximum(projected, 0).ravel())
        parts.append(spectrum[i])
        parts = np.concatenate(parts)
        outputs.append(state["encoder.weight"] @ parts + state["encoder.bias"])
    return np.stack(outputs)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("views", [("xu",), PAPER_VIEWS, VIEWS], ids=len)
def test_network_is_the_papers_equations(views, standardize, W):
    make, inputs = make_inputs(W, views)
    network = make_network(views, make.view_scales, standardize)
    matrices = {name: matrices_of(W, name) for name in views if name in MATRIX_VIEWS}
    spectrum = inputs.get("spectrum", torch.empty(N_MODELS, 0)).numpy()
    expected = encode_naively(network, matrices, spectrum, standardize)
    with torch.no_grad():
        encoded, outputs = network.encode(inputs).numpy(), network(inputs).numpy()
    np.testing.assert_allclose(encoded, expected, rtol=0, atol=1e-9)
    head = network.head.weight.detach().numpy(), network.head.bias.detach().numpy()
    np.testing.assert_allclose(
        outputs, expected @ head[0].T + head[1], rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("views", [("xu",), PAPER_VIEWS, tuple(MATRIX_VIEWS)], ids=len)
def test_without_activation_it_is_the_dense_expert(views, W):
    """Proposition 1 of the paper: a linear map in Tucker form."""
    make, inputs = make_inputs(W, views)
    network = make_network(views, make.view_scales)
    network.activation = nn.Identity()
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    encoder, head = state["encoder.weight"], state["head.weight"]
    bias = head @ state["encoder.bias"] + state["head.bias"]
    expected = np.tile(bias, (N_MODELS, 1))
    width = PROJECTION_DIM * N_PROBES
    for start, name in zip(range(0, encoder.shape[1], width), views, strict=True):
        core = (head @ encoder[:, start : start + width]).reshape(
            N_OUTPUTS, PROJECTION_DIM, N_PROBES
        )
        dense = np.einsum(
            "rv,kvu,cu->krc",
            state[f"projections.{name}"],
            core,
            state[f"probes.{name}"] * network.view_scales[name],
        )  # (n_outputs, rows, columns)
        expected += np.einsum("krc,nrc->nk", dense, matrices_of(W, name))
    with torch.no_grad():
        outputs = network(inputs)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("views", [("xu",), PAPER_VIEWS])
def test_standardized_networks_are_blind_to_norm(views, W):
    """Each sample's S has mean 0 and variance 1, whatever the size of its delta."""
    make, inputs = make_inputs(W, views, normalize=False)
    network = make_network(views, make.view_scales, standardize=True)
    seen = []
    network.activation = nn.Identity()
    network.projections = nn.ParameterDict(
        {name: torch.eye(len(p)).double() for name, p in network.projections.items()}
    )
    network.encoder = nn.Identity()
    flat = network.encode(inputs).detach()
    for name in views:
        width = len(network.projections[name]) * N_PROBES
        part, flat = flat[:, :width], flat[:, width:]
        np.testing.assert_allclose(part.mean(dim=1), 0, rtol=0, atol=1e-12)
        np.testing.assert_allclose(part.std(dim=1, correction=0), 1, rtol=1e-12)
        seen.append(part)
    assert flat.shape[1] == 0
    louder = make(torch.from_numpy(100 * W))
    np.testing.assert_allclose(
        network.encode(louder).detach(), torch.cat(seen, dim=1), rtol=0, atol=1e-9
    )


def test_standardizing_a_delta_of_zero_is_finite():
    make, inputs = make_inputs(np.zeros((2, D_OUT, D_IN)), VIEWS)
    network = make_network(VIEWS, make.view_scales, standardize=True)
    outputs = network(inputs)
    outputs.sum().backward()
    assert torch.isfinite(outputs).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


# Gradients


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("views", [(name,) for name in VIEWS] + [VIEWS], ids="+".join)
def test_gradients_are_finite_differences(views, standardize, W):
    make, inputs = make_inputs(W[:3], views)
    network = make_network(views, make.view_scales, standardize)
    names, values = zip(*network.named_parameters(), strict=True)

    def run(*values):
        return functional_call(
            network, dict(zip(names, values, strict=True)), (inputs,)
        )

    assert torch.autograd.gradcheck(run, values, eps=1e-6, atol=1e-7, rtol=1e-5)


# Initial weights


def test_the_seed_draws_the_network():
    def state(seed):
        network = make_network(VIEWS, dict.fromkeys(MATRIX_VIEWS, 1.0), seed=seed)
        return torch.cat([value.flatten() for value in network.state_dict().values()])

    before = torch.get_rng_state()
    assert torch.equal(state(0), state(0))
    assert not torch.equal(state(0), state(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_keep_the_size_of_what_they_multiply():
    shapes = {"xu": (400, 300)}
    network = ProbingNetwork(
        shapes,
        {"xu": 1.0},
        n_probes=50,
        projection_dim=60,
        n_components=70,
        n_outputs=80,
        standardize=False,
        generator=make_generator(0),
    )
    assert network.probes["xu"].shape == (300, 50)
    assert network.projections["xu"].shape == (400, 60)
    for values, fan_in in (
        (network.probes["xu"], 300),
        (network.projections["xu"], 400),
    ):
        assert values.std().item() * fan_in**0.5 == pytest.approx(1, abs=0.03)
    for layer, fan_in in ((network.encoder, 50 * 60), (network.head, 70)):
        bound = fan_in**-0.5
        for values in (layer.weight, layer.bias):
            assert values.abs().max() <= bound
            assert values.abs().max() > 0.8 * bound
