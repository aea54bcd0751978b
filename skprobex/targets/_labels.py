"""What kind of targets these are, and the numbers that a solver fits."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from numbers import Number

import numpy as np
import torch
from scipy.sparse import issparse
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from ..probing.device import as_tensor, solver_device
from ..probing.tasks import Classes, Labels, Numbers
from ._calibration import fit_sigmoids, fit_temperature


class Coding(ABC):
    """How labels are numbers to a solver, and decisions labels again.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)

    Attributes
    ----------
    y_type : str
        What scikit-learn's ``type_of_target`` calls such y.
    """

    y_type: str
    task_class: type = Labels

    def __init__(self, classes):
        self.classes = classes

    @abstractmethod
    def signs(self, codes):
        """Targets of -1 and 1 of numbered labels, ``(n_models, n_outputs)``."""

    @abstractmethod
    def decide(self, decisions):
        """Labels that decision values stand for."""

    @abstractmethod
    def log_probabilities(self, decisions):
        """Logarithms of probabilities of log-odds, a column for each class or label."""

    @abstractmethod
    def probabilities(self, decisions):
        """Probabilities that log-odds stand for, a column for each class or label."""

    def squeeze(self, outputs):
        """Decision values as scikit-learn has them."""
        return outputs

    def calibrate(self, decisions, targets, sample_weight):
        """Slope and offset that turn decision values into log-odds."""
        return fit_sigmoids(decisions, targets, sample_weight)

    def name_codes(self, codes):
        """Labels of numbers, as class weights are looked up."""
        return self.classes[codes]

    def stratify(self, codes):
        """What early stopping splits evenly, or None."""
        return codes

    def task(self, targets, weight, device):
        """Make the core's task, in float64 on a device that has it."""
        return self.task_class(
            _as_double(targets, device),
            None if weight is None else _as_double(weight, device),
        )


class TwoClasses(Coding):
    """One column: positive means the second class."""

    y_type = "binary"

    def signs(self, codes):
        return 2.0 * codes[:, None] - 1.0

    def squeeze(self, outputs):
        return outputs[:, 0]

    def decide(self, decisions):
        return self.classes[(decisions > 0).astype(np.int64)]

    def log_probabilities(self, decisions):
        return np.column_stack([log_expit(-decisions), log_expit(decisions)])

    def probabilities(self, decisions):
        return np.column_stack([expit(-decisions), expit(decisions)])


class ManyClasses(Coding):
    """A column for each class: the largest decides."""

    y_type = "multiclass"
    task_class = Classes

    def signs(self, codes):
        return 2.0 * np.eye(len(self.classes))[codes] - 1.0

    def decide(self, decisions):
        return self.classes[decisions.argmax(axis=1)]

    def log_probabilities(self, decisions):
        return log_softmax(decisions, axis=1)

    def probabilities(self, decisions):
        return softmax(decisions, axis=1)

    def calibrate(self, decisions, targets, sample_weight):
        slope = fit_temperature(decisions, targets.argmax(axis=1), sample_weight)
        n_classes = len(self.classes)
        return np.full(n_classes, slope), np.zeros(n_classes)


class LabelSets(Coding):
    """A column for each label, decided by itself."""

    y_type = "multilabel-indicator"

    def signs(self, codes):
        return 2.0 * codes - 1.0

    def decide(self, decisions):
        return (decisions > 0).astype(np.int64)

    def log_probabilities(self, decisions):
        return log_expit(decisions)

    def probabilities(self, decisions):
        return expit(decisions)

    def name_codes(self, codes):
        return codes

    def stratify(self, codes):
        return None


CODINGS = {coding.y_type: coding for coding in (TwoClasses, ManyClasses, LabelSets)}


def encode_labels(y, name):
    """Find out what kind of labels these are, and number them.

    Parameters
    ----------
    y : array-like of shape (n_models,) or (n_models, n_labels)
    name : str
        Who asks.

    Returns
    -------
    coding : Coding
    codes : ndarray of int, shape (n_models,) or (n_models, n_labels)
    """
    y = check_labels(y)
    check_classification_targets(y)
    if type_of_target(y, input_name="y") == LabelSets.y_type:
        if not np.isin(y, (0, 1)).all():
            raise ValueError(
                f"y is an indicator matrix of {np.unique(y).tolist()}: expected 0 and "
                "1, such as y > 0 gives."
            )
        codes = (y > 0).astype(np.int64)
        return LabelSets(np.arange(codes.shape[1])), codes
    encoder = LabelEncoder()
    codes = encoder.fit_transform(column_or_1d(y, warn=True))
    classes = encoder.classes_
    if len(classes) < 2:
        raise ValueError(
            f"{name} needs at least 2 classes in y, got 1 class: {classes[0]}. Add "
            "models that were trained on something else."
        )
    return (TwoClasses if len(classes) == 2 else ManyClasses)(classes), codes


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
    """Refuse a name of what is wanted, or a container of it, in place of y itself."""
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


def number_task(targets, device):
    """Make the core's task of standardised real targets, ``(n_models, n_targets)``."""
    return Numbers(_as_double(targets, device))


def encode_task(y, name):
    """Turn labels or real numbers into what a ridge is fitted to.

    Parameters
    ----------
    y : array-like of shape (n_models,) or (n_models, n_outputs)
    name : str
        Who asks.

    Returns
    -------
    callable
        From a device to the `Task` on it; it holds arrays, which a hash can be made of.
    """
    if y is None:
        raise ValueError(
            f"This {name} estimator requires y to be passed, but it is None."
        )
    y = check_labels(y)
    if type_of_target(y, input_name="y").startswith("continuous"):
        return partial(number_task, standardize(check_numbers(y))[0])
    coding, codes = encode_labels(y, name)
    return partial(coding.task, coding.signs(codes), None)


def _as_double(array, device):
    return as_tensor(array, torch.float64, solver_device(device))
