"""y by name: where both y and W know the models' names, they must be the same."""

import numpy as np

from .._warnings import listed


def align_targets(y, W):
    """Bring targets whose index names the models into the order of W.

    A pandas object in another order than the models would be taken by position, and
    every model get the label of another one, without a word.

    Parameters
    ----------
    y : array-like
        Returned as it is, unless it is a Series or DataFrame whose index holds names
        of the models.
    W : weights, ModelCollection, or whatever else an estimator takes
        `names`, if it has some, are the models'.

    Returns
    -------
    array-like

    Raises
    ------
    ValueError
        If the index names some of the models, and not others; or other models of the
        collection that W was selected from.
    """
    names = getattr(W, "names", None)
    if names is None or not (hasattr(y, "index") and hasattr(y, "iloc")):
        return y
    index = list(y.index)
    if index == list(names):
        return y
    relatives = getattr(W, "_all_names", None) or frozenset(names)
    known = relatives.intersection(i for i in index if isinstance(i, str))
    if not known:
        return y  # an index of something else: by position, as an array
    lacking = [name for name in names if name not in known]
    if lacking or len(set(index)) != len(index):
        shown = listed(lacking, 3) or "some names twice"
        raise ValueError(
            f"y has an index of models' names, but of others than W: {shown} "
            f"{'is' if len(lacking) == 1 else 'are'} missing or doubled in it. Align "
            "them before they are divided: y = y.loc[models.names], or y = "
            "models.labels(y)."
        )
    where = {name: i for i, name in enumerate(index)}
    return y.iloc[np.array([where[name] for name in names])]
