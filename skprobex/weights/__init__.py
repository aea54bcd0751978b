"""What W can be: one contract, its kinds, and what turns a user's W into them."""

from ._collection import ModelCollection
from ._contract import Weights
from ._in_files import LayerWeights
from ._low_rank import LowRankWeights
from ._validation import WeightsLike

__all__ = [
    "LayerWeights",
    "LowRankWeights",
    "ModelCollection",
    "Weights",
    "WeightsLike",
]
