"""Quantised checkpoints: codes times a scale are read, all else is refused by name."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skprobex.exceptions import UnsupportedFormatError
from skprobex.files import open_models

W = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
ROWS = W.abs().amax(1, keepdim=True) / 127
CODES = (W / ROWS).round().to(torch.int8)
E4M3 = torch.float8_e4m3fn


def write(path, tensors):
    tensors = {name: t.contiguous().clone() for name, t in tensors.items()}
    save_file(tensors, path / "model.safetensors")
    return path / "model.safetensors"


def bytes_of(*shape, dtype=torch.uint8):
    return torch.ones(shape, dtype=dtype)


# name of the codes, of the scale, and what the scale is multiplied by to be stored
INTEGERS = {
    "compressed-tensors": ("l.weight", "l.weight_scale", 1),
    "quanto": ("l.weight._data", "l.weight._scale", 1),
    "bitsandbytes": ("l.weight", "l.SCB", 127),
    "modelopt": ("l.weight", "l.weight_scale", 1),
    "fused": ("l.kernel", "l.kernel_scale", 1),
}


@pytest.mark.parametrize("case", INTEGERS)
@pytest.mark.parametrize("shape", [(6, 1), (6,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_integers_times_a_scale(tmp_path, case, shape, dtype):
    codes, scale, factor = INTEGERS[case]
    stored = (ROWS * factor).to(dtype)
    tensors = {
        codes: CODES,
        scale: stored.reshape(shape),
        "l.bias": torch.ones(6),
        "l.input_scale": torch.tensor(2.0),
    }
    models = open_models(write(tmp_path, tensors))
    name = "l.kernel" if case == "fused" else "l.weight"
    # What is said of activations is no layer, nor are scales.
    assert set(models.layers) == {name, "l.bias"}
    assert models.layers[name].dtype == np.float32
    expected = CODES.double() * stored.double() / factor
    np.testing.assert_allclose(models[name][0], expected, rtol=1e-6)
    (batch,) = models[name].batches(torch.device("cpu"))
    np.testing.assert_allclose(batch[0], expected, rtol=1e-6)


def test_layouts_of_bitsandbytes(tmp_path):
    tensors = {"l.weight": CODES, "l.SCB": ROWS[:, 0] * 127}
    for value in (0, 2):
        tensors["l.weight_format"] = torch.tensor(value, dtype=torch.uint8)
        models = open_models(write(tmp_path, tensors))
        assert list(models.layers) == ["l.weight"]
        if value == 0:
            np.testing.assert_allclose(models["l.weight"][0], CODES * ROWS, rtol=1e-6)
            continue
        with pytest.raises(UnsupportedFormatError, match="row by row"):
            np.asarray(models["l.weight"])


@pytest.mark.parametrize(
    "names",
    [
        ("l.weight", "l.weight_scale_inv"),
        ("l.weight", "l.weight_scale"),
        ("l.weight", "l.scale_weight"),
        ("l.weight", "l.weight.scale"),
        ("l.weight", "l.scale"),
        ("l.weight._data", "l.weight._scale"),
        ("experts.gate_up_proj", "experts.gate_up_proj_scale"),
        ("experts.gate_up_proj", "experts.gate_up_proj_scale_inv"),
    ],
)
def test_spellings_of_float8_scales(tmp_path, names):
    codes, scale = names
    values = W.to(E4M3)
    tensors = {codes: values, scale: torch.tensor(3.0)}
    models = open_models(write(tmp_path, tensors))
    name = codes.removesuffix("._data")
    assert list(models.layers) == [name]
    np.testing.assert_allclose(models[name][0], 3 * values.float(), rtol=1e-6)


@pytest.mark.parametrize(
    "shape, blocks, block",
    [
        ((200, 300), (2, 3), 128),
        ((64, 64), (64, 2), (1, 32)),
        ((3, 8, 16), (3, 8, 1), (1, 1, 16)),
        ((3, 8, 16), (3, 1, 1), (1, 8, 16)),
        ((3, 256, 130), (3, 2, 2), (1, 128, 128)),
    ],
)
def test_blocks_of_float8(tmp_path, shape, blocks, block):
    values = torch.randn(shape).to(E4M3)
    scale = torch.rand(blocks) + 0.5
    tensors = {"l.weight": values, "l.weight_scale_inv": scale}
    models = open_models(write(tmp_path, tensors))
    full = np.kron(scale, np.ones(block if isinstance(block, tuple) else (block,) * 2))
    full = full[tuple(slice(size) for size in shape)]
    expected = values.float().numpy() * full
    np.testing.assert_allclose(models["l.weight"][0], expected, rtol=1e-6)


def test_scales_that_fit_nothing_are_refused(tmp_path):
    tensors = {"l.weight": CODES, "l.weight_scale": torch.ones(5, 1)}
    models = open_models(write(tmp_path, tensors))
    with pytest.raises(UnsupportedFormatError, match="neither the tensor"):
        np.asarray(models["l.weight"])


def test_plain_float8_on_request(tmp_path):
    down, up = torch.randn(2, 8).to(E4M3), torch.randn(6, 2).to(torch.float8_e5m2)
    tensors = {"l.weight": W.to(E4M3)}
    path = write(tmp_path, tensors)
    with pytest.raises(UnsupportedFormatError, match="plain_float8=True"):
        np.asarray(open_models(path)["l.weight"])
    models = open_models(path, plain_float8=True)
    np.testing.assert_array_equal(models["l.weight"][0], W.to(E4M3).float())
    # Scales beside them are applied all the same.
    write(tmp_path, {**tensors, "l.weight_scale": torch.tensor(2.0)})
    models = open_models(path, plain_float8=True)
    np.testing.assert_array_equal(models["l.weight"][0], 2 * W.to(E4M3).float())
    write(
        tmp_path,
        {"lora_unet_x.lora_down.weight": down, "lora_unet_x.lora_up.weight": up},
    )
    with pytest.raises(UnsupportedFormatError, match=r"F8.*fp16"):
        open_models(path)
    models = open_models(path, plain_float8=True)
    np.testing.assert_allclose(
        models["unet.x.weight"][0], up.float() @ down.float(), rtol=1e-5
    )


INT = torch.int32
REFUSED = {
    "nf4": {
        "l.weight": bytes_of(24, 1),
        "l.weight.absmax": bytes_of(1),
        "l.weight.quant_map": torch.ones(16),
        "l.weight.quant_state.bitsandbytes__nf4": bytes_of(80),
        "l.weight.nested_absmax": torch.ones(1),
        "l.weight.nested_quant_map": torch.ones(256),
    },
    "fp4": {
        "l.weight": bytes_of(24, 1),
        "l.weight.absmax": torch.ones(1),
        "l.weight.quant_map": torch.ones(16),
        "l.weight.quant_state.bitsandbytes__fp4": bytes_of(80),
    },
    "GPTQ": {
        "l.qweight": bytes_of(1, 16, dtype=INT),
        "l.qzeros": bytes_of(1, 2, dtype=INT),
        "l.scales": torch.ones(1, 16),
        "l.g_idx": bytes_of(8, dtype=INT),
    },
    "AWQ": {
        "l.qweight": bytes_of(8, 2, dtype=INT),
        "l.qzeros": bytes_of(1, 2, dtype=INT),
        "l.scales": torch.ones(1, 16),
    },
    "compressed-tensors": {
        "l.weight_packed": bytes_of(6, 1, dtype=INT),
        "l.weight_scale": torch.ones(6, 1),
        "l.weight_shape": torch.tensor([6, 8]),
    },
    "MXFP4": {
        "l.gate_up_proj_blocks": bytes_of(2, 4, 1, 16),
        "l.gate_up_proj_scales": bytes_of(2, 4, 1),
    },
    "NVFP4": {
        "l.weight": bytes_of(6, 8),
        "l.weight_scale": torch.ones(6, 1).to(E4M3),
        "l.weight_scale_2": torch.tensor(1.0),
    },
    "MXFP8": {"l.weight": W.to(E4M3), "l.weight_scale": bytes_of(6, 1)},
    "MLX": {
        "l.weight": torch.ones(6, 1, dtype=torch.uint32),
        "l.scales": torch.ones(6, 1),
        "l.biases": torch.ones(6, 1),
    },
    "zero points": {
        "l.weight": CODES,
        "l.weight_scale": ROWS,
        "l.weight_zero_point": bytes_of(6, 1, dtype=torch.int8),
    },
    "EETQ": {"l.weight": CODES, "l.weight_scales": ROWS[:, 0]},
    "HQQ": {"l.W_q": bytes_of(6, 4), "l.scale": ROWS, "l.zero": ROWS},
    "AQLM": {
        "l.codes": bytes_of(6, 1, 1, dtype=torch.int16),
        "l.codebooks": torch.ones(1, 4, 1, 8),
        "l.scales": ROWS,
    },
    "U8 integers beside weight_scale": {
        "l.weight": bytes_of(2, 8),
        "l.weight_scale": torch.ones(1),
    },
    "pre_quant_scale": {
        "l.weight": CODES,
        "l.weight_scale": ROWS,
        "l.pre_quant_scale": torch.ones(8),
    },
}


@pytest.mark.parametrize("method", REFUSED)
def test_other_methods_are_refused_by_name(tmp_path, method):
    tensors = {**REFUSED[method], "l.bias": torch.ones(6), "norm.weight": torch.ones(8)}
    models = open_models(write(tmp_path, tensors))
    # Neither the codes nor what stands beside them come out as layers.
    (name,) = models.layers.keys() - {"l.bias", "norm.weight"}
    assert name == ("l.gate_up_proj" if method == "MXFP4" else "l.weight")
    with pytest.raises(UnsupportedFormatError, match=rf"model\.safetensors.*{method}"):
        models[name]
    np.testing.assert_array_equal(models["norm.weight"][0], np.ones(8))


def test_integers_that_are_no_codes_stay(tmp_path):
    tensors = {
        "position_ids": torch.arange(5)[None],
        "attn.relative_position_index": torch.arange(4).reshape(2, 2),
        "attn.logit_scale": torch.ones(2),
        "norm.num_batches_tracked": torch.tensor(3),
        "l.weight": CODES,
    }
    models = open_models(write(tmp_path, tensors))
    assert set(models.layers) == set(tensors)
    np.testing.assert_array_equal(models["l.weight"][0], CODES)


def raw(path, header, n_bytes):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(n_bytes))
    return path


@pytest.mark.parametrize(
    "dtype, shape, n_bytes",
    [
        ("F4", [4, 4], 8),
        ("F6_E2M3", [4, 4], 12),
        ("F8_E8M0", [8], 8),
        ("F8_E4M3FNUZ", [8], 8),
        ("C64", [1], 8),
        ("X7", [3], 5),
    ],
)
def test_an_exotic_type_refuses_its_tensor_only(tmp_path, dtype, shape, n_bytes):
    header = {
        "a": {"dtype": dtype, "shape": shape, "data_offsets": [0, n_bytes]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [n_bytes, n_bytes + 8]},
    }
    models = open_models(raw(tmp_path / "m.safetensors", header, n_bytes + 8))
    assert set(models.layers) == {"a", "b"}
    assert models["b"].shape == (1, 2)
    with pytest.raises(UnsupportedFormatError, match=rf"'a' has dtype {dtype}"):
        models["a"]
