"""What a worker does with one layer, and how layers are given to workers."""

import os
import warnings
from dataclasses import dataclass
from functools import partial

import joblib
import numpy as np
from sklearn.base import is_regressor
from sklearn.model_selection import cross_validate
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_memory

from .._base import DEFAULT_ALPHAS
from .._version import __version__
from ..probing.deltas import DecomposedDeltas
from ..probing.device import make_generator, resolve_device
from ..probing.ridge.choice import Block, fit_blocks
from ..probing.ridge.probes import fit_features, list_candidates
from ..targets._labels import check_numbers, encode_task, number_task, standardize
from ..weights import LayerWeights, as_weights, naming_layer

# A lazy layer of at most so many bytes is read once for all folds; of a larger one,
# each fold reads what it needs.
LOAD_BYTES = 2**30
# The quick look: one view of each kind, singly, and fewer probes than a fit has.
QUICK_VIEWS = ("xu", "log_xtx", "log_xxt", "spectrum")
QUICK_PROBES = 32


@dataclass
class CrossValidation:
    """Cross-validate the estimator on a layer.

    Attributes
    ----------
    estimator : estimator
    y : array-like of shape (n_models, ...)
    splits : list of (train, test)
    scorers : dict of str to scorer
    error_score : float or "raise"
    """

    estimator: object
    y: object
    splits: list
    scorers: dict
    error_score: object

    def __call__(self, name, layer):
        """Fit and score every fold.

        Returns
        -------
        results : dict of str to ndarray of shape (n_splits,)
            As `cross_validate` has them.
        n_failed : int
            Folds without a score.
        why : str
            What failed, if anything did.
        """
        if isinstance(layer, LayerWeights) and layer.nbytes <= LOAD_BYTES:
            layer = layer.load()
        if self.error_score == "raise":
            with naming_layer(name):
                return self._score_folds(layer, "raise"), 0, ""
        keys = [f"test_{metric}" for metric in self.scorers]
        n_splits = len(self.splits)
        try:
            results = self._score_folds(layer, np.nan)
            why = "some folds have no score"
        except ValueError as error:
            # All fits failed; the last line is that of a traceback.
            why = str(error).splitlines()[-1]
            results = dict.fromkeys(("fit_time", "score_time"), np.zeros(n_splits))
            results |= dict.fromkeys(keys, np.full(n_splits, np.nan))
        failed = {key: np.isnan(results[key]) for key in keys}
        for key in keys:
            results[key] = np.where(failed[key], self.error_score, results[key])
        return results, int(np.any(list(failed.values()), axis=0).sum()), why

    def _score_folds(self, layer, error_score):
        # A cluster takes folds for tasks of its own, whatever n_jobs says, and would be
        # sent what was read here.
        with joblib.parallel_config("sequential"), warnings.catch_warnings():
            # No news of a layer among many: it was not trained, and scores like chance.
            warnings.filterwarnings("ignore", "All models look alike")
            return cross_validate(
                self.estimator,
                layer,
                self.y,
                cv=self.splits,
                scoring=self.scorers,
                error_score=error_score,
            )


@dataclass
class QuickLook:
    """Rank a layer by leave-one-out of the closed form on its best single view.

    Attributes
    ----------
    task : callable
        From a device to a `Task` on it.
    device : str
    """

    task: object
    device: object

    @classmethod
    def for_estimator(cls, estimator, y):
        """Take device and targets as the estimator would.

        Integers are numbers to a regressor, and labels to all others.
        """
        devices = [
            value
            for name, value in estimator.get_params().items()
            if name.split("__")[-1] == "device"
        ]
        device = devices[0] if devices else "auto"
        if is_regressor(estimator):
            return cls(partial(number_task, standardize(check_numbers(y))[0]), device)
        return cls(encode_task(y, "LayerSearchCV(prefilter=...)"), device)

    def __call__(self, name, layer):
        """Fit the quick look.

        Returns
        -------
        rank : tuple of float
            Score (label accuracy, or R^2) and minus the error, which decides between
            equal scores.
        """
        with naming_layer(name):
            weights = as_weights(layer, min_models=2)
            device, generator = resolve_device(self.device), make_generator(0)
            deltas = DecomposedDeltas.open(
                weights, "auto", device, weights.compute_dtype, generator
            )
            candidates = list_candidates(QUICK_VIEWS, True)
            _, features = fit_features(deltas, candidates, QUICK_PROBES, generator)
        blocks = [Block((0, i), name, [], True, own) for i, own in enumerate(features)]
        task = self.task(device)
        return max(fit_blocks([b], task, DEFAULT_ALPHAS).rank for b in blocks)


@dataclass
class LayerTask:
    """One layer, and what to do with it.

    All in one object, which a cluster can send again: what it spreads by itself is lost
    with the worker that holds it.
    """

    work: object
    name: str
    layer: object


def run_task(task, key):
    """Run a task; `key` is what its result is kept under."""
    return task.work(task.name, task.layer)


def map_layers(work, W, names, *, memory, n_jobs, verbose):
    """Do the same work on several layers, wherever joblib sends it.

    Parameters
    ----------
    work : CrossValidation or QuickLook
    W : ModelCollection or dict of str to weights
    names : list of str
    memory, n_jobs, verbose
        As `LayerSearchCV` has them.

    Returns
    -------
    list
    """
    if isinstance(memory, os.PathLike):
        memory = os.fspath(memory)
    run = check_memory(memory).cache(run_task, ignore=["task"])
    # Keys are made here: workers may see arrays as memory maps.
    common = None if memory is None else joblib.hash((__version__, work))

    def tasks():
        # One after the other: a collection makes handles only when asked.
        for name in names:
            layer = W[name]
            key = None if memory is None else joblib.hash((common, layer))
            yield delayed(run)(LayerTask(work, name, layer), key)

    return list(Parallel(n_jobs=n_jobs, verbose=verbose)(tasks()))
