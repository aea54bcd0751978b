"""The closed form as a solver, and what experts in closed form publish."""

import numpy as np
from sklearn.base import BaseEstimator

from .._registry import saved
from ..probing.device import to_arrays
from ..probing.ridge.expert import fit_ridge
from ..weights import ONLY


@saved
class Ridge(BaseEstimator):
    """Closed form: HOSVD probes and a ridge, all choices by exact leave-one-out.

    What ``solver="ridge"`` stands for. Penalties are the estimator's `alphas`.

    See Also
    --------
    Adam : The papers' networks.

    Examples
    --------
    >>> from skprobex import ProbeXClassifier
    >>> from skprobex.solvers import Ridge
    >>> ProbeXClassifier(solver=Ridge())
    ProbeXClassifier(solver=Ridge())
    """

    _parameter_constraints: dict = {}

    def _reads_alphas(self, views, normalize):
        return True

    def _continues(self, before):
        """Whether a fit goes on from the expert of the fit before."""
        return False

    def _solve(self, problem, progress, *, stratify=None, before=None):
        """Fit an expert.

        Parameters
        ----------
        problem : Problem
        progress : callable
            From a total and a unit to a progress bar.
        stratify : ndarray or None
            Labels that models set aside should represent.
        before : expert or None
            That of the fit before, where `_continues` says so.

        Returns
        -------
        expert
            Holding CPU arrays.
        """
        with progress(problem.n_decomposed, "model") as bar:
            return to_arrays(fit_ridge(problem, bar.update))

    def _attributes(self, expert):
        """What an estimator publishes of the expert, by name."""
        return closed_form_attributes(expert) | {
            "coef_": expert.coef,
            "intercept_": expert.intercept,
            "n_iter_": 1,
        }


def closed_form_attributes(expert):
    """Choices that any closed-form expert publishes, by layer where W holds several."""
    layers = {layer.name: layer for layer in expert.layers}

    def each(get):
        found = {name: get(layer) for name, layer in layers.items()}
        return found[ONLY] if ONLY in found else found

    # One number where all targets share it.
    is_shared = len(np.unique(expert.alpha)) == 1
    attributes = {
        "center_": each(lambda layer: layer.center),
        "views_": each(lambda layer: tuple(view.name for view in layer.views)),
        "normalize_": each(lambda layer: layer.normalize),
        "probes_": each(_probes_of),
        "alpha_": float(expert.alpha[0]) if is_shared else expert.alpha,
    }
    scores = expert.view_scores
    if ONLY in layers:
        return attributes | {"view_scores_": scores.get(ONLY, {})}
    return attributes | {
        "view_scores_": scores,
        "layers_": list(layers),
        "layer_scores_": {name: max(own.values()) for name, own in scores.items()},
    }


def _probes_of(layer):
    """Probes of each matrix view: U and V."""
    views = [view for view in layer.views if view.left is not None]
    return {view.name: (view.left, view.right) for view in views}
