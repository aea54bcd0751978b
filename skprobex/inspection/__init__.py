"""Pictures of what was found; matplotlib is imported on first use."""

from ._calibration import LabelCalibrationDisplay
from ._importance import ProbeImportanceDisplay
from ._layers import LayerSearchDisplay
from ._loss import LossCurveDisplay
from ._text_space import TextSpaceDisplay
from ._trees import ModelTreeDisplay
from ._views import ViewScoresDisplay

__all__ = [
    # What an expert knows, and whence
    "ViewScoresDisplay",
    "ProbeImportanceDisplay",
    "LabelCalibrationDisplay",
    "LossCurveDisplay",
    # Several layers
    "LayerSearchDisplay",
    # Model Trees
    "ModelTreeDisplay",
    # Text
    "TextSpaceDisplay",
]
