"""What W can be: one contract, its kinds, and what turns a user's W into them.

What is not in ``__all__`` is for the package itself.
"""

from ._collection import ModelCollection
from ._contract import Weights
from ._contract import check_numeric as check_numeric
from ._dense import DenseWeights as DenseWeights
from ._in_files import LayerWeights
from ._low_rank import LowRankWeights
from ._selection import take_models as take_models
from ._validation import ONLY as ONLY
from ._validation import Layers as Layers
from ._validation import WeightsLike as WeightsLike
from ._validation import as_layers as as_layers
from ._validation import as_weights as as_weights
from ._validation import check_same_shape as check_same_shape
from ._validation import check_weight_shape as check_weight_shape
from ._validation import holds_several as holds_several
from ._validation import layer_names as layer_names
from ._validation import naming_layer as naming_layer
from ._validation import take_layers as take_layers
from ._validation import unwrap_jungle as unwrap_jungle
from ._validation import usable_layers as usable_layers
from ._validation import weights_of_layer as weights_of_layer

__all__ = ["LayerWeights", "LowRankWeights", "ModelCollection", "Weights"]
