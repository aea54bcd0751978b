"""
A folder of checkpoints
=======================

Models come as files. Opening a folder reads the files' headers only: the layers, their
shapes, the metadata. A layer of it takes the place of an array everywhere, and is read
in batches when an estimator asks for it.
"""

# %%
# Write a folder
# --------------
#
# Three hundred fine-tuned networks, a safetensors file each, with what is known about
# them as metadata. Yours will be on disk already.

import tempfile
from pathlib import Path

import numpy as np

from skprobex import open_models, save_models
from skprobex.datasets import make_digit_jungle

jungle = make_digit_jungle(n_models=300, n_classes=40)
print(jungle.models.metadata[0])
folder = Path(tempfile.mkdtemp())
save_models(folder, jungle.layers, jungle.models.metadata)
size = sum(file.stat().st_size for file in folder.iterdir())
print(f"{len(list(folder.iterdir()))} files, {size / 1e6:.0f} MB")

# %%
# Open it
# -------

models = open_models(folder)
models

# %%
# ``models[layer]`` is one layer of all models, still on disk. ``labels`` turns metadata
# into y: lists become an indicator matrix with class names.

W = models["hidden2.weight"]
labels = models.labels("trained_on")
print(W)
print(labels.y.shape, labels.classes[:3])

# %%
# Which layer?
# ------------
#
# Slices and folds of a lazy layer are handles, so cross-validation copies nothing and
# worker processes get a few bytes. Here, every layer that has one shape in all models,
# for two questions: the classes, and the learning rate.

import time

from sklearn.metrics import make_scorer
from sklearn.model_selection import cross_val_score

from skprobex import ProbeXClassifier, ProbeXRegressor


def label_accuracy(y_true, y_pred):
    return np.mean(y_true == y_pred)


log_rate = np.log(models.labels("learning_rate"))
layers = [name for name in models.layers if name.startswith("hidden")]
scores = {"label accuracy": [], "R² of log learning rate": []}
start = time.perf_counter()
for name in layers:
    W = models[name]
    scorer = make_scorer(label_accuracy)
    accuracy = cross_val_score(ProbeXClassifier(), W, labels.y, cv=3, scoring=scorer)
    r2 = cross_val_score(ProbeXRegressor(), W, log_rate, cv=3)
    for values, folds in zip(scores.values(), (accuracy, r2), strict=True):
        values.append(folds)
    print(f"{name:<16} accuracy {accuracy.mean():.3f}   R² {r2.mean():.3f}")
print(f"{time.perf_counter() - start:.1f} s")

# %%
# The picture
# -----------

import matplotlib.pyplot as plt

fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
for ax, (title, folds) in zip(axes, scores.items(), strict=True):
    ax.barh(layers, np.mean(folds, axis=1), xerr=np.std(folds, axis=1))
    ax.set(xlabel=title)
axes[0].axvline(0.5, color="grey", linestyle=":")
axes[0].set_xlim(0.45, 1)
axes[0].invert_yaxis()

# %%
# What was learnt
# ---------------
#
# A folder of checkpoints is a data set: open it, name a layer, and cross-validate. The
# second layer's weights know best what a model was trained on, and its biases nothing;
# the learning rate shows everywhere, most in the first layer's weights.
