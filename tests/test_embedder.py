"""ProbeXEmbedder: naming by text, seen and unseen, in closed form and as two towers."""

import math
import pickle
import socket
import subprocess
import sys

import numpy as np
import pytest
from networks import flat
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skprobex
from skprobex import LowRankWeights, ModelCollection, ProbeXEmbedder
from skprobex.probing.tasks import Names
from skprobex.targets._texts import encode_texts, encoder_name

COLORS = ["red", "green", "blue", "yellow", "purple", "white"]
SHAPES = ["circle", "square", "star", "triangle", "ring"]
TEXTS = [f"a {color} {shape}" for color in COLORS for shape in SHAPES]
UNSEEN = [TEXTS[i] for i in (0, 6, 12, 18, 24)]
few_epochs = pytest.mark.filterwarnings("ignore:The adam solver reached max_iter")


def encode(texts):
    """Colours and shapes, each with a direction of its own."""
    rng = np.random.default_rng(0)
    direction = {word: rng.standard_normal(16) for word in COLORS + SHAPES}
    return np.array(
        [sum(direction[w] for w in text.split() if w in direction) for text in texts]
    )


@pytest.fixture(scope="module")
def models():
    """Four models of each text; their weights show its vector."""
    texts = np.array(TEXTS * 4)
    rng = np.random.default_rng(1)
    signal = encode(texts) @ rng.standard_normal((16, 14 * 12))
    W = signal + 3 * rng.standard_normal(signal.shape)
    return W.reshape(-1, 14, 12), texts


@pytest.fixture(scope="module")
def fitted(models):
    W, texts = models
    seen = ~np.isin(texts, UNSEEN)
    embedder = ProbeXEmbedder(text_encoder=encode, random_state=0)
    return embedder.fit(W[seen], texts[seen])


# Naming


def test_unseen_texts_are_named(fitted, models):
    W, texts = models
    unseen = np.isin(texts, UNSEEN)
    named = fitted.predict(W[unseen], labels=UNSEEN)
    assert np.mean(named == texts[unseen]) > 0.9
    assert fitted.score(W[unseen], texts[unseen]) == np.mean(named == texts[unseen])
    assert not set(UNSEEN) & set(fitted.labels_)
    # Also where known texts compete.
    among_all = fitted.predict(W[unseen], labels=TEXTS)
    assert np.mean(among_all == texts[unseen]) > 0.4


def test_seen_texts_are_named(fitted, models):
    W, texts = models
    seen = ~np.isin(texts, UNSEEN)
    assert fitted.score(W[seen], texts[seen]) > 0.9
    assert fitted.labels_.tolist() == sorted(set(TEXTS) - set(UNSEEN))
    np.testing.assert_array_equal(
        fitted.predict(W, labels=fitted.labels_), fitted.predict(W)
    )


def test_embeddings_are_unit_rows_near_their_text(fitted, models):
    W, texts = models
    Z, T = fitted.transform(W), fitted.encode_text(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(Z, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(T, axis=1), 1, rtol=1e-6)
    assert Z.shape[1] == T.shape[1] == 16 == len(fitted.get_feature_names_out())
    own = np.sum(Z * T[[TEXTS.index(text) for text in texts]], axis=1)
    assert own.mean() > 0.6 > (Z @ T.T).mean() + 0.5


def test_probabilities_are_calibrated(fitted, models):
    W, texts = models
    proba = fitted.predict_proba(W)
    assert proba.shape == (len(W), len(fitted.labels_))
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    unseen = np.isin(texts, UNSEEN)
    proba = fitted.predict_proba(W[unseen], labels=UNSEEN)
    named = np.array(UNSEEN)[proba.argmax(axis=1)]
    np.testing.assert_array_equal(named, fitted.predict(W[unseen], labels=UNSEEN))
    assert abs(proba.max(axis=1).mean() - np.mean(named == texts[unseen])) < 0.25


def test_the_order_of_labels_does_not_matter(fitted, models):
    W, _ = models
    expected = fitted.predict(W, labels=TEXTS)
    np.testing.assert_array_equal(fitted.predict(W, labels=TEXTS[::-1]), expected)


def test_new_labels_do_not_refit(fitted, models, monkeypatch):
    W, _ = models
    before = pickle.dumps(fitted)
    monkeypatch.setattr(Names, "tune", None)
    fitted.predict(W[:2], labels=["a red ring", "a blue square"])
    fitted.predict_proba(W[:2], labels=["a red ring"])
    assert pickle.dumps(fitted) == before


def test_label_scores_are_of_labels_left_out(models):
    W, texts = models
    found = ProbeXEmbedder(text_encoder=encode, views=("xu",)).fit(W, texts)
    embedder = ProbeXEmbedder(text_encoder=encode, views=("xu",))
    accuracy, labels = [], sorted(TEXTS)
    for text in UNSEEN:
        rest = texts != text
        embedder.fit(W[rest], texts[rest])
        accuracy += (embedder.predict(W[~rest], labels=labels) == text).tolist()
    assert found.label_scores_["accuracy"] == pytest.approx(np.mean(accuracy), abs=0.25)
    assert found.label_scores_["chance"] == 1 / 30


def test_cross_validation_by_text_is_zero_shot(models):
    W, texts = models
    embedder = ProbeXEmbedder(text_encoder=encode, views=("xu",))
    known = cross_val_score(embedder, W, texts, cv=2)
    unseen = cross_val_score(embedder, W, texts, groups=texts, cv=GroupKFold(3))
    assert known.mean() > 0.9
    assert unseen.mean() > 0.8


# What y and W can be


def test_vectors_are_texts_without_words(fitted, models):
    W, texts = models
    seen, vectors = ~np.isin(texts, UNSEEN), encode(texts)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    embedder = ProbeXEmbedder(text_encoder=None, random_state=0)
    embedder.fit(W[seen], unit[seen].astype(np.float32))
    np.testing.assert_allclose(embedder.transform(W), fitted.transform(W), atol=1e-5)
    own = encode_texts(encode, UNSEEN)
    named = embedder.predict(W[~seen], labels=own)
    np.testing.assert_array_equal(
        np.array(UNSEEN)[named], fitted.predict(W[~seen], labels=UNSEEN)
    )
    assert embedder.score(W[seen], unit[seen].astype(np.float32)) > 0.9
    assert embedder.score(W[~seen], unit[~seen]) > 0.9
    np.testing.assert_allclose(
        embedder.encode_text(own), fitted.encode_text(UNSEEN), atol=1e-6
    )
    with pytest.raises(ValueError, match="no text_encoder"):
        embedder.encode_text(["a red ring"])


def test_without_texts_it_is_pca_of_the_views(models):
    W, _ = models
    embedder = ProbeXEmbedder().fit(W)
    Z = embedder.transform(W)
    assert Z.shape == (len(W), len(embedder.get_feature_names_out()))
    np.testing.assert_allclose(Z.mean(axis=0), 0, atol=1e-8)
    covariance = np.cov(Z.T)
    spread = np.diag(covariance)
    np.testing.assert_allclose(covariance, np.diag(spread), atol=1e-10)
    assert (np.diff(spread) <= 1e-12).all()
    assert embedder.views_ == ("log_xtx", "log_xxt")
    few = ProbeXEmbedder(n_components=3).fit_transform(W)
    np.testing.assert_allclose(few, Z[:, :3], atol=1e-10)
    for call in (embedder.predict, embedder.predict_proba):
        with pytest.raises(ValueError, match="fitted without texts"):
            call(W)
    with pytest.raises(ValueError, match="fitted without texts"):
        embedder.encode_text(["a star"])


def test_several_layers(models):
    W, texts = models
    rng = np.random.default_rng(2)
    other = encode(texts) @ rng.standard_normal((16, 64)) + 6 * rng.standard_normal(
        (len(texts), 64)
    )
    layers = {"a": W, "b": other.reshape(-1, 8, 8), "c": rng.normal(size=(120, 5, 5))}
    seen = ~np.isin(texts, UNSEEN)
    collection = ModelCollection.from_layers(layers)
    embedder = ProbeXEmbedder(text_encoder=encode).fit(collection[seen], texts[seen])
    assert "a" in embedder.layers_
    assert set(embedder.layer_scores_) == set(layers)
    assert embedder.score(collection[~seen], texts[~seen]) > 0.9
    alone = ProbeXEmbedder(n_components=4).fit(collection)
    assert alone.transform(collection).shape == (120, 4)
    assert alone.layers_ == ["a", "b", "c"]


def test_adapters(models):
    _, texts = models
    rng = np.random.default_rng(3)
    A = rng.standard_normal((120, 2, 20))
    A += (encode(texts) @ rng.standard_normal((16, 40))).reshape(120, 2, 20)
    W = LowRankWeights(rng.standard_normal((120, 15, 2)), A)
    seen = ~np.isin(texts, UNSEEN)
    embedder = ProbeXEmbedder(text_encoder=encode).fit(W[seen], texts[seen])
    assert embedder.center_ is None
    assert embedder.score(W[seen], texts[seen]) > 0.5


def test_n_components_keeps_principal_directions(models):
    W, texts = models
    embedder = ProbeXEmbedder(text_encoder=encode, n_components=6).fit(W, texts)
    assert embedder.transform(W).shape == (120, 6)
    assert embedder.encode_text(TEXTS[:2]).shape == (2, 6)
    assert embedder.score(W, texts) > 0.9


def test_set_output_and_pipelines(models):
    W, texts = models
    embedder = ProbeXEmbedder(text_encoder=encode).set_output(transform="pandas")
    frame = embedder.fit(W, texts).transform(W)
    assert frame.columns[0] == "probexembedder0"
    pipeline = make_pipeline(ProbeXEmbedder(text_encoder=encode), StandardScaler())
    assert pipeline.fit_transform(W, texts).shape == (120, 16)


def test_the_prompt_surrounds_every_text(models):
    W, texts = models
    seen = []

    def record(texts):
        seen.extend(texts)
        return encode(texts)

    embedder = ProbeXEmbedder(text_encoder=record, prompt="a photo of {}.")
    embedder.fit(W, texts).encode_text(["a red {} star"])
    assert seen[0] == "a photo of a blue circle."
    assert len(seen) == 31  # each distinct text once
    assert seen[-1] == "a photo of a red {} star."


# The network


@pytest.fixture(scope="module")
def many():
    """As many texts as models: what a temperature is needed for."""
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((120, 24))
    W = (vectors @ rng.standard_normal((24, 14 * 12))).reshape(-1, 14, 12)
    return W, vectors


@few_epochs
@pytest.mark.parametrize("learn_temperature", [True, False])
def test_the_loss_needs_a_temperature(learn_temperature, many):
    W, vectors = many
    embedder = ProbeXEmbedder(
        **flat(
            solver="adam",
            views=("xu",),
            learn_temperature=learn_temperature,
            max_iter=150,
            learning_rate_init=3e-3,
            random_state=0,
        )
    ).fit(W, vectors)
    loss, stall = embedder.loss_curve_[-1], math.log(120)
    if learn_temperature:
        assert embedder.score(W, vectors) > 0.9
        assert loss < 0.5 and embedder.text_space_.temperature < 0.1
    else:
        # Cosines of 1 for the right and -1 / 119 for the others are the best there is.
        floor = math.log(1 + 119 * math.exp(-1 - 1 / 119))
        assert floor - 1e-3 < loss < stall
        assert embedder.text_space_.temperature == 1


@few_epochs
def test_two_towers_name_unseen_texts(models):
    W, texts = models
    seen = ~np.isin(texts, UNSEEN)
    embedder = ProbeXEmbedder(
        **flat(
            text_encoder=encode,
            solver="adam",
            views=("xu",),
            max_iter=60,
            learning_rate_init=3e-3,
            n_components=12,
            random_state=0,
        )
    ).fit(W[seen], texts[seen])
    assert embedder.score(W[seen], texts[seen]) > 0.9
    assert embedder.score(W[~seen], texts[~seen]) > 0.6
    Z, T = embedder.transform(W), embedder.encode_text(TEXTS)
    assert Z.shape[1] == T.shape[1] == 12
    np.testing.assert_allclose(np.linalg.norm(Z, axis=1), 1, rtol=1e-5)
    proba = embedder.predict_proba(W, labels=TEXTS)
    logits = Z @ T.T / embedder.text_space_.temperature
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(proba, expected, rtol=1e-4, atol=1e-6)


@few_epochs
def test_warm_start_keeps_its_texts(models):
    W, texts = models
    embedder = ProbeXEmbedder(
        **flat(
            text_encoder=encode,
            solver="adam",
            views=("xu",),
            max_iter=3,
            warm_start=True,
        )
    )
    first = embedder.fit(W, texts).loss_curve_[-1]
    assert embedder.fit(W, texts).loss_curve_[0] < first
    with pytest.raises(ValueError, match="goes on with the texts"):
        embedder.fit(W[:90], np.char.add(texts[:90], "s"))
    assert embedder.labels_.tolist() == sorted(TEXTS)


# The encoder


def test_a_real_encoder_names_unseen_texts(models, encoder_folder):
    _, texts = models
    rng = np.random.default_rng(5)
    signal = encode_texts(encoder_folder, texts) @ rng.standard_normal((384, 14 * 12))
    noise = rng.standard_normal(signal.shape)
    W = (signal + 0.5 * signal.std() * noise).reshape(-1, 14, 12)
    seen = ~np.isin(texts, UNSEEN)
    embedder = ProbeXEmbedder(text_encoder=encoder_folder, views=("xu",))
    embedder.fit(W[seen], texts[seen])
    assert embedder.score(W[~seen], texts[~seen]) > 0.9
    pickled = pickle.dumps(embedder)
    assert len(pickled) < 2e7 and b"BertModel" not in pickled
    again = pickle.loads(pickled)
    np.testing.assert_array_equal(again.predict(W, UNSEEN), embedder.predict(W, UNSEEN))


def test_a_folder_needs_no_network(encoder_folder, monkeypatch):
    from skprobex.targets import _texts as text

    text._load.cache_clear()

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    vectors = encode_texts(encoder_folder, ["a red ring", "a star"])
    assert vectors.shape == (2, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_loading_an_encoder_is_silent(encoder_folder):
    code = (
        "import sys; from skprobex.targets._texts import encode_texts; "
        "encode_texts(sys.argv[1], ['a star'])"
    )
    command = [sys.executable, "-c", code, encoder_folder]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == ran.stderr == ""


def test_loaded_encoders_are_known_by_their_folder(models, encoder_folder):
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(encoder_folder)
    assert encoder_name(loaded) == encoder_folder
    np.testing.assert_allclose(
        encode_texts(loaded, ["a star"]), encode_texts(encoder_folder, ["a star"])
    )
    embedder = ProbeXEmbedder(text_encoder=loaded)
    assert pickle.loads(pickle.dumps(embedder)).text_encoder == encoder_folder
    assert embedder.text_encoder is loaded


def test_saved_embedders_answer_the_same(fitted, models, tmp_path):
    W, _ = models
    fitted.save(tmp_path / "embedder.safetensors")
    loaded = skprobex.load(tmp_path / "embedder.safetensors")
    np.testing.assert_array_equal(loaded.predict(W), fitted.predict(W))
    np.testing.assert_array_equal(loaded.transform(W), fitted.transform(W))
    with pytest.raises(ValueError, match=r"a function is not saved.*set_params"):
        loaded.encode_text(["a star"])
    loaded.set_params(text_encoder=encode)
    np.testing.assert_array_equal(loaded.predict(W, TEXTS), fitted.predict(W, TEXTS))


def test_an_encoder_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match=r"could not be loaded.*pass a folder"):
        encode_texts(str(tmp_path), ["a star"])
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match="pip install"):
        encode_texts("sentence-transformers/none", ["a star"])


# Wrong input


@pytest.mark.parametrize(
    ("labels", "error", "match"),
    [
        ("a star", TypeError, "one text: pass a list"),
        ([], ValueError, "labels is empty"),
        (["a star", ""], ValueError, r"labels\[1\] is empty"),
        (["a star", 3], TypeError, r"labels\[1\] is 3"),
        ([None, "a star"], TypeError, r"labels\[0\] is None"),
        (["a star", "a ring", "a star"], ValueError, "'a star' more than once"),
        (np.zeros((3, 5)), ValueError, "5 dimensions, but those of fit had 16"),
    ],
)
def test_bad_labels(labels, error, match, fitted, models):
    with pytest.raises(error, match=match):
        fitted.predict(models[0], labels=labels)


@pytest.mark.parametrize(
    ("y", "error", "match"),
    [
        (["a star"] * 120, ValueError, "at least 2 different texts in y, got 1"),
        (["a star", 3] * 60, TypeError, r"y\[1\] is 3"),
        (["a star", " "] * 60, ValueError, r"y\[1\] is empty"),
        (["a star", "a ring"], ValueError, "inconsistent numbers"),
        (np.full((120, 4), np.nan), ValueError, "NaN"),
        (np.ones((120, 4)), ValueError, "at least 2 different texts"),
    ],
)
def test_bad_texts(y, error, match, models):
    embedder = ProbeXEmbedder(text_encoder=encode)
    with pytest.raises(error, match=match):
        embedder.fit(models[0], y)
    assert not hasattr(embedder, "expert_")


@pytest.mark.parametrize(
    ("encoder", "match"),
    [
        (lambda texts: np.zeros((len(texts), 3)), "zero or not finite for 'a blue"),
        (lambda texts: np.ones((1, 3)), r"shape \(1, 3\)"),
        (lambda texts: np.ones((len(texts), 3), int), "vector of floats"),
    ],
)
def test_bad_encoders(encoder, match, models):
    with pytest.raises(ValueError, match=match):
        ProbeXEmbedder(text_encoder=encoder).fit(*models)


def test_bad_settings(models):
    W, texts = models
    with pytest.raises(ValueError, match=r"must hold '\{\}' once"):
        ProbeXEmbedder(text_encoder=encode, prompt="a photo").fit(W, texts)
    with pytest.raises(ValueError, match="aligns models with texts"):
        ProbeXEmbedder(solver="adam").fit(W)
    with pytest.warns(UserWarning, match="pass their names"):
        ProbeXEmbedder().fit(W, np.arange(120) % 3)


def test_the_same_seed_gives_the_bits(models):
    W, texts = models
    embedder = ProbeXEmbedder(text_encoder=encode, random_state=0)
    first = embedder.fit(W, texts).transform(W)
    np.testing.assert_array_equal(clone(embedder).fit(W, texts).transform(W), first)
