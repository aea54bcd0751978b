"""Several layers of the same models: which of them knows, and all of them together."""

from ._fusion import LayerFusion
from ._search import LayerSearchCV

__all__ = ["LayerFusion", "LayerSearchCV"]
