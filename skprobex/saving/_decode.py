"""Put estimators together again from what `_state` says; nothing is ever run."""

import json
import math
import re
from inspect import getattr_static

import numpy as np
import torch

from .._registry import class_named
from ..exceptions import CorruptFileError, UnsupportedFormatError
from ._format import MAX_DEPTH, MAX_TEXT_BYTES, parameter_names

# A dict takes three levels of JSON, and what it holds may take some more.
_MAX_JSON_DEPTH = 4 * MAX_DEPTH
_ATTRIBUTE = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*")


class StateReader:
    """Puts objects together again, and nothing that is not in the table.

    Parameters
    ----------
    arrays : dict of str to (str, ndarray)
        Dtype in the file, and content.
    source : object
        Its `str` names the file in errors.
    """

    def __init__(self, arrays, source):
        self._arrays, self._source = arrays, source
        self._made, self._used = {}, set()
        self._objects, self._asked_for = [], set()

    def restore(self, objects):
        """Make all objects; return the last.

        Raises
        ------
        CorruptFileError
            If anything is not as `StateWriter` writes it, or is not used.
        UnsupportedFormatError
            If there is a class or a parameter that is not known here.
        """
        if not isinstance(objects, list) or not objects:
            raise self._corrupt("it lists no objects")
        for entry in objects:
            self._objects.append(self._restore(entry))
        self._asked_for.add(len(objects) - 1)
        if len(self._asked_for) < len(objects):
            raise self._corrupt("it has objects that nothing refers to")
        unused = set(self._arrays) - self._used
        if unused:
            raise self._corrupt(f"nothing refers to its tensor {min(unused)!r}")
        return self._objects[-1]

    def _restore(self, entry):
        keys = {"class", "parameters", "attributes"}
        if not isinstance(entry, dict) or set(entry) != keys:
            raise self._corrupt("an object in it has no class")
        name = entry["class"]
        cls = class_named(name) if isinstance(name, str) else None
        if cls is None:
            raise UnsupportedFormatError(
                f"{self._source} holds an object of class {str(name)[:80]!r}. Only "
                "classes that this version of skprobex knows are loaded."
            )
        parameters = self._decode_attributes(cls, entry["parameters"])
        attributes = self._decode_attributes(cls, entry["attributes"], reserved=True)
        unknown = set(parameters) - set(parameter_names(cls))
        if unknown:
            raise UnsupportedFormatError(
                f"{self._source} has the parameter {min(unknown)!r}, which {name} "
                "does not have here: it was written by another version of skprobex."
            )
        if not parameter_names(cls):
            value = cls.__new__(cls)
        else:
            try:
                # What an older version did not have yet keeps its default.
                value = cls(**parameters)
            except (TypeError, ValueError) as error:
                raise self._corrupt(f"its {name} cannot be made: {error}") from None
        if attributes:
            if not hasattr(value, "__dict__"):
                raise self._corrupt(f"its {name} has attributes")
            vars(value).update(attributes)
        return value

    def _decode_attributes(self, cls, encoded, reserved=False):
        if not isinstance(encoded, dict):
            raise self._corrupt(f"its {cls.__name__} has no attributes by name")

        def is_taken(name):
            is_method = hasattr(getattr_static(cls, name, None), "__get__")
            return is_method or name in parameter_names(cls)

        decoded = {}
        for name, node in encoded.items():
            # No methods, no properties, and nothing that Python gives a meaning to.
            if not _ATTRIBUTE.fullmatch(name) or (reserved and is_taken(name)):
                raise self._corrupt(
                    f"its {cls.__name__} has an attribute named {name[:80]!r}"
                )
            if isinstance(node, dict) and set(node) == {"json"}:
                array = self._decode(node["json"])
                if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
                    raise self._corrupt(f"the text of {name!r} is none")
                node = parse_json(array.tobytes(), self._source)
            decoded[name] = self._decode(node)
        return decoded

    def _decode(self, node, depth=0):
        if depth > _MAX_JSON_DEPTH:
            raise self._corrupt("its values are nested too deep")
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        if isinstance(node, list):
            return [self._decode(part, depth + 1) for part in node]
        if len(node) == 1:
            ((kind, content),) = node.items()
            decode = self._KINDS.get(kind)
            if decode is not None:
                return decode(self, content, depth + 1)
        raise self._corrupt(f"it has a value of unknown kind, {sorted(node)[:3]}")

    def _decode_float(self, content, depth):
        if content not in ("nan", "inf", "-inf"):
            raise self._corrupt("it has a number that is none")
        return float(content)

    def _decode_tuple(self, content, depth):
        return tuple(self._decode_list(content, depth))

    def _decode_list(self, content, depth):
        if not isinstance(content, list):
            raise self._corrupt("it has a list that is none")
        return self._decode(content, depth)

    def _decode_dict(self, content, depth):
        pairs = self._decode_list(content, depth)
        try:
            decoded = dict(pairs)
        except (TypeError, ValueError):
            raise self._corrupt("it has a dict that is none") from None
        if len(decoded) != len(pairs):
            raise self._corrupt("it has a dict with a key twice")
        return decoded

    def _decode_array(self, content, depth):
        try:
            name, dtype, shape, order = content
            found, array = self._arrays[name]
        except (TypeError, ValueError):
            raise self._corrupt("it has an array that is none") from None
        except KeyError:
            raise self._corrupt(f"it lacks the tensor {name!r}") from None
        if dtype != found or shape != list(array.shape) or order not in ("C", "F"):
            raise self._corrupt(
                f"its tensor {name!r} is {found} of shape {list(array.shape)}, and "
                f"should be {dtype} of shape {shape}"
            )
        self._used.add(name)
        # One array wherever it is asked for.
        return self._made.setdefault((name, order), array.T if order == "F" else array)

    def _decode_scalar(self, content, depth):
        array = self._decode(content, depth)
        if not isinstance(array, np.ndarray) or array.shape:
            raise self._corrupt("it has a numpy number that is none")
        return array[()]

    def _decode_strings(self, content, depth):
        width, shape, values = self._check_parts(content, 3)
        if not all(isinstance(value, str) for value in values):
            raise self._corrupt("it has an array of text that is none")
        longest = max(map(len, values), default=0)
        is_width = type(width) is int and max(1, longest) <= width
        if not is_width or 4 * width * len(values) > MAX_TEXT_BYTES:
            raise self._corrupt("it has an array of text of impossible width")
        return np.array(values, dtype=f"<U{width}").reshape(shape)

    def _decode_elements(self, content, depth):
        shape, values = self._check_parts(content, 2)
        array = np.empty(len(values), dtype=object)
        for i, value in enumerate(values):
            array[i] = self._decode(value, depth)
        return array.reshape(shape)

    def _decode_masked(self, content, depth):
        parts = self._decode_list(content, depth)
        is_masked = len(parts) == 2 and all(isinstance(p, np.ndarray) for p in parts)
        if not is_masked or parts[1].dtype != bool or parts[0].shape != parts[1].shape:
            raise self._corrupt("it has a masked array that is none")
        return np.ma.array(parts[0], mask=parts[1])

    def _check_parts(self, content, n_parts):
        """Check that the last part holds as many values as the shape before it says."""
        if isinstance(content, list) and len(content) == n_parts:
            *_, shape, values = content
            is_shape = (
                isinstance(shape, list)
                and len(shape) <= 32
                and all(type(size) is int and size >= 0 for size in shape)
            )
            if is_shape and isinstance(values, list):
                if math.prod(shape) == len(values):
                    return content
        raise self._corrupt("it has an array whose shape is not that of its values")

    def _decode_tensor(self, content, depth):
        if not isinstance(content, list) or len(content) != 2:
            raise self._corrupt("it has a torch tensor that is none")
        array, dtype = self._decode(content[0], depth), content[1]
        dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else None
        if not isinstance(array, np.ndarray) or not isinstance(dtype, torch.dtype):
            raise self._corrupt("it has a torch tensor that is none")
        try:
            tensor = torch.from_numpy(array)
        except TypeError:  # of text
            raise self._corrupt("it has a torch tensor that is none") from None
        if tensor.dtype != dtype:
            if tensor.itemsize != dtype.itemsize or dtype.is_complex:
                raise self._corrupt("it has a torch tensor of another type")
            tensor = tensor.view(dtype)
        return tensor

    def _decode_device(self, content, depth):
        try:
            return torch.device(content)
        except (RuntimeError, TypeError):
            raise self._corrupt("it names a torch device that is none") from None

    def _decode_random_state(self, content, depth):
        state = self._decode(content, depth)
        random_state = np.random.RandomState()
        try:
            random_state.set_state(state)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError):
            raise self._corrupt("it has a random state that is none") from None
        return random_state

    def _decode_object(self, content, depth):
        # Only those before it, so that none can hold itself.
        if type(content) is not int or not 0 <= content < len(self._objects):
            raise self._corrupt("it refers to an object that is not there")
        self._asked_for.add(content)
        return self._objects[content]

    _KINDS = {
        "float": _decode_float,
        "tuple": _decode_tuple,
        "dict": _decode_dict,
        "array": _decode_array,
        "scalar": _decode_scalar,
        "strings": _decode_strings,
        "elements": _decode_elements,
        "masked": _decode_masked,
        "tensor": _decode_tensor,
        "device": _decode_device,
        "random_state": _decode_random_state,
        "object": _decode_object,
    }

    def _corrupt(self, what):
        return CorruptFileError(
            f"{self._source} is damaged, or was made by something else: {what}. Save "
            "the estimator again."
        )


def parse_json(text, source):
    """Parse what a `StateWriter` gave; say if it is no JSON."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(
            f"{source} is damaged: its state is no JSON ({str(error)[:80]})."
        ) from None


def _unique(pairs):
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice")
    return entries


def _refuse(constant):
    raise ValueError(f"{constant} is no number")
