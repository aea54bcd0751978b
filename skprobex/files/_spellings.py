"""The spellings of adapters: which part of which layer a tensor's name says it is.

Names are split at their dots and their last words looked up, so that a name costs the
same whatever it holds.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from ._deltas import DIFFERENCES, LOHA_CORES, LOHA_PARTS, LOKR_FACTORS, LOKR_PARTS

# The word that tells, the family it is of, and the part.
_MARKERS = {
    **{"lora_A": ("peft", "down"), "lora_B": ("peft", "up")},
    **{
        "lora_embedding_A": ("embedding", "down"),
        "lora_embedding_B": ("embedding", "up"),
    },
    **{
        "lora_down": ("kohya", "down"),
        "lora_up": ("kohya", "up"),
        "lora_mid": ("kohya", "mid"),
    },
    **{"lora_a": ("mlx", "down"), "lora_b": ("mlx", "up")},
    **{word: ("loha", word) for word in (*LOHA_PARTS, *LOHA_CORES)},
    **{word: ("lokr", word) for word in (*LOKR_PARTS, *LOKR_FACTORS)},
    **{word: ("difference", word) for word in DIFFERENCES},
}
_PROCESSORS = ("qkv_lora1", "qkv_lora2", "proj_lora1", "proj_lora2")

# Words that begin as these are of adapters that are not read, here as PEFT's and
# LyCORIS' users call them.
_REFUSED_STARTS = {
    **{"lora_E": "AdaLoRA", "ranknum": "AdaLoRA"},
    **{"oft_": "OFT", "boft_": "BOFT", "ia3_l": "IA3", "vera_": "VeRA"},
    **{"adamss_": "AdaMSS", "beft_": "BEFT", "c3a_": "C3A", "delora_": "DeLoRA"},
    **{"fourierft_": "FourierFT", "frod_": "FRoD", "glora_": "GLoRA"},
    **{"gralora_": "GraLoRA", "hira_": "HiRA", "hra_u": "HRA", "lily_": "Lily"},
    **{"ln_tuning_": "LN tuning", "miss_block": "MiSS", "osf_": "OSF"},
    **{"bone_": "Bone", "peanut_": "Peanut", "poly_": "Poly", "psoft_": "PSOFT"},
    **{"pvera_": "PVeRA", "randlora_": "RandLoRA", "road_": "RoAd"},
    **{"shira_": "SHiRA", "supertuning_": "Supertuning", "tinylora_": "TinyLoRA"},
    **{"unilora_": "UniLoRA", "vblora_": "VB-LoRA", "waveft_": "WaveFT"},
    **{"trainable_tokens_": "trainable tokens", "xlora_": "X-LoRA"},
    **{"prompt_embeddings": "prompt tuning", "prefix_task_": "prompt tuning"},
    **{"adaption_": "adaption prompt", "deft_": "DEFT", "shadow_": "Shadow"},
    **{"adapter_down": "bottleneck", "adapter_up": "bottleneck"},
    **{"set_weight": "replaced-weight", "on_input": "IA3 (LyCORIS)"},
}
# Ordinary words as well: only where a name says that PEFT wrote it.
_ORDINARY = ("lily_", "poly_", "road_", "shadow_", "deft_", "osf_", "bone_", "frod_")

_DORA = frozenset(("dora_scale", "lora_magnitude_vector"))
# Leaves of a module's own parameters; PEFT saves some of them beside an adapter.
_OWN_LEAVES = {
    *("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    *("gamma", "beta", "position_ids", "token_type_ids", "absmax", "quant_map"),
}
# Last words of two factors. The first pair names layers of ordinary networks, too.
_PAIRS = (("down", "up"), ("a", "b"), ("A", "B"), ("u", "v"), ("U", "V"))
_N_LAST = 3


class Part(NamedTuple):
    """What a tensor is a part of: `role` of the `family`'s layer on a `module`."""

    family: str
    module: str
    role: str
    adapter: str | None = None


def parse(name):
    """Say which part of an adapter a tensor is, by its name.

    Returns
    -------
    Part or None
        None of what is no part of an adapter that is read.

    Examples
    --------
    >>> parse("base_model.model.layers.0.q_proj.lora_A.default.weight")
    Part(family='peft', module='base_model.model.layers.0.q_proj', role='down', \
adapter='default')
    >>> parse("layers.0.q_proj.weight") is None
    True
    """
    if ":" in name:
        return _numbered(name)
    parts = name.split(".")
    for back in range(1, min(_N_LAST, len(parts) - 1) + 1):
        found = _MARKERS.get(parts[-back])
        if found is not None:
            module, tail = ".".join(parts[:-back]), parts[len(parts) - back + 1 :]
            return _place(*found, module, tail)
    if parts[-1] != "weight":
        return None
    if len(parts) > 2 and parts[-2] in ("down", "up"):
        owner = parts[-3]
        if owner in ("lora", "lora_linear_layer") and len(parts) > 3:
            family = "diffusers" if owner == "lora" else "linear"
            return Part(family, ".".join(parts[:-3]), parts[-2])
        if owner.endswith("_lora") or owner in _PROCESSORS:
            return Part("processor", ".".join(parts[:-2]), parts[-2])
    if len(parts) == 2 and parts[0].startswith("lora_"):
        for role in ("down", "up"):
            if parts[0].endswith(f"_lora_{role}"):
                return Part("converted", parts[0].removesuffix(f"_lora_{role}"), role)
    return None


def _place(family, role, module, tail):
    """Read what follows the word that tells: "weight", "bias", an adapter's name."""
    *adapters, leaf = tail or [None]
    if family in ("loha", "lokr"):
        return Part(family, module, role, leaf) if not adapters else None
    if family == "difference":
        return Part(family, module, role) if not tail else None
    if family == "embedding":
        return Part(family, module, role, leaf) if not adapters else None
    if not tail and family in ("peft", "mlx"):
        return Part("bare" if family == "peft" else "mlx", module, role)
    if len(adapters) > 1 or leaf not in ("weight", "bias"):
        return None
    if family == "mlx":
        family = "torchtune"
    if leaf == "bias":
        if role != "up":
            return None
        role = "bias"
    return Part(family, module, role, adapters[0] if adapters else None)


def _numbered(name):
    component, *rest = name.split(":")
    is_known = component == "unet" or component.startswith("text_encoder")
    if not is_known or len(rest) != 2 or rest[1] not in ("up", "down"):
        return None
    number = rest[0]
    if not (number.isascii() and number.isdigit() and len(number) < 6):
        return None
    return Part("numbered", f"{component}:{int(number)}", rest[1])


def is_of_dora(name):
    """Say whether a tensor is a magnitude that DoRA keeps beside the factors."""
    return not _DORA.isdisjoint(name.split(".")[-_N_LAST:])


def refusal(name):
    """Say what kind of adapter that is not read a tensor is of, by its name.

    Returns
    -------
    (kind, module) or (None, None)
    """
    is_of_peft = name.startswith("base_model.")
    parts = name.split(".")
    # Of PEFT's names any word may tell: some kinds keep whole modules.
    n_words = len(parts) if is_of_peft else min(_N_LAST, len(parts))
    for back in range(n_words, 0, -1):
        kind, is_ordinary = _kind_of(parts[-back])
        if kind and (is_of_peft or not is_ordinary):
            return f"of a {kind} adapter", ".".join(parts[:-back]) or parts[-back]
    small = name.lower()
    if ("lora" in small or "lycoris" in small) and any(map(_is_of_lora, parts)):
        return "of an adapter whose spelling is not known", name
    if name.startswith("base_model.model.") and parts[-1] not in _OWN_LEAVES:
        return "of an adapter of PEFT's whose kind is not known", name
    return None, None


# Models are made of few words.
@lru_cache(maxsize=1024)
def _kind_of(word):
    """Return the kind that a word is of, and whether it may be another word as well."""
    for start, kind in _REFUSED_STARTS.items():
        if word.startswith(start):
            return kind, start in _ORDINARY
    return None, False


def _is_of_lora(word):
    small = word.lower()
    at = small.find("lora")
    # Flora, exploration: words of their own.
    return small.startswith("lycoris_") or (
        at >= 0 and small[max(0, at - 1) : at] not in ("f", "p")
    )


def lookalikes(tensors):
    """Find pairs of plain tensors that look like the factors of a low-rank layer.

    Parameters
    ----------
    tensors : dict of str to TensorRef

    Returns
    -------
    dict of str to str
        What the layer would be called, by the name of each of the two.
    """
    found = {}
    for name, ref in tensors.items():
        whole, _, leaf = name.rpartition(".")
        last = whole if leaf == "weight" else name
        word = last[max(last.rfind("."), last.rfind("_")) + 1 :]
        for first, second in _PAIRS:
            if word != first or word == last:
                continue
            stem = last[: -len(word)]
            tail = ".weight" if leaf == "weight" else ""
            other = tensors.get(f"{stem}{second}{tail}")
            has_biases = all(f"{stem}{w}.bias" in tensors for w in (first, second))
            if other is None or has_biases:
                continue
            if _may_be_factors(ref.info, other.info, first == "down"):
                module = stem.rstrip("._")
                found[name] = found[other.info.name] = module
    return found


def _may_be_factors(down, up, may_be_layers):
    if not (down.dtype[0] in "FB" and up.dtype[0] in "FB"):
        return False
    if len(down.shape) < 2 or len(up.shape) < 2:
        return False
    a = (down.shape[0], math.prod(down.shape[1:]))
    b = (up.shape[0], math.prod(up.shape[1:]))
    for (d_out, r), (inner, d_in) in ((b, a), (a, b)):
        if r == inner and 0 < r < min(d_out, d_in):
            # A block that widens and narrows again has such shapes, too.
            is_block = may_be_layers and d_out == d_in and 8 * r > d_out
            return not is_block
    return False
