"""The adam solver: how training starts, stops, goes on, and what it keeps."""

import math

import numpy as np
import pytest
import torch
from networks import OF_ADAM, flat
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss, mean_squared_error

import skprobex._base as base
from skprobex import ProbeXClassifier, ProbeXRegressor
from skprobex.datasets import make_model_tree
from skprobex.probing.device import make_generator
from skprobex.probing.network.inputs import HeldInputs
from skprobex.probing.network.networks import ProbingNetwork
from skprobex.probing.network.training import Schedule, train
from skprobex.probing.tasks import Classes, Labels, Numbers
from skprobex.weights import _contract

N_MODELS, D_OUT, D_IN = 40, 6, 5
SCHEDULE = {
    "learning_rate_init": 1e-2,
    "max_iter": 30,
    "batch_size": 16,
    "alpha": 0.0,
    "tol": 0.0,
    "n_iter_no_change": 1000,
}
SMALL = {
    "solver": "adam",
    "views": ("xu", "xtxu"),
    "normalize": True,
    "n_probes": 4,
    "projection_dim": 6,
    "n_components": 8,
    "learning_rate_init": 1e-2,
    "random_state": 0,
    "device": "cpu",
}
ignore_convergence = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning"
)


def make_network(n_outputs=2, seed=0):
    return ProbingNetwork(
        {"xu": (D_OUT, D_IN)},
        {"xu": 1.0},
        n_probes=3,
        projection_dim=4,
        n_components=5,
        n_outputs=n_outputs,
        standardize=False,
        generator=make_generator(seed),
    ).double()


@pytest.fixture
def data():
    deltas = np.random.default_rng(0).standard_normal((N_MODELS, D_OUT, D_IN))
    return {"delta": torch.from_numpy(deltas)}


@pytest.fixture
def targets(data):
    """Signs of two entries of each delta."""
    return data["delta"][:, [0, 1], [0, 1]].sign()


def run(network, data, targets, kind=Labels, seed=0, sample_weight=None, **parameters):
    how = {k: parameters.pop(k, None) for k in ("validation", "progress")}
    schedule = Schedule(**SCHEDULE | parameters)
    task = kind(targets, sample_weight)
    return train(network, HeldInputs(data), task, schedule, make_generator(seed), **how)


def state_of(network):
    return torch.cat([value.flatten() for value in network.state_dict().values()])


# Losses


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_are_sklearns(weighted):
    rng = np.random.default_rng(0)
    outputs, real = 3 * rng.standard_normal((2, 12, 3))
    weight = rng.uniform(0.1, 2, 12) if weighted else None
    signs = np.where(real > 0, 1.0, -1.0)
    classes = np.arange(12) % 3
    expected = {
        "regression": (
            real,
            mean_squared_error(real, outputs, sample_weight=weight) / 2,
        ),
        "multiclass": (
            2 * np.eye(3)[classes] - 1,
            log_loss(classes, softmax(outputs, axis=1), sample_weight=weight),
        ),
        "multilabel": (
            signs,
            np.mean(
                [
                    log_loss(signs[:, t], expit(outputs[:, t]), sample_weight=weight)
                    for t in range(3)
                ]
            ),
        ),
    }
    weight = None if weight is None else torch.from_numpy(weight)
    kinds = {"regression": Numbers, "multiclass": Classes, "multilabel": Labels}
    everything = torch.arange(12)
    for task, (known, value) in expected.items():
        of_task = kinds[task](torch.from_numpy(known), weight)
        got = of_task.loss(torch.from_numpy(outputs), everything)
        assert got.item() == pytest.approx(value, rel=1e-12)


KINDS = {
    "binary": Labels,
    "multiclass": Classes,
    "multilabel": Labels,
    "regression": Numbers,
}


@pytest.mark.parametrize("task", KINDS)
def test_loss_falls(task, data, targets):
    if task == "binary":
        targets = targets[:, :1]
    elif task == "multiclass":
        values = data["delta"][:, 0, :3]
        targets = 2 * torch.eye(3).double()[values.argmax(dim=1)] - 1
    elif task == "regression":
        targets = data["delta"][:, 0, :2]
    network = make_network(targets.shape[1])
    history = run(network, data, targets, KINDS[task], max_iter=100)
    assert history.losses[-1] < 0.3 * history.losses[0]
    with torch.no_grad():
        assert KINDS[task](targets).score(network(data)) > 0.9


@pytest.mark.parametrize("batch_size", [1, 7, 16, N_MODELS])
def test_epoch_loss_is_the_mean_over_models(batch_size, data, targets):
    network = make_network()
    with torch.no_grad():
        expected = Labels(targets).loss(network(data), torch.arange(N_MODELS)).item()
    history = run(
        network,
        data,
        targets,
        batch_size=batch_size,
        learning_rate_init=1e-14,
        max_iter=2,
    )
    assert history.losses == pytest.approx([expected] * 2, rel=1e-9)


def test_every_epoch_is_reported(data, targets):
    seen = []
    history = run(make_network(), data, targets, max_iter=5, progress=seen.append)
    assert seen == history.losses
    assert len(seen) == 5
    assert not history.converged
    assert not history.interrupted


# Seeds


def test_the_seed_gives_the_bits(data, targets):
    states = []
    for seed in (0, 0, 1):
        network = make_network()
        run(network, data, targets, seed=seed, max_iter=3)
        states.append(state_of(network))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@ignore_convergence
@pytest.mark.parametrize("early_stopping", [False, True])
def test_the_random_state_gives_the_bits(early_stopping):
    W, y = make_model_tree(40, (8, 6), random_state=0, return_X_y=True)
    model = ProbeXClassifier(**flat(**SMALL, max_iter=5, early_stopping=early_stopping))
    first = model.fit(W, y).decision_function(W)
    torch.manual_seed(1)
    second = model.fit(W, y).decision_function(W)
    other = model.set_params(random_state=1).fit(W, y).decision_function(W)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@ignore_convergence
def test_the_global_generator_is_left_alone():
    W, y = make_model_tree(40, (8, 6), random_state=0, return_X_y=True)
    before = torch.get_rng_state()
    model = ProbeXClassifier(**flat(**SMALL, max_iter=2)).fit(W, y)
    assert torch.equal(torch.get_rng_state(), before)
    model.predict(W)
    model.transform(W)
    assert torch.equal(torch.get_rng_state(), before)


# Weights of the models and of the network


def test_models_of_no_weight_do_not_count(data, targets):
    half = N_MODELS // 2
    weight = torch.ones(N_MODELS).double()
    weight[half:] = 0
    weighted, alone, plain = make_network(), make_network(), make_network()
    run(weighted, data, targets, batch_size=N_MODELS, sample_weight=weight)
    first = {"delta": data["delta"][:half]}
    run(alone, first, targets[:half], batch_size=N_MODELS)
    run(plain, data, targets, batch_size=N_MODELS)
    np.testing.assert_allclose(state_of(weighted), state_of(alone), rtol=0, atol=1e-9)
    assert (state_of(plain) - state_of(alone)).abs().max() > 1e-3


@ignore_convergence
def test_class_weight_moves_the_decision():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((60, 6, 5))
    y = rng.integers(2, size=60)
    rates = [
        ProbeXClassifier(**flat(**SMALL, max_iter=30, class_weight=weight))
        .fit(W, y)
        .predict_proba(W)[:, 1]
        .mean()
        for weight in ({0: 10, 1: 1}, None, {0: 1, 1: 10})
    ]
    assert rates[0] < rates[1] - 0.05 < rates[2] - 0.1


def test_alpha_is_the_weight_decay(data, targets):
    """The first step of Adam moves by the sign of its gradient, decay included."""
    alpha, rate = 0.7, 1e-3
    network = make_network()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    Labels(targets).loss(network(data), torch.arange(N_MODELS)).backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    run(
        network,
        data,
        targets,
        max_iter=1,
        batch_size=N_MODELS,
        alpha=alpha,
        learning_rate_init=rate,
    )
    for name, value in network.named_parameters():
        slope = gradients[name] + alpha * before[name]
        expected = before[name] - rate * slope / (slope.abs() + 1e-8)
        np.testing.assert_allclose(value.detach(), expected, rtol=0, atol=1e-9)


# Stopping


def epochs_until_stalled(values, tol, patience):
    """The first epoch that ends `patience` epochs without a gain of more than tol."""
    best, stalled = math.inf, 0
    for epoch, value in enumerate(values, start=1):
        stalled = stalled + 1 if value >= best - tol else 0
        best = min(best, value)
        if stalled == patience:
            return epoch
    return None


@pytest.mark.parametrize("tol, patience", [(1e-3, 1), (3e-3, 4), (0.02, 2)])
def test_stops_when_the_loss_stalls(tol, patience, data, targets):
    kwargs = {"max_iter": 300, "learning_rate_init": 0.03}
    full = run(make_network(), data, targets, **kwargs)
    kwargs |= {"tol": tol, "n_iter_no_change": patience}
    stopped = run(make_network(), data, targets, **kwargs)
    expected = epochs_until_stalled(full.losses, tol, patience)
    assert 1 + patience < expected < 300
    assert stopped.converged
    assert stopped.losses == full.losses[:expected]


def test_no_gain_at_all_stops_after_n_iter_no_change(data, targets):
    history = run(make_network(), data, targets, tol=100.0, n_iter_no_change=3)
    assert len(history.losses) == 1 + 3


def test_max_iter_is_no_convergence():
    W, y = make_model_tree(40, (8, 6), random_state=0, return_X_y=True)
    model = ProbeXClassifier(**flat(**SMALL, max_iter=3))
    with pytest.warns(ConvergenceWarning, match="max_iter=3"):
        model.fit(W, y)
    assert model.n_iter_ == len(model.loss_curve_) == 3


def test_convergence_warns_of_nothing():
    W, y = make_model_tree(40, (8, 6), random_state=0, return_X_y=True)
    model = ProbeXClassifier(**flat(**SMALL, max_iter=50, tol=10.0, n_iter_no_change=2))
    assert model.fit(W, y).n_iter_ == 3


# Early stopping


@pytest.fixture
def noise(data):
    """Targets that cannot be learnt: the score on models set aside goes up and down."""
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.choice([-1.0, 1.0], (N_MODELS, 2)))


VALIDATION = torch.arange(0, N_MODELS, 4)


def test_early_stopping_restores_the_best_epoch(data, noise):
    network, states, scores = make_network(), [], []
    held_out = {"delta": data["delta"][VALIDATION]}

    def remember(_):
        states.append(state_of(network).clone())
        with torch.no_grad():
            outputs = network(held_out)
        right = (outputs > 0) == (noise[VALIDATION] > 0)
        scores.append(right.double().mean().item())

    history = run(network, data, noise, validation=VALIDATION, progress=remember)
    assert history.validation_scores == pytest.approx(scores)
    best = int(np.argmax(scores))
    assert 0 < best < len(scores) - 1
    assert torch.equal(state_of(network), states[best])


def test_early_stopping_stops_when_the_score_stalls(data, noise):
    full = run(make_network(), data, noise, validation=VALIDATION, max_iter=100)
    patient = {"validation": VALIDATION, "max_iter": 100, "n_iter_no_change": 6}
    stopped = run(make_network(), data, noise, **patient)
    expected = epochs_until_stalled([-s for s in full.validation_scores], 0.0, 6)
    assert stopped.validation_scores == full.validation_scores[:expected]
    assert stopped.converged


def test_models_set_aside_are_not_trained_on(data, targets, noise):
    changed = targets.clone()
    changed[VALIDATION] = -changed[VALIDATION]
    other = {"delta": data["delta"].clone()}
    other["delta"][VALIDATION] += 1
    first = run(make_network(), data, targets, validation=VALIDATION)
    second = run(make_network(), other, changed, validation=VALIDATION)
    assert first.losses == second.losses
    assert first.validation_scores != second.validation_scores


@ignore_convergence
def test_early_stopping_sets_the_fraction_aside():
    W, y = make_model_tree(60, (8, 6), random_state=0, return_X_y=True)
    model = ProbeXClassifier(
        **flat(**SMALL, max_iter=60, early_stopping=True, validation_fraction=0.25)
    ).fit(W, y)
    assert len(model.validation_scores_) == model.n_iter_
    fifteenths = np.array(model.validation_scores_) * 15
    np.testing.assert_allclose(fifteenths, fifteenths.round(), rtol=0, atol=1e-4)


def test_too_few_models_to_set_aside():
    W, y = make_model_tree(6, (8, 6), n_classes=2, random_state=0, return_X_y=True)
    model = ProbeXClassifier(
        **flat(**SMALL, early_stopping=True, validation_fraction=0.8)
    )
    with pytest.raises(ValueError, match="lower validation_fraction"):
        model.fit(W, y)


# Interrupting


def interrupt_after(n_epochs):
    calls = []

    def progress(*args, **kwargs):
        calls.append(args)
        if len(calls) == n_epochs:
            raise KeyboardInterrupt

    return progress


def test_interrupting_keeps_what_was_learnt(data, targets):
    interrupted, whole = make_network(), make_network()
    history = run(interrupted, data, targets, progress=interrupt_after(3))
    expected = run(whole, data, targets, max_iter=3)
    assert history.interrupted
    assert not history.converged
    assert history.losses == expected.losses
    assert torch.equal(state_of(interrupted), state_of(whole))


def test_interrupting_restores_the_best_epoch_so_far(data, noise):
    interrupted, whole = make_network(), make_network()
    history = run(
        interrupted, data, noise, validation=VALIDATION, progress=interrupt_after(20)
    )
    run(whole, data, noise, validation=VALIDATION, max_iter=19)
    assert history.interrupted
    assert torch.equal(state_of(interrupted), state_of(whole))


@pytest.mark.parametrize("kind", [ProbeXClassifier, ProbeXRegressor])
def test_an_interrupted_estimator_is_fitted_and_warns(kind, monkeypatch):
    W, y = make_model_tree(40, (8, 6), random_state=0, return_X_y=True)
    with pytest.warns(ConvergenceWarning):
        expected = kind(**flat(**SMALL, max_iter=3)).fit(W, y)
    progress = interrupt_after(3)
    monkeypatch.setattr(
        base.ProgressBar, "update", lambda self, n, **shown: progress(n)
    )
    with pytest.warns(UserWarning, match="interrupted by user after 3 epochs"):
        model = kind(**flat(**SMALL, max_iter=50)).fit(W, y)
    assert model.n_iter_ == 3
    np.testing.assert_array_equal(model.predict(W), expected.predict(W))
    np.testing.assert_array_equal(model.coef_, expected.coef_)


# Warm starts


@ignore_convergence
@pytest.mark.parametrize("kind", [ProbeXClassifier, ProbeXRegressor])
def test_warm_start_goes_on(kind):
    W, y = make_model_tree(40, (8, 6), random_state=0, return_X_y=True)
    model = kind(
        **flat(**SMALL, max_iter=20, n_iter_no_change=20, warm_start=True)
    ).fit(W, y)
    first = list(model.loss_curve_)
    second = model.fit(W, y).loss_curve_
    assert len(second) == 20
    assert first[-1] < 0.5 * first[0]
    assert second[0] < 1.5 * first[-1]
    cold = model.set_params(solver__warm_start=False).fit(W, y).loss_curve_
    assert cold == first


@ignore_convergence
def test_warm_start_does_not_forget():
    W, y = make_model_tree(40, (8, 6), random_state=0, return_X_y=True)
    W = W.astype(np.float64)
    for kind, method in (
        (ProbeXClassifier, "decision_function"),
        (ProbeXRegressor, "predict"),
    ):
        model = kind(**flat(**SMALL, max_iter=20, warm_start=True)).fit(W, y)
        expected = getattr(model, method)(W)
        model.set_params(solver__max_iter=1, solver__learning_rate_init=1e-14).fit(W, y)
        np.testing.assert_allclose(
            getattr(model, method)(W), expected, rtol=0, atol=1e-9
        )


@ignore_convergence
def test_warm_start_in_another_unit():
    W, y = make_model_tree(
        40, (8, 6), task="regression", random_state=0, return_X_y=True
    )
    model = ProbeXRegressor(**flat(**SMALL, max_iter=20, warm_start=True)).fit(W, y)
    before = model.predict(W)
    moved = 10 * y + 5
    model.set_params(solver__max_iter=1, solver__learning_rate_init=1e-9).fit(W, moved)
    np.testing.assert_allclose(model.predict(W), before, rtol=0, atol=1e-4)
    expected = mean_squared_error(moved, before) / moved.var() / 2
    assert model.loss_curve_ == pytest.approx([expected], rel=1e-4)


@ignore_convergence
@pytest.mark.parametrize(
    "relabel",
    [
        lambda y: y % 2,
        lambda y: y + 1,
        lambda y: np.array(["a", "b", "c"])[y],
        lambda y: np.eye(3, dtype=int)[y],
    ],
    ids=["fewer", "shifted", "named", "multilabel"],
)
def test_warm_start_refuses_other_classes(relabel):
    W, y = make_model_tree(40, (8, 6), random_state=0, return_X_y=True)
    model = ProbeXClassifier(**flat(**SMALL, max_iter=2, warm_start=True)).fit(W, y)
    expected = model.decision_function(W)
    with pytest.raises(ValueError, match="warm_start"):
        model.fit(W, relabel(y))
    np.testing.assert_array_equal(model.decision_function(W), expected)
    np.testing.assert_array_equal(model.classes_, [0, 1, 2])


@ignore_convergence
@pytest.mark.parametrize(
    "change",
    [{"n_probes": 3}, {"projection_dim": 5}, {"n_components": 7}, {"views": ("xu",)}],
    ids=lambda change: next(iter(change)),
)
def test_warm_start_refuses_another_network(change):
    W, y = make_model_tree(40, (8, 6), random_state=0, return_X_y=True)
    model = ProbeXClassifier(**flat(**SMALL, max_iter=2, warm_start=True)).fit(W, y)
    for name, value in change.items():
        model.set_params(**{f"solver__{name}" if name in OF_ADAM else name: value})
    with pytest.raises(ValueError, match="warm_start"):
        model.fit(W, y)


@ignore_convergence
def test_warm_start_refuses_another_layer():
    W, y = make_model_tree(40, (8, 6), random_state=0, return_X_y=True)
    model = ProbeXClassifier(**flat(**SMALL, max_iter=2, warm_start=True)).fit(W, y)
    with pytest.raises(ValueError, match="shape"):
        model.fit(W[:, :7], y)
    assert model.weight_shape_ == (8, 6)


@ignore_convergence
def test_warm_start_after_ridge_starts_anew():
    W, y = make_model_tree(40, (8, 6), random_state=0, return_X_y=True)
    expected = ProbeXClassifier(**flat(**SMALL, max_iter=5)).fit(W, y)
    model = ProbeXClassifier(views=SMALL["views"]).fit(W, y)
    model.set_params(**flat(**SMALL, max_iter=5, warm_start=True)).fit(W, y)
    assert model.loss_curve_ == expected.loss_curve_


@ignore_convergence
def test_another_solver_leaves_nothing_behind():
    W, y = make_model_tree(40, (8, 6), random_state=0, return_X_y=True)
    model = ProbeXClassifier(**flat(**SMALL, max_iter=5, early_stopping=True)).fit(W, y)
    assert not hasattr(model, "alpha_")
    model.set_params(solver__early_stopping=False).fit(W, y)
    assert not hasattr(model, "validation_scores_")
    model.set_params(solver="ridge").fit(W, y)
    assert not hasattr(model, "loss_curve_")
    model.set_params(solver="adam").fit(W, y)
    assert not hasattr(model, "alpha_")


# The fitted expert


@ignore_convergence
def test_the_head_reads_the_representation():
    W, y = make_model_tree(40, (8, 6), random_state=0, return_X_y=True)
    model = ProbeXClassifier(**flat(**SMALL, max_iter=5)).fit(W, y)
    representation = model.transform(W)
    assert representation.shape == (40, SMALL["n_components"])
    np.testing.assert_allclose(
        representation @ model.coef_.T + model.intercept_,
        model.decision_function(W),
        rtol=0,
        atol=1e-5,
    )


@ignore_convergence
def test_predictions_do_not_depend_on_company(monkeypatch):
    W, y = make_model_tree(40, (8, 6), random_state=0, return_X_y=True)
    views = ("xu", "log_xtx", "spectrum")
    model = ProbeXClassifier(**flat(**SMALL | {"views": views}, max_iter=5))
    expected = model.fit(W.astype(np.float64), y).decision_function(W)
    alone = np.concatenate([model.decision_function(W[i : i + 1]) for i in range(40)])
    np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-9)
    monkeypatch.setattr(_contract, "BATCH_BYTES", 7 * 8 * 6 * 8)
    np.testing.assert_allclose(model.decision_function(W), expected, rtol=0, atol=1e-9)
    refitted = model.fit(W.astype(np.float64), y).decision_function(W)
    np.testing.assert_allclose(refitted, expected, rtol=0, atol=1e-8)


@ignore_convergence
def test_leave_one_out_chooses_the_views_of_the_network():
    W, y = make_model_tree(
        80, (16, 12), view="log_xtx", random_state=0, return_X_y=True
    )
    ridge = ProbeXClassifier(n_probes=4).fit(W, y)
    adam = ProbeXClassifier(
        **flat(**SMALL | {"views": "auto", "normalize": "auto"}, max_iter=2)
    ).fit(W, y)
    assert adam.views_ == ridge.views_
    assert adam.normalize_ == ridge.normalize_
    assert adam.view_scores_.keys() == ridge.view_scores_.keys()
    assert set(adam.probes_) == set(adam.views_) - {"spectrum"}


@ignore_convergence
@pytest.mark.parametrize("view", ["xu", "xtxu", "xxtu", "spectrum"])
def test_networks_learn_what_their_view_knows(view):
    W, y = make_model_tree(160, (12, 10), view=view, random_state=0, return_X_y=True)
    small = SMALL | {"views": (view,), "n_probes": 10, "projection_dim": 16}
    model = ProbeXClassifier(**flat(**small, max_iter=60)).fit(W[:120], y[:120])
    assert model.score(W[120:], y[120:]) > 0.9


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@ignore_convergence
def test_adam_on_cuda_is_adam_on_the_cpu():
    W, y = make_model_tree(40, (8, 6), random_state=0, return_X_y=True)
    W = W.astype(np.float64)
    cpu, cuda = (
        ProbeXClassifier(**flat(**SMALL | {"device": device}, max_iter=20)).fit(W, y)
        for device in ("cpu", "cuda")
    )
    assert isinstance(cuda.coef_, np.ndarray)
    np.testing.assert_allclose(cuda.loss_curve_, cpu.loss_curve_, rtol=1e-6)
    np.testing.assert_allclose(
        cuda.predict_proba(W), cpu.predict_proba(W), rtol=0, atol=1e-6
    )
