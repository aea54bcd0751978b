"""From what a user passes as `source` to models and the means to open their files."""

from __future__ import annotations

import glob
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from ..exceptions import RemoteError, WeightFileError
from ._http import HttpClient
from ._layouts import (
    ModelFiles,
    cached_repository,
    group_files,
    make_unique,
    refuse_unread,
    walk,
)
from ._sources import local_path, open_source

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_URL = re.compile(r"hf://(?:models/)?([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
_AT_COMMIT = re.compile(r"/resolve/[0-9a-f]{40}/")
# Repositories that are listed at once.
_N_THREADS = 8
_IS_WEIGHTS = (".safetensors", ".safetensors.index.json")


class Locator:
    """Finds models and opens their files.

    Parameters
    ----------
    revision : str or None
        Branch, tag or commit for hub repositories.
    cache_dir : path-like or None
        Where byte ranges of remote files are kept.
    """

    def __init__(self, revision=None, cache_dir=None):
        self.revision = revision
        self.cache_dir = cache_dir
        self.is_remote = False
        self._client = HttpClient()
        self._hub_client = None

    @property
    def endpoint(self):
        """The hub's address."""
        return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")

    def find(self, source):
        """List the models of a source.

        Parameters
        ----------
        source : str, path-like, or list of them

        Returns
        -------
        models : list of ModelFiles
        errors : list of WeightFileError
            Of the items of a list that hold no model.

        Raises
        ------
        WeightFileError
            If there is no model at all.
        """
        if isinstance(source, (str, os.PathLike)):
            return self._find_one(os.fspath(source)), []
        try:
            items = [os.fspath(item) for item in source]
        except TypeError:
            raise TypeError(
                f"source is a {type(source).__name__}: expected a folder, a glob "
                "pattern, a hub id, a URL, or a list of them."
            ) from None
        models, errors = [], []
        # A name says where a file lies, as far as that tells it from the others.
        common = _common_folder(items)
        with ThreadPoolExecutor(_N_THREADS) as executor:
            listings = executor.map(self._list, items)
        for item, (found, error) in zip(items, listings, strict=True):
            if error is not None:
                errors.append(error)
                continue
            if common is not None:
                relative = Path(os.path.relpath(item, common)).as_posix()
                found = [_rename(model, relative, found) for model in found]
            models += found
        if not models:
            raise (
                errors[0]
                if errors
                else WeightFileError(
                    "source is an empty list: expected paths, hub ids or URLs."
                )
            )
        return make_unique(models), errors

    def _list(self, item):
        try:
            return self._find_one(item), None
        except WeightFileError as error:
            return None, error

    def open(self, location):
        """Open a file of a model."""
        is_hub = location.startswith(f"{self.endpoint}/")
        return open_source(
            location,
            self.cache_dir,
            client=self._hub() if is_hub else self._client,
            # A commit's files never change.
            immutable=is_hub and _AT_COMMIT.search(location) is not None,
        )

    def _find_one(self, item):
        if item.startswith("hf://"):
            match = _HUB_URL.fullmatch(item)
            if match and match[1].split("/")[0] not in ("datasets", "spaces"):
                return self._find_hub(match[1], match[2] or self.revision, match[3])
            return self._find_fsspec(item)
        if item.startswith("file://"):
            item = local_path(item)
        scheme = urlsplit(item).scheme if "://" in item else ""
        if scheme in ("http", "https"):
            return self._find_http(item)
        if scheme:
            return self._find_fsspec(item)
        if os.path.lexists(item):
            return self._find_local(item)
        if glob.has_magic(item):
            return self._find_glob(item)
        if _HUB_ID.fullmatch(item):
            return self._find_hub(item, self.revision, None)
        raise WeightFileError(
            f"{item} does not exist: expected a folder, a file, a glob pattern, a hub "
            "id such as 'org/name', or a URL."
        )

    def _find_local(self, path):
        if not os.path.isdir(path):
            folder, name = os.path.split(path)
            if not name.endswith(_IS_WEIGHTS):
                refuse_unread([name], path)
            config = os.path.join(folder, "adapter_config.json")
            names = [name]
            if os.path.exists(config):
                names.append("adapter_config.json")
            stem = name.removesuffix(".index.json").removesuffix(".safetensors")
            models = group_files(names, stem, lambda name: os.path.join(folder, name))
            return [model._replace(name=stem) for model in models]
        root = os.path.abspath(path)
        repository = cached_repository(root, self.revision)
        if repository is not None:
            name, snapshot = repository
            if snapshot is None:
                raise WeightFileError(
                    f"{path} has no snapshot of revision {self.revision or 'main'!r}."
                )
            found = [(f"{name}/{inner}", file) for inner, file in walk(snapshot)]
        else:
            found = walk(root)
        paths = dict(found)
        models = group_files(paths, os.path.basename(root) or "model", paths.get)
        if not models:
            refuse_unread(paths, path)
        return models

    def _find_glob(self, pattern):
        matches = sorted(glob.glob(pattern, recursive=True))
        weights = [
            path
            for path in matches
            if path.endswith(_IS_WEIGHTS) or os.path.isdir(path)
        ]
        if not weights:
            refuse_unread(matches, pattern)
        models = []
        folder = os.path.dirname(pattern[: re.search(r"[*?\[]", pattern).start()])
        seen = set()
        for path in weights:
            if os.path.isdir(path) and not _holds_weights(path):
                continue
            found = self._find_local(path)
            relative = Path(os.path.relpath(path, folder or ".")).as_posix()
            for model in found:
                key = (model.files, model.shard_index)
                if key not in seen:
                    seen.add(key)
                    models.append(_rename(model, relative, found))
        return make_unique(sorted(models, key=lambda model: model.name))

    def _hub(self):
        if self._hub_client is None:
            from huggingface_hub import get_token

            self._hub_client = HttpClient(token=get_token())
        return self._hub_client

    def _find_hub(self, repository, revision, inside):
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            return self._find_local(_cache_folder(repository))
        self.is_remote = True
        url = f"{self.endpoint}/api/models/{repository}"
        if revision:
            url += f"/revision/{quote(revision, safe='')}"
        try:
            described = json.loads(self._hub().get(url)[0])
            commit = described["sha"]
            paths = [entry["rfilename"] for entry in described["siblings"]]
        except RemoteError as error:
            raise RemoteError(
                f"{repository} is no folder here, and as a hub repository: {error}"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise RemoteError(
                f"{url} answered with something else than a repository: check that "
                "HF_ENDPOINT is a hub."
            ) from None
        base = f"{self.endpoint}/{repository}/resolve/{quote(commit, safe='')}"
        if inside:
            paths = [path for path in paths if _is_in(path, inside)]

        def location(path):
            return f"{base}/{quote(path)}"

        # Names begin with the repository's, also for what lies in its folders.
        models = group_files(paths, "", location)
        if not models:
            refuse_unread(paths, repository)
        return [
            model._replace(name=f"{repository}/{model.name}".rstrip("/"))
            for model in models
        ]

    def _find_http(self, url):
        self.is_remote = True
        path = unquote(urlsplit(url).path)
        name = path.rpartition("/")[2]
        if not name.endswith(_IS_WEIGHTS):
            refuse_unread([name], url)
        if name.endswith(".index.json"):
            return [ModelFiles(_url_name(path), (), url)]
        return [ModelFiles(_url_name(path), ((url, ""),))]

    def _find_fsspec(self, url):
        self.is_remote = True
        try:
            from fsspec.core import url_to_fs

            file_system, root = url_to_fs(url)
            found = file_system.find(root) if not glob.has_magic(url) else None
            if found is None:
                found = file_system.glob(root)
                root = os.path.dirname(root[: re.search(r"[*?\[]", root).start()])
        except Exception as error:  # each file system has errors of its own
            raise RemoteError(
                f"{url} cannot be listed ({type(error).__name__}: "
                f"{str(error)[:200]}). Check the address, your access to it, and that "
                "fsspec's driver for it is installed."
            ) from None
        root = root.rstrip("/")
        if found == [root]:
            root = root.rpartition("/")[0]
        paths = {path.removeprefix(root).lstrip("/"): path for path in found}

        def location(relative):
            return file_system.unstrip_protocol(f"{root}/{relative}")

        models = group_files(paths, root.rpartition("/")[2], location)
        if not models:
            refuse_unread(paths, url)
        return models


def _cache_folder(repository):
    """Return where the hub's own client keeps a repository."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    folder = cache / f"models--{repository.replace('/', '--')}"
    if not folder.is_dir():
        raise WeightFileError(
            f"{repository} is not in {cache}, and HF_HUB_OFFLINE forbids to fetch it."
        )
    return str(folder)


def _url_name(path):
    name = path.removesuffix(".index.json").removesuffix(".safetensors")
    folder, _, stem = name.strip("/").rpartition("/")
    # ".../org/repo/resolve/main/model" says more in front than behind.
    return f"{folder}/{stem}" if folder else stem


def _holds_weights(folder):
    return any(path.endswith(_IS_WEIGHTS) for path, _ in walk(folder))


def _is_in(path, inside):
    return path == inside or path.startswith(f"{inside.rstrip('/')}/")


def _common_folder(items):
    """Return the folder that all items lie in, or None if not all are on disk."""
    if not items or not all(os.path.lexists(item) for item in items):
        return None
    parents = [os.path.dirname(os.path.abspath(item)) for item in items]
    try:
        return os.path.commonpath(parents)
    except ValueError:  # on several drives
        return None


def _rename(model, relative, found):
    """Name a model found in one item of several after the item."""
    relative = relative.removesuffix(".index.json").removesuffix(".safetensors")
    if len(found) == 1:
        folder, _, stem = relative.rpartition("/")
        if stem in ("model", "adapter_model", "pytorch_lora_weights") and folder:
            relative = folder
        return model._replace(name=relative)
    return model._replace(name=f"{relative}/{model.name}")
