"""Model-J: six Model Jungles on the hub, of which one layer is fetched."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils import Bunch

from .._progress import ProgressBar
from .._typing import Dataset, PathLike
from ..exceptions import RemoteError
from ..files import open_models
from ..files._http import HttpClient
from ..weights._collection import ModelCollection

_OWNER, _DATA_SET = "ProbeX", "ProbeX/Model-J"
_MODEL_SPLITS = ("train", "val", "test")
_ADAPTER_SPLITS = ("train", "val", "test", "val_holdout", "test_holdout")
# Other words for a split in the data set's tables.
_ALIASES = {"val": ("val", "validation", "valid"), "train": ("train",)}


class _Subset(NamedTuple):
    layer: str
    label: str
    splits: tuple[str, ...]
    # One repository a model, listed in a table; else one for all, with folders.
    has_table: bool


_TARGETS, _CLASS = "dataset_chosen_targets", "imagenet_class_name"
_VIT_LAYER = "vit.encoder.layer.{}.attention.{}.weight"
_SD_LAYER = "unet.up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v.weight"
_SUBSETS = {
    "SupViT": _Subset(
        _VIT_LAYER.format(7, "output.dense"), _TARGETS, _MODEL_SPLITS, True
    ),
    "DINO": _Subset(
        _VIT_LAYER.format(7, "output.dense"), _TARGETS, _MODEL_SPLITS, True
    ),
    "MAE": _Subset(
        _VIT_LAYER.format(8, "attention.value"), _TARGETS, _MODEL_SPLITS, True
    ),
    "ResNet": _Subset(
        "resnet.encoder.stages.2.layers.19.layer.0.convolution.weight",
        _TARGETS,
        _MODEL_SPLITS,
        True,
    ),
    "SD_200": _Subset(_SD_LAYER, _CLASS, _ADAPTER_SPLITS, False),
    "SD_1k": _Subset(_SD_LAYER, _CLASS, _ADAPTER_SPLITS, False),
}

_DESCR = """\
Model-J, {subset}
-----------------
{n_models} models of one Model Tree from the hub ({splits}). `W` is their layer
{layer}, `y` is read from each file's metadata ({label}).

Horwitz et al., "Learning on Model Weights using Tree Experts", CVPR 2025.
"""


def fetch_model_jungle(
    subset: str,
    layer: str | None = None,
    split: str | Sequence[str] | None = None,
    *,
    cache_dir: PathLike | None = None,
    revision: str | None = None,
    n_models: int | None = None,
    return_X_y: bool = False,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> Dataset:
    """Fetch one layer of a Model Jungle of Model-J from the hub.

    Of every model only the header and one layer are fetched: about 2.4 GB of the
    350 GB of a subset of whole networks. They are kept in `cache_dir` and not fetched
    again; what an interrupted call has fetched stays.

    Parameters
    ----------
    subset : {"SupViT", "DINO", "MAE", "ResNet", "SD_200", "SD_1k"}
        The first four are networks fine-tuned on half of CIFAR-100's classes, to be
        named from the weights; the last two LoRA adapters of Stable Diffusion, each
        for one class of ImageNet.
    layer : str, default=None
        Name of the layer. None means the one that tells classes best by the paper;
        for the two of Stable Diffusion, where the paper names none, a cross-attention
        value in the middle of the decoder.
    split : str or list of str, default=None
        "train", "val", "test"; for Stable Diffusion also "val_holdout" and
        "test_holdout", of classes that are not in the others. None means all.
    cache_dir : path-like, default=None
        As in `open_models`.
    revision : str, default=None
        Branch, tag or commit of the repositories.
    n_models : int, default=None
        Fetch the first this many of each split only.
    return_X_y : bool, default=False
        Return ``(W, y)`` only.
    n_jobs : int, default=None
        Threads that read headers, as in `open_models`.
    verbose : int, default=0
        1 shows progress bars on stderr.

    Returns
    -------
    Bunch
        `W`, lazy weights (n_models, d_out, d_in), read from the cache; `y`, an
        indicator matrix (n_models, n_classes) of the classes that a network was
        fine-tuned on, or (n_models,) the adapter's class; `classes`; `split`
        (n_models,), names of the splits; `models`, the ModelCollection with all
        layers and all metadata; `layer`; and `DESCR`.

    Raises
    ------
    ValueError
        If there is no such subset or split.
    RemoteError
        If the hub cannot be reached.

    See Also
    --------
    make_digit_jungle : A jungle made on the spot.
    """
    splits = _check_splits(subset, split)
    chosen = _SUBSETS[subset]
    layer = chosen.layer if layer is None else layer
    collections = [
        open_models(
            _source(subset, name, revision, n_models),
            revision=revision if chosen.has_table else None,
            cache_dir=cache_dir,
            n_jobs=n_jobs,
            verbose=verbose,
        )[:n_models]
        for name in splits
    ]
    models = ModelCollection.concat(collections)
    W = models[layer]
    _fetch(W, verbose)
    labels = models.labels(chosen.label)
    is_plain = isinstance(labels, np.ndarray)
    y, classes = (labels, np.unique(labels)) if is_plain else (labels.y, labels.classes)
    if return_X_y:
        return W, y
    return Bunch(
        W=W,
        y=y,
        classes=classes,
        split=np.repeat(splits, [len(collection) for collection in collections]),
        models=models,
        layer=layer,
        DESCR=_DESCR.format(
            subset=subset,
            n_models=len(models),
            splits=", ".join(splits),
            layer=layer,
            label=chosen.label,
        ),
    )


def _check_splits(subset, split):
    """List the splits asked for; raise unless the subset has them."""
    if subset not in _SUBSETS:
        raise ValueError(f"subset={subset!r}: expected one of {list(_SUBSETS)}.")
    chosen = _SUBSETS[subset]
    splits = [split] if isinstance(split, str) else list(split or chosen.splits)
    unknown = [name for name in splits if name not in chosen.splits]
    if unknown:
        raise ValueError(
            f"{subset} has no split {unknown[0]!r}: expected one of "
            f"{list(chosen.splits)}."
        )
    return splits


def _fetch(W, verbose):
    """Read everything once, so that it lies in the cache."""
    with ProgressBar(verbose, "Model-J", len(W), "model") as bar:
        for batch in W.batches(torch.device("cpu")):
            bar.update(len(batch.B if W.is_low_rank else batch))


def _source(subset, split, revision, n_models):
    """Say where the models of a split are, as `open_models` takes it."""
    from huggingface_hub import HfApi

    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        if _SUBSETS[subset].has_table:
            return _list_table(hub, subset, split)[:n_models]
        return f"hf://{_find_repository(hub, subset)}@{revision or 'main'}/{split}"
    except (RemoteError, ImportError):
        raise
    except Exception as error:  # the hub's client raises those of its transport, too
        raise RemoteError(
            f"{hub.endpoint} does not say what there is of Model-J "
            f"({type(error).__name__}: {str(error)[:200]}). Check the network, your "
            "access, and that HF_ENDPOINT is a hub."
        ) from error


def _find_repository(hub, subset):
    """Find the repository that holds a whole subset."""
    found = hub.list_models(author=_OWNER, search=subset, limit=100)
    ids = sorted((model.id for model in found if subset in model.id), key=len)
    if not ids:
        raise RemoteError(f"{_OWNER} has no repository of {subset} on {hub.endpoint}.")
    return ids[0]


def _list_table(hub, subset, split):
    """List the repositories of a split, from the data set's tables."""
    from huggingface_hub import get_token, hf_hub_url

    described = hub.dataset_info(_DATA_SET)
    words = _ALIASES.get(split, (split,))
    paths = sorted(file.rfilename for file in described.siblings)
    paths = [path for path in paths if _names(path, subset, words)]
    if not paths:
        raise RemoteError(
            f"{_DATA_SET} has no table of {subset}, {split}, on {hub.endpoint}."
        )
    client = HttpClient(token=get_token())
    ids = []
    for path in paths:
        url = hf_hub_url(
            _DATA_SET,
            path,
            repo_type="dataset",
            revision=described.sha,
            endpoint=hub.endpoint,
        )
        ids += _model_ids(path, client.get(url)[0])
    if not ids:
        raise RemoteError(f"{_DATA_SET}: {paths[0]} lists no models.")
    return ids


def _names(path, subset, words):
    """Say whether a table's path speaks of a subset and a split."""
    stem, _, extension = path.rpartition(".")
    parts = stem.replace("/", "-").replace("_", "-").split("-")
    is_table = extension in ("csv", "json", "jsonl", "parquet")
    return is_table and subset in parts and any(word in parts for word in words)


def _model_ids(path, data):
    """Read the column of repositories from a table."""
    try:
        if path.endswith(".parquet"):
            import pandas as pd

            rows = pd.read_parquet(io.BytesIO(data)).to_dict("records")
        elif path.endswith(".csv"):
            rows = list(csv.DictReader(io.StringIO(data.decode())))
        elif path.endswith(".jsonl"):
            rows = [json.loads(line) for line in data.decode().splitlines() if line]
        else:
            rows = json.loads(data)
        return [str(row["hf_model_id"]) for row in rows]
    except ImportError as error:
        raise ImportError(
            f"{_DATA_SET} lists its models in {path}: reading it needs pandas and "
            "pyarrow (pip install pandas pyarrow)."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RemoteError(
            f"{_DATA_SET}: {path} is no table with a column hf_model_id "
            f"({type(error).__name__})."
        ) from None
