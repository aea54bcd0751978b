"""`convert_checkpoints`: from pickles to safetensors, each in a process of its own."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

from .._typing import PathLike
from .._warnings import warn
from ..exceptions import UnsupportedFormatError, WeightFileError
from . import _convert_worker
from ._folders import walk
from ._other_formats import TRAINERS_STATE

_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_INDEX = ".index.json"
_MAX_INDEX_BYTES = 64 * 2**20
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TEMP")
_N_NAMED = 5


def convert_checkpoints(
    folder: PathLike,
    out: PathLike,
    *,
    timeout: float = 600.0,
    on_error: Literal["warn", "raise", "ignore"] = "warn",
) -> list[Path]:
    """Convert the pickle checkpoints of a folder to safetensors files.

    Read are ``.bin``, ``.pt``, ``.pth`` and ``.ckpt`` files that
    ``torch.load(weights_only=True)`` takes: tensors by name, at the top or under
    ``state_dict``, ``model`` and the like. Each is read by a process of its own with
    bounds on memory, time and output, for a pickle from a stranger can do harm. Nothing
    but this function reads pickles.

    Parameters
    ----------
    folder : path-like
        Searched with its subfolders.
    out : path-like
        Where the safetensors files go, under the same names; made if it does not
        exist. Shard indices and ``adapter_config.json`` go along.
    timeout : float, default=600
        Seconds for each file.
    on_error : {"warn", "raise", "ignore"}, default="warn"
        What to do about files that cannot be converted: leave them out and say so
        once, raise, or leave them out.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    UnsupportedFormatError
        If no file can be converted, or one cannot and `on_error` is "raise".
    WeightFileError
        If the folder holds no such file.

    See Also
    --------
    open_models : Open what this writes.
    """
    if on_error not in ("warn", "raise", "ignore"):
        raise ValueError(
            f"on_error={on_error!r}: expected one of ('warn', 'raise', 'ignore')."
        )
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout={timeout!r}: expected a number of seconds.")
    folder, out = Path(folder).expanduser(), Path(out).expanduser()
    listed, left_out = walk(folder)
    found = [(name, path) for name, path in listed if _is_checkpoint(name)]
    failures = [
        UnsupportedFormatError(f"{folder / name} is {reason}.")
        for name, reason in left_out
        if _is_checkpoint(name)
    ]
    if failures and on_error == "raise":
        raise failures[0]
    if not found and not failures:
        raise WeightFileError(
            f"{folder} holds no pickle checkpoints: expected files that end with one "
            f"of {', '.join(_SUFFIXES)}."
        )
    n_found, written = len(found) + len(failures), []
    for name, path in found:
        target = out / f"{_stem(name)}.safetensors"
        try:
            _convert(path, target, timeout)
            written.append(target)
        except UnsupportedFormatError as error:
            if on_error == "raise":
                raise
            failures.append(error)
    if not written:
        raise failures[0]
    _copy_beside(listed, out)
    if failures and on_error == "warn":
        named = "\n".join(f"- {error}" for error in failures[:_N_NAMED])
        more = len(failures) - _N_NAMED
        warn(
            f"{len(failures)} of {n_found} checkpoints cannot be converted and were "
            f"left out:\n{named}" + (f"\nand {more} more." if more > 0 else "")
        )
    return written


def _is_checkpoint(name):
    is_trainers = TRAINERS_STATE.match(name.rpartition("/")[2])
    return name.lower().endswith(_SUFFIXES) and not is_trainers


def _stem(name):
    return name.rpartition(".")[0]


def _convert(path, target, timeout):
    """Convert one file; the target is complete or absent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.incomplete")
    command = [
        *(sys.executable, "-I", _convert_worker.__file__, str(path), str(partial)),
        *(str(os.path.getsize(path)), str(math.ceil(timeout))),
    ]
    kept = {key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ}
    try:
        # No credentials of the parent's, and one thread.
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=timeout,
            env={**kept, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        if ended.returncode:
            text = ended.stderr.decode(errors="replace").strip()
            reason = text.rpartition("\n")[2][:300] or f"it ended {ended.returncode}"
            raise UnsupportedFormatError(
                f"{path} cannot be converted: {reason}. Only what "
                "torch.load(weights_only=True) reads is; load it where you trust it, "
                "and save its tensors with safetensors.torch.save_file."
            )
        os.replace(partial, target)
    except subprocess.TimeoutExpired:
        raise UnsupportedFormatError(
            f"{path} cannot be converted in {timeout:g} s: raise `timeout` if you "
            "trust it."
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _copy_beside(listed, out):
    """Take along what says how files belong together, and the scales of adapters."""
    for name, path in listed:
        base = name.rpartition("/")[2]
        if base == "adapter_config.json":
            target = out / name
            if target.parent.is_dir() and not target.exists():
                shutil.copyfile(path, target)
        elif base.endswith(tuple(suffix + _INDEX for suffix in _SUFFIXES)):
            _convert_index(path, out / f"{_stem(name.removesuffix(_INDEX))}")


def _convert_index(path, target):
    if os.path.getsize(path) > _MAX_INDEX_BYTES or not target.parent.is_dir():
        return
    try:
        index = json.loads(Path(path).read_text(encoding="utf-8"))
        shards = {
            name: f"{_stem(shard)}.safetensors"
            for name, shard in index["weight_map"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        warn(f"{path} is no shard index, and was not converted.")
        return
    index = {"metadata": {}, "weight_map": shards}
    target = target.with_name(f"{target.name}.safetensors{_INDEX}")
    target.write_text(json.dumps(index), encoding="utf-8")
