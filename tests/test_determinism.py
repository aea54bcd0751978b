"""The same seed gives the same bits, in any process and with any number of workers.

The portions that models are read in are no parameter, and the same for the same W. What
another size of them changes is rounding: products of other shapes are summed in another
order.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import flat

from skprobex import (
    LayerFusion,
    LayerSearchCV,
    LowRankWeights,
    ModelIndex,
    ModelTreeClustering,
    ProbeXClassifier,
    ProbeXEmbedder,
    ProbeXRegressor,
    TreeExperts,
    recover_heritage,
)
from skprobex.baselines import FlatDeltas, SpectralStatistics, WeightStatistics
from skprobex.weights import _contract
from skprobex.weights._dense import DenseWeights

N = 36
RNG = np.random.default_rng(0)
y = np.arange(N) % 3
r = RNG.standard_normal(N)
NAMES = [f"m{i}" for i in range(N)]
TEXTS = np.array(["a cat", "a dog", "a bird"])[y]
# Large enough to be decomposed by a sketch, and projected by the trees.
TREE = np.repeat([0, 1], N // 2)
BASES = RNG.standard_normal((2, 136, 130))[TREE]
SIGNAL = RNG.standard_normal((3, 136, 130))[y]
W = BASES + 0.2 * SIGNAL + 0.3 * RNG.standard_normal((N, 136, 130))
SMALL = np.ascontiguousarray(W[:, :9, :7])
ADAPTERS = LowRankWeights(W[:, :, :3], W[:, :3])
LAYERS = {"large": W, "small": SMALL}


def encode(texts):
    return np.array([[len(text), ord(text[2]), 1.0] for text in texts])


def adam(expert, **parameters):
    return expert(
        **flat(
            solver="adam",
            max_iter=2,
            n_iter_no_change=1,
            tol=100,
            n_probes=5,
            projection_dim=4,
            random_state=7,
            **parameters,
        )
    )


def embedder(**parameters):
    return ProbeXEmbedder(**flat(text_encoder=encode, random_state=7, **parameters))


# What is fitted, and on what; W may be permuted or taken in part.
FITS = {
    "classifier": lambda W, at: ProbeXClassifier(random_state=7).fit(W, y[at]),
    "classifier, adam": lambda W, at: adam(ProbeXClassifier).fit(W, y[at]),
    "regressor": lambda W, at: ProbeXRegressor(random_state=7).fit(W, r[at]),
    "regressor, adam": lambda W, at: adam(ProbeXRegressor).fit(W, r[at]),
    "embedder": lambda W, at: embedder().fit(W, TEXTS[at]),
    "embedder, adam": lambda W, at: adam(ProbeXEmbedder, text_encoder=encode).fit(
        W, TEXTS[at]
    ),
    "embedder without texts": lambda W, at: embedder(n_components=8).fit(W),
    "trees": lambda W, at: ModelTreeClustering(random_state=7).fit(W),
    "experts": lambda W, at: TreeExperts(ProbeXClassifier(random_state=7)).fit(
        W, y[at]
    ),
    "weight statistics": lambda W, at: WeightStatistics().fit(W),
    "spectral statistics": lambda W, at: SpectralStatistics().fit(W),
    "flat deltas": lambda W, at: FlatDeltas().fit(W),
}
METHODS = ("predict", "decision_function", "predict_proba", "transform")
ALL = np.arange(N)


def answers(fitted, W):
    """All that a fitted estimator says of W, by method."""
    methods = [name for name in METHODS if hasattr(fitted, name)]
    if isinstance(fitted, ProbeXEmbedder) and not hasattr(fitted, "labels_"):
        methods = ["transform"]
    found = {name: np.asarray(getattr(fitted, name)(W)) for name in methods}
    if isinstance(fitted, ModelTreeClustering):
        found["distances"] = fitted._route(W, None)[1]
    return found


def layers_answers():
    fusion = LayerFusion(random_state=7).fit(LAYERS, y)
    search = LayerSearchCV(ProbeXClassifier(random_state=7), cv=2).fit(LAYERS, y)
    index = ModelIndex(embedder().fit(SMALL, TEXTS)).add(SMALL, NAMES)
    heritage = recover_heritage(W, n_trees=2)
    return {
        "fusion": fusion.transform(LAYERS),
        "search": search.cv_results_["mean_test_score"],
        "search predicts": search.decision_function(LAYERS),
        "index": index.embeddings_,
        "index finds": np.array(index.search(TEXTS[:3].tolist(), k=N).names),
        "heritage": heritage.parents_,
        "heritage scores": heritage.scores_,
    }


def digests():
    """A digest of every number that is computed, by name."""
    found = layers_answers()
    for name, fit in FITS.items():
        for W_name, weights in (("large", W), ("low-rank", ADAPTERS)):
            for method, values in answers(fit(weights, ALL), weights).items():
                found[f"{name}, {W_name}, {method}"] = values
    return {
        name: hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
        for name, values in found.items()
    }


def test_processes_agree():
    """Here and in a process where hashes differ."""
    script = "import json, test_determinism as t; print(json.dumps(t.digests()))"
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert digests() == json.loads(run.stdout)


@pytest.mark.parametrize("weights", [SMALL, ADAPTERS], ids=["dense", "low-rank"])
@pytest.mark.parametrize("name", FITS)
def test_batches_of_any_size(name, weights, monkeypatch):
    fitted = FITS[name](weights, ALL)
    expected = answers(fitted, weights)
    for n_models in (1, 7):
        n_bytes = n_models * (SMALL[0].nbytes if weights is SMALL else 3 * 266 * 8)
        monkeypatch.setattr(_contract, "BATCH_BYTES", n_bytes)
        assert len(list(_batches(weights))) == -(-N // n_models)
        for method, values in answers(fitted, weights).items():
            if values.dtype.kind != "f":
                np.testing.assert_array_equal(values, expected[method])
                continue
            np.testing.assert_allclose(values, expected[method], rtol=0, atol=1e-12)


def _batches(weights):
    lifted = DenseWeights(weights) if weights is SMALL else weights
    return lifted.batches("cpu")


def test_workers_change_nothing():
    cases = [
        lambda n_jobs: (
            LayerSearchCV(ProbeXClassifier(random_state=7), cv=2, n_jobs=n_jobs)
            .fit(LAYERS, y)
            .decision_function(LAYERS)
        ),
        lambda n_jobs: (
            ModelIndex(embedder().fit(SMALL, TEXTS), n_jobs=n_jobs)
            .add(SMALL, NAMES)
            .embeddings_
        ),
    ]
    for case in cases:
        np.testing.assert_array_equal(case(2), case(None))


ORDER = np.random.default_rng(1).permutation(N)
CLOSED = [name for name in FITS if "adam" not in name]


@pytest.mark.parametrize("weights", [W, ADAPTERS], ids=["dense", "low-rank"])
@pytest.mark.parametrize("name", CLOSED)
def test_the_order_of_models(name, weights):
    expected = answers(FITS[name](weights, ALL), weights)
    shuffled = answers(FITS[name](weights[ORDER], ORDER), weights)
    for method, values in shuffled.items():
        if values.dtype.kind != "f":
            np.testing.assert_array_equal(values, expected[method])
            continue
        # The distances between trees are float32 whatever the weights are.
        atol = 1e-6 if values.dtype == np.float32 else 1e-10
        np.testing.assert_allclose(values, expected[method], rtol=0, atol=atol)


def test_the_order_of_models_of_several_layers():
    fusion = LayerFusion(random_state=7)
    expected = fusion.fit(LAYERS, y).transform(LAYERS)
    shuffled = {name: layer[ORDER] for name, layer in LAYERS.items()}
    got = fusion.fit(shuffled, y[ORDER]).transform(LAYERS)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


def test_the_order_of_models_in_an_index_and_a_heritage():
    fitted = embedder().fit(SMALL, TEXTS)
    expected = ModelIndex(fitted).add(SMALL, NAMES).search("a cat", k=N)
    shuffled = ModelIndex(fitted).add(SMALL[ORDER], [NAMES[i] for i in ORDER])
    assert shuffled.search("a cat", k=N).names == expected.names
    parents = recover_heritage(W, n_trees=2).parents_
    back = np.append(ORDER, -1)  # the parent -1 stays -1
    got = np.empty(N, dtype=int)
    got[ORDER] = back[recover_heritage(W[ORDER], n_trees=2).parents_]
    np.testing.assert_array_equal(got, parents)
