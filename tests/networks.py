"""Parameters of an estimator with a network for a solver, written side by side."""

from skprobex.solvers import Adam

OF_ADAM = set(Adam().get_params())


def flat(solver="ridge", **parameters):
    """Sort parameters into those of `Adam` and the estimator's; a ridge takes none."""
    of_solver = {k: v for k, v in parameters.items() if k in OF_ADAM}
    own = {k: v for k, v in parameters.items() if k not in OF_ADAM}
    return {**own, "solver": Adam(**of_solver) if solver == "adam" else solver}
