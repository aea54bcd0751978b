"""Models of hub repositories: one, all of an owner, or those that a search finds."""

from __future__ import annotations

import glob
import os
import re
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from urllib.parse import quote

from ..exceptions import RemoteError, WeightFileError
from ._cards import card_metadata
from ._folders import cached_repository
from ._found import Found, called, join_found
from ._hub import HubUnreachableError
from ._other_formats import refuse_unread

HUB_URL = re.compile(
    r"hf://(?:models/)?([^/@]+/[^/@]+)(?:@(refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(.*))?"
)
_N_THREADS = 8


class HubModels:
    """Finds models on the hub, or in its cache where that is asked for.

    Parameters
    ----------
    locator : Locator
        Whose hub it is, and who groups files into models.
    """

    def __init__(self, locator):
        self._locator, self._hub = locator, locator.hub

    def find(self, repository, revision, inside):
        """List the models of a repository, or of a folder or file inside it."""
        if self._hub.is_offline:
            return self._find_cached(repository, revision, inside)
        self._locator.is_remote = True
        try:
            if self._locator.from_cache:  # out of reach a moment ago
                raise HubUnreachableError(f"{self._hub.endpoint} is out of reach.")
            described = self._hub.describe(repository, revision)
        except HubUnreachableError as error:
            try:
                found = self._find_cached(repository, revision, inside)
            except WeightFileError:
                raise RemoteError(
                    f"{repository} is no folder here, not in the hub's cache, and as "
                    f"a hub repository: {error}"
                ) from None
            self._locator.from_cache.append(repository)
            return found
        except RemoteError as error:
            raise RemoteError(
                f"{repository} is no folder here, and as a hub repository: {error}"
            ) from None
        return self._of_repository(described, inside)

    def _of_repository(self, described, inside):
        name, commit, paths, card = described
        base = f"{self._hub.endpoint}/{name}/resolve/{quote(commit, safe='')}"
        paths = inside_of(paths, inside)

        def location(path):
            cached = self._hub.cached(name, commit, path)
            return cached or f"{base}/{quote(path)}"

        # Names begin with the repository's, also for what lies in its folders.
        models, left_out = self._locator.group(paths, "", location)
        if not models:
            refuse_unread(paths, f"{name}/{inside}" if inside else name)
        card = card_metadata(card)
        models = [model._replace(card=card) for model in models]
        left_out = [entry._replace(path=f"{name}/{entry.path}") for entry in left_out]
        return Found(called(models, name), left_out, {})

    def _find_cached(self, repository, revision, inside):
        """List the models of a repository as the hub's client has downloaded it."""
        folder = self._hub.folder(repository)
        _, snapshot = cached_repository(folder, revision) or (None, None)
        if snapshot is None:
            raise WeightFileError(
                f"{repository} is not in {self._hub.cache} at revision "
                f"{revision or 'main'!r}, and HF_HUB_OFFLINE forbids to fetch it."
            )
        source = f"{repository}/{inside}" if inside else repository
        return self._locator.find_below(snapshot, source, repository, inside)

    def of_owner(self, pattern, revision, inside):
        """List the repositories of an owner whose names fit a pattern."""
        owner, _, name = pattern.partition("/")
        if glob.has_magic(owner):
            raise WeightFileError(
                f"hf://{pattern}: only the name of a repository may be a pattern, as "
                "in hf://org/*."
            )
        if self._hub.is_offline:
            folders = sorted(glob.glob(self._hub.folder(f"{glob.escape(owner)}/*")))
            known = [cached_repository(folder) for folder in folders]
            names = [found[0] for found in known if found]
            names = [n for n in names if fnmatchcase(n.partition("/")[2], name)]
            looks = {
                found: self._tried(self._find_cached, found, revision, inside)
                for found in names
            }
            return join_found(looks, f"hf://{pattern}")
        self._locator.is_remote = True
        found = self._hub.search(name, revision, author=owner)
        return self._of_repositories(found, inside, pattern)

    def search(self, source, search):
        """List the models of the repositories that a search finds."""
        wanted = {"search": search} if isinstance(search, str) else dict(search)
        if self._hub.is_offline:
            raise WeightFileError(
                "search asks the hub, which HF_HUB_OFFLINE forbids: name the "
                "repositories, or 'hf://org/*' for those in the cache."
            )
        self._locator.is_remote = True
        pattern, revision = "*", self._locator.revision
        if source is not None:
            match = HUB_URL.fullmatch(os.fspath(source))
            if not match:
                raise ValueError(
                    f"search looks on the hub, but source is {source!r}: pass "
                    "'hf://org/*', or no source."
                )
            wanted["author"], _, pattern = match[1].partition("/")
            revision = match[2] or revision
        found = self._hub.search(pattern, revision, **wanted)
        return self._of_repositories(found, None, f"search={search!r}")

    def _of_repositories(self, repositories, inside, what):
        def look(repository):
            return self._tried(self._of_repository, repository, inside)

        with ThreadPoolExecutor(_N_THREADS) as executor:
            looked = list(executor.map(look, repositories))
        names = [repository.name for repository in repositories]
        return join_found(dict(zip(names, looked, strict=True)), what)

    @staticmethod
    def _tried(look, *arguments):
        try:
            return look(*arguments)
        except WeightFileError as error:
            return error


def inside_of(paths, inside):
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
