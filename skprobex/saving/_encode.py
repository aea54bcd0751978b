"""Take estimators apart; `_state` says into what."""

import json
import math

import numpy as np
import torch

from .._registry import saved_name
from ..files._safetensors import NUMPY_DTYPES
from ._format import MAX_DEPTH, MAX_TEXT_BYTES, parameter_names

# An attribute of more text than this becomes a tensor: headers are to be short.
_MAX_INLINE = 2**16


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
            if array.nbytes > MAX_TEXT_BYTES:
                raise TypeError(
                    f"{path} is {array.nbytes} bytes of text in an array, more than "
                    f"can be saved, {MAX_TEXT_BYTES}."
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


def _take_apart(value):
    """Parameters and other attributes."""
    parameters = {n: getattr(value, n) for n in parameter_names(type(value))}
    # What stands in for parameters that are not saved, such as loaded text encoders.
    parameters |= getattr(value, "_saved_parameters", dict)()
    left_out = {*parameters, *getattr(value, "_unsaved", ())}
    own = getattr(value, "__dict__", {})
    return parameters, {n: part for n, part in own.items() if n not in left_out}


def _described(value):
    kind = type(value).__name__
    return f"a {kind}" if not callable(value) else f"a function or class ({kind})"
