"""Which files does a call enter, and how large is the house?

Run ``python benchmarks/trace.py``; `results/trace.txt` holds what it printed.
"""

import ast
import inspect
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import skprobex
from skprobex import (
    LayerFusion,
    ModelTreeClustering,
    ProbeXClassifier,
    ProbeXEmbedder,
    ProbeXRegressor,
    TreeExperts,
    open_models,
    save_models,
)

PACKAGE = os.path.dirname(skprobex.__file__)


def files_entered(call):
    """Files of the package whose functions a call runs."""
    entered = set()

    def note(frame, event, _):
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(PACKAGE):
            entered.add(os.path.relpath(path, PACKAGE))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return sorted(entered)


def code_lines(path):
    """Lines that are neither blank, comment nor docstring."""
    text = path.read_text()
    lines = {
        i
        for i, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#")
    }
    for node in ast.walk(ast.parse(text)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def main():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((60, 16, 12)).astype(np.float32)
    y = np.arange(60) % 2
    vectors = {f"name {i}": rng.standard_normal(8) for i in range(20)}
    texts = np.array([f"name {i % 20}" for i in range(60)])
    embedder = ProbeXEmbedder(text_encoder=lambda t: np.array([vectors[x] for x in t]))
    with tempfile.TemporaryDirectory() as folder:
        save_models(folder, {"first": W, "second": W[:, ::-1]})
        models = open_models(folder)
        fitted = ProbeXClassifier().fit(W, y)
        calls = {
            "ProbeXClassifier().fit(W, y)": lambda: ProbeXClassifier().fit(W, y),
            "predict(W)": lambda: fitted.predict(W),
            "ProbeXEmbedder().fit(models, texts)": lambda: embedder.fit(models, texts),
        }
        for name, call in calls.items():
            entered = files_entered(call)
            print(f"{name:<38}{len(entered):>3} files: {', '.join(entered)}")
    print("\nparameters")
    for cls in (
        ProbeXClassifier,
        ProbeXRegressor,
        ProbeXEmbedder,
        LayerFusion,
        ModelTreeClustering,
        TreeExperts,
    ):
        print(f"{cls.__name__:<24}{len(inspect.signature(cls).parameters):>3}")
    total = sum(map(code_lines, Path(PACKAGE).rglob("*.py")))
    print(f"\n{total} lines of code, without docstrings, comments and blank lines")


if __name__ == "__main__":
    main()
