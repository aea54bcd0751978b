"""Several layers of the same models: which of them knows, and all of them together."""

from ._fusion import LayerFusion

__all__ = ["LayerFusion"]
