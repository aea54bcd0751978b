"""The headers of a model's files, read: one file, its shards, or a component's."""

from __future__ import annotations

import json
import os
from urllib.parse import quote

from .._natural import natural
from ..exceptions import CorruptFileError, WeightFileError
from ._other_formats import explain
from ._recipes import TensorRef
from ._safetensors import read_header
from ._settings import settings_key
from ._shards import check_shards

_MAX_CONFIG_BYTES = 4 * 2**20


class Interned:
    """What a zoo's models have in common, kept once: headers, and what is in them."""

    def __init__(self):
        self.headers, self.layers, self.kept, self.cards = {}, {}, [], {}


class OpenPart:
    """One of a model's parts, its headers read."""

    def __init__(self, part, index):
        self.part, self.index = part, index
        self.sources, self.headers, self.metadata, self.config = [], [], {}, None

    @property
    def key(self):
        """What the layers depend on."""
        return (
            tuple(map(id, self.headers)),
            self.part.prefix,
            self.index and self.index.digest,
            self.config and settings_key(self.config),
            self.metadata.get("lora_adapter_metadata"),
        )

    def merged(self, start, prefix):
        """All tensors by name, in sources that are counted from `start`."""
        if self.index is not None:
            merged = self._merged_shards(start)
            return {prefix + name: ref for name, ref in merged.items()}
        return {
            prefix + info.name: TensorRef(start + number, info)
            for number, tensors in enumerate(self.headers)
            for info in tensors
        }

    def _merged_shards(self, start):
        weight_map = self.index.weight_map
        merged = {
            info.name: TensorRef(start + number, info)
            for number, (tensors, shard) in enumerate(
                zip(self.headers, self.index.shards, strict=True)
            )
            for info in tensors
            if weight_map.get(info.name) == shard
        }
        missing = sorted(weight_map.keys() - merged.keys())
        if missing:
            raise CorruptFileError(
                f"{self.part.shard_index} says that {weight_map[missing[0]]} holds "
                f"{missing[0]!r}, which is not there, nor are {len(missing) - 1} other "
                "tensors. Download the index and the shards of one version."
            )
        return merged


def read_part(part, locator, interned):
    """Read the headers of a part's files, and its configuration.

    Parameters
    ----------
    part : Part
    locator : Locator
    interned : Interned

    Returns
    -------
    OpenPart
    """
    if part.shard_index is not None:
        index = locator.index(part.shard_index)
        locations = _shard_locations(part, index)
    else:
        index, locations = None, part.files
        check_shards(locations)
    opened = OpenPart(part, index)
    for location in locations:
        try:
            source = locator.open(location)
            tensors, found = _read_header(source, interned.headers)
        except WeightFileError as error:
            if index is None:
                raise
            raise CorruptFileError(
                f"{part.shard_index} names a shard that cannot be used: {error}"
            ) from None
        if hasattr(source, "forget_first"):
            source.forget_first()
        opened.sources.append(source)
        opened.headers.append(tensors)
        opened.metadata.update(found)
    if part.config:
        opened.config = _read_config(part.config, locator)
    return opened


def _read_header(source, known):
    try:
        return read_header(source, known)
    except CorruptFileError as error:
        raise explain(source, error) from None


def _shard_locations(part, index):
    """Where the shards of an index are: among the files found, or else beside it."""
    if not part.files:
        return [_sibling(part.shard_index, shard) for shard in index.shards]
    by_name = dict(zip(sorted(index.shards, key=natural), part.files, strict=True))
    for shard, location in by_name.items():
        if not location:
            raise CorruptFileError(
                f"{part.shard_index} names a shard that cannot be used: {shard} is not "
                "beside it. Download the model again."
            )
    return [by_name[shard] for shard in index.shards]


def _sibling(location, name):
    if "://" in location:
        return f"{location.rpartition('/')[0]}/{quote(name)}"
    return os.path.join(os.path.dirname(location), name)


def _read_config(location, locator):
    source = locator.open(location)
    try:
        if source.size > _MAX_CONFIG_BYTES:
            raise ValueError("too long")
        config = json.loads(bytes(source.read(0, source.size)))
        if not isinstance(config, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        if isinstance(error, WeightFileError):
            raise
        raise CorruptFileError(
            f"{location} is no PEFT configuration ({str(error)[:80]}): expected a JSON "
            "object. Its adapter's scale cannot be known."
        ) from None
    return config
