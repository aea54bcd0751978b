"""Learn from the weights of neural networks with the scikit-learn API."""

from . import baselines, datasets
from ._classifier import ProbeXClassifier
from ._regressor import ProbeXRegressor
from .weights import LowRankWeights

__version__ = "0.1.0.dev0"

__all__ = [
    # Estimators
    "ProbeXClassifier",
    "ProbeXRegressor",
    # What W can be
    "LowRankWeights",
    # Modules
    "baselines",
    "datasets",
]
