"""What kind of targets these are, and the numbers that a solver fits."""

from collections.abc import Mapping
from numbers import Number

import numpy as np
from scipy.sparse import issparse
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target


def encode_labels(y, name):
    """Find out what kind of labels these are, and number them.

    Parameters
    ----------
    y : array-like of shape (n_models,) or (n_models, n_labels)
    name : str
        Who asks.

    Returns
    -------
    task : str
    classes : ndarray of shape (n_classes,)
    codes : ndarray of int, shape (n_models,) or (n_models, n_labels)
    """
    y = check_labels(y)
    check_classification_targets(y)
    if type_of_target(y, input_name="y") == "multilabel-indicator":
        if not np.isin(y, (0, 1)).all():
            raise ValueError(
                f"y is an indicator matrix of {np.unique(y).tolist()}: expected 0 and "
                "1, such as y > 0 gives."
            )
        codes = (y > 0).astype(np.int64)
        return "multilabel", np.arange(codes.shape[1]), codes
    encoder = LabelEncoder()
    codes = encoder.fit_transform(column_or_1d(y, warn=True))
    n_classes = len(encoder.classes_)
    if n_classes < 2:
        raise ValueError(
            f"{name} needs at least 2 classes in y, got 1 class: "
            f"{encoder.classes_[0]}. Add models that were trained on something else."
        )
    return "binary" if n_classes == 2 else "multiclass", encoder.classes_, codes


def check_labels(y):
    """Validate labels: finite, and all of them text, or all of them numbers.

    Returns
    -------
    ndarray of shape (n_models,) or (n_models, n_labels)
        Objects that are numbers have become such.

    Raises
    ------
    TypeError
        If y mixes types; the message names two models.
    """
    check_is_array(y)
    if issparse(y):
        y = y.toarray()
    if isinstance(y, (list, tuple)) and len({_n_labels(labels) for labels in y}) > 1:
        raise ValueError(
            "y holds lists of labels of different lengths: pass an indicator matrix, "
            "sklearn.preprocessing.MultiLabelBinarizer().fit_transform(y)."
        )
    array = np.asarray(y)
    if array.ndim == 2 and array.shape[1] > 1 and isinstance(array[0, 0], str):
        raise ValueError(
            "y holds lists of labels: pass an indicator matrix, "
            "sklearn.preprocessing.MultiLabelBinarizer().fit_transform(y)."
        )
    if array.ndim and array.dtype == object:
        is_text = [isinstance(label, str) for label in array.ravel()]
        y = array if all(is_text) else _as_numbers(array, is_text)
    return check_array(y, ensure_2d=False, allow_nd=True, dtype=None, input_name="y")


def check_is_array(y):
    """Refuse a name of what is wanted, and what it is in."""
    if isinstance(y, str):
        raise TypeError(
            f"y is {y!r}: expected one label or number for each model, such as "
            f"models.labels({y!r}) reads from the metadata of models in files."
        )
    if isinstance(y, Mapping) and not issparse(y):
        raise TypeError(
            f"y is a {type(y).__name__}: expected one label or number for each model, "
            f"such as y[{next(iter(y), 'y')!r}]."
        )


def _n_labels(labels):
    """Length of a list of labels; None of a single one."""
    return len(labels) if isinstance(labels, (list, tuple, set)) else None


def _as_numbers(y, is_text):
    """Turn objects into numbers; name the first that is of another type."""
    for i, label in enumerate(y.ravel()):
        if not isinstance(label, (Number, np.bool_, str)):
            raise TypeError(
                f"y must hold text or numbers, but it has {repr(label)[:40]} at {i}: "
                "leave out models without a label."
            )
        if is_text[i] is not is_text[0]:
            raise TypeError(
                f"y must hold text only, or numbers only, but it has {y.ravel()[0]!r} "
                f"at 0 and {label!r} at {i}."
            )
    return np.array(y.tolist())


def to_signs(task, codes, n_classes):
    """Targets of -1 and 1, one column a class (one column in all for two)."""
    if task == "binary":
        codes = codes[:, None]
    elif task == "multiclass":
        codes = np.eye(n_classes)[codes]
    return 2.0 * codes - 1.0


def check_numbers(y):
    """Validate real targets.

    Returns
    -------
    ndarray of shape (n_models,) or (n_models, n_targets), float64
    """
    check_is_array(y)
    return check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")


def standardize(y):
    """Scale each target to mean zero and, unless it is constant, unit variance.

    Returns
    -------
    targets : ndarray of shape (n_models, n_targets)
    mean, std : ndarray of shape (n_targets,)
    """
    targets = y.reshape(len(y), -1)
    mean, std = targets.mean(axis=0), targets.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    return (targets - mean) / std, mean, std


def encode_targets(y, name):
    """Turn labels or real numbers into what a ridge is fitted to.

    Returns
    -------
    task : one of ``probing.tasks.TASKS``
    targets : ndarray of shape (n_models, n_targets)
    """
    if y is None:
        raise ValueError(
            f"This {name} estimator requires y to be passed, but it is None."
        )
    y = check_labels(y)
    if type_of_target(y, input_name="y").startswith("continuous"):
        targets, _, _ = standardize(check_numbers(y))
        return "regression", targets
    task, classes, codes = encode_labels(y, name)
    return task, to_signs(task, codes, len(classes))
