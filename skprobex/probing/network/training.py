"""The adam solver: train a probing network end to end."""

import math
from dataclasses import dataclass, field

import torch

from ..._registry import saved
from ..deltas import (
    LowRankBatch,
    delta_norms,
    root_mean_square,
    subtract,
)
from ..naming import TextSide
from ..tasks import loss, score
from ..views import MATRIX_VIEWS
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

    inputs: ViewInputs
    sizes: dict
    state: dict
    history: History
    view_scores: dict = field(default_factory=dict)

    @property
    def center(self):
        return self.inputs.center

    @property
    def view_names(self):
        return self.inputs.views

    @property
    def normalize(self):
        return self.inputs.normalize

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

    def scale_outputs(self, slope, offset):
        """Replace every output f by ``slope * f + offset``, one pair a target."""
        head = {
            "head.weight": self.coef * slope[:, None],
            "head.bias": self.intercept * slope + offset,
        }
        self.state = self.state | head

    def network(self):
        """Build the network anew and load its weights."""
        network = ProbingNetwork(view_scales=self.inputs.view_scales, **self.sizes)
        network.to(self.coef.device, self.coef.dtype).load_state_dict(self.state)
        return network.eval()

    @torch.no_grad()
    def predict(self, weights, device):
        """Compute the network's outputs, ``(n_models, n_targets)``."""
        network = self.network()
        batches = weights.batches(device, self.coef.dtype)
        return torch.cat([network(self.inputs(batch)) for batch in batches])

    @torch.no_grad()
    def transform(self, weights, device):
        """Compute the encoder's representation, ``(n_models, n_components)``."""
        network = self.network()
        batches = weights.batches(device, self.coef.dtype)
        return torch.cat([network.encode(self.inputs(batch)) for batch in batches])


def fit_neural(
    weights,
    targets,
    task,
    *,
    views,
    normalize,
    center,
    sketch,
    device,
    n_probes,
    projection_dim,
    n_components,
    standardize,
    generator,
    warm_start=None,
    text_vectors=None,
    learn_temperature=True,
    **schedule,
):
    """Build the inputs, then train; see `train` for the schedule.

    With `text_vectors`, ``(n_targets, d_text)``, the targets are labels of such texts.

    Returns
    -------
    NeuralExpert

    Raises
    ------
    ValueError
        If `warm_start`, the expert to go on from, is a network of other sizes.
    """
    dtype = weights.compute_dtype
    norms, n_singular = [], None
    for batch in weights.batches(device, dtype):
        deltas = subtract(batch, center)
        norms.append(delta_norms(deltas))
        if isinstance(deltas, LowRankBatch):
            n_singular = max(n_singular or 0, deltas.A.shape[1])
    typical_norm = root_mean_square(torch.cat(norms))
    inputs = ViewInputs(center, sketch, views, normalize, typical_norm, {}, n_singular)
    data = training_inputs(inputs, weights, device)

    sizes = {
        "view_shapes": _view_shapes(inputs, weights.lifted_shape[1:]),
        "n_probes": n_probes,
        "projection_dim": projection_dim,
        "n_components": n_components,
        "n_outputs": targets.shape[1],
        "standardize": standardize,
        "text_dim": None if text_vectors is None else text_vectors.shape[1],
        "learn_temperature": learn_temperature,
    }
    network = ProbingNetwork(
        view_scales=inputs.view_scales, generator=generator, **sizes
    ).to(device, dtype)
    if warm_start is not None:
        _check_same_sizes(sizes, warm_start.sizes)
        network.load_state_dict(warm_start.state)
    if text_vectors is not None:
        network.head.vectors = text_vectors.to(device, dtype)
    targets = targets.to(device, dtype)
    history = train(network, data, targets, task, generator=generator, **schedule)
    return NeuralExpert(inputs, sizes, _copy_state(network), history)


def train(
    network,
    data,
    targets,
    task,
    *,
    generator,
    learning_rate_init,
    max_iter,
    batch_size,
    alpha,
    tol,
    n_iter_no_change,
    sample_weight=None,
    validation=None,
    progress=None,
):
    """Minimise the task's loss by Adam over shuffled batches.

    Stops when the training loss (or, with `validation`, the validation score) has not
    improved by `tol` for `n_iter_no_change` epochs; with `validation` the weights of
    the best epoch are restored. Ctrl-C keeps what was learnt.

    Parameters
    ----------
    network : ProbingNetwork
    data : HeldInputs or StreamedInputs
        Indexed by a tensor of models.
    targets : Tensor of shape (n_models, n_targets)
    task : one of ``tasks.TASKS``
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
    n_models = len(targets)
    training = torch.arange(n_models)
    if validation is not None:
        training = training[~torch.isin(training, validation)]
    optimizer = torch.optim.Adam(
        network.parameters(),
        lr=learning_rate_init,
        weight_decay=alpha,
        # One pass over the weights in place of a dozen.
        fused=targets.device.type != "mps",
    )
    history = History()
    best, best_state, stalled = math.inf, None, 0
    try:
        for _ in range(max_iter):
            order = training[torch.randperm(len(training), generator=generator)]
            epoch_loss = 0.0
            for index in order.to(targets.device).split(batch_size):
                weight = None if sample_weight is None else sample_weight[index]
                batch_loss = loss(task, network(data[index]), targets[index], weight)
                optimizer.zero_grad(set_to_none=True)
                batch_loss.backward()
                optimizer.step()
                epoch_loss = epoch_loss + batch_loss.detach() * len(index)
            history.losses.append(float(epoch_loss) / len(order))
            if not math.isfinite(history.losses[-1]):
                raise ValueError(
                    f"The loss was not finite in epoch {len(history.losses)}: lower "
                    "learning_rate_init."
                )
            if progress is not None:
                progress(history.losses[-1])
            current = history.losses[-1]
            if validation is not None:
                with torch.no_grad():
                    parts = validation.to(targets.device).split(batch_size)
                    outputs = torch.cat([network(data[index]) for index in parts])
                current = -score(task, outputs, targets[validation])
                history.validation_scores.append(-current)
            stalled = 0 if current < best - tol else stalled + 1
            if current < best:
                best = current
                if validation is not None:
                    best_state = _copy_state(network)
            if stalled >= n_iter_no_change:
                history.converged = True
                break
    except KeyboardInterrupt:
        history.interrupted = True
    except torch.cuda.OutOfMemoryError as error:
        raise torch.cuda.OutOfMemoryError(
            f"{error} Lower batch_size ({batch_size}), n_probes or projection_dim, or "
            "use device='cpu'."
        ) from error
    if best_state is not None:
        network.load_state_dict(best_state)
    return history


def _view_shapes(inputs, weight_shape):
    """Rows and columns of each view's matrix; the length of the spectrum."""
    return {
        name: (len(inputs.spectrum_mean), 0)
        if name == "spectrum"
        else MATRIX_VIEWS[name].shape(weight_shape)
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
