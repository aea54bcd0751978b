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

import json
import math
import re
from dataclasses import fields, is_dataclass
from inspect import getattr_static

import numpy as np
import torch
from sklearn.base import BaseEstimator

from ..exceptions import CorruptFileError, UnsupportedFormatError
from ._classes import class_named, saved_name
from ._safetensors import NUMPY_DTYPES

# How deep lists, tuples and dicts may be nested in each other; and, as a dict takes
# three levels of JSON, what holds those.
MAX_DEPTH = 20
_MAX_JSON_DEPTH = 4 * MAX_DEPTH
# An attribute of more text than this becomes a tensor: headers are to be short.
_MAX_INLINE = 2**16
# Widest array of text, in bytes: a short file must not ask for much memory.
_MAX_TEXT_BYTES = 2**28
_ATTRIBUTE = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*")


class StateWriter:
    """Collects what is to be written.

    Attributes
    ----------
    objects : list of dict
        The last is the one that `add` was called with last.
    arrays : dict of str to ndarray
        Contiguous.
    """

    def __init__(self):
        self.objects, self.arrays = [], {}
        self._numbers, self._nodes = {}, {}
        # Whose addresses are remembered must not be freed.
        self._held = []

    def add(self, value, path):
        """Add an object of a saved class; return its number.

        Parameters
        ----------
        value : object
        path : str
            What to call it in errors.

        Raises
        ------
        TypeError
            If it holds what cannot be saved; the message names the attribute.
        """
        if id(value) in self._numbers:
            number = self._numbers[id(value)]
            if number is None:
                raise TypeError(f"{path} holds itself, which cannot be saved.")
            return number
        name = saved_name(type(value))
        if name is None:
            raise TypeError(
                f"{path} is {_described(value)}, which cannot be saved: expected "
                "numbers, text, arrays, lists, dicts, or estimators of skprobex. Set "
                "it to something else before saving, or pickle the estimator."
            )
        self._numbers[id(value)] = None
        self._held.append(value)
        parameters, attributes = _take_apart(value)
        self.objects.append(
            {
                "class": name,
                "parameters": self._encode_attributes(parameters, path),
                "attributes": self._encode_attributes(attributes, path),
            }
        )
        self._numbers[id(value)] = len(self.objects) - 1
        return len(self.objects) - 1

    def _encode_attributes(self, attributes, path):
        encoded = {}
        for name, value in attributes.items():
            own_path = f"{path}.{name}"
            node = self.encode(value, own_path)
            if isinstance(node, (list, dict, str)):
                text = json.dumps(node)
                if len(text) > _MAX_INLINE:
                    text = np.frombuffer(text.encode(), dtype=np.uint8)
                    node = {"json": self.encode(text, own_path)}
            encoded[name] = node
        return encoded

    def encode(self, value, path, depth=0):
        """Turn a value into JSON."""
        if depth > MAX_DEPTH:
            raise TypeError(
                f"{path} is nested more than {MAX_DEPTH} deep, which cannot be saved."
            )

        def encode_all(values):
            return [
                self.encode(part, f"{path}[{i}]", depth + 1)
                for i, part in enumerate(values)
            ]

        # Exact types: what a subclass adds would be lost.
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if kind is list:
            return encode_all(value)
        if kind is tuple:
            return {"tuple": encode_all(value)}
        if kind is dict:
            pairs = [
                [
                    self.encode(key, f"a key of {path}", depth + 1),
                    self.encode(part, f"{path}[{key!r}]", depth + 1),
                ]
                for key, part in value.items()
            ]
            return {"dict": pairs}
        if isinstance(value, np.generic):
            return {"scalar": self._encode_array(np.asarray(value), path, depth)}
        if kind is np.ndarray:
            return self._encode_array(value, path, depth)
        if kind is np.ma.MaskedArray:
            parts = [value.data, np.ma.getmaskarray(value)]
            return {"masked": [self._encode_array(part, path, depth) for part in parts]}
        if kind in (torch.Tensor, torch.nn.Parameter):
            return self._encode_tensor(value, path, depth)
        if kind is torch.device:
            return {"device": str(value)}
        if kind is np.random.RandomState:
            state = value.get_state(legacy=False)
            return {"random_state": self.encode(state, path, depth + 1)}
        return {"object": self.add(value, path)}

    def _encode_array(self, array, path, depth):
        shape = list(array.shape)
        if array.dtype.kind == "U":
            width = array.dtype.itemsize // 4
            if array.nbytes > _MAX_TEXT_BYTES:
                raise TypeError(
                    f"{path} is {array.nbytes} bytes of text in an array, more than "
                    f"can be saved, {_MAX_TEXT_BYTES}."
                )
            return {"strings": [width, shape, array.ravel().tolist()]}
        if array.dtype.kind == "O":
            values = [
                self.encode(value, f"{path}[{i}]", depth + 1)
                for i, value in enumerate(array.ravel().tolist())
            ]
            return {"elements": [shape, values]}
        dtype = NUMPY_DTYPES.get(array.dtype.newbyteorder("="))
        if dtype is None:
            raise TypeError(
                f"{path} is an array of dtype {array.dtype}, which cannot be saved: "
                "expected real numbers, booleans or text."
            )
        place = array.__array_interface__["data"][0]
        key = (place, array.dtype.str, array.shape, array.strides)
        if key not in self._nodes:
            self._held.append(array)
            # Products of transposed arrays may differ in their last bits.
            is_transposed = array.flags.f_contiguous and not array.flags.c_contiguous
            stored = array.T if is_transposed else array
            stored = np.asarray(stored, dtype=array.dtype.newbyteorder("="), order="C")
            name = path.partition(".")[2]
            if name in self.arrays:
                name = f"{name}#{len(self.arrays)}"
            self.arrays[name] = stored
            order = "F" if is_transposed else "C"
            self._nodes[key] = {"array": [name, dtype, list(stored.shape), order]}
        return self._nodes[key]

    def _encode_tensor(self, tensor, path, depth):
        if tensor.layout != torch.strided or tensor.is_complex():
            raise TypeError(
                f"{path} is a sparse or complex tensor, which cannot be saved: pass "
                "a dense, real one."
            )
        tensor = tensor.detach().cpu()
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype.startswith(("bfloat", "float8")):  # numpy has none: only their bits
            tensor = tensor.view(torch.int16 if tensor.itemsize == 2 else torch.uint8)
        return {"tensor": [self._encode_array(tensor.numpy(), path, depth), dtype]}


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
        unknown = set(parameters) - set(_parameter_names(cls))
        if unknown:
            raise UnsupportedFormatError(
                f"{self._source} has the parameter {min(unknown)!r}, which {name} "
                "does not have here: it was written by another version of skprobex."
            )
        if not _parameter_names(cls):
            value = cls.__new__(cls)
        else:
            try:
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
            return is_method or name in _parameter_names(cls)

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
        if not is_width or 4 * width * len(values) > _MAX_TEXT_BYTES:
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


def _parameter_names(cls):
    """What the class is made with."""
    if issubclass(cls, BaseEstimator):
        return cls._get_param_names()
    if is_dataclass(cls):
        return [field.name for field in fields(cls)]
    return getattr(cls, "_fields", [])  # a NamedTuple's


def _take_apart(value):
    """Parameters and other attributes."""
    parameters = {n: getattr(value, n) for n in _parameter_names(type(value))}
    # What stands in for parameters that are not saved, such as loaded text encoders.
    parameters |= getattr(value, "_saved_parameters", dict)()
    left_out = {*parameters, *getattr(value, "_unsaved", ())}
    own = getattr(value, "__dict__", {})
    return parameters, {n: part for n, part in own.items() if n not in left_out}


def _described(value):
    kind = type(value).__name__
    return f"a {kind}" if not callable(value) else f"a function or class ({kind})"
