"""Make ``saved.safetensors``, which must stay loadable, and what it predicts.

Run it, from this folder, when the format changes on purpose, and raise FORMAT_VERSION.
"""

import json
from pathlib import Path

import numpy as np

from skprobex import ProbeXClassifier


def draw_models():
    """Twelve models of two kinds, the same on every machine."""
    W = np.sin(1.7 * np.arange(12 * 5 * 4) ** 1.1).reshape(12, 5, 4).astype("f4")
    W[::2, :, 0] *= 4
    return W, np.array(["cats", "dogs"] * 6)


if __name__ == "__main__":
    folder = Path(__file__).parent
    W, y = draw_models()
    clf = ProbeXClassifier(views=("xtxu",), n_probes=3, n_components=2).fit(W, y)
    clf.save(folder / "saved.safetensors")
    expected = {
        "predict": clf.predict(W).tolist(),
        "decision_function": clf.decision_function(W).tolist(),
        "transform": clf.transform(W).tolist(),
    }
    (folder / "saved.json").write_text(json.dumps(expected, indent=1) + "\n")
