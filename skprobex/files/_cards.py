"""Model cards: the few entries in front of a README that are metadata."""

from __future__ import annotations

import re
from functools import lru_cache

# Fields of a card that say something about the model; the rest is for readers.
_KEYS = ("license", "base_model", "datasets", "tags")
_MAX_BYTES = 64 * 1024
# Lists of tags are shorter.
_MAX_FIELD_CHARS = 4096
_MAX_BRACKETS = 50
_FRONT = re.compile(r"\s{0,100}---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", re.DOTALL)


def read_card(source):
    """Read the metadata of the model card in a file.

    Parameters
    ----------
    source : source

    Returns
    -------
    dict
        Empty if there are none, or none that can be read: a README is for people.
    """
    text = bytes(source.read(0, min(source.size, _MAX_BYTES)))
    return parse_card(text)


def parse_card(text):
    """See `read_card`."""
    match = _FRONT.match(text.decode("utf-8", errors="replace").replace("\r\n", "\n"))
    if match is None:
        return {}
    fields = {}
    for field in _fields(match[1]).values():
        fields.update(_parse_field(field))
    return card_metadata(fields)


# A zoo's cards say the same of most of its models, and YAML is slow to parse.
@lru_cache(maxsize=1024)
def _parse_field(field):
    """Parse the lines of one field; nothing, if they are no field."""
    import yaml

    if field.count("[") + field.count("{") > _MAX_BRACKETS:
        return {}  # no list of words, and slow to parse
    try:
        # In Python, not in C: a card nested too deep is an error and no crash.
        parsed = yaml.load(field, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _fields(front):
    """Cut out the fields wanted: cards hold tables of results that take long to parse.

    Returns
    -------
    dict of str to str
        A field's lines.
    """
    fields, key = {}, None
    for line in front.split("\n"):
        if line[:1] not in (" ", "-", "#", ""):
            key = line.partition(":")[0].strip()
        if key in _KEYS and len(fields.get(key, "")) < _MAX_FIELD_CHARS:
            fields[key] = fields.get(key, "") + line[:_MAX_FIELD_CHARS] + "\n"
    return fields


def card_metadata(fields):
    """Keep those fields of a card that are metadata, and are what they should be.

    Returns
    -------
    dict
        ``license`` and ``base_model`` are text, ``datasets`` and ``tags`` lists of it;
        ``base_model`` is a list where a model has several, as merged ones have.
    """
    metadata = {}
    for key in _KEYS if isinstance(fields, dict) else ():
        value = fields.get(key)
        values = value if isinstance(value, list) else [value]
        values = [v for v in values if isinstance(v, str) and 0 < len(v) < 500][:1000]
        if not values:
            continue
        is_list = key in ("datasets", "tags") or len(values) > 1
        metadata[key] = values if is_list else values[0]
    return metadata
