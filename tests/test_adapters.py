"""LoRA in all its spellings: one layer name, and its own library's delta."""

import json
import math
import re
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skprobex.exceptions import (
    CorruptFileError,
    UnsupportedFormatError,
    WeightFileError,
)
from skprobex.files import open_models
from skprobex.files._module_names import dotted, numbered_modules

UNET = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1."
CLIP = "text_encoder.text_model.encoder.layers.0.self_attn."


def factors(d_out=6, d_in=5, rank=2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(d_out, rank, generator=generator).to(dtype)
    down = torch.randn(rank, d_in, generator=generator).to(dtype)
    return up, down


def write(folder, tensors, metadata=None, config=None, name="adapter_model"):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.contiguous().clone() for key, value in tensors.items()}
    save_file(tensors, folder / f"{name}.safetensors", metadata)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def assert_close(actual, expected):
    expected = np.asarray(expected)
    assert np.asarray(actual).shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)


def opened(folder):
    """Open and read everything twice: as an array, and by batches of factors."""
    models = open_models(folder, on_error="raise")
    deltas = {}
    for name in models.layers:
        weights = models[name]
        deltas[name] = np.asarray(weights)[0]
        if weights.is_low_rank:
            (batch,) = weights.batches(torch.device("cpu"))
            product = (batch.B @ batch.A)[0].numpy()
            assert_close(product.reshape(deltas[name].shape), deltas[name])
    return deltas


PEFT_MODULE = "model.layers.0.self_attn.q_proj"
TO_Q = "down_blocks_0_attentions_0_transformer_blocks_0_attn1"

# What alone says nothing of its scale: 1 is guessed, and said.
GUESSED = "guessed to be 1"

# family: (keys of down, up and alpha, canonical name, scale without alpha at rank 2)
FAMILIES = {
    "peft file": (
        f"base_model.model.{PEFT_MODULE}.lora_A.weight",
        f"base_model.model.{PEFT_MODULE}.lora_B.weight",
        None,
        f"{PEFT_MODULE}.weight",
        GUESSED,
    ),
    "peft in a model": (
        f"{PEFT_MODULE}.lora_A.default.weight",
        f"{PEFT_MODULE}.lora_B.default.weight",
        None,
        f"{PEFT_MODULE}.weight",
        GUESSED,
    ),
    "diffusers with peft": (
        f"{UNET}to_q.lora_A.weight",
        f"{UNET}to_q.lora_B.weight",
        f"{UNET}to_q.alpha",
        f"{UNET}to_q.weight",
        1.0,
    ),
    "transformer": (
        "transformer.single_transformer_blocks.3.attn.to_q.lora_A.weight",
        "transformer.single_transformer_blocks.3.attn.to_q.lora_B.weight",
        "transformer.single_transformer_blocks.3.attn.to_q.alpha",
        "transformer.single_transformer_blocks.3.attn.to_q.weight",
        1.0,
    ),
    "diffusers 0.2x": (
        f"{UNET}to_out.0.lora.down.weight",
        f"{UNET}to_out.0.lora.up.weight",
        None,
        f"{UNET}to_out.0.weight",
        1.0,
    ),
    "diffusers old": (
        f"{UNET}processor.to_out_lora.down.weight",
        f"{UNET}processor.to_out_lora.up.weight",
        f"{UNET}processor.to_out_lora.alpha",
        f"{UNET}to_out.0.weight",
        1.0,
    ),
    "diffusers first": (
        f"{UNET.removeprefix('unet.')}processor.to_q_lora.down.weight",
        f"{UNET.removeprefix('unet.')}processor.to_q_lora.up.weight",
        None,
        f"{UNET}to_q.weight",
        1.0,
    ),
    "cloneofsimo": ("unet:0:down", "unet:0:up", None, "unet.0.weight", 1.0),
    "converted twice": (
        f"lora_unet_unet_{TO_Q}_processor_to_out_lora_down.weight",
        f"lora_unet_unet_{TO_Q}_processor_to_out_lora_up.weight",
        None,
        f"{UNET}to_out.0.weight",
        1.0,
    ),
    "text encoder old": (
        f"{CLIP}q_proj.lora_linear_layer.down.weight",
        f"{CLIP}q_proj.lora_linear_layer.up.weight",
        None,
        f"{CLIP}q_proj.weight",
        1.0,
    ),
    "kohya unet": (
        f"lora_unet_{TO_Q}_to_out_0.lora_down.weight",
        f"lora_unet_{TO_Q}_to_out_0.lora_up.weight",
        f"lora_unet_{TO_Q}_to_out_0.alpha",
        f"{UNET}to_out.0.weight",
        1.0,
    ),
    "kohya te": (
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha",
        f"{CLIP}q_proj.weight",
        1.0,
    ),
    "kohya te2": (
        "lora_te2_text_model_encoder_layers_11_mlp_fc1.lora_down.weight",
        "lora_te2_text_model_encoder_layers_11_mlp_fc1.lora_up.weight",
        "lora_te2_text_model_encoder_layers_11_mlp_fc1.alpha",
        "text_encoder_2.text_model.encoder.layers.11.mlp.fc1.weight",
        1.0,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path, family, dtype):
    down_key, up_key, alpha_key, name, scale = FAMILIES[family]
    up, down = factors(dtype=dtype)
    product = (up.float() @ down.float()).numpy()
    write(tmp_path / "plain", {down_key: down, up_key: up})
    if scale is GUESSED:
        with pytest.warns(UserWarning, match=rf"1 models hold.*{GUESSED}.*plain"):
            deltas = opened(tmp_path / "plain")
        scale = 1.0
    else:
        deltas = opened(tmp_path / "plain")
    assert list(deltas) == [name]
    assert_close(deltas[name], scale * product)
    if alpha_key is None:
        return
    for alpha, expected in [(1.0, 0.5), (0.0, 1.0)]:
        tensors = {down_key: down, up_key: up, alpha_key: torch.tensor(alpha)}
        write(tmp_path / "alpha", tensors)
        assert_close(opened(tmp_path / "alpha")[name], expected * product)


def test_families_of_one_base_share_layer_names(tmp_path):
    wanted = f"{UNET}to_out.0.weight"
    families = [f for f, (*_, name, _) in FAMILIES.items() if name == wanted]
    assert len(families) >= 4
    up, down = factors()
    for family in families:
        down_key, up_key, *_ = FAMILIES[family]
        write(tmp_path, {down_key: down, up_key: up}, name=family)
    weights = open_models(tmp_path)[wanted]
    assert weights.shape == (len(families), 6, 5) and weights.is_low_rank
    assert_close(weights, np.stack([(up @ down).numpy()] * len(families)))


def test_kohya_names_follow_other_files_then_words_then_stay():
    known = {"unet_odd_part_to_q": "unet.odd_part.to_q"}
    assert dotted("unet", "odd_part_to_q", known) == "unet.odd_part.to_q"
    assert dotted("unet", "odd_part_to_q", {}) == "unet.odd_part_to_q"
    sgm = "output_blocks_5_1_transformer_blocks_0_attn2_to_k"
    assert dotted("unet", sgm, {}) == (
        "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k"
    )
    assert dotted("unet", "middle_block_1_proj_in", {}) == (
        "unet.mid_block.attentions.0.proj_in"
    )
    assert dotted("unet", "input_blocks_2_0_in_layers_2", {}) == (
        "unet.down_blocks.0.resnets.1.conv1"
    )


def test_scale_needs_no_metadata_but_follows_the_configuration(tmp_path):
    module = "base_model.model.model.layers.{}.self_attn.q_proj"
    tensors, products = {}, []
    for i in range(3):
        up, down = factors(seed=i, rank=2 + i)
        tensors[module.format(i) + ".lora_A.weight"] = down
        tensors[module.format(i) + ".lora_B.weight"] = up
        products.append((up @ down).numpy())
    config = {
        "r": 64,  # wrong: the tensors know better
        "lora_alpha": 12,
        "alpha_pattern": {"layers.1.self_attn.q_proj": 30, "^model.layers.2.*": 2},
    }
    deltas = opened(write(tmp_path / "a", tensors, config=config))
    for i, scale in enumerate([12 / 2, 30 / 3, 2 / 4]):
        name = f"model.layers.{i}.self_attn.q_proj.weight"
        assert_close(deltas[name], scale * products[i])
    config["use_rslora"] = True
    deltas = opened(write(tmp_path / "a", tensors, config=config))
    assert_close(
        deltas["model.layers.0.self_attn.q_proj.weight"],
        12 / math.sqrt(2) * products[0],
    )


CONVERTED = f"lora_unet_unet_{TO_Q}_processor_to_out_lora"


@pytest.mark.parametrize(
    "family, alpha_key",
    [
        ("diffusers 0.2x", f"{UNET}to_out.0.alpha"),
        ("diffusers 0.2x", f"{UNET}to_out.0.lora.alpha"),
        ("diffusers old", f"{UNET}to_out_lora.alpha"),
        ("diffusers old", f"{UNET}to_out.alpha"),
        ("text encoder old", f"{CLIP}q_proj.alpha"),
        ("text encoder old", f"{CLIP}q_proj.lora_linear_layer.alpha"),
        ("converted twice", f"{CONVERTED}.alpha"),
        ("converted twice", f"{CONVERTED.removesuffix('_lora')}.alpha"),
    ],
)
def test_all_places_of_alpha(tmp_path, family, alpha_key):
    down_key, up_key, _, name, _ = FAMILIES[family]
    up, down = factors()
    tensors = {down_key: down, up_key: up, alpha_key: torch.tensor(3.0)}
    deltas = opened(write(tmp_path, tensors))
    assert list(deltas) == [name]
    assert_close(deltas[name], 3 / 2 * (up @ down).numpy())


@pytest.mark.parametrize("family", ["diffusers 0.2x", "diffusers old", "kohya unet"])
def test_a_configuration_of_peft_says_nothing_of_other_families(tmp_path, family):
    down_key, up_key, _, name, _ = FAMILIES[family]
    up, down = factors()
    config = {"lora_alpha": 64, "fan_in_fan_out": True}
    deltas = opened(write(tmp_path, {down_key: down, up_key: up}, config=config))
    assert_close(deltas[name], (up @ down).numpy())


@pytest.mark.parametrize("module", ["layers.1", "layers.1.q", "model.layers.1", "1"])
@pytest.mark.parametrize(
    "pattern",
    [
        "layers.1",
        r"^layers\.1",
        "^layers.1.q",
        ".*q",
        r"^(model\.)?layers\.1",
        "ayers.1",
    ],
)
def test_patterns_match_what_they_match_in_peft(tmp_path, pattern, module):
    from peft.utils.other import get_pattern_key

    up, down = factors()
    tensors = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    config = {"lora_alpha": 2, "alpha_pattern": {pattern: 10}}
    deltas = opened(write(tmp_path, tensors, config=config))
    # Where none matches, PEFT returns the module.
    scale = 5 if get_pattern_key([pattern], module) == pattern else 1
    assert_close(deltas[f"{module}.weight"], scale * (up @ down).numpy())


def test_patterns_that_are_none_are_passed_over(tmp_path):
    up, down = factors()
    tensors = {"layers.1.lora_A.weight": down, "layers.1.lora_B.weight": up}
    for patterns, scale in (({"(": 10}, 1), ({"(": 10, "layers.1": 6}, 3), ([6], 1)):
        config = {"lora_alpha": 2, "alpha_pattern": patterns}
        deltas = opened(write(tmp_path, tensors, config=config))
        assert_close(deltas["layers.1.weight"], scale * (up @ down).numpy())


def test_config_of_diffusers_in_the_header(tmp_path):
    up, down = factors()
    tensors = {f"{UNET}to_q.lora_A.weight": down, f"{UNET}to_q.lora_B.weight": up}
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 6})}
    deltas = opened(write(tmp_path, tensors, metadata))
    assert_close(deltas[f"{UNET}to_q.weight"], 3 * (up @ down).numpy())


def test_convolution(tmp_path):
    down, up = torch.randn(2, 3, 3, 3), torch.randn(4, 2, 1, 1)
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors = {
        f"{key}.lora_down.weight": down,
        f"{key}.lora_up.weight": up,
        f"{key}.alpha": torch.tensor(1.0),
    }
    deltas = opened(write(tmp_path, tensors))
    expected = 0.5 * (up.flatten(1) @ down.flatten(1)).reshape(4, 3, 3, 3)
    assert_close(deltas["unet.down_blocks.0.resnets.0.conv1.weight"], expected)
    weights = open_models(tmp_path)["unet.down_blocks.0.resnets.0.conv1.weight"]
    assert weights.shape == (1, 4, 3, 3, 3) and weights.lifted_shape == (1, 4, 27)
    assert weights.load().shape == (1, 4, 27)


def test_ranks_may_differ(tmp_path):
    expected = []
    for i in range(3):
        up, down = factors(rank=1 + i, seed=i)
        keys = FAMILIES["diffusers 0.2x"]
        write(tmp_path, {keys[0]: down, keys[1]: up}, name=f"m{i}")
        expected.append((up @ down).numpy())
    weights = open_models(tmp_path)[FAMILIES["diffusers 0.2x"][3]]
    (batch,) = weights.batches(torch.device("cpu"))
    assert batch.B.shape == (3, 6, 3) and batch.A.shape == (3, 3, 5)
    assert_close(batch.B @ batch.A, np.stack(expected))
    assert_close(np.asarray(weights.load()), np.stack(expected))


def test_numbered_layers_get_the_names_of_stable_diffusion(tmp_path):
    widths = [320] * 2 + [640] * 2 + [1280] * 2 + [1280] * 3 + [640] * 3 + [320] * 3
    shapes = []
    for width in [*widths, 1280]:
        own = [(width, width)] * 4
        cross = [(width, width), (width, 768), (width, 768), (width, width)]
        shapes += [*own, (8 * width, width), *cross]
    names = numbered_modules("unet", shapes)
    assert len(set(names)) == 144
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    assert names[:5] == [
        f"{block}.attn1.to_q",
        f"{block}.attn1.to_k",
        f"{block}.attn1.to_v",
        f"{block}.attn1.to_out.0",
        f"{block}.ff.net.0.proj",
    ]
    assert names[6] == f"{block}.attn2.to_k"
    assert names[-1].startswith("unet.mid_block.attentions.0")
    text = numbered_modules("text_encoder", [(768, 768)] * 48)
    assert text[5] == "text_encoder.text_model.encoder.layers.1.self_attn.v_proj"
    # Shapes of something else: numbers, not guesses.
    assert numbered_modules("unet", shapes[:-1])[3] == "unet.3"

    up, down = factors()
    tensors = {"unet:0:up": up, "unet:0:down": down, "<s1>": torch.randn(4)}
    metadata = {"unet": '["CrossAttention"]', "unet:0:rank": "2", "<s1>": "<embed>"}
    assert set(opened(write(tmp_path, tensors, metadata))) == {"unet.0.weight", "<s1>"}


def spellings(module):
    """Spell one attention layer of Stable Diffusion's U-Net as its trainers did."""
    attention, part = module.removeprefix("unet.").split(".to_")
    flat = f"{attention}_to_{part}".replace(".", "_")
    short = f"to_{part.removesuffix('.0')}_lora"
    yield (
        f"unet.{attention}.to_{part}.lora_A.weight",
        f"unet.{attention}.to_{part}.lora_B.weight",
    )
    for prefix in ("unet.", ""):
        base = f"{prefix}{attention}.processor.{short}"
        yield f"{base}.down.weight", f"{base}.up.weight"
    base = f"unet.{attention}.to_{part}.lora"
    yield f"{base}.down.weight", f"{base}.up.weight"
    yield f"lora_unet_{flat}.lora_down.weight", f"lora_unet_{flat}.lora_up.weight"
    base = f"lora_unet_unet_{attention}_processor_{short}".replace(".", "_")
    yield f"{base}_down.weight", f"{base}_up.weight"


def test_stable_diffusion_in_seven_spellings(tmp_path):
    widths = [320] * 2 + [640] * 2 + [1280] * 5 + [640] * 3 + [320] * 3 + [1280]
    shapes = []
    for width in widths:
        square = (width, width)
        shapes += [square] * 5 + [(width, 768)] * 2 + [square]
    modules = numbered_modules("unet", shapes)
    assert len(set(modules)) == 128
    files = [{} for _ in range(7)]
    for i, (module, (d_out, d_in)) in enumerate(zip(modules, shapes, strict=True)):
        up, down = torch.full((d_out, 1), float(i)), torch.ones(1, d_in)
        names = [*spellings(module), (f"unet:{i}:down", f"unet:{i}:up")]
        for tensors, (down_key, up_key) in zip(files, names, strict=True):
            tensors |= {down_key: down, up_key: up}
    for number, tensors in enumerate(files):
        write(tmp_path, tensors, name=f"{number}")
    models = open_models(tmp_path)
    assert set(models.layers) == {f"{module}.weight" for module in modules}
    assert all(info.n_models == 7 for info in models.layers.values())
    assert (models.groups == 0).all()
    for i in (0, 77, 127):
        weights = models[f"{modules[i]}.weight"]
        assert (np.asarray(weights) == i).all()


def test_heads_saved_with_an_adapter_are_layers_of_their_own(tmp_path):
    up, down = factors()
    head = torch.randn(3, 6)
    tensors = {
        "base_model.model.bert.q.lora_A.weight": down,
        "base_model.model.bert.q.lora_B.weight": up,
        "base_model.model.classifier.weight": head,
    }
    models = open_models(write(tmp_path, tensors, config={"lora_alpha": 4}))
    assert set(models.layers) == {"bert.q.weight", "classifier.weight"}
    assert not models["classifier.weight"].is_low_rank
    np.testing.assert_array_equal(models["classifier.weight"][0], head)


@pytest.mark.parametrize(
    "kind, key",
    [
        ("OFT", "oft_blocks"),
        ("AdaLoRA", "lora_E"),
        ("IA3", "ia3_l"),
        ("spelling is not known", "lora_left.weight"),
        ("GLoRA|spelling is not known", "a1.weight"),
        ("LoHa", "hada_w1_a"),
        ("learnt scalar", "scalar"),
    ],
)
def test_other_adapters_are_refused_by_name(tmp_path, kind, key):
    up, down = factors()
    module = "lora_unet_mid_block_x"
    tensors = {f"{module}.{key}": torch.randn(2, 2)}
    if key in ("scalar", "lora_E"):
        tensors |= {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down}
    write(tmp_path, tensors)
    with pytest.raises(WeightFileError, match=rf"(?s)adapter_model.*({kind}|w1_b)"):
        open_models(tmp_path)
    if kind == "LoHa":
        return
    # Beside layers that are read, only this one is not.
    keys = FAMILIES["kohya unet"]
    models = open_models(write(tmp_path, {**tensors, keys[0]: down, keys[1]: up}))
    assert_close(models[keys[3]][0], (up @ down).numpy())
    (refused,) = models.layers.keys() - {keys[3]}
    with pytest.raises(UnsupportedFormatError, match=kind):
        models[refused]


@pytest.mark.parametrize(
    "key", [f"{PEFT_MODULE}.lora_magnitude_vector", f"{PEFT_MODULE}.dora_scale"]
)
def test_dora_warns(tmp_path, key):
    down_key, up_key, _, name, _ = FAMILIES["peft in a model"]
    up, down = factors()
    tensors = {down_key: down, up_key: up, key: torch.ones(6)}
    write(tmp_path, tensors, config={"lora_alpha": 2})
    with pytest.warns(UserWarning, match="DoRA"):
        models = open_models(tmp_path)
    assert list(models.layers) == [name]


def test_incomplete_and_ill_fitting_pairs(tmp_path):
    down_key, up_key, *_ = FAMILIES["kohya unet"]
    up, _ = factors()
    with pytest.raises(CorruptFileError, match="no down"):
        open_models(write(tmp_path / "a", {up_key: up}), on_error="raise")
    with pytest.raises(CorruptFileError, match="do not fit"):
        tensors = {up_key: up, down_key: torch.randn(3, 5)}
        open_models(write(tmp_path / "b", tensors), on_error="raise")


@pytest.mark.parametrize("pattern", ["(a+)+b", "(.*)*", ".*.*.*.*.*.*x", "x" * 501])
def test_patterns_that_could_run_for_ever_do_not_run(tmp_path, pattern):
    down_key, up_key, *_ = FAMILIES["peft file"]
    up, down = factors()
    config = {"lora_alpha": 8, "alpha_pattern": {pattern: 4}}
    with pytest.raises(UnsupportedFormatError, match="too involved"):
        open_models(
            write(tmp_path, {up_key: up, down_key: down}, config=config),
            on_error="raise",
        )


# ------------------------------------------------------------- the libraries themselves


class TinyModel(torch.nn.Module):
    """Every kind of layer that LoRA adapts."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(3))
        self.conv = torch.nn.Conv2d(2, 4, 3)
        self.head = torch.nn.Linear(6, 2)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


PEFT_CONFIGS = {
    "plain": {"r": 4, "lora_alpha": 6},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"layers.1": 2, "conv": 3},
        "alpha_pattern": {"layers.1": 5, r"^layers\.2": 7, "conv": 2},
    },
    "rslora patterns": {
        "r": 4,
        "use_rslora": True,
        "rank_pattern": {"1": 2},
        "alpha_pattern": {"1": 5},
    },
}


def peft_deltas(model):
    """Merge as the library does, and subtract the base."""
    deltas = {}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
            name = name.removeprefix("base_model.model.")
            before = module.base_layer.weight.detach().clone()
            delta = module.get_delta_weight("default").detach()
            assert delta.shape == before.shape
            deltas[f"{name}.weight"] = delta.numpy()
    return deltas


@pytest.mark.parametrize("kind", PEFT_CONFIGS)
def test_peft_itself(tmp_path, kind):
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(
        target_modules=["embed", "conv", "layers.0", "layers.1", "layers.2"],
        modules_to_save=["head"],
        init_lora_weights=False,
        **PEFT_CONFIGS[kind],
    )
    model = peft.get_peft_model(TinyModel(), config)
    model.save_pretrained(tmp_path / "file", save_embedding_layers=False)
    deltas, expected = opened(tmp_path / "file"), peft_deltas(model)
    assert expected.keys() <= deltas.keys() and len(expected) == 5
    assert set(deltas) - set(expected) == {"head.weight", "head.bias"}
    for name, delta in expected.items():
        assert_close(deltas[name], delta)

    # Unmerged, inside the model: the adapter's name is in the keys.
    state = model.base_model.model.state_dict()
    config = json.loads((tmp_path / "file" / "adapter_config.json").read_text())
    write(tmp_path / "model", state, config=config, name="model")
    unmerged = opened(tmp_path / "model")
    for name, delta in expected.items():
        assert_close(unmerged[name], delta)
    assert "layers.0.base_layer.weight" in unmerged


# peft asks transformers for an attribute that transformers deprecates.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("use_rslora", [False, True])
def test_fan_in_fan_out_of_a_real_gpt2(tmp_path, use_rslora):
    import peft
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11))
    config = peft.LoraConfig(
        target_modules=["c_attn"],
        fan_in_fan_out=True,
        init_lora_weights=False,
        use_rslora=use_rslora,
        r=3,
        lora_alpha=7,
    )
    model = peft.get_peft_model(model, config)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    expected = peft_deltas(model)
    deltas = opened(tmp_path)
    assert deltas.keys() == expected.keys()
    assert deltas["h.0.attn.c_attn.weight"].shape == (8, 24)
    for name, delta in expected.items():
        assert_close(deltas[name], delta)


@pytest.fixture(scope="module")
def tiny_unet():
    import diffusers

    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def diffusers_deltas(unet, folder):
    """Load a file as diffusers does, fuse it, and subtract the base."""
    import copy

    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    unet = copy.deepcopy(unet)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    state, alphas = Loader.lora_state_dict(
        str(folder),
        unet_config=unet.config,
        weight_name="pytorch_lora_weights.safetensors",
    )
    Loader.load_lora_into_unet(state, network_alphas=alphas, unet=unet)
    unet.fuse_lora()
    unet.unload_lora()
    after = unet.state_dict()
    return {
        f"unet.{key}": (after[key] - value).numpy()
        for key, value in before.items()
        if not torch.equal(after[key], value)
    }


def unet_adapter(unet, alpha):
    import copy

    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = copy.deepcopy(unet)
    torch.manual_seed(1)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1"]
    config = LoraConfig(
        r=3, lora_alpha=alpha, target_modules=targets, init_lora_weights=False
    )
    unet.add_adapter(config)
    state = get_peft_model_state_dict(unet)
    # Large deltas, so that subtracting the base costs no digits.
    return {key: value.detach() * 10 for key, value in state.items()}


def as_kohya(state, alpha):
    kohya = {}
    for key, value in state.items():
        module, role = re.fullmatch(r"(.+)\.lora_(A|B)\.weight", key).groups()
        module = f"lora_unet_{module.replace('.', '_')}"
        kohya[f"{module}.lora_{'down' if role == 'A' else 'up'}.weight"] = value
        kohya[f"{module}.alpha"] = torch.tensor(float(alpha))
    return kohya


def as_processors(state):
    old = {}
    for key, value in state.items():
        match = re.fullmatch(r"(.+attn\d)\.(to_\w+)(\.0)?\.lora_(A|B)\.weight", key)
        if match:
            role = "down" if match[4] == "A" else "up"
            old[f"unet.{match[1]}.processor.{match[2]}_lora.{role}.weight"] = value
    return old


@pytest.mark.parametrize("family", ["saved", "header", "kohya", "0.2x", "processors"])
def test_diffusers_itself(tmp_path, tiny_unet, family):
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    state = unet_adapter(tiny_unet, alpha=5)
    with warnings.catch_warnings():
        # diffusers warns of its own old formats.
        warnings.simplefilter("ignore")
        if family == "saved":
            Loader.save_lora_weights(tmp_path, unet_lora_layers=state)
        elif family == "header":
            metadata = {"r": 3, "lora_alpha": 5, "target_modules": ["to_q"]}
            Loader.save_lora_weights(
                tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=metadata
            )
        elif family == "kohya":
            write(tmp_path, as_kohya(state, 5), name="pytorch_lora_weights")
        elif family == "0.2x":
            renamed = {
                f"unet.{key}".replace("lora_A", "lora.down").replace(
                    "lora_B", "lora.up"
                ): value
                for key, value in state.items()
            }
            write(tmp_path, renamed, name="pytorch_lora_weights")
        else:
            write(tmp_path, as_processors(state), name="pytorch_lora_weights")
        if family == "header":
            # Its loader wants the metadata passed on; the scale is what counts.
            scale = 5 / 3
            expected = None
        else:
            expected = diffusers_deltas(tiny_unet, tmp_path)
    deltas = opened(tmp_path)
    if expected is None:
        key = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
        product = state[f"{key}.lora_B.weight"] @ state[f"{key}.lora_A.weight"]
        assert_close(deltas[f"unet.{key}.weight"], (scale * product).numpy())
        return
    assert deltas.keys() == expected.keys() and len(deltas) >= 16
    for name, delta in expected.items():
        assert_close(deltas[name], delta)
