"""Fitted estimators in files, without pickle."""

from ._save_load import Saveable, load

__all__ = ["Saveable", "load"]
