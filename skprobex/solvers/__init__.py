"""What fits an expert: objects with parameters of their own, given as ``solver=``."""

from ._adam import Adam
from ._published import mvprobe, probex
from ._ridge import Ridge

Solver = Adam | Ridge

__all__ = ["Adam", "Ridge", "mvprobe", "probex"]
