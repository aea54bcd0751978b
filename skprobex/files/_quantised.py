"""Tensors that are codes of a quantised weight, and what stands beside them.

Where the weight is the codes times a scale, it is read so; where it is not, the layer
is refused by its method, and its scales are not taken for layers.
"""

from __future__ import annotations

from typing import NamedTuple

from ._recipes import DenseSpec, RefusedSpec, ScaledSpec
from ._safetensors import FLOAT8, TORCH_DTYPES

# I64 and BOOL are indices and masks; all else that is no float may be codes.
_NO_CODES = {"F64", "F32", "F16", "BF16", "I64", "BOOL"}
_FLOATS = {"F64", "F32", "F16", "BF16"}
# What the names of tensors that stand beside codes contain, in small letters.
_BESIDE = (
    *("scale", "absmax", "scb", "zero", "quant_", "codebook", "g_idx", "shift"),
    *("weight_shape", "weight_format", "bitsandbytes", "biases", "lut", "nbits"),
    *("group_size", "perm"),
)
# Of them, those that say nothing of the weight.
_OF_ACTIVATIONS = {
    *("input_scale", "scale_input", "output_scale", "input_scale_inv"),
    *("input_global_scale", "k_scale", "v_scale", "q_scale", "prob_scale"),
    *("activation_scale", "act_scale", "input_zero_point"),
}
_SUFFIXES = (
    *("_scale_inv", "_scale_2", "_scales", "_scale", "_zero_point", "_absmax"),
    *("_blocks", "_packed", "_quant_map", "_codes"),
)
# Leaves of a layer's weight, whatever they are called.
_OF_WEIGHT = {
    *("qweight", "qzeros", "scales", "g_idx", "SCB", "scale_weight", "scale", "zero"),
    *("W_q", "codes", "codebooks", "Qidxs", "biases", "perm", "nbits", "group_size"),
    *("wscales", "zeros", "lut", "input_scale", "scale_input", "weight_format"),
    *("output_scale", "k_scale", "v_scale", "q_scale", "prob_scale", "act_scale"),
    *("input_scale_inv", "input_global_scale", "activation_scale", "shift"),
    *("input_zero_point", "zero_point", "pre_quant_scale"),
}
_MEND = "Use the bf16 or fp16 checkpoint of this model, or dequantise it and save it."


class _Leaf(NamedTuple):
    name: str  # after the module's
    tensor: str  # whole
    ref: object


def find_quantised(tensors, plain_float8):
    """Find the quantised layers among plain tensors.

    Parameters
    ----------
    tensors : dict of str to TensorRef
    plain_float8 : bool
        Whether 8-bit floats without scales are read as they are.

    Returns
    -------
    specs : dict of str to spec
        By the name of the layer's weight.
    used : set of str
        Names of all the tensors that are part of them.
    """
    specs, used = {}, set()
    if _NO_CODES.issuperset(ref.info.dtype for ref in tensors.values()):
        return specs, used
    groups = {}
    for name, ref in tensors.items():
        module, leaf = _split(name)
        groups.setdefault((module, _base(leaf)), []).append(_Leaf(leaf, name, ref))
    for (module, base), leaves in groups.items():
        codes = [
            leaf
            for leaf in leaves
            if leaf.ref.info.dtype not in _NO_CODES and not _is_beside(leaf.name)
        ]
        beside = [leaf for leaf in leaves if _is_beside(leaf.name)]
        if not codes:
            continue
        name = f"{module}.{base}" if module else base
        spec = None
        if beside:
            spec = _read_or_refuse(name, codes, beside, plain_float8)
        elif codes[0].ref.info.dtype in FLOAT8 and plain_float8:
            spec = DenseSpec(codes[0].ref, is_plain=True)
            name = codes[0].tensor
        if spec is not None:
            specs[name] = spec
            used.update(leaf.tensor for leaf in (*codes, *beside))
    modules = {module for module, base in groups if f"{module}.{base}" in specs}
    for module in modules:
        # Of a parameter that is not called weight, and no layers either.
        for leaf in groups.get((module, "weight"), ()):
            if leaf.name in _OF_ACTIVATIONS:
                used.add(leaf.tensor)
    # A mark of ComfyUI that the file holds scaled 8-bit floats.
    used |= {"scaled_fp8"} & tensors.keys()
    return specs, used


def _split(name):
    """Split a name into a module's and the rest, which may have dots itself."""
    start = f".{name}".find(".weight.")
    if start >= 0:
        return name[: max(0, start - 1)], name[start:]
    module, _, leaf = name.rpartition(".")
    return module, leaf


def _base(leaf):
    """Name the parameter that a leaf is of."""
    if leaf in _OF_WEIGHT or leaf.startswith("weight"):
        return "weight"
    for suffix in _SUFFIXES:
        if leaf.endswith(suffix) and leaf != suffix:
            return leaf.removesuffix(suffix)
    return leaf


def _is_beside(leaf):
    small = leaf.lower()
    return any(word in small for word in _BESIDE)


def _read_or_refuse(name, codes, beside, plain_float8):
    if len(codes) == 1 and (codes[0].ref.info.dtype in (*FLOAT8, "I8")):
        of_weight = [leaf for leaf in beside if leaf.name not in _OF_ACTIVATIONS]
        layout = [leaf for leaf in of_weight if leaf.name == "weight_format"]
        scales = [leaf for leaf in of_weight if leaf.name != "weight_format"]
        if not scales and codes[0].ref.info.dtype in FLOAT8:
            return DenseSpec(codes[0].ref, plain_float8)
        if len(scales) == 1 and _is_product(codes[0], scales[0]):
            is_scb = scales[0].name == "SCB"
            return ScaledSpec(
                codes[0].ref,
                scales[0].ref,
                1 / 127 if is_scb else 1.0,
                layout[0].ref if layout and is_scb else None,
            )
    kind = _method(codes, beside)
    return RefusedSpec(name, f"quantised ({kind})", _MEND, codes[0].ref.file)


def _is_product(codes, scale):
    """Whether the weight is the codes times the scale, to go by the names."""
    base = codes.name.removesuffix("._data")
    names = {f"{base}_scale_inv", f"{base}_scale", f"{base}.scale", f"{base}._scale"}
    if base == "weight":
        names |= {"scale_weight", "scale"}
        if codes.ref.info.dtype == "I8":
            names.add("SCB")
    else:
        names.add("weight_scale")
    return scale.name in names and scale.ref.info.dtype in _FLOATS


def _method(codes, beside):
    """Name the method, as its users do."""
    names = {leaf.name for leaf in (*codes, *beside)}
    text = " ".join(names).lower()
    dtype = codes[0].ref.info.dtype
    shapes = {leaf.name: leaf.ref.info.shape for leaf in (*codes, *beside)}
    dtypes = {leaf.ref.info.dtype for leaf in beside}
    if "absmax" in text or "bitsandbytes" in text or "quant_map" in text:
        found = [kind for kind in ("nf4", "fp4") if f"bitsandbytes__{kind}" in text]
        return f"bitsandbytes {found[0] if found else '4-bit: nf4 or fp4'}"
    if "qweight" in names:
        if "g_idx" in names:
            return "GPTQ"
        widths = [shapes.get(name, ())[-1:] for name in ("qweight", "scales")]
        return "GPTQ" if widths[0] == widths[1] else "AWQ"
    for word, method in _METHODS.items():
        if word in names:
            return method
    if any(leaf.name.endswith("_blocks") for leaf in codes):
        return "MXFP4"
    if any(leaf.name.endswith("_scale_2") for leaf in beside) or (
        dtype == "U8" and dtypes & set(FLOAT8)
    ):
        return "NVFP4"
    if dtype == "U32":
        return "packed integers, as MLX writes them"
    if dtype in FLOAT8 and not dtypes & _FLOATS:
        return "MXFP8: scales of another type than float"
    if "zero" in text or "shift" in text:
        return "integers with zero points"
    if dtype not in TORCH_DTYPES:
        return f"{dtype} beside scales"
    if dtype in FLOAT8:
        return f"{dtype} beside {', '.join(sorted(leaf.name for leaf in beside))}"
    return f"{dtype} integers beside {', '.join(sorted(leaf.name for leaf in beside))}"


_METHODS = {
    "weight_packed": "packed integers, as compressed-tensors writes them",
    "W_q": "HQQ",
    "codes": "AQLM",
    "Qidxs": "QuIP#",
    "weight_scales": "EETQ",
}
