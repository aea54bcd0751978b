"""The order in which people count: layer 2 before layer 10."""

import re

_DIGITS = re.compile(r"([0-9]+)")


def natural(name):
    """Return a key that sorts numbers in names by their size.

    Digits are compared as text, by length and then by sign: a name may hold more of
    them than Python turns into a number.
    """
    parts = _DIGITS.split(name)
    keys = [(-1, parts[0])]
    for digits, text in zip(parts[1::2], parts[2::2], strict=True):
        number = digits.lstrip("0")
        keys += [(len(number), number), (-1, text)]
    # Names that differ in leading zeros only still have an order.
    return keys, name
