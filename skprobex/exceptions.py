"""Errors of reading files, all ValueErrors that name the file; and warnings."""

__all__ = [
    "WeightFileError",
    "CorruptFileError",
    "UnsupportedFormatError",
    "FileChangedError",
    "RemoteError",
    "MissingLayerError",
    "OutlierWarning",
    "VersionWarning",
]


class WeightFileError(ValueError):
    """A file that cannot be used; the base of the others."""


class CorruptFileError(WeightFileError):
    """A file that is cut short, or that breaks the rules of its own format."""


class UnsupportedFormatError(WeightFileError):
    """A format, data type or adapter that is not read; the message says what to do."""


class FileChangedError(WeightFileError):
    """A file that is not what it was when the collection was opened."""


class RemoteError(WeightFileError):
    """A remote file that cannot be reached, or does not answer as it should."""


class MissingLayerError(WeightFileError):
    """A layer that some or all models do not have, or have in another shape."""


class OutlierWarning(UserWarning):
    """Models far from all others of their tree, which a fit leaves out."""


class VersionWarning(UserWarning):
    """An estimator that was saved by another version than the one that loads it."""
