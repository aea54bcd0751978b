"""Jungle datasets: real ones, trained on the spot, and synthetic ones."""

from ._digits import make_digit_jungle
from ._synthetic import make_model_tree

__all__ = ["make_digit_jungle", "make_model_tree"]
