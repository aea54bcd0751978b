"""The main job, on networks that were really fine-tuned."""

import numpy as np
import pytest
from sklearn.metrics import r2_score

from skprobex import ProbeXClassifier, ProbeXRegressor
from skprobex.baselines import make_dense_expert
from skprobex.datasets import make_digit_jungle


@pytest.fixture(scope="module")
def jungle():
    return make_digit_jungle(n_models=300, n_classes=40, cache=False)


def label_accuracy(estimator, W, Y):
    return np.mean(estimator.predict(W) == Y)


def test_classes_are_read_off_a_layer(jungle):
    W, Y = jungle.data, jungle.target
    clf = ProbeXClassifier(random_state=0).fit(W[:200], Y[:200])
    dense = make_dense_expert().fit(W[:200], Y[:200])
    accuracy = label_accuracy(clf, W[200:], Y[200:])
    assert accuracy > 0.93
    assert accuracy > label_accuracy(dense, W[200:], Y[200:]) + 0.3
    assert "log_xtx" in clf.views_
    # What leave-one-out promised is what came.
    assert abs(max(clf.view_scores_.values()) - accuracy) < 0.02


def test_probabilities_are_calibrated(jungle):
    W, Y = jungle.data, jungle.target
    for n_train in (50, 200):
        clf = ProbeXClassifier(random_state=0).fit(W[:n_train], Y[:n_train])
        proba, truth = clf.predict_proba(W[200:]), Y[200:]
        bins = np.minimum((proba * 10).astype(int), 9)
        gaps = [
            abs(proba[bins == b].mean() - truth[bins == b].mean()) * np.mean(bins == b)
            for b in range(10)
            if (bins == b).any()
        ]
        assert sum(gaps) < 0.05  # expected calibration error


def test_settings_and_accuracy_are_predicted(jungle):
    targets = np.column_stack(
        [np.log(jungle.settings["learning_rate"]), jungle.accuracy]
    )
    reg = ProbeXRegressor().fit(jungle.data[:200], targets[:200])
    predicted = reg.predict(jungle.data[200:])
    r2 = r2_score(targets[200:], predicted, multioutput="raw_values")
    assert r2[0] > 0.6 and r2[1] > 0.3
    assert "spectrum" in reg.views_


def test_the_base_as_center_helps_when_models_are_few(jungle):
    W, Y, base = jungle.data, jungle.target, jungle.bases["hidden2.weight"][0]
    scores = [
        np.mean(
            [
                label_accuracy(
                    ProbeXClassifier(center=center, random_state=0).fit(W[i:j], Y[i:j]),
                    W[200:],
                    Y[200:],
                )
                for i, j in ((0, 50), (50, 100), (100, 150))
            ]
        )
        for center in ("mean", base)
    ]
    assert scores[1] > scores[0]


def test_the_collection_has_what_the_arrays_have(jungle):
    models = jungle.models
    assert models.shape == (300, len(jungle.layers))
    np.testing.assert_array_equal(models["hidden2.weight"], jungle.data)
    labels = models.labels("trained_on")
    order = [labels.classes.tolist().index(name) for name in jungle.target_names]
    np.testing.assert_array_equal(labels.y[:, order], jungle.target)
