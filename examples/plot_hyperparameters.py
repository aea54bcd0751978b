"""
How was it trained, and how good is it?
=======================================

Weights remember more than the data. From one layer, with no image at hand, we estimate
the learning rate a network was fine-tuned with, for how many steps, and how accurate
it is.
"""

# %%
# Three numbers for each network
# ------------------------------
#
# Learning rates and numbers of steps were drawn at random, on a logarithmic scale, and
# so we predict logarithms. The accuracy was measured on held-out images of the
# network's own classes.

import numpy as np

from skprobex.datasets import make_digit_jungle

jungle = make_digit_jungle(n_models=350, n_classes=40)
W = jungle.layers["hidden1.weight"]
names = ["log10 learning rate", "log10 steps", "accuracy"]
y = np.column_stack(
    [
        np.log10(jungle.settings["learning_rate"]),
        np.log10(jungle.settings["n_steps"]),
        jungle.accuracy,
    ]
)
for name, values in zip(names, y.T, strict=True):
    print(f"{name:<20} from {values.min():>6.2f} to {values.max():>6.2f}")

# %%
# Predict them
# ------------
#
# A :class:`~skprobex.ProbeXRegressor` takes several targets at once. Beside it: ridge
# regression on all weights, and a random forest on seven statistics of them, which
# include their spread. Every model is predicted by experts that did not see it.

from sklearn.ensemble import RandomForestRegressor
from sklearn.metrics import r2_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline

from skprobex import ProbeXRegressor
from skprobex.baselines import WeightStatistics, make_dense_expert

methods = {
    "ProbeXRegressor": ProbeXRegressor(random_state=0),
    "seven statistics": make_pipeline(
        WeightStatistics(), RandomForestRegressor(random_state=0)
    ),
    "dense expert": make_dense_expert("regression"),
}
predicted = {
    name: cross_val_predict(method, W, y, cv=3) for name, method in methods.items()
}
scores = {
    name: r2_score(y, values, multioutput="raw_values")
    for name, values in predicted.items()
}
print("R²" + " " * 17 + "".join(f"{name:>21}" for name in names))
for name, values in scores.items():
    print(f"{name:<19}" + "".join(f"{value:>21.3f}" for value in values))

# %%
# Which views say it
# ------------------

expert = ProbeXRegressor(random_state=0).fit(W, y)
print("views in use:", expert.views_)
print("deltas scaled to unit norm:", expert.normalize_)

# %%
# From all layers
# ---------------
#
# The collection holds biases and the head too. The regressor joins what helps.

predicted["all layers"] = cross_val_predict(
    ProbeXRegressor(random_state=0), jungle.models, y, cv=3
)
joined = r2_score(y, predicted["all layers"], multioutput="raw_values")
print(f"{'all layers':<19}" + "".join(f"{value:>21.3f}" for value in joined))

# %%
# The picture
# -----------

import matplotlib.pyplot as plt

from skprobex.inspection import ViewScoresDisplay

fig, axes = plt.subplots(2, 2, figsize=(10, 8.5), layout="constrained")
for i, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
    ax.axline((y[0, i], y[0, i]), slope=1, color="grey", linestyle=":")
    ax.scatter(y[:, i], predicted["all layers"][:, i], s=14, alpha=0.6)
    ax.set(xlabel=name, ylabel="predicted", title=f"R² {joined[i]:.2f}")
ViewScoresDisplay.from_estimator(expert, ax=axes[1, 1])
axes[1, 1].set(title="views of the first hidden layer", xlabel="leave-one-out R²")
fig.savefig("hyperparameters.png", dpi=120)
print("figure: hyperparameters.png")

# %%
# What was learnt
# ---------------
#
# The learning rate can be read from one layer, R² .843, and much better with the expert
# than from statistics, .662, or from all weights at once, .506. The number of steps
# cannot, .443 at best: a few large steps look much like many small ones. How accurate a
# network is, seven statistics of its layer tell as well as anything, .859 against .818
# from the expert; with all layers it gets .874. So try the baselines: a simple question
# may have a simple answer. The spectrum of the delta has a part in each sum of views
# that did well, as how far training went is in the size of what it changed.
