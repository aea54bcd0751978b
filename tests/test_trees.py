"""Model Trees: found, routed to, and given experts."""

import json
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.spatial.distance import cdist
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from skprobex import (
    LowRankWeights,
    ModelCollection,
    ProbeXClassifier,
    ProbeXEmbedder,
    ProbeXRegressor,
    open_models,
    save_models,
)
from skprobex.baselines import WeightStatistics
from skprobex.datasets import make_digit_jungle, make_model_tree
from skprobex.exceptions import MissingLayerError
from skprobex.inspection import ModelTreeDisplay
from skprobex.trees import ModelTreeClustering, TreeExperts, _tree_models
from skprobex.trees._distances import (
    Sketcher,
    pendant_lengths,
    relative,
    squared_distances,
)
from skprobex.trees._linkage import find_cut
from skprobex.weights._dense import DenseWeights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def jungle(data_home):
    return make_digit_jungle(150, 4, n_trees=3, data_home=data_home)


def forest(n_trees=3, n_models=20, shape=(12, 10), scale=0.1, seed=0):
    """Weights of several synthetic trees, shuffled, and the tree of each."""
    rng = np.random.default_rng(seed)
    bases = rng.standard_normal((n_trees, *shape))
    tree = rng.permutation(np.arange(n_trees * n_models) % n_trees)
    deltas = rng.standard_normal((len(tree), *shape))
    return bases[tree] + scale * deltas, tree, bases


# The contract


@parametrize_with_checks(
    [
        ModelTreeClustering(),
        TreeExperts(ProbeXClassifier()),
        TreeExperts(ProbeXClassifier(), ModelTreeClustering(1)),
        TreeExperts(ProbeXRegressor()),
    ]
)
# The checks' data are too few for many trees.
@pytest.mark.filterwarnings("ignore:.*Model Trees have fewer than")
@pytest.mark.filterwarnings("ignore:.*are of no known Model Tree")
def test_check_battery(estimator, check):
    check(estimator)


# Distances


def test_distances_are_those_between_weights():
    W, _, _ = forest()
    F = W.reshape(len(W), -1)
    sketches, norms = Sketcher((12, 10), 64, None).sketch(DenseWeights(W), CPU)
    expected = cdist(F, F, "sqeuclidean")
    np.testing.assert_allclose(squared_distances(sketches), expected, rtol=1e-5)
    centred = F - F.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(norms, (centred**2).sum(axis=1))
    np.testing.assert_allclose(
        squared_distances(sketches, sketches[:3]), expected[:, :3], atol=1e-5
    )


@pytest.mark.parametrize("shape", [(90, 80), (3, 5000), (5000, 3), (9000, 1)])
def test_projected_distances_are_close(shape):
    W, _, _ = forest(2, 6, shape)
    generator = torch.Generator().manual_seed(0)
    sketcher = Sketcher(shape, 64, generator)
    sketches, _ = sketcher.sketch(DenseWeights(W), CPU)
    assert sketches.shape[1] <= 4200
    F = W.reshape(len(W), -1)
    expected = cdist(F, F, "sqeuclidean")
    off = ~np.eye(len(W), dtype=bool)
    ratio = squared_distances(sketches)[off] / expected[off]
    assert 0.85 < ratio.min() and ratio.max() < 1.15


def test_factors_are_projected_as_their_product():
    rng = np.random.default_rng(0)
    B, A = rng.normal(size=(6, 90, 3)), rng.normal(size=(6, 3, 80))
    W = LowRankWeights(B, A)
    sketcher = Sketcher((90, 80), 64, torch.Generator().manual_seed(0))
    dense = sketcher.sketch(DenseWeights(W.to_dense()), CPU)[0]
    np.testing.assert_allclose(sketcher.sketch(W, CPU)[0], dense, rtol=1e-9)


def test_unrelated_is_one_and_twins_are_zero():
    norms = np.array([4.0, 4.0, 0.0])
    D2 = np.array([[0, 8, 4], [8, 0, 4], [4, 4, 0]], dtype=np.float32)
    np.testing.assert_allclose(relative(D2, norms)[0], [0, 1, 1])
    assert relative(np.zeros((2, 2), np.float32), np.zeros(2)).max() == 0


def test_pendant_lengths_are_what_was_trained_after_the_branch():
    # Coordinates of its own for each model: squared distances add up exactly.
    lengths = np.array([1.0, 2.0, 3.0, 100.0])
    F = np.zeros((8, 10))
    F[np.arange(4), np.arange(4)] = np.sqrt(lengths)
    F[np.arange(4, 8), np.arange(4, 8)] = np.sqrt(lengths)
    F[4:, 9] = 5.0  # a second branch
    found = pendant_lengths(squared_distances(F))
    np.testing.assert_allclose(found, [*lengths, *lengths], 1e-4)


@pytest.mark.parametrize(
    "heights, low, high",
    [
        ([0.01, 0.02], 0.1, 0.9),  # one tree
        ([0.01, 0.95, 1.0], 0.02, 0.95),  # three
        ([0.95, 1.0], 0.1, 0.9),  # each by itself: the cut is below
        ([0.01, 0.3], 0.3, 0.9),  # one, with one model trained for long
        ([], 0.1, 0.9),
    ],
)
def test_the_cut_is_in_the_widest_gap(heights, low, high):
    cut = find_cut(np.array(heights))
    assert low < cut < high


# Discovery


def test_trees_of_a_jungle_are_found(jungle):
    W, tree = jungle.data, jungle.tree
    found = ModelTreeClustering().fit(W[:120])
    assert found.n_trees_ == 3
    assert adjusted_rand_score(tree[:120], found.labels_) == 1
    assert adjusted_rand_score(tree[120:], found.predict(W[120:])) == 1
    np.testing.assert_array_equal(found.predict(W[:120]), found.labels_)
    assert (np.diff(np.bincount(found.labels_)) <= 0).all()
    for label, center in enumerate(found.centers_):
        own = found.labels_ == label
        base = jungle.bases["hidden2.weight"][tree[:120][own][0]]
        mean = W[:120][own].mean(axis=0)
        assert np.linalg.norm(center - base) < 0.9 * np.linalg.norm(mean - base)
    assert (found.distances_.argmin(axis=1) == found.labels_).all()
    # The labels do not depend on the order of the models but for their names.
    again = ModelTreeClustering().fit(W[:120][::-1])
    assert adjusted_rand_score(again.labels_[::-1], found.labels_) == 1


def test_models_of_an_unknown_tree_are_refused(jungle):
    W, tree = jungle.data, jungle.tree
    known = np.flatnonzero(tree < 2)
    found = ModelTreeClustering().fit(W[known[:70]])
    assert (found.predict(W[tree == 2]) == -1).all()
    assert (found.predict(W[known[70:]]) >= 0).all()
    found.set_params(outlier_threshold=None)
    assert (found.predict(W[tree == 2]) >= 0).all()
    found.set_params(outlier_threshold=0.0)
    assert (found.predict(W[known[70:]]) == -1).all()


def test_training_length_does_not_matter():
    W, tree, bases = forest(scale=1.0)
    rng = np.random.default_rng(1)
    scale = np.exp(rng.uniform(np.log(0.006), np.log(0.6), len(W)))
    W = bases[tree] + scale[:, None, None] * (W - bases[tree])
    found = ModelTreeClustering().fit(W)
    assert adjusted_rand_score(tree, found.labels_) == 1


def test_branches_nearer_than_their_models_are():
    W, tree, bases = forest(shape=(40, 40), scale=0.5)
    near = 0.25 * bases + bases[0]
    W = near[tree] + (W - bases[tree])
    assert ModelTreeClustering().fit(W).n_trees_ == 1
    branches = ModelTreeClustering(3).fit(W)
    assert adjusted_rand_score(tree, branches.labels_) == 1


@pytest.mark.parametrize(
    "make, n_trees",
    [
        (lambda W: W[:1].repeat(5, axis=0), 1),  # all identical
        (lambda W: np.zeros((4, 3, 3)), 1),
        (lambda W: W[[0, 0]], 1),
        (lambda W: np.stack([W[0], W[0] * 1.01]), 1),
        (lambda W: np.random.default_rng(0).standard_normal((2, 30, 30)), 2),
        (lambda W: np.random.default_rng(0).standard_normal((5, 30, 30)), 5),
    ],
)
def test_degenerate_jungles(make, n_trees):
    W = make(forest()[0])
    found = ModelTreeClustering().fit(W)
    assert found.n_trees_ == n_trees
    np.testing.assert_array_equal(found.predict(W), found.labels_)


def test_a_tree_of_one():
    W, tree, _ = forest(2, 10, (20, 20))
    lone = np.random.default_rng(7).standard_normal((1, 20, 20))
    found = ModelTreeClustering().fit(np.concatenate([W, lone]))
    assert found.n_trees_ == 3
    assert found.labels_[-1] == 2 and (found.labels_ == 2).sum() == 1
    assert found.predict(lone + 0.01).tolist() == [2]
    assert adjusted_rand_score(tree, found.labels_[:-1]) == 1


def test_the_number_of_trees_can_be_given():
    W, tree, _ = forest(4, 10)
    assert adjusted_rand_score(tree, ModelTreeClustering(4).fit_predict(W)) == 1
    assert ModelTreeClustering(2).fit(W).n_trees_ == 2
    assert ModelTreeClustering(1).fit(W).n_trees_ == 1
    assert ModelTreeClustering(7).fit(W).n_trees_ == 7
    with pytest.raises(ValueError, match="more than there are models, 40"):
        ModelTreeClustering(41).fit(W)
    with pytest.warns(UserWarning, match="Only 1 of n_trees=2"):
        ModelTreeClustering(2).fit(np.ones((4, 3, 3)))


def test_branches_of_a_tree():
    jungle = make_digit_jungle(84, n_generations=2, cache=False)
    leaves = np.flatnonzero(jungle.generation == 2)
    W, branch = jungle.data[leaves], jungle.parents[leaves]
    assert ModelTreeClustering().fit(W).n_trees_ == 1
    found = ModelTreeClustering(len(np.unique(branch))).fit(W)
    assert adjusted_rand_score(branch, found.labels_) == 1


def test_shapes_and_dtypes_may_be_mixed():
    W, _, _ = forest(1, 5)
    models = [
        *W.astype(np.float16),
        *(torch.from_numpy(w).bfloat16() for w in W),
        *(w[:, :4] for w in W[:3]),
        np.ones((2, 2)),
    ]
    found = ModelTreeClustering().fit(models)
    assert found.labels_.tolist() == [0] * 10 + [1] * 3 + [2]
    np.testing.assert_array_equal(found.predict(models), found.labels_)
    assert found.predict([np.ones((5, 5)), models[0]]).tolist() == [-1, 0]
    assert found.predict(W).tolist() == [0] * 5
    assert np.isinf(found.distances_[0, 1:]).all()
    assert [c.shape for c in found.centers_] == [(12, 10), (12, 4), (2, 2)]
    assert found.linkage_.shape == (13, 4)
    with pytest.raises(ValueError, match="3 architectures"):
        ModelTreeClustering(2).fit(models)
    assert ModelTreeClustering(3).fit(models).n_trees_ == 3
    assert ModelTreeClustering(4).fit(models).n_trees_ == 4
    with pytest.raises(ValueError, match=r"W\[1\] has shape"):
        ModelTreeClustering().fit([np.ones((2, 2)), np.ones((0, 2))])


def test_gains_near_one_do_not_make_relatives():
    rng = np.random.default_rng(0)
    bases = 1 + 0.05 * rng.standard_normal((3, 200))
    tree = np.arange(30) % 3
    W = bases[tree] + 0.01 * rng.standard_normal((30, 200))
    assert adjusted_rand_score(tree, ModelTreeClustering().fit_predict(W)) == 1


def test_very_many_models_are_routed(monkeypatch):
    monkeypatch.setattr(_tree_models, "N_COMPARED", 30)
    W, tree, _ = forest(3, 40)
    found = ModelTreeClustering().fit(W)
    assert adjusted_rand_score(tree, found.labels_) == 1
    assert found.linkage_ is None
    with pytest.raises(ValueError, match="no merges to draw"):
        ModelTreeDisplay.from_estimator(found)


def test_collections(jungle):
    models = jungle.models
    found = ModelTreeClustering().fit(models)
    assert adjusted_rand_score(jungle.tree, found.labels_) == 1
    assert set(found.layers_) == {"hidden1.weight"}
    np.testing.assert_array_equal(found.predict(models[3:9]), found.labels_[3:9])
    of_layer = ModelTreeClustering(layer="hidden2.weight").fit(dict(jungle.layers))
    assert adjusted_rand_score(jungle.tree, of_layer.labels_) == 1
    with pytest.raises(MissingLayerError, match="have no layer 'hidden9'"):
        ModelTreeClustering(layer="hidden9").fit(models)
    with pytest.raises(ValueError, match="pass layer=None"):
        ModelTreeClustering(layer="hidden2.weight").fit(jungle.data)


# Adapters


def adapters(names, seed=0):
    rng = np.random.default_rng(seed)
    n = len(names)
    W = LowRankWeights(rng.normal(size=(n, 8, 2)), rng.normal(size=(n, 2, 6)))
    metadata = [{"base_model": name} if name else {} for name in names]
    return ModelCollection.from_layers({"q": W}, metadata=metadata)


def test_adapters_are_divided_by_their_declared_base():
    found = ModelTreeClustering().fit(adapters(["a", "b", "a", "a"]))
    assert found.labels_.tolist() == [0, 1, 0, 0]
    assert found.centers_ == [None, None]
    assert found.predict(adapters(["b", "c", "a"])).tolist() == [1, -1, 0]
    with pytest.raises(ValueError, match="does not say how the 2 groups"):
        ModelTreeClustering(3).fit(adapters(["a", "b", "a", "a"]))


def test_adapters_are_a_tree_beside_full_weights(tmp_path):
    save_models(tmp_path / "adapters", {"q.weight": adapters([""] * 4)["q"]})
    save_models(tmp_path / "full", {"p.weight": forest(1, 5)[0]})
    models = open_models(tmp_path)
    expected = [0 if "full" in name else 1 for name in models.names]
    for n_trees in (None, 2):
        assert ModelTreeClustering(n_trees).fit(models).labels_.tolist() == expected


def test_adapters_of_one_base_are_one_tree_whatever_they_change(tmp_path):
    """Other target modules, some of them with none in common."""
    for name, letters in {"qv": "qv", "q": "q", "kq": "kq", "o": "o"}.items():
        for i in range(2):
            save_adapter(tmp_path / f"{name}{i}", letters, "org/base")
    for i in range(3):
        save_adapter(tmp_path / f"z{i}", "qv", "org/other")
    models = open_models(tmp_path)
    clustering = ModelTreeClustering().fit(models)
    expected = [1 if name.startswith("z") else 0 for name in models.names]
    assert clustering.labels_.tolist() == expected
    assert clustering.predict(models).tolist() == expected
    # Of layers that fit never saw: the base still tells.
    save_adapter(tmp_path / "new" / "a", "x", "org/base")
    save_adapter(tmp_path / "new" / "b", "q", "org/third")
    assert clustering.predict(open_models(tmp_path / "new")).tolist() == [0, -1]
    with pytest.raises(MissingLayerError, match=r"8 adapters of 'org/base' have no"):
        base = models.select(lambda name: not name.startswith("z"))
        ModelTreeClustering(2).fit(base)


def test_layers_of_two_shapes_belie_a_declared_base(tmp_path):
    save_adapter(tmp_path / "a", "q", "org/base", d=8)
    save_adapter(tmp_path / "b", "q", "org/base", d=6)
    models = open_models(tmp_path)
    assert ModelTreeClustering().fit(models).labels_.tolist() == [0, 1]


def save_adapter(folder, modules, base, d=8):
    folder.mkdir(parents=True)
    tensors = {}
    for module in modules:
        key = f"base_model.model.h.0.{module}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(2, d)
        tensors[f"{key}.lora_B.weight"] = torch.randn(d, 2)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    config["base_model_name_or_path"] = base
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "bases, names",
    [
        (["gpt2", "openai-community/gpt2", "C:\\models\\gpt2"], 1),
        (["/a/b/gpt2/", "./gpt2", "gpt2", "~/x/gpt2"], 1),
        (["GPT2", "gpt2"], 1),
        (["/home/me/.cache/hub/models--org--m/snapshots/0123abc", "org/m"], 1),
        (["https://huggingface.co/org/m", "org/m", "hf://org/m@main"], 1),
        (["models/sd15.safetensors", "runwayml/sd15"], 1),
        # Whose is meant by the name alone, nobody knows.
        (["a/m", "b/m"], 2),
        (["a/m", "b/m", "m"], 3),
        (["gpt2", "gpt2-medium"], 2),
        (["", "gpt2", None], 2),
    ],
)
def test_bases_however_they_are_spelt(bases, names, tmp_path):
    W = LowRankWeights(np.ones((len(bases), 4, 1)), np.ones((len(bases), 1, 4)))
    metadata = [{"base_model_name_or_path": base} for base in bases]
    models = ModelCollection.from_layers({"q.weight": W}, metadata=metadata)
    assert len(set(models.groups.tolist())) == names
    fitted = ModelTreeClustering().fit(models)
    assert fitted.n_trees_ == names
    # Recognised one by one, in the words of each.
    alone = [int(fitted.predict(models[[i]])[0]) for i in range(len(bases))]
    assert alone == fitted.labels_.tolist()


def test_a_base_in_other_words_is_recognised():
    def adapter(base):
        W = LowRankWeights(np.ones((2, 4, 1)), np.ones((2, 1, 4)))
        metadata = [{"base_model": base}] * 2
        return ModelCollection.from_layers({"q.weight": W}, metadata=metadata)

    for known, other in (("gpt2", "org/gpt2"), ("org/gpt2", "/data/gpt2")):
        fitted = ModelTreeClustering().fit(adapter(known))
        assert fitted.predict(adapter(other)).tolist() == [0, 0]
    fitted = ModelTreeClustering().fit(adapter("org/gpt2"))
    assert fitted.predict(adapter("other/gpt2")).tolist() == [-1, -1]


def test_bases_that_the_user_names(tmp_path):
    save_adapter(tmp_path / "a", "q", "/data/my-base")
    save_adapter(tmp_path / "b", "q", "org/base")
    assert open_models(tmp_path).groups.tolist() == [0, 1]
    models = open_models(tmp_path, bases={"/data/my-base": "org/base"})
    assert models.groups.tolist() == [0, 0]
    assert models.labels("base_model_name_or_path").tolist() == ["org/base"] * 2


@pytest.mark.parametrize("layer", ["hidden1.weight", "hidden2.weight"])
def test_adapters_are_divided_by_their_subspaces(layer, data_home):
    jungle = make_digit_jungle(200, n_trees=3, rank=4, data_home=data_home)
    W, tree = jungle.layers[layer], jungle.tree
    assert ModelTreeClustering().fit(W).n_trees_ == 1
    found = ModelTreeClustering(3).fit(W[:150])
    assert adjusted_rand_score(tree[:150], found.labels_) > 0.85
    assert adjusted_rand_score(tree[150:], found.predict(W[150:])) > 0.85
    np.testing.assert_array_equal(found.predict(W[:150]), found.labels_)
    # Nothing depends on how the product is split.
    again = LowRankWeights(3 * W.B[:150, :, ::-1], W.A[:150, ::-1] / 3)
    np.testing.assert_array_equal(found.predict(again), found.labels_)


# Experts


def label_accuracy(estimator, W, Y):
    return np.mean(estimator.predict(W) == Y)


def test_experts_beat_one_expert(jungle):
    W, Y = jungle.data, jungle.target
    experts = TreeExperts(ProbeXClassifier(random_state=0)).fit(W[:110], Y[:110])
    pooled = ProbeXClassifier(random_state=0).fit(W[:110], Y[:110])
    accuracy = label_accuracy(experts, W[110:], Y[110:])
    assert accuracy > label_accuracy(pooled, W[110:], Y[110:]) + 0.02
    assert experts.own_expert_.all() and len(experts.experts_) == 3
    for expert, center in zip(experts.experts_, experts.router_.centers_, strict=True):
        np.testing.assert_array_equal(expert.center_, center)


def test_predictions_are_each_tree_s_expert_s_in_order(jungle):
    W, Y = jungle.data, jungle.target
    experts = TreeExperts(ProbeXClassifier(random_state=0)).fit(W, Y)
    trees = experts.router_.predict(W)
    for method in ("predict", "predict_proba", "decision_function", "transform"):
        merged = getattr(experts, method)(W)
        for i in (0, 1, 2, 50, 149):
            alone = getattr(experts.experts_[trees[i]], method)(W[i : i + 1])[0]
            n = alone.shape[0]
            np.testing.assert_allclose(merged[i, :n], alone, rtol=1e-4, atol=1e-4)
    again = pickle.loads(pickle.dumps(experts))
    np.testing.assert_array_equal(again.predict(W), experts.predict(W))


def two_trees():
    parts = [make_model_tree(40, (12, 10), random_state=seed) for seed in (0, 1)]
    W = np.concatenate([part.data for part in parts])
    y = np.concatenate([part.target for part in parts])
    order = np.random.default_rng(0).permutation(80)
    return W[order], y[order], np.repeat([0, 1], 40)[order]


def test_classes_of_some_trees_only():
    W, y, tree = two_trees()
    names = np.array(["a", "b", "c", "d"])[y + tree]  # a, b, c and b, c, d
    experts = TreeExperts(ProbeXClassifier()).fit(W, names)
    assert experts.classes_.tolist() == ["a", "b", "c", "d"]
    proba = experts.predict_proba(W)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    assert (proba[tree == 0, 3] == 0).all() and (proba[tree == 1, 0] == 0).all()
    assert (experts.classes_[proba.argmax(axis=1)] == experts.predict(W)).all()
    decisions = experts.decision_function(W)
    assert np.isfinite(decisions).all()
    assert (experts.classes_[decisions.argmax(axis=1)] == experts.predict(W)).all()
    assert experts.score(W, names) > 0.9

    two = np.where(tree == 0, np.where(y == 0, "a", "b"), np.where(y, "b", "c"))
    experts = TreeExperts(ProbeXClassifier()).fit(W, two)
    assert experts.decision_function(W).shape == (80, 3)
    assert (experts.predict_proba(W)[tree == 0, 2] == 0).all()


def many_small_trees():
    W, _, _ = forest(8, 4, (20, 20))
    W = np.concatenate([W, W[:1] + 0.01 * forest(1, 12, (20, 20), 1.0, 1)[0]])
    return W, np.arange(len(W)) % 5.0


def test_small_trees_fall_back_to_all_models():
    W, y, tree = two_trees()
    rows = np.r_[np.flatnonzero(tree == 0), np.flatnonzero(tree == 1)[:5]]
    with pytest.warns(UserWarning, match=r"1 of 2 Model Trees .*: 1 \(5 models\)"):
        experts = TreeExperts(ProbeXClassifier()).fit(W[rows], y[rows])
    assert experts.own_expert_.tolist() == [True, False]
    assert experts.predict(W[rows]).shape == (45,)
    with pytest.warns(UserWarning, match=r"\(4 models\), 5 \(4 models\) and 2 more\."):
        TreeExperts(ProbeXRegressor()).fit(*many_small_trees())
    # One class only in a tree, and nothing of its shape beside it.
    models = [*W[tree == 0], *(w[:5] for w in W[tree == 1][:12])]
    labels = np.r_[y[tree == 0], np.full(12, 2)]
    with pytest.warns(UserWarning, match="one class only"):
        experts = TreeExperts(ProbeXClassifier()).fit(models, labels)
    assert (experts.predict(models)[40:] == 2).all()
    assert (experts.predict_proba(models)[40:, 2] == 1).all()
    assert experts.decision_function(models).shape == (52, 3)
    with pytest.raises(AttributeError, match="too small for an expert"):
        experts.transform(models)


def test_models_of_no_tree_are_answered_with_a_warning():
    W, y, tree = two_trees()
    experts = TreeExperts(ProbeXClassifier()).fit(W[tree == 0], y[tree == 0])
    with pytest.warns(UserWarning, match="40 of 40 models are of no known Model Tree"):
        assert experts.predict(W[tree == 1]).shape == (40,)
    models = [*W[tree == 0], *(w[:5] for w in W[tree == 1])]
    labels = np.r_[y[tree == 0], y[tree == 1]]
    experts.fit(models, labels)
    with pytest.raises(ValueError, match=r"1 of 2 models, the first of them W\[1\]"):
        experts.predict([models[0], np.ones((3, 3))])


def test_cross_validation_and_grid_search():
    W, y, _ = two_trees()
    experts = TreeExperts(ProbeXClassifier())
    assert is_classifier(experts) and not is_regressor(experts)
    assert cross_val_score(experts, W, y, cv=3).mean() > 0.8
    grid = {"estimator__n_probes": [1, 8], "router": [None, ModelTreeClustering(2)]}
    search = GridSearchCV(experts, grid, cv=3, error_score="raise").fit(W, y)
    assert search.best_params_["estimator__n_probes"] == 8
    assert search.score(W, y) > 0.9


def test_regressors_and_pipelines():
    W, y, _ = two_trees()
    reg = TreeExperts(ProbeXRegressor()).fit(W, y.astype(float))
    assert is_regressor(reg) and reg.score(W, y) > 0.8
    assert not hasattr(reg, "predict_proba")
    pipeline = make_pipeline(ProbeXClassifier(), LogisticRegression())
    experts = TreeExperts(pipeline).fit(W, y)
    expert = experts.experts_[0]
    assert not isinstance(expert["probexclassifier"].center, str)
    assert pipeline["probexclassifier"].center == "auto"
    assert experts.score(W, y) > 0.9
    statistics = make_pipeline(WeightStatistics(), RandomForestClassifier(10))
    assert TreeExperts(statistics).fit(W, y).predict(W).shape == (80,)


def test_embedders_name_models_of_every_tree():
    rng = np.random.default_rng(0)
    words = np.array([f"{c} {s}" for c in ("red", "blue", "green") for s in "abcdef"])
    vector_of = {
        w: rng.standard_normal(8) for w in "red blue green a b c d e f".split()
    }

    def encode(texts):
        return np.array([sum(vector_of[w] for w in text.split()) for text in texts])

    W, tree, bases = forest(n_trees=2, n_models=72, scale=0.01)
    texts = words[np.arange(len(W)) % 18]
    # What shows a text differs from tree to tree.
    maps = rng.standard_normal((2, 8, 12 * 10)) * 0.02
    W += np.einsum("nd,ndp->np", encode(texts), maps[tree]).reshape(W.shape)
    seen = (texts != "red a") & (texts != "blue d")
    # One tree has not seen all that the other has.
    train = seen & ~((tree == 0) & (texts == "green f"))
    estimator = ProbeXEmbedder(text_encoder=encode, views=("xu",))
    experts = TreeExperts(estimator).fit(W[train], texts[train])
    assert len(experts.experts_) == 2
    assert experts.labels_.tolist() == sorted(set(texts[seen]))
    own = experts.experts_[0].center_
    assert min(np.abs(own - base).max() for base in bases) < 0.2
    assert experts.score(W[train], texts[train]) > 0.9
    unseen = ["red a", "blue d"]
    named = experts.predict(W[~seen], labels=unseen)
    assert np.mean(named == texts[~seen]) > 0.9
    assert experts.score(W[~seen], texts[~seen]) == np.mean(named == texts[~seen])
    proba = experts.predict_proba(W[~seen], labels=unseen)
    np.testing.assert_array_equal(np.array(unseen)[proba.argmax(axis=1)], named)
    proba = experts.predict_proba(W)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    missing = experts.labels_.tolist().index("green f")
    labels = experts.router_.labels_
    of_first = labels[np.flatnonzero(tree[train] == 0)[0]]
    assert (proba[experts.router_.predict(W) == of_first, missing] == 0).all()
    Z = experts.transform(W)
    np.testing.assert_allclose(np.linalg.norm(Z, axis=1), 1, rtol=1e-5)
    grid = GridSearchCV(TreeExperts(estimator), {"estimator__n_probes": [2, 8]}, cv=2)
    assert grid.fit(W[train], texts[train]).best_score_ > 0.5
    assert cross_val_score(TreeExperts(estimator), W, texts, cv=2).mean() > 0.5


def test_a_tree_of_one_text_falls_back():
    W, tree, _ = forest(n_trees=2, n_models=30)
    vector_of = np.random.default_rng(0).standard_normal((4, 6))
    texts = np.where(tree == 0, "0", (np.arange(60) % 4).astype(str))
    estimator = ProbeXEmbedder(
        text_encoder=lambda texts: vector_of[[int(text) for text in texts]]
    )
    with pytest.warns(UserWarning, match=r"1 of 2 Model Trees.*one class only"):
        experts = TreeExperts(estimator).fit(W, texts)
    assert experts.own_expert_.sum() == 1
    assert len(experts.predict(W)) == 60


def test_experts_of_files(jungle, tmp_path):
    save_models(tmp_path, jungle.layers)
    models, Y = open_models(tmp_path), jungle.target
    expected = TreeExperts(ProbeXClassifier(random_state=0), layer="hidden2.weight")
    expected.fit(jungle.models[:100], Y[:100])
    experts = clone(expected).fit(models[:100], Y[:100])
    np.testing.assert_array_equal(experts.router_.labels_, expected.router_.labels_)
    np.testing.assert_allclose(
        experts.predict_proba(models[100:]),
        expected.predict_proba(jungle.models[100:]),
        atol=1e-5,
    )
    layer = TreeExperts(ProbeXClassifier()).fit(models["hidden2.weight"][:100], Y[:100])
    assert np.mean(layer.predict(models["hidden2.weight"][100:]) == Y[100:]) > 0.9


def test_experts_of_several_layers():
    jungle = make_digit_jungle(160, 4, n_trees=2, cache=False)
    models, Y = jungle.models, jungle.target
    experts = TreeExperts(ProbeXClassifier(), layer="all").fit(models[:120], Y[:120])
    assert set(experts.experts_[0].layer_scores_) == set(models.layers)
    right = np.mean(experts.predict(models[120:]) == Y[120:])
    assert right > 0.9


def test_experts_of_collections(jungle):
    experts = TreeExperts(ProbeXClassifier()).fit(jungle.models, jungle.target)
    assert experts.predict(jungle.models[:7]).shape == (7, 4)
    layer = TreeExperts(ProbeXClassifier(), layer="hidden2.weight")
    layer.fit(jungle.models, jungle.target)
    expected = TreeExperts(ProbeXClassifier()).fit(jungle.data, jungle.target)
    np.testing.assert_array_equal(
        layer.predict(jungle.models), expected.predict(jungle.data)
    )


def test_experts_of_adapters_and_frames():
    jungle = make_digit_jungle(80, 4, n_trees=2, rank=2, cache=False)
    experts = TreeExperts(ProbeXClassifier(), ModelTreeClustering(2))
    experts.fit(jungle.data, jungle.target)
    assert experts.experts_[0].center == "auto"
    assert experts.predict(jungle.data[:5]).shape == (5, 4)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(30, 6)), columns=list("abcdef"))
    one = TreeExperts(ProbeXClassifier(), ModelTreeClustering(1))
    one.fit(frame, np.arange(30) % 2)
    assert one.feature_names_in_.tolist() == list("abcdef")


def test_any_router_will_do():
    W, y, tree = two_trees()

    class Known:
        """Routes by whether the first weight is that of the first tree."""

        def get_params(self, deep=True):
            return {}

        def fit(self, W):
            self.labels_ = tree
            return self

        def predict(self, W):
            return np.full(len(W), -1)

    experts = TreeExperts(ProbeXClassifier(), Known()).fit(W, y)
    with pytest.warns(UserWarning, match="80 of 80"):
        answer = experts.predict(W)
    np.testing.assert_array_equal(answer, experts.experts_[0].predict(W))
    assert clone(experts).router is not None


def test_a_failed_fit_changes_nothing(jungle):
    experts = TreeExperts(ProbeXClassifier()).fit(jungle.data, jungle.target)
    before = experts.predict(jungle.data)
    with pytest.raises(ValueError, match="requires y"):
        experts.fit(jungle.data)
    bad = jungle.data.copy()
    bad[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match="contains NaN: model 3"):
        experts.fit(bad, jungle.target)
    np.testing.assert_array_equal(experts.predict(jungle.data), before)


# The picture


def test_dendrogram(jungle):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    found = ModelTreeClustering().fit(jungle.data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        display = ModelTreeDisplay.from_estimator(found)
    assert display.ax_.figure is display.figure_
    _, ax = plt.subplots()
    names = [f"m{i}" for i in range(150)]
    assert ModelTreeDisplay.from_estimator(found, names=names, ax=ax).ax_ is ax
    plt.close("all")
