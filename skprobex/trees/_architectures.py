"""Models divided before any weights are read, by architecture and declared base.

Models of different architectures, or adapters (LoRA) of different bases, are never of
one Model Tree.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import issparse

from .._registry import saved
from .._warnings import listed
from ..exceptions import MissingLayerError
from ..weights import DenseWeights, ModelCollection, Weights, check_numeric
from ..weights._bases import base_model, canonical_bases


@saved
class Form(NamedTuple):
    """What models must have in common to be of one Model Tree."""

    layer: str | None
    shape: tuple[int, int]
    is_low_rank: bool = False
    # Only of adapters: weights that are all there tell their base themselves.
    base: str | None = None


class Part(NamedTuple):
    """The models of one form."""

    form: Form | None  # None: no tree can hold them
    positions: np.ndarray
    weights: object = None


def split_forms(read, W, layer, *, forms=None):
    """Divide W into parts of one form each.

    Parameters
    ----------
    read : callable or None
        Turns W into weights, where it is one layer. None: no one shape is expected.
    W : weights, ModelCollection, dict of weights, or list of arrays
    layer : str or None
    forms : list of Form, optional
        Those seen in fit; models of others come as parts without one.

    Returns
    -------
    list of Part
    """
    if issparse(W):  # first of all: some of them are mappings
        raise TypeError("W is a sparse matrix: pass a dense one (W.toarray()).")
    if isinstance(W, Mapping):
        W = ModelCollection.from_layers(W)
    if isinstance(W, ModelCollection):
        return _split_collection(W, layer, forms)
    if layer is not None:
        raise ValueError(
            f"layer={layer!r} picks a layer of a ModelCollection or a dict, but W is "
            f"{type(W).__name__}: pass layer=None."
        )
    if _is_list_of_arrays(W) and (len({_shape(w) for w in W}) > 1 or len(W) == 1):
        return _split_list(W, forms)
    if read is None and not isinstance(W, Weights):
        return _split_list(list(W), forms)
    weights = W if read is None else read(W)
    form = Form(None, weights.lifted_shape[1:], weights.is_low_rank)
    form = form if _is_known(form, forms) else None
    return [Part(form, np.arange(len(weights)), weights)]


def _is_list_of_arrays(W):
    if isinstance(W, np.ndarray) and W.dtype == object and W.ndim == 1:
        return True
    return (
        isinstance(W, (list, tuple))
        and len(W) > 0
        and all(isinstance(w, (np.ndarray, torch.Tensor)) for w in W)
        and all(w.ndim > 0 for w in W)
    )


def _shape(w):
    return tuple(np.shape(w))


def stack_models(models):
    """Stack arrays or tensors of one shape, of whatever dtypes, to one array."""
    arrays = [
        w.detach().cpu().to(w.dtype if w.dtype == torch.float64 else torch.float32)
        if isinstance(w, torch.Tensor)
        else np.asarray(w)
        for w in models
    ]
    return check_numeric(np.stack([np.asarray(w) for w in arrays]), "W")


def _split_list(W, forms):
    shapes = [_shape(w) for w in W]
    for i, shape in enumerate(shapes):
        if len(shape) < 1 or 0 in shape:
            raise ValueError(
                f"W[{i}] has shape {shape}: expected one model's weights, "
                "(d_out, d_in) or (d,)."
            )
    # Largest first, then by first appearance.
    order = sorted(Counter(shapes).items(), key=lambda item: (-item[1], item[0]))
    parts = []
    for shape, _ in order:
        positions = np.array([i for i, s in enumerate(shapes) if s == shape])
        weights = DenseWeights(stack_models([W[i] for i in positions]))
        form = Form(None, weights.lifted_shape[1:])
        parts.append(Part(form if _is_known(form, forms) else None, positions, weights))
    return parts


def _split_collection(models, layer, forms):
    found = {}
    bases = canonical_bases(
        [base_model(entry) for entry in models.metadata],
        [form.base for form in forms or ()],
    )
    groups = models.groups
    members = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
    if layer is None:
        members = _join_adapters(models, members, bases)
    for positions in members:
        form = _form_of(models[positions], bases[positions[0]], layer, forms)
        found.setdefault(form, []).append(positions)
    parts = []
    for form, positions in found.items():
        positions = np.sort(np.concatenate(positions))
        if form is None:
            parts.append(Part(None, positions))
            continue
        own = models[positions]
        if form.layer not in own or own.layers[form.layer].n_models < len(own):
            weights = UncomparedAdapters(len(own), form)
        else:
            weights = own[form.layer]
        if not isinstance(weights, Weights):
            weights = DenseWeights(
                weights.detach() if torch.is_tensor(weights) else np.asarray(weights)
            )
        parts.append(Part(form, positions, weights))
    return sorted(parts, key=lambda part: (part.form is None, -len(part.positions)))


class UncomparedAdapters(Weights):
    """Adapters of one declared base that change no layer in common.

    That they are of one Model Tree is known from what they declare; what else there
    is to know would need a layer that all of them hold.
    """

    is_low_rank = True

    def __init__(self, n_models, form):
        self._n_models, self._form = n_models, form

    @property
    def shape(self):
        return (self._n_models, *self._form.shape)

    @property
    def dtype(self):
        return np.dtype(np.float32)

    def _select(self, models):
        return UncomparedAdapters(len(models), self._form)

    def _take_one(self, model):
        raise self._error()

    def _read_batches(self, size, device, dtype):
        raise self._error()

    def _error(self):
        """Say why there is nothing to read."""
        return MissingLayerError(
            f"The {self._n_models} adapters of {self._form.base!r} have no layer in "
            f"common, not even {self._form.layer!r}: they cannot be divided into "
            "trees. Leave n_trees=None, or select those with the same layers."
        )


def _join_adapters(models, members, bases):
    """Join groups of adapters that declare one base, whatever layers they change."""
    joined, apart = {}, []
    for positions in members:
        infos = models[positions].layers.values()
        base = bases[positions[0]]
        if base is None or not any(info.is_low_rank for info in infos):
            apart.append(positions)
        else:
            joined.setdefault(base, []).append(positions)
    for groups in joined.values():
        together = np.sort(np.concatenate(groups))
        infos = models[together].layers.values()
        # A layer of two shapes: one of the declarations is wrong.
        if any(info.is_low_rank and info.n_forms > 1 for info in infos):
            apart += groups
        else:
            apart.append(together)
    return sorted(apart, key=lambda positions: (-len(positions), positions[0]))


def _form_of(models, base, layer, forms):
    """The form of models of one architecture, or adapters of one declared base."""
    infos = {name: info for name, info in models.layers.items() if info.n_forms == 1}
    common = {n: info for n, info in infos.items() if info.n_models == len(models)}
    infos = common or infos
    candidates = []
    for name in [layer] if layer is not None else list(infos):
        if name not in infos:
            continue
        info = infos[name]
        shape = info.shape or (1,)
        lifted = (shape[0], int(np.prod(shape[1:], dtype=np.int64)))
        form = Form(name, lifted, info.is_low_rank, base if info.is_low_rank else None)
        candidates.append(form)
    if forms is not None:
        known = next((form for form in candidates if form in forms), None)
        if known is None and base is not None and layer is None:
            # Adapters of a known base, of other layers than were seen.
            same = [form for form in forms if form.is_low_rank and form.base == base]
            is_adapter = any(form.is_low_rank for form in candidates)
            known = next((f for f in same if is_adapter and f.layer not in infos), None)
        return known
    if layer is not None and not candidates:
        raise MissingLayerError(
            f"{len(models)} models, such as {models.names[0]!r}, have no layer "
            f"{layer!r}. They have {listed(infos)}: pass one "
            "that all models have, or layer=None for one of each architecture."
        )
    if not candidates:
        raise ValueError(f"Model {models.names[0]!r} has no layers.")
    return _typical(candidates)


def _typical(forms):
    """Pick a matrix from the middle of the network.

    The shape that most layers have is that of the blocks, which fine-tuning moves
    gently; heads and embeddings are often replaced, and are shaped otherwise.
    """
    matrices = [form for form in forms if min(form.shape) > 1] or forms
    counts = Counter(form.shape for form in matrices)
    shape = max(counts, key=lambda s: (counts[s], s[0] * s[1]))
    usual = [form for form in matrices if form.shape == shape]
    return usual[(len(usual) - 1) // 2]


def _is_known(form, forms):
    return forms is None or form in forms
