"""Names for what the public API takes; the docstrings say what each means."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

__all__ = [
    "Center",
    "ClassWeight",
    "Dataset",
    "Device",
    "Numbers",
    "PathLike",
    "RandomState",
    "Scoring",
    "Selection",
    "Self",
    "SupportsArray",
    "TextEncoder",
    "Views",
]


class SupportsArray(Protocol):
    """Arrays, tensors, data frames, and weights of skprobex."""

    def __array__(self) -> np.ndarray: ...

    def __len__(self) -> int: ...


class SupportsEncode(Protocol):
    """A loaded text encoder, such as a SentenceTransformer."""

    def encode(self, texts: list[str], /, *, show_progress_bar: bool) -> Any: ...


_Rows: TypeAlias = Sequence[SupportsArray | Sequence[float]]
# Not numpy's ArrayLike, which lets text pass.
Numbers: TypeAlias = SupportsArray | Sequence[float] | _Rows | Sequence[_Rows]

Views: TypeAlias = Literal["auto"] | tuple[str, ...] | list[str]
Center: TypeAlias = (
    Literal["auto", "robust", "mean"] | Numbers | Mapping[str, Numbers] | None
)
TextEncoder: TypeAlias = (
    str | os.PathLike[str] | SupportsEncode | Callable[[list[str]], Numbers] | None
)
ClassWeight: TypeAlias = (
    Mapping[Any, float] | Sequence[Mapping[Any, float]] | Literal["balanced"] | None
)
Device: TypeAlias = str | torch.device
RandomState: TypeAlias = int | np.random.RandomState | None
PathLike: TypeAlias = str | os.PathLike[str]
Scoring: TypeAlias = str | Callable[..., Any] | Sequence[str] | Mapping[str, Any] | None
# What selects several models; a tuple is (selection, ...).
Selection: TypeAlias = slice | Sequence[int | np.integer] | np.ndarray | tuple

# A Bunch, or a pair with return_X_y=True. A union would have every caller tell them
# apart, and to a type checker a Bunch is anything.
Dataset: TypeAlias = Any
