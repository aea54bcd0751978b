"""Files of weights: opening them without reading, reading without trusting, writing."""

from ..weights import ModelCollection
from ._convert import convert_checkpoints
from ._open import open_models
from ._state_dicts import models_from_state_dicts
from ._write import save_models

__all__ = ["convert_checkpoints", "open_models", "save_models"]

ModelCollection._read_state_dicts = staticmethod(models_from_state_dicts)
