"""Patterns of paths."""

from __future__ import annotations

import glob
import os
import re
from fnmatch import fnmatchcase

from ._folders import walk


def magic_start(pattern):
    """Return the folder in front of what is a pattern."""
    return os.path.dirname(pattern[: re.search(r"[*?\[]", pattern).start()])


def matches(pattern):
    """List what a glob pattern stands for; ``**`` follows no links."""
    if "**" not in pattern:
        return sorted(glob.glob(pattern))
    start = magic_start(pattern)
    listed, _ = walk(start or ".")
    wanted = os.path.relpath(pattern, start or ".").replace(os.sep, "/").split("/")
    matched = set()
    for path, full in listed:
        parts = path.split("/")
        if _fits(parts, wanted):
            matched.add(full)
        for i in range(1, len(parts)):
            # Folders, as far as they are named: "**" alone stands for files.
            if wanted[-1] != "**" and _fits(parts[:i], wanted):
                matched.add(os.path.join(start, *parts[:i]))
    return sorted(matched)


def _fits(parts, wanted):
    """Whether a path fits a pattern, both split at their slashes."""
    # Numbers of the pattern's parts that may come next.
    states = {0}
    for part in parts:
        following = set()
        for state in _past_any(states, wanted):
            if state < len(wanted) and wanted[state] == "**":
                following.add(state)
            elif state < len(wanted) and fnmatchcase(part, wanted[state]):
                following.add(state + 1)
        states = following
    return len(wanted) in _past_any(states, wanted)


def _past_any(states, wanted):
    """Add what follows where ``**`` stands for nothing."""
    states = set(states)
    for state in sorted(states):
        while state < len(wanted) and wanted[state] == "**":
            state += 1
            states.add(state)
    return states
