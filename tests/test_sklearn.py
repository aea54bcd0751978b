"""The scikit-learn contract: the check battery twice, and the tools around 3-D W."""

import io
import pickle

import joblib
import numpy as np
import pytest
from networks import flat
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
)
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from skprobex import ProbeXClassifier, ProbeXEmbedder, ProbeXRegressor
from skprobex.baselines import WeightStatistics
from skprobex.datasets import make_model_tree
from skprobex.solvers import Adam, mvprobe, probex
from skprobex.weights._dense import DenseWeights
from skprobex.weights._validation import ONLY

SMALL_NETWORK = {
    "solver": "adam",
    "views": ("xu",),
    "projection_dim": 16,
    "n_components": 16,
    "max_iter": 2,
    "learning_rate_init": 5e-3,
}
# Checks of how much was learnt, which takes more epochs than the others need.
N_EPOCHS_TO_LEARN = 50
CHECKS_OF_LEARNING = {
    "check_class_weight_classifiers",
    "check_classifiers_train",
    "check_regressors_train",
}


class Lifted:
    """Lift every 2-D X to ``(n, d, 2)`` after validation, just before the core."""

    def _read(self, W, *, reset):
        rows = np.asarray(super()._read(W, reset=reset)[ONLY])
        return {ONLY: DenseWeights(np.stack([rows, rows[:, ::-1]], axis=2))}


class LiftedClassifier(Lifted, ProbeXClassifier):
    pass


class LiftedRegressor(Lifted, ProbeXRegressor):
    pass


class LiftedEmbedder(Lifted, ProbeXEmbedder):
    pass


CLASSES = [
    ProbeXClassifier,
    ProbeXRegressor,
    ProbeXEmbedder,
    LiftedClassifier,
    LiftedRegressor,
    LiftedEmbedder,
]
ESTIMATORS = [cls() for cls in CLASSES]
ESTIMATORS += [cls(**flat(**SMALL_NETWORK)) for cls in CLASSES]

# Checks that check_estimator leaves out.
FURTHER_CHECKS = [
    estimator_checks.check_param_validation,
    estimator_checks.check_transformer_get_feature_names_out,
    estimator_checks.check_transformer_get_feature_names_out_pandas,
    estimator_checks.check_get_feature_names_out_error,
    estimator_checks.check_set_output_transform,
    estimator_checks.check_set_output_transform_pandas,
    estimator_checks.check_global_output_transform_pandas,
    estimator_checks.check_dataframe_column_names_consistency,
    estimator_checks.check_inplace_ensure_writeable,
]

# The checks pass numbers where embedders take names or vectors.
numbers_for_texts = pytest.mark.filterwarnings("ignore:y holds one number for each")
# A few epochs are enough for the checks, and not for convergence.
few_epochs = pytest.mark.filterwarnings("ignore:The adam solver reached max_iter")


@few_epochs
@numbers_for_texts
@parametrize_with_checks(ESTIMATORS)
def test_check_battery(estimator, check):
    if estimator.solver != "ridge" and check.func.__name__ in CHECKS_OF_LEARNING:
        estimator = clone(estimator).set_params(solver__max_iter=N_EPOCHS_TO_LEARN)
    check(estimator)


@few_epochs
@numbers_for_texts
# The checks themselves pass arrays to what they fitted on data frames.
@pytest.mark.filterwarnings("ignore:X (has|does not have valid) feature names")
@pytest.mark.parametrize("check", FURTHER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_further_checks(estimator, check):
    check(type(estimator).__name__, estimator)


@pytest.fixture(scope="module")
def tree():
    return make_model_tree(
        90, (12, 10), n_classes=3, view="xtxu", random_state=0, return_X_y=True
    )


@pytest.fixture(scope="module")
def two_classes():
    return make_model_tree(
        80, (12, 10), n_classes=2, view="xtxu", random_state=1, return_X_y=True
    )


def test_cross_val_score(tree):
    scores = cross_val_score(ProbeXClassifier(), *tree, cv=3)
    assert scores.mean() > 0.8


def test_cross_val_predict_proba(tree):
    W, y = tree
    proba = cross_val_predict(ProbeXClassifier(), W, y, cv=3, method="predict_proba")
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    assert np.mean(proba.argmax(axis=1) == y) > 0.8


def test_cross_validate_several_metrics(tree):
    scoring = ["accuracy", "f1_macro", "roc_auc_ovr", "neg_log_loss"]
    scores = cross_validate(ProbeXClassifier(), *tree, cv=3, scoring=scoring)
    for name in scoring:
        assert np.isfinite(scores[f"test_{name}"]).all()


def test_cross_validate_regressor():
    W, y = make_model_tree(
        90, (12, 10), view="xtxu", task="regression", random_state=0, return_X_y=True
    )
    scoring = ["r2", "neg_mean_absolute_error"]
    scores = cross_validate(ProbeXRegressor(), W, y, cv=3, scoring=scoring)
    assert scores["test_r2"].mean() > 0.5


@few_epochs
@pytest.mark.parametrize("search", [GridSearchCV, HalvingGridSearchCV])
def test_grid_search(search, tree):
    grid = {
        "views": ["auto", ("xu",), ("xtxu", "spectrum")],
        "n_probes": [2, 8],
        "solver": ["ridge", Adam(max_iter=3, projection_dim=4)],
    }
    estimator = ProbeXClassifier(n_components=4)
    found = search(estimator, grid, cv=2, error_score="raise").fit(*tree)
    assert found.best_params_["solver"] == "ridge"
    assert found.score(*tree) > 0.8


@few_epochs
def test_a_grid_reaches_into_the_solver(tree):
    every_epoch = Adam(projection_dim=4, tol=0, n_iter_no_change=99)
    estimator = ProbeXClassifier(solver=every_epoch, views=("xtxu",), normalize=True)
    for max_iter in (2, 5):
        grid = {"solver__max_iter": [max_iter]}
        found = GridSearchCV(estimator, grid, cv=2, error_score="raise").fit(*tree)
        assert len(found.best_estimator_.loss_curve_) == max_iter
    assert estimator.solver is every_epoch and every_epoch.max_iter == 200


def test_no_parameter_is_ignored_silently(tree):
    settings = {"views": ("xu",), "normalize": True, "alphas": [1.0]}
    for solver in ("adam", Adam()):
        with pytest.raises(ValueError, match="alphas"):
            ProbeXClassifier(solver=solver, **settings).fit(*tree)


@pytest.mark.parametrize("cls", [ProbeXClassifier, ProbeXRegressor, ProbeXEmbedder])
@pytest.mark.parametrize("published", [probex, mvprobe])
def test_published_networks_have_a_name(published, cls, tree):
    settings = published(max_iter=1)
    assert settings["solver"].n_iter_no_change == 1
    estimator = cls(**settings, random_state=0)
    W, y = tree
    y = np.eye(3)[y] if cls is ProbeXEmbedder else y
    with pytest.warns(UserWarning, match="n_probes=128 is more than"):
        estimator.fit(W, y)
    assert set(estimator.views_) == set(settings["views"])
    assert estimator.center_ is None and estimator.normalize_ is False
    assert estimator.n_iter_ == 1 and estimator.n_components == 512


@pytest.mark.parametrize("cls", [ProbeXClassifier, ProbeXRegressor, ProbeXEmbedder])
def test_shells_have_thirteen_parameters_at_most(cls):
    assert len(cls().get_params(deep=False)) <= 13


def test_pipeline(tree):
    W, y = tree
    pipeline = make_pipeline(ProbeXClassifier(), LogisticRegression())
    assert pipeline.fit(W[:60], y[:60]).score(W[60:], y[60:]) > 0.8


def test_stacking_classifier(tree):
    W, y = tree
    statistics = make_pipeline(WeightStatistics(), LogisticRegression(max_iter=1000))
    members = [("probex", ProbeXClassifier()), ("statistics", statistics)]
    stack = StackingClassifier(members, cv=2).fit(W[:60], y[:60])
    assert stack.score(W[60:], y[60:]) > 0.8


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_calibrated_classifier(method, tree):
    W, y = tree
    calibrated = CalibratedClassifierCV(ProbeXClassifier(), method=method, cv=2)
    assert calibrated.fit(W[:60], y[:60]).score(W[60:], y[60:]) > 0.8


def test_tuned_threshold(two_classes):
    W, y = two_classes
    tuned = TunedThresholdClassifierCV(ProbeXClassifier(), scoring="f1", cv=2)
    assert tuned.fit(W[:60], y[:60]).score(W[60:], y[60:]) > 0.8


def test_learning_curve(tree):
    sizes, _, scores = learning_curve(
        ProbeXClassifier(), *tree, cv=3, train_sizes=[15, 60], shuffle=True
    )
    assert sizes.tolist() == [15, 60]
    assert scores[1].mean() > 0.8


def test_n_jobs_changes_nothing(tree):
    alone = cross_val_score(ProbeXClassifier(random_state=0), *tree, cv=2)
    together = cross_val_score(ProbeXClassifier(random_state=0), *tree, cv=2, n_jobs=2)
    np.testing.assert_array_equal(alone, together)


@few_epochs
@numbers_for_texts
@pytest.mark.parametrize("estimator", ESTIMATORS[:6], ids=str)
def test_clone_and_pickle_keep_predictions(estimator, tree):
    W, y = tree
    fitted = clone(estimator).set_params(random_state=0).fit(W, y)
    expected = fitted.predict(W)
    again = clone(fitted).fit(W, y)
    np.testing.assert_array_equal(again.predict(W), expected)
    pickled = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(pickled.predict(W), expected)
    buffer = io.BytesIO()
    joblib.dump(fitted, buffer)
    buffer.seek(0)
    np.testing.assert_array_equal(joblib.load(buffer).predict(W), expected)


@few_epochs
@numbers_for_texts
@pytest.mark.parametrize("estimator", ESTIMATORS[:6], ids=str)
def test_html_repr_shows_parameters_before_and_after_fit(estimator, tree):
    estimator = clone(estimator)
    name = type(estimator).__name__
    assert name in estimator._repr_html_()
    html = estimator.fit(*tree)._repr_html_()
    assert name in html and "fitted" in html
