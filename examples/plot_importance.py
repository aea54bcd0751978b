"""
Which inputs carry the answer
=============================

An expert tells from a network's first layer which digits it was trained on. The inputs
of that layer are pixels. So we can ask which of them the expert looks at, and lay the
answer beside the digits, which it has never seen.
"""

# %%
# An expert on the first layer
# ----------------------------
#
# We choose a view of the input side. Its rows and columns are the 64 pixels.

import numpy as np

from skprobex import ProbeXClassifier
from skprobex.datasets import make_digit_jungle

jungle = make_digit_jungle(n_models=600)
W, Y = jungle.layers["hidden1.weight"], jungle.target
clf = ProbeXClassifier(views=("log_xtx",), random_state=0).fit(W[:450], Y[:450])
accuracy = np.mean(clf.predict(W[450:]) == Y[450:])
print(f"{accuracy:.3f} of labels right on 150 other models")

# %%
# From probes back to pixels
# --------------------------
#
# The decision on a digit is linear in the view. Mapped back through the probes, its
# coefficients say how much it changes with each entry of the view. The importance of a
# pixel is the sum of their squares along its row, as a share of all.

from skprobex.inspection import ProbeImportanceDisplay

display = ProbeImportanceDisplay.from_estimator(clf)
importance = display.importances["log_xtx"]
display.ax_.set_title("all digits")
print(f"sum over pixels {importance.sum():.2f}")

# %%
# A check that needs the data
# ---------------------------
#
# Pixels that are blank in all images have moved no weight. The expert cannot know which
# they are but from the weights.

from sklearn.datasets import load_digits

digits = load_digits()
blank = np.ptp(digits.images, axis=0).ravel() == 0
print(f"blank pixels: {blank.sum()}, their share {importance[blank].sum():.6f}")

# %%
# Digit by digit
# --------------
#
# Above, the mean image of each digit; below, where the expert looks for it.

import matplotlib.pyplot as plt

# sphinx_gallery_thumbnail_number = 2
fig, axes = plt.subplots(2, 10, figsize=(12, 2.8), layout="constrained")
for digit, (above, below) in enumerate(axes.T):
    mean = digits.images[digits.target == digit].mean(axis=0)
    above.imshow(mean, cmap="gray_r")
    above.set(title=str(digit), xticks=[], yticks=[])
    ProbeImportanceDisplay.from_estimator(clf, output=digit, shape=(8, 8), ax=below)
axes[0, 0].set_ylabel("digit")
axes[1, 0].set_ylabel("importance")
fig.savefig("importance.png", dpi=120)
print("figure: importance.png")

# %%
# What was learnt
# ---------------
#
# The expert looks at pixels that set one digit apart from the others, not just at its
# ink: the hole of the zero, the ends of the four's bar, the corner of the seven. It
# does so without an image, from how the weights at each pixel moved. The three pixels
# that are always blank count for nothing. Importance is that of the expert, not of the
# networks: it says where the answer was read, and neighbours that say the same share
# it.
