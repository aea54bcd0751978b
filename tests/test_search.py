"""ModelIndex against plain loops, with an embedder that only stands in for one."""

import copy
import pickle
import re
import sys
import zlib

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, clone

import skprobex
from skprobex import (
    LowRankWeights,
    ModelCollection,
    ModelIndex,
    open_models,
    save_models,
)
from skprobex._registry import SAVED_CLASSES
from skprobex.exceptions import CorruptFileError

N_DIMENSIONS = 6
RNG = np.random.default_rng(0)
W = RNG.normal(size=(30, 4, 3)).astype("f4")
NAMES = [f"org/model-{i}" for i in range(30)]
METADATA = [{"task": "abc"[i % 3], "size": i} for i in range(30)]


class StandIn(BaseEstimator):
    """Projects weights at random, and draws a vector for each text."""

    def __init__(self, n_dimensions=N_DIMENSIONS):
        self.n_dimensions = n_dimensions

    def fit(self, W, y=None):
        self.weight_shape_ = tuple(np.shape(W)[1:])
        n_weights = int(np.prod(self.weight_shape_))
        rng = np.random.default_rng(1)
        self.axes_ = rng.normal(size=(n_weights, self.n_dimensions))
        return self

    def transform(self, W):
        if isinstance(W, ModelCollection):
            W = W["layer.weight"]
        W = np.asarray(W)
        if W.shape[1:] != self.weight_shape_:
            raise ValueError(f"W has shape {W.shape}.")
        return unit(W.reshape(len(W), -1) @ self.axes_)

    def encode_text(self, texts):
        seeds = [zlib.crc32(text.encode()) for text in texts]
        draws = [np.random.default_rng(s).normal(size=self.n_dimensions) for s in seeds]
        return unit(np.array(draws))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(SAVED_CLASSES, "StandIn", StandIn)


@pytest.fixture(scope="module")
def embedder():
    return StandIn().fit(W)


@pytest.fixture
def index(embedder):
    return ModelIndex(embedder).add(W, NAMES, METADATA)


def expected_order(vectors, rows):
    """Sort all models, by score and then by position, in plain Python."""
    rows = rows.astype(np.float32).astype(float)
    vectors = vectors.astype(np.float32).astype(float)
    return [
        sorted(range(len(rows)), key=lambda i: (-float((rows[i] * v).sum()), i))
        for v in vectors
    ]


def test_finds_the_nearest(index, embedder):
    texts = ["a cat", "two dogs", "birds"]
    order = expected_order(embedder.encode_text(texts), embedder.transform(W))
    result = index.search(texts, k=7)
    assert result.names == [[NAMES[i] for i in own[:7]] for own in order]
    assert result.metadata == [[METADATA[i] for i in own[:7]] for own in order]
    for vector, own, scores in zip(
        embedder.encode_text(texts), order, result.scores, strict=True
    ):
        exact = embedder.transform(W)[own[:7]] @ vector
        np.testing.assert_allclose(scores, exact, atol=1e-6)
    # One text is one answer, not a list of them.
    single = index.search("two dogs", k=7)
    assert single.names == result.names[1]
    np.testing.assert_array_equal(single.scores, result.scores[1])
    assert single["metadata"] == result.metadata[1]


def test_queries_of_weights(index, embedder):
    result = index.search(W[3:6], k=1)
    assert result.names == [[NAMES[3]], [NAMES[4]], [NAMES[5]]]
    np.testing.assert_allclose(np.concatenate(result.scores), 1, rtol=1e-6)
    for query in (list(W[3:6]), torch.tensor(W[3:6])):
        assert index.search(query, k=1).names == result.names


def test_all_models_where_k_is_larger(index):
    assert sorted(index.search("cats", k=1000).names) == sorted(NAMES)
    assert len(index.search("cats").names) == 10


@pytest.mark.parametrize("k", [1, 7, 41, 80])
def test_ties_come_in_order_of_insertion(embedder, k):
    rng = np.random.default_rng(0)
    kind = rng.permutation(np.repeat([0, 1], 40))
    twins = rng.normal(size=(2, 4, 3))[kind]
    index = ModelIndex(embedder).add(twins, [str(i) for i in range(80)])
    found = [index.search("a", k=k).names, *index.search(["b", "c"], k=k).names]
    for names in found:
        best = kind[int(names[0])]
        order = [*np.flatnonzero(kind == best), *np.flatnonzero(kind != best)]
        assert names == [str(i) for i in order[:k]]


@pytest.mark.parametrize(
    "where",
    [
        {"task": "b", "size": lambda size: size > 9},
        {"task": ["b"], "size": range(10, 30).__contains__},
        lambda entry: entry["task"] == "b" and entry["size"] > 9,
        [i % 3 == 1 and i > 9 for i in range(30)],
    ],
)
def test_where(index, where):
    kept = [NAMES[i] for i in range(10, 30) if i % 3 == 1]
    everything = index.search("cats", k=30).names
    expected = [name for name in everything if name in kept]
    assert index.search("cats", k=30, where=where).names == expected
    assert index.search(["cats"], k=2, where=where).names == [expected[:2]]


def test_where_nothing_is_left(index):
    result = index.search("cats", where={"task": "z"})
    assert result.names == [] and result.metadata == [] and len(result.scores) == 0
    assert len(result.to_frame()) == 0
    assert index.search(["cats", "dogs"], where={"task": 1}).names == [[], []]
    with pytest.raises(ValueError, match="No model has metadata 'tsk'"):
        index.search("cats", where={"tsk": 1})


def test_found_metadata_are_copies(index):
    index.search("cats", k=1).metadata[0]["task"] = "changed"
    index.search("cats", where=lambda entry: entry.update(task="changed"))
    assert "changed" not in str(index.search("cats", k=30).metadata)


def test_to_frame(index):
    frame = index.search("cats", k=3).to_frame()
    assert list(frame.columns) == ["score", "task", "size"]
    assert frame.index.name == "model"
    assert frame.index.tolist() == index.search("cats", k=3).names
    frame = index.search(["cats", "dogs"], k=3).to_frame()
    assert frame.index.names == ["query", "model"]
    names = index.search("dogs", k=3).names
    assert frame.loc[1].index.tolist() == names
    assert frame.loc[(1, names[0]), "score"] == index.search("dogs").scores[0]


def test_to_frame_with_a_score_of_its_own(embedder):
    index = ModelIndex(embedder).add(W[:2], ["a", "b"], [{"score": 1}, {}])
    frame = index.search("cats").to_frame()
    assert list(frame.columns) == ["score", "metadata_score"]
    assert frame.loc["a", "metadata_score"] == 1


@pytest.mark.parametrize("batch_size", [1, 7, 30])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_batches_and_workers_change_nothing(index, embedder, batch_size, n_jobs):
    with joblib.parallel_config("threading"):
        other = ModelIndex(embedder, batch_size=batch_size, n_jobs=n_jobs).add(W, NAMES)
    np.testing.assert_allclose(other.embeddings_, index.embeddings_, atol=1e-6)
    assert other.search("cats").names == index.search("cats").names


def test_joblib_s_backend_is_used(embedder):
    seen = []

    class Spy(StandIn):
        def transform(self, W):
            seen.append(joblib.parallel.get_active_backend()[0].nesting_level)
            return super().transform(W)

    with joblib.parallel_config("threading", n_jobs=2):
        ModelIndex(Spy().fit(W), batch_size=10).add(W, NAMES)
    assert len(seen) == 3 and all(level == 1 for level in seen)


def test_adding_in_parts(index, embedder):
    parts = ModelIndex(embedder)
    assert len(parts) == 0 and parts.names == [] and parts.embeddings_.shape == (0, 0)
    for i in range(30):
        assert parts.add(W[i : i + 1], [NAMES[i]], [METADATA[i]]) is parts
    assert parts.names == NAMES and len(parts) == 30
    np.testing.assert_allclose(parts.embeddings_, index.embeddings_, atol=1e-6)
    assert parts.search("cats").names == index.search("cats").names
    assert parts._rows.shape[0] < 2 * 30


def test_collections_bring_names_and_metadata(index, embedder, tmp_path):
    texts = [{key: str(value) for key, value in entry.items()} for entry in METADATA]
    save_models(tmp_path, {"layer.weight": W}, texts, [f"m{i:02}" for i in range(30)])
    opened = open_models(tmp_path)
    found = ModelIndex(embedder, batch_size=8).add(opened)
    assert found.names == opened.names
    assert found.search("cats", k=1).metadata[0]["task"] in "abc"
    np.testing.assert_allclose(found.embeddings_, index.embeddings_, atol=1e-6)
    lazy = ModelIndex(embedder, batch_size=8).add(opened["layer.weight"])
    assert lazy.names == opened.names
    np.testing.assert_array_equal(lazy.embeddings_, found.embeddings_)
    layers = ModelIndex(embedder).add({"layer.weight": W}, NAMES)
    assert layers.names == NAMES
    assert lazy.search(opened[[4, 2]], k=1).names == [["m04"], ["m02"]]


def test_low_rank_weights(embedder):
    adapters = LowRankWeights(RNG.normal(size=(5, 4, 2)), RNG.normal(size=(5, 2, 3)))
    index = ModelIndex(embedder, batch_size=2).add(adapters, list("abcde"))
    assert index.search(adapters[1:3], k=1).names == [["b"], ["c"]]


def test_remove(index, embedder):
    index.search("cats")
    gone = [NAMES[3], NAMES[17]]
    assert gone[0] in index
    assert index.remove(gone) is index
    kept = [i for i in range(30) if NAMES[i] not in gone]
    fresh = ModelIndex(embedder).add(
        W[kept], [NAMES[i] for i in kept], [METADATA[i] for i in kept]
    )
    assert len(index) == 28 and gone[0] not in index and NAMES[4] in index
    assert index.names == fresh.names
    assert index.search("cats", k=30).metadata == fresh.search("cats", k=30).metadata
    assert index.search("cats", k=30).names == fresh.search("cats", k=30).names
    index.remove(NAMES[0]).add(W[:1], [NAMES[0]])
    assert index.names[-1] == NAMES[0]
    index.remove(index.names)
    assert len(index) == 0
    with pytest.raises(ValueError, match="index is empty"):
        index.search("cats")
    index.add(W, NAMES)
    assert len(index) == 30


def test_removing_what_is_not_there_removes_nothing(index):
    with pytest.raises(KeyError, match="no models named"):
        index.remove([NAMES[0], "nobody"])
    assert len(index) == 30


def test_embeddings_cannot_be_written_to(index):
    assert index.embeddings_.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        index.embeddings_[0] = 0
    view = index.embeddings_
    before = view.copy()
    index.add(W[:1], ["another"])
    np.testing.assert_array_equal(view, before)


def test_repr_and_parameters(index, embedder):
    assert repr(index) == "ModelIndex(30 models, 6 dimensions, embedder=StandIn)"
    assert index.set_params(verbose=1).verbose == 1
    assert len(clone(index)) == 0


def test_progress(embedder, capsys):
    ModelIndex(embedder).add(W, NAMES)
    assert capsys.readouterr() == ("", "")
    ModelIndex(embedder, verbose=1).add(W, NAMES)
    printed = capsys.readouterr()
    assert printed.out == "" and "30/30" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((W, NAMES[:3]), "names has 3 entries for 30 models"),
        ((W,), "names must be given"),
        ((W, [*NAMES[:29], NAMES[0]]), "names has 'org/model-0' 2 times"),
        ((W, [*range(30)]), "names must be str, got 0 of type int"),
        ((W[:2], ["x", "there"]), "model 'there' in the index already"),
        ((W[:0], []), "W holds no models"),
        ((W[:, :2], NAMES), "W has shape"),
        ((W[:2], ["x", "y"], [{}]), "metadata has 1 entries for 2"),
        ((W[:2], ["x", "y"], [{}, 3]), "metadata of model 'y' is a int"),
        ((W[:2], ["x", "y"], [{}, {"f": open}]), "metadata 'f' of model 'y' cannot"),
        ((W[:2], ["x", "y"], [{}, {3: 1}]), "metadata 3 of model 'y' cannot"),
        ((np.full((2, 4, 3), np.nan), ["x", "y"]), "StandIn returned NaN"),
    ],
)
def test_what_cannot_be_added_adds_nothing(embedder, arguments, message):
    index = ModelIndex(embedder, batch_size=4).add(W[:1], ["there"])
    with pytest.raises(ValueError, match=re.escape(message)):
        index.add(*arguments)
    assert index.names == ["there"] and index.embeddings_.shape == (1, N_DIMENSIONS)


def test_metadata_become_what_json_has(embedder):
    entry = {"n": np.int64(3), "x": np.float32(0.5), "v": (1, np.arange(2)), "z": None}
    index = ModelIndex(embedder).add(W[:1], ["a"], [entry])
    entry["n"] = 4
    (found,) = index.search("cats").metadata
    assert found == {"n": 3, "x": 0.5, "v": [1, [0, 1]], "z": None}
    assert type(found["n"]) is int


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("", ValueError, "empty text"),
        (["cats", " "], ValueError, "empty text"),
        ([], ValueError, "query is empty"),
        (["cats", 3], TypeError, "a int among them"),
        (None, TypeError, "got NoneType"),
        (3, TypeError, "got int"),
        (W[0], ValueError, r"pass query\[None\]"),
        (W[0, 0], ValueError, r"pass query\[None\]"),
        (W[:0], ValueError, "query is empty"),
        (W[:, :2], ValueError, "W has shape"),
    ],
)
def test_bad_queries(index, query, error, message):
    with pytest.raises(error, match=message):
        index.search(query)


@pytest.mark.parametrize("k", [0, -1, 2.5, "3", True])
def test_bad_k(index, k):
    with pytest.raises(ValueError, match="k must be"):
        index.search("cats", k=k)


@pytest.mark.parametrize("where", [[True], "task", np.arange(30)])
def test_bad_where(index, where):
    with pytest.raises(ValueError, match="where must be"):
        index.search("cats", where=where)


def test_embedders_that_do_not_fit(index, embedder):
    index.set_params(embedder=StandIn(4).fit(W))
    for query in ("cats", W):
        with pytest.raises(ValueError, match="gives 4 dimensions"):
            index.search(query)
    with pytest.raises(ValueError, match="gives 4 dimensions"):
        index.add(W[:1], ["another"])
    assert "another" not in index and len(index) == 30

    class NoText(StandIn):
        encode_text = property()

    other = ModelIndex(NoText().fit(W)).add(W, NAMES)
    with pytest.raises(TypeError, match="NoText has no method encode_text"):
        other.search("cats")
    with pytest.raises(ValueError, match="'embedder' parameter"):
        ModelIndex("embedder").add(W, NAMES)


def test_saved_indices_answer_the_same(index, tmp_path):
    index.add(W[:3] + 1, ["é", "x", "y"], [{"nan": float("nan")}, {}, {"l": [1, {}]}])
    texts = ["cats", "dogs"]
    index.search(texts)
    expected = index.search(texts, k=40)
    index.save(tmp_path / "index")
    loaded = skprobex.load(tmp_path / "index")
    assert type(loaded) is ModelIndex and repr(loaded) == repr(index)
    found = loaded.search(texts, k=40)
    assert found.names == expected.names
    assert str(found.metadata) == str(expected.metadata)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert loaded.search(W, k=3).names == index.search(W, k=3).names
    for copied in (loaded, pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        assert "org/model-3" in copied
        assert copied.search(texts, k=40).names == expected.names
    # Both go on from there, and what has room to grow is not saved.
    for each in (index, loaded):
        each.add(W[:1] - 1, ["z"])
    assert loaded.search(texts, k=40).names == index.search(texts, k=40).names


def test_empty_indices_are_saved(embedder, tmp_path):
    ModelIndex(embedder).save(tmp_path / "index")
    assert len(skprobex.load(tmp_path / "index").add(W, NAMES)) == 30


def test_damaged_indices_are_refused(index, embedder, tmp_path):
    index.save(tmp_path / "index")
    data = (tmp_path / "index").read_bytes()
    for n_bytes in range(0, len(data), 97):
        (tmp_path / "cut").write_bytes(data[:n_bytes])
        with pytest.raises(CorruptFileError):
            skprobex.load(tmp_path / "cut")


def test_without_pandas(index, monkeypatch):
    assert isinstance(index.search("cats").to_frame(), pd.DataFrame)
    monkeypatch.setitem(sys.modules, "pandas", None)
    result = index.search("cats")
    with pytest.raises(ImportError, match="to_frame needs pandas"):
        result.to_frame()
