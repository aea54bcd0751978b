"""What W can be: validation and the one lift to 3-D."""

from ._collection import ModelCollection
from ._dense import DenseWeights
from ._in_files import LayerWeights
from ._low_rank import LowRankWeights
from ._several import SeveralLayers
from ._validation import (
    Layers,
    WeightsLike,
    check_weight_shape,
    holds_several,
    layer_names,
    take_layers,
    unwrap_jungle,
    usable_layers,
    validate_layers,
    validate_weights,
)

__all__ = [
    "DenseWeights",
    "LayerWeights",
    "Layers",
    "LowRankWeights",
    "ModelCollection",
    "SeveralLayers",
    "WeightsLike",
    "check_weight_shape",
    "holds_several",
    "layer_names",
    "take_layers",
    "unwrap_jungle",
    "usable_layers",
    "validate_layers",
    "validate_weights",
]
