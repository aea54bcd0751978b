"""The rows of largest inner product, and rows that grow."""

import numpy as np

# By how much products in float32 may be wrong: so close to the k-th, all are compared
# again in float64, in which equal rows are equal wherever they stand.
_ROUNDING = 1e-5
# Scores held at a time.
_N_SCORES = 2**24


def nearest(rows, vectors, k, allowed=None):
    """Find the rows of largest inner product with each vector.

    Parameters
    ----------
    rows : ndarray of shape (n_rows, n_dimensions), float32
    vectors : ndarray of shape (n_vectors, n_dimensions), float32
    k : int
        All, if there are fewer.
    allowed : ndarray of bool, shape (n_rows,), optional
        Which rows to look among.

    Returns
    -------
    list of (ndarray, ndarray)
        For each vector positions and products, the largest first; equal ones in the
        order of the rows.
    """
    k = min(k, len(rows) if allowed is None else np.count_nonzero(allowed))
    if k == 0:
        return [(np.empty(0, dtype=np.intp), np.empty(0)) for _ in vectors]
    size = max(1, _N_SCORES // len(rows))
    ranked = []
    for start in range(0, len(vectors), size):
        block = vectors[start : start + size]
        scores = block @ rows.T  # (b, n_rows)
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
        for vector, own in zip(block, scores, strict=True):
            least = np.partition(own, -k)[-k]
            least -= _ROUNDING * max(1.0, abs(least))
            ranked.append(_rank(rows, vector, np.flatnonzero(own >= least), k))
    return ranked


def _rank(rows, vector, positions, k):
    """Order candidates by their exact products, then by position."""
    scores = (rows[positions].astype(np.float64) * vector).sum(axis=1)
    order = np.argsort(-scores, kind="stable")[:k]
    return positions[order], scores[order]


def append_rows(held, n_held, rows):
    """Put rows behind those held, growing by half so that adding stays cheap."""
    n_rows = n_held + len(rows)
    if n_rows > len(held):
        grown = np.empty((max(n_rows, 3 * n_held // 2), held.shape[1]), held.dtype)
        grown[:n_held] = held[:n_held]
        held = grown
    held[n_held:n_rows] = rows
    return held
