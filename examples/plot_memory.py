"""
A folder too large for memory
=============================

One layer of many checkpoints can be larger than the memory of a laptop. It need not be
held: a fit reads files in batches, and cross-validation hands out handles. We watch the
memory that this takes, from files and with all weights in an array.
"""

# %%
# Networks that are wide
# ----------------------
#
# The networks of the digit jungle are fine-tuned in seconds because they are narrow.
# Here are 300 of them, made eight times as wide: every hidden unit is copied seven
# times, and what reads it divides its weights by eight. The function stays the same.

import numpy as np

from skprobex.datasets import make_digit_jungle


def widen(network, factor=8):
    """Copy every hidden unit, and share its outgoing weights among the copies."""
    wide = {"head.bias": network["head.bias"]}
    for name in ("hidden1.weight", "hidden1.bias", "hidden2.weight", "hidden2.bias"):
        wide[name] = np.repeat(network[name], factor, axis=0)
    for name in ("hidden2.weight", "head.weight"):
        values = wide.get(name, network[name])
        wide[name] = np.repeat(values, factor, axis=1) / np.float32(factor)
    return wide


def answer(network, images):
    for name in ("hidden1", "hidden2"):
        images = images @ network[f"{name}.weight"].T + network[f"{name}.bias"]
        images = np.maximum(images, 0)
    return images @ network["head.weight"].T + network["head.bias"]


jungle = make_digit_jungle(n_models=350, n_classes=40)
network = {name: values[0] for name, values in jungle.layers.items()}
images = np.random.default_rng(0).uniform(size=(100, 64)).astype(np.float32)
same = np.allclose(
    answer(network, images), answer(widen(network), images), rtol=1e-4, atol=1e-4
)
print("hidden2.weight:", widen(network)["hidden2.weight"].shape)
print("the wide network answers like the narrow one:", same)

# %%
# A folder of checkpoints
# -----------------------
#
# They are written one by one, so that no more than one is in memory.

import pickle
import tempfile
from pathlib import Path

from skprobex import open_models, save_models

folder = Path(tempfile.mkdtemp())
for i, about in enumerate(jungle.models.metadata[:300]):
    network = {name: values[i] for name, values in jungle.layers.items()}
    layers = {name: values[None] for name, values in widen(network).items()}
    save_models(folder, layers, [about], names=[f"model_{i:04d}"])

models = open_models(folder)
W = models["hidden2.weight"]
Y = models.labels("trained_on").y
print(W)
print(f"to be read: {W.nbytes / 1e6:.0f} MB", end=", ")
print(f"handles of a fold: {len(pickle.dumps(W[:200])) / 1e3:.0f} kB")

# %%
# Watch the memory
# ----------------
#
# A thread notes every few milliseconds what this process holds, above what it held
# before the first fit.

import threading
import time

import psutil

from skprobex import ProbeXClassifier

process = psutil.Process()


class MemoryWatch(threading.Thread):
    """Note seconds and megabytes until the block is left."""

    def __enter__(self):
        self.notes, self.is_over = [], threading.Event()
        self.start()
        return self

    def __exit__(self, *error):
        self.is_over.set()
        self.join()

    def run(self):
        start = time.perf_counter()
        while not self.is_over.wait(0.005):
            held = process.memory_info().rss - before
            self.notes.append((time.perf_counter() - start, held / 1e6))


# What is loaded on first use is not the fit's.
clf = ProbeXClassifier(views=("log_xtx",), random_state=0)
clf.fit(jungle.data[:50], jungle.target[:50])
before = process.memory_info().rss

# %%
# Cross-validate, from files and in memory
# ----------------------------------------
#
# The same estimator, the same call. Only W differs: handles, or an array. Each of the
# three folds is one fit on 200 models, and predictions for 100.

from sklearn.metrics import make_scorer
from sklearn.model_selection import cross_val_score


def label_accuracy(Y_true, Y_pred):
    return np.mean(Y_true == Y_pred)


watched, scores = {}, {}
for source, read in (("from files", lambda W: W), ("in memory", np.asarray)):
    with MemoryWatch() as watch:
        scorer = make_scorer(label_accuracy)
        scores[source] = cross_val_score(clf, read(W), Y, cv=3, scoring=scorer)
    seconds, held = watched[source] = np.array(watch.notes).T
    print(f"{source:<11} {seconds[-1]:>4.1f} s, peak {held.max():>4.0f} MB")
print(f"label accuracy {scores['from files'].mean():.3f}", end=", ")
print("the same in every fold:", np.array_equal(*scores.values()))

# %%
# The picture
# -----------

import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(9, 4), layout="constrained")
for source, color in (("in memory", "tab:red"), ("from files", "tab:blue")):
    seconds, held = watched[source]
    ax.fill_between(seconds, held, color=color, alpha=0.25, linewidth=0)
    ax.plot(seconds, held, color=color, label=source)
ax.axhline(W.nbytes / 1e6, color="black", linestyle=":", label="the layer itself")
ax.set(xlabel="seconds", ylabel="memory held, MB", xlim=(0, None), ylim=(0, None))
ax.set_title("cross-validation in three folds")
fig.legend(loc="outside lower center", ncols=3)
fig.savefig("memory.png", dpi=120)
print("figure: memory.png")

# %%
# What was learnt
# ---------------
#
# From files, what is held are three batches and what was computed of them: some
# 200 MB here, and the folds, as handles, weigh kilobytes. The array has the layer in
# memory, 315 MB, each fold's copy of two thirds of it, and batches besides, about
# 800 MB at its peak. With ten times the models the array would need ten times that, and
# the batches would stay as they are. The scores are the same to the bit. Files are read
# again in each fold, and twice in each fit; as long as the system has them cached, that
# takes little time, which differs from run to run.
