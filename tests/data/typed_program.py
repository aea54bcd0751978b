"""A user's program, for mypy, which pyproject.toml tells of it. It is not run.

Uses marked ``type: ignore`` are wrong. With ``warn_unused_ignores``, mypy complains of
one that it does not find wrong.
"""

from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sklearn.model_selection import GridSearchCV, cross_val_score

import skprobex
from skprobex import (
    LayerFusion,
    LayerSearchCV,
    LowRankWeights,
    ModelCollection,
    ModelIndex,
    ProbeXClassifier,
    ProbeXEmbedder,
    ProbeXRegressor,
    TreeExperts,
    open_models,
    recover_heritage,
    save_models,
)
from skprobex.baselines import FlatDeltas, make_dense_expert
from skprobex.datasets import make_digit_jungle, make_model_tree
from skprobex.inspection import ModelTreeDisplay, ViewScoresDisplay
from skprobex.metrics import mean_one_class_auc


def fit_and_predict(path: Path) -> float:
    """Fit an expert on arrays, tensors and lists, and ask it."""
    W, y = make_model_tree(60, (16, 12), random_state=0, return_X_y=True)
    clf = ProbeXClassifier(views=("xu", "xtxu"), class_weight={0: 1, 1: 2}).fit(W, y)
    labels: np.ndarray = clf.predict(torch.zeros((3, 16, 12)))
    clf.fit([np.eye(4), np.ones((4, 4))], ["a", "b"]).predict([[1.0, 2.0], [3.0, 4.0]])
    scores: list[float] = cross_val_score(clf, W, y).tolist()
    search = GridSearchCV(clf, {"n_probes": [16, 32]}).fit(W, y)
    ViewScoresDisplay.from_estimator(search.best_estimator_).figure_.savefig(path)
    clf.save(path)
    loaded: ProbeXClassifier = skprobex.load(path)
    regressor = ProbeXRegressor(center=np.zeros((16, 12)), alphas=[1.0], device="cpu")
    Z = regressor.fit(W, y).transform(W)
    Z = FlatDeltas().fit(W).transform(W) + Z
    make_dense_expert("regression").fit(W, y)
    ProbeXClassifier(solver="sgd")  # type: ignore[arg-type]
    ProbeXClassifier(n_probes="64")  # type: ignore[arg-type]
    ProbeXClassifier(probes=64)  # type: ignore[call-arg]
    clf.fit("models/", y)  # type: ignore[arg-type]
    clf.predict(path)  # type: ignore[arg-type]
    clf.predict(W).fit(W)  # type: ignore[attr-defined]
    auc = mean_one_class_auc(Z[:30], y[:30], Z[30:], y[30:])
    return max(scores) + auc + len(labels) + len(loaded.classes_)


def use_files(folder: str) -> ModelCollection:
    """Open files, select models, search layers."""
    models = open_models(folder, on_error="ignore", n_jobs=4)
    some = models[:20].select(layers=["head.weight"], on_missing="drop")
    y = some.labels("accuracy")
    search = LayerSearchCV(ProbeXRegressor(), layers="*.weight", n_jobs=2)
    best: np.ndarray = search.fit(models, models.labels("accuracy")).predict(some)
    W = some["head.weight"]
    ProbeXRegressor().fit(W, y).predict(W[best > 0])
    for name, info in models.layers.items():
        print(name, info.shape, info.n_models)
    jungle = make_digit_jungle(n_models=20)
    fusion = LayerFusion(["head.weight"]).fit(jungle.layers, jungle.target)
    fusion.transform({"head.weight": np.zeros((2, 5, 64))})
    experts = TreeExperts(ProbeXClassifier()).fit(jungle.models, jungle.target)
    heritage = recover_heritage(W, statistic="norm", roots=[0])
    save_models(
        Path(folder), {"a": np.zeros((2, 3, 3))}, names=experts.predict(W).tolist()
    )
    open_models(folder, on_error="skip")  # type: ignore[arg-type]
    open_models(3)  # type: ignore[arg-type]
    search.fit(np.zeros((5, 3, 3)), y)  # type: ignore[arg-type]
    ModelTreeDisplay.from_heritage(heritage, names=some.names).figure_.savefig(folder)
    recover_heritage(W, statistic="age")  # type: ignore[arg-type]
    return models[["a" == name for name in models.names]]


def search_models(models: ModelCollection, texts: list[str]) -> list[str]:
    """Embed adapters with texts, and find them by a sentence."""
    W = LowRankWeights([np.eye(3)[:, :1]] * 2, [np.eye(3)[:1]] * 2, scale=0.5)
    dense: np.ndarray = W[0]
    print(dense.shape, W[1:].rank, torch.from_numpy(W.to_dense()))

    def encode(texts: list[str]) -> np.ndarray:
        return np.ones((len(texts), 8))

    embedder = ProbeXEmbedder(text_encoder=encode, prompt="a photo of {}")
    embedder.fit(models["block.weight"], texts).predict(W, labels=["a dog", "a cat"])
    embedder.set_params(text_encoder=SentenceTransformer("name"))
    ProbeXEmbedder(text_encoder=SentenceTransformer("name"))
    index = ModelIndex(embedder).add(models)
    found = index.search("a dog", k=3, where={"task": ["vision"]})
    index.search(W[:1], where=lambda entry: entry["rank"] > 4).to_frame()
    index.remove("model_0")
    index.search("a dog", k="3")  # type: ignore[arg-type]
    ProbeXEmbedder(text_encoder=3)  # type: ignore[arg-type]
    names: list[str] = found.names
    return names
