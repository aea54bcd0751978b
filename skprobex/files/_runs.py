"""Checkpoints of one training run: the same network again and again, not many.

Models of a collection are taken to be independent. Two checkpoints of one run are
nearly the same weights with the same label, and if one lies in a training fold and the
other in the test fold, the score is that of copying.
"""

from __future__ import annotations

import re
from collections import defaultdict

from .._natural import natural

_STEP = r"(?:checkpoints?|ckpt|global[-_]?step|steps?|epochs?|iter(?:ation)?s?)[-_=]?"
# Numbers of more digits count no steps.
_NUMBER = r"[0-9]{1,12}"
# checkpoint-500, global_step500, epoch=3-step=500
_NAME = re.compile(rf"{_STEP}{_NUMBER}(?:[-_]{_STEP}{_NUMBER}){{0,3}}", re.IGNORECASE)
# lora-step-500, model_epoch_3; kohya's lora-step00000500; MLX's 0000500_adapters
_STEM = re.compile(
    rf"(?P<run>.{{1,400}}?)[-_.]{_STEP}{_NUMBER}(?:[-_]{_STEP}{_NUMBER}){{0,3}}",
    re.IGNORECASE,
)
_NUMBERED_BEFORE = re.compile(r"[0-9]{7}_(?P<run>adapters)")
# kohya's lora-000004, of which lora is the last.
_NUMBERED_AFTER = re.compile(r"(?P<run>.{1,400})-[0-9]{6}")

REASON = "a checkpoint of a training run, of which a later one or the end is read"


def last_of_folders(paths, has_model):
    """Keep of each run's folders, such as ``run/checkpoint-500``, what is the model.

    That is what lies in the run's folder itself, or else its last checkpoint, which
    takes the run's place.

    Parameters
    ----------
    paths : dict of str to str
        Relative paths of files as they are to be grouped, and the path of each in the
        folder.
    has_model : callable
        Says of the names of the files in a run's folder whether they are a model.

    Returns
    -------
    paths : dict of str to str
        Without the other checkpoints.
    left_out : list of str
        The folders of these.
    """
    runs, beside = defaultdict(lambda: defaultdict(list)), defaultdict(list)
    for path in paths:
        run, step = _split(path)
        if step is not None:
            runs[run][step].append(path)
        elif path.endswith(".safetensors") or path.endswith(".json"):
            beside[path.rpartition("/")[0]].append(path.rpartition("/")[2])
    kept, left_out = dict(paths), []
    for run, steps in runs.items():
        steps = {
            step: files
            for step, files in steps.items()
            if any(file.endswith(".safetensors") for file in files)
        }
        is_taken = any(name.endswith(".safetensors") for name in beside[run])
        last = None
        if steps and not has_model(beside[run]):
            last = max(steps, key=natural)
        for step, files in steps.items():
            if step != last:
                left_out.append(f"{run}/{step}" if run else step)
            for file in files:
                if step != last:
                    del kept[file]
                elif not is_taken:
                    # In the place of what lies beside it, such as another card.
                    inner = file.removeprefix(f"{run}/{step}/" if run else f"{step}/")
                    kept[f"{run}/{inner}" if run else inner] = kept.pop(file)
    return kept, left_out


def _split(path):
    """Split ``run/checkpoint-500/...`` into the run's folder and the checkpoint's."""
    folders = path.split("/")[:-1]
    for i, folder in enumerate(folders):
        if len(folder) < 100 and _NAME.fullmatch(folder):
            return "/".join(folders[:i]), folder
    return None, None


def last_of_stems(stems, has_model):
    """Find the checkpoints among the names of one folder's models.

    Parameters
    ----------
    stems : collection of str
        Names of files, without what says that they are safetensors.
    has_model : bool
        Whether one of them is the folder's model.

    Returns
    -------
    names : dict of str to str
        For the last checkpoint of a run without an end: the run's name, ``""`` where it
        is the folder's.
    left_out : list of str
        The other checkpoints.
    """
    runs = defaultdict(list)
    for stem in stems:
        run, is_certain = _run_of(stem)
        # kohya's and MLX's numbers alone are numbers of anything.
        if run is not None and (is_certain or run in stems):
            runs[run].append(stem)
    names, left_out = {}, []
    for run, members in runs.items():
        members.sort(key=natural)
        if run not in stems and (run or not has_model):
            last = members.pop()
            if members:
                names[last] = run
        left_out += members
    return names, left_out


def _run_of(stem):
    if len(stem) > 500:
        return None, False
    if _NAME.fullmatch(stem):
        return "", True
    match = _STEM.fullmatch(stem)
    if match:
        return match["run"], True
    match = _NUMBERED_BEFORE.fullmatch(stem) or _NUMBERED_AFTER.fullmatch(stem)
    return (match["run"], False) if match else (None, False)
