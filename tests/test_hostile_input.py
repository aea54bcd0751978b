"""Hostile input, a table: one row a case, with the error it gets and a phrase of it.

Files are in test_safetensors.py, test_layouts.py, test_adapters.py and test_remote.py;
here are those that are left.
"""

import os
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import flat
from scipy.sparse import csr_matrix
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.utils import Bunch

import skprobex
from skprobex import (
    LayerFusion,
    LayerSearchCV,
    LowRankWeights,
    ModelCollection,
    ModelIndex,
    ModelTreeClustering,
    ProbeXClassifier,
    ProbeXEmbedder,
    ProbeXRegressor,
    TreeExperts,
    open_models,
    recover_heritage,
    save_models,
)
from skprobex.baselines import (
    FlatDeltas,
    SpectralStatistics,
    WeightStatistics,
    make_dense_expert,
)
from skprobex.datasets import (
    fetch_model_jungle,
    make_adapter_jungle,
    make_digit_jungle,
    make_model_tree,
)
from skprobex.exceptions import MissingLayerError, WeightFileError
from skprobex.metrics import mean_one_class_auc
from skprobex.probing.views import VIEWS
from skprobex.weights._dense import DenseWeights

N = 24
W, y = make_model_tree(N, (8, 6), view="xtxu", random_state=0, return_X_y=True)
RNG = np.random.default_rng(0)
r = RNG.standard_normal(N)
TEXTS = np.array(["a cat", "a dog", "a bird"])[y]
VECTOR_OF = dict(zip(["a cat", "a dog", "a bird"], np.eye(3), strict=True))
B, A = W[:, :, :2], W[:, :2, :]
LAYERS = {"a.weight": W, "b.weight": W[:, ::-1]}
NAMES = [f"m{i}" for i in range(N)]
Z = RNG.standard_normal((N, 3))


def encode(texts):
    return np.array([VECTOR_OF.get(text, np.ones(3)) for text in texts])


def put(value, array=W, at=3):
    array = array.copy()
    array[at, 0, 0] = value
    return array


def first(values, W):
    """As many as W has models, if it has any."""
    return values[: len(W)] if isinstance(W, (list, np.ndarray)) else values


def classifier(W=W, y=y, **parameters):
    return ProbeXClassifier(**flat(**parameters)).fit(W, y)


def adam(y=y, **parameters):
    settings = {"solver": "adam", "max_iter": 1, "n_probes": 4, "projection_dim": 4}
    return ProbeXClassifier(**flat(**settings | parameters)).fit(W, y)


def regressor(W=W, y=r, **parameters):
    return ProbeXRegressor(**flat(**parameters)).fit(W, y)


def embedder(W=W, y=TEXTS, text_encoder=encode, **parameters):
    return ProbeXEmbedder(**flat(text_encoder=text_encoder, **parameters)).fit(W, y)


def fusion(W=LAYERS, y=y, **parameters):
    return LayerFusion(**parameters).fit(W, y)


def search(W=LAYERS, y=y, **parameters):
    settings = {"estimator": ProbeXClassifier(), "cv": 2, "error_score": "raise"}
    return LayerSearchCV(**settings | parameters).fit(W, y)


def trees(W=W, **parameters):
    return ModelTreeClustering(**parameters).fit(W)


def experts(W=W, y=y, estimator=None, **parameters):
    estimator = ProbeXClassifier() if estimator is None else estimator
    return TreeExperts(estimator, **parameters).fit(W, y)


def index(W=W, names=NAMES, metadata=None, embedder=None, **parameters):
    embedder = embedder or FITTED_EMBEDDER
    return ModelIndex(embedder, **parameters).add(W, names, metadata)


def collection(layers=LAYERS, names=NAMES, metadata=None):
    return ModelCollection.from_layers(layers, names, metadata)


# Arrays, to everything that takes weights

# What is asked of each afterwards, on the same W.
ESTIMATORS = {
    "classifier": (
        lambda W: classifier(W, first(y, W)),
        ("decision_function", "predict_proba", "transform"),
    ),
    "regressor": (lambda W: regressor(W, first(r, W)), ("predict", "transform")),
    "embedder": (
        lambda W: embedder(W, first(TEXTS, W)),
        ("transform", "predict_proba"),
    ),
    "embedder without texts": (lambda W: embedder(W, None), ("transform",)),
    "tree clustering": (trees, ("predict",)),
    "tree experts": (lambda W: experts(W, first(y, W)), ("decision_function",)),
    "weight statistics": (WeightStatistics().fit, ("transform",)),
    "spectral statistics": (SpectralStatistics().fit, ("transform",)),
    "flat deltas": (FlatDeltas().fit, ("transform",)),
}
ENTRIES = {
    **{name: fit for name, (fit, _) in ESTIMATORS.items()},
    "heritage": recover_heritage,
    "fusion": lambda W: fusion({"a": W}, first(y, W)),
}

NO_WEIGHTS = {
    "NaN": (put(np.nan), ValueError, "contains NaN: model 3"),
    "infinity": (put(-np.inf), ValueError, "contains infinity: model 3"),
    "NaN in a tensor": (torch.from_numpy(put(np.nan)), ValueError, "NaN: model 3"),
    "complex": (W + 0j, ValueError, "Complex data not supported"),
    "complex tensor": (torch.from_numpy(W + 0j), ValueError, "Complex data"),
    "sparse tensor": (torch.from_numpy(W).to_sparse(), TypeError, "sparse tensor"),
    "masked": (np.ma.masked_greater(W, 1), TypeError, "is a masked array"),
    "text": (W.astype(str), ValueError, "arrays of bytes/strings"),
    "objects": (np.full((N, 3), "a", object), ValueError, "could not convert string"),
    "dates": (np.zeros((N, 3), "M8[s]"), TypeError, "expected real numbers"),
    "records": (np.zeros((N, 3), [("a", "f4")]), ValueError, "not compatible"),
    "no outputs": (W[:, :0], ValueError, "every axis needs at least one entry"),
    "no inputs": (W[:, :, :0], ValueError, "every axis needs at least one entry"),
}
# A layer in a dict is refused by other words.
NO_WEIGHTS_ALONE = {
    "None": (None, ValueError, "Expected 2D array"),
    "a number": (3, ValueError, "Expected 2D array"),
    "a generator": ((w for w in W), ValueError, "Expected 2D array"),
    "a path": ("models/", TypeError, "open_models opens files"),
    "one number a model": (W[:, 0, 0], ValueError, "Expected 2D array"),
    "one number a model, tensor": (torch.zeros(N), ValueError, "W is a 1-D tensor"),
    "sparse": (csr_matrix(W[:, 0]), TypeError, "dense"),
    "no models": (W[:0], ValueError, "0 sample(s)"),
    "one model": (W[:1], ValueError, "a minimum of 2 is required"),
    "one model, tensor": (torch.from_numpy(W[:1]), ValueError, "minimum of 2 models"),
    "lists of unequal lengths": ([[1, 2], [3]] * 12, ValueError, "inhomogeneous"),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_no_weights(case, entry):
    X, error, phrase = NO_WEIGHTS[case]
    with pytest.raises(error) as caught:
        ENTRIES[entry](X)
    assert phrase in str(caught.value)


@pytest.mark.parametrize("entry", sorted(set(ENTRIES) - {"fusion"}))
@pytest.mark.parametrize("case", NO_WEIGHTS_ALONE)
def test_no_weights_alone(case, entry):
    X, error, phrase = NO_WEIGHTS_ALONE[case]
    with pytest.raises(error) as caught:
        ENTRIES[entry](X)
    assert phrase in str(caught.value)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


# The same weights in other clothes: the same answers.
SAME = {
    "read-only": read_only(W),
    "negative strides": np.ascontiguousarray(W[:, ::-1, ::-1])[:, ::-1, ::-1],
    "columns first": np.asfortranarray(W),
    "other byte order": W.astype(">f4"),
    "list of arrays": list(W),
    "list of tensors": [torch.from_numpy(w) for w in W],
    "tensor with gradient": torch.from_numpy(W).requires_grad_(),
}
SAME_ROUNDED = {
    "nested lists": W.tolist(),
    "objects": W.astype(object),
    "float64": W.astype(np.float64),
    "long double": W.astype(np.longdouble),
}


def answers(estimator, X):
    fit, methods = ESTIMATORS[estimator]
    fitted = fit(X)
    return [np.asarray(getattr(fitted, method)(X)) for method in methods]


@cache
def answers_to_W(estimator):
    return answers(estimator, W)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("case", SAME)
def test_same_weights(case, estimator):
    for got, expected in zip(
        answers(estimator, SAME[case]), answers_to_W(estimator), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("case", SAME_ROUNDED)
def test_same_weights_in_another_precision(case, estimator):
    for got, expected in zip(
        answers(estimator, SAME_ROUNDED[case]), answers_to_W(estimator), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2)


# Odd, and yet weights: finite answers, and no warning.
ODD = {
    "identical models": np.ones_like(W),
    "zeros": np.zeros_like(W),
    "one model moved": put(1.0, np.zeros_like(W)),
    "duplicated columns": np.repeat(W[:, :, :1], 6, axis=2),
    "duplicated models": np.repeat(W[:12], 2, axis=0),
    "two models": W[:2],
    "d_out=1": W[:, :1],
    "d_in=1": W[:, :, :1],
    "one weight": W[:, :1, :1],
    "bool": W > 0,
    "int8": (10 * W).astype(np.int8),
    "bool tensor": torch.from_numpy(W > 0),
    "float16": W.astype(np.float16),
    "bfloat16": torch.from_numpy(W).bfloat16(),
    "2-D": W[:, 0],
    "conv kernels": W.reshape(N, 4, 2, 3, 2),
    "six axes": W.reshape(N, 2, 2, 2, 3, 2),
    "data frame": pd.DataFrame(W[:, 0], columns=list("abcdef")),
    "low-rank": LowRankWeights(B, A),
    "low-rank of scale 0": LowRankWeights(B, A, 0),
    "low-rank of integers": LowRankWeights((9 * B).astype(int), (9 * A).astype(int)),
    "a model of rank 0": LowRankWeights(
        [B[0, :, :0], *B[1:]], [A[0, :0], *A[1:]], scale=2
    ),
}


@pytest.mark.filterwarnings("ignore:All models look alike")
@pytest.mark.filterwarnings("ignore:.* Model Trees have fewer than min_models")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("case", ODD)
def test_odd_weights(case, estimator):
    for answer in answers(estimator, ODD[case]):
        assert np.isfinite(answer).all()


def test_a_sum_that_overflows_is_not_infinity():
    (batch,) = DenseWeights(np.full((2, 3, 4), 3e38, "f4")).batches("cpu")
    assert torch.isfinite(batch).all()


# Far from one: right answers where squares can be kept in range, else an error.
FAR = {
    "1e30": np.float32(1e30) * W,
    "1e200, float64": 1e200 * W.astype(float),
    "subnormal": np.float32(1e-41) * W,
    "1e-310, float64": 1e-310 * W.astype(float),
}


@pytest.mark.parametrize("case", FAR)
def test_far_from_one(case):
    assert classifier(FAR[case]).score(FAR[case], y) == 1
    assert embedder(FAR[case]).score(FAR[case], TEXTS) == 1
    assert np.isfinite(regressor(FAR[case]).predict(FAR[case])).all()
    for estimator in (SpectralStatistics(), FlatDeltas()):
        assert np.isfinite(estimator.fit_transform(FAR[case])).all()
    for entry in (trees, experts, recover_heritage):
        with pytest.raises(ValueError, match=r"have norm .*multiply all weights by"):
            entry(FAR[case])


def as_objects(arrays):
    objects = np.empty(len(arrays), dtype=object)
    objects[:] = list(arrays)
    return objects


FITTED_CLASSIFIER, FITTED_EMBEDDER = classifier(), embedder()
WITHOUT_TEXTS = embedder(y=None)
FITTED_FUSION = fusion({"a": W})
FITTED_TREES = trees()
INDEX = index()
HUGE = np.float32(1e30) * W
ONE_SCORE = {"estimator": ProbeXClassifier(alphas=[-1]), "error_score": np.nan}
CODES = np.c_[y == 0, y == 1].astype(int)
NAN_LABEL = np.where(y == 0, np.nan, y)
MIXED = np.array(["a", 1] * 12, dtype=object)

# (what is done, the error, a phrase of its message)
REFUSED = {
    # Afterwards
    "predict before fit": (
        lambda: ProbeXClassifier().predict(W),
        NotFittedError,
        "not fitted yet",
    ),
    "predict NaN": (
        lambda: FITTED_CLASSIFIER.predict(put(np.nan)),
        ValueError,
        "contains NaN: model 3",
    ),
    "predict another d_out": (
        lambda: FITTED_CLASSIFIER.predict(W[:, :5]),
        ValueError,
        "weights of shape (5, 6), but ProbeXClassifier was fitted on",
    ),
    "predict another d_in": (
        lambda: FITTED_CLASSIFIER.predict(W[:, :, :5]),
        ValueError,
        "fitted on weights of shape (8, 6)",
    ),
    "predict one model without its axis": (
        lambda: FITTED_CLASSIFIER.predict(W[0]),
        ValueError,
        "(8, 6) is one model's weights: pass W[None]",
    ),
    "predict one model, a tensor": (
        lambda: FITTED_CLASSIFIER.predict(torch.from_numpy(W[0])),
        ValueError,
        "pass W[None]",
    ),
    "predict flattened weights": (
        lambda: FITTED_CLASSIFIER.predict(W.reshape(N, -1)),
        ValueError,
        "(48, 1), but ProbeXClassifier was fitted on weights of shape (8, 6)",
    ),
    "files as W": (
        lambda: ProbeXClassifier().fit(["a.safetensors"] * N, y),
        TypeError,
        "open_models opens a list of files",
    ),
    "an array of arrays as W": (
        lambda: ProbeXClassifier().fit(as_objects(W), y),
        ValueError,
        "pass one array, np.stack(W)",
    ),
    "a tensor without data as W": (
        lambda: ProbeXClassifier().fit(torch.empty(N, 8, 6, device="meta"), y),
        ValueError,
        "load its data first",
    ),
    "a name as y": (
        lambda: ProbeXClassifier().fit(W, "dataset"),
        TypeError,
        "models.labels('dataset')",
    ),
    "a name as real y": (
        lambda: ProbeXRegressor().fit(W, "accuracy"),
        TypeError,
        "models.labels('accuracy')",
    ),
    "a Bunch as y": (
        lambda: ProbeXClassifier().fit(W, Bunch(y=y, classes=[0, 1, 2])),
        TypeError,
        "y is a Bunch: expected one label or number for each model, such as y['y']",
    ),
    "lists of labels as y": (
        lambda: ProbeXClassifier().fit(W, [["a", "b"]] * N),
        ValueError,
        "MultiLabelBinarizer",
    ),
    "an indicator of 0 and 2": (
        lambda: ProbeXClassifier().fit(W, 2 * np.eye(3, dtype=int)[y]),
        ValueError,
        "y is an indicator matrix of [0, 2]: expected 0 and 1",
    ),
    "a Bunch as y of a layer search": (
        lambda: LayerSearchCV(ProbeXClassifier()).fit(LAYERS, Bunch(y=y)),
        TypeError,
        "such as y['y']",
    ),
    "select by metadata that none has": (
        lambda: ModelCollection.from_layers(LAYERS, metadata=[{"a": 1}] * N).select(
            metadata={"b": 1}
        ),
        ValueError,
        "No model has metadata 'b'. There are: ['a']",
    ),
    "load a folder": (
        lambda: skprobex.load(os.getcwd()),
        IsADirectoryError,
        "load reads the file that save wrote",
    ),
    "save to a folder": (
        lambda: FITTED_CLASSIFIER.save(os.getcwd()),
        IsADirectoryError,
        "is a folder: name a file in it",
    ),
    "predict nothing": (
        lambda: FITTED_CLASSIFIER.predict(W[:0]),
        ValueError,
        "0 sample(s)",
    ),
    "predict several layers": (
        lambda: FITTED_CLASSIFIER.predict(LAYERS),
        ValueError,
        "fitted on one: pass that layer",
    ),
    "predict in another unit, classifier": (
        lambda: classifier(views=("xtxu",), normalize=False).predict(HUGE),
        ValueError,
        "of model 0 of W overflows float32",
    ),
    "predict in another unit, embedder": (
        lambda: embedder(views=("xtxu",), normalize=False).transform(HUGE),
        ValueError,
        "of model 0 of W overflows float32",
    ),
    "deltas in another unit": (
        lambda: FlatDeltas().fit(1e-10 * W).transform(HUGE),
        ValueError,
        "model 0 of W are too large for float32",
    ),
    "variance out of range": (
        lambda: WeightStatistics().fit_transform(HUGE),
        ValueError,
        "model 0 of W are too large for float32",
    ),
    # Labels
    "no y, classifier": (lambda: classifier(y=None), ValueError, "requires y"),
    "no y, regressor": (lambda: regressor(y=None), ValueError, "requires y"),
    "no y, fusion": (lambda: fusion(y=None), ValueError, "requires y"),
    "no y, search": (lambda: search(y=None), ValueError, "requires y"),
    "no y, experts": (lambda: experts(y=None), ValueError, "requires y"),
    "one class": (lambda: classifier(y=0 * y), ValueError, "at least 2 classes"),
    "one class, adam": (lambda: adam(0 * y), ValueError, "at least 2 classes"),
    "one class, fusion": (lambda: fusion(y=0 * y), ValueError, "at least 2 classes"),
    "one class, search": (lambda: search(y=0 * y), ValueError, "at least 2 classes"),
    "one class, experts": (lambda: experts(y=0 * y), ValueError, "at least 2 classes"),
    "one text": (lambda: embedder(y=["a"] * N), ValueError, "at least 2 different"),
    "one text vector": (
        lambda: embedder(y=np.ones((N, 2))),
        ValueError,
        "at least 2 different",
    ),
    "NaN label": (lambda: classifier(y=NAN_LABEL), ValueError, "y contains NaN"),
    "NaN label, fusion": (lambda: fusion(y=NAN_LABEL), ValueError, "y contains NaN"),
    "NaN label, experts": (lambda: experts(y=NAN_LABEL), ValueError, "y contains NaN"),
    "NaN target": (lambda: regressor(y=put(np.nan, W)[:, 0, 0]), ValueError, "NaN"),
    "infinite target": (
        lambda: regressor(y=np.inf * abs(r)),
        ValueError,
        "y contains inf",
    ),
    "mixed labels": (
        lambda: classifier(y=MIXED),
        TypeError,
        "text only, or numbers only, but it has 'a' at 0 and 1 at 1",
    ),
    "mixed labels, fusion": (lambda: fusion(y=MIXED), TypeError, "text only"),
    "mixed labels, experts": (lambda: experts(y=MIXED), TypeError, "text only"),
    "None among labels": (
        lambda: classifier(y=np.array(["a", None] * 12, dtype=object)),
        TypeError,
        "it has None at 1: leave out models without a label",
    ),
    "missing among labels": (
        lambda: classifier(y=pd.Series([1, pd.NA] * 12)),
        TypeError,
        "it has <NA> at 1",
    ),
    "NaN among names": (
        lambda: classifier(y=np.array(["a", np.nan] * 12, dtype=object)),
        TypeError,
        "'a' at 0 and nan at 1",
    ),
    "text as a target": (lambda: regressor(y=TEXTS), ValueError, "could not convert"),
    "real numbers as labels": (lambda: classifier(y=r), ValueError, "continuous"),
    "bytes as labels": (
        lambda: classifier(y=TEXTS.astype(bytes)),
        (TypeError, FutureWarning),  # a warning until scikit-learn 1.7
        "represented as bytes",
    ),
    "complex labels": (lambda: classifier(y=y + 0j), ValueError, "Complex data"),
    "too few labels": (lambda: classifier(y=y[:5]), ValueError, "[24, 5]"),
    "too few targets": (lambda: regressor(y=r[:5]), ValueError, "[24, 5]"),
    "too few texts": (lambda: embedder(y=TEXTS[:5]), ValueError, "[24, 5]"),
    "too few labels, search": (
        lambda: search(y=y[:5]),
        ValueError,
        "24 models, and 5 are expected",
    ),
    "no labels": (lambda: classifier(y=[]), ValueError, "0 sample(s)"),
    "no label columns": (
        lambda: classifier(y=np.zeros((N, 0))),
        ValueError,
        "0 feature(s)",
    ),
    "two columns of classes": (
        lambda: classifier(y=np.c_[y, y]),
        ValueError,
        "y should be a 1d array",
    ),
    "labels of three axes": (
        lambda: classifier(y=np.zeros((N, 2, 2))),
        ValueError,
        "Unknown label type",
    ),
    "targets of three axes": (
        lambda: regressor(y=np.zeros((N, 2, 2))),
        ValueError,
        "dim 3",
    ),
    "lists of labels": (
        lambda: classifier(y=[["a"], ["b", "c"]] * 12),
        ValueError,
        "MultiLabelBinarizer",
    ),
    "a dict of labels": (
        lambda: classifier(y={"a": 1}),
        TypeError,
        "y is a dict: expected one label",
    ),
    "a dict of texts": (lambda: embedder(y={"a": 1}), TypeError, "got a dict"),
    "score of too few": (lambda: FITTED_EMBEDDER.score(W, TEXTS[:3]), ValueError, "24"),
    "score without y": (
        lambda: FITTED_EMBEDDER.score(W, None),
        TypeError,
        "y is None: expected a list of texts",
    ),
    # Parameters of the experts
    "views, unknown": (lambda: classifier(views=("q",)), ValueError, "got 'q'"),
    "views, none": (lambda: classifier(views=()), ValueError, "expected 'auto' or"),
    "views, twice": (lambda: classifier(views=("xu",) * 2), ValueError, "view twice"),
    "views, a name": (lambda: classifier(views="xu"), ValueError, "views=('xu',)"),
    "views, a word": (lambda: classifier(views="xq"), ValueError, "'views' parameter"),
    "views, nested": (lambda: classifier(views=[["xu"]]), ValueError, "got ['xu']"),
    "n_probes 0": (lambda: classifier(n_probes=0), ValueError, "'n_probes'"),
    "n_probes real": (lambda: classifier(n_probes=1.5), ValueError, "'n_probes'"),
    "center, a word": (lambda: classifier(center="median"), ValueError, "'center'"),
    "center, a number": (lambda: classifier(center=3), ValueError, "'center'"),
    "center, another shape": (
        lambda: classifier(center=W[0, :2]),
        ValueError,
        "center must be one model's weights of shape (8, 6), got shape (2, 6)",
    ),
    "center, all models": (lambda: classifier(center=W), ValueError, "(24, 8, 6)"),
    "center, NaN": (
        lambda: classifier(center=np.nan * W[0]),
        ValueError,
        "center contains NaN",
    ),
    "center, a scalar": (
        lambda: classifier(center=torch.tensor(3.0)),
        ValueError,
        "got a scalar",
    ),
    "center, text": (
        lambda: classifier(center=[["a"]]),
        ValueError,
        "center must be one model's weights",
    ),
    "center, by layer for one": (
        lambda: classifier(center={"a": W[0]}),
        ValueError,
        "but there is one layer",
    ),
    "center, one for several": (
        lambda: fusion(center=W[0]),
        ValueError,
        "pass a dict of arrays",
    ),
    "center, lacks a layer": (
        lambda: fusion(center={"a.weight": W[0]}),
        ValueError,
        "lacks 'b.weight'",
    ),
    "normalize": (lambda: classifier(normalize="yes"), ValueError, "'normalize'"),
    "solver": (lambda: classifier(solver="svd"), ValueError, "'solver'"),
    "alphas, none": (lambda: classifier(alphas=[]), ValueError, "positive numbers"),
    "alphas, 0": (lambda: classifier(alphas=[0]), ValueError, "positive numbers"),
    "alphas, NaN": (lambda: classifier(alphas=[np.nan]), ValueError, "positive"),
    "alphas, inf": (lambda: classifier(alphas=[np.inf]), ValueError, "positive"),
    "alphas, text": (lambda: classifier(alphas=["a"]), ValueError, "positive"),
    "alphas, a dict": (lambda: classifier(alphas={}), ValueError, "positive"),
    "alphas, a number": (lambda: classifier(alphas=3), ValueError, "'alphas'"),
    "alphas, nested": (lambda: classifier(alphas=[[1]]), ValueError, "positive"),
    "n_components": (lambda: classifier(n_components=0), ValueError, "'n_components'"),
    "projection_dim": (lambda: adam(projection_dim=0), ValueError, "'projection_dim'"),
    "standardize": (lambda: adam(standardize=2), ValueError, "'standardize'"),
    "learning rate 0": (
        lambda: adam(learning_rate_init=0),
        ValueError,
        "'learning_rate_init'",
    ),
    "learning rate too high": (
        lambda: adam(learning_rate_init=1e18, max_iter=9),
        ValueError,
        "lower learning_rate_init",
    ),
    "max_iter": (lambda: adam(max_iter=0), ValueError, "'max_iter'"),
    "batch_size": (lambda: adam(batch_size=0), ValueError, "'batch_size'"),
    "alpha": (lambda: adam(alpha=np.nan), ValueError, "'alpha'"),
    "early_stopping": (
        lambda: adam(early_stopping="a"),
        ValueError,
        "'early_stopping'",
    ),
    "validation_fraction": (
        lambda: adam(validation_fraction=1),
        ValueError,
        "'validation_fraction'",
    ),
    "too much set aside": (
        lambda: adam(validation_fraction=0.99, early_stopping=True),
        ValueError,
        "leaves fewer than 2 to train on",
    ),
    "n_iter_no_change": (
        lambda: adam(n_iter_no_change=0),
        ValueError,
        "'n_iter_no_change'",
    ),
    "tol": (lambda: adam(tol=-1), ValueError, "'tol'"),
    "warm_start": (lambda: adam(warm_start="a"), ValueError, "'warm_start'"),
    "adam on several layers": (
        lambda: ProbeXClassifier(solver="adam").fit(LAYERS, y),
        ValueError,
        "a network takes one",
    ),
    "device, unknown": (lambda: classifier(device="gpu"), ValueError, "not a device"),
    "device, not here": (lambda: classifier(device="cuda:99"), ValueError, "cuda:99"),
    "device, meta": (lambda: classifier(device="meta"), ValueError, "not supported"),
    "device, None": (lambda: classifier(device=None), ValueError, "'device'"),
    "random_state": (lambda: classifier(random_state=-1), ValueError, "'random_state'"),
    "verbose": (lambda: classifier(verbose=-1), ValueError, "'verbose'"),
    "class_weight, a word": (
        lambda: classifier(class_weight="all"),
        ValueError,
        "'class_weight'",
    ),
    "class_weight, other classes": (
        lambda: classifier(class_weight={7: 1}),
        ValueError,
        "not in class_weight",
    ),
    "class_weight, negative": (
        lambda: classifier(class_weight={0: -1}),
        ValueError,
        "must not be negative",
    ),
    "class_weight, NaN": (
        lambda: classifier(class_weight={0: np.nan}),
        ValueError,
        "NaN or infinite",
    ),
    "class_weight, all 0": (
        lambda: classifier(class_weight={0: 0, 1: 0, 2: 0}),
        ValueError,
        "nor all be zero",
    ),
    # Texts
    "encoder, None": (
        lambda: embedder(text_encoder=None),
        ValueError,
        "There is no text_encoder",
    ),
    "encoder, a number": (
        lambda: embedder(text_encoder=3),
        TypeError,
        "text_encoder is 3",
    ),
    "encoder of zeros": (
        lambda: embedder(text_encoder=lambda texts: np.zeros((len(texts), 2))),
        ValueError,
        "zero or not finite",
    ),
    "encoder of NaN": (
        lambda: embedder(text_encoder=lambda texts: np.full((len(texts), 2), np.nan)),
        ValueError,
        "zero or not finite",
    ),
    "encoder of text": (
        lambda: embedder(text_encoder=lambda texts: "a"),
        ValueError,
        "expected one vector of floats",
    ),
    "encoder of too few": (
        lambda: embedder(text_encoder=lambda texts: np.ones((1, 2))),
        ValueError,
        "for 3 texts",
    ),
    "prompt without a place": (
        lambda: embedder(prompt="a model of"),
        ValueError,
        "must hold '{}' once",
    ),
    "prompt, a number": (lambda: embedder(prompt=3), ValueError, "'prompt'"),
    "y, one text": (lambda: embedder(y="a cat"), TypeError, "is one text"),
    "y, empty text": (lambda: embedder(y=["", "a"] * 12), ValueError, "y[0] is empty"),
    "y, None among texts": (
        lambda: embedder(y=["a", None] * 12),
        TypeError,
        "y[1] is None",
    ),
    "y, NaN in vectors": (lambda: embedder(y=np.nan * Z), ValueError, "y contains NaN"),
    "adam without texts": (
        lambda: embedder(y=None, solver="adam"),
        ValueError,
        "needs y",
    ),
    "labels, one text": (
        lambda: FITTED_EMBEDDER.predict(W, "a cat"),
        TypeError,
        "labels is one text",
    ),
    "labels, twice": (
        lambda: FITTED_EMBEDDER.predict(W, ["a", "a"]),
        ValueError,
        "'a' more than once",
    ),
    "labels, none": (
        lambda: FITTED_EMBEDDER.predict(W, []),
        ValueError,
        "labels is empty",
    ),
    "labels, a set": (
        lambda: FITTED_EMBEDDER.predict(W, {"a"}),
        TypeError,
        "got a set",
    ),
    "labels, white space": (
        lambda: FITTED_EMBEDDER.predict(W, ["\n"]),
        ValueError,
        "labels[0] is empty",
    ),
    "texts, bytes": (
        lambda: FITTED_EMBEDDER.encode_text([b"a"]),
        TypeError,
        "expected a text",
    ),
    "texts, mixed": (
        lambda: FITTED_EMBEDDER.encode_text(["a", 3]),
        TypeError,
        "texts[1] is 3",
    ),
    "text vectors, another width": (
        lambda: FITTED_EMBEDDER.encode_text(np.ones((2, 9))),
        ValueError,
        "have 9 dimensions, but those of fit had 3",
    ),
    "texts, but fitted without": (
        lambda: WITHOUT_TEXTS.encode_text(["a"]),
        ValueError,
        "fitted without texts",
    ),
    "names, but fitted without": (
        lambda: WITHOUT_TEXTS.predict(W),
        ValueError,
        "fitted without texts",
    ),
    # LowRankWeights
    "factors that do not multiply": (
        lambda: LowRankWeights(B, W[:, :3]),
        ValueError,
        "do not multiply",
    ),
    "factors of other numbers of models": (
        lambda: LowRankWeights(B[:3], A),
        ValueError,
        "do not multiply",
    ),
    "factors of one model": (
        lambda: LowRankWeights(B[0], A[0]),
        ValueError,
        "(n_models, d_out, r)",
    ),
    "listed factors of other shapes": (
        lambda: LowRankWeights([B[0], B[1][:3]], [A[0], A[1]]),
        ValueError,
        "model 1 has weights of shape (3, 6)",
    ),
    "no factors": (lambda: LowRankWeights([], []), ValueError, "at least one"),
    "rank 0": (lambda: LowRankWeights(B[:, :, :0], A[:, :0]), ValueError, "rank 0"),
    "scale of another length": (
        lambda: LowRankWeights(B, A, np.ones(3)),
        ValueError,
        "one for each of 24 models",
    ),
    "scale, text": (lambda: LowRankWeights(B, A, "x"), ValueError, "scale must be"),
    "scale, NaN": (
        lambda: LowRankWeights(B, A, np.where(y == y[0], 1, np.nan)),
        ValueError,
        "scale of model 1 is nan",
    ),
    "scale, out of range": (
        lambda: classifier(LowRankWeights(1e20 * B, A, 1e20)),
        ValueError,
        "factor B of W contains infinity: model 0",
    ),
    "complex factors": (lambda: LowRankWeights(B + 0j, A), ValueError, "Complex data"),
    "complex tensors as factors": (
        lambda: LowRankWeights(torch.from_numpy(B + 0j), torch.from_numpy(A)),
        ValueError,
        "Complex data",
    ),
    "low-rank, no copy": (
        lambda: LowRankWeights(B, A).__array__(copy=False),
        ValueError,
        "without a copy",
    ),
    "factors of text": (
        lambda: LowRankWeights(B.astype(str), A),
        TypeError,
        "expected real numbers",
    ),
    "sparse factors": (
        lambda: LowRankWeights(csr_matrix(B[0]), A),
        TypeError,
        "no numbers",
    ),
    "masked factors": (
        lambda: LowRankWeights(np.ma.masked_greater(B, 0), A),
        TypeError,
        "masked array",
    ),
    "NaN in a factor": (
        lambda: classifier(LowRankWeights(B, put(np.nan, A))),
        ValueError,
        "factor A of W contains NaN: model 3",
    ),
    "low-rank, a column": (
        lambda: LowRankWeights(B, A)[:, 0],
        IndexError,
        "indexed by model only",
    ),
    "low-rank, a real index": (
        lambda: LowRankWeights(B, A)[1.5],
        IndexError,
        "Models are selected by",
    ),
    # Several layers
    "layers, an array": (lambda: fusion(W), TypeError, "needs several layers"),
    "layers, an array to search": (lambda: search(W), TypeError, "several layers"),
    "layers, none": (lambda: fusion({}), ValueError, "W holds no layers"),
    "layers, no weights": (
        lambda: fusion({"a": W[:, 0, 0]}),
        ValueError,
        "W holds 1 layers, but none",
    ),
    "layers, a number": (
        lambda: fusion({"a": W, "b": 3}),
        TypeError,
        "Layer 'b' is of type int",
    ),
    "layers, None": (
        lambda: classifier({"a": W, "b": None}),
        TypeError,
        "Layer 'b' is of type NoneType",
    ),
    "layers, sparse": (
        lambda: search({"a": csr_matrix(W[:, 0])}),
        TypeError,
        "Layer 'a' is of type csr_matrix",
    ),
    "layers, nested": (
        lambda: fusion({"a": {"b": W}}),
        TypeError,
        "Layer 'a' is of type dict",
    ),
    "layers of other models": (
        lambda: fusion({"a": W, "b": W[:3]}),
        ValueError,
        "{'a': 24, 'b': 3}",
    ),
    "layers of other models, search": (
        lambda: search({"a": W, "b": W[:3]}),
        ValueError,
        "layer 'b' holds 3 models",
    ),
    "layers, NaN": (
        lambda: fusion({"a": W, "b": put(np.nan)}),
        ValueError,
        "layer 'b' contains NaN: model 3",
    ),
    "layers, NaN in a factor": (
        lambda: fusion({"a": W, "b": LowRankWeights(put(np.nan, B), A)}),
        ValueError,
        "factor B of layer 'b' contains NaN: model 3",
    ),
    "layers, NaN at predict": (
        lambda: FITTED_FUSION.transform({"a": put(np.nan)}),
        ValueError,
        "layer 'a' contains NaN: model 3",
    ),
    "layers, NaN, search": (
        lambda: search({"a": W, "b": put(np.nan)}),
        ValueError,
        "Layer 'b': Input W contains NaN",
    ),
    "layers, no match": (
        lambda: fusion(layers="z*"),
        ValueError,
        "'z*' matches none of 2 layers",
    ),
    "layers, empty list": (lambda: fusion(layers=[]), ValueError, "layers is empty"),
    "layers, numbers": (lambda: fusion(layers=[0]), TypeError, "names and patterns"),
    "n_layers": (lambda: fusion(n_layers=0), ValueError, "'n_layers'"),
    "fusion, other layers": (
        lambda: FITTED_FUSION.transform({"z": W}),
        MissingLayerError,
        "W lacks 1 of 1 layers",
    ),
    "fusion, one layer": (
        lambda: FITTED_FUSION.transform(W),
        ValueError,
        "W holds one layer",
    ),
    "fusion, another shape": (
        lambda: FITTED_FUSION.transform({"a": W[:, :3]}),
        ValueError,
        "Layer 'a': W holds weights of shape (3, 6)",
    ),
    "search before fit": (
        lambda: LayerSearchCV(ProbeXClassifier()).predict(W),
        NotFittedError,
        "not fitted yet",
    ),
    "cv": (lambda: search(cv=1), ValueError, "'cv' parameter"),
    "more folds than models": (lambda: search(cv=99), ValueError, "n_splits=99"),
    "scoring, unknown": (lambda: search(scoring="q"), ValueError, "'scoring'"),
    "scoring, none": (lambda: search(scoring=[]), ValueError, "names of metrics"),
    "refit, unknown": (
        lambda: search(scoring=["accuracy"], refit="q"),
        ValueError,
        "refit='q'",
    ),
    "prefilter": (lambda: search(prefilter=0), ValueError, "'prefilter'"),
    "n_jobs": (lambda: search(n_jobs="a"), ValueError, "'n_jobs'"),
    "memory": (lambda: search(memory=3), ValueError, "'memory'"),
    "error_score": (lambda: search(error_score="x"), ValueError, "'error_score'"),
    "estimator": (lambda: search(estimator=None), ValueError, "'estimator'"),
    "estimator of rows": (lambda: search(estimator=Ridge()), ValueError, "dim 3"),
    "all fits fail": (
        lambda: search(**ONE_SCORE),
        ValueError,
        "failed on 2 of 2 layers, the first of them 'a.weight'",
    ),
    # Trees
    "n_trees 0": (lambda: trees(n_trees=0), ValueError, "'n_trees'"),
    "n_trees, too many": (lambda: trees(n_trees=99), ValueError, "more than there are"),
    "n_trees, too few": (
        lambda: trees([W[0], W[1, :3]], n_trees=1),
        ValueError,
        "models of 2 architectures",
    ),
    "layer of an array": (lambda: trees(layer="a"), ValueError, "but W is ndarray"),
    "layer, missing": (
        lambda: trees(LAYERS, layer="z"),
        MissingLayerError,
        "have no layer 'z'",
    ),
    "outlier_threshold": (
        lambda: trees(outlier_threshold=-1),
        ValueError,
        "'outlier_threshold'",
    ),
    "an empty model": (lambda: trees([W[0], W[1, :0]]), ValueError, "W[1] has shape"),
    "NaN in a list": (
        lambda: trees([W[0], np.nan * W[1], W[2, :3]]),
        ValueError,
        "contains NaN",
    ),
    "complex in a list": (
        lambda: trees([W[0] + 0j, W[1, :3]]),
        ValueError,
        "Complex data",
    ),
    "text in a list": (
        lambda: trees([W[0].astype(str), W[1, :3]]),
        TypeError,
        "expected real numbers",
    ),
    "models too large to route": (
        lambda: FITTED_TREES.predict(HUGE),
        ValueError,
        "multiply all weights",
    ),
    "min_models": (lambda: experts(min_models=0), ValueError, "'min_models'"),
    "embedders of too few": (
        lambda: experts(
            y=None,
            estimator=ProbeXEmbedder(),
            router=ModelTreeClustering(n_trees=3),
            min_models=30,
        ),
        ValueError,
        "fewer than min_models=30",
    ),
    "no estimator": (lambda: experts(estimator="a"), ValueError, "'estimator'"),
    "no router": (lambda: experts(router="a"), ValueError, "'router'"),
    "experts on a missing layer": (
        lambda: experts(LAYERS, layer="z"),
        MissingLayerError,
        "layer='z': W holds 'a.weight', 'b.weight'",
    ),
    "experts before fit": (
        lambda: TreeExperts(ProbeXClassifier()).predict(W),
        NotFittedError,
        "not fitted yet",
    ),
    # Heritage
    "statistic, unknown": (
        lambda: recover_heritage(W, statistic="age"),
        ValueError,
        "statistic must be 'norm' or an array",
    ),
    "statistic, too few": (
        lambda: recover_heritage(W, statistic=[1, 2]),
        ValueError,
        "got shape (2,)",
    ),
    "statistic, NaN": (
        lambda: recover_heritage(W, statistic=np.nan * r),
        ValueError,
        "one finite number",
    ),
    "statistic, text": (
        lambda: recover_heritage(W, statistic=list(TEXTS)),
        ValueError,
        "one finite number",
    ),
    "roots, out of range": (
        lambda: recover_heritage(W, roots=99),
        ValueError,
        "from 0 to 23, got 99",
    ),
    "roots, two in a tree": (
        lambda: recover_heritage(W, roots=[0, 1]),
        ValueError,
        "which has one root",
    ),
    "roots, text": (lambda: recover_heritage(W, roots="a"), ValueError, "got 'a'"),
    "roots, real": (lambda: recover_heritage(W, roots=1.5), ValueError, "got 1.5"),
    # Index
    "no names": (lambda: index(names=None), ValueError, "names must be given"),
    "too few names": (lambda: index(names=["a"]), ValueError, "1 entries for 24"),
    "names twice": (lambda: index(names=["a"] * N), ValueError, "'a' 24 times"),
    "names of numbers": (lambda: index(names=range(N)), ValueError, "must be str"),
    "names again": (lambda: INDEX.add(W, NAMES), ValueError, "'m0' in the index"),
    "metadata, too few": (lambda: index(metadata=[{}]), ValueError, "1 entries for 24"),
    "metadata, no dicts": (
        lambda: index(metadata=[3] * N),
        ValueError,
        "of model 'm0'",
    ),
    "metadata, a set": (
        lambda: index(metadata=[{"a": {1}}] * N),
        ValueError,
        "cannot be written as JSON",
    ),
    "index of a word": (lambda: index("a"), TypeError, "got str"),
    "index of a set": (lambda: index({1}, ["a"]), TypeError, "got set"),
    "index of nothing": (lambda: index(W[:0], []), ValueError, "holds no models"),
    "index of NaN": (lambda: index(put(np.nan)), ValueError, "contains NaN: model 3"),
    "index batch_size": (lambda: index(batch_size=0), ValueError, "'batch_size'"),
    "index embedder": (
        lambda: ModelIndex(None).add(W, NAMES),
        ValueError,
        "'embedder'",
    ),
    "index embedder, not fitted": (
        lambda: ModelIndex(ProbeXEmbedder()).add(W, NAMES),
        NotFittedError,
        "not fitted yet",
    ),
    "search in an empty index": (
        lambda: ModelIndex(FITTED_EMBEDDER).search("a"),
        ValueError,
        "The index is empty",
    ),
    "k": (lambda: INDEX.search("a", k=0), ValueError, "k must be an integer"),
    "k, True": (lambda: INDEX.search("a", k=True), ValueError, "k must be an integer"),
    "query, empty": (lambda: INDEX.search(" "), ValueError, "empty text"),
    "query, none": (lambda: INDEX.search([]), ValueError, "query is empty"),
    "query, mixed": (lambda: INDEX.search(["a", 3]), TypeError, "got a int among them"),
    "query, None": (lambda: INDEX.search(None), TypeError, "got NoneType"),
    "query, bytes": (lambda: INDEX.search(b"a"), TypeError, "got bytes"),
    "query, one model": (lambda: INDEX.search(W[0]), ValueError, "query[None]"),
    "query, another unit": (
        lambda: index(embedder=embedder(views=("xtxu",), normalize=False)).search(HUGE),
        ValueError,
        "overflows float32",
    ),
    "where, a number": (lambda: INDEX.search("a", where=3), ValueError, "24 booleans"),
    "remove a stranger": (lambda: INDEX.remove("q"), KeyError, "no models named"),
    # Collections and files
    "collection of nothing": (lambda: collection({}), ValueError, "a dict of weights"),
    "collection of a list": (lambda: collection([W]), ValueError, "a dict of weights"),
    "collection of numbers": (lambda: collection({"a": 3}), TypeError, "of type int"),
    "collection of text": (lambda: collection({"a": "b"}), TypeError, "of type str"),
    "collection, too few names": (
        lambda: collection(names=["a"]),
        ValueError,
        "names has 1 entries",
    ),
    "collection, no dicts": (
        lambda: collection(metadata=[3] * N),
        ValueError,
        "one dict per model",
    ),
    "collection, no layer": (
        lambda: collection()["q"],
        MissingLayerError,
        "No model has a layer 'q'",
    ),
    "collection, two indices": (lambda: collection()[0, 1], IndexError, "by model"),
    "collection, names": (lambda: collection()[["m0"]], TypeError, "select(names="),
    "collection, iterated": (
        lambda: list(collection()),
        TypeError,
        "not iterated over",
    ),
    "collection, no label": (
        lambda: collection().labels("q"),
        ValueError,
        "No model has metadata 'q'",
    ),
    "collection, strangers": (
        lambda: collection().select(["q"]),
        KeyError,
        "no models named",
    ),
    "collection, on_missing": (
        lambda: collection().select(on_missing="skip"),
        ValueError,
        "on_missing='skip'",
    ),
    "open nothing": (lambda: open_models([]), WeightFileError, "empty list"),
    "open a number": (lambda: open_models(3), TypeError, "source is a int"),
    "open a path that is not there": (
        lambda: open_models("/not/there"),
        WeightFileError,
        "/not/there does not exist",
    ),
    "load what is not there": (
        lambda: skprobex.load("/not/there"),
        FileNotFoundError,
        "/not/there",
    ),
    # Baselines and metrics
    "dense expert, task": (lambda: make_dense_expert("x"), ValueError, "task must be"),
    "dense expert, alphas": (
        lambda: make_dense_expert(alphas=[]),
        ValueError,
        "alphas is empty",
    ),
    "AUC of NaN": (lambda: mean_one_class_auc(np.nan * Z, y, Z, y), ValueError, "NaN"),
    "AUC of too few labels": (
        lambda: mean_one_class_auc(Z, y[:3], Z, y),
        ValueError,
        "[24, 3]",
    ),
    "AUC of other dimensions": (
        lambda: mean_one_class_auc(Z, y, Z[:, :2], y),
        ValueError,
        "2 features",
    ),
    "AUC of one class": (
        lambda: mean_one_class_auc(Z, 0 * y, Z, 0 * y),
        ValueError,
        "nothing else among the test embeddings",
    ),
    "AUC of unseen classes": (
        lambda: mean_one_class_auc(Z, y, Z, y + 5),
        ValueError,
        "none of it among the test embeddings",
    ),
    "AUC, detector": (
        lambda: mean_one_class_auc(Z, y, Z, y, "x"),
        ValueError,
        "detector must be",
    ),
    "AUC, n_neighbors": (
        lambda: mean_one_class_auc(Z, y, Z, y, n_neighbors="a"),
        ValueError,
        "n_neighbors must be",
    ),
    "AUC, covariance of one": (
        lambda: mean_one_class_auc(Z[:3], [0, 1, 2], Z, y, "mahalanobis"),
        ValueError,
        "needs two",
    ),
    # Datasets
    "tree of no models": (lambda: make_model_tree(0), ValueError, "n_models must be"),
    "tree of a text": (lambda: make_model_tree("a"), TypeError, "n_models must be"),
    "tree, shape": (lambda: make_model_tree(9, 3), ValueError, "a pair (d_out, d_in)"),
    "tree, an empty shape": (lambda: make_model_tree(9, (0, 3)), ValueError, "got 0"),
    "tree, view": (lambda: make_model_tree(view="q"), ValueError, "view must be one"),
    "tree, task": (lambda: make_model_tree(task="q"), ValueError, "task must be one"),
    "tree, signal": (lambda: make_model_tree(signal=np.nan), ValueError, "signal must"),
    "tree, noise": (lambda: make_model_tree(noise=np.inf), ValueError, "noise must be"),
    "tree, rank": (lambda: make_model_tree(9, (3, 3), rank=9), ValueError, "rank must"),
    "tree, dtype": (lambda: make_model_tree(dtype="int8"), ValueError, "float32 or"),
    "tree, classes": (lambda: make_model_tree(n_classes=0), ValueError, "n_classes"),
    "digits, classes": (
        lambda: make_digit_jungle(4, 999),
        ValueError,
        "n_classes must be an integer from 2 to 40",
    ),
    "digits, trees": (
        lambda: make_digit_jungle(3, n_trees=9),
        ValueError,
        "so that no tree is empty",
    ),
    "digits, adapters of adapters": (
        lambda: make_digit_jungle(9, rank=2, n_generations=2),
        ValueError,
        "do not go together",
    ),
    "adapters, concepts": (
        lambda: make_adapter_jungle(0),
        ValueError,
        "n_concepts must be an integer from 2 to 864",
    ),
    "adapters, held out": (
        lambda: make_adapter_jungle(held_out=2.0),
        ValueError,
        "held_out must be from 0 to 1",
    ),
    "jungle": (lambda: fetch_model_jungle("q"), ValueError, "subset='q'"),
    "jungle, split": (
        lambda: fetch_model_jungle("DINO", split="q"),
        ValueError,
        "no split 'q'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, error, phrase = REFUSED[case]
    with pytest.raises(error) as caught:
        call()
    assert phrase in str(caught.value)


# Labels that look wrong and are not.
LABELS = {
    "text": (TEXTS, TEXTS),
    "objects": (TEXTS.astype(object), TEXTS),
    "numbers as objects": (y.astype(object), y),
    "series": (pd.Series(y, index=range(50, 50 + N)), y),
    "categories": (pd.Series(TEXTS).astype("category"), TEXTS),
    "tensor": (torch.from_numpy(y), y),
    "bool": (y == 0, y == 0),
    "bool objects": ((y == 0).astype(object), y == 0),
    "list": (y.tolist(), y),
    "indicators": (CODES, CODES),
    "sparse indicators": (csr_matrix(CODES), CODES),
    "bool indicators": (CODES.astype(bool), CODES),
    "a column of zeros": (CODES * [1, 0], CODES * [1, 0]),
    "a column of ones": (CODES | [0, 1], CODES | [0, 1]),
    "nothing but zeros": (0 * CODES, 0 * CODES),
    "more classes than models": (
        np.pad(CODES, [(0, 0), (0, 40)]),
        np.pad(CODES, [(0, 0), (0, 40)]),
    ),
}


@pytest.mark.parametrize("case", LABELS)
def test_odd_labels(case):
    given, expected = LABELS[case]
    fitted = classifier(y=given)
    assert np.isfinite(fitted.predict_proba(W)).all()
    assert (fitted.predict(W) == expected).mean() > 0.9


@pytest.mark.parametrize("entry", [regressor, experts])
def test_constant_targets(entry):
    constant = np.full(N, 2.5)
    estimator = {"estimator": ProbeXRegressor()} if entry is experts else {}
    np.testing.assert_allclose(entry(y=constant, **estimator).predict(W), 2.5)


def test_a_class_of_one_model():
    single = np.where(np.arange(N) == 3, "rare", "usual")
    assert set(classifier(y=single).predict(W)) <= {"rare", "usual"}


# Texts that look wrong and are not.
@pytest.mark.parametrize(
    "texts",
    [
        ["a\0b", "🙂 \u202e"],
        ["x" * 10**5, "y"],
        ("a", "b"),
        np.array(["a", "b"], dtype=object),
        pd.Series(["a", "b"], index=[7, 8]),
        ["a", "__import__('os')"],
    ],
    ids=range(6),
)
def test_odd_texts(texts):
    assert FITTED_EMBEDDER.encode_text(texts).shape == (2, 3)
    assert set(FITTED_EMBEDDER.predict(W, labels=texts)) <= set(texts)


# Files

BAD_NAMES = ["", ".", "..", "../x", "/x", "a/../b", "a\\b", "c:d", "a\0b"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_no_file_names(name, tmp_path):
    with pytest.raises(ValueError, match="is no file name"):
        save_models(tmp_path / "models", {"a": W[:2]}, names=["good", name])
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("layers", "kwargs", "error", "match"),
    [
        (W, {}, TypeError, "a dict of weights by layer name, got ndarray"),
        ({}, {}, ValueError, "at least one"),
        ({"a": W, "b": W[:2]}, {}, ValueError, "same number of models"),
        ({"a": W[:2]}, {"names": ["x"]}, ValueError, "1 entries for 2 models"),
        ({"a": W[:2]}, {"names": ["x", "x"]}, ValueError, "names must differ"),
        ({"a": W[:2]}, {"metadata": [{}, 3]}, ValueError, "one dict per model"),
        ({"a": W[:2]}, {"metadata": [{}, {"a": {1}}]}, TypeError, "of type set"),
        ({"a": W[:2].astype(object)}, {}, TypeError, "numpy.object_"),
    ],
)
def test_models_that_cannot_be_saved(layers, kwargs, error, match, tmp_path):
    with pytest.raises(error, match=match):
        save_models(tmp_path, layers, **kwargs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"\0", b"GIF89a", b"\xff" * 64])
def test_files_that_hold_something_else(content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightFileError, match=r"x\.safetensors"):
        open_models(tmp_path)
    with pytest.raises(WeightFileError, match=r"x\.safetensors"):
        skprobex.load(path)


def test_a_folder_and_a_dead_link_among_files(tmp_path):
    save_models(tmp_path, {"w": W[:2]})
    (tmp_path / "folder.safetensors").mkdir()
    os.symlink(tmp_path / "gone", tmp_path / "dead.safetensors")
    with pytest.raises(WeightFileError, match=r"dead.* target is missing"):
        open_models(tmp_path, on_error="raise")
    with pytest.warns(UserWarning, match="1 of 3 models cannot be used"):
        assert len(open_models(tmp_path)) == 2


# Anything valid

VALID = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)


@st.composite
def problems(draw):
    """An estimator, weights and targets."""
    seed = draw(st.integers(0, 999))
    rng = np.random.default_rng(seed)
    n = draw(st.integers(4, 12))
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    dtype = draw(st.sampled_from(["f2", "f4", "f8"]))
    # float16 ends at 65504.
    exponent = draw(st.integers(-2, 2) if dtype == "f2" else st.integers(-12, 12))
    X = (rng.standard_normal((n, *shape)) * 10.0**exponent).astype(dtype)
    if draw(st.booleans()):  # ties, and models that are the same
        X[1] = X[0]
    views = draw(
        st.just("auto")
        | st.lists(st.sampled_from(tuple(VIEWS)), min_size=1, unique=True)
    )
    common = {
        "views": views if views == "auto" else tuple(views),
        "normalize": draw(st.sampled_from(["auto", True, False])),
        "center": draw(st.sampled_from(["auto", None])),
        "random_state": seed,
    }
    labels = np.arange(n) % draw(st.integers(2, 3))
    kind = draw(st.sampled_from(["classifier", "multilabel", "regressor", "embedder"]))
    if kind == "regressor":
        return ProbeXRegressor(**common), X, rng.standard_normal(n)
    if kind == "embedder":
        return ProbeXEmbedder(**common), X, rng.standard_normal((3, 4))[labels]
    y = np.eye(3, dtype=int)[labels] if kind == "multilabel" else labels
    return ProbeXClassifier(**common), X, y


@pytest.mark.filterwarnings("ignore:All models look alike")
@VALID
@given(problem=problems())
def test_fit_predict_save_load(problem, tmp_path_factory):
    estimator, X, y = problem
    estimator.fit(X, y)
    outputs = estimator.transform(X)
    assert outputs.dtype == (np.float64 if X.dtype == np.float64 else np.float32)
    assert np.isfinite(outputs).all()
    predicted = estimator.predict(X)
    assert len(predicted) == len(X)
    path = tmp_path_factory.mktemp("saved") / "estimator.safetensors"
    estimator.save(path)
    loaded = skprobex.load(path)
    np.testing.assert_array_equal(loaded.transform(X), outputs)
    np.testing.assert_array_equal(loaded.predict(X), predicted)


def test_networks_and_state_dicts_are_no_weights():
    network = torch.nn.Linear(6, 8)
    for W, kind in (
        ([network] * 4, "Linear"),
        (network, "Linear"),
        ([network.state_dict()] * 4, "OrderedDict"),
    ):
        with pytest.raises(
            TypeError, match=f"W is made of {kind}s: expected one layer"
        ):
            ProbeXClassifier().fit(W, [0, 1, 0, 1])
