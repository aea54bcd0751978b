"""Training of many small networks at once: one batched product per layer and step.

All networks share one architecture, two hidden layers with ReLU and a linear head:

    logits = W3 relu(W2 relu(W1 x + b1) + b2) + b3

and differ in weights, classes, learning rate, schedule and number of steps. A
network's parameters are one row of a matrix, so Adam is a few elementwise passes over
that matrix whatever the number of layers.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence

import torch

HIDDEN_LAYERS = ("hidden1", "hidden2")
SCHEDULES = ("constant", "cosine", "linear")

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8  # Adam's usual constants

_WARMUP = 0.3  # share of the steps in which a "warmup" schedule rises

# Networks trained together. Every step passes over the parameters, the gradient and
# both moments of a group, which should therefore fit in the processor's cache.
_GROUP_SIZE = 48

_thread_lock = threading.Lock()

Shapes = dict[str, tuple[int, ...]]
Layers = dict[str, torch.Tensor]


def layer_shapes(n_in: int, n_hidden: int, n_out: int) -> Shapes:
    """Shapes of one network's layers, by name, in the order they are stored."""
    return {
        "hidden1.weight": (n_hidden, n_in),
        "hidden1.bias": (n_hidden,),
        "hidden2.weight": (n_hidden, n_hidden),
        "hidden2.bias": (n_hidden,),
        "head.weight": (n_out, n_hidden),
        "head.bias": (n_out,),
    }


def draw_parameters(
    n_models: int,
    shapes: Shapes,
    generator: torch.Generator,
    hidden: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw the parameters of `n_models` networks, one row each.

    Weights and biases are uniform within ``1 / sqrt(d_in)``, as in `torch.nn.Linear`.
    Where `hidden` is given, rows of trained parameters, the hidden layers are copied
    from there and only the head is new.
    """
    columns = []
    for name, shape in shapes.items():
        bound = _bound(name, shapes)
        drawn = torch.empty((n_models, math.prod(shape)), dtype=torch.float32)
        columns.append(drawn.uniform_(-bound, bound, generator=generator))
    params = torch.cat(columns, dim=1)  # (n_models, n_params)
    if hidden is not None:
        n_kept = count_hidden(shapes)
        params[:, :n_kept] = hidden[:, :n_kept]
    return params


def _bound(name, shapes):
    layer, _, kind = name.rpartition(".")
    if kind == "lora_B":
        return 0.0  # an adapter starts as no change at all
    weight = f"{layer}.weight" if kind == "bias" else name
    return 1 / math.sqrt(math.prod(shapes[weight][1:]))


def count_hidden(shapes: Shapes) -> int:
    """Count the leading parameters that belong to hidden layers."""
    return sum(
        math.prod(shape) for name, shape in shapes.items() if name.startswith("hidden")
    )


def adapter_shapes(
    shapes: Shapes, rank: int, layers: Sequence[str] = HIDDEN_LAYERS
) -> Shapes:
    """Shapes where the weights of `layers` have adapters and only heads are whole."""
    adapters = {}
    for name in layers:
        d_out, d_in = shapes[f"{name}.weight"]
        adapters[f"{name}.weight.lora_B"] = (d_out, rank)
        adapters[f"{name}.weight.lora_A"] = (rank, d_in)
    heads = {n: shape for n, shape in shapes.items() if n.startswith("head")}
    return adapters | heads


def merge_adapters(layers: Layers, frozen: Layers) -> Layers:
    """Add each network's adapters to its base's weights."""
    merged = {n: values for n, values in layers.items() if n.startswith("head")}
    for name in HIDDEN_LAYERS:
        weight, bias = f"{name}.weight", f"{name}.bias"
        up, down = layers[f"{weight}.lora_B"], layers[f"{weight}.lora_A"]
        merged[weight] = torch.baddbmm(frozen[weight], up, down)
        merged[bias] = frozen[bias]
    return merged


def split_layers(params: torch.Tensor, shapes: Shapes) -> Layers:
    """View rows of parameters as named layers, each ``(n_models, *shape)``."""
    parts = params.split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {
        name: part.unflatten(1, shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def predict(layers: Layers, x: torch.Tensor) -> torch.Tensor:
    """Logits ``(n_models, n_images, n_out)`` of `x`, ``(n_models, n_images, n_in)``."""
    for name in HIDDEN_LAYERS:
        x = _affine(layers, name, x).relu_()
    return _affine(layers, "head", x)


def train(
    params: torch.Tensor,
    shapes: Shapes,
    images: torch.Tensor,
    classes: torch.Tensor,
    units: torch.Tensor,
    *,
    learning_rate: torch.Tensor,
    schedule: Sequence[str],
    n_steps: torch.Tensor,
    batch_size: int,
    generator: torch.Generator,
    on_step: Callable[[int], object] | None = None,
    frozen: Layers | None = None,
) -> torch.Tensor:
    """Train every network on its own classes: cross-entropy, Adam, all parameters.

    Parameters
    ----------
    params : tensor of shape (n_models, n_params)
        Where the networks start; not changed.
    shapes : dict
        What `layer_shapes` returned.
    images : tensor of shape (n_images, n_in)
        The images that all networks draw from.
    classes : int64 tensor of shape (n_images,)
        Class of each image.
    units : int64 tensor of shape (n_models, n_classes)
        Output unit of each class in each network, -1 for classes that the network
        never sees. Batches are drawn with replacement from the classes it does see.
    learning_rate, n_steps : tensors of shape (n_models,)
        Peak learning rate, and number of Adam steps.
    schedule : sequence of {"constant", "cosine", "linear"}
        How each learning rate falls, the latter two to zero at the last step.
    batch_size : int
        Images per network and step.
    generator : torch.Generator
        Draws the batches.
    on_step : callable, optional
        Called after each step with the number of networks it has updated.
    frozen : dict of tensors of shape (n_models, ...), optional
        Each network's hidden layers, where `shapes` holds adapters of them.

    Returns
    -------
    tensor of shape (n_models, n_params)
        The trained parameters.
    """

    def start_group(group):
        batches = _Batches(images, classes, units[group], batch_size, generator)
        if frozen is None:
            return batches.draw, _backward
        own = {name: values[group] for name, values in frozen.items()}
        return batches.draw, _AdapterBackward(own)

    return train_groups(
        params,
        shapes,
        start_group,
        learning_rate=learning_rate,
        schedule=schedule,
        n_steps=n_steps,
        on_step=on_step,
    )


@torch.no_grad()
def train_groups(
    params: torch.Tensor,
    shapes: Shapes,
    start_group: Callable[[torch.Tensor], tuple[Callable, Callable]],
    *,
    learning_rate: torch.Tensor,
    schedule: Sequence[str],
    n_steps: torch.Tensor,
    on_step: Callable[[int], object] | None = None,
) -> torch.Tensor:
    """Train networks by Adam, group by group, whatever their architecture and loss.

    Parameters
    ----------
    params, shapes, learning_rate, schedule, n_steps, on_step
        As in `train`. A schedule may also be "warmup": up from zero, then down again
        as "cosine" does.
    start_group : callable
        Given the positions of a group's networks, returns two functions.
        ``draw(n)`` draws a batch ``(x, y)`` for each of the group's first n networks;
        ``backward(layers, grads, x, y)`` writes the gradients of their losses into
        `grads`, named and shaped as `layers`.

    Returns
    -------
    tensor of shape (n_models, n_params)
        The trained parameters.
    """
    trained = torch.empty_like(params)
    # Longest first: groups then hold networks of like length, and the networks still
    # training are always a leading slice of their group.
    order = torch.argsort(n_steps, descending=True, stable=True)
    with one_thread():
        for group in order.split(_GROUP_SIZE):
            rates = _learning_rates(
                learning_rate[group],
                [schedule[i] for i in group.tolist()],
                n_steps[group],
            )
            trained[group] = _train_group(
                params[group],
                shapes,
                *start_group(group),
                rates,
                n_steps[group],
                on_step,
            )
    return trained


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread, and give it back its threads afterwards.

    The operations are so small that two threads gain little, and where cores are busy
    they wait for each other at the end of each one: thirty times slower in all.
    """
    # The setting is the process's: of two calls at once, the second would take the
    # first one's for the user's.
    with _thread_lock:
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(n_threads)


class _Batches:
    """Draws images and output units for a group of networks."""

    def __init__(self, images, classes, units, batch_size, generator):
        self.images, self.classes, self.units = images, classes, units
        self.batch_size, self.generator = batch_size, generator
        seen = units[:, classes] >= 0  # (n_models, n_images)
        self.pool_sizes = seen.sum(dim=1, keepdim=True)
        # Each row lists the images seen before those not seen.
        self.pools = torch.argsort(seen.to(torch.int8), descending=True, stable=True)

    def draw(self, n):
        """Draw one batch for each of the first `n` networks."""
        uniform = torch.rand(
            (n, self.batch_size), dtype=torch.float64, generator=self.generator
        )
        rows = self.pools[:n].gather(1, (uniform * self.pool_sizes[:n]).long())
        # (n, batch_size, n_in), (n, batch_size)
        return self.images[rows], self.units[:n].gather(1, self.classes[rows])


def _train_group(params, shapes, draw, backward, rates, n_steps, on_step):
    state = [params, *(torch.zeros_like(params) for _ in range(4))]
    n_active = None
    for step in range(int(n_steps[0])):
        still = int((n_steps > step).sum())
        if still != n_active:
            n_active = still
            p, grad, mean, square, update = (rows[:still] for rows in state)
            layers, grads = split_layers(p, shapes), split_layers(grad, shapes)
        backward(layers, grads, *draw(n_active))

        # Adam. In place throughout: at this size memory traffic is the cost.
        mean.lerp_(grad, 1 - _BETA1)
        square.mul_(_BETA2).addcmul_(grad, grad, value=1 - _BETA2)
        torch.sqrt(square, out=update)
        update.mul_(1 / math.sqrt(1 - _BETA2 ** (step + 1))).add_(_EPS)
        torch.div(mean, update, out=update)
        update.mul_(rates[:n_active, step, None] / (1 - _BETA1 ** (step + 1)))
        p.sub_(update)
        if on_step is not None:
            on_step(n_active)
    return params


def _backward(layers, grads, x, y):
    """Write the gradient of the mean cross-entropy into `grads`."""
    h1 = _affine(layers, "hidden1", x).relu_()  # (n_models, batch_size, n_hidden)
    h2 = _affine(layers, "hidden2", h1).relu_()
    # d loss / d logits = (softmax - one hot) / batch_size
    error = _affine(layers, "head", h2).softmax(dim=2)  # (n_models, batch_size, n_out)
    error.scatter_add_(2, y[:, :, None], torch.full_like(error[:, :, :1], -1.0))
    error /= x.shape[1]
    _write_grads(grads, "head", error, h2)
    error = torch.bmm(error, layers["head.weight"]).mul_(h2 > 0)
    _write_grads(grads, "hidden2", error, h1)
    error = torch.bmm(error, layers["hidden2.weight"]).mul_(h1 > 0)
    _write_grads(grads, "hidden1", error, x)


class _AdapterBackward:
    """Write the gradient with respect to adapters of frozen hidden layers."""

    def __init__(self, frozen):
        self.frozen = frozen
        self.dense_grads = {name: torch.empty_like(t) for name, t in frozen.items()}

    def __call__(self, layers, grads, x, y):
        n = len(x)
        frozen = {name: values[:n] for name, values in self.frozen.items()}
        dense_grads = {name: values[:n] for name, values in self.dense_grads.items()}
        _backward(merge_adapters(layers, frozen), grads | dense_grads, x, y)
        for name in HIDDEN_LAYERS:
            weight = f"{name}.weight"
            up, down = f"{weight}.lora_B", f"{weight}.lora_A"
            # W = W_0 + B A:  dB = dW A^T,  dA = B^T dW
            torch.bmm(dense_grads[weight], layers[down].mT, out=grads[up])
            torch.bmm(layers[up].mT, dense_grads[weight], out=grads[down])


def _affine(layers, name, x):
    bias, weight = layers[f"{name}.bias"], layers[f"{name}.weight"]
    return torch.baddbmm(bias[:, None, :], x, weight.mT)


def _write_grads(grads, name, error, inputs):
    grads[f"{name}.weight"].copy_(torch.bmm(error.mT, inputs))
    grads[f"{name}.bias"].copy_(error.sum(dim=1))


def _learning_rates(peak, schedule, n_steps):
    """Learning rate of each network at each step, ``(n_models, max(n_steps))``."""
    steps = torch.arange(int(n_steps.max()), dtype=torch.float32)
    done = steps / n_steps[:, None]
    factors = {
        "constant": torch.ones_like(done),
        "cosine": 0.5 * (1 + torch.cos(math.pi * done)),
        "linear": 1 - done,
        "warmup": torch.minimum(
            done / _WARMUP,
            0.5 * (1 + torch.cos(math.pi * (done - _WARMUP) / (1 - _WARMUP))),
        ),
    }
    chosen = [factors[name][i] for i, name in enumerate(schedule)]
    return peak[:, None] * torch.stack(chosen)
