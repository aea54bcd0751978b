"""What weights are: one contract, whatever holds them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike

from .._typing import Self
from ..probing.batches import LowRankBatch

# A batch of at least this size keeps the matrix products busy, and glibc gives blocks
# from 32 MiB on back to the system when they are freed.
BATCH_BYTES = 32 * 2**20


class Weights(ABC):
    """One layer of many models: shape, selection, and finite batches of tensors.

    A kind of weights provides `shape`, `dtype`, `_select`, `_take_one` and
    `_read_batches`, and low-rank kinds `is_low_rank` and `rank`. What indexing means,
    how large a batch is, and that no NaN gets through, is decided here.

    Attributes
    ----------
    shape : tuple of int
        ``(n_models, ...)``; one model's axes are d_out and what makes up d_in.
    dtype : numpy dtype
        Of one model, or of the whole as an array.
    is_low_rank : bool
        Whether batches are `LowRankBatch`: products ``B @ A``, never multiplied out.
    rank : int or None
        The largest rank of low-rank weights.
    is_lazy : bool
        Whether workers should read batches for themselves rather than be sent them.
    layer : str or None
        The layer's name, where the weights know it.
    title : str
        What errors call the weights.
    """

    is_low_rank: bool = False
    is_lazy: bool = False
    layer: str | None = None
    title: str = "Input W"
    # Looking for NaN takes as long as reading: once is enough.
    _is_finite: bool = False

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def dtype(self) -> np.dtype: ...

    @property
    def rank(self) -> int | None:
        return None

    @abstractmethod
    def _select(self, models: np.ndarray) -> Self:
        """Only the models at these positions, of the same kind; nothing is read."""

    @abstractmethod
    def _take_one(self, model: int) -> np.ndarray:
        """One model's weights as an array."""

    @abstractmethod
    def _read_batches(
        self, size: int, device: torch.device, dtype: torch.dtype
    ) -> Iterator[torch.Tensor | LowRankBatch]:
        """Yield the models in order, `size` of them at a time."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def lifted_shape(self) -> tuple[int, int, int]:
        """``(n_models, d_out, d_in)``, the shape of what `batches` yields."""
        n_models, *weight_shape = self.shape
        d_out = weight_shape[0] if weight_shape else 1
        return n_models, d_out, math.prod(weight_shape[1:])

    @property
    def compute_dtype(self) -> torch.dtype:
        """torch.float64 for weights in float64, else torch.float32."""
        return compute_dtype(self.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        positions = model_positions(key, len(self), type(self).__name__)
        if isinstance(positions, int):
            return self._take_one(positions)
        selected = self._select(positions)
        selected.title, selected._is_finite = self.title, self._is_finite
        return selected

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray:
        if copy is False:
            name = type(self).__name__
            raise ValueError(f"{name} cannot become an array without a copy.")
        array = np.empty(self.shape, self.dtype if dtype is None else dtype)
        for i in range(len(self)):
            array[i] = self._take_one(i)
        return array

    def titled(self, title: str) -> Self:
        """Give the same weights another name in errors.

        Parameters
        ----------
        title : str
            What errors call them.

        Returns
        -------
        weights
            Of the same kind; nothing is read.
        """
        named: Self = self[:]
        named.title = title
        return named

    def batch_size(self, dtype: torch.dtype) -> int:
        """Count the models that a batch holds.

        Parameters
        ----------
        dtype : torch dtype
            Of the batches.

        Returns
        -------
        int
            One at least.
        """
        return math.ceil(BATCH_BYTES / max(1, self._n_values * dtype.itemsize))

    @property
    def _n_values(self):
        """How many numbers a model takes in a batch."""
        _, d_out, d_in = self.lifted_shape
        return self.rank * (d_out + d_in) if self.rank else d_out * d_in

    def shards(self, dtype: torch.dtype) -> list[Self]:
        """Divide the models into those of each batch; nothing is read.

        Parameters
        ----------
        dtype : torch dtype
            Of the batches.

        Returns
        -------
        list of weights
            Each of one batch.
        """
        size = self.batch_size(dtype)
        return [self[start : start + size] for start in range(0, len(self), size)]

    def batches(
        self, device: torch.device, dtype: torch.dtype | None = None
    ) -> Iterator[torch.Tensor | LowRankBatch]:
        """Yield the models in order, as finite tensors on a device.

        Parameters
        ----------
        device : torch.device
            Where the batches go.
        dtype : torch dtype, default=None
            None means `compute_dtype`.

        Yields
        ------
        Tensor of shape (b, d_out, d_in), or LowRankBatch
            Low-rank weights come as their factors, ``B (b, d_out, r)`` with the scale
            in it and ``A (b, r, d_in)``, padded with zeros to one rank.

        Raises
        ------
        ValueError
            If a model holds NaN or infinity; the message names the first.
        FileChangedError
            If a file is not what it was when it was opened.
        """
        dtype = dtype or self.compute_dtype
        n_seen = 0
        for batch in self._read_batches(self.batch_size(dtype), device, dtype):
            parts = batch if isinstance(batch, LowRankBatch) else (batch,)
            if not self._is_finite:
                self._check_finite(parts, n_seen)
            n_seen += len(parts[0])
            yield batch
            # Let go of it before room is made for another.
            del batch, parts
        self._is_finite = True

    def _check_finite(self, parts, start):
        """Refuse NaN and infinity in a batch that begins with model `start`."""
        # A sum is finite unless an entry is not, or it overflows: then look closer.
        if all(torch.isfinite(part.sum()) for part in parts):
            return
        is_bad = torch.stack([~torch.isfinite(part).all(2).all(1) for part in parts])
        bad = is_bad.any(dim=0).nonzero().flatten().tolist()
        if not bad:
            return
        number = int(is_bad[:, bad[0]].nonzero()[0])
        has_nan = torch.isnan(parts[number][bad[0]]).any()
        of = f"factor {'BA'[number]} of " if len(parts) == 2 else ""
        more = f" and at least {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ValueError(
            f"{of}{self.title} contains {'NaN' if has_nan else 'infinity'}: model "
            f"{self._describe(start + bad[0])}{more}. Drop these models, or reload "
            "their weights (float16 overflows above 65504)."
        )

    def _describe(self, model: int) -> str:
        """Say what errors and warnings call a model.

        Parameters
        ----------
        model : int
            Its position.

        Returns
        -------
        str
            Its name and file, where the weights know them.
        """
        return str(model)


def model_positions(key: Any, n_models: int, name: str) -> int | np.ndarray:
    """Turn what stands in brackets into the positions of models.

    Parameters
    ----------
    key : int, slice, array of int, mask, Ellipsis, or (key, ...)
    n_models : int
    name : str
        What is indexed.

    Returns
    -------
    int, or ndarray of int

    Raises
    ------
    IndexError
        If it selects along other axes than that of models, or there is no such model.
    """
    if isinstance(key, tuple):
        key, *rest = key or (Ellipsis,)
        if any(part is not Ellipsis and part != slice(None) for part in rest):
            raise IndexError(f"{name} is indexed by model only, along one axis.")
    if not isinstance(key, (slice, int, np.integer)) and key is not Ellipsis:
        key = np.asarray(key)
        if key.ndim > 1 or (key.size and key.dtype.kind not in "iub"):
            raise IndexError(
                "Models are selected by an integer, a slice, a list of integers, or a "
                f"mask, got {key.dtype} of shape {key.shape}."
            )
        key = key if key.dtype == bool else key.astype(np.intp)
    positions = np.arange(n_models)[key]
    if positions.ndim == 0:
        return int(positions)
    # In one piece of memory, as torch takes no negative strides.
    return np.ascontiguousarray(positions)


def compute_dtype(dtype: Any) -> torch.dtype:
    """Float64 is computed in float64, everything else in float32."""
    if isinstance(dtype, torch.dtype):
        is_double = dtype == torch.float64
    else:
        is_double = dtype.kind == "f" and dtype.itemsize >= 8
    return torch.float64 if is_double else torch.float32


def check_numeric(array, name):
    """Refuse what holds no real numbers; objects that are numbers become such.

    Returns
    -------
    ndarray
        Of numbers or booleans.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: fill or drop the masked weights.")
    if array.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} holds complex numbers.")
    if array.dtype.kind == "O":
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} holds objects that are no numbers.") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} holds {array.dtype}: expected real numbers.")
    return array
