"""Find the layers in a model's tensors: plain ones, quantised ones, and adapters.

Every family of LoRA says the same, ``delta = scale * (up @ down)``, under other keys:
one table of keys, one rule for the scale, and one name per layer. What looks like a
part of an adapter and is not understood is refused, never read as a layer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..exceptions import CorruptFileError, UnsupportedFormatError
from ._deltas import (
    DIFFERENCES,
    LOHA_CORES,
    LOHA_PARTS,
    DifferenceSpec,
    HadamardSpec,
    KroneckerSpec,
)
from ._module_names import canonical_module, numbered_modules, split_kohya, unwrapped
from ._quantised import find_quantised
from ._recipes import DenseSpec, LowRankSpec, RefusedSpec
from ._safetensors import FLOAT8
from ._settings import Settings
from ._spellings import is_of_dora, lookalikes, parse, refusal

_MERGE = (
    "Merge it into its base with the tool that trained it and open the merged "
    "checkpoint, or leave this model out."
)
_FLOATS = ("F64", "F32", "F16", "BF16")
# What else stands beside an adapter's layer, and changes it.
_CHANGING = {"scalar": "a learnt scalar", "reshape_weight": "another shape"}


class Layers(NamedTuple):
    """What a model's tensors are.

    `specs` is keyed by layer name, or by ``(component, name with underscores, leaf)``
    where only other files can tell where the dots go. `doubts` are those of `_doubts`.
    """

    specs: dict
    doubts: frozenset


class _Group(NamedTuple):
    """The parts of one adapted layer, as they are found: tensors by role."""

    family: str
    module: str
    adapter: str | None
    parts: dict


class _RefusedError(Exception):
    """A layer that is understood well enough to say what it is."""

    def __init__(self, kind, mend=_MERGE):
        super().__init__(kind, mend)
        self.kind, self.mend = kind, mend


def find_layers(tensors, metadata, config, sources, plain_float8=False):
    """Turn a model's tensors into layers.

    Parameters
    ----------
    tensors : dict of str to TensorRef
    metadata : dict of str to str
        From the headers; diffusers keeps an adapter's configuration there.
    config : dict or None
        PEFT's or MLX's ``adapter_config.json``.
    sources : sequence of source
        The model's files, for errors.
    plain_float8 : bool, default=False
        Whether 8-bit floats without scales are read as they are.

    Returns
    -------
    Layers

    Raises
    ------
    CorruptFileError
        A factor without its pair, or factors that do not fit.
    UnsupportedFormatError
        If the adapter is of a kind that is not read, or nothing else is there.
    """
    source = sources[0] if sources else ""
    settings = Settings(config, metadata, tensors, source)
    groups, refused, plain = _sort_tensors(tensors, settings)
    kind = settings.refused_kind()
    if kind is not None:
        raise UnsupportedFormatError(
            f"{source}: the adapter is {kind}, which is not read: LoRA, LoHa and LoKr "
            f"are. {_MERGE}"
        )
    reader = _Reader(tensors, settings, sources, plain_float8, groups)
    specs = {}
    for key, (found, ref) in refused.items():
        spec = RefusedSpec(key, found, _MERGE, ref.file)
        is_tensor = key in tensors
        name = unwrapped(key) if is_tensor else reader.name(key, None, "weight")
        _add(specs, name, spec)
    for group in groups.values():
        # A part that is not read stands for the whole layer.
        if group.module not in refused:
            for name, spec in reader.read(group):
                _add(specs, name, spec)
    first = next(iter(specs.values()), None)
    _add_plain(specs, plain, plain_float8, is_adapter=bool(groups or refused))
    if first is not None and all(spec.is_refused for spec in specs.values()):
        # Nothing is left to read: say so once for the file.
        raise first.error(sources)
    return Layers(specs, frozenset(settings.doubts))


def _add(specs, name, spec):
    if name in specs:
        called = name if isinstance(name, str) else "_".join(name)
        kind = "a layer that is adapted twice"
        spec = RefusedSpec(called, kind, _MERGE, spec.file)
    specs[name] = spec


def _sort_tensors(tensors, settings):
    """Sort tensors by what they are of: adapted layers, refused ones, plain ones."""
    groups, refused, plain = {}, {}, {}
    for name, ref in tensors.items():
        part = parse(name)
        if part is not None:
            key = (part.module, part.adapter, part.family)
            if part.family == "difference":
                key = (*key, DIFFERENCES[part.role])
            group = groups.setdefault(
                key, _Group(part.family, part.module, part.adapter, {})
            )
            group.parts[part.role] = ref
        elif is_of_dora(name):
            settings.doubts.add("dora")
        else:
            plain[name] = ref
    modules = {group.module for group in groups.values()}
    for name in list(plain):
        module, _, leaf = name.rpartition(".")
        if leaf == "m" and f"{module}.lora_a" in tensors:
            settings.doubts.add("dora")
            del plain[name]
        elif leaf == "alpha" and (groups or "lora" in name):
            # Stands beside a layer and is part of it, in one of several places.
            if modules and _is_alpha(module, modules):
                del plain[name]
        elif leaf in _CHANGING and module in modules:
            del plain[name]
        else:
            kind, of_module = refusal(name)
            if kind is not None:
                refused.setdefault(of_module, (kind, plain.pop(name)))
    for name, module in lookalikes(plain).items():
        kind = "a pair of factors of an adapter that is not known"
        refused.setdefault(module, (kind, plain.pop(name)))
    return groups, refused, plain


def _is_alpha(module, modules):
    if module in modules or module.startswith(("lora_", "lycoris_")):
        return True
    last = module.rpartition(".")[2]
    return (
        last in ("lora", "lora_linear_layer")
        or last.endswith("_lora")
        or any(
            f"{module.rpartition('.')[0]}.processor.{last}{end}" in modules
            for end in ("", "_lora")
        )
    )


def _alpha_names(group):
    module, family = group.module, group.family
    names = [f"{module}.alpha"]
    if family == "diffusers":
        names.append(f"{module}.lora.alpha")
    elif family == "linear":
        names.append(f"{module}.lora_linear_layer.alpha")
    elif family == "processor":
        without = module.replace(".processor.", ".")
        names += [f"{without}.alpha", f"{without.removesuffix('_lora')}.alpha"]
    elif family == "converted":
        names.append(f"{module}_lora.alpha")
    return names


class _Reader:
    """Makes specs of the groups of one model."""

    def __init__(self, tensors, settings, sources, plain_float8, groups):
        self.tensors, self.settings, self.sources = tensors, settings, sources
        self.plain_float8 = plain_float8
        self.n_adapters = len({group.adapter for group in groups.values()})
        # A ControlNet has the blocks of a U-Net, and is none.
        is_control = any("controlnet" in name.partition(".lora")[0] for name in tensors)
        self.unet = "controlnet" if is_control else "unet"
        self.numbered = _number_names(groups)

    def name(self, module, adapter, leaf):
        """Name a layer, or say which underscores of its name may be dots."""
        split = split_kohya(module)
        if split is not None:
            return (*split, leaf)
        name = canonical_module(self.numbered.get(module, module), self.unet)
        # A model may hold several adapters; the usual one needs no mention.
        if adapter not in (None, "default") and self.n_adapters > 1:
            name = f"{name}.lora.{adapter}"
        return f"{name}.{leaf}"

    def read(self, group):
        """Yield the names and specs of what a group of tensors is."""
        name = self.name(group.module, group.adapter, "weight")
        make = {
            "loha": self._loha,
            "lokr": self._lokr,
            "difference": self._difference,
        }.get(group.family, self._low_rank)
        file = next(iter(group.parts.values())).file
        try:
            self._check_dtypes(group)
            self._check_beside(group)
            yield from make(group, name)
        except _RefusedError as error:
            yield name, RefusedSpec(group.module, error.kind, error.mend, file)

    def _check_dtypes(self, group):
        for ref in group.parts.values():
            dtype = ref.info.dtype
            if dtype in FLOAT8 and self.plain_float8:
                continue
            if dtype not in _FLOATS:
                raise _RefusedError(
                    f"an adapter stored as {dtype}",
                    "Use the fp16 or bf16 file of this adapter.",
                )

    def _check_beside(self, group):
        for leaf, what in _CHANGING.items():
            if f"{group.module}.{leaf}" in self.tensors:
                raise _RefusedError(f"an adapter with {what} ({leaf})")

    def _alpha(self, group):
        found = (self.tensors.get(name) for name in _alpha_names(group))
        return next((ref for ref in found if ref is not None), None)

    def _scale(self, group, rank):
        """Return the alpha tensor, and the scale where there is none."""
        alpha = self._alpha(group)
        if alpha is not None:
            return alpha, 1.0
        return None, self.settings.scale(group.family, group.module, rank)

    def _missing(self, group, role):
        found = next(iter(group.parts.values()))
        return CorruptFileError(
            f"{self.sources[found.file]}: {found.info.name!r} has no {role} beside it. "
            "An adapter's layer needs all its parts; the file was saved or edited "
            "incompletely."
        )

    def _low_rank(self, group, name):
        up, down = group.parts.get("up"), group.parts.get("down")
        if down is None or up is None:
            raise self._missing(group, "down (A)" if down is None else "up (B)")
        are_transposed = group.family == "mlx"
        self._check_shapes(group, are_transposed)
        rank = down.info.shape[1 if are_transposed else 0]
        if group.family == "peft" and self.settings.is_of_experts(group.module, rank):
            raise _RefusedError(
                "a LoRA of parameters, not of a module (target_parameters), such as "
                "the experts of a mixture"
            )
        alpha, scale = self._scale(group, rank)
        is_embedding = group.family == "embedding" or (
            group.family in ("mlx", "bare") and _is_embedding(group.module)
        )
        yield (
            name,
            LowRankSpec(
                up,
                down,
                alpha,
                scale,
                is_embedding
                or self.settings.is_transposed(
                    group.family, group.module, up.info.shape, down.info.shape
                ),
                are_transposed,
                group.parts.get("mid"),
            ),
        )
        bias = group.parts.get("bias")
        if bias is not None:
            name = self.name(group.module, group.adapter, "bias")
            yield name, DifferenceSpec(bias, alpha, rank, scale)

    def _check_shapes(self, group, are_transposed):
        up, down = (group.parts[role].info.shape for role in ("up", "down"))
        mid = group.parts.get("mid")
        if are_transposed:
            if len(up) == 3 or len(down) == 3:
                raise _RefusedError("a LoRA of experts in one tensor")
            up, down = up[::-1], down[::-1]
        if len(up) == len(down) >= 2 and up[1] and down[0] > up[1]:
            if down[0] % up[1] == 0 and len(up) > 2:
                raise _RefusedError("a LoRA of a grouped convolution")
            if down[0] % up[1] == 0 and group.family == "bare":
                raise _RefusedError(
                    "a LoRA of projections merged into one (loralib's MergedLinear, "
                    "LitGPT's qkv)"
                )
        if len(up) != len(down) or len(up) < 2 or up[1] != down[0] or down[0] == 0:
            raise CorruptFileError(
                f"{self.sources[group.parts['up'].file]}: the LoRA factors of "
                f"{group.module!r} have shapes {up} and {down}, which do not fit: "
                "expected (d_out, r) and (r, d_in)."
            )
        if math.prod(up[2:]) != 1:
            raise _RefusedError(f"a LoRA whose up factor has a kernel, {up}")
        if mid is not None and not (
            mid.info.shape[:2] == (up[1], down[0])
            and len(mid.info.shape) == 4
            and math.prod(down[2:]) == 1
        ):
            raise _RefusedError(
                f"a LoCon whose middle factor has shape {mid.info.shape}"
            )
        base = self.tensors.get(f"{group.module}.weight") or self.tensors.get(
            f"{group.module}.conv.weight"
        )
        if group.family == "bare" and base is not None and len(base.info.shape) > 2:
            raise _RefusedError("a LoRA of a convolution, as loralib writes it")

    def _loha(self, group, name):
        parts = [group.parts.get(role) for role in LOHA_PARTS]
        if None in parts:
            raise self._missing(group, LOHA_PARTS[parts.index(None)])
        cores = tuple(group.parts[r] for r in LOHA_CORES if r in group.parts)
        spec = HadamardSpec(tuple(parts), cores, None, 1.0)
        self._check_fit(group, spec, "LoHa")
        alpha, scale = self._scale(group, parts[1].info.shape[0])
        spec = HadamardSpec(tuple(parts), cores, alpha, scale)
        yield name, spec

    def _lokr(self, group, name):
        sides = []
        for side in ("w1", "w2"):
            roles = [f"lokr_{side}"]
            if roles[0] not in group.parts:
                roles = [f"lokr_{side}_a", f"lokr_{side}_b"]
            missing = next((role for role in roles if role not in group.parts), None)
            if missing is not None:
                raise self._missing(group, missing)
            sides.append(tuple(group.parts[role] for role in roles))
        core = group.parts.get("lokr_t2")
        self._check_fit(group, KroneckerSpec(*sides, core, None, 1.0), "LoKr")
        alpha, scale = self._scale(group, None)
        spec = KroneckerSpec(*sides, core, alpha, scale)
        yield name, spec

    def _check_fit(self, group, spec, kind):
        if not spec.fits():
            shapes = {role: ref.info.shape for role, ref in group.parts.items()}
            raise CorruptFileError(
                f"{self.sources[spec.file]}: the {kind} parts of {group.module!r} have "
                f"shapes {shapes}, which do not multiply."
            )

    def _difference(self, group, name):
        for role, ref in group.parts.items():
            name = self.name(group.module, group.adapter, DIFFERENCES[role])
            yield name, DifferenceSpec(ref)


def _is_embedding(module):
    last = module.rpartition(".")[2].lower()
    return "emb" in last or last in ("wte", "wpe")


def _add_plain(specs, plain, plain_float8, is_adapter):
    """Add what is no adapter's: quantised layers, and those stored as they are."""
    quantised, used = find_quantised(plain, plain_float8)
    dense = {name: DenseSpec(ref) for name, ref in plain.items() if name not in used}
    for name, spec in {**dense, **quantised}.items():
        short = unwrapped(_saved_module(name) if is_adapter else name)
        module, _, leaf = short.rpartition(".")
        # The base's own weight, where the adapter's delta has its name.
        beside = f"{module}.base_layer.{leaf}" if module else name
        free = (found for found in (short, beside, name) if found not in specs)
        specs[next(free, f"{name} (2)")] = spec


def _saved_module(name):
    """Name a layer that was trained whole and saved beside the adapter."""
    parts = name.split(".")
    if "modules_to_save" in parts[:-2]:
        at = parts.index("modules_to_save")
        del parts[at : at + 2]
    return ".".join(parts)


def _number_names(groups):
    """Name the layers of the family that only numbers them."""
    by_component = {}
    for group in groups.values():
        if group.family == "numbered" and len(group.parts) == 2:
            component, number = group.module.split(":")
            by_component.setdefault(component, []).append((int(number), group))
    names = {}
    for component, entries in by_component.items():
        entries.sort(key=lambda entry: entry[0])
        shapes = []
        for _, group in entries:
            up, down = (group.parts[role].info.shape for role in ("up", "down"))
            fits = up and down
            shapes.append((up[0], math.prod(down[1:])) if fits else (0, 0))
        if [number for number, _ in entries] == list(range(len(entries))):
            modules = numbered_modules(component, shapes)
        else:
            modules = [f"{component}.{number}" for number, _ in entries]
        found = zip(entries, modules, strict=True)
        names.update({group.module: module for (_, group), module in found})
    return names
