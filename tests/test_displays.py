"""Displays: what they draw is what the estimator, or an independent sum, says."""

import sys

import matplotlib
import numpy as np
import pytest
from networks import flat
from sklearn.calibration import calibration_curve
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError

from skprobex import ProbeXClassifier, ProbeXEmbedder, ProbeXRegressor
from skprobex.datasets import make_digit_jungle, make_model_tree
from skprobex.inspection import (
    LabelCalibrationDisplay,
    LayerSearchDisplay,
    LossCurveDisplay,
    ModelTreeDisplay,
    ProbeImportanceDisplay,
    TextSpaceDisplay,
    ViewScoresDisplay,
)

matplotlib.use("Agg")
D_OUT, D_IN = 14, 11


@pytest.fixture(autouse=True)
def close_figures():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture(scope="module")
def tree():
    return make_model_tree(80, (D_OUT, D_IN), random_state=0, return_X_y=True)


@pytest.fixture(scope="module")
def multilabel():
    """Float64 weights, three labels each; some inputs never move."""
    rng = np.random.default_rng(0)
    Y = rng.integers(0, 2, size=(70, 3))
    moved = rng.normal(size=(3, D_IN))
    moved[:, :2] = 0
    outputs = rng.normal(size=(70, D_OUT, 3))
    noise = rng.normal(size=(70, D_OUT, D_IN)) * (np.arange(D_IN) > 1)
    return (outputs * Y[:, None, :]) @ moved + 0.3 * noise, Y


def make_axes():
    import matplotlib.pyplot as plt

    return plt.subplots()[1]


def views_of(expert, layer, X):
    """The matrices of each view, computed by numpy alone."""
    deltas = X - (0 if layer.center is None else layer.center)
    matrices = {}
    for view in layer.views:
        if view.name == "spectrum":
            continue
        norms = np.linalg.norm(deltas, axis=(1, 2), keepdims=True)
        D = deltas / (norms if view.scale is None else view.scale)
        P, S, Qt = np.linalg.svd(D, full_matrices=False)
        gain = np.log1p(S**2 / 1e-3)[:, None, :]
        matrices[view.name] = {
            "xu": lambda D=D: D,
            "xtu": lambda D=D: D.transpose(0, 2, 1),
            "xtxu": lambda D=D: D.transpose(0, 2, 1) @ D,
            "xxtu": lambda D=D: D @ D.transpose(0, 2, 1),
            "log_xtx": lambda g=gain, Qt=Qt: (Qt.transpose(0, 2, 1) * g) @ Qt,
            "log_xxt": lambda g=gain, P=P: (P * g) @ P.transpose(0, 2, 1),
        }[view.name]()
    return matrices


def sensitivities(expert, layer):
    """Derivatives of the decisions to every entry of every view, by loops.

    The decision is linear in the view: its derivative is its change along each unit
    matrix, symmetric ones for symmetric views.
    """
    found, start = {}, 0
    for view, share in zip(layer.views, layer.shares, strict=True):
        U, V = view.left, view.right
        is_symmetric = U is V or view.name not in ("xu", "xtu")
        if is_symmetric:
            features = [(i, j) for i in range(U.shape[1]) for j in range(i, U.shape[1])]
        else:
            features = [(i, j) for i in range(U.shape[1]) for j in range(V.shape[1])]
        G = np.zeros((len(expert.coef), len(U), len(V)))
        for j in range(len(U)):
            for k in range(len(V)):
                unit = np.zeros((len(U), len(V)))
                unit[j, k] += 0.5 if is_symmetric else 1
                if is_symmetric:
                    unit[k, j] += 0.5
                probed = U.T @ unit @ V
                change = [
                    probed[a, b] * (2**0.5 if is_symmetric and a != b else 1)
                    for a, b in features
                ]
                block = expert.coef[:, start : start + len(features)]
                G[:, j, k] = share**0.5 * block @ np.array(change)
        found[view.name] = G, view.spread
        start += len(features)
    assert start == expert.coef.shape[1]
    return found


VIEW_SETS = [
    ("log_xtx",),
    ("xu",),
    ("xtu", "xxtu"),
    ("xu", "xtxu", "log_xxt"),
]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("views", VIEW_SETS)
def test_importances_are_the_decisions_derivatives(views, normalize, multilabel):
    W, Y = multilabel
    clf = ProbeXClassifier(views=views, normalize=normalize, n_probes=7).fit(W, Y)
    (layer,) = clf.expert_.layers
    found = sensitivities(clf.expert_, layer)
    # First that these are derivatives: differences between models follow from them.
    matrices = views_of(clf.expert_, layer, W)
    decisions = sum(
        np.einsum("tjk,njk->nt", G, matrices[name]) / spread
        for name, (G, spread) in found.items()
    )
    expected = clf.decision_function(W)
    np.testing.assert_allclose(
        decisions - decisions[0], expected - expected[0], rtol=1e-7, atol=1e-7
    )
    total = sum(np.square(G).sum() for G, _ in found.values())
    inputs = {"xu": 2, "xtu": 1, "xtxu": 1, "log_xtx": 1}
    outputs = {"xu": 1, "xtu": 2, "xxtu": 1, "log_xxt": 1}
    for side, axes in (("input", inputs), ("output", outputs)):
        looking = [name for name in views if name in axes]
        if not looking:
            with pytest.raises(ValueError, match=f"looks at the {side}s"):
                ProbeImportanceDisplay.from_estimator(clf, side=side)
            continue
        display = ProbeImportanceDisplay.from_estimator(clf, side=side)
        assert list(display.importances) == looking
        for name in looking:
            other = tuple({0, 1, 2} - {axes[name]})
            by_loop = np.square(found[name][0]).sum(axis=other) / total
            np.testing.assert_allclose(display.importances[name], by_loop, atol=1e-12)
        if looking == list(views):
            assert sum(v.sum() for v in display.importances.values()) == pytest.approx(
                1
            )


def test_importance_of_one_label_and_of_silent_inputs(multilabel):
    W, Y = multilabel
    clf = ProbeXClassifier(views=("xtxu", "spectrum")).fit(W, Y)
    (layer,) = clf.expert_.layers
    display = ProbeImportanceDisplay.from_estimator(clf, output=1)
    assert list(display.importances) == ["xtxu"]
    importances = display.importances["xtxu"]
    assert layer.shares == [0.5, 0.5]
    n_features = clf.coef_.shape[1] - layer.views[1].length - 1
    coef = np.square(clf.coef_[1])
    share = coef[:n_features].sum() / coef.sum()
    assert importances.sum() == pytest.approx(share)
    np.testing.assert_allclose(importances[:2], 0, atol=1e-12)
    assert importances[2:].min() > 1e-6
    with pytest.raises(ValueError, match=r"output=3: expected one of \[0, 1, 2\]"):
        ProbeImportanceDisplay.from_estimator(clf, output=3)


def test_importance_drawn(multilabel):
    W, Y = multilabel
    clf = ProbeXClassifier(views=("xu", "xtxu")).fit(W, Y)
    ax = make_axes()
    display = ProbeImportanceDisplay.from_estimator(clf, ax=ax)
    assert display.ax_ is ax and display.figure_ is ax.figure
    first, second = (patch.get_data() for patch in ax.patches)
    np.testing.assert_allclose(first.values, display.importances["xu"])
    np.testing.assert_allclose(second.baseline, display.importances["xu"])
    total = sum(display.importances.values())
    np.testing.assert_allclose(second.values, total)
    image = display.plot(shape=(1, D_IN)).ax_.images[0]
    np.testing.assert_allclose(image.get_array(), total.reshape(1, D_IN))
    with pytest.raises(ValueError, match="12 pixels, but there are 11 inputs"):
        display.plot(shape=(3, 4))


def test_importance_names_classes_targets_and_layers(tree):
    W, y = tree
    clf = ProbeXClassifier(views=("xu",)).fit(W, np.where(y > 0, "a", "b"))
    both = ProbeImportanceDisplay.from_estimator(clf).importances["xu"]
    only = ProbeImportanceDisplay.from_estimator(clf, output=0).importances["xu"]
    np.testing.assert_array_equal(both, only)
    names = np.array(["a", "b", "c"])[np.arange(len(W)) % 3]
    three = ProbeXClassifier(views=("xu",)).fit(W, names)
    named = ProbeImportanceDisplay.from_estimator(three, output="c").importances["xu"]
    G = three.probes_["xu"][0] @ three.coef_[2].reshape(D_OUT, D_IN)
    G = G @ three.probes_["xu"][1].T
    np.testing.assert_allclose(
        named, np.square(G).sum(axis=0) / np.square(G).sum(), rtol=1e-4
    )
    several = ProbeXRegressor(views=("xu",)).fit({"a": W, "b": W[:, :5]}, y)
    layer = several.layers_[0]
    ProbeImportanceDisplay.from_estimator(several, layer=layer)
    with pytest.raises(ValueError, match=r"layer=None: expected one of \["):
        ProbeImportanceDisplay.from_estimator(several)
    with pytest.raises(ValueError, match="layer='a': expected None"):
        ProbeImportanceDisplay.from_estimator(clf, layer="a")
    with pytest.raises(ValueError, match="side='left'"):
        ProbeImportanceDisplay.from_estimator(clf, side="left")
    unlabelled = ProbeXEmbedder(text_encoder=None).fit(W)
    with pytest.raises(ValueError, match="ProbeXEmbedder has no coefficients"):
        ProbeImportanceDisplay.from_estimator(unlabelled)


def test_view_scores(tree):
    W, y = tree
    clf = ProbeXClassifier().fit(W, y)
    ax = make_axes()
    display = ViewScoresDisplay.from_estimator(clf, ax=ax)
    assert display.ax_ is ax and display.figure_ is ax.figure
    labels = [text.get_text().replace(" + ", "+") for text in ax.get_yticklabels()]
    widths = [bar.get_width() for bar in display.bars_]
    assert dict(zip(labels, widths, strict=True)) == clf.view_scores_
    assert widths == sorted(widths)
    assert display.chosen == "+".join(clf.views_)
    full = matplotlib.colors.to_rgba("C0")
    colored = [bar.get_facecolor() == full for bar in display.bars_]
    assert [labels[i] for i in np.flatnonzero(colored)] == [display.chosen]


def test_view_scores_of_layers_and_of_none(tree):
    W, y = tree
    several = ProbeXClassifier().fit({"a": W, "b": W[:, :5]}, y)
    display = ViewScoresDisplay.from_estimator(several, layer="b")
    assert display.scores == several.view_scores_["b"]
    with pytest.raises(ValueError, match=r"layer=None is none of \['a', 'b'\]"):
        ViewScoresDisplay.from_estimator(several)
    one = ProbeXClassifier().fit(W, y)
    with pytest.raises(ValueError, match="fitted on one layer"):
        ViewScoresDisplay.from_estimator(one, layer="a")
    with pytest.raises(ValueError, match="has not compared views"):
        ViewScoresDisplay.from_estimator(ProbeXEmbedder(text_encoder=None).fit(W))
    with pytest.raises(NotFittedError):
        ViewScoresDisplay.from_estimator(ProbeXClassifier())


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_label_calibration(strategy, multilabel):
    W, Y = multilabel
    clf = ProbeXClassifier().fit(W[:50], Y[:50])
    ax = make_axes()
    options = {"n_bins": 3, "strategy": strategy}
    display = LabelCalibrationDisplay.from_estimator(
        clf, W[50:], Y[50:], names=["x", "y", "z"], ax=ax, **options
    )
    assert display.ax_ is ax and display.figure_ is ax.figure
    proba = clf.predict_proba(W[50:])
    for i, line in enumerate(display.lines_):
        true, predicted = calibration_curve(Y[50:, i], proba[:, i], **options)
        np.testing.assert_array_equal(line.get_xdata(), predicted)
        np.testing.assert_array_equal(line.get_ydata(), true)
        assert line.get_label() == "xyz"[i]
    true, predicted = calibration_curve(Y[50:].ravel(), proba.ravel(), **options)
    np.testing.assert_array_equal(display.pooled_line_.get_xdata(), predicted)
    np.testing.assert_array_equal(display.pooled_line_.get_ydata(), true)
    same = LabelCalibrationDisplay.from_predictions(Y[50:], proba, **options)
    np.testing.assert_array_equal(same.pooled_true, display.pooled_true)


def test_label_calibration_of_a_label_that_all_have():
    Y = np.array([[1, 0], [1, 1], [1, 0]])
    display = LabelCalibrationDisplay.from_predictions(Y, np.full((3, 2), 0.9))
    assert display.prob_true[0].tolist() == [1.0]


@pytest.mark.parametrize(
    ("Y", "shape", "options", "message"),
    [
        ([0, 1, 1], (3, 2), {}, "'binary'"),
        (["a", "b", "c"], (3, 3), {}, "'multiclass'"),
        (np.eye(3, dtype=int), (3, 2), {}, "3 labels, but proba has 2"),
        (np.eye(3, dtype=int), (2, 3), {}, "inconsistent"),
        (np.eye(3, dtype=int), (3, 3), {"names": ["a"]}, "1 names for 3 labels"),
    ],
)
def test_label_calibration_refuses(Y, shape, options, message):
    with pytest.raises(ValueError, match=message):
        LabelCalibrationDisplay.from_predictions(Y, np.full(shape, 0.5), **options)


def test_loss_curve(tree):
    W, y = tree
    options = {"solver": "adam", "views": ("xu",), "normalize": True, "random_state": 0}
    clf = ProbeXClassifier(**flat(early_stopping=True, **options)).fit(W, y)
    ax = make_axes()
    display = LossCurveDisplay.from_estimator(clf, ax=ax)
    assert display.ax_ is ax and display.figure_ is ax.figure
    assert display.line_.get_ydata().tolist() == clf.loss_curve_
    assert display.line_.get_xdata().tolist() == list(range(1, clf.n_iter_ + 1))
    assert display.validation_line_.get_ydata().tolist() == clf.validation_scores_
    plain = LossCurveDisplay.from_estimator(
        ProbeXRegressor(**flat(tol=0.1, **options)).fit(W, y)
    )
    assert plain.validation_ax_ is None and plain.validation_line_ is None
    with pytest.raises(ValueError, match="no loss_curve_"):
        LossCurveDisplay.from_estimator(ProbeXClassifier().fit(W, y))


@pytest.fixture(scope="module")
def embedder():
    rng = np.random.default_rng(0)
    vector_of = {f"concept {i}": rng.normal(size=6) for i in range(8)}
    texts = [f"concept {i % 8}" for i in range(40)]

    def encode(texts):
        return np.array([vector_of[text] for text in texts])

    W = (encode(texts) @ rng.normal(size=(6, 12 * 10))).reshape(40, 12, 10)
    W = W + 0.1 * rng.normal(size=W.shape)
    return ProbeXEmbedder(text_encoder=encode, views=("xu",)).fit(W, texts), W, texts


def test_text_space(embedder):
    embedder, W, texts = embedder
    ax = make_axes()
    display = TextSpaceDisplay.from_estimator(
        embedder, W, texts, method="pca", annotate=True, ax=ax
    )
    assert display.ax_ is ax and display.figure_ is ax.figure
    names = sorted(set(texts))
    both = np.concatenate([embedder.encode_text(names), embedder.transform(W)])
    expected = PCA(n_components=2, random_state=0).fit_transform(both)
    crosses, dots = ax.collections
    np.testing.assert_allclose(crosses.get_offsets(), expected[:8])
    np.testing.assert_allclose(dots.get_offsets(), expected[8:])
    assert [text.get_text() for text in ax.texts] == names
    for i, line in enumerate(ax.lines):
        ends = [expected[8 + i], expected[names.index(texts[i])]]
        np.testing.assert_allclose(line.get_xydata(), ends)
    # By default neighbours are kept together: a model is nearest to its own text.
    display = TextSpaceDisplay.from_estimator(embedder, W, texts)
    distances = np.linalg.norm(display.points[:, None] - display.text_points, axis=2)
    assert np.mean(distances.argmin(axis=1) == display.codes) > 0.9


def test_text_space_colors(embedder):
    embedder, W, texts = embedder
    colors = {text: "red" if text == "concept 3" else "blue" for text in texts}
    display = TextSpaceDisplay.from_estimator(
        embedder, W, texts, method="pca", colors=colors
    )
    drawn = display.ax_.collections[1].get_facecolors()
    red = matplotlib.colors.to_rgba("red")
    assert [tuple(color) == red for color in drawn] == [t == "concept 3" for t in texts]
    del colors["concept 3"]
    with pytest.raises(ValueError, match="lacks 1 of the texts, such as 'concept 3'"):
        display.plot(colors=colors)
    with pytest.raises(ValueError, match="method='umap'"):
        TextSpaceDisplay.from_estimator(embedder, W, texts, method="umap")
    with pytest.raises(ValueError, match="inconsistent"):
        TextSpaceDisplay.from_estimator(embedder, W, texts[1:])
    with pytest.raises(ValueError, match="fitted without texts"):
        unlabelled = ProbeXEmbedder(text_encoder=None).fit(W)
        TextSpaceDisplay.from_estimator(unlabelled, W, texts)


DISPLAYS = [
    LayerSearchDisplay({"a": 0.5}),
    ModelTreeDisplay(np.array([0]), parents=np.array([-1])),
    ViewScoresDisplay({"xu": 0.5}),
    ProbeImportanceDisplay({"xu": np.ones(3)}),
    LabelCalibrationDisplay([np.ones(1)], [np.ones(1)], np.ones(1), np.ones(1)),
    LossCurveDisplay([1.0, 0.5]),
    TextSpaceDisplay(np.array(["a"]), np.ones((1, 2)), np.ones((1, 2)), np.array([0])),
]


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda d: type(d).__name__)
def test_plot_again_and_without_matplotlib(display, monkeypatch):
    assert display.plot() is display
    first = display.figure_
    assert display.plot().figure_ is not first
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="pip install"):
        display.plot()


def test_importance_of_pixels_of_real_networks(data_home):
    """Pixels that are always blank have moved no weight, and carry no answer."""
    jungle = make_digit_jungle(60, 4, data_home=data_home)
    clf = ProbeXClassifier(views=("log_xtx",), random_state=0)
    clf.fit(jungle.layers["hidden1.weight"], jungle.target)
    display = ProbeImportanceDisplay.from_estimator(clf, shape=(8, 8))
    image = np.asarray(display.ax_.images[0].get_array())
    blank = np.ptp(load_digits().images, axis=0) == 0
    assert blank.any()
    np.testing.assert_allclose(image[blank], 0, atol=1e-6)
    assert image.sum() == pytest.approx(1, rel=1e-5)
