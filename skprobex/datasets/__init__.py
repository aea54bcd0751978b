"""Jungle datasets: real ones, trained on the spot, and synthetic ones."""

from ._adapter_jungle import make_adapter_jungle
from ._digits import make_digit_jungle
from ._model_j import fetch_model_jungle
from ._synthetic import make_model_tree

__all__ = [
    "fetch_model_jungle",
    "make_adapter_jungle",
    "make_digit_jungle",
    "make_model_tree",
]
