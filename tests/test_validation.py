"""What W and y can be, and what is said of those that cannot."""

import numpy as np
import pytest
import torch
from networks import flat
from scipy.sparse import csr_array
from sklearn.pipeline import make_pipeline

from skprobex import ProbeXClassifier, ProbeXRegressor
from skprobex.datasets import make_model_tree


@pytest.fixture(scope="module")
def tree():
    return make_model_tree(
        60, (12, 8), n_classes=2, view="xtxu", random_state=0, return_X_y=True
    )


def probabilities(W, y, W_test=None, **settings):
    clf = ProbeXClassifier(**flat(random_state=0, **settings)).fit(W, y)
    return clf.predict_proba(W if W_test is None else W_test)


def test_layouts_give_the_same_answer(tree, tmp_path):
    W, y = tree
    expected = probabilities(W, y)
    np.save(tmp_path / "W.npy", W)
    flipped = np.ascontiguousarray(W[:, ::-1, ::-1])[:, ::-1, ::-1]
    read_only = W.copy()
    read_only.flags.writeable = False
    for same in (
        np.asfortranarray(W),
        np.load(tmp_path / "W.npy", mmap_mode="r"),
        flipped,
        read_only,
        W.astype(">f4"),
        torch.from_numpy(W),
        torch.from_numpy(W).requires_grad_(),
        list(W),
        [torch.from_numpy(w) for w in W],
        W.tolist(),
    ):
        np.testing.assert_allclose(probabilities(same, y), expected, atol=2e-4)


def test_half_precision_is_computed_in_float32(tree):
    W, y = tree
    for half in (W.astype(np.float16), torch.from_numpy(W).bfloat16()):
        clf = ProbeXClassifier().fit(half, y)
        assert clf.coef_.dtype == np.float32
        assert clf.score(half, y) > 0.9


def test_double_precision_is_computed_in_float64(tree):
    W, y = tree
    clf = ProbeXClassifier().fit(W.astype(np.float64), y)
    assert clf.coef_.dtype == clf.transform(W).dtype == np.float64


def test_convolution_kernels_are_one_filter_a_row(tree):
    W, y = tree
    kernels = W.reshape(60, 12, 2, 2, 2)
    clf = ProbeXClassifier().fit(kernels, y)
    assert clf.weight_shape_ == (12, 8)
    np.testing.assert_array_equal(clf.predict_proba(kernels), clf.predict_proba(W))


def test_rows_are_one_dimensional_weights(tree):
    rows, y = tree[0][:, :, 0], tree[1]
    np.testing.assert_array_equal(
        probabilities(rows, y), probabilities(rows[:, :, None], y)
    )


@pytest.mark.parametrize("solver", ["ridge", "adam"])
def test_center_as_base(tree, solver):
    W, y = tree
    base = W.mean(axis=0)
    settings = {"solver": solver, "max_iter": 3, "tol": 10, "n_iter_no_change": 1}
    expected = probabilities(W.astype(float), y, center="mean", **settings)
    given = probabilities(W.astype(float), y, center=W.mean(0, dtype=float), **settings)
    np.testing.assert_allclose(given, expected, atol=1e-8)
    torch_base = torch.from_numpy(base)
    fitted = ProbeXClassifier(**flat(center=torch_base, **settings)).fit(W, y)
    np.testing.assert_allclose(fitted.center_, base)


def test_one_probe_and_too_many(tree):
    W, y = tree
    clf = ProbeXClassifier(n_probes=1, views=("xtxu",)).fit(W, y)
    assert clf.probes_["xtxu"][0].shape == (8, 1)
    with pytest.warns(UserWarning, match=r"n_probes=100 is more than .*\(12, 8\): 12"):
        clf = ProbeXClassifier(n_probes=100, views=("xu",)).fit(W, y)
    assert [probes.shape for probes in clf.probes_["xu"]] == [(12, 12), (8, 8)]


def test_two_models(tree):
    W, y = tree
    pair = [np.flatnonzero(y == label)[0] for label in (0, 1)]
    clf = ProbeXClassifier().fit(W[pair], y[pair])
    np.testing.assert_array_equal(clf.predict(W[pair]), y[pair])
    assert np.isfinite(clf.predict_proba(W)).all()


@pytest.mark.filterwarnings("ignore:All models look alike")
def test_identical_models_predict_the_majority(tree):
    W = np.repeat(tree[0][:1], 9, axis=0)
    y = np.array(["a"] * 6 + ["b"] * 3)
    clf = ProbeXClassifier().fit(W, y)
    assert set(clf.predict(W)) == {"a"}
    np.testing.assert_allclose(clf.predict_proba(W)[:, 0], 6 / 9, atol=0.1)
    np.testing.assert_allclose(ProbeXRegressor().fit(W, np.arange(9)).predict(W), 4)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_the_unit_of_the_weights_does_not_matter(tree, scale):
    W, y = tree
    expected = probabilities(W.astype(float), y)
    np.testing.assert_allclose(probabilities(W * float(scale), y), expected, atol=1e-6)


def test_string_labels_and_single_column():
    W, y = make_model_tree(60, (12, 8), view="xtxu", random_state=0, return_X_y=True)
    names = np.array(["birds", "cars", "dogs"])[y]
    clf = ProbeXClassifier().fit(W, names)
    assert clf.classes_.tolist() == ["birds", "cars", "dogs"]
    assert clf.score(W, names) > 0.9


def test_multilabel_with_a_label_nobody_has():
    W, Y = make_model_tree(
        60, (12, 8), view="xtxu", task="multilabel", random_state=0, return_X_y=True
    )
    Y = np.column_stack([Y, np.zeros(len(Y), dtype=int)])
    clf = ProbeXClassifier().fit(W, csr_array(Y))
    assert not clf.predict(W)[:, -1].any()
    assert clf.predict_proba(W)[:, -1].max() < 0.1


def test_class_weight_moves_the_decision(tree):
    W, y = tree
    noise = np.random.default_rng(0).permutation(y)
    shares = [
        np.mean(ProbeXClassifier(class_weight=weight).fit(W, noise).predict(W))
        for weight in ({0: 20, 1: 1}, None, {0: 1, 1: 20})
    ]
    assert shares[0] < shares[1] < shares[2]


def spoiled(W, value, where):
    W = W.copy()
    W[where] = value
    return W


ERRORS = {
    "NaN": (lambda W, y: (spoiled(W, np.nan, (7, 2, 3)), y), "contains NaN: model 7"),
    "infinity": (lambda W, y: (spoiled(W, np.inf, 5), y), "contains infinity: model 5"),
    "two NaN": (lambda W, y: (spoiled(W, np.nan, [3, 9]), y), "model 3 and at least 1"),
    "tensor NaN": (
        lambda W, y: (torch.from_numpy(spoiled(W, np.nan, 4)), y),
        "contains NaN: model 4",
    ),
    "ragged": (
        lambda W, y: ([*W[:-1], W[-1][:, :3]], y),
        r"Most have \(12, 8\), but model 59: \(12, 3\)",
    ),
    "ragged many": (lambda W, y: ([*W[:50], *W[50:, :3]], y), "and 5 more"),
    "one axis": (lambda W, y: (W[:, 0, 0], y), "Expected 2D array, got 1D"),
    "tensor of one axis": (lambda W, y: (torch.zeros(60), y), "1-D tensor"),
    "no columns": (lambda W, y: (W[:, :, :0], y), "every axis needs at least one"),
    "no rows": (lambda W, y: (W[:, :0], y), "every axis needs at least one"),
    "no models": (lambda W, y: (W[:0], y[:0]), "minimum of 2 is required"),
    "one model": (lambda W, y: (W[:1], y[:1]), "minimum of 2 is required"),
    "one tensor": (lambda W, y: (torch.zeros(1, 3, 3), y[:1]), "minimum of 2 models"),
    "complex": (lambda W, y: (W + 1j, y), "Complex data not supported"),
    "complex tensor": (lambda W, y: (torch.zeros(60, 3, 3) + 1j, y), "Complex data"),
    "strings": (lambda W, y: (np.full((60, 2), "w"), y), "arrays of bytes/strings"),
    "one class": (lambda W, y: (W, y * 0), "at least 2 classes in y, got 1 class: 0"),
    "fewer labels": (lambda W, y: (W, y[:-1]), r"inconsistent numbers.*\[60, 59\]"),
    "real y": (lambda W, y: (W, y + 0.5 * np.arange(60) / 60), "Unknown label type"),
    "NaN y": (lambda W, y: (W, np.where(y, np.nan, 1.0)), "Input y contains NaN"),
    "no y": (lambda W, y: (W, None), "requires y to be passed"),
}


@pytest.mark.parametrize("spoil, message", ERRORS.values(), ids=ERRORS)
def test_fit_names_what_is_wrong(tree, spoil, message):
    clf = ProbeXClassifier()
    with pytest.raises(ValueError, match=message):
        clf.fit(*spoil(*tree))
    assert not hasattr(clf, "classes_") and not hasattr(clf, "coef_")


def test_sparse_and_masked_weights_are_refused(tree):
    W, y = tree
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        ProbeXClassifier().fit(csr_array(W[:, :, 0]), y)
    with pytest.raises(TypeError, match="masked array"):
        ProbeXClassifier().fit(np.ma.masked_less(W, 0), y)
    with pytest.raises(TypeError, match="sparse tensor"):
        ProbeXClassifier().fit(torch.from_numpy(W).to_sparse(), y)


def test_a_failed_fit_leaves_the_old_one(tree):
    W, y = tree
    clf = ProbeXClassifier().fit(W, y)
    before = clf.predict_proba(W)
    with pytest.raises(ValueError, match="contains NaN: model 0"):
        clf.fit(spoiled(W[:, :5], np.nan, 0), 1 - y)
    np.testing.assert_array_equal(clf.predict_proba(W), before)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "transform"])
def test_predict_names_the_wrong_shape(tree, method):
    clf = ProbeXClassifier().fit(*tree)
    W = tree[0]
    with pytest.raises(ValueError, match=r"shape \(12, 7\).*fitted on .* \(12, 8\)"):
        getattr(clf, method)(W[:, :, :7])
    with pytest.raises(ValueError, match=r"shape \(11, 8\).*fitted on .* \(12, 8\)"):
        getattr(clf, method)(W[:, :11])
    with pytest.raises(ValueError, match="contains NaN: model 2"):
        getattr(clf, method)(spoiled(W, np.nan, 2))


PARAMETERS = {
    "views": [
        ("uxx", "views"),
        (("xu", "nope"), "got 'nope'"),
        (("xu", "xu"), "names a view twice"),
        ((), "expected 'auto' or some of"),
    ],
    "n_probes": [(0, "n_probes"), (2.5, "n_probes")],
    "center": [
        ("median", "center"),
        (
            np.zeros((3, 3)),
            r"one model's weights of shape \(12, 8\), got shape \(3, 3\)",
        ),
        (np.full((12, 8), np.nan), "center contains NaN"),
    ],
    "normalize": [("yes", "normalize")],
    "solver": [("sgd", "solver")],
    "alphas": [
        ([], "non-empty list of positive"),
        ([1.0, -1.0], "non-empty list of positive"),
        (3.0, "alphas"),
    ],
    "n_components": [(0, "n_components")],
    "device": [("tpu9", "is not a device"), ("cuda:99", "device='auto'")],
    "class_weight": [("even", "class_weight")],
    "verbose": [(-1, "verbose")],
}
CASES = [(name, *case) for name, cases in PARAMETERS.items() for case in cases]


@pytest.mark.parametrize("name, value, message", CASES)
def test_parameters_out_of_range(tree, name, value, message):
    with pytest.raises(ValueError, match=message):
        ProbeXClassifier(**{name: value}).fit(*tree)


def test_early_stopping_needs_models_left_over(tree):
    clf = ProbeXClassifier(
        **flat(solver="adam", early_stopping=True, validation_fraction=0.9)
    )
    with pytest.raises(ValueError, match="lower validation_fraction"):
        clf.fit(tree[0][:3], [0, 1, 1])


def test_silent_unless_asked(tree, capfd):
    ProbeXClassifier().fit(*tree)
    assert capfd.readouterr() == ("", "")
    ProbeXClassifier(verbose=1).fit(*tree)
    out, err = capfd.readouterr()
    assert out == "" and "ProbeXClassifier" in err


def test_models_that_are_all_the_same(tree):
    W, y = tree
    with pytest.warns(UserWarning, match="All models look alike") as caught:
        make_pipeline(ProbeXClassifier()).fit(np.repeat(W[:1], len(W), axis=0), y)
    # At the line above, not within a library.
    assert caught[0].filename == __file__
