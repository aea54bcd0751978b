"""The order in which people count: layer 2 before layer 10."""

import re

_DIGITS = re.compile(r"[0-9]+")


def natural(name):
    """Return a key that sorts numbers in names by their size.

    A number is preceded by how long it is: a name may hold more digits than Python
    turns into a number. Names that differ in leading zeros only still have an order.
    """
    return _DIGITS.sub(_with_length, name), name


def _with_length(match):
    number = match[0].lstrip("0")
    length = len(number)
    return (chr(length) if length < 31 else f"\x1f{length:08d}") + number
