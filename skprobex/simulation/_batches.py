"""Examples as batches, and how a module is run over one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch


def iterate_batches(
    inputs: Any, batch_size: int, collate: Callable[[list], Any] | None, module: Any
) -> Iterator[Any]:
    """Divide examples into batches that the module can be called with.

    Parameters
    ----------
    inputs : Tensor, ndarray, Mapping, sequence, or iterable
        Arrays and a mapping of arrays have an example a row; of a sequence each item
        is an example; anything else, such as a DataLoader, yields batches.
    batch_size : int
    collate : callable or None
        Turns a list of examples into a batch.
    module : torch.nn.Module
        Says how its texts become tokens, if it can.
    """
    if isinstance(inputs, str):
        raise TypeError(
            f"inputs is the text {inputs[:40]!r}: expected a list of texts."
        )
    if isinstance(inputs, np.ndarray):
        inputs = torch.from_numpy(np.ascontiguousarray(inputs))
    if isinstance(inputs, torch.Tensor):
        yield from inputs.split(batch_size)
    elif isinstance(inputs, Mapping):
        n_samples = count_samples(inputs)
        for start in range(0, n_samples, batch_size):
            part = slice(start, start + batch_size)
            yield {name: values[part] for name, values in inputs.items()}
    elif isinstance(inputs, Sequence):
        collate = collate or _collate_for(module, inputs)
        for start in range(0, len(inputs), batch_size):
            yield collate(list(inputs[start : start + batch_size]))
    elif isinstance(inputs, Iterable):
        yield from (collate(batch) if collate else batch for batch in inputs)
    else:
        raise TypeError(
            f"inputs is of type {type(inputs).__name__}: expected a tensor, a dict of "
            "tensors, a list of examples, or a DataLoader."
        )


def count_inputs(inputs: Any) -> int | None:
    """Count the examples, where that takes no pass over them."""
    if isinstance(inputs, Mapping):
        return count_samples(inputs)
    is_counted = isinstance(inputs, (torch.Tensor, np.ndarray, Sequence))
    return len(inputs) if is_counted and isinstance(inputs, Sized) else None


def own_inputs(batch: Any) -> Any:
    """Of a pair of examples and labels, as a DataLoader yields, the examples."""
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def own_labels(batch: Any) -> torch.Tensor | None:
    """Of a pair of examples and labels, the labels; of a mapping its "labels"."""
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return torch.as_tensor(batch[1])
    if isinstance(batch, Mapping) and "labels" in batch:
        return torch.as_tensor(batch["labels"])
    return None


def count_samples(batch: Any) -> int:
    """Count the examples of a batch."""
    batch = own_inputs(batch)
    if isinstance(batch, Mapping):
        sizes = {len(v) for v in batch.values() if isinstance(v, (torch.Tensor, list))}
        if len(sizes) != 1:
            raise ValueError(
                f"A batch holds tensors of {sorted(sizes)} rows: expected one for each "
                "example, in all of them."
            )
        return sizes.pop()
    if not isinstance(batch, torch.Tensor):
        raise TypeError(
            f"A batch is of type {type(batch).__name__}: expected a tensor or a dict "
            "of tensors. Pass collate, a function that makes one of a list of examples."
        )
    return len(batch)


def run_module(
    module: Any, batch: Any, forward: Callable[[Any, Any], Any] | None
) -> Any:
    """Call the module with a batch as it wants it."""
    batch = own_inputs(batch)
    if forward is not None:
        return forward(module, batch)
    if isinstance(batch, Mapping) and not is_sentence_transformer(module):
        return module(**{k: v for k, v in batch.items() if k != "labels"})
    return module(batch)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move all tensors of a batch, whatever holds them."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(values, device) for name, values in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(part, device) for part in batch)
    return batch


def is_sentence_transformer(module: Any) -> bool:
    """Whether the module takes its features as one dict."""
    return hasattr(module, "tokenize") and hasattr(module, "encode")


def _collate_for(module, examples):
    first = examples[0] if len(examples) else None
    if isinstance(first, str):
        if is_sentence_transformer(module):
            return getattr(module, "preprocess", module.tokenize)
        raise TypeError(
            "inputs holds texts: pass collate, such as lambda texts: tokenizer(texts, "
            'padding=True, truncation=True, return_tensors="pt").'
        )
    if isinstance(first, Mapping):
        return lambda batch: {
            name: torch.stack([torch.as_tensor(example[name]) for example in batch])
            for name in batch[0]
        }
    return lambda batch: torch.stack([torch.as_tensor(example) for example in batch])
