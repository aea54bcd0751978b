"""Files of weights: opening them without reading, reading without trusting, writing."""

from ._open import open_models
from ._persistence import load
from ._save import save_models

__all__ = ["load", "open_models", "save_models"]
