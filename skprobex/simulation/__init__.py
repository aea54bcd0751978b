"""What was a model trained on? Answers from its base and examples of the data."""

from ._activations import collect_activations
from ._gradients import RandomHead, collect_gradients
from ._matcher import DataMatcher
from ._moments import Activations, ClassMoments
from ._scores import score_examples
from ._simulate import simulate_models
from ._weights import SimulatedWeights

__all__ = [
    "Activations",
    "ClassMoments",
    "DataMatcher",
    "RandomHead",
    "SimulatedWeights",
    "collect_activations",
    "collect_gradients",
    "score_examples",
    "simulate_models",
]
