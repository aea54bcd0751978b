"""kill -9 at any moment leaves the old files or the new ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import killing
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    command = [sys.executable, "-W", "error", killing.__file__]
    command.append(str(tmp_path_factory.mktemp("killed")))
    root = Path(killing.skprobex.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", [kind.__name__ for kind in killing.KINDS])
def test_killed_while_writing(kind, outcomes):
    # Text is the traceback of what could not be read, or was neither old nor new.
    assert not isinstance(outcomes[kind], str), outcomes[kind]
    states, n_parts = outcomes[kind]
    assert len(states) == 50
    # It was killed before and after writing, and in the middle of it.
    assert any(state != states[0] for state in states)
    if kind == "layer_memory":
        assert any(n_kept % 3 for n_kept in states)
    else:
        assert n_parts > 0
