"""The one place that imports underscored scikit-learn names."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sklearn.base import ClassNamePrefixFeaturesOutMixin
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

if TYPE_CHECKING:
    # scikit-learn's own are untyped, and would hide the signatures of what they wrap.
    _Method = TypeVar("_Method", bound=Callable[..., Any])

    def _fit_context(
        *, prefer_skip_nested_validation: bool
    ) -> Callable[[_Method], _Method]: ...

    def available_if(
        check: Callable[[Any], bool],
    ) -> Callable[[_Method], _Method]: ...
else:
    from sklearn.base import _fit_context
    from sklearn.utils.metaestimators import available_if

__all__ = [
    "ClassNamePrefixFeaturesOutMixin",
    "HasMethods",
    "Interval",
    "StrOptions",
    "_fit_context",
    "available_if",
]
