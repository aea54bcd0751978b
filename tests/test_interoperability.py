"""What docs/interoperability.rst says of scikit-learn's tools, line by line."""

import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import CalibratedClassifierCV, CalibrationDisplay
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import RFE
from sklearn.frozen import FrozenEstimator
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import Ridge
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    HalvingGridSearchCV,
    LearningCurveDisplay,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    train_test_split,
    validation_curve,
)
from sklearn.multiclass import (
    OneVsOneClassifier,
    OneVsRestClassifier,
)
from sklearn.multioutput import (
    ClassifierChain,
    MultiOutputClassifier,
    MultiOutputRegressor,
    RegressorChain,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.utils import resample, shuffle

from skprobex import (
    LowRankWeights,
    ProbeXClassifier,
    ProbeXRegressor,
    open_models,
    save_models,
)

matplotlib.use("Agg")
PAGE = Path(__file__).parents[1] / "docs" / "interoperability.rst"
N = 48


def clf():
    return ProbeXClassifier(
        views=("xu",), normalize=True, n_probes=4, n_components=6, random_state=0
    )


def reg():
    return ProbeXRegressor(views=("xu",), normalize=True, n_probes=4, random_state=0)


class Answers:
    """What is asked of the models, in every form that a tool may want."""

    rng = np.random.default_rng(0)
    classes = np.arange(N) % 3
    two = classes > 0
    numbers = 1.0 + classes
    labels = np.eye(3, dtype=int)[classes]


def low_rank():
    rng = np.random.default_rng(1)
    B, A = rng.normal(size=(N, 9, 3)), rng.normal(size=(N, 3, 7))
    # The class is in which input direction moves.
    A[np.arange(N), :, Answers.classes] *= 4
    return LowRankWeights(B, A)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    factors = low_rank()
    W = np.asarray(factors)
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, {"first.weight": W, "second.weight": W[:, :5]})
    opened = open_models(folder)
    return {
        "array": W,
        "LowRankWeights": factors,
        "LayerWeights": opened["first.weight"],
        "ModelCollection": opened,
    }


GRID = {"n_probes": [3, 4]}
PAIR = [("a", clf()), ("b", clf())]
PAIR_OF_NUMBERS = [("a", reg()), ("b", reg())]


def fit_predict(estimator, W, y):
    predicted = estimator.fit(W, y).predict(W)
    assert len(predicted) == N and np.shape(predicted)[1:] == np.shape(y)[1:]


def fit_predict_half(W_train, W_test, y_train, y_test):
    assert clf().fit(W_train, y_train).predict(W_test).shape == y_test.shape


def fit_transform(estimator, W, y):
    assert estimator.fit(W, y).transform(W).shape == (N, 12)


TAKEN = {
    "train_test_split": lambda W, a: fit_predict_half(*train_test_split(W, a.classes)),
    "shuffle": lambda W, a: fit_predict(clf(), *shuffle(W, a.classes)),
    "resample": lambda W, a: fit_predict(clf(), *resample(W, a.classes)),
    "cross_val_score": lambda W, a: cross_val_score(clf(), W, a.classes, cv=3),
    "cross_validate": lambda W, a: cross_validate(clf(), W, a.classes, cv=3),
    "cross_val_predict": lambda W, a: cross_val_predict(clf(), W, a.classes, cv=3),
    "learning_curve": lambda W, a: learning_curve(
        clf(), W, a.classes, cv=3, shuffle=True, random_state=0
    ),
    "validation_curve": lambda W, a: validation_curve(
        clf(), W, a.classes, param_name="n_probes", param_range=[3, 4], cv=3
    ),
    "permutation_test_score": lambda W, a: permutation_test_score(
        clf(), W, a.classes, n_permutations=2, cv=3
    ),
    "GridSearchCV": lambda W, a: fit_predict(
        GridSearchCV(clf(), GRID, cv=3), W, a.classes
    ),
    "RandomizedSearchCV": lambda W, a: fit_predict(
        RandomizedSearchCV(clf(), GRID, n_iter=2, cv=3), W, a.classes
    ),
    "HalvingGridSearchCV": lambda W, a: fit_predict(
        HalvingGridSearchCV(clf(), GRID, cv=3, random_state=0), W, a.classes
    ),
    "Pipeline": lambda W, a: fit_predict(
        Pipeline([("expert", clf()), ("knn", KNeighborsClassifier())]), W, a.classes
    ),
    "FeatureUnion": lambda W, a: fit_transform(FeatureUnion(PAIR), W, a.classes),
    "FrozenEstimator": lambda W, a: fit_predict(
        FrozenEstimator(clf().fit(W, a.classes)), W, a.classes
    ),
    "TransformedTargetRegressor": lambda W, a: fit_predict(
        TransformedTargetRegressor(reg(), func=np.log, inverse_func=np.exp),
        W,
        a.numbers,
    ),
    "VotingClassifier": lambda W, a: fit_predict(
        VotingClassifier(PAIR, voting="soft"), W, a.classes
    ),
    "VotingRegressor": lambda W, a: fit_predict(
        VotingRegressor(PAIR_OF_NUMBERS), W, a.numbers
    ),
    "StackingClassifier": lambda W, a: fit_predict(
        StackingClassifier(PAIR, cv=3), W, a.classes
    ),
    "StackingRegressor": lambda W, a: fit_predict(
        StackingRegressor(PAIR_OF_NUMBERS, Ridge(), cv=3), W, a.numbers
    ),
    "OneVsRestClassifier": lambda W, a: fit_predict(
        OneVsRestClassifier(clf()), W, a.classes
    ),
    "MultiOutputClassifier": lambda W, a: fit_predict(
        MultiOutputClassifier(clf()), W, a.labels
    ),
    "MultiOutputRegressor": lambda W, a: fit_predict(
        MultiOutputRegressor(reg()), W, a.labels + 0.5
    ),
    "CalibratedClassifierCV": lambda W, a: fit_predict(
        CalibratedClassifierCV(clf(), cv=3), W, a.classes
    ),
    "TunedThresholdClassifierCV": lambda W, a: fit_predict(
        TunedThresholdClassifierCV(clf(), cv=3), W, a.two
    ),
    "FixedThresholdClassifier": lambda W, a: fit_predict(
        FixedThresholdClassifier(clf()), W, a.two
    ),
    "ConfusionMatrixDisplay": lambda W, a: (
        metrics.ConfusionMatrixDisplay.from_estimator(
            clf().fit(W, a.classes), W, a.classes
        )
    ),
    "LearningCurveDisplay": lambda W, a: LearningCurveDisplay.from_estimator(
        clf(), W, a.classes, cv=3, shuffle=True, random_state=0
    ),
    "CalibrationDisplay": lambda W, a: CalibrationDisplay.from_estimator(
        clf().fit(W, a.two), W, a.two
    ),
    "PredictionErrorDisplay": lambda W, a: (
        metrics.PredictionErrorDisplay.from_estimator(
            reg().fit(W, a.numbers), W, a.numbers
        )
    ),
}

REFUSED = {
    "BaggingClassifier": lambda W, a: BaggingClassifier(clf()).fit(W, a.classes),
    "AdaBoostClassifier": lambda W, a: AdaBoostClassifier(clf()).fit(W, a.classes),
    "OneVsOneClassifier": lambda W, a: OneVsOneClassifier(clf()).fit(W, a.classes),
    "ClassifierChain": lambda W, a: ClassifierChain(clf()).fit(W, a.labels),
    "RegressorChain": lambda W, a: RegressorChain(reg()).fit(W, a.labels + 0.5),
    "SelfTrainingClassifier": lambda W, a: SelfTrainingClassifier(clf()).fit(
        W, np.where(np.arange(N) % 4, a.classes, -1)
    ),
    "StandardScaler": lambda W, a: StandardScaler().fit(W),
    "ColumnTransformer": lambda W, a: ColumnTransformer([("a", clf(), [0])]).fit(
        W, a.classes
    ),
    "RFE": lambda W, a: RFE(clf()).fit(W, a.classes),
    "permutation_importance": lambda W, a: permutation_importance(
        clf().fit(W, a.classes), W, a.classes
    ),
    "partial_dependence": lambda W, a: partial_dependence(
        clf().fit(W, a.classes), W, [0]
    ),
    "RandomForestClassifier": lambda W, a: RandomForestClassifier().fit(W, a.classes),
}


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize(
    "kind", ["array", "LowRankWeights", "LayerWeights", "ModelCollection"]
)
def test_taken(name, kind, kinds):
    import matplotlib.pyplot as plt

    TAKEN[name](kinds[kind], Answers)
    plt.close("all")


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, kinds):
    with pytest.raises((ValueError, TypeError), match=r"dim 3|2D|sample_weight"):
        REFUSED[name](kinds["array"], Answers)


def test_stacking_passes_no_weights_through(kinds):
    stacking = StackingClassifier(PAIR, cv=3, passthrough=True)
    with pytest.raises(ValueError, match="dimension"):
        stacking.fit(kinds["array"], Answers.classes)


def test_page_lists_what_is_tested():
    text = PAGE.read_text()
    start, middle = text.index("Tools that take W"), text.index("Tools that do not")
    end = text.index("Through the features")
    taken = text[start:middle].split("They take")[0]
    assert set(re.findall(r"``(\w+)``", taken)) == set(TAKEN)
    assert set(re.findall(r"^``(\w+)``", text[middle:end], re.M)) == set(REFUSED)
