"""Find the models in a folder or a repository, by the names of its files alone.

Everything becomes a list of relative paths first, wherever the files lie; which of
them form one model is then a question about names.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from ..exceptions import CorruptFileError, UnsupportedFormatError, WeightFileError

_INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors")
# Files that are a folder's model: it is then called as the folder is. First come first.
_CANONICAL = (
    "model",
    "adapter_model",
    "pytorch_lora_weights",
    "diffusion_pytorch_model",
    "pytorch_model",
)
_CANONICAL_STEM = re.compile(rf"({'|'.join(_CANONICAL)})(\.(?P<variant>\w+))?")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Trainers keep these beside the weights.
_NO_CHECKPOINT = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state).*")


class ModelFiles(NamedTuple):
    """One model: its name, and the locations of its files.

    `files` are pairs of a location and what to put before the names of its tensors;
    `shard_index` is the location of an index, `config` that of a PEFT configuration.
    """

    name: str
    files: tuple[tuple[str, str], ...]
    shard_index: str | None = None
    config: str | None = None


def walk(root):
    """List the files below a folder, relative to it, in a stable order.

    Hidden folders, half-downloaded files and the blobs of a Hugging Face cache are
    left out, its repositories replaced by their current snapshots, and links that
    lead back to a folder being walked are not followed.

    Returns
    -------
    list of (str, str)
        Relative posix path, and the path to open.
    """
    found = []
    _walk(os.fspath(root), "", (), found)
    return sorted(found)


def _walk(folder, prefix, ancestors, found):
    real = os.path.realpath(folder)
    if real in ancestors:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if not ancestors:
            raise WeightFileError(
                f"{folder} cannot be listed ({error.strerror})."
            ) from None
        return
    for entry in entries:
        name = entry.name
        if name.startswith(".") or name.endswith(".incomplete"):
            continue
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself
            continue
        if not is_folder:
            found.append((prefix + name, entry.path))
            continue
        repository = cached_repository(entry.path)
        if repository is not None:
            name, path = repository
            if path is not None:
                _walk(path, f"{prefix}{name}/", (*ancestors, real), found)
        else:
            _walk(entry.path, f"{prefix}{name}/", (*ancestors, real), found)


def cached_repository(folder, revision=None):
    """Resolve a Hugging Face cache folder ``models--<org>--<repo>``.

    Returns
    -------
    (name, snapshot) or None
        None if it is no such folder; the snapshot is None if nothing is in it.
    """
    folder = Path(folder)
    if not folder.name.startswith("models--") or not (folder / "snapshots").is_dir():
        return None
    name = folder.name.removeprefix("models--").replace("--", "/")
    snapshots = sorted(path for path in (folder / "snapshots").iterdir())
    for wanted in (revision,) if revision else ("main",):
        try:
            commit = (folder / "refs" / wanted).read_text().strip()
        except (OSError, ValueError):
            commit = wanted
        if commit and (folder / "snapshots" / commit).is_dir():
            return name, str(folder / "snapshots" / Path(commit).name)
    if revision is None and snapshots:
        # No reference to main: a download by commit. Take the newest.
        return name, str(max(snapshots, key=lambda path: path.stat().st_mtime_ns))
    return name, None


def group_files(paths, root_name, location):
    """Group files into models.

    Parameters
    ----------
    paths : iterable of str
        Posix paths relative to the root.
    root_name : str
        Name of a model whose files lie in the root itself.
    location : callable
        Turns a relative path into what can be opened.

    Returns
    -------
    list of ModelFiles
        Sorted by name, names unique.
    """
    folders = defaultdict(list)
    for path in paths:
        folder, _, name = path.rpartition("/")
        folders[folder].append(name)
    models, pipelines = [], set()
    for folder in sorted(folders):
        parent = folder.rpartition("/")[0] if folder else None
        if parent in pipelines and folder:
            continue
        if "model_index.json" in folders[folder]:
            pipeline = _pipeline(folder, folders, root_name, location)
            if pipeline is not None:
                pipelines.add(folder)
                models.append(pipeline)
                continue
        models += _group_folder(folder, folders[folder], root_name, location)
    return make_unique(sorted(models, key=lambda model: model.name))


def _in(folder, name):
    return f"{folder}/{name}" if folder else name


def _pipeline(folder, folders, root_name, location):
    """Join the components of a diffusers pipeline into one model."""
    files = []
    below = [name for name in folders if name.rpartition("/")[0] == folder and name]
    for component in sorted(below):
        prefix = component.rpartition("/")[2]
        if prefix == "safety_checker":
            continue
        parts = _group_folder(component, folders[component], root_name, location)
        if not parts or parts[0].shard_index is not None:
            # Sharded components keep models of their own.
            return None
        files += [(path, f"{prefix}.") for path, _ in parts[0].files]
    return ModelFiles(folder or root_name, tuple(files)) if files else None


def _group_folder(folder, names, root_name, location):
    weights = [name for name in names if name.endswith(".safetensors")]
    indices = [name for name in names if name.endswith(_INDEX)]
    config = (
        location(_in(folder, "adapter_config.json"))
        if "adapter_config.json" in names
        else None
    )
    # stem -> (files, index), a model each
    groups = {}
    for name in indices:
        groups[name.removesuffix(_INDEX)] = ((), location(_in(folder, name)))
    for name in weights:
        match = _SHARD.fullmatch(name)
        stem = match["stem"] if match else name.removesuffix(".safetensors")
        files, index = groups.get(stem, ((), None))
        if match is None or index is None:
            groups[stem] = ((*files, name), index if match else None)
    if any(index for _, index in groups.values()):
        # The same model once more, in its authors' own format.
        groups.pop("consolidated", None)
    for stem in sorted(groups):
        match = _CANONICAL_STEM.fullmatch(stem)
        if match and match["variant"] and match[1] in groups:
            # The same model in another precision.
            del groups[stem]
    main = next((stem for stem in _CANONICAL if stem in groups), None)
    if main is None:
        variants = [stem for stem in sorted(groups) if _CANONICAL_STEM.fullmatch(stem)]
        main = variants[0] if variants else None
    models = []
    for stem, (files, index) in groups.items():
        models.append(
            ModelFiles(
                (folder or root_name) if stem == main else _in(folder, stem),
                tuple((location(_in(folder, name)), "") for name in sorted(files)),
                index,
                config,
            )
        )
    return models


def make_unique(models):
    """Number the later ones of models with the same name."""
    taken, unique = set(), []
    for model in models:
        name, number = model.name, 2
        while name in taken:
            name, number = f"{model.name} ({number})", number + 1
        taken.add(name)
        unique.append(model._replace(name=name))
    return unique


def check_shards(paths):
    """Check that shards without an index are all there.

    Raises
    ------
    CorruptFileError
        Naming the first that is missing.
    """
    for path in paths:
        match = _SHARD.fullmatch(path.replace(os.sep, "/").rpartition("/")[2])
        if match is None:
            continue
        total = int(match["total"])
        numbers = {
            int(found["number"])
            for other in paths
            if (
                found := _SHARD.fullmatch(other.replace(os.sep, "/").rpartition("/")[2])
            )
        }
        for number in range(1, min(total, 99_999) + 1):
            if number not in numbers:
                raise CorruptFileError(
                    f"{match['stem']}-{number:05d}-of-{total:05d}.safetensors is "
                    f"missing beside {path}: expected {total} shards. Download the "
                    "model again."
                )
        return


def read_index(text, name):
    """Read a shard index.

    Returns
    -------
    dict of str to str
        The shard of each tensor.

    Raises
    ------
    CorruptFileError
        If it is no index, or points outside its folder.
    """
    try:
        weight_map = json.loads(text)["weight_map"]
        shards = set(weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CorruptFileError(
            f"{name} is no shard index: expected an object whose weight_map names the "
            "shard of each tensor. Download it again."
        ) from None
    for shard in shards:
        is_name = isinstance(shard, str) and shard.endswith(".safetensors")
        if not is_name or "/" in shard or "\\" in shard or shard.startswith("."):
            raise CorruptFileError(
                f"{name} names the shard {str(shard)[:80]!r}: expected the name of a "
                "safetensors file in the same folder."
            )
    return weight_map


def refuse_unread(paths, source):
    """Say why there is no model, where files of other formats are all there is.

    Raises
    ------
    UnsupportedFormatError
        If there are pickle checkpoints or GGUF files.
    WeightFileError
        If there is nothing.
    """
    names = [path.replace(os.sep, "/").rpartition("/")[2] for path in paths]
    for name in sorted(names):
        if name.lower().endswith(".gguf"):
            raise UnsupportedFormatError(
                f"{source} holds {name}: GGUF files hold quantised weights and are "
                "not read. Open the safetensors checkpoint it was converted from."
            )
        if name.lower().endswith(_PICKLES) and not _NO_CHECKPOINT.match(name):
            raise UnsupportedFormatError(
                f"{source} holds {name}: pickle checkpoints can run code when loaded "
                "and are never opened. Convert it where you trust it: "
                "safetensors.torch.save_file(torch.load(path, weights_only=True), "
                "'model.safetensors')."
            )
    raise WeightFileError(
        f"{source} holds no safetensors files: expected model.safetensors, shards with "
        "an index, adapter_model.safetensors, or any *.safetensors."
    )
