"""Learn from the weights of neural networks with the scikit-learn API."""

from . import (
    baselines,
    datasets,
    exceptions,
    inspection,
    layers,
    metrics,
    search,
    simulation,
    solvers,
    trees,
)
from ._classifier import ProbeXClassifier
from ._embedder import ProbeXEmbedder
from ._regressor import ProbeXRegressor
from ._version import __version__ as __version__
from .files import convert_checkpoints, open_models, save_models
from .layers import LayerFusion, LayerSearchCV
from .saving import load
from .search import ModelIndex
from .trees import ModelTreeClustering, TreeExperts, recover_heritage
from .weights import LayerWeights, LowRankWeights, ModelCollection

__all__ = [
    # Estimators
    "ProbeXClassifier",
    "ProbeXRegressor",
    "ProbeXEmbedder",
    # Several layers
    "LayerFusion",
    "LayerSearchCV",
    # Model Trees
    "ModelTreeClustering",
    "TreeExperts",
    "recover_heritage",
    # Search
    "ModelIndex",
    # Saved estimators
    "load",
    # Files of weights
    "convert_checkpoints",
    "open_models",
    "save_models",
    # What W can be, beside arrays
    "LayerWeights",
    "LowRankWeights",
    "ModelCollection",
    # Modules
    "baselines",
    "datasets",
    "exceptions",
    "inspection",
    "layers",
    "metrics",
    "search",
    "simulation",
    "solvers",
    "trees",
]
