"""The same layer under one name, however a family of adapters spells it."""

from __future__ import annotations

from functools import lru_cache

# kohya writes "_" for ".": these parts of module names have one of their own. Longer
# ones are tried first.
_COMPOUND = """
down_blocks up_blocks mid_block transformer_blocks single_transformer_blocks
single_blocks double_blocks time_embedding add_embedding time_emb_proj conv_in conv_out
conv_shortcut conv_norm_out proj_in proj_out to_q to_k to_v to_out add_q_proj add_k_proj
add_v_proj to_add_out linear_1 linear_2 text_model self_attn q_proj k_proj v_proj
out_proj o_proj final_layer_norm layer_norm1 layer_norm2 token_embedding
position_embedding position_ids text_projection img_attn txt_attn img_mlp txt_mlp
img_mod txt_mod x_embedder context_embedder time_text_embed guidance_embedder
text_embedder timestep_embedder norm1_context ff_context proj_mlp img_in txt_in
time_in vector_in guidance_in in_layer out_layer final_layer adaLN_modulation
norm_out joint_blocks context_block x_block input_blocks output_blocks middle_block
in_layers out_layers emb_layers skip_connection time_embed label_emb cross_attn k_img
v_img norm_q norm_k norm_k_img patch_embedding text_embedding time_projection
img_emb layer_norm wi_0 wi_1 individual_token_refiner c_embedder input_embedder
norm_added_k norm_added_q
""".split()
_SIMPLE = """
attentions resnets attn attn1 attn2 ff net proj norm norm1 norm2 norm3 linear linear1
linear2 conv conv1 conv2 downsamplers upsamplers embeddings encoder layers mlp fc1 fc2
qkv lin modulation block op lora out blocks ffn q k v o head layer SelfAttention
DenseReluDense wi wo fc0 refiner
""".split()
_VOCABULARY = {tuple(word.split("_")) for word in _COMPOUND + _SIMPLE}
_LONGEST = max(map(len, _VOCABULARY))

_COMPONENTS = {
    "unet": "unet",
    "te": "text_encoder",
    "te1": "text_encoder",
    "te2": "text_encoder_2",
    "te3": "text_encoder_3",
    "transformer": "transformer",
}
# What wraps a model and is no part of it, in front of a name or within it.
_WRAPPERS = ("base_model.model.", "_orig_mod.", "module.")
_WITHIN = ("_orig_mod", "base_layer")
# Components as the original implementations and ComfyUI call them.
_ORIGINAL = {
    "model.diffusion_model.": "unet.",
    "diffusion_model.": "unet.",
    "control_model.": "controlnet.",
    "cond_stage_model.transformer.": "text_encoder.",
    "conditioner.embedders.0.transformer.": "text_encoder.",
    "text_encoders.clip_l.transformer.": "text_encoder.",
    "text_encoders.clip_g.transformer.": "text_encoder_2.",
}
_ORIGINAL_STARTS = tuple(_ORIGINAL)
# First words of modules that only a U-Net has, and that only a transformer has.
_OF_UNET = set(
    "down_blocks up_blocks mid_block conv_in conv_out time_embedding add_embedding "
    "input_blocks output_blocks middle_block time_embed label_emb".split()
)
OF_TRANSFORMER = set(
    "double_blocks single_blocks transformer_blocks single_transformer_blocks "
    "joint_blocks".split()
)
# These too, where the component is called a U-Net in front of them.
_OF_TRANSFORMER_CALLED_UNET = OF_TRANSFORMER | set(
    "blocks layers img_in txt_in time_in vector_in guidance_in final_layer x_embedder "
    "context_embedder time_text_embed patch_embedding text_embedding time_projection "
    "head".split()
)

# In a U-Net of the original implementation blocks are numbered through.
_RESNET_PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
# What attention processors adapt; XLabs' are of the two streams of a double block.
_PROCESSOR_PARTS = {
    "to_out_lora": "to_out.0",
    "qkv_lora1": "img_attn.qkv",
    "proj_lora1": "img_attn.proj",
    "qkv_lora2": "txt_attn.qkv",
    "proj_lora2": "txt_attn.proj",
}


# A module's name is asked for several times in a row.
@lru_cache(maxsize=64)
def unwrapped(name):
    """Take off a name what only wraps the model: compilers, parallel training, PEFT.

    Examples
    --------
    >>> unwrapped("module._orig_mod.layers.0.base_layer.bias")
    'layers.0.bias'
    """
    while name.startswith(_WRAPPERS):
        for prefix in _WRAPPERS:
            name = name.removeprefix(prefix)
    if any(word in name for word in _WITHIN):
        name = ".".join(part for part in name.split(".") if part not in _WITHIN)
    return name


def canonical_module(module, unet="unet"):
    """Name a module as its model does, from a dotted name in an adapter.

    Parameters
    ----------
    module : str
    unet : str, default="unet"
        The component that blocks of a U-Net without one belong to: a ControlNet has
        such blocks, too.

    Examples
    --------
    >>> canonical_module("base_model.model.model.layers.0.self_attn.q_proj")
    'model.layers.0.self_attn.q_proj'
    >>> canonical_module("down_blocks.0.attentions.0.attn1.processor.to_out_lora")
    'unet.down_blocks.0.attentions.0.attn1.to_out.0'
    >>> canonical_module("diffusion_model.double_blocks.0.img_attn.qkv")
    'transformer.double_blocks.0.img_attn.qkv'
    >>> canonical_module("unet.output_blocks.5.1.proj_in")
    'unet.up_blocks.1.attentions.2.proj_in'
    """
    module = unwrapped(module)
    if module.startswith(_ORIGINAL_STARTS):
        prefix = next(filter(module.startswith, _ORIGINAL))
        module = _ORIGINAL[prefix] + module.removeprefix(prefix)
    head, _, last = module.rpartition(".")
    if last.endswith("_lora") or last in _PROCESSOR_PARTS:
        part = _PROCESSOR_PARTS.get(last, last.removesuffix("_lora"))
        if last == "proj_lora" and "single_blocks." in head:
            part = "linear2"
        module = f"{head.removesuffix('.processor')}.{part}" if head else part
    first, _, rest = module.partition(".")
    if first in ("unet", "controlnet"):
        return _of_unet(first, rest)
    if first in _OF_UNET:
        return _of_unet(unet, module)
    if first in OF_TRANSFORMER:
        return f"transformer.{module}"
    if first.startswith("controlnet_"):
        return f"controlnet.{module}"
    return module


def _of_unet(component, rest):
    """Name a module of what is called a U-Net."""
    if rest.partition(".")[0] in _OF_TRANSFORMER_CALLED_UNET:
        return f"transformer.{rest}"
    return f"{component}.{_renumber(rest)}"


def split_kohya(module):
    """Split ``lora_te_text_model_...`` into a component and the rest, with its "_".

    Returns
    -------
    (component, rest) or None
        None if it is no such name.

    Examples
    --------
    >>> split_kohya("lora_te2_text_model_encoder_layers_0_mlp_fc1")
    ('text_encoder_2', 'text_model_encoder_layers_0_mlp_fc1')
    """
    prefix, _, rest = module.partition("_")
    if prefix not in ("lora", "lycoris") or "." in module or not rest:
        return None
    word, _, after = rest.partition("_")
    component = _COMPONENTS.get(word) if after else None
    if component is None:
        # LyCORIS names no component where it wraps one model.
        return ("unet", rest) if prefix == "lycoris" else None
    if component == "transformer":
        # Its blocks may be called so without a component in front of them.
        return component, rest if after.startswith("blocks_") else after
    # Converted twice: the first conversion left its own prefix and suffixes.
    rest = after.removeprefix(f"{component}_").replace("_processor_", "_")
    if rest.endswith("_to_out"):
        rest += "_0"
    return component, rest


def dotted(component, underscored, known):
    """Give a kohya name its dots back.

    Parameters
    ----------
    component, underscored : str
        As `split_kohya` returns them.
    known : dict of str to str
        Dotted module names of the other files of the collection, keyed by
        `underscore` of them.

    Returns
    -------
    str
        The name of another file if there is one that reads the same; else what the
        vocabulary of diffusers and CLIP makes of it; else the name with its
        underscores, for a wrong dot would be worse than none.

    Examples
    --------
    >>> dotted("unet", "down_blocks_0_attentions_1_proj_in", {})
    'unet.down_blocks.0.attentions.1.proj_in'
    >>> dotted("unet", "input_blocks_4_1_proj_in", {})
    'unet.down_blocks.1.attentions.0.proj_in'
    >>> dotted("unet", "double_blocks_0_img_attn_qkv", {})
    'transformer.double_blocks.0.img_attn.qkv'
    >>> dotted("unet", "some_new_thing_3", {})
    'unet.some_new_thing_3'
    """
    spelled = _spell(underscored)
    if spelled is not None and component == "unet":
        name = _of_unet(component, spelled)
    else:
        name = f"{component}.{spelled or underscored}"
    plain = underscore(name)
    if spelled is None and component == "unet":
        # Unknown words of a transformer are called a U-Net's, too.
        plain = next(
            (p for p in (plain, f"transformer_{underscored}") if p in known), plain
        )
    return known.get(plain, name)


def underscore(name):
    """Return a name as kohya would write it."""
    return name.replace(".", "_")


def _spell(underscored):
    parts, words, start = underscored.split("_"), [], 0
    while start < len(parts):
        for length in range(min(_LONGEST, len(parts) - start), 0, -1):
            word = tuple(parts[start : start + length])
            if word in _VOCABULARY or (length == 1 and _is_number(word[0])):
                words.append("_".join(word))
                start += length
                break
        else:
            return None
    return ".".join(words)


def _is_number(text):
    return text.isascii() and text.isdigit() and len(text) < 6


def _renumber(name):
    """Turn the original U-Net's block numbers into those of diffusers."""
    if name in _UNET_ENDS:
        return _UNET_ENDS[name]
    kind, *parts = name.split(".")
    if kind == "middle_block" and len(parts) > 1 and _is_number(parts[0]):
        position, rest = int(parts[0]), ".".join(parts[1:])
        block = "mid_block"
        # resnet, attention, resnet
        part = "attentions.0" if position == 1 else f"resnets.{position // 2}"
    elif kind in ("input_blocks", "output_blocks") and len(parts) > 2:
        if not all(map(_is_number, parts[:2])):
            return name
        number, position, rest = int(parts[0]), int(parts[1]), ".".join(parts[2:])
        if kind == "input_blocks":
            if number == 0:
                return name
            # Two resnets and a downsampler to a block, after the first convolution.
            level, index = divmod(number - 1, 3)
            block = f"down_blocks.{level}"
            if rest == "op":
                return f"{block}.downsamplers.0.conv"
        else:
            level, index = divmod(number, 3)
            block = f"up_blocks.{level}"
            if rest == "conv":
                return f"{block}.upsamplers.0.conv"
        part = f"{'resnets' if position == 0 else 'attentions'}.{index}"
    else:
        return name
    if part.startswith("resnets"):
        rest = _RESNET_PARTS.get(rest, rest)
    return f"{block}.{part}.{rest}"


# Transformer blocks of Stable Diffusion 1 and 2 in the order of the U-Net's modules,
# where the middle block comes last.
_SD_BLOCKS = [
    *(f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)),
    *(f"up_blocks.{i}.attentions.{j}" for i in range(1, 4) for j in range(3)),
    "mid_block.attentions.0",
]
_CLIP_PARTS = ("k_proj", "v_proj", "q_proj", "out_proj")


def numbered_modules(component, shapes):
    """Name the layers of an adapter that only numbers them (``unet:<i>:up``).

    Parameters
    ----------
    component : str
        "unet" or "text_encoder".
    shapes : list of (d_out, d_in)
        Of the layers, in order.

    Returns
    -------
    list of str
        Names of Stable Diffusion's modules if their count and shapes fit it, else
        the component and the number.
    """
    names = None
    if component == "unet":
        names = _sd_unet_names(shapes)
    elif len(shapes) % 4 == 0 and all(d_out == d_in for d_out, d_in in shapes):
        names = [
            f"text_model.encoder.layers.{i // 4}.self_attn.{_CLIP_PARTS[i % 4]}"
            for i in range(len(shapes))
        ]
    if names is None:
        names = [str(i) for i in range(len(shapes))]
    return [f"{component}.{name}" for name in names]


def _sd_unet_names(shapes):
    per_block, rest = divmod(len(shapes), len(_SD_BLOCKS))
    if rest or per_block not in (8, 9):
        return None
    names = []
    for number, block in enumerate(_SD_BLOCKS):
        layers = shapes[number * per_block : (number + 1) * per_block]
        width = layers[0][1]
        start, attentions = 0, []
        while start < per_block:
            d_out, d_in = layers[start]
            if per_block == 9 and (d_out, d_in) == (8 * width, width):
                attentions.append(None)
                names.append(f"{block}.transformer_blocks.0.ff.net.0.proj")
                start += 1
                continue
            group = layers[start : start + 4]
            # Cross-attention takes its keys and values from the text, whose width
            # is another one.
            is_cross = len(group) > 1 and group[1][1] != width
            inner = group[1][1] if is_cross else width
            expected = [(width, width), (width, inner), (width, inner), (width, width)]
            which = "attn2" if is_cross else "attn1"
            if group != expected or which in attentions:
                return None
            attentions.append(which)
            names += [
                f"{block}.transformer_blocks.0.{which}.{part}"
                for part in ("to_q", "to_k", "to_v", "to_out.0")
            ]
            start += 4
    return names
