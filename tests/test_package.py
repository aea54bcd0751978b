"""What the package promises as a whole: its imports and its documentation."""

import inspect
import re
import subprocess
import sys

import numpy as np
import pytest
from numpydoc.docscrape import FunctionDoc
from numpydoc.validate import validate

import skprobex
from skprobex import baselines, datasets, inspection, metrics, search, trees

PUBLIC = [
    f"{module.__name__}.{name}"
    for module in (skprobex, baselines, datasets, inspection, metrics, search, trees)
    for name in module.__all__
    if not inspect.ismodule(getattr(module, name))
]
# Not asked for: an extended summary, examples and See Also sections on every method.
NOT_ASKED = {"ES01", "EX01", "SA01", "GL01", "SS06", "RT02"}


def resolve(path):
    module, name = path.rsplit(".", 1)
    return getattr(sys.modules[module], name)


def public_methods():
    for path in PUBLIC:
        yield path
        if inspect.isclass(resolve(path)):
            for name, member in inspect.getmembers(resolve(path), inspect.isfunction):
                ours = member.__module__.startswith("skprobex")
                if ours and not name.startswith("_"):
                    yield f"{path}.{name}"


@pytest.mark.parametrize("path", list(public_methods()))
def test_docstrings_are_numpydoc(path):
    errors = [e for e in validate(path)["errors"] if e[0] not in NOT_ASKED]
    assert not errors


@pytest.mark.parametrize("path", PUBLIC)
def test_documented_defaults_are_the_signature_s(path):
    target = resolve(path)
    documented = {p.name: p.type for p in FunctionDoc(target)["Parameters"]}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            continue
        found = re.search(r"default=(.+)$", documented[name])
        assert found, f"{name}: no default documented"
        if inspect.isclass(parameter.default):
            assert parameter.default.__name__ in found.group(1)
        else:
            default = eval(found.group(1), {"np": np})
            np.testing.assert_equal(default, parameter.default, name)


def test_import_is_light():
    code = (
        "import sys, skprobex; heavy = {'sentence_transformers', 'transformers', "
        "'matplotlib', 'fsspec'}; print(heavy & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "set()"
