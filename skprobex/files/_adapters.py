"""Find the layers in a model's tensors: plain ones, and the many spellings of LoRA.

Every family says the same, ``delta = scale * (up @ down)``, under other keys. Here is
one table of keys, one rule for the scale, and one name per layer.
"""

from __future__ import annotations

import json
import math
import re
from typing import NamedTuple

from ..exceptions import CorruptFileError, UnsupportedFormatError
from ._module_names import canonical_module, numbered_modules, split_kohya
from ._recipes import LowRankSpec, RefusedSpec, dense_spec
from ._safetensors import FLOAT8, scale_names

# Key pattern by family. `module` and `role`, sometimes `adapter`.
_FAMILY_PATTERNS = [
    (
        "peft",
        r"(?P<module>.+)\.lora_(?P<role>[AB])(\.(?P<adapter>[^.]+))?\.weight",
    ),
    (
        "embedding",
        r"(?P<module>.+)\.lora_embedding_(?P<role>[AB])(\.(?P<adapter>[^.]+))?",
    ),
    ("diffusers", r"(?P<module>.+)\.lora\.(?P<role>down|up)\.weight"),
    ("processor", r"(?P<module>.+\.processor\.\w+_lora)\.(?P<role>down|up)\.weight"),
    ("linear", r"(?P<module>.+)\.lora_linear_layer\.(?P<role>down|up)\.weight"),
    ("numbered", r"(?P<module>(unet|text_encoder\w*):\d+):(?P<role>down|up)"),
    ("kohya", r"(?P<module>.+)\.lora_(?P<role>down|up)\.weight"),
    ("converted", r"(?P<module>lora_[^.]+)_lora_(?P<role>down|up)\.weight"),
]
_FAMILIES = [(family, re.compile(pattern)) for family, pattern in _FAMILY_PATTERNS]
_IS_UP = {"A": False, "B": True, "down": False, "up": True}

_REFUSED_PATTERNS = [
    ("LoHa", r"\.hada_\w+(\..+)?$"),
    ("LoKr", r"\.lokr_\w+(\..+)?$"),
    ("LoCon with a middle factor", r"\.lora_mid\.weight$"),
    ("OFT", r"\.(oft_\w+|boft_\w+)(\..+)?$"),
    ("full-difference", r"\.diff(_b)?$"),
    ("AdaLoRA", r"\.(lora_E|ranknum)(\..+)?$"),
    ("AdaLoRA", r"\.lora_[AB](\.(?!weight$)[^.]+)?$"),
    ("VeRA", r"\.vera_lambda_\w+(\..+)?$"),
    ("IA3", r"\.ia3_l(\..+)?$"),
]
_REFUSED = [(kind, re.compile(pattern)) for kind, pattern in _REFUSED_PATTERNS]
_DORA = re.compile(r"\.(dora_scale|lora_magnitude_vector)(\..+)?$")
# What stands beside a LoRA layer and is part of it.
_COMPANION = re.compile(
    r"\.(alpha|lora\.alpha|lora_linear_layer\.alpha)$|_lora\.alpha$"
)


# What of PEFT's configuration counts; the tensors say the rest.
SETTINGS = ("lora_alpha", "alpha_pattern", "use_rslora", "fan_in_fan_out")


class Layers(NamedTuple):
    """What a model's tensors are.

    `specs` is keyed by layer name, or by ``(component, name with underscores)`` where
    only other files can tell where the dots go.
    """

    specs: dict
    has_dora: bool


class _Pair:
    """The two factors of one layer, as they are found."""

    def __init__(self, family, module, adapter):
        self.family, self.module, self.adapter = family, module, adapter
        self.up = self.down = None


def find_layers(tensors, metadata, config, sources):
    """Turn a model's tensors into layers.

    Parameters
    ----------
    tensors : dict of str to TensorRef
    metadata : dict of str to str
        From the headers; diffusers keeps an adapter's configuration there.
    config : dict or None
        PEFT's ``adapter_config.json``.
    sources : sequence of source
        The model's files, for errors.

    Returns
    -------
    Layers

    Raises
    ------
    CorruptFileError
        A factor without its pair, or factors that do not fit.
    UnsupportedFormatError
        If there is nothing but adapters of kinds that are not read.
    """
    pairs, refused, plain, has_dora = _sort_tensors(tensors)
    specs = {}
    numbered = _number_names(pairs)
    settings = _Settings(config, metadata, sources[0] if sources else "")
    n_adapters = len({pair.adapter for pair in pairs.values()})
    for key, pair in pairs.items():
        if key in refused:
            continue
        _check_pair(key, pair, sources)
        name = numbered.get(key) or _layer_name(pair, n_adapters)
        specs[name] = LowRankSpec(
            pair.up,
            pair.down,
            _find_alpha(pair, tensors),
            settings.scale(pair),
            pair.family == "embedding" or settings.is_transposed(pair),
        )
    for key, (kind, ref) in refused.items():
        name = _module_key(key)
        specs[name] = RefusedSpec(key, kind, ref.file)
    if refused and len(refused) == len(specs):
        # Nothing is left to read: say so once for the file.
        next(iter(specs.values())).read(sources)
    is_adapter = bool(pairs or refused)
    for name, ref in plain.items():
        if is_adapter:
            if _COMPANION.search(name):
                continue
            name = _saved_module(name)
        specs.setdefault(name, dense_spec(ref, tensors, scale_names(ref.info)))
    for name in _scales_of_float8(specs):
        specs.pop(name, None)
    return Layers(specs, has_dora)


def _sort_tensors(tensors):
    pairs, refused, plain, has_dora = {}, {}, {}, False
    for name, ref in tensors.items():
        if ("lora" in name) or name.endswith((":up", ":down")):
            match = next(
                ((f, m) for f, p in _FAMILIES if (m := p.fullmatch(name))), None
            )
            if match is not None:
                family, match = match
                groups = match.groupdict()
                module, adapter = groups["module"], groups.get("adapter")
                key = module if adapter is None else f"{module} ({adapter})"
                pair = pairs.setdefault(key, _Pair(family, module, adapter))
                setattr(pair, "up" if _IS_UP[groups["role"]] else "down", ref)
                continue
        kind, module = _refusal(name)
        if kind is not None:
            refused.setdefault(module, (kind, ref))
        elif _DORA.search(name):
            has_dora = True
        else:
            plain[name] = ref
    return pairs, refused, plain, has_dora


def _refusal(name):
    for kind, pattern in _REFUSED:
        match = pattern.search(name)
        if match:
            return kind, name[: match.start()]
    return None, None


def _module_key(module):
    """Name a layer, or say which underscores of its name may be dots."""
    split = split_kohya(module)
    if split is not None:
        return split
    return f"{canonical_module(module)}.weight"


def _layer_name(pair, n_adapters):
    name = _module_key(pair.module)
    # A model may hold several adapters; the usual one needs no mention.
    if pair.adapter not in (None, "default") and n_adapters > 1:
        return f"{name.removesuffix('.weight')}.lora.{pair.adapter}.weight"
    return name


def _saved_module(name):
    """Name a layer that was trained whole and saved beside the adapter."""
    name = name.removeprefix("base_model.model.")
    return re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)


def _scales_of_float8(specs):
    return [
        spec.scale.info.name
        for spec in specs.values()
        if not spec.is_low_rank and getattr(spec, "scale", None) is not None
    ]


def _number_names(pairs):
    """Name the layers of the family that only numbers them."""
    by_component = {}
    for key, pair in pairs.items():
        if pair.family == "numbered" and pair.up and pair.down:
            component, number = pair.module.split(":")
            by_component.setdefault(component, []).append((int(number), key))
    names = {}
    for component, entries in by_component.items():
        entries.sort()
        keys = [key for _, key in entries]
        shapes = [
            (pairs[key].up.info.shape[0], math.prod(pairs[key].down.info.shape[1:]))
            if pairs[key].up.info.shape and pairs[key].down.info.shape
            else (0, 0)
            for key in keys
        ]
        if [number for number, _ in entries] == list(range(len(entries))):
            modules = numbered_modules(component, shapes)
        else:
            modules = [f"{component}.{number}" for number, _ in entries]
        names.update(zip(keys, (f"{name}.weight" for name in modules), strict=True))
    return names


def _check_pair(key, pair, sources):
    if pair.up is None or pair.down is None:
        found = pair.up or pair.down
        missing = "down (A)" if pair.down is None else "up (B)"
        raise CorruptFileError(
            f"{sources[found.file]}: {found.info.name!r} has no {missing} beside it. "
            "LoRA needs both; the file was saved or edited incompletely."
        )
    up, down = pair.up.info.shape, pair.down.info.shape
    if len(up) != len(down) or len(up) < 2 or up[1] != down[0] or down[0] == 0:
        raise CorruptFileError(
            f"{sources[pair.up.file]}: the LoRA factors of {key!r} have shapes {up} "
            f"and {down}, which do not fit: expected (d_out, r) and (r, d_in)."
        )
    if math.prod(up[2:]) != 1:
        raise UnsupportedFormatError(
            f"{sources[pair.up.file]}: the up factor of {key!r} has shape {up}: only "
            "1 x 1 kernels are read there."
        )
    for ref in (pair.up, pair.down):
        if ref.info.dtype in FLOAT8:
            raise UnsupportedFormatError(
                f"{sources[ref.file]}: {ref.info.name!r} is stored as "
                f"{ref.info.dtype}: use the fp16 or bf16 file of this adapter."
            )


def _find_alpha(pair, tensors):
    module = pair.module
    names = [f"{module}.alpha"]
    if pair.family == "diffusers":
        names.append(f"{module}.lora.alpha")
    elif pair.family == "linear":
        names.append(f"{module}.lora_linear_layer.alpha")
    elif pair.family == "processor":
        without = module.replace(".processor.", ".")
        names += [f"{without}.alpha", f"{without.removesuffix('_lora')}.alpha"]
    elif pair.family == "converted":
        names.append(f"{module}_lora.alpha")
    return next((tensors[name] for name in names if name in tensors), None)


class _Settings:
    """The scale and the orientation that an adapter's configuration asks for."""

    def __init__(self, config, metadata, source):
        self.source = source
        self.config = config if isinstance(config, dict) else None
        self.by_component = _config_in_header(metadata)

    def _of(self, pair):
        """Return the configuration of a layer and its name within it, or None."""
        if pair.family not in ("peft", "embedding"):
            return None, ""
        module = pair.module.removeprefix("base_model.model.")
        component, _, rest = module.partition(".")
        if component in self.by_component:
            return self.by_component[component], rest
        if self.config is not None:
            return self.config, module
        if pair.adapter is not None or module != pair.module:
            # PEFT's own keys, but no word of alpha: PEFT's defaults.
            return {}, module
        return None, ""

    def scale(self, pair):
        """Return the factor before the product, where no alpha tensor gives it."""
        config, module = self._of(pair)
        if config is None:
            return 1.0
        alpha = _by_pattern(config.get("alpha_pattern"), module, self.source)
        if alpha is None:
            alpha = _number(config.get("lora_alpha"), 8.0)
        # The tensor is the truth for r, whatever the configuration says.
        rank = pair.down.info.shape[0]
        return alpha / (math.sqrt(rank) if config.get("use_rslora") is True else rank)

    def is_transposed(self, pair):
        """Say whether the model stores this layer as (d_in, d_out)."""
        config, _ = self._of(pair)
        is_matrix = len(pair.down.info.shape) == 2
        return bool(config) and config.get("fan_in_fan_out") is True and is_matrix


def _number(value, default):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else default


def _by_pattern(patterns, module, source):
    """Look a module up as PEFT does: the first pattern that its name ends with."""
    if not isinstance(patterns, dict):
        return None
    for pattern, value in patterns.items():
        # The pattern comes from a file: one built to take for ever does not get to.
        is_simple = len(pattern) <= 500 and not re.search(r"\)[*+{]|\\\d", pattern)
        if not is_simple or len(re.findall(r"[*+{]", pattern)) > 4:
            raise UnsupportedFormatError(
                f"{source}: the configuration has the alpha_pattern "
                f"{pattern[:80]!r}, which is too involved: list the modules by name."
            )
        try:
            found = re.match(rf"(.*\.)?({pattern})$", module)
        except (re.error, OverflowError):
            continue
        if found:
            return _number(value, None)
    return None


def _config_in_header(metadata):
    """Read the configurations that diffusers keeps in the header, by component."""
    try:
        flat = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        return {}
    configs = {}
    if isinstance(flat, dict):
        for key, value in flat.items():
            component, separator, name = key.partition(".")
            if separator:
                configs.setdefault(component, {})[name] = value
    return configs
