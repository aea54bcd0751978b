"""Training of many small networks at once: one batched product per layer and step.

All networks share one architecture, two hidden layers with ReLU and a linear head:

    logits = W3 relu(W2 relu(W1 x + b1) + b2) + b3

and differ in weights, classes, learning rate, schedule and number of steps. A
network's parameters are one row of a matrix, so Adam is a few elementwise passes over
that matrix whatever the number of layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from ..probing.linalg import one_thread

HIDDEN_LAYERS = ("hidden1", "hidden2")
SCHEDULES = ("constant", "cosine", "linear")

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8  # Adam's usual constants

_WARMUP = 0.3  # share of the steps in which a "warmup" schedule rises

# Networks trained together. Every step passes over the parameters, the gradient and
# both moments of a group, which should therefore fit in the processor's cache.
_GROUP_SIZE = 48

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, torch.Tensor]  # of networks, by name, each (n_models, *shape)
Draw = Callable[[int], tuple[torch.Tensor, torch.Tensor]]
Loss = Callable[[Tensors, torch.Tensor, torch.Tensor], torch.Tensor]


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


def merge_adapters(layers: Tensors, frozen: Tensors) -> Tensors:
    """Add each network's adapters to its base's weights."""
    merged = {n: values for n, values in layers.items() if n.startswith("head")}
    for name in HIDDEN_LAYERS:
        weight, bias = f"{name}.weight", f"{name}.bias"
        up, down = layers[f"{weight}.lora_B"], layers[f"{weight}.lora_A"]
        merged[weight] = torch.baddbmm(frozen[weight], up, down)
        merged[bias] = frozen[bias]
    return merged


def split_layers(params: torch.Tensor, shapes: Shapes) -> Tensors:
    """View rows of parameters as named layers, each ``(n_models, *shape)``."""
    parts = params.split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {
        name: part.unflatten(1, shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def predict(layers: Tensors, x: torch.Tensor) -> torch.Tensor:
    """Logits ``(n_models, n_out, n_images)`` of `x`, ``(n_models, n_images, n_in)``."""
    # Images as columns: gradients of weights then come in the weights' own layout.
    h = x.mT
    for name in HIDDEN_LAYERS:
        h = _affine(layers, name, h).relu()
    return _affine(layers, "head", h)


def _affine(layers, name, h):
    return torch.baddbmm(layers[f"{name}.bias"][..., None], layers[f"{name}.weight"], h)


def train_on_classes(
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
    frozen: Tensors | None = None,
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
            return batches.draw, cross_entropy
        own = {name: values[group] for name, values in frozen.items()}

        def loss(adapters, x, y):
            bases = {name: values[: len(x)] for name, values in own.items()}
            return cross_entropy(merge_adapters(adapters, bases), x, y)

        return batches.draw, loss

    return train_groups(
        params,
        shapes,
        start_group,
        learning_rate=learning_rate,
        schedule=schedule,
        n_steps=n_steps,
        on_step=on_step,
    )


def cross_entropy(layers: Tensors, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, its mean over each network's batch summed over networks."""
    return F.cross_entropy(predict(layers, x), y, reduction="sum") / y.shape[1]


@torch.enable_grad()
def train_groups(
    params: torch.Tensor,
    shapes: Shapes,
    start_group: Callable[[torch.Tensor], tuple[Draw, Loss]],
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
        As in `train_on_classes`. A schedule may also be "warmup": up from zero, then
        down again as "cosine" does.
    start_group : callable
        Given the positions of a group's networks, returns two functions.
        ``draw(n)`` draws a batch ``(x, y)`` for each of the group's first n networks;
        ``loss(layers, x, y)`` is the sum of their losses, of which each depends on
        its own network's layers only.

    Returns
    -------
    tensor of shape (n_models, n_params)
        The trained parameters.
    """
    trained = torch.empty_like(params)
    # Longest first: groups then hold networks of like length, and the networks still
    # training are always a leading slice of their group.
    order = torch.argsort(n_steps, descending=True, stable=True)
    with one_thread(params):
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


def _train_group(params, shapes, draw, loss, rates, n_steps, on_step):
    state = [params, *(torch.zeros_like(params) for _ in range(3))]
    n_active = None
    for step in range(int(n_steps[0])):
        still = int((n_steps > step).sum())
        if still != n_active:
            n_active = still
            p, mean, square, update = (rows[:still] for rows in state)
        leaf = p.detach().requires_grad_()
        total = loss(split_layers(leaf, shapes), *draw(n_active))
        (grad,) = torch.autograd.grad(total, leaf)

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
