"""From adapters to a sentence: the jungle of concepts, MiniLM, embedder and index."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from skprobex import ModelIndex, ProbeXEmbedder, load
from skprobex.datasets import make_adapter_jungle
from skprobex.metrics import mean_one_class_auc


@pytest.fixture(scope="module")
def jungle(data_home):
    return make_adapter_jungle(160, 2, data_home=data_home)


@pytest.fixture(scope="module")
def embedder(jungle, encoder_folder):
    seen = ~jungle.held_out
    embedder = ProbeXEmbedder(text_encoder=encoder_folder, random_state=0)
    return embedder.fit(jungle.models[seen], jungle.target[seen])


def test_names_never_seen_are_found(jungle, embedder):
    unseen = jungle.held_out
    names = np.unique(jungle.target[unseen])
    assert not set(names) & set(embedder.labels_)
    accuracy = embedder.score(jungle.models[unseen], jungle.target[unseen])
    assert accuracy > 8 / len(names)
    # Left-out labels foretell it, among many more names.
    scores = embedder.label_scores_
    assert scores["accuracy"] > 20 * scores["chance"]


def test_several_layers_know_more_than_one(jungle, embedder, encoder_folder):
    seen = ~jungle.held_out
    one = ProbeXEmbedder(text_encoder=encoder_folder, random_state=0)
    one.fit(jungle.data[seen], jungle.target[seen])
    assert len(embedder.layers_) > 1
    assert embedder.label_scores_["accuracy"] > one.label_scores_["accuracy"]


def test_models_are_found_by_a_sentence(jungle, embedder, tmp_path):
    index = ModelIndex(embedder)
    names = [f"adapter-{i:03}" for i in range(len(jungle.target))]
    index.add(jungle.models, names, metadata=jungle.models.metadata)
    # Every name that training has not seen, ten answers each.
    queries, rows = np.unique(jungle.target[jungle.held_out], return_index=True)
    found = index.search(queries.tolist(), k=10)
    right, chance = {}, {}
    for attribute, values in jungle.attributes.items():
        wanted = values[jungle.held_out][rows]
        answers = [[entry[attribute] for entry in row] for row in found.metadata]
        right[attribute] = np.mean(np.array(answers) == wanted[:, None])
        chance[attribute] = np.mean(values == wanted[:, None])
    assert np.mean(list(right.values())) > np.mean(list(chance.values())) + 0.2
    assert right["color"] > 2.5 * chance["color"]
    # One word of a name is a query, too.
    colors = np.unique(jungle.attributes["color"])
    words = index.search([f"something {color}" for color in colors], k=10).metadata
    answers = np.array([[entry["color"] for entry in row] for row in words])
    assert np.mean(answers == colors[:, None]) > 0.5
    # By weights: the nearest model is the model itself.
    rows = [3, 17, 99]
    nearest = index.search(jungle.models[rows], k=1).names
    assert [name for (name,) in nearest] == [names[i] for i in rows]
    with pytest.warns(UserWarning, match="saved as a folder of this machine"):
        index.save(tmp_path / "index.safetensors")
    loaded = load(tmp_path / "index.safetensors")
    again = loaded.search(queries.tolist(), k=10)
    assert again.names == found.names


def test_recipes_on_embeddings(jungle, embedder):
    color, seen = jungle.attributes["color"], ~jungle.held_out
    Z = embedder.transform(jungle.models)
    knn = KNeighborsClassifier(5).fit(Z[seen], color[seen])
    assert knn.score(Z[~seen], color[~seen]) > 0.6
    for detector in ("knn", "mahalanobis"):
        auc = mean_one_class_auc(
            Z[seen], color[seen], Z[~seen], color[~seen], detector=detector
        )
        assert auc > 0.7
    # As the guide has it, in scikit-learn's own parts.
    red = Z[seen & (color == "red")]
    neighbors = NearestNeighbors(n_neighbors=2).fit(red)
    distances = neighbors.kneighbors(Z[~seen])[0].mean(axis=1)
    assert roc_auc_score(color[~seen] == "red", -distances) > 0.7
    distances = LedoitWolf().fit(red).mahalanobis(Z[~seen])
    assert roc_auc_score(color[~seen] == "red", -distances) > 0.7
