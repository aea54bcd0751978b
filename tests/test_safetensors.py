"""Headers nobody vouches for: right data or a clear error, and nothing else."""

import json
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from skprobex.exceptions import (
    CorruptFileError,
    UnsupportedFormatError,
    WeightFileError,
)
from skprobex.files import open_models
from skprobex.files._safetensors import TORCH_DTYPES, read_header, read_tensor
from skprobex.weights._metadata import parse_value

FAST = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Bytes:
    """A source in memory."""

    def __init__(self, data):
        self.data, self.size = data, len(data)

    def __str__(self):
        return "some.safetensors"

    def read(self, start, n_bytes):
        assert 0 <= start and 0 <= n_bytes and start + n_bytes <= self.size
        return bytearray(self.data[start : start + n_bytes])


def packed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    ],
)
def test_reads_what_safetensors_writes(dtype):
    tensors = {
        "a": (torch.randn(3, 4) * 5).to(dtype),
        "b": torch.ones((), dtype=dtype),
        "empty": torch.empty((0, 3), dtype=dtype),
        "conv": (torch.randn(2, 3, 3, 3) * 5).to(dtype),
    }
    source = Bytes(save(tensors, {"key": "value"}))
    infos, metadata = read_header(source)
    assert metadata == {"key": "value"}
    assert {info.name for info in infos} == set(tensors)
    for info in infos:
        read = read_tensor(source, info)
        assert read.dtype == dtype and torch.equal(read, tensors[info.name])


@pytest.mark.parametrize(
    "header, match",
    [
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[]", "is a list"),
        (b"[" * 100_000, "no JSON"),
        (b'{"a": {}, "a": {}}', "occurs twice"),
        ({"a": 1}, "no object"),
        ({"a": entry(shape=[-2])}, "no sizes"),
        ({"a": entry(shape=[True, 2])}, "no sizes"),
        ({"a": entry(shape=[2.0])}, "no sizes"),
        ({"a": entry(shape=[2**60])}, "no sizes"),
        ({"a": entry(shape=[1] * 33)}, "no sizes"),
        ({"a": entry(offsets=[8, 0])}, "offsets span"),
        ({"a": entry(offsets=[0, 8, 9])}, "no sizes"),
        ({"a": entry(offsets=[-8, 0])}, "no sizes"),
        ({"a": entry(shape=[3])}, "needs 12 bytes"),
        ({"a": entry(shape=[2**50, 2**50])}, "needs"),
        ({"a" * 1001: entry()}, "1001 characters"),
        ({"a\nb": entry()}, "control characters"),
        ({"a": entry("F" * 33)}, "unknown dtype"),
        ({"a": entry("F4", shape=[3])}, "needs 1 bytes"),
        ({"a": entry(dtype=None)}, "unknown dtype"),
        ({"a": entry(offsets=[16, 24])}, "cut short"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, "overlap"),
        ({"__metadata__": {"a": 1}}, "metadata"),
        ({"__metadata__": "text"}, "metadata"),
    ],
)
def test_broken_headers_say_what_is_wrong(header, match):
    with pytest.raises(WeightFileError, match=match) as raised:
        read_header(Bytes(packed(header, bytes(12))))
    assert "some.safetensors" in str(raised.value)


@pytest.mark.parametrize("data", [b"", b"{}", bytes(8), b"\xff" * 8, b"\xff" * 100])
def test_short_files_and_long_lengths(data):
    if data == bytes(8):
        data = struct.pack("<Q", 9) + b"{}"
    with pytest.raises(CorruptFileError, match=r"cut short|no safetensors|cut off"):
        read_header(Bytes(data))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from([*TORCH_DTYPES, "U16", "F8_E8M0"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner)
    ),
    max_leaves=6,
)
SIZES = st.integers(-2, 70) | st.sampled_from([2**31, 2**53, 2**63, 2**64])
ENTRIES = VALUES | st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*TORCH_DTYPES, "U16", "C64", "X"]) | VALUES,
        "shape": st.lists(SIZES, max_size=4) | VALUES,
        "data_offsets": st.lists(SIZES, max_size=3) | VALUES,
    }
)
NAMES = st.sampled_from(
    "a b.weight m.lora_A.weight m.lora_B.weight m.alpha lora_unet_x.lora_up.weight "
    "lora_unet_x.lora_down.weight unet:0:up unet:0:down x.hada_w1_a __metadata__ "
    "a_scale_inv x.lora_embedding_A :up lora_ .lora_A.weight".split()
) | st.text(max_size=6)


def read_all(source):
    for info in read_header(source)[0]:
        tensor = read_tensor(source, info)
        assert tuple(tensor.shape) == info.shape


@FAST
@given(st.dictionaries(NAMES, ENTRIES, max_size=4), st.binary(max_size=80))
def test_fuzzed_headers(header, data):
    source = Bytes(packed(header, data))
    try:
        read_all(source)
    except WeightFileError as error:
        assert "some.safetensors" in str(error)


@FAST
@given(st.binary(max_size=120), st.integers(0, 2**64 - 1) | st.none())
def test_fuzzed_bytes(data, length):
    if length is not None:
        data = struct.pack("<Q", length) + data
    try:
        read_all(Bytes(data))
    except WeightFileError as error:
        assert "some.safetensors" in str(error)


@FAST
@given(st.data())
def test_mutated_files(data):
    whole = bytearray(save({"a": torch.ones(3, 2), "b": torch.ones(4)}, {"k": "v"}))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        read_all(Bytes(bytes(whole[: cut or None])))
    except WeightFileError as error:
        assert "some.safetensors" in str(error)


DTYPES = st.sampled_from(["F32", "F16", "BF16", "I64", "F8_E4M3", "BOOL"])


@FAST
@given(
    st.lists(
        st.tuples(NAMES, DTYPES, st.lists(st.integers(0, 3), max_size=4)),
        max_size=5,
        unique_by=lambda item: item[0],
    ),
    st.dictionaries(st.text(max_size=4), st.text(max_size=20), max_size=3),
    st.randoms(use_true_random=False),
)
def test_well_formed_files_of_anything(tmp_path, tensors, metadata, random):
    """The whole way: layouts, adapters, collection, reading."""
    header, start = {"__metadata__": metadata}, 0
    for name, dtype, shape in tensors:
        end = start + math.prod(shape) * TORCH_DTYPES[dtype].itemsize
        header[name] = entry(dtype, shape, (start, end))
        start = end
    path = tmp_path / "some.safetensors"
    path.write_bytes(packed(header, random.randbytes(start)))
    try:
        models = open_models(path, on_error="raise")
        for layer, info in models.layers.items():
            weights = models[layer]
            assert np.asarray(weights).shape == (1, *info.shape)
        for key in models.metadata[0]:
            models.labels(key)
    except WeightFileError as error:
        assert "some.safetensors" in str(error)
    except ValueError as error:
        # `__metadata__` may have been replaced by a tensor's entry.
        assert "metadata" in str(error)


ATTACKS = [
    "__import__('os').system('touch {}')",
    "[__import__('os').system('touch {}')]",
    "eval('1')",
    "(lambda: 1)()",
    "[" * 5000,
    "-" * 200_000 + "1",
    "1" * 100_000,
    "{'a': 1}",
    "2**99999999",
    "'\\d'",
    "1_000j",
    "None",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_metadata_stay_text(tmp_path, text):
    mark = tmp_path / "executed"
    text = text.replace("{}", str(mark))
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"w": torch.ones(2)}, {"label": text}))
    labels = open_models(path).labels("label")
    assert not mark.exists()
    assert labels.dtype.kind == "U" or text == "'\\d'"
    assert labels[0] == text


@FAST
@given(st.text(alphabet="[](){}'\",-+*~0123456789eE.abjNone \\\n", max_size=60))
def test_parsing_never_fails(text):
    value = parse_value(text)
    assert isinstance(value, (str, int, float, list))


def float8_file(tmp_path, scales, dtype=torch.float8_e4m3fn, shape=(200, 300)):
    weight = torch.randn(shape).to(dtype)
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"a.weight": weight, **scales}))
    return path, weight.float().numpy()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_without_scale_is_refused_by_name(tmp_path, dtype):
    path, _ = float8_file(tmp_path, {}, dtype)
    models = open_models(path)  # opening reads headers only
    assert models.layers["a.weight"].dtype == np.float32
    with pytest.raises(UnsupportedFormatError, match=r"a\.weight.*F8.*bf16"):
        np.asarray(models["a.weight"])


@pytest.mark.parametrize(
    "name, shape",
    [
        ("a.weight_scale_inv", (2, 3)),
        ("a.weight_scale", (200, 1)),
        ("a.weight_scale", (200,)),
        ("a.weight_scale", ()),
        ("a.weight_scale", (1,)),
    ],
)
def test_float8_with_scales(tmp_path, name, shape):
    scale = torch.rand(shape) + 0.5
    path, raw = float8_file(tmp_path, {name: scale})
    models = open_models(path)
    assert list(models.layers) == ["a.weight"]
    full = scale.numpy()
    if shape == (2, 3):
        full = np.kron(full, np.ones((128, 128)))[:200, :300]
    elif shape == (200,):
        full = full[:, None]
    np.testing.assert_allclose(models["a.weight"][0], raw * full, rtol=1e-6)


def test_float8_with_scales_that_do_not_fit(tmp_path):
    path, _ = float8_file(tmp_path, {"a.weight_scale": torch.ones(7)})
    with pytest.raises(UnsupportedFormatError, match="scales of"):
        np.asarray(open_models(path)["a.weight"])


def test_headers_that_differ_in_metadata_are_parsed_once():
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(2)}
    known, headers = {}, []
    for i in range(10):
        source = Bytes(save(tensors, {"k": "v" * i}))
        header, metadata = read_header(source, known)
        assert metadata == {"k": "v" * i}
        assert torch.equal(read_tensor(source, header[0]), tensors[header[0].name])
        headers.append(header)
    assert len(known) == 1 and len({id(header) for header in headers}) == 1
    # A file with a known header is checked against its own length all the same.
    with pytest.raises(CorruptFileError, match="cut short"):
        read_header(Bytes(save(tensors, {"k": "w"})[:-1]), known)


@pytest.mark.parametrize(
    "text",
    [
        b'{"__metadata__":{"a":"b"}"x":1}',
        b'{"__metadata__":{"a":"b"},"__metadata__":{}}',
        b'{"__metadata__":{"a":"b","a":"c"}}',
        b'{"__metadata__":{"a":"b"},}',
        b'{"__metadata__":{"a":"b"}',
        b'{"__metadata__":{"a":"b"}} {}',
        b'{"__metadata__":',
    ],
)
def test_malformed_metadata(text):
    with pytest.raises(CorruptFileError, match=r"no JSON|twice"):
        read_header(Bytes(packed(text)), {})
