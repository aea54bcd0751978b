"""What the configuration of an adapter says: its kind, its scales, its orientation."""

from __future__ import annotations

import json
import math
from functools import cached_property

from ..exceptions import UnsupportedFormatError
from ._module_names import OF_TRANSFORMER, unwrapped
from ._patterns import InvolvedPatternError, PatternTable

# What of a configuration counts; the tensors say the rest.
_COUNTING = (
    *("peft_type", "r", "lora_alpha", "alpha", "alpha_pattern", "rank_pattern"),
    *("use_rslora", "fan_in_fan_out", "target_parameters", "target_modules"),
    *("init_lora_weights", "use_dora", "use_qalora", "use_bdlora", "kasa_config"),
    *("monteclora_config", "fine_tune_type", "lora_parameters", "auto_mapping"),
    *("base_model_name_or_path",),
)
# Kinds of PEFT that are read; None where a configuration does not say.
_READ_KINDS = ("LORA", "LOHA", "LOKR", None)
# Variants of LoRA whose delta is no product of A and B alone.
_REFUSED_VARIANTS = ("use_qalora", "use_bdlora", "kasa_config", "monteclora_config")
# Ways to begin that take a part out of the base: A and B are no change of what was
# published. The first word of what the configuration calls them.
_MOVED_BASES = ("pissa", "olora", "loftq", "corda", "lora_ga")
# Families whose scale PEFT's configuration gives, and the default alpha there.
_OF_PEFT = ("peft", "embedding", "bare", "torchtune", "loha", "lokr")
_DEFAULT = 8.0
_PEFT_KEYS = {"peft_type", "r", "lora_alpha", "alpha"}

# Transformers' Conv1D stores (d_in, d_out), and only these modules are of it.
_CONV1D_PARTS = ("c_attn", "c_proj", "c_fc", "q_attn")
_CONV1D_BASES = ("gpt2", "distilgpt2", "dialogpt", "openai-gpt", "imagegpt")
_CONV1D_CLASSES = ("gpt2", "openaigpt", "imagegpt", "decisiontransformer", "dialogpt")


def settings_key(config):
    """Return what of a configuration makes a difference to the layers, as text."""
    config = config or {}
    found = {name: config[name] for name in _COUNTING if name in config}
    if not found.get("target_parameters"):
        # PEFT writes a set: in another order each time.
        found.pop("target_modules", None)
    return json.dumps(found, sort_keys=True)


class Settings:
    """The scale and the orientation that an adapter's configuration asks for.

    Parameters
    ----------
    config : dict or None
        PEFT's or MLX's ``adapter_config.json``.
    metadata : dict of str to str
        From the headers; diffusers keeps an adapter's configuration there.
    tensors : dict of str to TensorRef
        A base's weight beside the adapter says how it is oriented.
    source : source
        For errors.

    Attributes
    ----------
    doubts : set of str
        What a warning is due for, as in `_doubts`.
    """

    def __init__(self, config, metadata, tensors, source):
        self.config = config if isinstance(config, dict) else None
        self.by_component = _config_in_header(metadata)
        self.tensors, self.source = tensors, source
        self.doubts = set()
        self._tables = {}
        for found in self._all():
            start = found.get("init_lora_weights")
            if isinstance(start, str) and start.lower().startswith(_MOVED_BASES):
                self.doubts.add("moved base")
            if found.get("use_dora") is True or found.get("fine_tune_type") == "dora":
                self.doubts.add("dora")

    def _all(self):
        return [*self.by_component.values(), *([self.config] if self.config else [])]

    def refused_kind(self):
        """Name the kind of adapter that is not read, or None."""
        for config in self._all():
            kind = config.get("peft_type")
            # MLX calls its own kinds so.
            if kind is not None and str(kind).upper() not in _READ_KINDS:
                return f"of the kind {str(kind)[:40]}"
            for name in _REFUSED_VARIANTS:
                if config.get(name):
                    return f"LoRA with {name}"
        return None

    def _of(self, family, module):
        """Return the configuration of a layer and its name within it, or None."""
        inner = unwrapped(module)
        component, _, rest = inner.partition(".")
        if component in self.by_component:
            return self.by_component[component], rest
        return self.config, inner

    def scale(self, family, module, rank):
        """Return the factor before the product, where no alpha tensor gives it.

        Parameters
        ----------
        family, module : str
        rank : int or None
            None where the tensors do not tell.
        """
        config, name = self._of(family, module)
        if config is not None and family == "mlx":
            scale = _mlx_scale(config, rank)
            if scale is not None:
                return scale
        elif family in _OF_PEFT and _is_of_peft(config):
            return self._peft_scale(config, name, rank, family in ("loha", "lokr"))
        if family in ("mlx", *_OF_PEFT) and not _is_of_diffusers(module, family):
            self.doubts.add("no scale")
        return 1.0

    def _peft_scale(self, config, name, rank, is_lycoris):
        alpha = self._by_pattern(config, "alpha_pattern", name)
        if alpha is None:
            alpha = number(config.get("alpha" if is_lycoris else "lora_alpha"))
        if alpha is None:
            alpha = _DEFAULT
        if is_lycoris:
            # PEFT divides by the rank that was asked for, also where both are whole.
            asked = self._by_pattern(config, "rank_pattern", name)
            asked = number(config.get("r")) if asked is None else asked
            rank = asked if asked and asked > 0 else _DEFAULT
        # The tensor is the truth for r, whatever the configuration says.
        return alpha / (math.sqrt(rank) if config.get("use_rslora") is True else rank)

    def _by_pattern(self, config, key, name):
        """Look a module up as PEFT does: the first pattern that its name ends with."""
        patterns = config.get(key)
        if not isinstance(patterns, dict) or not patterns:
            return None
        try:
            table = self._tables.get(id(patterns))
            if table is None:
                table = self._tables[id(patterns)] = PatternTable(patterns)
            return number(table.find(name))
        except InvolvedPatternError as error:
            raise UnsupportedFormatError(
                f"{self.source}: the configuration has the {key} "
                f"{str(error)[:80]!r}, which is too involved: list the modules by name."
            ) from None

    def is_transposed(self, family, module, up, down):
        """Say whether the model stores this layer as (d_in, d_out).

        Parameters
        ----------
        family, module : str
        up, down : tuple of int
            Shapes of the factors.
        """
        if family not in ("peft", "bare", "torchtune") or len(down) != 2:
            return False
        config, _ = self._of(family, module)
        base = self.tensors.get(f"{module}.base_layer.weight")
        d_out, d_in = up[0], down[1]
        if base is not None and d_out != d_in:
            return base.info.shape == (d_in, d_out)
        # PEFT corrects the configuration, whichever way it is wrong: the module's
        # class decides.
        if config is None:
            return False
        is_asked = config.get("fan_in_fan_out") is True
        if module.rpartition(".")[2] not in _CONV1D_PARTS:
            return is_asked and not self._names_conv1d
        if is_asked:
            return True
        is_conv1d = _has_conv1d(config)
        if is_conv1d is None:
            self.doubts.add("orientation")
        return bool(is_conv1d)

    @cached_property
    def _names_conv1d(self):
        """Whether the file has modules called as those of a Conv1D base."""
        return any(f".{p}." in name for name in self.tensors for p in _CONV1D_PARTS)

    def is_of_experts(self, module, rank):
        """Say whether a layer is a parameter that PEFT adapts, not a module."""
        config, name = self._of("peft", module)
        parameters = (config or {}).get("target_parameters")
        if not parameters or not isinstance(parameters, list):
            return False
        if module.endswith(".base_layer"):
            return True
        parts = name.split(".")
        ends = {".".join(parts[start:]) for start in range(len(parts))}
        parents = {str(parameter).rpartition(".")[0] for parameter in parameters}
        if ends & parents:
            return True
        # One that is named without its module may be of any that is not named itself.
        modules = config.get("target_modules")
        modules = modules if isinstance(modules, list) else []
        return "" in parents and not ends.intersection(map(str, modules))


def number(value):
    """Return a finite number of a configuration, or None."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def _mlx_scale(config, rank):
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        return None
    scale = number(parameters.get("scale"))
    if scale is None:
        return None
    # Older ones have an alpha as well.
    alpha = number(parameters.get("alpha"))
    return scale if alpha is None else scale * alpha / rank


def _is_of_peft(config):
    """Whether a configuration says anything of scales: defaults of others differ."""
    return config is not None and not _PEFT_KEYS.isdisjoint(config)


def _is_of_diffusers(module, family):
    """Diffusers writes no alpha where it is the rank."""
    component, _, rest = module.partition(".")
    if family not in ("peft", "embedding"):
        return False
    if component == "transformer":
        return rest.partition(".")[0] in OF_TRANSFORMER
    return component in ("unet", "text_encoder", "text_encoder_2", "text_encoder_3")


def _has_conv1d(config):
    """Say whether a base's modules are Conv1D; None if the configuration is silent."""
    mapping = config.get("auto_mapping")
    name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    if isinstance(name, str):
        return name.lower().startswith(_CONV1D_CLASSES)
    base = config.get("base_model_name_or_path")
    if isinstance(base, str):
        last = base.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
        if last.startswith(_CONV1D_BASES):
            return True
        if last.startswith(("starcoder", "santacoder", "gpt_bigcode", "qwen")):
            return False
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
