"""Adapters of every kind that PEFT writes: the library's own delta, or a refusal."""

import json
import warnings

import numpy as np
import peft
import pytest
import torch
from peft import PeftType
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from skprobex.exceptions import UnsupportedFormatError
from skprobex.files import open_models

# What peft's small print asks for, where its defaults do not fit a small model.
ARGUMENTS = {
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "P_TUNING": {"num_virtual_tokens": 3},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 3, "num_tasks": 2},
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 2},
    "CPT": {"cpt_token_ids": [1, 2, 3], "cpt_tokens_type_mask": [1, 2, 3]},
    "ADALORA": {"total_step": 10},
    "FOURIERFT": {"n_frequency": 10},
    "VBLORA": {"vector_length": 4, "num_vectors": 8},
    "MISS": {"r": 4},
    "ROAD": {"group_size": 4},
    "SHIRA": {"r": 2},
    "C3A": {"block_size": 4},
    "WAVEFT": {"n_frequency": 10},
    "PSOFT": {"r": 4},
    "CARTRIDGE": {"num_virtual_tokens": 3},
    "RANDLORA": {"r": 4},
}
# Kinds whose modules are not named in their configuration, or not as others do.
NOT_NAMED = {
    *("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING"),
    *("CPT", "CARTRIDGE", "ADAPTION_PROMPT", "XLORA"),
}
READ = ("LORA", "LOHA", "LOKR")
# These need more than a small model to be made, and are written by hand: the
# configuration's word is all that counts.
BY_HAND = ("XLORA", "CARTRIDGE")
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def tiny_llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=13,
        )
    )


def save_adapter(kind, folder):
    """Write an adapter of a kind with the library itself; return its model."""
    config_class = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    arguments = {"task_type": "CAUSAL_LM", **ARGUMENTS.get(kind, {})}
    if kind not in NOT_NAMED:
        arguments["target_modules"] = ["q_proj"]
    if kind in ("LORA", "LOHA", "LOKR"):
        arguments["target_modules"] = ["q_proj", "down_proj"]
        arguments["init_weights" if kind != "LORA" else "init_lora_weights"] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(tiny_llama(), config_class(**arguments))
        model.save_pretrained(folder)
    return model


def deltas_of(model):
    return {
        f"{name.removeprefix('base_model.model.')}.weight": (
            module.get_delta_weight("default").detach().numpy()
        )
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")
    }


@pytest.mark.parametrize("kind", [kind.value for kind in PeftType])
def test_every_kind_of_peft(tmp_path, kind):
    if kind in BY_HAND:
        save_file(
            {"x.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors"
        )
        config = {"peft_type": kind}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        model = None
    else:
        model = save_adapter(kind, tmp_path)
    if kind not in READ:
        with pytest.raises(
            UnsupportedFormatError, match=rf"adapter_model.*kind {kind}"
        ):
            open_models(tmp_path, on_error="raise")
        return
    models = open_models(tmp_path)
    expected = deltas_of(model)
    assert set(models.layers) == set(expected) and len(expected) == 4
    for name, delta in expected.items():
        weights = models[name]
        assert weights.is_low_rank == (kind == "LORA")
        np.testing.assert_allclose(weights[0], delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [kind.value for kind in PeftType])
def test_without_their_configuration_none_is_taken_for_layers(tmp_path, kind):
    if kind in BY_HAND:
        return
    save_adapter(kind, tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    if kind in READ:
        with pytest.warns(UserWarning, match="guessed to be 1"):
            models = open_models(tmp_path)
        assert len(models.layers) == 4 and not models.layers.keys() & names
        return
    with pytest.raises(UnsupportedFormatError, match=r"adapter"):
        open_models(tmp_path, on_error="raise")


def kron(a, b):
    return torch.from_numpy(np.kron(a.detach().numpy(), b.detach().numpy()))


class TinyModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 6, 3)
        self.point = torch.nn.Conv2d(6, 8, 1)
        self.line = torch.nn.Conv1d(4, 6, 3)
        self.layer = torch.nn.Linear(6, 8)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoHaConfig(r=2, alpha=3, init_weights=False),
        peft.LoHaConfig(r=2, alpha=3, use_effective_conv2d=True, init_weights=False),
        peft.LoHaConfig(
            r=2,
            alpha=3,
            rank_pattern={"conv": 3, "layer": 4},
            alpha_pattern={"layer": 7},
            init_weights=False,
        ),
        peft.LoKrConfig(r=2, alpha=3, init_weights=False),
        peft.LoKrConfig(r=1, alpha=3, decompose_both=True, init_weights=False),
        peft.LoKrConfig(r=1, alpha=3, use_effective_conv2d=True, init_weights=False),
        peft.LoKrConfig(
            r=8,
            alpha=3,
            rank_pattern={"layer": 2},
            alpha_pattern={r"lay.r": 5},
            init_weights=False,
        ),
        peft.LoKrConfig(r=2, alpha=3, decompose_factor=2, init_weights=False),
    ],
    ids=lambda config: config.peft_type.value,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loha_and_lokr_are_the_librarys_deltas(tmp_path, monkeypatch, config, dtype):
    torch.manual_seed(0)
    config.target_modules = ["conv", "point", "line", "layer"]
    # torch's own product fails on what peft passes for some kernels.
    monkeypatch.setattr("peft.tuners.lokr.layer.torch.kron", kron)
    model = peft.get_peft_model(TinyModel().to(dtype), config).to(dtype)
    model.save_pretrained(tmp_path)
    models = open_models(tmp_path)
    expected = deltas_of(model)
    assert set(models.layers) == set(expected) and len(expected) == 4
    for name, delta in expected.items():
        # A kernel that is folded into a matrix stays so: its sides are not in the file.
        weights = models[name]
        assert weights.shape[1] == len(delta)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        flat = weights[0].reshape(len(delta), -1)
        np.testing.assert_allclose(
            flat, delta.reshape(len(delta), -1), rtol=tolerance, atol=tolerance
        )
        (batch,) = weights.batches(torch.device("cpu"))
        np.testing.assert_array_equal(batch[0].numpy(), flat)


@pytest.mark.parametrize("start", ["pissa", "olora", "pissa_niter_4", "LoftQ", "corda"])
def test_a_base_that_was_moved_is_warned_of(tmp_path, start):
    tensors = {"x.lora_A.weight": torch.ones(2, 4), "x.lora_B.weight": torch.ones(4, 2)}
    for name, value in (("a", start), ("b", True), ("c", "gaussian")):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "lora_alpha": 2, "init_lora_weights": value}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=r"^1 models were begun.*a/adapter_model") as w:
        open_models(tmp_path)
    assert len(w) == 1


@pytest.mark.parametrize(
    "config, transposed",
    [
        ({"base_model_name_or_path": "openai-community/gpt2-xl"}, True),
        ({"base_model_name_or_path": "C:\\models\\distilgpt2"}, True),
        ({"base_model_name_or_path": "bigcode/starcoder"}, False),
        ({"auto_mapping": {"base_model_class": "GPT2LMHeadModel"}}, True),
        ({"auto_mapping": {"base_model_class": "GPTBigCodeForCausalLM"}}, False),
        ({"base_model_name_or_path": "mine"}, None),
        ({"base_model_name_or_path": "mine", "fan_in_fan_out": True}, True),
    ],
)
def test_conv1d_is_corrected_as_peft_does(tmp_path, config, transposed):
    name = "transformer.h.0.attn.c_attn"
    a, b = torch.randn(2, 8), torch.randn(24, 2)
    save_file(
        {
            f"base_model.model.{name}.lora_A.weight": a,
            f"base_model.model.{name}.lora_B.weight": b,
        },
        tmp_path / "adapter_model.safetensors",
    )
    config = {"fan_in_fan_out": False, "lora_alpha": 2, "peft_type": "LORA", **config}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    if transposed is None:
        with pytest.warns(UserWarning, match=r"fan_in_fan_out.*adapter_model"):
            models = open_models(tmp_path)
    else:
        models = open_models(tmp_path)
    delta = (b @ a).numpy()
    np.testing.assert_allclose(
        models[f"{name}.weight"][0], delta.T if transposed else delta, rtol=1e-5
    )


def test_the_base_beside_an_adapter_says_how_it_is_stored(tmp_path):
    a, b = torch.randn(2, 8), torch.randn(24, 2)
    for name, shape in (("conv1d", (8, 24)), ("linear", (24, 8))):
        tensors = {
            "h.0.c_attn.lora_A.default.weight": a,
            "h.0.c_attn.lora_B.default.weight": b,
            "h.0.c_attn.base_layer.weight": torch.zeros(shape),
            "h.0.c_attn.alpha": torch.tensor(2.0),
        }
        save_file(tensors, tmp_path / f"{name}.safetensors")
        models = open_models(tmp_path / f"{name}.safetensors")
        assert models.layers["h.0.c_attn.weight"].shape == shape
        assert models.layers["h.0.c_attn.base_layer.weight"].shape == shape


# transformers' own fused experts, adapted as parameters.
def test_experts_are_refused(tmp_path):
    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.Parameter(torch.randn(3, 8, 10))

        def forward(self, x):
            return x @ self.up

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = Experts()
            self.head = torch.nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.experts(x))

    config = peft.LoraConfig(
        r=2,
        target_parameters=["experts.up"],
        target_modules=["head"],
        init_lora_weights=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(Model(), config)
        model.save_pretrained(tmp_path)
    models = open_models(tmp_path)
    assert set(models.layers) == {"experts.weight", "head.weight"}
    assert models["head.weight"].shape == (1, 4, 8)
    with pytest.raises(UnsupportedFormatError, match="target_parameters"):
        models["experts.weight"]


def test_lora_bias_is_scaled_as_its_layer(tmp_path):
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        lora_bias=True,
        target_modules=["layer"],
        init_lora_weights=False,
    )
    model = peft.get_peft_model(TinyModel(), config)
    layer = model.base_model.model.layer
    torch.nn.init.normal_(layer.lora_B["default"].bias)
    before = layer.get_base_layer().bias.detach().clone()
    model.save_pretrained(tmp_path)
    models = open_models(tmp_path)
    expected = deltas_of(model)["layer.weight"]
    layer.merge()
    bias = (layer.get_base_layer().bias - before).detach().numpy()
    assert set(models.layers) == {"layer.weight", "layer.bias"}
    assert models["layer.weight"].is_low_rank
    np.testing.assert_allclose(models["layer.weight"][0], expected, rtol=1e-5)
    np.testing.assert_allclose(models["layer.bias"][0], bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", ["use_qalora", "use_bdlora", "kasa_config"])
def test_variants_that_are_no_product_are_refused(tmp_path, variant):
    tensors = {"x.lora_A.weight": torch.ones(2, 4), "x.lora_B.weight": torch.ones(4, 2)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "lora_alpha": 2, variant: {"a": 1}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedFormatError, match=variant):
        open_models(tmp_path)


def test_grouped_convolutions_are_refused_as_such(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=2))
    config = peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedFormatError, match="grouped convolution"):
        open_models(tmp_path)
