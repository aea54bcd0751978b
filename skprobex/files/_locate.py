"""From what a user passes as `source` to models and the means to open their files."""

from __future__ import annotations

import glob
import os
import re
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from .._natural import natural
from ..exceptions import RemoteError, WeightFileError
from ._cards import card_metadata
from ._deadline import within
from ._folders import cached_repository, repository_of, walk
from ._http import HttpClient
from ._hub import Hub, HubUnreachableError
from ._layouts import LeftOut, ModelFiles, Part, group_files, make_unique
from ._other_formats import refuse_unread
from ._shards import INDEX, is_safe_path, read_index
from ._sources import local_path, open_source

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,100}/[\w.-]{1,100}")
_HUB_URL = re.compile(
    r"hf://(?:models/)?([^/@]+/[^/@]+)(?:@(refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(.*))?"
)
# A repository's page, or a folder or file in it, as the address bar has it.
_HUB_PAGE = re.compile(
    r"/([\w.-]+/[\w.-]+)(?:/(?P<kind>tree|blob|resolve)/([^/]+)(?:/(.*))?)?/?"
)
_AT_COMMIT = re.compile(r"/resolve/[0-9a-f]{40}/")
# Repositories that are listed at once.
_N_THREADS = 8
_LIST_SECONDS = 300.0
_IS_WEIGHTS = (".safetensors", ".safetensors.index.json")


class Found(NamedTuple):
    """What a source holds: models, files left out, and items that hold no model."""

    models: list[ModelFiles]
    left_out: list[LeftOut]
    errors: dict[str, WeightFileError]


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
            return self._search(source, search)
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
        is_hub = location.startswith(f"{self.hub.endpoint}/")
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

    def _group(self, paths, root_name, location):
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
            match = _HUB_URL.fullmatch(item)
            if match and match[1].split("/")[0] not in ("datasets", "spaces"):
                revision = unquote(match[2]) if match[2] else self.revision
                if glob.has_magic(match[1]):
                    return self._find_owned(match[1], revision, match[3])
                return self._find_hub(match[1], revision, match[3])
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
            return self._find_hub(item, self.revision, None)
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
        return self._find_below(root, path, name)

    def _find_below(self, root, source, name, inside=None):
        """List the models in a folder, called after `name` if there is one."""
        listed, left_out = walk(root)
        paths = dict(listed)
        paths = {path: paths[path] for path in _inside(paths, inside)}
        own = "" if name else os.path.basename(root) or "model"
        models, skipped = self._group(paths, own, paths.get)
        if not models:
            refuse_unread(paths, source)
        left_out = [LeftOut(*entry) for entry in left_out]
        return Found(_called(models, name), [*left_out, *skipped], {})

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
        matches = _matches(pattern)
        weights = [
            path
            for path in matches
            if path.endswith(_IS_WEIGHTS) or os.path.isdir(path)
        ]
        if not weights:
            refuse_unread(matches, pattern)
        models, left_out, seen = [], [], set()
        folder = os.path.dirname(pattern[: re.search(r"[*?\[]", pattern).start()])
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
            refuse_unread(matches, pattern)
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

    def _find_hub(self, repository, revision, inside):
        if self.hub.is_offline:
            return self._find_cached(repository, revision, inside)
        self.is_remote = True
        try:
            if self.from_cache:  # out of reach a moment ago
                raise HubUnreachableError(f"{self.hub.endpoint} is out of reach.")
            described = self.hub.describe(repository, revision)
        except HubUnreachableError as error:
            try:
                found = self._find_cached(repository, revision, inside)
            except WeightFileError:
                raise RemoteError(
                    f"{repository} is no folder here, not in the hub's cache, and as "
                    f"a hub repository: {error}"
                ) from None
            self.from_cache.append(repository)
            return found
        except RemoteError as error:
            raise RemoteError(
                f"{repository} is no folder here, and as a hub repository: {error}"
            ) from None
        return self._of_repository(described, inside)

    def _of_repository(self, described, inside):
        name, commit, paths, card = described
        base = f"{self.hub.endpoint}/{name}/resolve/{quote(commit, safe='')}"
        paths = _inside(paths, inside)

        def location(path):
            cached = self.hub.cached(name, commit, path)
            return cached or f"{base}/{quote(path)}"

        # Names begin with the repository's, also for what lies in its folders.
        models, left_out = self._group(paths, "", location)
        if not models:
            refuse_unread(paths, f"{name}/{inside}" if inside else name)
        card = card_metadata(card)
        models = [model._replace(card=card) for model in models]
        left_out = [entry._replace(path=f"{name}/{entry.path}") for entry in left_out]
        return Found(_called(models, name), left_out, {})

    def _find_cached(self, repository, revision, inside):
        """List the models of a repository as the hub's client has downloaded it."""
        folder = self.hub.folder(repository)
        _, snapshot = cached_repository(folder, revision) or (None, None)
        if snapshot is None:
            raise WeightFileError(
                f"{repository} is not in {self.hub.cache} at revision "
                f"{revision or 'main'!r}, and HF_HUB_OFFLINE forbids to fetch it."
            )
        source = f"{repository}/{inside}" if inside else repository
        return self._find_below(snapshot, source, repository, inside)

    def _find_owned(self, pattern, revision, inside):
        """List the repositories of an owner whose names fit a pattern."""
        owner, _, name = pattern.partition("/")
        if glob.has_magic(owner):
            raise WeightFileError(
                f"hf://{pattern}: only the name of a repository may be a pattern, as "
                "in hf://org/*."
            )
        if self.hub.is_offline:
            folders = sorted(glob.glob(self.hub.folder(f"{glob.escape(owner)}/*")))
            known = [cached_repository(folder) for folder in folders]
            names = [found[0] for found in known if found]
            names = [n for n in names if fnmatchcase(n.partition("/")[2], name)]
            looks = {
                found: self._tried(self._find_cached, found, revision, inside)
                for found in names
            }
            return _joined(looks, f"hf://{pattern}")
        self.is_remote = True
        found = self.hub.search(name, revision, author=owner)
        return self._of_repositories(found, inside, pattern)

    def _search(self, source, search):
        wanted = {"search": search} if isinstance(search, str) else dict(search)
        if self.hub.is_offline:
            raise WeightFileError(
                "search asks the hub, which HF_HUB_OFFLINE forbids: name the "
                "repositories, or 'hf://org/*' for those in the cache."
            )
        self.is_remote = True
        pattern, revision = "*", self.revision
        if source is not None:
            match = _HUB_URL.fullmatch(os.fspath(source))
            if not match:
                raise ValueError(
                    f"search looks on the hub, but source is {source!r}: pass "
                    "'hf://org/*', or no source."
                )
            wanted["author"], _, pattern = match[1].partition("/")
            revision = match[2] or revision
        found = self.hub.search(pattern, revision, **wanted)
        return self._of_repositories(found, None, f"search={search!r}")

    def _of_repositories(self, repositories, inside, what):
        def look(repository):
            return self._tried(self._of_repository, repository, inside)

        with ThreadPoolExecutor(_N_THREADS) as executor:
            looked = list(executor.map(look, repositories))
        names = [repository.name for repository in repositories]
        return _joined(dict(zip(names, looked, strict=True)), what)

    @staticmethod
    def _tried(look, *arguments):
        try:
            return look(*arguments)
        except WeightFileError as error:
            return error

    def _find_http(self, url):
        if url.startswith(f"{self.hub.endpoint}/"):
            match = _HUB_PAGE.fullmatch(unquote(urlsplit(url).path))
            if match and (match["kind"] != "resolve" or not match[4]):
                return self._find_hub(match[1], match[3] or self.revision, match[4])
        self.is_remote = True
        path = unquote(urlsplit(url).path)
        name = path.rpartition("/")[2]
        if not name.endswith(_IS_WEIGHTS):
            refuse_unread([name], url)
        if name.endswith(".index.json"):
            return Found([ModelFiles(_url_name(path), (Part((), shard_index=url),))], [], {})
        return Found([ModelFiles(_url_name(path), (Part((url,)),))], [], {})

    def _find_fsspec(self, url):
        self.is_remote = True

        def look():
            from fsspec.core import url_to_fs

            file_system, root = url_to_fs(url)
            if not glob.has_magic(url):
                return file_system, root, file_system.find(root)
            start = os.path.dirname(root[: re.search(r"[*?\[]", root).start()])
            return file_system, start, file_system.glob(root)

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

        models, left_out = self._group(paths, root.rpartition("/")[2], location)
        if not models:
            refuse_unread(paths, url)
        return Found(models, left_out, {})


def _is_empty(error):
    """Whether an error says that there was nothing, not something of no use."""
    return type(error) is WeightFileError


_FOLDERS_NAME = ("model", "adapter_model", "pytorch_lora_weights")


def _joined(looks, what):
    """Join what was found in several repositories."""
    errors = {name: look for name, look in looks.items() if isinstance(look, Exception)}
    found = [look for name, look in looks.items() if name not in errors]
    models = [model for look in found for model in look.models]
    if not models:
        raise next(
            iter(errors.values()),
            WeightFileError(f"{what}: there are no such repositories in the cache."),
        )
    left_out = [entry for look in found for entry in look.left_out]
    # Of a search, repositories without weights are no faults.
    left_out += [LeftOut(name, str(error)) for name, error in errors.items()]
    return Found(make_unique(models), left_out, {})


def _called(models, name):
    """Put a name before those of models; the one that has none gets it."""
    if not name:
        return models
    return [
        model._replace(name=f"{name}/{model.name}" if model.name else name)
        for model in models
    ]


def _matches(pattern):
    """List what a glob pattern stands for; ``**`` follows no links."""
    if "**" not in pattern:
        return sorted(glob.glob(pattern))
    start = os.path.dirname(pattern[: re.search(r"[*?\[]", pattern).start()])
    listed, _ = walk(start or ".")
    wanted = os.path.relpath(pattern, start or ".").replace(os.sep, "/").split("/")
    matched = set()
    for path, full in listed:
        parts = path.split("/")
        if _fits(parts, wanted):
            matched.add(full)
        for i in range(1, len(parts)):
            # Folders, as far as they are named: "**" alone stands for files.
            if wanted[-1] != "**" and _fits(parts[:i], wanted):
                matched.add(os.path.join(start, *parts[:i]))
    return sorted(matched)


def _fits(parts, wanted):
    """Whether a path fits a pattern, both split at their slashes."""
    # Numbers of the pattern's parts that may come next.
    states = {0}
    for part in parts:
        following = set()
        for state in _past_any(states, wanted):
            if state < len(wanted) and wanted[state] == "**":
                following.add(state)
            elif state < len(wanted) and fnmatchcase(part, wanted[state]):
                following.add(state + 1)
        states = following
    return len(wanted) in _past_any(states, wanted)


def _past_any(states, wanted):
    """Add what follows where ``**`` stands for nothing."""
    states = set(states)
    for state in sorted(states):
        while state < len(wanted) and wanted[state] == "**":
            state += 1
            states.add(state)
    return states


def _expand(item):
    return os.path.expanduser(item) if item.startswith("~") else item


def _url_name(path):
    name = path.removesuffix(".index.json").removesuffix(".safetensors")
    folder, _, stem = name.strip("/").rpartition("/")
    # ".../org/repo/resolve/main/model" says more in front than behind.
    return f"{folder}/{stem}" if folder else stem


def _inside(paths, inside):
    """Keep the paths of a folder, or of a file with what lies beside it for it."""
    if not inside:
        return list(paths)
    inside = inside.rstrip("/")
    if inside.endswith(".index.json"):
        inside = inside.rpartition("/")[0]
    folder = inside.rpartition("/")[0] + "/" if "/" in inside else ""
    beside = {f"{folder}{name}" for name in ("adapter_config.json", "README.md")}
    is_file = inside.endswith(".safetensors")
    return [
        path
        for path in paths
        if path == inside
        or path.startswith(f"{inside}/")
        or (is_file and path in beside)
    ]


def _common_folder(items):
    """Return the folder that all items lie in, or None if not all are on disk."""
    try:
        if not all(os.path.lexists(item) for item in items):
            return None
        parents = [os.path.dirname(os.path.abspath(item)) for item in items]
        return os.path.commonpath(parents)
    except ValueError:  # on several drives, or names that are none
        return None
