"""Mean one-class AUC against plain loops."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from skprobex.metrics import mean_one_class_auc

RNG = np.random.default_rng(0)
CENTERS = RNG.normal(size=(3, 4))
Y_TRAIN = np.repeat(["a", "b", "c"], 8)
Y_TEST = np.repeat(["a", "b", "c", "d"], 5)
Z_TRAIN = np.repeat(CENTERS, 8, axis=0) + RNG.normal(size=(24, 4))
Z_TEST = np.repeat([*CENTERS, 0 * CENTERS[0]], 5, axis=0) + RNG.normal(size=(20, 4))


def distance(own, z, detector, k):
    if detector == "knn":
        return np.mean(sorted(np.linalg.norm(x - z) for x in own)[:k])
    covariance, _ = ledoit_wolf(own)
    deviation = z - own.mean(axis=0)
    return deviation @ np.linalg.solve(covariance, deviation)


def plain(detector, k=2):
    """Count the pairs that are in order."""
    areas = []
    for label in "abc":
        own = Z_TRAIN[Y_TRAIN == label]
        scores = [distance(own, z, detector, k) for z in Z_TEST]
        pairs = [
            (scores[j] > scores[i]) + 0.5 * (scores[j] == scores[i])
            for i in np.flatnonzero(Y_TEST == label)
            for j in np.flatnonzero(Y_TEST != label)
        ]
        areas.append(np.mean(pairs))
    return np.mean(areas)


@pytest.mark.parametrize("detector", ["knn", "mahalanobis"])
def test_matches_plain_loops(detector):
    found = mean_one_class_auc(Z_TRAIN, Y_TRAIN, Z_TEST, Y_TEST, detector)
    assert 0.5 < found < 1
    assert found == pytest.approx(plain(detector))


@pytest.mark.parametrize("k", [1, 5, 8, 100])
def test_neighbors(k):
    found = mean_one_class_auc(Z_TRAIN, Y_TRAIN, Z_TEST, Y_TEST, n_neighbors=k)
    assert found == pytest.approx(plain("knn", min(k, 8)))


def test_perfect_and_hopeless():
    y = np.repeat([0, 1], 10)
    Z = y[:, None] + 0.01 * RNG.normal(size=(20, 1))
    assert mean_one_class_auc(Z, y, Z, y) == 1
    assert mean_one_class_auc(Z, y, Z, 1 - y) == 0


def test_classes_that_cannot_be_told():
    Z = RNG.normal(size=(4, 2))
    with pytest.raises(ValueError, match=r"Class 2 .* none of it"):
        mean_one_class_auc(Z, [1, 1, 2, 2], Z, [1, 1, 1, 3])
    with pytest.raises(ValueError, match=r"Class 1 .* nothing else"):
        mean_one_class_auc(Z, [1, 1, 1, 1], Z, [1, 1, 1, 1])
    with pytest.raises(ValueError, match="detector must be"):
        mean_one_class_auc(Z, [1, 1, 2, 2], Z, [1, 1, 2, 2], "svm")
    with pytest.raises(ValueError, match="inconsistent"):
        mean_one_class_auc(Z, [1, 2], Z, [1, 1, 2, 2])
