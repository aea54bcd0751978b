"""Model-J: six Model Jungles on the hub, of which one layer is fetched."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import torch
from sklearn.utils import Bunch

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
    layer = chosen.layer if layer is None else layer
    hub = _Hub()
    collections, split_of = [], []
    for name in splits:
        if chosen.has_table:
            source = hub.table(subset, name, revision)[:n_models]
        else:
            source = f"hf://{hub.repository(subset)}@{revision or 'main'}/{name}"
        models = open_models(
            source,
            revision=revision if chosen.has_table else None,
            cache_dir=cache_dir,
            n_jobs=n_jobs,
            verbose=verbose,
        )[:n_models]
        collections.append(models)
        split_of += [name] * len(models)
    models = ModelCollection.concat(collections)
    W = models[layer]
    _fetch(W, verbose)
    y = models.labels(chosen.label)
    classes = np.unique(y) if isinstance(y, np.ndarray) else y.classes
    y = y if isinstance(y, np.ndarray) else y.y
    if return_X_y:
        return W, y
    descr = _DESCR.format(
        subset=subset,
        n_models=len(models),
        splits=", ".join(splits),
        layer=layer,
        label=chosen.label,
    )
    return Bunch(
        W=W,
        y=y,
        classes=classes,
        split=np.array(split_of),
        models=models,
        layer=layer,
        DESCR=descr,
    )


def _fetch(W, verbose):
    """Read everything once, so that it lies in the cache."""
    bar = None
    if verbose:
        from tqdm import tqdm

        bar = tqdm(total=len(W), desc="Model-J", unit="model", file=sys.stderr)
    for batch in W.batches(torch.device("cpu")):
        if bar is not None:
            bar.update(len(batch.B if W.is_low_rank else batch))
    if bar is not None:
        bar.close()


class _Hub:
    """The parts of the hub that say which repositories there are."""

    def __init__(self):
        self._client = HttpClient()
        self.endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        self.endpoint = self.endpoint.rstrip("/")

    def _json(self, url):
        try:
            return json.loads(self._client.get(url)[0])
        except RecursionError:
            raise RemoteError(f"{url} answered with something too deep.") from None
        except ValueError as error:
            if isinstance(error, RemoteError):
                raise
            raise RemoteError(
                f"{url} did not answer with JSON: check that HF_ENDPOINT is a hub."
            ) from None

    def repository(self, subset):
        """Find the repository that holds a whole subset."""
        url = f"{self.endpoint}/api/models?author={_OWNER}&search={subset}&limit=100"
        answer = self._json(url)
        entries = answer if isinstance(answer, list) else []
        ids = [str(e.get("id", "")) for e in entries if isinstance(e, dict)]
        ids = sorted((name for name in ids if subset in name), key=len)
        if not ids:
            raise RemoteError(
                f"{_OWNER} has no repository of {subset} on {self.endpoint}."
            )
        return ids[0]

    def table(self, subset, split, revision):
        """List the repositories of a split, from the data set's tables."""
        url = f"{self.endpoint}/api/datasets/{_DATA_SET}"
        described = self._json(url)
        try:
            commit = described["sha"]
            paths = [entry["rfilename"] for entry in described["siblings"]]
        except (KeyError, TypeError):
            raise RemoteError(f"{url} did not answer with a data set.") from None
        words = _ALIASES.get(split, (split,))
        found = sorted(path for path in paths if _names(path, subset, words))
        if not found:
            raise RemoteError(
                f"{_DATA_SET} has no table of {subset}, {split}, on {self.endpoint}."
            )
        ids = []
        for path in found:
            base = f"{self.endpoint}/datasets/{_DATA_SET}/resolve/{commit}"
            ids += _model_ids(path, self._client.get(f"{base}/{quote(path)}")[0])
        if not ids:
            raise RemoteError(f"{_DATA_SET}: {found[0]} lists no models.")
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
