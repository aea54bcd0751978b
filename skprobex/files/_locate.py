"""From what a user passes as `source` to models and the means to open their files."""

from __future__ import annotations

import glob
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .._natural import natural
from ..exceptions import RemoteError, WeightFileError
from ..weights._collection import make_unique
from ._deadline import within
from ._folders import cached_repository, repository_of, walk
from ._found import Found, called
from ._globs import magic_start, matches
from ._http import HttpClient
from ._hub import Hub
from ._hub_models import HUB_URL, HubModels, inside_of
from ._layouts import LeftOut, ModelFiles, Part, group_files
from ._other_formats import refuse_unread
from ._shards import INDEX, is_safe_path, read_index
from ._sources import local_path, open_source

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,100}/[\w.-]{1,100}")
# A repository's page, or a folder or file in it, as the address bar has it.
_HUB_PAGE = re.compile(
    r"/([\w.-]+/[\w.-]+)(?:/(?P<kind>tree|blob|resolve)/([^/]+)(?:/(.*))?)?/?"
)
_AT_COMMIT = re.compile(r"/resolve/[0-9a-f]{40}/")
# Repositories that are listed at once.
_N_THREADS = 8
_LIST_SECONDS = 300.0
_IS_WEIGHTS = (".safetensors", ".safetensors.index.json")


class Locator:
    """Finds models and opens their files.

    Parameters
    ----------
    revision : str or None
        Branch, tag or commit for hub repositories.
    cache_dir : path-like or None
        Where byte ranges of remote files are kept.
    checkpoints : {"last", "all"}
        Which checkpoints of a training run are models.

    Attributes
    ----------
    from_cache : list of str
        Repositories that were looked up in the hub's cache, as it is out of reach.
    """

    def __init__(self, revision=None, cache_dir=None, checkpoints="last"):
        self.revision = revision
        self.cache_dir = cache_dir
        self.checkpoints = checkpoints
        self.is_remote = False
        self.from_cache = []
        self.hub = Hub()
        self._on_hub = HubModels(self)
        self._client = HttpClient()
        # An index says which files belong together, and later which tensors they hold.
        self._indices = {}

    def find(self, source, search=None):
        """List the models of a source.

        Parameters
        ----------
        source : str, path-like, list of them, or None
        search : str or dict, default=None
            What to look for on the hub; without a source, everywhere.

        Returns
        -------
        Found

        Raises
        ------
        WeightFileError
            If there is no model at all.
        """
        if search is not None:
            return self._on_hub.search(source, search)
        if isinstance(source, (str, os.PathLike)):
            return self._find_one(os.fspath(source))
        try:
            items = [os.fspath(item) for item in source]
        except TypeError:
            raise TypeError(
                f"source is a {type(source).__name__}: expected a folder, a glob "
                "pattern, a hub id, a URL, or a list of them."
            ) from None
        if not items:
            raise WeightFileError(
                "source is an empty list: expected paths, hub ids or URLs."
            )
        # A name says where a file lies, as far as that tells it from the others.
        items = [_expand(item) for item in items]
        common = _common_folder(items)

        def look(item):
            name = None
            if common is not None:
                name = Path(os.path.relpath(item, common)).as_posix()
            try:
                return self._find_one(item, name), None
            except WeightFileError as error:
                return None, error

        with ThreadPoolExecutor(_N_THREADS) as executor:
            looked = list(executor.map(look, items))
        models, left_out, errors = [], [], {}
        for item, (found, error) in zip(items, looked, strict=True):
            if error is not None:
                errors[item] = error
            else:
                models += found.models
                left_out += found.left_out
        if not models:
            raise next(iter(errors.values()))
        return Found(make_unique(models), left_out, errors)

    def open(self, location):
        """Open a file of a model."""
        is_remote = "://" in location
        is_hub = is_remote and location.startswith(f"{self.hub.endpoint}/")
        return open_source(
            location,
            self.cache_dir,
            client=self.hub.client if is_hub else self._client,
            # A commit's files never change.
            immutable=is_hub and _AT_COMMIT.search(location) is not None,
        )

    def index(self, location):
        """Read a shard index, once.

        Raises
        ------
        WeightFileError
        """
        if location not in self._indices:
            try:
                self._indices[location] = read_index(self.open(location))
            except WeightFileError as error:
                self._indices[location] = error
            except Exception as error:
                self._indices[location] = WeightFileError(
                    f"{location} cannot be read ({type(error).__name__}: "
                    f"{str(error)[:100]})."
                )
        found = self._indices[location]
        if isinstance(found, WeightFileError):
            raise found
        return found

    def group(self, paths, root_name, location):
        """Group the files of a listing, having read the indices among them."""
        listed = [path for path in paths if INDEX.fullmatch(path.rpartition("/")[2])]

        def shards(path):
            try:
                return self.index(location(path)).shards
            except WeightFileError:  # said when the model is opened
                return None

        indices = {}
        if listed:
            with ThreadPoolExecutor(_N_THREADS) as executor:
                found = executor.map(shards, listed)
                indices = dict(zip(listed, found, strict=True))
        return group_files(paths, root_name, location, indices, self.checkpoints)

    def _find_one(self, item, name=None):
        """List the models of one item; `name` is what they are to be called after."""
        try:
            return self._look(item, name)
        except WeightFileError:
            raise
        except Exception as error:
            # Names that no file can have, lists of files that are none, and whatever
            # else a stranger thinks of: it ends this item, not the others.
            raise WeightFileError(
                f"{item!r} cannot be opened ({type(error).__name__}: "
                f"{str(error)[:200]})."
            ) from error

    def _look(self, item, name):
        if item.startswith("hf://"):
            match = HUB_URL.fullmatch(item)
            if match and match[1].split("/")[0] not in ("datasets", "spaces"):
                revision = unquote(match[2]) if match[2] else self.revision
                if glob.has_magic(match[1]):
                    return self._on_hub.of_owner(match[1], revision, match[3])
                return self._on_hub.find(match[1], revision, match[3])
            return self._find_fsspec(item)
        if item.startswith("file://"):
            item = local_path(item)
        scheme = urlsplit(item).scheme if "://" in item else ""
        if scheme in ("http", "https"):
            return self._find_http(item)
        if scheme:
            return self._find_fsspec(item)
        item = _expand(item)
        if os.path.lexists(item):
            return self._find_local(item, name)
        if glob.has_magic(item):
            return self._find_glob(item)
        if _HUB_ID.fullmatch(item):
            return self._on_hub.find(item, self.revision, None)
        raise WeightFileError(
            f"{item} does not exist: expected a folder, a file, a glob pattern, a hub "
            "id such as 'org/name', or a URL."
        )

    def _find_local(self, path, name=None):
        if not os.path.isdir(path):
            return self._find_file(path, name)
        root = os.path.abspath(path)
        if os.path.basename(os.path.dirname(root)) == "snapshots":
            name, _ = cached_repository(repository_of(root) or root) or (name, None)
        repository = cached_repository(root, self.revision)
        if repository is not None:
            name, snapshot = repository
            if snapshot is None:
                raise WeightFileError(
                    f"{path} has no snapshot of revision {self.revision or 'main'!r}."
                )
            root = snapshot
        return self.find_below(root, path, name)

    def find_below(self, root, source, name, inside=None):
        """List the models in a folder, called after `name` if there is one."""
        listed, left_out = walk(root)
        paths = dict(listed)
        paths = {path: paths[path] for path in inside_of(paths, inside)}
        own = "" if name else os.path.basename(root) or "model"
        models, skipped = self.group(paths, own, paths.get)
        if not models:
            refuse_unread(paths, source)
        left_out = [LeftOut(*entry) for entry in left_out]
        return Found(called(models, name), [*left_out, *skipped], {})

    def _find_file(self, path, name):
        folder, file = os.path.split(path)
        if not file.endswith(_IS_WEIGHTS):
            refuse_unread([file], path)
        beside = [
            other
            for other in ("adapter_config.json", "README.md")
            if os.path.exists(os.path.join(folder, other))
        ]
        models, _ = group_files(
            [file, *beside], "", lambda name: os.path.join(folder, name), None, "all"
        )
        stem = file.removesuffix(".index.json").removesuffix(".safetensors")
        if name is not None:
            above = name.rpartition("/")[0]
            stem = name.removesuffix(".index.json").removesuffix(".safetensors")
            is_named = stem.rpartition("/")[2] in _FOLDERS_NAME
            stem = above if above and is_named else stem
        return Found([model._replace(name=stem) for model in models], [], {})

    def _find_glob(self, pattern):
        found_paths = matches(pattern)
        weights = [
            path
            for path in found_paths
            if path.endswith(_IS_WEIGHTS) or os.path.isdir(path)
        ]
        if not weights:
            refuse_unread(found_paths, pattern)
        models, left_out, seen = [], [], set()
        folder = magic_start(pattern)
        # What an index names is no model of its own, also where the pattern fits it.
        for path in sorted(weights, key=lambda path: not path.endswith(".json")):
            relative = Path(os.path.relpath(path, folder or ".")).as_posix()
            if os.path.realpath(path) in seen:
                continue
            try:
                found = self._find_one(path, relative)
            except WeightFileError as error:
                if not os.path.isdir(path):
                    raise
                # One without weights.
                left_out.append(LeftOut(relative, str(error), _is_empty(error)))
                continue
            left_out += found.left_out
            for model in found.models:
                files = self._files_of(model)
                if not files & seen:
                    models.append(model)
                seen |= files
        if not models:
            refuse_unread(found_paths, pattern)
        models = sorted(models, key=lambda model: natural(model.name))
        return Found(make_unique(models), left_out, {})

    def _files_of(self, model):
        """The files of a model on disk."""
        files = set()
        for part in model.parts:
            files.update(file for file in part.files if file)
            if part.shard_index and not part.files:
                folder = os.path.dirname(part.shard_index)
                try:
                    shards = self.index(part.shard_index).shards
                except WeightFileError:
                    shards = []
                files.update(os.path.join(folder, shard) for shard in shards)
        return {os.path.realpath(file) for file in files}

    def _find_http(self, url):
        if url.startswith(f"{self.hub.endpoint}/"):
            match = _HUB_PAGE.fullmatch(unquote(urlsplit(url).path))
            if match and (match["kind"] != "resolve" or not match[4]):
                return self._on_hub.find(match[1], match[3] or self.revision, match[4])
        self.is_remote = True
        path = unquote(urlsplit(url).path)
        name = path.rpartition("/")[2]
        if not name.endswith(_IS_WEIGHTS):
            refuse_unread([name], url)
        if name.endswith(".index.json"):
            part = Part((), shard_index=url)
        else:
            part = Part((url,))
        return Found([ModelFiles(_url_name(path), (part,))], [], {})

    def _find_fsspec(self, url):
        self.is_remote = True

        def look():
            from fsspec.core import url_to_fs

            file_system, root = url_to_fs(url)
            if not glob.has_magic(url):
                return file_system, root, file_system.find(root)
            return file_system, magic_start(root), file_system.glob(root)

        try:
            file_system, root, found = within(_LIST_SECONDS, url, look)
        except WeightFileError:
            raise
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
        paths = {path: full for path, full in paths.items() if is_safe_path(path)}

        def location(relative):
            return file_system.unstrip_protocol(f"{root}/{relative}")

        models, left_out = self.group(paths, root.rpartition("/")[2], location)
        if not models:
            refuse_unread(paths, url)
        return Found(models, left_out, {})


def _is_empty(error):
    """Whether an error says that there was nothing, not something of no use."""
    return type(error) is WeightFileError


_FOLDERS_NAME = ("model", "adapter_model", "pytorch_lora_weights")


def _expand(item):
    return os.path.expanduser(item) if item.startswith("~") else item


def _url_name(path):
    name = path.removesuffix(".index.json").removesuffix(".safetensors")
    folder, _, stem = name.strip("/").rpartition("/")
    # ".../org/repo/resolve/main/model" says more in front than behind.
    return f"{folder}/{stem}" if folder else stem


def _common_folder(items):
    """Return the folder that all items lie in, or None if not all are on disk."""
    try:
        if not all(os.path.lexists(item) for item in items):
            return None
        parents = [os.path.dirname(os.path.abspath(item)) for item in items]
        return os.path.commonpath(parents)
    except ValueError:  # on several drives, or names that are none
        return None
