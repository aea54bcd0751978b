"""Files of weights: opening them without reading, reading without trusting, writing."""

from ._convert import convert_checkpoints
from ._open import open_models
from ._write import save_models

__all__ = ["convert_checkpoints", "open_models", "save_models"]
