"""Search models by a sentence, or by the weights of other models."""

from ._index import ModelIndex
from ._result import SearchResult

__all__ = ["ModelIndex", "SearchResult"]
