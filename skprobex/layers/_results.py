"""What a search has found: a table, and a warning where fits failed."""

import numpy as np
from sklearn.exceptions import FitFailedWarning

from .._warnings import warn


def tell_failures(names, found, n_splits):
    """Warn of layers on which fits failed; raise if all fits of all layers did."""
    failed = [
        (name, why)
        for name, (_, n_failed, why) in zip(names, found, strict=True)
        if n_failed
    ]
    if not failed:
        return
    name, why = failed[0]
    message = (
        f"Fits or scores failed on {len(failed)} of {len(names)} layers, the first of "
        f"them {name!r}: {why}"
    )
    if all(n_failed == n_splits for _, n_failed, _ in found):
        raise ValueError(f"{message} error_score='raise' shows where.")
    warn(message, FitFailedWarning)


def tabulate(names, results, scorers):
    """Arrange the folds' results as `GridSearchCV` does."""
    table = {}
    for key in ("fit_time", "score_time"):
        times = np.array([result[key] for result in results])  # (n_layers, n_splits)
        table[f"mean_{key}"], table[f"std_{key}"] = (
            times.mean(axis=1),
            times.std(axis=1),
        )
    table["param_layer"] = np.ma.array(names, dtype=object, mask=False)
    table["params"] = [{"layer": name} for name in names]
    for metric in scorers:
        scores = np.array([result[f"test_{metric}"] for result in results])
        for i, column in enumerate(scores.T):
            table[f"split{i}_test_{metric}"] = column
        means = scores.mean(axis=1)
        table[f"mean_test_{metric}"] = means
        table[f"std_test_{metric}"] = scores.std(axis=1)
        # Layers without a score come last.
        known = np.where(np.isnan(means), -np.inf, means)
        from scipy.stats import rankdata

        ranks = rankdata(-known, method="min").astype(np.int32)
        table[f"rank_test_{metric}"] = ranks
    return table
