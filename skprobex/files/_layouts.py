"""Find the models in a folder or a repository, by the names of its files alone.

Everything becomes a list of relative paths first, wherever the files lie; which of
them form one model is then a question about names, and about what indices name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import NamedTuple

from .._natural import natural
from ..weights._collection import make_unique
from ._other_formats import MODEL_STEM, TRAINERS_STATE, unread_format
from ._runs import REASON, last_of_folders, last_of_stems
from ._shards import INDEX, SHARD

_SUFFIX = ".safetensors"
# Files that are a folder's model: it is then called as the folder is. First come first.
_CANONICAL = (
    "model",
    "adapter_model",
    "pytorch_lora_weights",
    "diffusion_pytorch_model",
    "pytorch_model",
)
_CANONICAL_STEM = re.compile(rf"({'|'.join(_CANONICAL)})(\.(?P<variant>\w+))?")
# The same weights with fewer digits, or averaged: the best comes first.
_PRECISIONS = ("fp32", "float32", "non_ema", "bf16", "bfloat16", "fp16", "float16")
_PRECISIONS += ("ema", "fp8", "fp8_e4m3fn", "fp8_e5m2", "int8", "8bit", "4bit", "nf4")
# The same model once more, in its authors' own format.
_AUTHORS_STEM = re.compile(r"consolidated(\..*)?", re.DOTALL)
_AUTHORS_FOLDERS = ("original", "metal")
# A diffusion pipeline's folders: the network that is trained, and those that serve it.
_DENOISERS = ("unet", "transformer", "transformer_2", "prior")
_SERVANTS = ("vae", "vqvae", "movq", "text_encoder", "text_encoder_2", "text_encoder_3")
_SERVANTS += ("image_encoder",)
_NO_COMPONENTS = ("safety_checker",)
# A sentence encoder's: 1_Pooling, 2_Dense.
_MODULE = re.compile(r"[0-9]{1,3}_\w{1,60}")


class Part(NamedTuple):
    """Files whose tensors are of one model: one, its shards, or a component's.

    `files` are locations; `prefix` goes before the names of the tensors; `shard_index`
    is the location of a shard index, and `config` that of an adapter's configuration.
    Without `files`, an index names files beside it.
    """

    files: tuple[str, ...]
    prefix: str = ""
    shard_index: str | None = None
    config: str | None = None


class ModelFiles(NamedTuple):
    """One model: its name, its parts, and its card.

    `card` is the location of a model card, or what one says already.
    """

    name: str
    parts: tuple[Part, ...]
    card: str | dict | None = None


class LeftOut(NamedTuple):
    """A file or folder that is not opened, and why.

    `is_twin` says that nothing is lost by it: what it holds is read from elsewhere.
    """

    path: str
    reason: str
    is_twin: bool = False


def group_files(paths, root_name, location, indices=None, checkpoints="last"):
    """Group files into models.

    Parameters
    ----------
    paths : iterable of str
        Posix paths relative to the root.
    root_name : str
        Name of a model whose files lie in the root itself.
    location : callable
        Turns a relative path into what can be opened.
    indices : dict of str to list of str, default=None
        By the path of each shard index that can be read, the shards that it names,
        relative to its folder.
    checkpoints : {"last", "all"}, default="last"
        Which checkpoints of a training run are models.

    Returns
    -------
    models : list of ModelFiles
        Sorted by name, names unique.
    left_out : list of LeftOut
    """
    found = {path: path for path in paths}
    left_out = []
    if checkpoints == "last":
        found, dropped = last_of_folders(found, _has_model)
        left_out += [LeftOut(path, REASON) for path in dropped]
    grouping = _Grouping(found, location, indices or {}, checkpoints)
    models = grouping.models()
    left_out += grouping.left_out
    named = [
        ModelFiles(folder or root_name, parts, grouping.card(card_folder))
        for folder, parts, card_folder in models
    ]
    return make_unique(sorted(named, key=lambda model: natural(model.name))), left_out


def _has_model(names):
    """Whether files of these names are, one of them at least, a folder's model."""
    stems = {name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)} | {
        match["stem"] for name in names if (match := INDEX.fullmatch(name))
    }
    stems |= {match["stem"] for name in names if (match := SHARD.fullmatch(name))}
    return any(_CANONICAL_STEM.fullmatch(stem) for stem in stems)


def _in(folder, name):
    return f"{folder}/{name}" if folder else name


class _Group(NamedTuple):
    """Files of one name in a folder: a file, shards, or an index with its shards."""

    files: tuple[str, ...]
    shard_index: str | None = None


class _Grouping:
    """The models of one listing; `left_out` fills as they are found."""

    def __init__(self, found, location, indices, checkpoints):
        self._found, self._indices = found, indices
        self._of = location
        self._checkpoints = checkpoints
        self.left_out = []
        self._folders, self._below = defaultdict(list), defaultdict(dict)
        for path in found:
            folder, _, name = path.rpartition("/")
            self._folders[folder].append(name)
        # Folders in folders, by their last name.
        for folder in self._folders:
            if folder:
                parent, _, name = folder.rpartition("/")
                self._below[parent][name] = folder
        # What an index names belongs to it, wherever it lies.
        self._claimed = set()
        for path in found:
            if INDEX.fullmatch(path.rpartition("/")[2]):
                self._claimed.update(self._shards_of(path) or ())

    def _location(self, path):
        return self._of(self._found[path])

    def _shards_of(self, index):
        """Paths of the shards that an index names; None if it cannot be read."""
        shards = self._indices.get(self._found[index])
        if shards is None:
            return None
        folder = index.rpartition("/")[0]
        return [_in(folder, shard) for shard in shards]

    def models(self):
        """List ``(name, parts, folder)`` of each model."""
        models, done = [], set()
        for folder in sorted({*self._folders, *self._below}, key=natural):
            if folder in done:
                continue
            components = self._components(folder)
            parts = self._join(folder, components) if components else ()
            if parts:
                own = [(folder, parts)]
                done.update(components)
            else:
                groups = self._split(folder, self._groups(folder))
                own = [(name, (part,)) for name, part in groups]
            models += [(name, parts, folder) for name, parts in own]
            if not parts and any(name == folder for name, _ in own):
                done.update(self._set_aside(folder))
            self._list_unread(folder, bool(own))
        return models

    def _components(self, folder):
        """The folders that are one model together with this one."""
        names, below = self._folders.get(folder, ()), self._below[folder]
        if "model_index.json" in names:
            return list(below.values())
        if "modules.json" in names:
            return [path for name, path in below.items() if _MODULE.fullmatch(name)]
        # A pipeline without its list: a denoiser, and what serves it.
        with_weights = {name for name, path in below.items() if self._has_weights(path)}
        is_pipeline = with_weights & set(_DENOISERS) and with_weights & set(_SERVANTS)
        if not is_pipeline or self._has_weights(folder):
            return []
        return [
            path for name, path in below.items() if name in (*_DENOISERS, *_SERVANTS)
        ]

    def _has_weights(self, folder):
        return any(name.endswith(_SUFFIX) for name in self._folders.get(folder, ()))

    def _join(self, folder, components):
        """Make one model of a folder's components; those of a sentence encoder follow
        what lies in the folder itself.
        """
        parts = []
        is_encoder = "modules.json" in self._folders.get(folder, ())
        for path in [folder, *sorted(components)] if is_encoder else sorted(components):
            name = "" if path == folder else path.rpartition("/")[2]
            if name in _NO_COMPONENTS or not (groups := self._groups(path)):
                continue
            main = self._main(groups) or min(groups)
            parts.append(self._part(path, groups.pop(main), f"{name}." if name else ""))
            for group in groups.values():
                self._leave(group, "not the file that its pipeline reads")
        if parts and not is_encoder:
            for group in self._groups(folder).values():
                self._leave(group, "the pipeline beside it, in one file", is_twin=True)
        return tuple(parts)

    def _set_aside(self, folder):
        """List folders below a model's that hold the same or what serves it."""
        done = []
        for name, path in self._below[folder].items():
            if name in _AUTHORS_FOLDERS:
                reason = "the model above it, in its authors' own format"
            elif name in _SERVANTS or name in _NO_COMPONENTS:
                reason = "a component of the model above it"
            else:
                continue
            done.append(path)
            for file in self._folders[path]:
                if file.endswith(_SUFFIX) and _in(path, file) not in self._claimed:
                    self.left_out.append(LeftOut(_in(path, file), reason, True))
        return done

    def _groups(self, folder):
        """Group a folder's weights by name, without what is there twice."""
        names = sorted(self._folders.get(folder, ()))
        groups = {}
        for name in names:
            if match := INDEX.fullmatch(name):
                shards = self._shards_of(_in(folder, name)) or ()
                groups[match["stem"] + (match["variant"] or "")] = _Group(
                    tuple(shards), _in(folder, name)
                )
        for name in names:
            path = _in(folder, name)
            if not name.endswith(_SUFFIX) or path in self._claimed:
                continue
            if TRAINERS_STATE.match(name):
                self.left_out.append(LeftOut(path, "a trainer's state, no model", True))
                continue
            match = SHARD.fullmatch(name)
            stem = name.removesuffix(_SUFFIX)
            if match:
                stem = match["stem"] + (match["variant"] or "")
            group = groups.get(stem, _Group(()))
            if match and group.shard_index:
                reason = "a shard that the index beside it does not name"
                if group.files:
                    self.left_out.append(LeftOut(path, reason))
                continue
            if match is None and group != _Group(()):
                # The whole beside its shards.
                self._leave(group, "the same model in shards", is_twin=True)
                group = _Group(())
            groups[stem] = group._replace(files=(*group.files, path))
        return self._without_twins(folder, groups)

    def _without_twins(self, folder, groups):
        for stem in sorted(groups):
            match = _CANONICAL_STEM.fullmatch(stem)
            if not match or not match["variant"]:
                continue
            variant = match["variant"].lower()
            best = min(
                (p for p in _PRECISIONS if f"{match[1]}.{p}" in groups),
                key=_PRECISIONS.index,
                default=None,
            )
            if match[1] not in groups and best in (None, variant):
                continue
            if variant in _PRECISIONS:
                reason = "the same model in another precision"
                self._leave(groups.pop(stem), reason, is_twin=True)
            elif match[1] in groups:
                reason = (
                    f"named as if it were {match[1]}.safetensors beside it in another "
                    "form: if it is another model, rename it, or pass the file itself"
                )
                self._leave(groups.pop(stem), reason)
        main = self._main(groups)
        if main is not None and not _AUTHORS_STEM.fullmatch(main):
            for stem in [s for s in groups if _AUTHORS_STEM.fullmatch(s)]:
                reason = "the model beside it, in its authors' own format"
                self._leave(groups.pop(stem), reason, is_twin=True)
        return groups

    def _leave(self, group, reason, is_twin=False):
        path = group.shard_index or group.files[0]
        self.left_out.append(LeftOut(path, reason, is_twin))

    @staticmethod
    def _main(groups):
        """Pick the group that is the folder's model, if there is one."""
        main = next((stem for stem in _CANONICAL if stem in groups), None)
        if main is None:
            matches = [_CANONICAL_STEM.fullmatch(stem) for stem in sorted(groups)]
            precise = [m[0] for m in matches if m and m["variant"] in _PRECISIONS]
            indexed = [stem for stem, group in groups.items() if group.shard_index]
            main = (precise or (indexed if len(indexed) == 1 else []) or [None])[0]
        return main

    def _split(self, folder, groups):
        """Name each group of a folder, and leave out the checkpoints among them."""
        renamed, main = {}, self._main(groups)
        if self._checkpoints == "last":
            renamed, dropped = last_of_stems(groups, main is not None)
            for stem in dropped:
                self._leave(groups.pop(stem), REASON)
        for stem in sorted(groups, key=natural):
            name = renamed.get(stem, stem)
            name = "" if stem == main or name in _CANONICAL else name
            part = self._part(folder, groups[stem])
            yield (_in(folder, name) if name else folder), part

    def _part(self, folder, group, prefix=""):
        config = _in(folder, "adapter_config.json")
        return Part(
            tuple(
                self._location(path) if path in self._found else ""
                for path in sorted(group.files, key=natural)
            ),
            prefix,
            self._location(group.shard_index) if group.shard_index else None,
            self._location(config) if config in self._found else None,
        )

    def card(self, folder):
        """Location of the nearest model card at a folder or above it."""
        while True:
            path = _in(folder, "README.md")
            if path in self._found:
                return self._location(path)
            if not folder:
                return None
            folder = folder.rpartition("/")[0]

    def _list_unread(self, folder, has_model):
        """List a folder's weights in formats that are not read."""
        names = self._folders.get(folder, ())
        stems = {name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)}
        for name in sorted(names):
            reason = unread_format(name)
            if reason is not None:
                stem = name.rpartition(".")[0]
                # As libraries call the folder's model in that format.
                is_model = MODEL_STEM.fullmatch(re.split(r"\.|-0", name)[0])
                is_twin = stem in stems or (has_model and bool(is_model))
                self.left_out.append(LeftOut(_in(folder, name), reason, is_twin))
