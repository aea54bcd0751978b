"""Models in shards: which files they are, and whether all are there."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import NamedTuple

from ..exceptions import CorruptFileError

INDEX = re.compile(
    r"(?P<stem>.+)\.safetensors\.index(?P<variant>\.\w{1,40})?\.json", re.DOTALL
)
SHARD = re.compile(
    r"(?P<stem>.+?)[-_](?P<number>[0-9]{1,9})[-_]of[-_](?P<total>[0-9]{1,9})"
    r"(?P<variant>\.\w{1,40})?\.safetensors",
    re.DOTALL,
)
_MAX_INDEX_BYTES = 64 * 2**20
# No model has more shards; a list of a million would be asked for one by one.
_MAX_SHARDS = 2000


def check_shards(paths):
    """Check that shards without an index are all there.

    Raises
    ------
    CorruptFileError
        Naming the first that is missing.
    """
    names = [path.replace(os.sep, "/").rpartition("/")[2] for path in paths]
    matches = [match for name in names if (match := SHARD.fullmatch(name))]
    if not matches:
        return
    first = matches[0]
    total, numbers = int(first["total"]), {int(match["number"]) for match in matches}
    # Some count from zero.
    start = 0 if 0 in numbers else 1
    for number in range(start, min(total, len(numbers) + 1) + start):
        if number not in numbers:
            width = len(first["number"])
            missing = first[0].replace(first["number"], f"{number:0{width}d}", 1)
            raise CorruptFileError(
                f"{missing} is missing beside {paths[0]}: expected {total} shards. "
                "Download the model again."
            )


class ShardIndex(NamedTuple):
    """What a shard index says: the shard of each tensor.

    `digest` is the same of equal indices; `shards` are sorted.
    """

    digest: str
    weight_map: dict[str, str]
    shards: list[str]


def read_index(source):
    """Read a shard index.

    Returns
    -------
    ShardIndex

    Raises
    ------
    CorruptFileError
        If it is no index, or points outside its folder.
    """
    if source.size > _MAX_INDEX_BYTES:
        raise CorruptFileError(f"{source} has {source.size} bytes: that is no index.")
    text = bytes(source.read(0, source.size))
    try:
        weight_map = json.loads(text)["weight_map"]
        shards = set(weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CorruptFileError(
            f"{source} is no shard index: expected an object whose weight_map names "
            "the shard of each tensor. Download it again."
        ) from None
    for shard in shards:
        is_path = isinstance(shard, str) and shard.endswith(".safetensors")
        if not is_path or not is_safe_path(shard):
            raise CorruptFileError(
                f"{source} names the shard {ascii(shard)[:80]}: expected the name of a "
                "safetensors file in the same folder, or below it."
            )
    if len(shards) > _MAX_SHARDS:
        raise CorruptFileError(
            f"{source} names {len(shards)} shards: no model has more than "
            f"{_MAX_SHARDS}."
        )
    digest = hashlib.sha256(text).hexdigest()
    return ShardIndex(digest, weight_map, sorted(shards))


def is_safe_path(path):
    """Whether a path that a stranger wrote leads to somewhere below its folder."""
    return (
        0 < len(path) <= 1000
        and path.isprintable()
        and not re.search(r'[\\:*?"<>|]', path)
        and not any(part in ("", ".", "..") for part in path.split("/"))
        and not path.startswith(".")
    )
