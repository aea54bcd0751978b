"""The adam solver: train a probing network end to end."""

import math
from dataclasses import dataclass, field, replace

import torch

from ..._registry import saved
from ..batches import LowRankBatch, subtract
from ..deltas import delta_norms, root_mean_square
from ..text_side import TextSide
from ..views import VIEWS
from .inputs import ViewInputs, training_inputs
from .networks import ProbingNetwork


@saved
@dataclass
class History:
    """How training went."""

    losses: list = field(default_factory=list)
    validation_scores: list = field(default_factory=list)
    converged: bool = False
    interrupted: bool = False


@saved
@dataclass
class NeuralExpert:
    """A fitted network: its inputs, its weights by name, and what rebuilds it."""

    layer: str
    inputs: ViewInputs
    sizes: dict
    state: dict
    history: History
    view_scores: dict = field(default_factory=dict)

    @property
    def probes(self):
        """Probes of each matrix view."""
        prefix = "probes."
        return {
            name.removeprefix(prefix): values
            for name, values in self.state.items()
            if name.startswith(prefix)
        }

    @property
    def coef(self):
        """Weights of the head; of its tower, if it is a `TextHead`."""
        return self.state[f"{self._head}.weight"]

    @property
    def intercept(self):
        return self.state[f"{self._head}.bias"]

    @property
    def _head(self):
        return "head" if self.sizes["text_dim"] is None else "head.tower"

    @property
    def text_side(self):
        """What embeds text vectors, or None."""
        if self.sizes["text_dim"] is None:
            return None
        return TextSide(self.coef.T, self.intercept)

    @property
    def n_components(self):
        return self.sizes["n_components"]

    def scaled(self, slope, offset):
        """The expert that predicts ``slope * f + offset``, arrays of one per target."""
        slope, offset = (part.astype(self.coef.dtype) for part in (slope, offset))
        head = {
            "head.weight": self.coef * slope[:, None],
            "head.bias": self.intercept * slope + offset,
        }
        return replace(self, state=self.state | head)

    def network(self):
        """Build the network anew and load its weights."""
        network = ProbingNetwork(view_scales=self.inputs.view_scales, **self.sizes)
        network.to(self.coef.device, self.coef.dtype).load_state_dict(self.state)
        return network.eval()

    @torch.no_grad()
    def predict(self, layers, device):
        """Compute the network's outputs, ``(n_models, n_targets)``."""
        network = self.network()
        batches = layers[self.layer].batches(device, self.coef.dtype)
        return torch.cat([network(self.inputs(batch)) for batch in batches])

    @torch.no_grad()
    def transform(self, layers, device):
        """Compute the encoder's representation, ``(n_models, n_components)``."""
        network = self.network()
        batches = layers[self.layer].batches(device, self.coef.dtype)
        return torch.cat([network.encode(self.inputs(batch)) for batch in batches])


@dataclass(frozen=True)
class Schedule:
    """How a network is trained; the names are `MLPClassifier`'s."""

    learning_rate_init: float
    max_iter: int
    batch_size: int
    alpha: float
    tol: float
    n_iter_no_change: int


def fit_network(
    problem, opened, sizes, schedule, *, validation=None, before=None, progress=None
):
    """Build the inputs, then train a network.

    Parameters
    ----------
    problem : Problem
        Of one layer, its views and normalisation chosen, and with the network's task.
    opened : DecomposedDeltas or ProbedLayer
        Has the centre and the sketch of the layer.
    sizes : dict
        What `ProbingNetwork` is made with, but for what the problem tells.
    schedule : Schedule
    validation : Tensor of int, optional
        Models set aside for early stopping.
    before : NeuralExpert, optional
        What to go on from.
    progress : callable, optional
        Called with the loss after every epoch.

    Returns
    -------
    NeuralExpert

    Raises
    ------
    ValueError
        If `before` is a network of other sizes.
    """
    ((name, weights),) = problem.layers.items()
    device, dtype = problem.device, problem.dtype
    task = problem.task.to(device, dtype)
    inputs = fit_inputs(problem, weights, opened)
    data = training_inputs(inputs, weights, device)
    sizes = {
        "view_shapes": _view_shapes(inputs, weights.lifted_shape[1:]),
        "n_probes": problem.n_probes,
        "n_outputs": task.n_outputs,
        **sizes,
    }
    network = ProbingNetwork(
        view_scales=inputs.view_scales, generator=problem.generator, **sizes
    ).to(device, dtype)
    if before is not None:
        _check_same_sizes(sizes, before.sizes)
        network.load_state_dict(before.state)
    if sizes["text_dim"] is not None:
        network.head.vectors = task.vectors
    history = train(
        network, data, task, schedule, problem.generator, validation, progress
    )
    return NeuralExpert(name, inputs, sizes, _copy_state(network), history)


def fit_inputs(problem, weights, opened):
    """What the network is to be shown, its scales not yet known."""
    norms, n_singular = [], None
    for batch in weights.batches(problem.device, problem.dtype):
        deltas = subtract(batch, opened.center)
        norms.append(delta_norms(deltas))
        if isinstance(deltas, LowRankBatch):
            n_singular = max(n_singular or 0, deltas.A.shape[1])
    return ViewInputs(
        opened.center,
        opened.sketch,
        problem.views,
        problem.normalize,
        root_mean_square(torch.cat(norms)),
        {},
        n_singular,
    )


def train(network, data, task, schedule, generator, validation=None, progress=None):
    """Minimise the task's loss by Adam over shuffled batches.

    Stops when the training loss (or, with `validation`, the validation score) has not
    improved by `tol` for `n_iter_no_change` epochs; with `validation` the weights of
    the best epoch are restored. Ctrl-C keeps what was learnt.

    Parameters
    ----------
    network : ProbingNetwork
    data : HeldInputs or StreamedInputs
        Indexed by a tensor of models.
    task : Task
        Where the network is.
    schedule : Schedule
    generator : torch.Generator
        Shuffles the batches.
    validation : Tensor of int, optional
        Models set aside for early stopping.
    progress : callable, optional
        Called with the loss after every epoch.

    Returns
    -------
    History
    """
    device = task.targets.device
    training = torch.arange(len(task))
    if validation is not None:
        training = training[~torch.isin(training, validation)]
        validation = validation.to(device)
    optimizer = torch.optim.Adam(
        network.parameters(),
        lr=schedule.learning_rate_init,
        weight_decay=schedule.alpha,
        # One pass over the weights in place of a dozen.
        fused=device.type != "mps",
    )
    history = History()
    best, best_state, stalled = math.inf, None, 0
    try:
        for _ in range(schedule.max_iter):
            order = training[torch.randperm(len(training), generator=generator)]
            batches = order.to(device).split(schedule.batch_size)
            loss = run_epoch(network, data, task, optimizer, batches)
            history.losses.append(loss)
            if not math.isfinite(loss):
                raise ValueError(
                    f"The loss was not finite in epoch {len(history.losses)}: lower "
                    "learning_rate_init."
                )
            if progress is not None:
                progress(loss)
            current = loss
            if validation is not None:
                current = -validate(
                    network, data, task, validation, schedule.batch_size
                )
                history.validation_scores.append(-current)
            stalled = 0 if current < best - schedule.tol else stalled + 1
            if current < best:
                best = current
                if validation is not None:
                    best_state = _copy_state(network)
            if stalled >= schedule.n_iter_no_change:
                history.converged = True
                break
    except KeyboardInterrupt:
        history.interrupted = True
    except torch.cuda.OutOfMemoryError as error:
        advice = f"Lower batch_size ({schedule.batch_size}), n_probes or projection_dim"
        message = f"{error} {advice}, or use device='cpu'."
        raise torch.cuda.OutOfMemoryError(message) from error
    if best_state is not None:
        network.load_state_dict(best_state)
    return history


def run_epoch(network, data, task, optimizer, batches):
    """Make one step for each batch of models; return the mean loss."""
    total, n_models = 0.0, 0
    for models in batches:
        loss = task.loss(network(data[models]), models)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total = total + loss.detach() * len(models)
        n_models += len(models)
    return float(total) / n_models


@torch.no_grad()
def validate(network, data, task, models, batch_size):
    """Score the network on models that are set aside."""
    outputs = torch.cat([network(data[part]) for part in models.split(batch_size)])
    return task.score(outputs, models=models)


def _view_shapes(inputs, weight_shape):
    """Rows and columns of each view's matrix; the length of the spectrum."""
    return {
        name: VIEWS[name].shape(weight_shape)
        if VIEWS[name].sides
        else (len(inputs.spectrum_mean), 0)
        for name in inputs.views
    }


def _check_same_sizes(sizes, before):
    changed = [name for name in sizes if sizes[name] != before[name]]
    if changed:
        name = changed[0]
        raise ValueError(
            f"warm_start=True goes on from a network with {name}={before[name]}, but "
            f"now {name}={sizes[name]} is asked for: keep it, or set warm_start=False."
        )


def _copy_state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}
