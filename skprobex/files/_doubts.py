"""What is read, but not for certain: said once for all files, after opening."""

from __future__ import annotations

from .._warnings import listed, warn

_MESSAGES = {
    "dora": (
        "hold DoRA adapters: their true delta needs the base's weights. The product "
        "B @ A is used, which is its direction only"
    ),
    "moved base": (
        "were begun by taking a part out of the base (PiSSA, OLoRA, LoftQ, CorDA, "
        "LoRA-GA): B @ A is the change from what was left of it, not from the "
        "published base. PEFT's save_pretrained(..., "
        "path_initial_model_for_weight_conversion=...) writes the change"
    ),
    "no scale": (
        "hold LoRA factors, but no alpha, nor a configuration beside them: their "
        "scales are guessed to be 1. Put adapter_config.json beside each"
    ),
    "orientation": (
        "adapt modules called as GPT-2's (c_attn, c_proj, c_fc), which are stored "
        "transposed there and not elsewhere, but their configurations do not say what "
        "the base is: fan_in_fan_out is taken at its word. Set it, or "
        "base_model_name_or_path, in adapter_config.json"
    ),
}


def warn_of_doubts(files_by_doubt):
    """Warn once of each doubt, naming files.

    Parameters
    ----------
    files_by_doubt : dict of str to list of str
    """
    for doubt, message in _MESSAGES.items():
        files = files_by_doubt.get(doubt)
        if not files:
            continue
        warn(f"{len(files)} models {message}: {listed(files, show=str)}.")
