"""Files that hold weights in other forms, or no weights, and what to do about them."""

from __future__ import annotations

import os
import re

from ..exceptions import CorruptFileError, UnsupportedFormatError, WeightFileError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHERS = (".h5", ".keras", ".msgpack", ".onnx", ".tflite")
MODEL_STEM = re.compile(
    r"(pytorch_|tf_|flax_|rust_|adapter_|diffusion_\w{1,20}_)?model"
)
# Trainers keep these beside the weights.
TRAINERS_STATE = re.compile(
    r"(training_args|optimizer|optim|scheduler|scaler|sampler|rng_state|random_states"
    r"|zero_pp_rank|.*_optim_states).*",
    re.DOTALL,
)

_CONVERT = "skprobex.convert_checkpoints(folder, out) writes safetensors files of them."
# It takes files by their names.
_RENAME = "Call it .pt: skprobex.convert_checkpoints(folder, out) converts such files."
# How files begin that are called .safetensors and are none.
_BEGINNINGS = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not the file it stands for: run 'git lfs pull' in its "
        "folder, or download the file itself.",
    ),
    (
        b"# xet version",
        "is a pointer to a file in Xet storage, not that file: download it with "
        "huggingface_hub, or 'git xet'.",
    ),
    (b"PK\x03\x04", f"is a zip archive, as torch.save writes a pickle. {_RENAME}"),
    (b"\x80\x02", f"is a pickle. {_RENAME}"),
    (b"\x80\x03", f"is a pickle. {_RENAME}"),
    (b"\x80\x04", f"is a pickle. {_RENAME}"),
    (b"\x80\x05", f"is a pickle. {_RENAME}"),
    (b"GGUF", "is a GGUF file. Open the safetensors that it was made from."),
    (b"\x89HDF", "is an HDF5 file. Save its weights as safetensors."),
    (b"\x93NUMPY", "is a NumPy array. Save it with skprobex.save_models."),
    (b"\x1f\x8b", "is compressed with gzip. Unpack it first."),
    (b"7z\xbc\xaf", "is a 7z archive. Unpack it first."),
    (b"(\xb5/\xfd", "is compressed with zstandard. Unpack it first."),
)
_PAGE = re.compile(rb"\s*<(!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)


def explain(source, error):
    """Say what a file is that is no safetensors file, as far as its beginning tells.

    Parameters
    ----------
    source : source
    error : CorruptFileError
        What its header was found to be.

    Returns
    -------
    WeightFileError
        The same error, where nothing more is known.
    """
    try:
        start = bytes(source.read(0, min(source.size, 512)))
    except WeightFileError:
        return error
    for beginning, what in _BEGINNINGS:
        if start.startswith(beginning):
            return UnsupportedFormatError(f"{source} {what}")
    if _PAGE.match(start):
        return CorruptFileError(
            f"{source} is a web page, not the file that was meant: a server's error, "
            "or a page about the file, saved under its name. Download the file itself."
        )
    if start[:1] in b"{[" and source.size < 4096 and start[8:9] != b"{":
        return CorruptFileError(
            f"{source} has {source.size} bytes of text, such as a server's answer "
            f"({start[:60].decode(errors='replace')!r}): no safetensors file. Download "
            "the file again."
        )
    return error


def unread_format(name):
    """Say of a file's name why it is not read, or None if it is no model's weights."""
    lower = name.lower()
    if lower.endswith(".gguf"):
        return "GGUF, which is not read: open the safetensors it was made from"
    if lower.endswith(_PICKLES) and not TRAINERS_STATE.match(name):
        return "a pickle, which is not read: skprobex.convert_checkpoints converts it"
    if lower.endswith(_OTHERS):
        return "a format that is not read: save the weights as safetensors"
    return None


def refuse_unread(paths, source):
    """Say why there is no model, where files of other formats are all there is.

    Raises
    ------
    UnsupportedFormatError
        If there are pickle checkpoints or GGUF files.
    WeightFileError
        If there is nothing.
    """
    names = [path.replace(os.sep, "/").rpartition("/")[2] for path in paths]
    for name in sorted(names):
        if name.lower().endswith(".gguf"):
            raise UnsupportedFormatError(
                f"{source} holds {name}: GGUF files hold quantised weights and are "
                "not read. Open the safetensors checkpoint it was converted from."
            )
        if name.lower().endswith(_OTHERS):
            raise UnsupportedFormatError(
                f"{source} holds {name}, {unread_format(name)}."
            )
        if unread_format(name):
            raise UnsupportedFormatError(
                f"{source} holds {name}: pickle checkpoints can run code when loaded "
                f"and are never opened. {_CONVERT}"
            )
    raise WeightFileError(
        f"{source} holds no safetensors files: expected model.safetensors, shards with "
        "an index, adapter_model.safetensors, or any *.safetensors."
    )
