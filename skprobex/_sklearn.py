"""The one place that imports underscored scikit-learn names."""

from sklearn.base import ClassNamePrefixFeaturesOutMixin, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions

__all__ = [
    "ClassNamePrefixFeaturesOutMixin",
    "Interval",
    "StrOptions",
    "_fit_context",
]
