"""One layer, one name, however it is spelt; names of the user's; linear patterns."""

import re
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from skprobex.exceptions import UnsupportedFormatError, WeightFileError
from skprobex.files import open_models
from skprobex.files._patterns import InvolvedPatternError, PatternTable

A, B = torch.randn(2, 8), torch.randn(6, 2)


def lora(*modules, role=("lora_down", "lora_up")):
    return {
        f"{module}.{part}.weight": factor.clone()
        for module in modules
        for part, factor in zip(role, (A, B), strict=True)
    }


def names_of(tmp_path, tensors, **arguments):
    save_file(
        {k: v.contiguous() for k, v in tensors.items()}, tmp_path / "m.safetensors"
    )
    models = open_models(tmp_path, **arguments)
    return {name.removesuffix(".weight") for name in models.layers}


Q = "transformer_blocks.0.attn.to_q"
SAME = {
    f"transformer.{Q}": [
        f"lora_transformer_{Q}".replace(".", "_"),
        f"lora_unet_{Q}".replace(".", "_"),
        f"lycoris_{Q}".replace(".", "_"),
        f"transformer.{Q}",
        f"diffusion_model.{Q}",
        Q,
        f"base_model.model.{Q}",
        f"_orig_mod.{Q}",
        f"module._orig_mod.{Q}",
        f"transformer._orig_mod.{Q}",
        f"{Q}.base_layer",
    ],
    "transformer.double_blocks.3.img_attn.qkv": [
        "lora_unet_double_blocks_3_img_attn_qkv",
        "diffusion_model.double_blocks.3.img_attn.qkv",
        "model.diffusion_model.double_blocks.3.img_attn.qkv",
        "double_blocks.3.img_attn.qkv",
        "double_blocks.3.processor.qkv_lora1",
    ],
    "transformer.blocks.7.cross_attn.k_img": [
        "lora_unet_blocks_7_cross_attn_k_img",
        "diffusion_model.blocks.7.cross_attn.k_img",
    ],
    "transformer.joint_blocks.1.x_block.attn.qkv": [
        "lora_unet_joint_blocks_1_x_block_attn_qkv",
        "diffusion_model.joint_blocks.1.x_block.attn.qkv",
    ],
    "unet.time_embedding.linear_1": [
        "lora_unet_time_embed_0",
        "diffusion_model.time_embed.0",
        "unet.time_embed.0",
        "unet.time_embedding.linear_1",
        "time_embedding.linear_1",
    ],
    "unet.time_embedding.linear_2": ["lora_unet_time_embed_2", "unet.time_embed.2"],
    "unet.add_embedding.linear_1": ["lora_unet_label_emb_0_0", "unet.label_emb.0.0"],
    "unet.add_embedding.linear_2": ["lora_unet_label_emb_0_2", "label_emb.0.2"],
    "unet.conv_in": [
        "lora_unet_input_blocks_0_0",
        "input_blocks.0.0",
        "conv_in",
        "base_model.model.conv_in",
        "unet.conv_in",
    ],
    "unet.conv_out": ["lora_unet_out_2", "model.diffusion_model.out.2", "conv_out"],
    "unet.up_blocks.1.attentions.2.proj_in": [
        "unet.output_blocks.5.1.proj_in",
        "lora_unet_output_blocks_5_1_proj_in",
        "diffusion_model.output_blocks.5.1.proj_in",
        "up_blocks.1.attentions.2.proj_in",
    ],
    "unet.mid_block.resnets.1.time_emb_proj": [
        "unet.middle_block.2.emb_layers.1",
        "lora_unet_middle_block_2_emb_layers_1",
    ],
    "unet.down_blocks.0.downsamplers.0.conv": [
        "lora_unet_input_blocks_3_0_op",
        "input_blocks.3.0.op",
    ],
    "unet.up_blocks.0.upsamplers.0.conv": [
        "lora_unet_output_blocks_2_2_conv",
        "output_blocks.2.1.conv",
    ],
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": [
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
    ],
    "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q": [
        "lora_te2_encoder_block_0_layer_0_SelfAttention_q",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
    ],
}


@pytest.mark.parametrize("name", SAME)
def test_one_layer_one_name(tmp_path, name):
    for i, spelling in enumerate(SAME[name]):
        tensors = lora(spelling)
        save_file(tensors, tmp_path / f"m{i}.safetensors")
        # Also where no other file tells.
        assert list(open_models(tmp_path / f"m{i}.safetensors").layers) == [
            f"{name}.weight"
        ]
    weights = open_models(tmp_path)[f"{name}.weight"]
    assert weights.shape == (len(SAME[name]), 6, 8)
    np.testing.assert_allclose(weights, np.stack([B @ A] * len(weights)), rtol=1e-5)


def test_fused_projections_are_other_layers(tmp_path):
    names = names_of(
        tmp_path,
        lora("lora_unet_double_blocks_0_img_attn_qkv", "single_blocks.0.linear1")
        | lora(
            "single_blocks.0.processor.qkv_lora", "single_blocks.0.processor.proj_lora"
        ),
    )
    assert names == {
        "transformer.double_blocks.0.img_attn.qkv",
        "transformer.single_blocks.0.linear1",
        "transformer.single_blocks.0.qkv",
        "transformer.single_blocks.0.linear2",
    }


def test_a_controlnet_is_no_unet(tmp_path):
    names = names_of(
        tmp_path, lora("down_blocks.0.attentions.0.to_q", "controlnet_mid_block")
    )
    assert names == {
        "controlnet.down_blocks.0.attentions.0.to_q",
        "controlnet.controlnet_mid_block",
    }


def test_other_models_keep_their_names(tmp_path):
    modules = {"transformer.h.0.attn.c_attn", "blocks.0.attn.qkv", "encoder.conv_in.x"}
    assert names_of(tmp_path, lora(*modules)) == modules


@pytest.mark.parametrize(
    "modules, is_refused",
    [
        # Blocks of ordinary networks widen and narrow, or have biases.
        ({"block.up": (128, 64), "block.down": (64, 128)}, False),
        ({"mlp.up_proj": (24, 4), "mlp.down_proj": (4, 24)}, False),
        ({"in_proj_a": (4, 8), "in_proj_b": (4, 8)}, False),
        ({"attn.q_a_proj": (4, 8), "attn.q_b_proj": (8, 4)}, False),
        ({"q.down": (4, 8), "q.up": (6, 4)}, True),
        ({"q.down": (2, 64), "q.up": (64, 2)}, True),
        ({"q.a": (8, 2), "q.b": (2, 6)}, True),
        ({"q_A": (2, 8), "q_B": (8, 2)}, True),
        ({"q.U": (8, 2), "q.V": (2, 8)}, True),
    ],
)
def test_pairs_that_look_like_factors(tmp_path, modules, is_refused):
    tensors = {f"{name}.weight": torch.ones(shape) for name, shape in modules.items()}
    tensors["other.weight"] = torch.ones(3)
    names = names_of(tmp_path, tensors)
    assert names == ({"q", "other"} if is_refused else {*modules, "other"})
    if is_refused:
        with pytest.raises(UnsupportedFormatError, match="pair of factors"):
            open_models(tmp_path)["q.weight"]
        biases = {f"{name}.bias": torch.ones(2) for name in modules}
        assert set(modules) <= names_of(tmp_path, tensors | biases)


def test_wrappers_of_dense_models_come_off(tmp_path):
    for prefix in ("", "module.", "_orig_mod.", "module._orig_mod."):
        save_file({f"{prefix}layers.0.weight": A}, tmp_path / f"m{prefix}.safetensors")
    models = open_models(tmp_path)
    assert list(models.layers) == ["layers.0.weight"] and len(models) == 4
    # Never where it would make two layers one.
    save_file({"module.a": A, "a": B}, tmp_path / "both.safetensors")
    models = open_models(tmp_path / "both.safetensors")
    assert set(models.layers) == {"module.a", "a"}
    np.testing.assert_array_equal(models["module.a"][0], A)


@pytest.mark.parametrize(
    "rename, expected",
    [
        ({"enc.0.q.weight": "x"}, {"x", "enc.1.q"}),
        ({"enc.*": "body.*"}, {"body.0.q", "body.1.q"}),
        ({"enc.*.q.*": "q*.*"}, {"q0", "q1"}),
        ([(re.compile(r"^enc\.(\d)"), r"e\1")], {"e0.q", "e1.q"}),
        (lambda name: name.removeprefix("enc."), {"0.q", "1.q"}),
        ({"*.9.*": "none", "enc.*": "*", "*": "late"}, {"0.q", "1.q"}),
        (None, {"enc.0.q", "enc.1.q"}),
    ],
)
def test_rename(tmp_path, rename, expected):
    assert names_of(tmp_path, lora("enc.0.q", "enc.1.q"), rename=rename) == expected


def test_rename_says_what_it_takes(tmp_path):
    tensors = lora("enc.0.q", "enc.1.q")
    for bad in (3, {"a": 1}, ["ab"], [("a", "b", "c")]):
        with pytest.raises(TypeError, match="rename must be"):
            names_of(tmp_path, tensors, rename=bad)
    with pytest.raises(TypeError, match="gave None"):
        names_of(tmp_path, tensors, rename=lambda name: None)
    models = open_models(tmp_path, rename={"enc.*": "one"})
    with pytest.raises(UnsupportedFormatError, match="name of two layers"):
        models["one"]


def test_rename_joins_models_that_spell_a_layer_differently(tmp_path):
    save_file(lora("a.q"), tmp_path / "a.safetensors")
    save_file(lora("b.q"), tmp_path / "b.safetensors")
    models = open_models(tmp_path, rename={"b.*": "a.*"})
    assert models["a.q.weight"].shape == (2, 6, 8)


# Patterns of a stranger's configuration

PIECES = st.sampled_from(
    ["a", "b", ".", r"\.", "x", ".*", "[ab]", "[0-9]", r"\d+", "(a|b)", "(?:ab)?", "^"]
    + ["$", "|", "a?", "1", r"(x|\d)", "[^a]", "b*", "a+", "a|b"]
)


@given(st.lists(PIECES, min_size=1, max_size=6), st.text("ab.x1", max_size=8))
def test_patterns_match_what_a_regular_expression_does(pieces, name):
    pattern = "".join(pieces)
    try:
        found = PatternTable({pattern: 1}).find(name)
    except InvolvedPatternError:
        return
    try:
        expected = re.match(rf"(.*\.)?({pattern})$", name)
    except re.error:
        expected = None
    assert (found == 1) == (expected is not None)


def test_the_first_pattern_counts():
    table = PatternTable({"x.*": 1, "a.q": 2, "q": 3, "b.[qk]": 4})
    assert [table.find(name) for name in ("a.q", "c.q", "b.q", "b.k", "x.q", "z")] == [
        *(2, 3, 3, 4, 1, None)
    ]


@pytest.mark.parametrize(
    "pattern", ["(a|aa)" * 40 + "z", ".*.*.*.*z", "x.*z", "(a?){30}", "(a+)+b", "(.*)*"]
)
def test_patterns_take_no_time(tmp_path, pattern):
    module = "base_model.model." + "a" * 900
    tensors = lora(module, role=("lora_A", "lora_B"))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = tmp_path / "adapter_config.json"
    text = pattern.replace("\\", "\\\\")
    config.write_text(f'{{"lora_alpha": 2, "alpha_pattern": {{"{text}": 1}}}}')
    start = time.perf_counter()
    try:
        open_models(tmp_path, on_error="raise")
    except UnsupportedFormatError as error:
        assert "too involved" in str(error)
    assert time.perf_counter() - start < 5


def test_many_patterns_take_no_time():
    table = PatternTable({f"layers.{i}.q": i for i in range(5000)})
    start = time.perf_counter()
    assert [table.find(f"model.layers.{i}.q") for i in range(2000)] == list(range(2000))
    assert time.perf_counter() - start < 5
    with pytest.raises(InvolvedPatternError):
        PatternTable({f"m{i}": 1 for i in range(5001)})


def test_long_names_and_numbers_are_no_names(tmp_path):
    for name in (
        "unet:" + "9" * 900 + ":up",
        "lora_unet_input_blocks_" + "9" * 900 + "_1_proj_in.lora_down.weight",
        ".dora_scale.b" * 70,
    ):
        other = name.replace(":up", ":down").replace("_down", "_up")
        save_file({name: A, other: A.T.contiguous()}, tmp_path / "m.safetensors")
        try:
            assert len(open_models(tmp_path, on_error="raise").layers) < 3
        except WeightFileError:
            pass
