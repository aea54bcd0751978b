"""One layer of many models, left in their files until it is needed."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import DTypeLike

from .._typing import Selection, Self
from .._warnings import listed
from ..exceptions import MissingLayerError
from ..probing.batches import LowRankBatch
from ..probing.device import as_array
from ._contract import Weights

if TYPE_CHECKING:
    from ._low_rank import LowRankWeights

# Reading is waiting, mostly: more threads than cores.
_N_THREADS = 8


class StoredModel(NamedTuple):
    """A model in files.

    `specs` is keyed by layer name and says how each layer is read from `sources`;
    models with the same header share it.
    """

    name: str
    sources: tuple
    specs: dict
    metadata: dict


class LayerHandle(NamedTuple):
    """One layer of one model in files: small, picklable, nothing open."""

    name: str
    sources: tuple
    spec: Any  # one of `files._recipes`

    def read(self):
        """Read a tensor, or a pair of factors."""
        return self.spec.read(self.sources)

    def read_into(self, out):
        """Read a dense layer into a tensor, converting it where needed."""
        if not self.spec.read_into(self.sources, out):
            out.copy_(self.read().reshape(out.shape))

    @property
    def file(self):
        """The file that the layer lies in."""
        return str(self.sources[self.spec.file])


class LayerWeights(Weights):
    """One layer of many models in files; nothing is read until it is asked for.

    ``np.asarray(weights)`` reads everything, an integer index one model. All other
    indexing (slices, integer arrays, boolean masks, ``(key, ...)``) selects models
    and reads nothing, so that cross-validation hands out handles.

    Parameters
    ----------
    layer : str
        The layer's name.
    handles : sequence of LayerHandle
        One per model, all of one shape.

    Attributes
    ----------
    shape : tuple
        ``(n_models, d_out, d_in)``; with the kernel's axes for convolutions, and
        ``(n_models, d)`` for biases and norms.
    dtype : numpy dtype
        Of what reading gives. bfloat16 is read as float32.
    is_low_rank : bool
        Whether the files hold LoRA factors.
    names : list of str
        The models' names.

    See Also
    --------
    ModelCollection : Where these come from, as ``models[layer]``.
    """

    is_lazy = True

    def __init__(self, layer: str, handles: Iterable[LayerHandle]) -> None:
        self.layer = layer
        self.title = f"Input W, layer {layer!r},"
        self._handles = list(handles)
        check_one_form(layer, self._handles)
        specs = {id(h.spec): h.spec for h in self._handles}.values()
        self._weight_shape = self._handles[0].spec.shape if self._handles else (0, 0)
        self.is_low_rank = any(spec.is_low_rank for spec in specs)
        dtypes = {spec.dtype for spec in specs} or {np.float32}
        self._dtype = np.dtype(np.result_type(*dtypes))

    @property
    def dtype(self) -> np.dtype:
        return self._dtype

    @property
    def names(self) -> list[str]:
        return [handle.name for handle in self._handles]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._handles), *self._weight_shape)

    @property
    def rank(self) -> int | None:
        """Largest rank of low-rank layers; None of others."""
        if not self.is_low_rank:
            return None
        return max((handle.spec.rank for handle in self._handles), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all that `load` reads."""
        _, d_out, d_in = self.lifted_shape
        if self.is_low_rank:
            n_values = sum(h.spec.rank for h in self._handles) * (d_out + d_in)
        else:
            n_values = math.prod(self.shape)
        return n_values * self.dtype.itemsize

    @overload
    def __getitem__(self, key: int | np.integer) -> np.ndarray: ...

    @overload
    def __getitem__(self, key: Selection) -> Self: ...

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key)

    def _select(self, models):
        selected = object.__new__(type(self))
        selected.__dict__.update(self.__dict__)
        selected._handles = [self._handles[i] for i in models]
        return selected

    def _take_one(self, model):
        return as_array(self._read_dense(self._handles[model]))

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray:
        if copy is False:
            return super().__array__(dtype, copy)
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        array = np.empty(self.shape, dtype)
        for i, read in enumerate(self._read_ahead(self._read_dense)):
            array[i] = as_array(read)
        return array

    def load(self) -> np.ndarray | LowRankWeights:
        """Read everything.

        Returns
        -------
        ndarray or LowRankWeights
            In memory: an array of shape `shape`, or, of a LoRA layer, its factors.
        """
        if not self.is_low_rank:
            return np.asarray(self)
        from ._low_rank import LowRankWeights

        factors = list(self._read_ahead(LayerHandle.read))
        return LowRankWeights(
            [as_array(b) for b, _ in factors], [as_array(a) for _, a in factors]
        )

    def _read_batches(self, size, device, dtype):
        # Threads read one batch ahead of the one in use: what is held at once is three
        # batches at most.
        starts = range(0, len(self), size)
        parts = [self._handles[start : start + size] for start in starts]
        executor = ThreadPoolExecutor(min(_N_THREADS, max(1, len(self))))
        ahead: deque[Any] = deque()
        try:
            for number in range(len(parts)):
                while len(ahead) < 2 and number + len(ahead) < len(parts):
                    part = parts[number + len(ahead)]
                    ahead.append(self._start_batch(part, dtype, executor))
                batch, reads = ahead.popleft()
                for read in reads:
                    read.result()
                batch = [tensor.to(device) for tensor in batch]
                yield LowRankBatch(*batch) if self.is_low_rank else batch[0]
                # Let go of it before the next but one is made room for.
                del batch
        finally:
            # Left half-way, or a file failed: do not read the rest.
            executor.shutdown(cancel_futures=True)

    def _describe(self, model: int) -> str:
        handle = self._handles[model]
        return f"{handle.name!r} in {handle.file}"

    def _start_batch(self, handles, dtype, executor):
        """Make room for a batch, and let threads fill it straight from the files."""
        _, d_out, d_in = self.lifted_shape
        if not self.is_low_rank:
            # NumPy asks for large pages: to map small ones takes longer than reading.
            precision = np.float64 if dtype == torch.float64 else np.float32
            room = np.empty((len(handles), d_out, d_in), precision)
            batch = [torch.from_numpy(room)]
            fill = LayerHandle.read_into
        else:
            rank = max(handle.spec.rank for handle in handles)
            batch = [
                torch.zeros((len(handles), d_out, rank), dtype=dtype),
                torch.zeros((len(handles), rank, d_in), dtype=dtype),
            ]
            fill = _fill_low_rank
        rows = zip(handles, *batch, strict=True)
        return batch, [executor.submit(fill, *row) for row in rows]

    def _read_dense(self, handle):
        read = handle.read()
        if isinstance(read, tuple):
            up, down = read
            read = (up @ down).reshape(self._weight_shape)
        # numpy has no bfloat16.
        return read.float() if read.dtype == torch.bfloat16 else read

    def _read_ahead(self, read):
        """Yield what each model's file holds, in order, while threads read on."""
        executor = ThreadPoolExecutor(min(_N_THREADS, max(1, len(self))))
        pending = deque()
        try:
            for handle in self._handles:
                pending.append(executor.submit(read, handle))
                if len(pending) > _N_THREADS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)

    def __repr__(self) -> str:
        kind = "low-rank, " if self.is_low_rank else ""
        shape = " x ".join(map(str, self._weight_shape)) or "scalar"
        return f"LayerWeights({self.layer!r}, {len(self)} models, {kind}{shape})"

    def _repr_html_(self):
        kind = "low-rank " if self.is_low_rank else ""
        shape = " x ".join(map(str, self._weight_shape))
        return (
            f"<b>LayerWeights</b> <code>{escape(self.layer)}</code><br>{len(self)} "
            f"models, each {shape}, {kind}{self.dtype}, in files"
        )


def form(spec):
    """Say what all models must have in common: the shape, and whether it is LoRA."""
    return spec.shape, spec.is_low_rank


def describe_form(shape_and_kind):
    """Put a layer's form into words."""
    shape, is_low_rank = shape_and_kind
    return f"{shape} as LoRA" if is_low_rank else f"{shape}"


def check_one_form(layer, handles):
    """Check that a layer has one shape, and is LoRA in all models or in none.

    Raises
    ------
    MissingLayerError
        Naming the models that differ from most.
    """
    forms = Counter(form(handle.spec) for handle in handles)
    if len(forms) < 2:
        return
    usual, _ = forms.most_common(1)[0]
    odd = [handle for handle in handles if form(handle.spec) != usual]
    named = listed(
        odd, show=lambda handle: f"{handle.name}: {describe_form(form(handle.spec))}"
    )
    raise MissingLayerError(
        f"Layer {layer!r} has shape {describe_form(usual)} in most models, but "
        f"{named}. Models of another architecture belong to another Model Tree "
        "(see models.groups): select the models that agree, or open them with "
        "on_missing='drop'."
    )


def _fill_low_rank(handle, up, down):
    b, a = handle.read()
    up[:, : b.shape[1]] = b
    down[: a.shape[0]] = a
