"""One layer of a torch module: found by its name, and what it sees, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

_N_NAMED = 5


class Seen(NamedTuple):
    """What a layer was given in one pass over a batch."""

    rows: torch.Tensor  # (n_rows, d_in)
    samples: torch.Tensor  # (n_rows,), positions in the batch


class Layer:
    """A layer whose weights turn rows of d_in numbers into rows of d_out.

    Parameters
    ----------
    module : torch.nn.Module
    name : str
        As ``module.named_modules()`` has it, with or without ".weight"; the end of it
        will do where only one layer ends so.

    Raises
    ------
    TypeError
        If `module` is no module, or the layer is of a kind that has no such rows.
    ValueError
        If there is no layer of this name, or several.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"module is of type {type(module).__name__}: expected a torch module, "
                "the base that the models were fine-tuned from."
            )
        self.name, self.module = _find(module, name)
        self.kind = _kind(self.name, self.module)

    @property
    def weight_shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        d_out, d_in = self.as_matrix(self.module.weight).shape
        return d_out, d_in

    def as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """Lift the layer's weight, or its gradient, to ``(d_out, d_in)``."""
        # transformers' Conv1D is a Linear that keeps its weight transposed.
        return weight.mT if self.kind == "Conv1D" else weight.flatten(1)

    def rows(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs as the rows that the weights meet, ``(batch, n_positions, d_in)``."""
        if self.kind == "Conv2d":
            return _patches(self.module, inputs)
        if inputs.ndim == 1:
            inputs = inputs[None]
        # (batch, ..., d_in)
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])

    def assign(
        self, inputs: torch.Tensor, n_samples: int, mask: torch.Tensor | None
    ) -> Seen:
        """Say which sample each row belongs to, and leave out the padding.

        Parameters
        ----------
        inputs : Tensor of shape (n_samples, ..., d_in), or as a convolution takes it
        n_samples : int
            Of the batch.
        mask : Tensor of shape (n_samples, n_positions), optional
            Zero where a position is padding.
        """
        rows = self.rows(inputs.detach())
        if n_samples == 1:
            rows = rows.flatten(0, 1)[None]
        elif len(rows) != n_samples and mask is not None and len(rows) == mask.numel():
            rows = rows.reshape(*mask.shape, rows.shape[-1])
        if len(rows) != n_samples:
            raise ValueError(
                f"Layer {self.name!r} was given {len(rows)} inputs for a batch of "
                f"{n_samples} samples: which row is whose cannot be told. Pass samples "
                "one at a time, batch_size=1."
            )
        n_positions = rows.shape[1]
        samples = torch.arange(n_samples, device=rows.device)
        samples = samples[:, None].expand(-1, n_positions)
        if mask is None or (n_positions == 1 and mask.shape[1] != 1):
            return Seen(rows.flatten(0, 1), samples.flatten())
        if mask.shape != samples.shape:
            raise ValueError(
                f"Layer {self.name!r} was given {n_positions} positions a sample, but "
                f"the attention mask has {mask.shape[1]}: which of them are padding "
                "cannot be told. Pass samples without padding, one at a time and "
                "without a mask."
            )
        is_kept = mask.to(rows.device) != 0
        return Seen(rows[is_kept], samples[is_kept])

    @contextmanager
    def watched(self, look: Callable[[torch.Tensor], Any]) -> Iterator[None]:
        """Call `look` with the layer's input whenever it runs."""
        handle = self.module.register_forward_pre_hook(
            lambda module, args, kwargs: look(_first_input(self.name, args, kwargs)),
            with_kwargs=True,
        )
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def at_rest(module: nn.Module, device: Any = None) -> Iterator[torch.device]:
    """Put a module in evaluation mode, on a device; then back as it was.

    Yields
    ------
    torch.device
        Where the module is; None: where it was already.
    """
    modes = {part: part.training for part in module.modules()}
    first = next(module.parameters(), None)
    home = torch.device("cpu") if first is None else first.device
    device = home if device is None else torch.device(device)
    try:
        module.eval()
        if device != home:
            module.to(device)
        yield device
    finally:
        for part, mode in modes.items():
            part.training = mode
        if device != home:
            module.to(home)


def _find(module, name):
    layers = dict(module.named_modules())
    name = name.removesuffix(".weight")
    if name in layers:
        return name, layers[name]
    ends = [known for known in layers if known.endswith(f".{name}")]
    if len(ends) == 1:
        return ends[0], layers[ends[0]]
    if ends:
        more = f" and {len(ends) - _N_NAMED} more" if len(ends) > _N_NAMED else ""
        raise ValueError(
            f"{len(ends)} layers end in {name!r}: "
            f"{', '.join(map(repr, ends[:_N_NAMED]))}{more}. Give the whole name."
        )
    fitting = [known for known, layer in layers.items() if _kind_of(layer)]
    close = [known for known in fitting if name.split(".")[-1] in known] or fitting
    raise ValueError(
        f"The module has no layer {name!r}. It has {len(fitting)} that will do, such "
        f"as {', '.join(map(repr, close[:_N_NAMED]))}."
    )


def _kind(name, layer):
    kind = _kind_of(layer)
    if kind is not None:
        return kind
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        raise TypeError(
            f"Layer {name!r} is an embedding: it is given numbers of words, not rows. "
            "Take a Linear layer after it."
        )
    raise TypeError(
        f"Layer {name!r} is of type {type(layer).__name__}: expected Linear, Conv2d, "
        "or Conv1D of transformers."
    )


def _kind_of(layer):
    if isinstance(layer, nn.Linear):
        return "Linear"
    if isinstance(layer, nn.Conv2d):
        return "Conv2d"
    # By its name, so that transformers need not be installed.
    is_conv1d = any(cls.__name__ == "Conv1D" for cls in type(layer).__mro__)
    return "Conv1D" if is_conv1d and hasattr(layer, "nf") else None


def _first_input(name, args, kwargs):
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            return value
    raise TypeError(f"Layer {name!r} was given no tensor.")


def _patches(conv, images):
    """Patches that a convolution's filters meet, ``(batch, n_positions, d_in)``.

    Of a grouped convolution, the patches of all groups, which share their filters'
    shape.
    """
    if images.ndim == 3:
        images = images[None]
    if isinstance(conv.padding, str):
        spread = [
            d * (k - 1) if conv.padding == "same" else 0
            for d, k in zip(conv.dilation, conv.kernel_size, strict=True)
        ]
        sides = [(s // 2, s - s // 2) for s in spread]
    else:
        sides = [(p, p) for p in conv.padding]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    images = F.pad(images, (*sides[1], *sides[0]), mode=mode)
    n_images = len(images)
    images = images.unflatten(1, (conv.groups, -1)).flatten(0, 1)
    patches = F.unfold(
        images, conv.kernel_size, dilation=conv.dilation, stride=conv.stride
    )  # (batch * groups, d_in, n_positions)
    return patches.mT.reshape(n_images, -1, patches.shape[1])


def named_mask(batch: Any) -> torch.Tensor | None:
    """Take the attention mask of a batch that has one."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
