"""What type checkers make of the public API."""

from pathlib import Path

import pytest

api = pytest.importorskip("mypy.api")
HERE = Path(__file__).parent
CONFIG = """\
[mypy]
strict = True
follow_imports = silent
[mypy-sklearn.*]
ignore_missing_imports = True
"""


def test_mypy_tells_right_from_wrong_uses(monkeypatch, tmp_path, pytestconfig):
    # The package beside these tests, not another that may be installed.
    monkeypatch.setenv("MYPYPATH", str(HERE.parent))
    config = tmp_path / "mypy.ini"
    config.write_text(CONFIG)
    # What is known of torch is kept: the second run takes seconds.
    cache = pytestconfig.cache.mkdir("mypy")
    program = HERE / "data" / "typed_program.py"
    options = [f"--config-file={config}", f"--cache-dir={cache}"]
    found, errors, status = api.run([*options, str(program)])
    assert status == 0, found + errors
