"""Files of weights: opening them without reading, reading without trusting, writing."""

from ._open import open_models
from ._write import save_models

__all__ = ["open_models", "save_models"]
