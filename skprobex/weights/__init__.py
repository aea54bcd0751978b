"""What W can be: validation and the one lift to 3-D."""

from ._dense import DenseWeights
from ._low_rank import LowRankWeights
from ._validation import check_weight_shape, validate_weights

__all__ = ["DenseWeights", "LowRankWeights", "check_weight_shape", "validate_weights"]
