"""
Who was fine-tuned from whom
============================

Models are fine-tuned from models that were fine-tuned from models. Model cards often
forget to say from which. The weights know: we recover the family tree of forty networks
from one layer of each, and see which links are sure.
"""

# %%
# A family of three generations
# -----------------------------
#
# One base, three children, three children of each of them, and so on: each network
# starts from its parent's hidden layers, and is fine-tuned on digits of its own choice.
# We shuffle base and descendants, and keep the answer for later.

import numpy as np

from skprobex.datasets import make_digit_jungle

jungle = make_digit_jungle(n_models=39, n_generations=3)
layer = "hidden2.weight"
W = np.concatenate([jungle.bases[layer], jungle.layers[layer]])
parents = np.concatenate([[-1], jungle.parents + 1])
generation = np.concatenate([[0], jungle.generation])

order = np.random.default_rng(0).permutation(len(W))
place = np.argsort(order)
W, generation = W[order], generation[order]
parents = np.where(parents[order] < 0, -1, place[parents[order]])
print(f"{len(W)} networks, by generation: {np.bincount(generation)}")

# %%
# Recover the tree
# ----------------
#
# :func:`~skprobex.recover_heritage` finds the directed tree of least total distance,
# rooted where the norm of the weights is least: training makes them grow.

from skprobex import recover_heritage

heritage = recover_heritage(W)
has_parent = parents >= 0
right = heritage.parents_ == parents
print("the root is found:", bool(right[~has_parent].all()))
print(f"parents found: {right[has_parent].mean():.3f}")

# %%
# Is it not just the nearest neighbour?
# -------------------------------------
#
# Not quite: a parent may be nearest to its own child.

distances = np.linalg.norm(W[:, None] - W, axis=(2, 3))
np.fill_diagonal(distances, np.inf)
nearest = distances.argmin(axis=1)
share = np.mean(nearest[has_parent] == parents[has_parent])
print(f"nearest neighbours that are parents: {share:.3f}")

# %%
# Without the base, and with one model missing
# --------------------------------------------
#
# A repository does not hold every ancestor. We leave out the base, and then one child
# of it that has children of its own.

kept = np.flatnonzero(generation > 0)
orphans = parents[kept]
without_base = recover_heritage(W[kept])
known = np.isin(orphans, kept)
found = kept[without_base.parents_]
print(f"without the base: {np.mean((found == orphans)[known]):.3f} of parents found")

missing = np.flatnonzero(generation == 1)[0]
kept = np.flatnonzero(np.arange(len(W)) != missing)
incomplete = recover_heritage(W[kept])
sure = incomplete.scores_
orphaned = parents[kept] == missing
others = has_parent[kept] & ~orphaned
print(f"sureness of orphans: {sure[orphaned].mean():.2f} on average", end=", ")
print(f"of the others: {sure[others].mean():.2f}")

# %%
# The picture
# -----------
#
# Left, the tree that was recovered. Right, why it can be: fine-tunes go off at almost
# right angles, so squared distances add up along the branches.

import matplotlib.pyplot as plt

from skprobex.inspection import ModelTreeDisplay

# Steps between two models: up to their nearest common ancestor, and down again.
descends = np.eye(len(W), dtype=bool)
for _ in range(3):
    descends |= has_parent[:, None] & descends[parents]
common = (descends[:, None] & descends).sum(axis=2) - 1
steps = generation[:, None] + generation - 2 * common

fig, (left, right) = plt.subplots(
    1, 2, figsize=(12, 4.2), layout="constrained", width_ratios=[2, 1]
)
ModelTreeDisplay.from_heritage(heritage, ax=left)
left.set_title("recovered from weights")
pairs = np.triu_indices(len(W), 1)
right.boxplot(
    [distances[pairs][steps[pairs] == n] ** 2 for n in range(1, 7)], showfliers=False
)
right.set(xlabel="steps between two models", ylabel="squared distance")
fig.savefig("heritage.png", dpi=120)
print("figure: heritage.png")

# %%
# What was learnt
# ---------------
#
# All 39 parents and the base were found from one layer, and all that can be found where
# the base is missing. The nearest neighbour would be wrong for every fourth: .769. A
# model whose parent is missing is given another one. Its link is less sure, .16 on
# average against .39, but so are some that are right: sureness is a hint, not a proof.
