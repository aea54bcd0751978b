"""
Which layer knows
=================

A network has many layers, and different questions are answered by different ones. We
ask a jungle which of its layers knows what the models were trained on, which knows
how, and whether all of them together know more.
"""

# %%
# All layers of all models
# ------------------------
#
# Each network has two hidden layers and a head, with weights and biases: six layers
# in our sense. Every estimator takes the whole collection.

import numpy as np

from skprobex.datasets import make_digit_jungle

jungle = make_digit_jungle(n_models=350, n_classes=40)
train, test = np.arange(150), np.arange(150, 350)
models = jungle.models[train]
print(models)
for name, layer in models.layers.items():
    print(f"  {name:<16}{layer.shape}")

# %%
# Which layer knows the classes?
# ------------------------------
#
# :class:`~skprobex.LayerSearchCV` cross-validates an estimator on each layer, and fits
# it on the best. What counts here is the share of right labels.

from skprobex import LayerSearchCV, ProbeXClassifier


def label_accuracy(estimator, W, Y):
    return np.mean(estimator.predict(W) == Y)


Y = jungle.target
clf = ProbeXClassifier(random_state=0)
classes = LayerSearchCV(clf, cv=3, scoring=label_accuracy).fit(models, Y[train])
for name, score in classes.layer_scores_.items():
    print(f"{name:<16}{score:.3f}")

# %%
# Which layer knows the learning rate?
# ------------------------------------
#
# The same search with a regressor; the score is R².

from skprobex import ProbeXRegressor

rate = np.log(jungle.settings["learning_rate"])
rates = LayerSearchCV(ProbeXRegressor(random_state=0), cv=3).fit(models, rate[train])
for name, score in rates.layer_scores_.items():
    print(f"{name:<16}{score:>6.3f}")

# %%
# And all together?
# -----------------
#
# An expert that is given several layers joins them: leave-one-out says which, which
# views of each, and how loud. The models below were not seen.

from skprobex import LayerFusion

unseen = jungle.models[test]
fused = ProbeXClassifier(random_state=0).fit(models, Y[train])
print("layers in use for the classes:", fused.layers_)
print(f"  best layer {label_accuracy(classes, unseen, Y[test]):.3f}", end=", ")
print(f"together {label_accuracy(fused, unseen, Y[test]):.3f}")
fused_rate = ProbeXRegressor(random_state=0).fit(models, rate[train])
print("layers in use for the learning rate:", fused_rate.layers_)
print(f"  best layer {rates.score(unseen, rate[test]):.3f}", end=", ")
print(f"together {fused_rate.score(unseen, rate[test]):.3f}")
weights = LayerFusion().fit(models, rate[train]).layer_weights_
print("  shares:", {name: round(share, 2) for name, share in weights.items()})

# %%
# The picture
# -----------

import matplotlib.pyplot as plt

from skprobex.inspection import LayerSearchDisplay

fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
LayerSearchDisplay.from_estimator(classes, ax=left)
left.set(title="which classes", ylabel="label accuracy")
LayerSearchDisplay.from_estimator(rates, ax=right)
right.set(title="which learning rate", ylabel="R²")
fig.savefig("layers.png", dpi=120)
print("figure: layers.png")

# %%
# What was learnt
# ---------------
#
# What a model was trained on stands in the second hidden layer: .905 of labels by
# cross-validation, .834 from the first, and about a half, which is chance, from the
# biases. How fast it was trained is rather told by the first hidden layer, R² .837
# against .767, and even biases tell much of it, .697. So the layer that knows depends
# on the question. Where one layer knows best, the others are left alone: for the
# classes the fusion uses that layer only, .948 on models not seen. For the learning
# rate it adds a share of the second layer to the first, and .802 become .817.
