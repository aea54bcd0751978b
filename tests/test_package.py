"""What the package promises as a whole: its imports and its documentation."""

import ast
import inspect
import re
import subprocess
import sys
from importlib import resources
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from numpydoc.docscrape import FunctionDoc
from numpydoc.validate import validate

import skprobex
from skprobex import (
    baselines,
    datasets,
    files,
    inspection,
    metrics,
    search,
    simulation,
    solvers,
    trees,
)
from skprobex._warnings import listed
from skprobex.targets import _texts as text

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.rst").read_text()
PUBLIC = [
    f"{module.__name__}.{name}"
    for module in (
        skprobex,
        baselines,
        datasets,
        inspection,
        metrics,
        search,
        simulation,
        solvers,
        trees,
    )
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


def annotated_callables():
    """All functions, constructors, methods and properties that a user may call."""
    modules = [getattr(skprobex, name) for name in skprobex.__all__]
    modules = [module for module in modules if inspect.ismodule(module)]
    for module in (skprobex, files, text, *modules):
        for name in module.__all__:
            target = getattr(module, name)
            if inspect.isfunction(target):
                yield f"{module.__name__}.{name}", target
            elif inspect.isclass(target):
                for method, function in methods(target):
                    yield f"{module.__name__}.{name}.{method}", function


def methods(owner):
    for name in dir(owner):
        if name.startswith("_") and name != "__init__":
            continue
        member = inspect.getattr_static(owner, name)
        if isinstance(member, property):
            function = member.fget
        else:
            function = getattr(owner, name, None)
        if inspect.isroutine(function) and is_ours(function):
            yield name, function


def is_ours(function):
    module = getattr(inspect.unwrap(function), "__module__", None)
    return module is not None and module.startswith("skprobex")


@pytest.mark.parametrize(
    "function", [pytest.param(f, id=path) for path, f in annotated_callables()]
)
def test_public_api_is_annotated(function):
    signature = inspect.signature(function)
    bare = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.annotation is inspect.Parameter.empty and name != "self"
    ]
    assert not bare
    assert signature.return_annotation is not inspect.Signature.empty


def test_package_says_that_it_is_typed():
    assert (resources.files("skprobex") / "py.typed").is_file()


def test_what_is_imported_is_declared():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    # "scikit-learn>=1.6" declares scikit_learn, by which sklearn is installed.
    declared = {
        re.match(r"[\w-]+", requirement)[0].replace("-", "_").lower()
        for group in groups
        for requirement in group
    }
    of_module = packages_distributions()
    imported = set()
    for path in (ROOT / "skprobex").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.partition(".")[0])
    for module in imported - sys.stdlib_module_names:
        names = {
            name.replace("-", "_").lower() for name in of_module.get(module, [module])
        }
        assert names & declared, module


def test_the_map_for_newcomers_is_of_this_house():
    paths = re.findall(r"``((?:skprobex|tests)/\S*)``", CONTRIBUTING)
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_import_is_light():
    code = (
        "import sys, skprobex; heavy = {'sentence_transformers', 'transformers', "
        "'matplotlib', 'fsspec', 'sklearn.linear_model', 'sklearn.manifold', "
        "'sklearn.datasets', 'sklearn.calibration'}; print(heavy & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "names, expected",
    [
        ([], ""),
        (["a"], "'a'"),
        (iter("abcde"), "'a', 'b', 'c', 'd', 'e'"),
        (dict.fromkeys("abcdefg"), "'a', 'b', 'c', 'd', 'e' and 2 more"),
    ],
)
def test_messages_name_the_first_few_and_count_the_rest(names, expected):
    assert listed(names) == expected


def test_messages_name_as_many_as_asked_for_in_the_way_asked_for():
    assert listed([3, 1, 2], 2, show=lambda i: f"model {i}") == (
        "model 3, model 1 and 1 more"
    )
