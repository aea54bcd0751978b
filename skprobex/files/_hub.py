"""The hub, through its own client: what a repository holds, and which there are."""

from __future__ import annotations

import os
import time
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ..exceptions import RemoteError
from ._deadline import within
from ._http import HttpClient, status_hint
from ._shards import is_safe_path

# Seconds for one answer, and for a list of many pages.
_PATIENCE, _LIST_PATIENCE = 60.0, 600.0
_N_ATTEMPTS = 3
_MAX_REPOSITORIES = 10_000
_TRUE = {"1", "on", "yes", "true"}
_SEARCH_KEYS = ("author", "filter", "limit", "search", "sort")


class HubUnreachableError(RemoteError):
    """The hub does not answer at all, or is in trouble itself."""


class Repository(NamedTuple):
    """What the hub says of a repository at one commit."""

    name: str
    commit: str
    paths: list[str]
    card: dict


class Hub:
    """Settings of `huggingface_hub`, and the questions that are asked through it.

    Its environment variables are looked up anew: that library reads them once, when it
    is imported.
    """

    @property
    def endpoint(self):
        """The hub's address."""
        return _setting("HF_ENDPOINT", "ENDPOINT").rstrip("/")

    @property
    def is_offline(self):
        """Whether the user forbids to ask."""
        found = [os.environ.get(n) for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")]
        if any(value is not None for value in found):
            return any((value or "").lower() in _TRUE for value in found)
        return bool(_constant("HF_HUB_OFFLINE"))

    @property
    def cache(self):
        """The folder in which the hub's client keeps what it has downloaded."""
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            if os.environ.get(name):
                return _expand(os.environ[name])
        if os.environ.get("HF_HOME"):
            return os.path.join(_expand(os.environ["HF_HOME"]), "hub")
        return _constant("HF_HUB_CACHE")

    @property
    def token(self):
        """What the user has logged in with, unless they forbid to send it unasked."""
        from huggingface_hub import get_token

        value = os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN")
        if value is None:
            is_disabled = bool(_constant("HF_HUB_DISABLE_IMPLICIT_TOKEN"))
        else:
            is_disabled = value.lower() in _TRUE
        return None if is_disabled else get_token()

    @cached_property
    def client(self):
        """For the ranges of the hub's files."""
        return HttpClient(token=self.token)

    def folder(self, repository):
        """Return where a repository lies in the cache."""
        return os.path.join(self.cache, f"models--{repository.replace('/', '--')}")

    def cached(self, repository, commit, path):
        """Return a file of a repository that is in the cache whole, or None."""
        file = Path(self.folder(repository), "snapshots", commit, path)
        return str(file) if file.is_file() else None

    def describe(self, repository, revision=None):
        """Ask what a repository holds.

        Raises
        ------
        HubUnreachableError
        RemoteError
            If the hub refuses, or the answer is none.
        """
        answer = self._ask(
            repository,
            _PATIENCE,
            lambda api: api.model_info(repository, revision=revision, timeout=10.0),
        )
        return _described(answer, repository)

    def search(self, pattern="*", revision=None, **wanted):
        """List the repositories that a search finds.

        Parameters
        ----------
        pattern : str, default="*"
            Which names without the owner are meant.
        revision : str, default=None
        **wanted
            `author`, `search`, `filter` (tags), `sort` and `limit` of
            ``huggingface_hub.list_models``.

        Returns
        -------
        list of Repository
        """
        unknown = sorted(set(wanted) - set(_SEARCH_KEYS))
        if unknown:
            raise ValueError(
                f"search has the key {unknown[0]!r}: expected some of {_SEARCH_KEYS}."
            )
        limit = wanted.pop("limit", None)

        def ask(api):
            # One more than is taken, to see whether there are more.
            most = limit if limit is not None else _MAX_REPOSITORIES + 1
            return list(api.list_models(full=True, cardData=True, limit=most, **wanted))

        what = ", ".join(f"{key}={value!r}" for key, value in wanted.items())
        answers = self._ask(f"The search for {what}", _LIST_PATIENCE, ask)
        if limit is None and len(answers) > _MAX_REPOSITORIES:
            raise RemoteError(
                f"The search for {what} finds more than {_MAX_REPOSITORIES} "
                "repositories: narrow it, or pass a limit."
            )
        names = [getattr(answer, "id", None) for answer in answers]
        found = [
            (name, answer)
            for name, answer in zip(names, answers, strict=True)
            if isinstance(name, str)
            and is_safe_path(name)
            and fnmatchcase(name.rpartition("/")[2], pattern)
        ]
        if not found:
            raise RemoteError(
                f"{self.endpoint} has no repositories for {what}"
                f"{'' if pattern == '*' else f' named {pattern!r}'}: check the names."
            )
        if revision is not None:
            return [self.describe(name, revision) for name, _ in found]
        return [_described(answer, name) for name, answer in found]

    def _ask(self, what, seconds, question):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint, token=self.token or False)
        for attempt in range(_N_ATTEMPTS):
            try:
                return within(seconds, self.endpoint, lambda: question(api))
            except RemoteError as error:
                raise HubUnreachableError(str(error)) from None
            except Exception as error:  # of the hub's client, or of its own client
                status = getattr(getattr(error, "response", None), "status_code", None)
                reason = f"{type(error).__name__}: {str(error)[:200]}"
                if status is not None and status < 500 and status not in (408, 429):
                    raise RemoteError(
                        f"{what} is not to be had from {self.endpoint}: HTTP {status}. "
                        f"{status_hint(404 if status == 404 else status)}"
                    ) from None
                if status is None and not _is_network(error):
                    raise RemoteError(
                        f"{self.endpoint} answered with something else than a "
                        f"repository ({reason}): check that HF_ENDPOINT is a hub."
                    ) from None
            if attempt + 1 < _N_ATTEMPTS:
                time.sleep(0.5 * 2**attempt)
        raise HubUnreachableError(
            f"{self.endpoint} is out of reach ({reason}). Check the network, or work "
            "offline with HF_HUB_OFFLINE=1."
        )


def _is_network(error):
    """Whether an error of the hub's HTTP client, whichever it uses, is a connection's.

    Its base class is OSError in one, and in the other only known by its name.
    """
    if isinstance(error, ValueError):  # also JSON that is none
        return False
    names = {cls.__name__ for cls in type(error).__mro__}
    return isinstance(error, OSError) or bool(names & {"TransportError", "HTTPError"})


def _described(answer, name):
    """Take what is needed from an answer, none of which is believed."""
    commit = getattr(answer, "sha", None)
    siblings = getattr(answer, "siblings", None) or []
    paths = [getattr(sibling, "rfilename", None) for sibling in siblings]
    is_commit = isinstance(commit, str) and commit.isascii() and commit.isalnum()
    if not is_commit or len(commit) > 64:
        raise RemoteError(
            f"The hub does not say at which commit {name} is: check that HF_ENDPOINT "
            "is a hub."
        )
    card = getattr(answer, "card_data", None)
    card = card.to_dict() if hasattr(card, "to_dict") else card or {}
    card = {**card, "tags": getattr(answer, "tags", None) or card.get("tags")}
    paths = [path for path in paths if isinstance(path, str) and is_safe_path(path)]
    return Repository(name, commit, paths, card)


def _setting(variable, constant):
    return os.environ.get(variable) or _constant(constant)


def _constant(name):
    from huggingface_hub import constants

    return getattr(constants, name)


def _expand(path):
    return os.path.expandvars(os.path.expanduser(path))
