"""
A jungle of three trees
=======================

A repository holds models of several bases, and nobody says which is of which. We find
the Model Trees, give each an expert, compare with one expert for all, and see what
models of another tree do to an expert.
"""

# %%
# Three trees, mixed
# ------------------
#
# The networks are fine-tuned from three bases, trained from different initial weights
# on the same digits. ``W`` is one hidden layer of each, in no order.

import numpy as np

from skprobex.datasets import make_digit_jungle

jungle = make_digit_jungle(n_models=360, n_trees=3)
W, Y, tree = jungle.data, jungle.target, jungle.tree
train, test = np.arange(160), np.arange(160, 360)
print("weights:", W.shape)

# %%
# Find the trees
# --------------
#
# Fine-tuning moves weights little, compared with how far apart unrelated weights are.
# :class:`~skprobex.trees.ModelTreeClustering` merges what is close and stops where the
# gap is. It also says -1 for a model that is of no tree it knows.

from sklearn.metrics import adjusted_rand_score

from skprobex.trees import ModelTreeClustering

trees = ModelTreeClustering().fit(W[train])
index = adjusted_rand_score(tree[train], trees.labels_)
print(f"trees found: {trees.n_trees_}, adjusted Rand index {index:.2f}")

two = ModelTreeClustering().fit(W[train][tree[train] < 2])
refused = np.mean(two.predict(W[test][tree[test] == 2]) == -1)
print(f"knowing two trees only, models of the third refused: {refused:.0%}")

# %%
# One expert, or three
# --------------------
#
# :class:`~skprobex.trees.TreeExperts` finds the trees, fits a clone of its estimator
# for each, and routes what it is to predict.

from skprobex import ProbeXClassifier
from skprobex.trees import TreeExperts


def accuracy(estimator, rows=test):
    return np.mean(estimator.predict(W[rows]) == Y[rows])


sizes = [40, 80, 160]
clf = ProbeXClassifier(random_state=0)
scores = {"one expert": [], "three experts": []}
for n in sizes:
    scores["one expert"].append(accuracy(clf.fit(W[:n], Y[:n])))
    scores["three experts"].append(accuracy(TreeExperts(clf).fit(W[:n], Y[:n])))
print("labelled models" + "".join(f"{n:>7}" for n in sizes))
for name, values in scores.items():
    print(f"{name:<15}" + "".join(f"{value:>7.3f}" for value in values))

# %%
# More models, worse expert
# -------------------------
#
# Fifty models of one tree, and more and more models of the two others. They are
# labelled as well as the fifty are, and show the same ten digits.

own, others = np.flatnonzero(tree == 0), np.flatnonzero(tree > 0)
added = [0, 25, 50, 100, 200]
harmed = []
for n in added:
    rows = np.concatenate([own[:50], others[:n]])
    harmed.append(accuracy(clf.fit(W[rows], Y[rows]), own[50:]))
print("models of other trees" + "".join(f"{n:>7}" for n in added))
print("accuracy on its own  " + "".join(f"{value:>7.3f}" for value in harmed))

# %%
# The picture
# -----------

import matplotlib.pyplot as plt

from skprobex.inspection import ModelTreeDisplay

fig, (left, middle, right) = plt.subplots(
    1, 3, figsize=(13, 4), layout="constrained", width_ratios=[1.4, 1, 1]
)
ModelTreeDisplay.from_estimator(trees, ax=left)
left.set_title("who is close to whom")
for name, values in scores.items():
    middle.plot(sizes, values, "o-", label=name)
middle.set(xlabel="labelled models", ylabel="label accuracy", ylim=(0.45, 1.02))
middle.legend(loc="lower right")
right.plot(added, harmed, "o-", color="tab:red")
right.set(xlabel="models of other trees added", ylim=(0.45, 1.02))
right.set_title("fifty models of one tree, and others")
fig.savefig("trees.png", dpi=120)
print("figure: trees.png")

# %%
# What was learnt
# ---------------
#
# Without being told, the models fall into their three trees, and a third one that was
# never seen is refused whole. With 160 labelled models the experts reach .999 where one
# expert for all stays at .870: it takes the mean of three bases for the centre of each,
# and what sets models apart then is mostly their base. That is also why models of other
# trees do harm: fifty models alone make an expert of .997, and 200 more that are of
# other trees bring it down to .823.
