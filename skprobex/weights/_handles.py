"""Handles: what is known of models that stay on disk."""

from __future__ import annotations

from typing import Any, NamedTuple


class StoredModel(NamedTuple):
    """A model in files.

    `specs` is keyed by layer name and says how each layer is read from `sources`;
    models with the same header share it.
    """

    name: str
    sources: tuple
    specs: dict
    metadata: dict


class LayerHandle(NamedTuple):
    """One layer of one model in files: small, picklable, nothing open."""

    name: str
    sources: tuple
    spec: Any  # one of `io._specs`

    def read(self):
        """Read a tensor, or a pair of factors."""
        return self.spec.read(self.sources)

    def read_into(self, out):
        """Read a dense layer into a tensor, converting it where needed."""
        if not self.spec.read_into(self.sources, out):
            out.copy_(self.read().reshape(out.shape))

    @property
    def file(self):
        """The file that the layer lies in."""
        return str(self.sources[self.spec.file])
