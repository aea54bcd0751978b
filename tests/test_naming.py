"""The text side of the closed form, against plain loops."""

import numpy as np
import pytest
import torch

from skprobex.probing.ridge.path import RidgePath
from skprobex.probing.tasks import (
    DEFAULT_PENALTY,
    DEFAULT_POWER,
    HUBNESS_PENALTIES,
    Names,
)
from skprobex.probing.text_side import N_NEIGHBORS, fit_text_side, hubness

ALPHAS = (1e-3, 1e-1, 10.0)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture
def drawn():
    """40 models of 12 labels, whose features tell their label's text vector."""
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((12, 7)) + 1)
    labels = np.r_[np.arange(12), rng.integers(0, 12, 28)]
    features = vectors[labels] @ rng.standard_normal((7, 20))
    features += 0.2 * rng.standard_normal(features.shape)
    return features, vectors, labels


def to_tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_components", [None, 3])
def test_labels_are_centred_and_whitened(n_components, power, drawn):
    _, vectors, _ = drawn
    side = fit_text_side(torch.from_numpy(vectors), power, n_components)
    mapped = vectors @ side.axes.numpy() + side.offset.numpy()
    np.testing.assert_allclose(mapped.mean(axis=0), 0, atol=1e-12)
    centred = vectors - vectors.mean(axis=0)
    spread = np.linalg.svd(centred, compute_uv=False)[:n_components]
    expected = spread * (spread / spread[0]) ** -power
    found = np.linalg.svd(mapped, compute_uv=False)[: len(spread)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert mapped.shape[1] == (n_components or 7)
    if power == 0 and n_components is None:
        np.testing.assert_allclose(mapped, centred, atol=1e-12)
    np.testing.assert_allclose(
        side.embed(torch.from_numpy(vectors)), unit(mapped), atol=1e-12
    )


def test_directions_that_no_label_takes_are_left_out(drawn):
    _, vectors, _ = drawn
    flat = np.c_[vectors[:, :3], np.zeros((12, 2))]
    side = fit_text_side(torch.from_numpy(flat), 1.0)
    assert np.isfinite(side.axes.numpy()).all()
    np.testing.assert_allclose(side.axes[3:], 0, atol=1e-12)


def test_hubness_is_the_mean_cosine_to_other_labels_models(drawn):
    _, _, labels = drawn
    near = np.random.default_rng(1).uniform(-1, 1, (40, 5))
    numbers = np.array([3, -1, 0, -1, 7])
    found = hubness(*to_tensors(near, labels, numbers)).numpy()
    for j, number in enumerate(numbers):
        others = np.sort(near[labels != number, j])[::-1]
        assert found[j] == pytest.approx(others[:N_NEIGHBORS].mean())


def refit_without_each_label(features, targets, labels, alpha):
    predictions = np.empty_like(targets)
    for label in np.unique(labels):
        rest = labels != label
        X, mean = features[rest], targets[rest].mean(axis=0)
        centre = X.mean(axis=0)
        X = X - centre
        A = X.T @ X + alpha * np.eye(X.shape[1])
        coef = np.linalg.solve(A, X.T @ (targets[rest] - mean))
        predictions[~rest] = (features[~rest] - centre) @ coef + mean
    return predictions


def name_naively(predictions, embeddings, labels, penalty):
    """Rank of each model's own label."""
    cosines = unit(predictions) @ embeddings.T
    held_back = cosines.copy()
    for j in range(len(embeddings)):
        others = np.sort(cosines[labels != j, j])[::-1][:N_NEIGHBORS]
        held_back[:, j] -= penalty * others.mean()
    own = held_back[np.arange(len(labels)), labels]
    return (held_back > own[:, None]).sum(axis=1) + 1


def test_the_penalty_names_most_labels_left_out(drawn):
    features, vectors, labels = drawn
    task = Names.of(*to_tensors(vectors, labels))
    path = RidgePath(torch.from_numpy(features), task.targets)
    alphas = torch.tensor(ALPHAS, dtype=torch.float64)
    found = task.choose_penalty(path, alphas)
    targets, scores = task.targets.numpy(), []
    side = fit_text_side(task.vectors, DEFAULT_POWER, 7)
    embeddings = side.embed(task.vectors).numpy()
    for alpha in ALPHAS:
        predictions = refit_without_each_label(features, targets, labels, alpha)
        rank = name_naively(predictions, embeddings, labels, DEFAULT_PENALTY)
        scores.append((np.mean(rank == 1), np.mean(1 / rank)))
    best = scores.index(max(scores))
    assert found.alpha.tolist() == [ALPHAS[best]] * 7
    assert (found.score, -found.error) == pytest.approx(scores[best])


def test_strengths_are_the_best_of_all(drawn):
    features, vectors, labels = drawn
    task = Names.of(*to_tensors(vectors, labels))
    path = RidgePath(torch.from_numpy(features), task.targets)
    path, alpha, side = task.tune(path, None, ALPHAS)
    scores = {}
    for power in (0.0, 0.25, 0.5, 1.0):
        embeddings = fit_text_side(torch.from_numpy(vectors), power).embed(
            torch.from_numpy(vectors)
        )
        targets = embeddings.numpy()[labels]
        for a in ALPHAS:
            predictions = refit_without_each_label(features, targets, labels, a)
            for penalty in HUBNESS_PENALTIES:
                rank = name_naively(predictions, embeddings.numpy(), labels, penalty)
                scores[power, penalty, a] = np.mean(rank == 1), np.mean(1 / rank)
    best = max(scores, key=scores.get)
    assert (side.penalty, alpha[0].item()) == best[1:]
    expected = fit_text_side(torch.from_numpy(vectors), best[0])
    np.testing.assert_allclose(side.axes, expected.axes)
    # The path has the targets that were chosen.
    embeddings = side.embed(torch.from_numpy(vectors))
    np.testing.assert_allclose(path.targets, embeddings[labels])


def test_candidates_compete_as_labels_do(drawn):
    features, vectors, labels = drawn
    task = Names.of(*to_tensors(vectors, labels))
    path = RidgePath(torch.from_numpy(features), task.targets)
    _, _, side = task.tune(path, None, ALPHAS)
    side.penalty = 0.5
    embedded = side.embed(torch.from_numpy(vectors))
    similar = side.similarities(side.predictions, embedded, torch.arange(12))
    rank = name_naively(side.predictions.numpy(), embedded.numpy(), labels, 0.5)
    np.testing.assert_array_equal(
        similar.argmax(dim=1).numpy() == labels, np.asarray(rank) == 1
    )
