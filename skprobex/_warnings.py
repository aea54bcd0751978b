"""What messages share: the line a warning points at, and lists that stay short."""

import sys
import warnings

_LIBRARIES = ("skprobex", "sklearn", "joblib")


def warn(message, category=UserWarning):
    """Warn at the line that led here, the last one outside of the libraries."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and _library(frame) in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _library(frame):
    return frame.f_globals.get("__name__", "").partition(".")[0]


def listed(names, n=5, show=repr):
    """Name the first few and count the rest: ``'a', 'b' and 3 more``."""
    names = list(names)
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(map(show, names[:n])) + more
