"""Read safetensors: the header with suspicion, then one tensor as one byte range.

And write them, array by array.
"""

from __future__ import annotations

import json
import math
import re
from typing import NamedTuple

import numpy as np
import torch

from ..exceptions import CorruptFileError, UnsupportedFormatError

# The format's own limit; a longer header is an attack or no safetensors file.
MAX_HEADER_BYTES = 100_000_000

# What a tensor of each type is read as.
TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
# Known, so that their sizes are checked, but read by nothing here: bits of a value.
_UNREAD_BITS = {
    **{"U16": 16, "U32": 32, "U64": 64, "C64": 64, "C128": 128},
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8},
    **{"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
}
NUMPY_DTYPES = {
    np.dtype(f"{kind}{itemsize}"): f"{name}{8 * itemsize}"
    for kind, name, itemsizes in (
        ("f", "F", (2, 4, 8)),
        ("i", "I", (1, 2, 4, 8)),
        ("u", "U", (1, 2, 4, 8)),
    )
    for itemsize in itemsizes
} | {np.dtype(bool): "BOOL"}
# How nearly every header with metadata begins.
_METADATA_FIRST = re.compile(r'\s*\{\s*"__metadata__"\s*:\s*')
FLOAT8 = ("F8_E4M3", "F8_E5M2")
# Longer names, or names with line breaks, are no module's.
_MAX_NAME_CHARS = 1000
_MAX_DTYPE_CHARS = 32


class TensorInfo(NamedTuple):
    """Where a tensor lies: `n_bytes` from `start`, counted from the header's end.

    Counted from there, models that differ only in their metadata have equal infos.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    n_bytes: int


def numpy_dtype(dtype):
    """Return what numpy holds a safetensors type in: itself, else float32."""
    if dtype[0] in "UC" and dtype in _UNREAD_BITS:
        return np.dtype({"U": "u", "C": "c"}[dtype[0]] + str(int(dtype[1:]) // 8))
    if dtype == "BF16" or dtype.startswith("F8") or dtype not in TORCH_DTYPES:
        return np.dtype(np.float32)
    return torch.empty(0, dtype=TORCH_DTYPES[dtype]).numpy().dtype


def read_header(source, known=None):
    """Read and check a header.

    Parameters
    ----------
    source : source
        Has `size` in bytes, ``read(start, n_bytes)``, and a `str` that names it; its
        `data_start` is set to where the header ends.
    known : dict, default=None
        Headers read before, for a zoo's mostly differ in their metadata only.

    Returns
    -------
    tensors : tuple of TensorInfo
        In the order of their bytes.
    metadata : dict of str to str

    Raises
    ------
    CorruptFileError
        If the file is cut short or breaks the format's rules.
    """
    if source.size < 8:
        raise CorruptFileError(
            f"{source} has {source.size} bytes: no safetensors file is so short. Its "
            "download or its writing was cut off; fetch it again."
        )
    length = int.from_bytes(source.read(0, 8), "little")
    if length > MAX_HEADER_BYTES or 8 + length > source.size:
        raise CorruptFileError(
            f"{source} announces a header of {length} bytes, but has {source.size} "
            f"bytes, and a header may have {MAX_HEADER_BYTES}. It is cut short, or is "
            "no safetensors file."
        )
    return parse_header(source.read(8, length), source, known)


def parse_header(text, source, known=None):
    """Check a header's JSON; see `read_header`."""
    source.data_start = 8 + len(text)
    try:
        metadata, rest = _split_metadata(text.decode("utf-8"))
        tensors = None if known is None else known.get(rest)
        if tensors is None:
            header = json.loads(rest, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(
            f"{source} has a header that is no JSON ({_brief(error)}): it is damaged, "
            "or no safetensors file."
        ) from None
    if tensors is None:
        if not isinstance(header, dict):
            raise CorruptFileError(
                f"{source} has a header that is a {type(header).__name__}: expected "
                "an object with an entry per tensor."
            )
        if "__metadata__" in header:
            if metadata is not None:
                raise CorruptFileError(f"{source} has its metadata twice.")
            metadata = header.pop("__metadata__")
            # Part of the text this was read from: not to be found under it again.
            known = None
        tensors = _check_tensors(header, source)
        if known is not None:
            tensors = known.setdefault(rest, tensors)
    last = source.data_start + max((t.start + t.n_bytes for t in tensors), default=0)
    if last > source.size:
        raise CorruptFileError(
            f"{source} is cut short: its last tensor ends at byte {last}, the file at "
            f"{source.size}. Fetch or write it again."
        )
    return tensors, _check_metadata(metadata, source)


def _split_metadata(text):
    """Split off the metadata, where they come first, as writers put them."""
    # Headers are padded with spaces, as many as the metadata leave to be.
    text = text.rstrip()
    first = _METADATA_FIRST.match(text)
    if first is None:
        return None, text
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    metadata, end = decoder.raw_decode(text, first.end())
    rest = text[end:].lstrip()
    tensors = rest.removeprefix(",").lstrip()
    if not rest.startswith((",", "}")) or (rest[0] == "," and tensors[:1] != '"'):
        raise ValueError("after the metadata comes no tensor")
    return metadata, "{" + tensors


def _check_tensors(header, source):
    tensors = [_check_entry(*entry, source) for entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.n_bytes))
    end, before = 0, None
    for tensor in tensors:
        if tensor.start < end and tensor.n_bytes:
            raise CorruptFileError(
                f"{source}: the bytes of tensors {before!r} and {tensor.name!r} "
                "overlap. The file is damaged; write it again."
            )
        end, before = max(end, tensor.start + tensor.n_bytes), tensor.name
    return tuple(tensors)


def _unique(pairs):
    # Two tensors of one name: which of them would be read is anyone's guess.
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice")
    return entries


def _brief(error):
    return str(error)[:80] or type(error).__name__


def _check_metadata(metadata, source):
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise CorruptFileError(
            f"{source} has metadata that are not text by name, as the format demands. "
            "Write the file again with str values."
        )
    return metadata


def _is_size(value):
    # bool is an int to Python; and no file has 2**53 bytes.
    return type(value) is int and 0 <= value < 2**53


def _check_entry(name, entry, source):
    expected = "expected a dtype, a shape and two data_offsets"
    if len(name) > _MAX_NAME_CHARS or not name.isprintable():
        raise CorruptFileError(
            f"{source}: a tensor is called {name[:80]!r}, with {len(name)} characters: "
            f"expected at most {_MAX_NAME_CHARS}, and no control characters."
        )
    if not isinstance(entry, dict):
        raise CorruptFileError(f"{source}: tensor {name!r} is no object; {expected}.")
    dtype, shape = entry.get("dtype"), entry.get("shape")
    offsets = entry.get("data_offsets")
    if not (
        isinstance(shape, list)
        and len(shape) <= 32
        and all(map(_is_size, shape))
        and isinstance(offsets, list)
        and len(offsets) == 2
        and all(map(_is_size, offsets))
    ):
        raise CorruptFileError(
            f"{source}: tensor {name!r} has a shape or offsets that are no sizes; "
            f"{expected}."
        )
    if not isinstance(dtype, str) or not 0 < len(dtype) <= _MAX_DTYPE_CHARS:
        raise CorruptFileError(
            f"{source}: tensor {name!r} has the unknown dtype {str(dtype)[:40]!r}; "
            f"{expected}."
        )
    start, end = offsets
    bits = (
        8 * TORCH_DTYPES[dtype].itemsize
        if dtype in TORCH_DTYPES
        else _UNREAD_BITS.get(dtype)
    )
    # Of types to come the size is not known: they are opened, and not read.
    if end < start or (bits and 8 * (end - start) != math.prod(shape) * bits):
        needs = "" if bits is None else f"needs {math.prod(shape) * bits // 8} bytes, "
        raise CorruptFileError(
            f"{source}: tensor {name!r} of shape {tuple(shape)} and dtype {dtype} "
            f"{needs}but its offsets span {end - start}. The header is damaged."
        )
    return TensorInfo(name, dtype, tuple(shape), start, end - start)


def read_tensor(source, info, scale=None):
    """Read one tensor, and nothing else of its file.

    Parameters
    ----------
    source : source
        As for `read_header`.
    info : TensorInfo
    scale : Tensor, default=None
        The scales of an 8-bit tensor, as float32: one, one per row, or one per block.

    Returns
    -------
    Tensor
        In the file's own dtype; scaled ones as float32.

    Raises
    ------
    UnsupportedFormatError
        Types that torch lacks, 8-bit floats without scales, and scales that do not
        fit.
    """
    if info.dtype in FLOAT8 and scale is None:
        raise UnsupportedFormatError(
            f"{source}: tensor {info.name!r} is stored as {info.dtype} without a "
            "scale tensor beside it: its bytes alone need not be the weight. Use the "
            "bf16 or fp16 checkpoint of this model; if the weights were only cast, "
            "open_models(..., plain_float8=True) reads them as they are."
        )
    tensor = read_plain(source, info)
    if scale is None:
        return tensor
    return _apply_scale(tensor.float(), scale, info, source)


def read_tensor_into(source, info, out):
    """Read one tensor into the memory of another, if it needs no conversion.

    Parameters
    ----------
    source : source
        As for `read_header`.
    info : TensorInfo
    out : Tensor
        Contiguous.

    Returns
    -------
    bool
        Whether it was read.
    """
    if TORCH_DTYPES.get(info.dtype) != out.dtype or info.n_bytes != out.nbytes:
        return False
    view = memoryview(out.numpy().reshape(-1)).cast("B")
    source.read_into(source.data_start + info.start, view)
    return True


def read_plain(source, info):
    """Read a tensor's numbers as they stand, in the file's own dtype.

    Raises
    ------
    UnsupportedFormatError
        Types that torch lacks.
    """
    if info.dtype not in TORCH_DTYPES:
        raise UnsupportedFormatError(
            f"{source}: tensor {info.name!r} has dtype {info.dtype}, which is not "
            "read. Convert it to F32."
        )
    dtype = TORCH_DTYPES[info.dtype]
    if info.n_bytes == 0:
        return torch.empty(info.shape, dtype=dtype)
    data = source.read(source.data_start + info.start, info.n_bytes)
    # A bytearray, for torch warns of read-only memory.
    return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(info.shape)


def _apply_scale(tensor, scale, info, source):
    if scale.numel() == 1:
        return tensor * scale.reshape(())
    if scale.ndim == 1 and tensor.ndim and len(scale) == len(tensor):
        scale = scale.reshape(-1, *[1] * (tensor.ndim - 1))
    if scale.ndim == tensor.ndim:
        sizes = zip(tensor.shape, scale.shape, strict=True)
        blocks = [_block(*pair) for pair in sizes]
        if None not in blocks:
            for axis, block in enumerate(blocks):
                if block > 1:
                    scale = scale.repeat_interleave(block, axis)
                    scale = scale.narrow(axis, 0, tensor.shape[axis])
            return tensor * scale
    raise UnsupportedFormatError(
        f"{source}: tensor {info.name!r} of shape {tuple(tensor.shape)} has scales of "
        f"shape {tuple(scale.shape)}, which fit neither the tensor, nor its rows, nor "
        "blocks of it. Use the bf16 or fp16 checkpoint of this model."
    )


def _block(size, n_scales):
    """How many entries share a scale along an axis; None if that cannot be told."""
    if n_scales in (1, size):
        return 1
    # Powers of two: for each number of scales there is one at most.
    block = 2
    while block < size:
        if -(-size // block) == n_scales:
            return block
        block *= 2
    return None


def write_arrays(file, arrays, metadata):
    """Write a safetensors file, without a copy of what is written.

    Parameters
    ----------
    file : binary file
    arrays : dict of str to ndarray
        C-contiguous, of the dtypes in `NUMPY_DTYPES`.
    metadata : dict of str to str

    Raises
    ------
    ValueError
        If the header would be longer than readers take.
    """
    header, start = {"__metadata__": metadata}, 0
    # Wide types first, so that every tensor is aligned.
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    for name, array in ordered:
        header[name] = {
            "dtype": NUMPY_DTYPES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, start + array.nbytes],
        }
        start += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(
            f"The header would have {len(text)} bytes: a safetensors file's may have "
            f"{MAX_HEADER_BYTES}."
        )
    file.write(len(text).to_bytes(8, "little") + text)
    for _, array in ordered:
        file.write(as_bytes(array))


def as_bytes(array):
    """View a contiguous array as its bytes."""
    return array.reshape(-1).view(np.uint8)
