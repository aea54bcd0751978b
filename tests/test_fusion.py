"""Several layers: what is chosen of them, and how they are joined."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline

from skprobex import (
    LayerFusion,
    LowRankWeights,
    ModelCollection,
    ProbeXClassifier,
    ProbeXRegressor,
    open_models,
    save_models,
)
from skprobex.datasets import make_digit_jungle, make_model_tree
from skprobex.exceptions import MissingLayerError
from skprobex.probing.ridge import choice
from skprobex.probing.views import MATRIX_VIEWS

N_TRAIN = 70


def make_noise(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.fixture(scope="module")
def layers():
    """Two layers know one label each, two know nothing; one of those is 1-D."""
    kwargs = {"task": "multilabel", "n_classes": 2, "dtype": np.float64}
    first, y_first = make_model_tree(
        110, (14, 12), view="xtxu", random_state=0, return_X_y=True, **kwargs
    )
    second, y_second = make_model_tree(
        110, (10, 16), view="xxtu", random_state=1, return_X_y=True, **kwargs
    )
    W = {
        "first.weight": first,
        "first.bias": make_noise((110, 14), 0),
        "noise.weight": make_noise((110, 9, 9), 1),
        "second.weight": second,
    }
    return W, np.column_stack([y_first[:, 0], y_second[:, 0]])


def take(W, rows):
    return {name: layer[rows] for name, layer in W.items()}


def split(W, y):
    train, test = np.arange(N_TRAIN), np.arange(N_TRAIN, len(y))
    return take(W, train), take(W, test), y[train], y[test]


def test_layers_that_know_are_found_and_joined(layers):
    W, W_test, y, y_test = split(*layers)
    clf = ProbeXClassifier().fit(W, y)
    assert clf.layers_ == ["first.weight", "second.weight"]
    assert np.mean(clf.predict(W_test) == y_test) > 0.9
    for name in clf.layers_:
        alone = ProbeXClassifier().fit(W[name], y)
        assert np.mean(alone.predict(W_test[name]) == y_test) < 0.85
    assert set(clf.layer_scores_) == set(W)
    assert clf.layer_scores_["noise.weight"] < clf.layer_scores_["first.weight"]
    assert clf.weight_shape_ == {name: (*w.shape[1:], 1)[:2] for name, w in W.items()}
    assert list(clf.views_) == list(clf.center_) == list(clf.probes_) == clf.layers_


def test_layer_scores_are_those_of_single_layers(layers):
    W, y = layers
    clf = ProbeXClassifier().fit(W, y)
    for name, layer in W.items():
        alone = ProbeXClassifier().fit(layer, y)
        for view, score in clf.view_scores_[name].items():
            assert score == pytest.approx(alone.view_scores_[view])
        assert clf.layer_scores_[name] == max(clf.view_scores_[name].values())


def test_a_container_or_a_dict_in_any_order_is_the_same(layers):
    W, y = layers
    expected = ProbeXClassifier(random_state=0).fit(W, y).decision_function(W)
    models = ModelCollection.from_layers(W)
    clf = ProbeXClassifier(random_state=0).fit(models, y)
    np.testing.assert_array_equal(clf.decision_function(models), expected)
    np.testing.assert_array_equal(clf.decision_function(W), expected)
    turned = dict(reversed(W.items()))
    clf = ProbeXClassifier(random_state=0).fit(turned, y)
    np.testing.assert_allclose(clf.decision_function(turned), expected, atol=1e-8)


def test_only_the_layers_in_use_are_asked_for(layers):
    W, y = layers
    clf = ProbeXClassifier().fit(W, y)
    used = {name: W[name] for name in clf.layers_}
    np.testing.assert_array_equal(clf.predict(used), clf.predict(W))
    del used["second.weight"]
    with pytest.raises(MissingLayerError, match=r"lacks 1 of 2 .*'second.weight'"):
        clf.predict(used)


def test_joined_features_have_their_shares(layers):
    W, y = layers
    fused = LayerFusion().fit(W, y)
    Z = fused.transform(W)
    np.testing.assert_allclose(Z.mean(axis=0), 0, atol=1e-12)
    assert np.mean(np.sum(Z**2, axis=1)) == pytest.approx(1)
    assert sum(fused.layer_weights_.values()) == pytest.approx(1)
    start = 0
    for layer in fused.expert_.layers:
        for view, share in zip(layer.views, layer.shares, strict=True):
            width = _width(view)
            own = Z[:, start : start + width]
            assert np.mean(np.sum(own**2, axis=1)) == pytest.approx(share)
            start += width
    assert start == Z.shape[1] == len(fused.get_feature_names_out())


def _width(view):
    if view.left is None:
        return view.length + 1
    p, q = view.left.shape[1], view.right.shape[1]
    return p * (p + 1) // 2 if MATRIX_VIEWS[view.name].symmetric else p * q


def test_the_classifier_is_a_ridge_on_the_fusion(layers):
    W, y = layers
    reg = ProbeXRegressor().fit(W, y[:, 0] + 0.5 * y[:, 1] + make_noise(110, 3) / 9)
    y = reg.predict(W)
    fused = LayerFusion().fit(W, y)
    reg = ProbeXRegressor().fit(W, y)
    assert reg.layers_ == fused.layers_
    ridge = Ridge(fused.alpha_).fit(fused.transform(W), (y - y.mean()) / y.std())
    expected = ridge.predict(fused.transform(W)) * y.std() + y.mean()
    np.testing.assert_allclose(reg.predict(W), expected, atol=1e-8)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_n_layers_bounds_the_layers(n_layers, layers):
    W, y = layers
    fused = LayerFusion(n_layers=n_layers).fit(W, y)
    assert len(fused.layers_) == n_layers
    best = max(fused.layer_scores_, key=fused.layer_scores_.get)
    assert best in fused.layers_


def test_patterns_select_layers(layers):
    W, y = layers
    assert set(LayerFusion("*.weight").fit(W, y).layer_scores_) == {
        name for name in W if name.endswith("weight")
    }
    fused = LayerFusion(["noise.weight", "first.b*"]).fit(W, y)
    assert list(fused.layer_scores_) == ["first.bias", "noise.weight"]
    with pytest.raises(ValueError, match=r"'third\*' matches none of 4 layers"):
        LayerFusion(["third*"]).fit(W, y)


def test_views_asked_for_are_joined_in_every_layer(layers):
    W, y = layers
    clf = ProbeXClassifier(views=("xxtu", "xtxu")).fit(W, y)
    assert set(clf.views_.values()) == {("xtxu", "xxtu")}
    assert {tuple(scores) for scores in clf.view_scores_.values()} == {("xtxu+xxtu",)}


def test_memory_bounds_the_blocks(layers, monkeypatch):
    W, y = layers
    monkeypatch.setattr(choice, "MAX_BLOCKS", 4)
    kept = []
    choose = choice.ViewSearch.choose

    def spy(search, n_layers):
        kept.append([block.penalty.rank for block in search._blocks])
        return choose(search, n_layers)

    monkeypatch.setattr(choice.ViewSearch, "choose", spy)
    clf = ProbeXClassifier().fit(W, y)
    assert len(kept[0]) == 4
    assert kept[0] == sorted(kept[0], reverse=True)
    assert kept[0][0][0] == max(clf.layer_scores_.values())


def test_low_rank_and_dense_layers_fuse(layers):
    W, y = layers
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((110, 12, 3)), rng.standard_normal((110, 3, 10))
    B *= 1 + 9 * y[:, 1, None, None]
    W = {"dense": W["first.weight"], "lora": LowRankWeights(B, A)}
    clf = ProbeXClassifier(normalize=False).fit(W, y)
    assert clf.layers_ == ["dense", "lora"]
    assert clf.center_["lora"] is None and clf.center_["dense"].shape == (14, 12)
    dense = {"dense": W["dense"], "lora": W["lora"].to_dense()}
    center = {"dense": clf.center_["dense"], "lora": None}
    other = ProbeXClassifier(normalize=False, center=center).fit(dense, y)
    np.testing.assert_allclose(
        other.decision_function(dense), clf.decision_function(W), atol=1e-5
    )


def test_layers_of_several_dtypes_fuse(layers):
    W, y = layers
    mixed = {
        "first.weight": W["first.weight"].astype(np.float32),
        "first.bias": W["first.bias"].astype(np.float16),
        "second.weight": W["second.weight"],
    }
    clf = ProbeXClassifier(random_state=0).fit(mixed, y)
    assert clf.coef_.dtype == np.float64
    assert np.mean(clf.predict(mixed) == y) > 0.9
    single = {name: layer.astype(np.float32) for name, layer in mixed.items()}
    assert ProbeXClassifier().fit(single, y).coef_.dtype == np.float32
    np.testing.assert_allclose(
        clf.decision_function(single), clf.decision_function(mixed), atol=1e-3
    )


def test_model_selection_takes_collections(layers):
    W, y = layers
    models = ModelCollection.from_layers(W)
    assert cross_val_score(ProbeXClassifier(), models, y[:, 0], cv=3).mean() > 0.85
    pipeline = make_pipeline(LayerFusion(n_components=16), RidgeClassifier())
    grid = {"layerfusion__n_layers": [1, None]}
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=2).fit(models, y[:, 0])
    train, test, y_train, y_test = train_test_split(models, y[:, 0], random_state=0)
    assert search.best_estimator_.fit(train, y_train).score(test, y_test) > 0.85


def test_files_give_what_memory_gives(layers, tmp_path):
    W, y = layers
    save_models(tmp_path, W)
    models = open_models(tmp_path)
    expected = ProbeXClassifier(random_state=0).fit(W, y).decision_function(W)
    clf = ProbeXClassifier(random_state=0).fit(models, y)
    np.testing.assert_allclose(clf.decision_function(models), expected, atol=1e-8)


def test_the_bunch_of_a_jungle_is_its_layers(data_home):
    jungle = make_digit_jungle(60, 4, data_home=data_home)
    clf = ProbeXClassifier(random_state=0).fit(jungle, jungle.target)
    expected = ProbeXClassifier(random_state=0).fit(jungle.layers, jungle.target)
    np.testing.assert_array_equal(clf.predict(jungle), expected.predict(jungle.layers))


def test_layers_that_not_all_models_share_are_left_out(tmp_path):
    W = make_noise((12, 6, 6), 0)
    save_models(tmp_path / "a", {"body": W[:6], "head": W[:6, :2]})
    save_models(tmp_path / "b", {"body": W[6:], "head": W[6:, :3], "more": W[6:]})
    models = open_models([str(tmp_path / "a"), str(tmp_path / "b")])
    y = np.arange(12) % 2
    with pytest.warns(
        UserWarning, match=r"2 of 3 layers were left out.*'head', 'more'"
    ):
        clf = ProbeXClassifier().fit(models, y)
    assert clf.layers_ == ["body"]


def test_wrong_input(layers):
    W, y = layers
    clf = ProbeXClassifier()
    with pytest.raises(ValueError, match="same models, but hold"):
        clf.fit({**W, "noise.weight": W["noise.weight"][:9]}, y)
    bad = W["noise.weight"].copy()
    bad[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN: model 3"):
        clf.fit({**W, "noise.weight": bad}, y)
    with pytest.raises(ValueError, match=r"Layer 'noise.weight': .*at least one entry"):
        clf.fit({**W, "noise.weight": bad[:, :, :0]}, y)
    with pytest.raises(ValueError, match="center is one array"):
        ProbeXClassifier(center=np.zeros((14, 12))).fit(W, y)
    with pytest.raises(ValueError, match=r"lacks 'first.bias'"):
        ProbeXClassifier(center={"first.weight": np.zeros((14, 12))}).fit(W, y)
    with pytest.raises(ValueError, match="there is one layer"):
        ProbeXClassifier(center={}).fit(W["first.weight"], y)
    with pytest.raises(ValueError, match="a network takes one"):
        ProbeXClassifier(solver="adam").fit(W, y)
    with pytest.raises(TypeError, match="needs several layers"):
        LayerFusion().fit(W["first.weight"], y)
    assert not hasattr(clf, "expert_") and not hasattr(clf, "weight_shape_")


def test_one_layer_is_not_several(layers):
    W, y = layers
    several = ProbeXClassifier().fit(W, y)
    with pytest.raises(ValueError, match=r"fitted on several.*'first.weight'"):
        several.predict(W["first.weight"])
    one = ProbeXClassifier().fit(W["first.weight"], y)
    with pytest.raises(ValueError, match=r"holds 4 layers.*fitted on one"):
        one.predict(W)
    other = {**W, "first.weight": W["first.weight"][:, :5]}
    with pytest.raises(
        ValueError, match=r"Layer 'first.weight'.*Classifier was fitted on"
    ):
        several.predict(other)
    # Fitted again on one layer, it forgets the several.
    assert not hasattr(several.fit(W["first.weight"], y), "layers_")


@pytest.mark.parametrize("seed", range(5))
def test_one_layer_is_one_layer_however_it_is_given(seed):
    """The same search: the same bits, from an array as from a dict of it."""
    W, y = make_model_tree(
        60, (10, 8), view="xxtu", signal=0.4, random_state=seed, return_X_y=True
    )
    alone = ProbeXClassifier(random_state=0).fit(W, y)
    named = ProbeXClassifier(random_state=0).fit({"only": W}, y)
    assert named.views_ == {"only": alone.views_}
    assert named.view_scores_ == {"only": alone.view_scores_}
    np.testing.assert_array_equal(
        named.decision_function({"only": W}), alone.decision_function(W)
    )
