"""What is known of models: labels that are missing, mixed, or in another order."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from sklearn.model_selection import cross_val_score

from skprobex import (
    LayerSearchCV,
    ProbeXClassifier,
    ProbeXRegressor,
    open_models,
    save_models,
)
from skprobex.datasets import make_model_tree
from skprobex.weights._collection import ModelCollection
from skprobex.weights._metadata import parse_value

NAMES = [f"run_{i}" for i in range(6)]


@pytest.fixture
def models():
    return ModelCollection.from_layers({"w": np.zeros((6, 2, 2))}, NAMES)


def labels(*values, missing="raise"):
    metadata = [{} if value is KeyError else {"k": value} for value in values]
    W = np.zeros((len(values), 2, 2))
    collection = ModelCollection.from_layers({"a": W}, metadata=metadata)
    return collection.labels("k", missing=missing)


# ------------------------------------------------------------------- missing, mixed


@pytest.mark.parametrize(
    "value", [None, KeyError, float("nan"), pd.NA, pd.NaT, "", "null", "nan", "NaN"]
)
def test_missing_values_are_named_or_dropped(value):
    with pytest.raises(ValueError, match=r"1 of 3 models have no metadata 'k'.*_1"):
        labels(0.5, value, "2")
    assert labels(0.5, value, "2", missing="drop").tolist() == [0.5, 2]
    assert labels("a", value, "b", missing="drop").tolist() == ["a", "b"]


def test_pythons_none_is_a_word_among_words_only():
    assert labels("None", "a").tolist() == ["None", "a"]
    with pytest.raises(ValueError, match="no metadata 'k': 'model_0'"):
        labels("None", "1")
    with pytest.raises(ValueError, match="missing='x'"):
        labels(1, missing="x")


def test_what_was_saved_as_none_is_missing(tmp_path):
    metadata = [{"accuracy": value} for value in (0.25, None, 0.75)]
    save_models(tmp_path, {"w": np.ones((3, 2, 2))}, metadata, ["a", "b", "c"])
    models = open_models(tmp_path)
    with pytest.raises(ValueError, match="'b'"):
        models.labels("accuracy")
    kept = models.select(labelled="accuracy")
    assert kept.names == ["a", "c"]
    assert kept.labels("accuracy").tolist() == [0.25, 0.75]
    assert models.labels("accuracy", missing="drop").tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    "values, match",
    [
        ((["a"], "b"), "a list at 'model_0', text at 'model_1'"),
        (("['a']", "b"), "a list at 'model_0', text at 'model_1'"),
        ((["a"], 3), "a list at 'model_0', a number at 'model_1'"),
        ((1, "a"), "a number at 'model_0', text at 'model_1'"),
        ((True, 2), "a number at 'model_1', a truth value at 'model_0'"),
        (({"a": 1}, 2), "text at 'model_0'"),
    ],
)
def test_mixed_forms_are_an_error(values, match):
    with pytest.raises(ValueError, match=f"several forms: .*{match}"):
        labels(*values)


@pytest.mark.parametrize(
    "text",
    ["9" * 30, "-" + "9" * 30, "1e999", "1_000", "007", "0x10", "1j", "9" * 5000],
)
def test_digits_that_are_no_number_of_an_array_are_text(text):
    assert parse_value(text) == text
    assert labels(text, "1").tolist() == [text, "1"]


@pytest.mark.parametrize(
    "text, value",
    [("0", 0), ("-3", -3), ("+4", 4), ("1.5e-3", 0.0015), (".5", 0.5), ("2.", 2.0)]
    + [(str(2**63 - 1), 2**63 - 1), ("1e308", 1e308), (" 7 ", 7), ("True", True)],
)
def test_numbers_are_numbers(text, value):
    assert parse_value(text) == value and type(parse_value(text)) is type(value)


def test_integers_too_large_for_an_array_are_text():
    assert labels(2**80, 2**81).tolist() == [str(2**80), str(2**81)]


def test_long_texts_are_not_parsed():
    text = "[" + "a," * 500_000 + "]"
    assert parse_value(text) is text


# -------------------------------------------------------------------------- by name


def test_labels_from_a_series_are_aligned_by_name(models):
    series = pd.Series(range(6), index=NAMES, name="task")
    shuffled = series.sample(frac=1, random_state=0)
    assert shuffled.index.tolist() != NAMES
    assert models.labels(shuffled).tolist() == list(range(6))
    more = pd.concat([shuffled, pd.Series([9], ["other"])])
    assert models.labels(more).tolist() == list(range(6))
    assert models.labels(dict(more)).tolist() == list(range(6))
    words = pd.Series(list("abcabc"), index=NAMES, dtype="category")
    assert models.labels(words[::-1]).tolist() == list("abcabc")
    files = pd.Series(range(6), [f"{name}.safetensors" for name in NAMES])
    assert models.labels(files[::-1]).tolist() == list(range(6))
    lists = pd.Series([["x"], ["x", "y"]] * 3, index=NAMES)
    assert models.labels(lists[::-1]).y.tolist() == [[1, 0], [1, 1]] * 3


def test_labels_from_a_table_that_lacks_models(models):
    series = pd.Series([1.0, np.nan, 3.0], index=["run_5", "run_1", "run_0"])
    with pytest.raises(ValueError, match="4 of 6 models have no metadata 'labels'"):
        models.labels(series)
    assert models.labels(series, missing="drop").tolist() == [3, 1]
    assert models.select(labelled=series).names == ["run_0", "run_5"]
    with pytest.raises(ValueError, match="'run_1' more than once"):
        models.labels(pd.Series([1, 2], index=["run_1", "run_1"]))
    with pytest.raises(ValueError, match=r"no row named .*set_index"):
        models.labels(pd.Series(range(6)))
    with pytest.raises(TypeError, match="got list"):
        models.labels([1, 2, 3, 4, 5, 6])


def test_several_columns(models):
    frame = pd.DataFrame({"cat": [True, False] * 3, "dog": [True] * 6}, index=NAMES)
    assert models.labels(frame[::-1]).tolist() == [[1, 1], [0, 1]] * 3
    assert models.labels(frame[["cat"]][::-1]).tolist() == [True, False] * 3
    numbers = pd.DataFrame({"a": range(6), "b": np.arange(6) / 2}, index=NAMES)
    np.testing.assert_array_equal(models.labels(numbers[::-1]), numbers)
    with pytest.raises(ValueError, match="text and of numbers"):
        models.labels(numbers.assign(a=list("abcdef")))
    numbers.iloc[2, 0] = np.nan
    with pytest.raises(ValueError, match="no metadata 'a': 'run_2'"):
        models.labels(numbers)
    assert models.labels(numbers, missing="drop").shape == (5, 2)


@pytest.mark.parametrize("kind", ["index", "column", "csv", "dict"])
def test_metadata_from_a_table(models, kind, tmp_path):
    frame = pd.DataFrame({"task": list("abcdef"), "lr": range(6)}, index=NAMES)[::-1]
    frame = pd.concat([frame, pd.DataFrame({"task": ["z"]}, index=["other"])])
    frame.loc["run_2", "task"] = None
    models.metadata = [{"base_model": "gpt2"} for _ in NAMES]
    if kind == "index":
        models.metadata = frame
    elif kind == "column":
        models.metadata = frame.rename_axis("run").reset_index()
    elif kind == "csv":
        frame.to_csv(tmp_path / "runs.csv", index_label="run")
        models.metadata = tmp_path / "runs.csv"
    else:
        models.metadata = frame.T.to_dict()
    assert models.labels("lr").tolist() == list(range(6))
    assert models.labels("task", missing="drop").tolist() == list("abdef")
    # What was known before stays, such as the base that groups go by.
    assert models.labels("base_model").tolist() == ["gpt2"] * 6
    assert models.to_frame()["lr"].astype(float).tolist() == list(range(6))


def test_metadata_as_a_list(models):
    models.metadata = [{"i": i} for i in range(6)]
    assert models.labels("i").tolist() == list(range(6))
    with pytest.raises(ValueError, match="metadata has 2 entries for 6 models"):
        models.metadata = [{}, {}]
    with pytest.raises(ValueError, match="one dict per model"):
        models.metadata = list("abcdef")
    records = [{"run": name, "i": i} for i, name in enumerate(NAMES[::-1])]
    with pytest.raises(ValueError, match=r"another order than the models: by 'run'"):
        models.metadata = records
    with pytest.raises(ValueError, match="no row named"):
        models.metadata = pd.DataFrame({"task": range(6)})
    assert models.labels("i").tolist() == list(range(6))
    models.metadata = records[::-1]
    assert models.labels("run").tolist() == NAMES


def test_selections_do_not_share_what_is_assigned(models):
    models.metadata = [{"i": i} for i in range(6)]
    part = models[[3, 4]]
    part.metadata = pd.DataFrame({"i": [30, 40]}, index=["run_3", "run_4"])
    assert part.labels("i").tolist() == [30, 40]
    assert models.labels("i").tolist() == list(range(6))


# ------------------------------------------------------------------- y by name in fit


@pytest.fixture
def tree():
    W, y = make_model_tree(60, (12, 8), view="xtxu", random_state=0, return_X_y=True)
    names = [f"run_{i:02d}" for i in range(60)]
    models = ModelCollection.from_layers({"w": W, "v": W[:, ::-1]}, names)
    return models, pd.Series(y, index=names)


def test_a_series_in_another_order_is_aligned(tree):
    models, y = tree
    shuffled = y.sample(frac=1, random_state=1)
    expected = ProbeXClassifier(views=("xtxu",)).fit(models, y.to_numpy())
    fitted = ProbeXClassifier(views=("xtxu",)).fit(models, shuffled)
    np.testing.assert_array_equal(
        fitted.predict_proba(models), expected.predict_proba(models)
    )
    regressor = ProbeXRegressor(views=("xtxu",)).fit(models, y=shuffled.astype(float))
    same = ProbeXRegressor(views=("xtxu",)).fit(models, y.to_numpy(float))
    np.testing.assert_array_equal(regressor.predict(models), same.predict(models))
    search = LayerSearchCV(ProbeXClassifier(views=("xtxu",)), cv=2)
    scores = search.fit(models, shuffled).best_score_
    assert scores == search.fit(models, y.to_numpy()).best_score_
    # Rows of other models are left out.
    part = ProbeXClassifier(views=("xtxu",)).fit(models[:40], shuffled)
    same = ProbeXClassifier(views=("xtxu",)).fit(models[:40], y.to_numpy()[:40])
    np.testing.assert_array_equal(
        part.predict_proba(models), same.predict_proba(models)
    )


@pytest.mark.parametrize("order", ["shuffled", "reversed"])
def test_folds_of_other_models_than_w_are_refused(tree, order):
    models, y = tree
    classifier = ProbeXClassifier(views=("xtxu",))
    assert cross_val_score(classifier, models, y, cv=2).mean() > 0.9
    y = y.sample(frac=1, random_state=1) if order == "shuffled" else y[::-1]
    with pytest.raises(
        ValueError, match=r"names, but of others than W.*models\.labels"
    ):
        cross_val_score(classifier, models, y, cv=2, error_score="raise")


def test_an_index_of_something_else_goes_by_position(tree):
    models, y = tree
    expected = ProbeXClassifier(views=("xtxu",)).fit(models, y.to_numpy())
    for index in (range(100, 160), [f"x{i}" for i in range(60)]):
        fitted = ProbeXClassifier(views=("xtxu",))
        fitted.fit(models, pd.Series(y.to_numpy(), index=index))
        np.testing.assert_array_equal(
            fitted.predict_proba(models), expected.predict_proba(models)
        )


def test_labels_of_lazy_layers_are_aligned_too(tmp_path):
    W, y = make_model_tree(40, (12, 8), view="xtxu", random_state=0, return_X_y=True)
    names = [f"run_{i:02d}" for i in range(40)]
    save_models(tmp_path, {"w": W}, names=names)
    layer = open_models(tmp_path)["w"]
    y = pd.Series(y, index=names)
    fitted = ProbeXClassifier(views=("xtxu",)).fit(layer, y[::-1])
    expected = ProbeXClassifier(views=("xtxu",)).fit(layer, y.to_numpy())
    np.testing.assert_array_equal(fitted.predict(layer), expected.predict(layer))


def test_model_cards_and_tables_meet(tmp_path):
    """Metadata of files, of a card, and of a table, under one roof."""
    save_file({"w": torch.ones(2, 2)}, tmp_path / "a.safetensors", {"seed": "3"})
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Hello\n")
    models = open_models(tmp_path)
    models.metadata = pd.DataFrame({"task": ["birds"]}, index=["a"])
    assert models.metadata == [{"license": "mit", "seed": "3", "task": "birds"}]
    assert json.loads(json.dumps(models.metadata)) == models.metadata
