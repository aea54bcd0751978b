"""The papers' networks as they were published: all parameters of an estimator."""

from typing import Any

from ._adam import Adam


def probex(**changes: Any) -> dict[str, Any]:
    """Set all parameters of an estimator as ProbeX, CVPR 2025, was published [1]_.

    Parameters
    ----------
    **changes
        Parameters of `Adam` that differ from the published ones, such as ``max_iter``.

    Returns
    -------
    dict
        Keyword arguments of `ProbeXClassifier`, `ProbeXRegressor` or `ProbeXEmbedder`:
        views, centre, normalising, sizes, and the solver with its schedule of 500
        epochs.

    References
    ----------
    .. [1] E. Horwitz, B. Cavia, J. Kahana, Y. Hoshen, "Learning on Model Weights using
       Tree Experts", CVPR 2025, arXiv 2410.13569.

    Examples
    --------
    >>> from skprobex import ProbeXClassifier
    >>> from skprobex.solvers import probex
    >>> clf = ProbeXClassifier(**probex(), random_state=0)
    >>> clf.views, clf.n_probes, clf.solver.max_iter
    (('xu',), 128, 500)
    """
    schedule = {"learning_rate_init": 1e-3, "max_iter": 500, "standardize": False}
    return _published(("xu",), schedule | changes)


def mvprobe(**changes: Any) -> dict[str, Any]:
    """Set all parameters of an estimator as MVProbe, ICML 2026, was published [1]_.

    Parameters
    ----------
    **changes
        Parameters of `Adam` that differ from the published ones, such as ``max_iter``.

    Returns
    -------
    dict
        As `probex` has them, with four views, standardised, and 3000 epochs.

    References
    ----------
    .. [1] "What Linear Probes Miss: Multi-View Probing for Weight-Space Learning", ICML
       2026, arXiv 2605.23410.

    Examples
    --------
    >>> from skprobex import ProbeXClassifier
    >>> from skprobex.solvers import mvprobe
    >>> clf = ProbeXClassifier(**mvprobe(max_iter=60), random_state=0)
    >>> clf.views, clf.solver.standardize, clf.solver.max_iter
    (('xu', 'xtu', 'xxtu', 'xtxu'), True, 60)
    """
    schedule = {"learning_rate_init": 3e-4, "max_iter": 3000, "standardize": True}
    return _published(("xu", "xtu", "xxtu", "xtxu"), schedule | changes)


def _published(views, schedule):
    # Every epoch is run, whatever the loss does.
    every_epoch = {"tol": 0.0, "n_iter_no_change": schedule["max_iter"]}
    sizes = {"projection_dim": 128, "batch_size": 128, "alpha": 1e-5}
    fixed = {"learn_temperature": False}
    return {
        "views": views,
        "center": None,
        "normalize": False,
        "n_probes": 128,
        "n_components": 512,
        "solver": Adam(**sizes | fixed | every_epoch | schedule),
    }
