"""What is read, converted and refused: each with its right value, and docs/files.rst.

The table of the documentation is made of these cases: ``python
tests/test_format_table.py`` writes it.
"""

import json
import pickle
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skprobex.exceptions import UnsupportedFormatError
from skprobex.files import open_models

DOCS = Path(__file__).parents[1] / "docs" / "files.rst"
START = ".. The table is written by tests/test_format_table.py.\n\n"
END = "\n.. End of the table.\n"

generator = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(shape, generator=generator)


A, B = draw(2, 8), draw(6, 2)
BA = (B.double() @ A.double()).numpy()
W = draw(6, 8)
E4M3 = W.to(torch.float8_e4m3fn)
ROWS = W.abs().amax(1, keepdim=True) / 127
CODES = (W / ROWS).round().to(torch.int8)
KERNEL, POINT, MID = draw(2, 4, 3, 3), draw(6, 2, 1, 1), draw(2, 2, 3, 3)
CONV = np.einsum("or,rihw->oihw", POINT[..., 0, 0].double(), KERNEL.double())
LOCON = np.einsum("oa,abhw,bi->oihw", B.double(), MID.double(), A.double())
LOHA = {
    f"hada_w{i}_{x}": draw(*shape)
    for i in "12"
    for x, shape in (("a", (6, 2)), ("b", (2, 8)))
}
LOHA_W = np.prod(
    [
        (LOHA[f"hada_w{i}_a"].double() @ LOHA[f"hada_w{i}_b"].double()).numpy()
        for i in "12"
    ],
    axis=0,
)
LOKR = {"lokr_w1": draw(2, 2), "lokr_w2_a": draw(3, 2), "lokr_w2_b": draw(2, 4)}
LOKR_W = np.kron(
    LOKR["lokr_w1"].double(), LOKR["lokr_w2_a"].double() @ LOKR["lokr_w2_b"].double()
)
BIAS = draw(6)
ALPHA = torch.tensor(3.0)
PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 3}
UNET = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = UNET.replace(".", "_")


class Case(NamedTuple):
    """`layers` is what comes out, or words of the refusal; `warning` is expected."""

    family: str
    what: str
    tensors: dict
    layers: dict | str
    config: dict | None = None
    warning: str | None = None


def pair(down, up, module="q", a=A, b=B, **beside):
    beside = {f"{module}.{leaf}": tensor for leaf, tensor in beside.items()}
    return {f"{module}.{down}": a, f"{module}.{up}": b, **beside}


def peft(module="base_model.model.q", a=A, b=B, **beside):
    return pair("lora_A.weight", "lora_B.weight", module, a, b, **beside)


def under(module, parts):
    return {f"{module}.{leaf}": tensor for leaf, tensor in parts.items()}


Q = {"q.weight": 1.5 * BA}
CASES = [
    Case(
        "PEFT", "``lora_A.weight``, ``lora_B.weight``, ``lora_alpha``", peft(), Q, PEFT
    ),
    Case(
        "PEFT",
        "``use_rslora``",
        peft(),
        {"q.weight": 3 / np.sqrt(2) * BA},
        {**PEFT, "use_rslora": True},
    ),
    Case(
        "PEFT",
        "``alpha_pattern``",
        peft(),
        {"q.weight": 2 * BA},
        {**PEFT, "alpha_pattern": {"q": 4}},
    ),
    Case(
        "PEFT",
        "``fan_in_fan_out``; GPT-2's modules also where it is false",
        peft("base_model.model.h.0.c_attn"),
        {"h.0.c_attn.weight": 1.5 * BA.T},
        {**PEFT, "fan_in_fan_out": False, "base_model_name_or_path": "gpt2"},
    ),
    Case(
        "PEFT",
        "unmerged, ``lora_A.default.weight`` beside ``base_layer``",
        pair("lora_A.default.weight", "lora_B.default.weight")
        | {"q.base_layer.weight": W},
        {**Q, "q.base_layer.weight": W},
        PEFT,
    ),
    Case(
        "PEFT",
        "embeddings, ``lora_embedding_A``",
        pair("lora_embedding_A", "lora_embedding_B", "base_model.model.e"),
        {"e.weight": 1.5 * BA.T},
        PEFT,
    ),
    Case(
        "PEFT",
        "``lora_bias``",
        peft() | {"base_model.model.q.lora_B.bias": BIAS},
        {**Q, "q.bias": 1.5 * BIAS.double()},
        {**PEFT, "lora_bias": True},
    ),
    Case(
        "PEFT",
        "convolutions",
        peft(a=KERNEL, b=POINT),
        {"q.weight": 1.5 * CONV},
        PEFT,
    ),
    Case(
        "PEFT",
        "heads and biases saved beside",
        peft() | {"base_model.model.head.weight": W},
        {**Q, "head.weight": W},
        PEFT,
    ),
    Case(
        "PEFT",
        "no configuration: scale 1, with a warning",
        peft(),
        {"q.weight": BA},
        None,
        "guessed to be 1",
    ),
    Case(
        "PEFT",
        "DoRA: the direction only, with a warning",
        peft() | {"base_model.model.q.lora_magnitude_vector": BIAS},
        Q,
        {**PEFT, "use_dora": True},
        "DoRA",
    ),
    Case(
        "PEFT",
        "PiSSA, OLoRA, LoftQ, CorDA: from what was left of the base, with a warning",
        peft(),
        Q,
        {**PEFT, "init_lora_weights": "pissa"},
        "PiSSA",
    ),
    Case(
        "PEFT",
        "LoHa",
        under("base_model.model.q", LOHA),
        {"q.weight": 1.5 * LOHA_W},
        {"peft_type": "LOHA", "r": 2, "alpha": 3},
    ),
    Case(
        "PEFT",
        "LoKr",
        under("base_model.model.q", LOKR),
        {"q.weight": 1.5 * LOKR_W},
        {"peft_type": "LOKR", "r": 2, "alpha": 3},
    ),
    Case(
        "PEFT",
        "grouped convolutions",
        peft(a=draw(4, 4, 3, 3), b=POINT),
        "grouped",
        PEFT,
    ),
    Case(
        "PEFT",
        "``target_parameters`` (experts)",
        peft("base_model.model.experts", draw(6, 8), draw(5, 6)),
        "target_parameters",
        {**PEFT, "target_parameters": ["experts.up"]},
    ),
    Case(
        "PEFT",
        "QALoRA, BD-LoRA, KaSA",
        peft(),
        "use_qalora",
        {**PEFT, "use_qalora": True},
    ),
    Case(
        "PEFT",
        "all other kinds of ``peft_type``",
        {"base_model.model.q.hra_u": W},
        "kind HRA",
        {"peft_type": "HRA"},
    ),
    Case(
        "PEFT",
        "all other kinds, without a configuration",
        {"base_model.model.q.newft_core": W},
        "kind is not known",
    ),
    Case(
        "diffusers",
        "``unet.`` and ``transformer.`` with ``lora_A.weight``",
        peft(UNET, alpha=ALPHA),
        {f"{UNET}.weight": 1.5 * BA},
    ),
    Case(
        "diffusers",
        "``lora.down.weight``",
        pair("lora.down.weight", "lora.up.weight", UNET),
        {f"{UNET}.weight": BA},
    ),
    Case(
        "diffusers",
        "``processor.to_q_lora.down.weight``",
        pair(
            "processor.to_q_lora.down.weight",
            "processor.to_q_lora.up.weight",
            UNET.removesuffix(".to_q"),
        ),
        {f"{UNET}.weight": BA},
    ),
    Case(
        "diffusers",
        "``lora_linear_layer.down.weight``",
        pair(
            "lora_linear_layer.down.weight",
            "lora_linear_layer.up.weight",
            "text_encoder.q",
        ),
        {"text_encoder.q.weight": BA},
    ),
    Case(
        "kohya, A1111",
        "``lora_unet_``, ``lora_te_`` with ``lora_down.weight``, ``alpha``",
        pair("lora_down.weight", "lora_up.weight", f"lora_{FLAT}", alpha=ALPHA),
        {f"{UNET}.weight": 1.5 * BA},
    ),
    Case(
        "kohya, A1111",
        "LoCon with a middle factor, ``lora_mid.weight``",
        pair(
            "lora_down.weight",
            "lora_up.weight",
            "lora_unet_conv_in",
            A[..., None, None],
            B[..., None, None],
            alpha=ALPHA,
        )
        | {"lora_unet_conv_in.lora_mid.weight": MID},
        {"unet.conv_in.weight": 1.5 * LOCON},
    ),
    Case(
        "OneTrainer, musubi",
        "``lora_transformer_``, Flux, SD3, Wan",
        pair(
            "lora_down.weight",
            "lora_up.weight",
            "lora_transformer_transformer_blocks_0_attn_to_q",
            alpha=ALPHA,
        ),
        {"transformer.transformer_blocks.0.attn.to_q.weight": 1.5 * BA},
    ),
    Case(
        "ComfyUI",
        "``diffusion_model.``, original blocks of SD and SDXL",
        peft("diffusion_model.output_blocks.5.1.proj_in", alpha=ALPHA),
        {"unet.up_blocks.1.attentions.2.proj_in.weight": 1.5 * BA},
    ),
    Case(
        "ComfyUI",
        "full differences, ``diff`` and ``diff_b``",
        {"diffusion_model.conv_in.diff": W, "diffusion_model.conv_in.diff_b": BIAS},
        {"unet.conv_in.weight": W, "unet.conv_in.bias": BIAS},
    ),
    Case(
        "ComfyUI",
        "LoRA with ``diff_b``",
        pair("lora_down.weight", "lora_up.weight", alpha=ALPHA, diff_b=BIAS),
        {**Q, "q.bias": BIAS},
    ),
    Case(
        "XLabs",
        "``processor.qkv_lora1.down.weight``",
        pair(
            "processor.qkv_lora1.down.weight",
            "processor.qkv_lora1.up.weight",
            "double_blocks.0",
        ),
        {"transformer.double_blocks.0.img_attn.qkv.weight": BA},
    ),
    Case(
        "cloneofsimo",
        "``unet:0:down``",
        {"unet:0:down": A, "unet:0:up": B},
        {"unet.0.weight": BA},
    ),
    Case(
        "LyCORIS",
        "LoHa, with its ``alpha``",
        under("lora_unet_conv_in", {**LOHA, "alpha": ALPHA}),
        {"unet.conv_in.weight": 1.5 * LOHA_W},
    ),
    Case(
        "LyCORIS",
        "LoKr, with its ``alpha``",
        under("lycoris_transformer_blocks_0_attn_to_q", {**LOKR, "alpha": ALPHA}),
        {"transformer.transformer_blocks.0.attn.to_q.weight": 1.5 * LOKR_W},
    ),
    Case(
        "LyCORIS",
        "LoKr whose parts are whole: its ``alpha`` means nothing",
        under("lora_unet_conv_in", {"lokr_w1": W, "lokr_w2": A, "alpha": ALPHA}),
        {"unet.conv_in.weight": np.kron(W.double(), A.double())},
    ),
    Case(
        "LyCORIS",
        "norms, ``w_norm`` and ``b_norm``",
        {"lora_unet_conv_in.w_norm": BIAS, "lora_unet_conv_in.b_norm": -BIAS},
        {"unet.conv_in.weight": BIAS, "unet.conv_in.bias": -BIAS},
    ),
    Case(
        "LyCORIS", "OFT, BOFT, IA3, GLoRA", {"lora_unet_conv_in.oft_blocks": W}, "OFT"
    ),
    Case(
        "MLX",
        "``lora_a``, ``lora_b``, ``scale``",
        pair("lora_a", "lora_b", "q_proj", A.T, B.T),
        {"q_proj.weight": 20 * BA},
        {"lora_parameters": {"rank": 2, "scale": 20.0}},
    ),
    Case(
        "MLX",
        "older, with an ``alpha``",
        pair("lora_a", "lora_b", "q_proj", A.T, B.T),
        {"q_proj.weight": 10 * 16 / 2 * BA},
        {"lora_parameters": {"rank": 2, "scale": 10.0, "alpha": 16}},
    ),
    Case(
        "MLX",
        "embeddings",
        pair("lora_a", "lora_b", "embed_tokens", B, A),
        {"embed_tokens.weight": 20 * BA},
        {"lora_parameters": {"rank": 2, "scale": 20.0}},
    ),
    Case(
        "MLX",
        "experts",
        pair("lora_a", "lora_b", "q", draw(3, 2, 8), draw(3, 6, 2)),
        "experts",
        {"lora_parameters": {"rank": 2, "scale": 20.0}},
    ),
    Case(
        "torchtune",
        "``lora_a.weight``, ``lora_b.weight``",
        pair("lora_a.weight", "lora_b.weight"),
        Q,
        {"r": 2, "lora_alpha": 3},
    ),
    Case(
        "loralib, LitGPT",
        "``lora_A``, ``lora_B``",
        pair("lora_A", "lora_B", alpha=ALPHA),
        Q,
    ),
    Case(
        "loralib, LitGPT",
        "merged projections",
        pair("lora_A", "lora_B", a=draw(4, 8), alpha=ALPHA),
        "merged",
    ),
    Case(
        "others",
        "factors in a spelling that is not known",
        {"q.lora_left": A, "q.lora_right": B},
        "spelling is not known",
    ),
    Case(
        "others",
        "pairs that look like factors",
        {"q.down": A, "q.up": B},
        "pair of factors",
    ),
    Case(
        "checkpoints",
        "float64, float32, float16, bfloat16",
        {"q.weight": W.bfloat16()},
        {"q.weight": W.bfloat16()},
    ),
    Case(
        "checkpoints",
        "under ``module.`` or ``_orig_mod.``",
        {"module._orig_mod.q.weight": W},
        {"q.weight": W},
    ),
    Case(
        "checkpoints",
        "fp8 with scales in any spelling, of rows or blocks",
        {"q.weight": E4M3, "q.scale_weight": ALPHA},
        {"q.weight": 3 * E4M3.float()},
    ),
    Case(
        "checkpoints",
        "int8 with ``weight_scale``",
        {"q.weight": CODES, "q.weight_scale": ROWS},
        {"q.weight": CODES * ROWS},
    ),
    Case(
        "checkpoints",
        "int8 of bitsandbytes, ``SCB``",
        {"q.weight": CODES, "q.SCB": 127 * ROWS[:, 0]},
        {"q.weight": CODES * ROWS},
    ),
    Case(
        "checkpoints",
        "int8 and fp8 of quanto",
        {"q.weight._data": CODES, "q.weight._scale": ROWS},
        {"q.weight": CODES * ROWS},
    ),
    Case(
        "checkpoints",
        "fp8 alone, unless ``plain_float8=True``",
        {"q.weight": E4M3},
        "plain_float8",
    ),
    Case(
        "checkpoints",
        "nf4 and fp4 of bitsandbytes",
        {
            "q.weight": CODES.view(torch.uint8),
            "q.weight.absmax": BIAS,
            "q.weight.quant_map": BIAS,
        },
        "nf4",
    ),
    Case(
        "checkpoints",
        "GPTQ, AWQ, HQQ, AQLM, EETQ, QuIP#",
        {"q.qweight": CODES.int(), "q.scales": W, "q.g_idx": CODES.int()},
        "GPTQ",
    ),
    Case(
        "checkpoints",
        "MXFP4, MXFP8, NVFP4, packed integers",
        {"q.w_blocks": CODES.view(torch.uint8), "q.w_scales": CODES.view(torch.uint8)},
        "MXFP4",
    ),
]


def folder_of(case, folder):
    tensors = {key: t.detach().clone().contiguous() for key, t in case.tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    if case.config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(case.config))
    return folder


def open_quietly(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_models(folder, on_error="raise")


def outcome(case, folder):
    """Open what a case writes: how it is taken, and what comes out."""
    try:
        models = open_quietly(folder_of(case, folder))
        layers = {name: models[name] for name in models.layers}
        values = {name: np.asarray(weights)[0] for name, weights in layers.items()}
    except UnsupportedFormatError as error:
        return "refused", str(error)
    is_stored = all(
        weights.is_low_rank or type(weights._handles[0].spec).__name__ == "DenseSpec"
        for weights in layers.values()
    )
    return "read" if is_stored else "converted", values


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}: {case.what}")
def test_right_value_or_refused_by_name(tmp_path, case):
    how, found = outcome(case, tmp_path)
    if isinstance(case.layers, str):
        assert how == "refused" and case.layers in found
        assert "adapter_model.safetensors" in found
        return
    assert how != "refused", found
    # Handles go to worker processes.
    models = pickle.loads(pickle.dumps(open_quietly(tmp_path)))
    assert models.layers.keys() == case.layers.keys()
    assert found.keys() == case.layers.keys()
    for name, expected in case.layers.items():
        expected = np.asarray(torch.as_tensor(expected).double())
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5)
    if case.warning is None:
        open_models(tmp_path)
    else:
        with pytest.warns(UserWarning, match=case.warning) as caught:
            open_models(tmp_path)
        assert len(caught) == 1 and "adapter_model.safetensors" in str(
            caught[0].message
        )


def table():
    """Write the table of the documentation."""
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append((case.family, case.what, outcome(case, Path(folder))[0]))
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 18 62 20", ""]
    before = None
    for family, what, how in [("family", "spelling or method", "how"), *rows]:
        shown = "" if family == before else family
        lines += [f"   * - {shown}".rstrip(), f"     - {what}", f"     - {how}"]
        before = family
    return "\n".join(lines) + "\n"


def test_the_table_of_the_documentation():
    text = DOCS.read_text()
    shown = text.partition(START)[2].partition(END)[0]
    assert shown == table(), "run python tests/test_format_table.py"


if __name__ == "__main__":
    text = DOCS.read_text()
    head, _, rest = text.partition(START)
    tail = rest.partition(END)[2]
    DOCS.write_text(f"{head}{START}{table()}{END}{tail}")
    sys.stdout.write(f"{DOCS} written.\n")
