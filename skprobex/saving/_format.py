"""Take estimators apart into JSON and arrays, and put them together again.

A value is None, a bool, an int, a finite float, a str or a list of values, written as
JSON does, or else an object with one key, which says what it is:

================= ======================================================
``float``         ``"nan"``, ``"inf"`` or ``"-inf"``
``tuple``         list of values
``dict``          list of pairs of values, in order
``array``         name, dtype and shape of a tensor in the file, and "C",
                  or "F" if that is the transpose
``strings``       width, shape and values of an array of text
``elements``      shape and values of an array of Python objects
``masked``        values and mask of a masked array
``scalar``        an array without axes: a numpy number
``tensor``        an array, and the torch dtype it is seen as
``device``        a torch device
``random_state``  the state of a numpy RandomState
``object``        number of an object, of a class in ``SAVED_CLASSES``
================= ======================================================

An object is its class's name, its parameters (or fields) and its other attributes.
Each is listed once, after those it consists of. Arrays that share their memory are
written once, and share it again.
"""

from dataclasses import fields, is_dataclass

from sklearn.base import BaseEstimator

# How deep lists, tuples and dicts may be nested in each other.
MAX_DEPTH = 20
# Widest array of text, in bytes: a short file must not ask for much memory.
MAX_TEXT_BYTES = 2**28


def parameter_names(cls):
    """What the class is made with."""
    if issubclass(cls, BaseEstimator):
        return cls._get_param_names()
    if is_dataclass(cls):
        return [field.name for field in fields(cls)]
    return getattr(cls, "_fields", [])  # a NamedTuple's
