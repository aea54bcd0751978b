"""Base models that are spelt in several ways, and are one."""

from __future__ import annotations

import re
from collections import defaultdict

# Where models declare their base: first come first.
BASE_KEYS = ("base_model", "base_model_name_or_path", "ss_sd_model_name")
_CACHED = re.compile(r"models--(.+?)(?:/snapshots(?:/[^/]*)?)?")
# Words for folders, which are nobody's name on the hub.
_FOLDERS = {"models", "model", "checkpoints", "ckpts", "weights", "pretrained", "base"}
_FOLDERS |= {"data", "output", "outputs", "cache", "llm", "base_models"}
_EXTENSIONS = (".safetensors", ".ckpt", ".pt", ".bin")


def base_model(metadata):
    """Return the base that a model declares, as it spells it, or None."""
    for key in BASE_KEYS:
        value = metadata.get(key)
        if isinstance(value, str) and value.strip():
            return value
    return None


def canonical_bases(bases, known=()):
    """Give bases one name each, however they are spelt.

    ``gpt2``, ``openai-community/gpt2``, ``C:\\models\\gpt2`` and the folder of a hub's
    cache are one base, as long as no two owners have one of that name: then nobody
    knows whose is meant where none is named, and it stays a base of its own.

    Parameters
    ----------
    bases : sequence of str or None
        As models declare them.
    known : sequence of str or None, default=()
        Names that were given before, and are kept.

    Returns
    -------
    list of str or None

    Examples
    --------
    >>> canonical_bases(["gpt2", "openai-community/gpt2", "/data/gpt2", None])
    ['openai-community/gpt2', 'openai-community/gpt2', 'openai-community/gpt2', None]
    """
    split = [None if base is None else _split(base) for base in bases]
    names = defaultdict(dict)
    for base in known:
        if base is not None:
            owner, name = _split(base)
            names[name.lower()].setdefault(owner.lower(), base)
    is_known = {name: dict(owners) for name, owners in names.items()}
    for entry in split:
        if entry is not None:
            owner, name = entry
            full = f"{owner}/{name}" if owner else name
            names[name.lower()].setdefault(owner.lower(), full)
    return [entry if entry is None else _named(*entry, names, is_known)
            for entry in split]  # fmt: skip


def _named(owner, name, names, is_known):
    owners = names[name.lower()]
    before = is_known.get(name.lower(), {})
    if owner.lower() in before:
        return before[owner.lower()]
    if len(before) == 1 and ("" in before or not owner):
        return next(iter(before.values()))
    others = [other for other in owners if other]
    # Named by its owner, or of an owner who is the only one.
    if not owner and len(others) == 1:
        return owners[others[0]]
    return owners[owner.lower()]


def _split(base):
    """Split a spelling into owner and name; paths tell of no owner."""
    text = base.strip().replace("\\", "/").rstrip("/")
    for part in text.split("/"):
        match = _CACHED.fullmatch(part)
        if match:
            owner, _, name = match[1].rpartition("--")
            return owner, name
    text = re.sub(r"^(https?://[^/]+|hf://(models/)?)/?", "@hub/", text)
    is_hub = text.startswith("@hub/")
    parts = [part for part in text.removeprefix("@hub/").split("/") if part]
    if not parts:
        return "", base.strip()
    name = parts[-1]
    for extension in _EXTENSIONS:
        name = name.removesuffix(extension) or name
    is_path = (
        len(parts) != 2
        or text.startswith(("/", ".", "~"))
        or ":" in parts[0]
        or parts[0].lower() in _FOLDERS
    )
    if is_hub and len(parts) >= 2:
        return parts[0], parts[1].partition("@")[0]
    return ("" if is_path else parts[0]), name


def rename_bases(metadata, bases):
    """Write the names that a user gives to bases into models' metadata.

    Parameters
    ----------
    metadata : list of dict
        One per model, changed in place.
    bases : dict of str to str
    """
    for entry in metadata if bases else ():
        for key in BASE_KEYS:
            value = entry.get(key)
            if isinstance(value, str) and value in bases:
                entry[key] = bases[value]
