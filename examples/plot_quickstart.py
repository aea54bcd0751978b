"""
What was this model trained on?
===============================

Six hundred small networks were fine-tuned from one base, each on five of the ten
handwritten digits. Nobody wrote down which. From the weights of one hidden layer,
and the answers for some of the networks, we find them for the others.
"""

# %%
# A jungle of real networks
# -------------------------
#
# The networks are really trained, in a few seconds: a pre-trained base, then for each
# model a fresh head, a random half of the digits, and a learning rate and length of its
# own. ``W`` holds one layer of all of them, ``Y`` marks the digits that each has seen.

from skprobex.datasets import make_digit_jungle

W, Y = make_digit_jungle(n_models=600, return_X_y=True)
print("weights:", W.shape, " labels:", Y.shape)

# %%
# Fit, predict, score
# -------------------
#
# A :class:`~skprobex.ProbeXClassifier` is a scikit-learn classifier that takes 3-D
# input. Accuracy is the share of (model, digit) pairs that are right; guessing gets
# one half.

import time

import numpy as np
from sklearn.model_selection import train_test_split

from skprobex import ProbeXClassifier

W_train, W_test, Y_train, Y_test = train_test_split(W, Y, test_size=150, random_state=0)
start = time.perf_counter()
clf = ProbeXClassifier(random_state=0).fit(W_train, Y_train)
seconds = time.perf_counter() - start
accuracy = np.mean(clf.predict(W_test) == Y_test)
print(f"ProbeXClassifier: {accuracy:.3f} after {seconds:.1f} s, view {clf.views_}")

# %%
# How many labelled models does it take?
# --------------------------------------
#
# Beside it: the dense expert, a ridge on all 4,096 weights of the layer, and a random
# forest on seven statistics of them.

from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline

from skprobex.baselines import WeightStatistics, make_dense_expert

methods = {
    "ProbeXClassifier": ProbeXClassifier(random_state=0),
    "dense expert": make_dense_expert(),
    "seven statistics": make_pipeline(
        WeightStatistics(), RandomForestClassifier(random_state=0)
    ),
}
sizes = [25, 50, 100, 200, 450]
scores = {
    name: [
        np.mean(method.fit(W_train[:n], Y_train[:n]).predict(W_test) == Y_test)
        for n in sizes
    ]
    for name, method in methods.items()
}
print("labelled models    " + "".join(f"{n:>7}" for n in sizes))
for name, values in scores.items():
    print(f"{name:<18} " + "".join(f"{value:>7.3f}" for value in values))

# %%
# The picture
# -----------
#
# Left, accuracy against the number of labelled models. Right, what the classifier
# says of twelve test models; circles mark the digits that each was really trained on.

import matplotlib.pyplot as plt

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, values in scores.items():
    left.plot(sizes, values, "o-", label=name)
left.axhline(0.5, color="grey", linestyle=":", label="guessing")
left.set(
    xscale="log", xlabel="labelled models", ylabel="label accuracy", ylim=(0.45, 1.02)
)
left.set_xticks(sizes, sizes, minor=False)
left.minorticks_off()
left.legend()

image = right.imshow(clf.predict_proba(W_test[:12]), cmap="Blues", vmin=0, vmax=1)
models, digits = np.nonzero(Y_test[:12])
right.plot(digits, models, "o", markerfacecolor="none", color="tab:orange")
right.set(xlabel="digit", ylabel="test model", xticks=range(10), yticks=range(12))
fig.colorbar(image, label="probability of having been trained on it")
fig.savefig("quickstart.png", dpi=120)
print("figure: quickstart.png")

# %%
# What was learnt
# ---------------
#
# The digits that a network has seen can be read off one hidden layer, given fifty
# labelled relatives. The dense expert sees the same weights
# and hardly does: each model's random head turns its update another way, and the
# answer is in what does not turn. The view that the classifier chose by itself, a Gram
# matrix of the layer's inputs or its logarithm, keeps just that.
