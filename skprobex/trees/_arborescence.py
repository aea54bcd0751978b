"""The spanning arborescence of least cost, by Edmonds' contraction of cycles."""

import numpy as np


def minimum_arborescence(cost, root):
    """Choose a parent for every node so that all descend from the root.

    Every node takes its cheapest parent. Where that closes cycles, each cycle becomes
    one node, entering which costs what it adds to the cycle's own edges; the smaller
    problem is solved likewise, and the edge that enters a cycle replaces one of its.

    Parameters
    ----------
    cost : ndarray of shape (n, n)
        ``cost[p, c]`` of p as the parent of c; infinite where that cannot be.
    root : int

    Returns
    -------
    ndarray of shape (n,)
        Parents; -1 for the root.

    References
    ----------
    .. [1] J. Edmonds, "Optimum branchings", Journal of Research of the National Bureau
       of Standards 71B, 1967.
    """
    cost = np.array(cost, dtype=np.float64)
    n = len(cost)
    np.fill_diagonal(cost, np.inf)
    cost[:, root] = np.inf
    parents = cost.argmin(axis=0)
    parents[root] = -1
    cycle_of = _find_cycles(parents)
    n_cycles = cycle_of.max() + 1
    if n_cycles == 0:
        return parents

    # Numbers in the contracted graph: nodes outside of cycles, then the cycles.
    outside = np.flatnonzero(cycle_of < 0)
    number = np.where(cycle_of < 0, 0, len(outside) + cycle_of)
    number[outside] = np.arange(len(outside))
    reduced = cost.copy()
    inside = np.flatnonzero(cycle_of >= 0)
    reduced[:, inside] -= cost[parents[inside], inside]

    m = len(outside) + n_cycles
    members = [np.array([i]) for i in outside]
    members += [np.flatnonzero(cycle_of == k) for k in range(n_cycles)]
    # Cheapest edge between any two, and the nodes it joins.
    heads = np.empty((n, m), dtype=np.int64)
    into = np.empty((n, m))
    for b, nodes in enumerate(members):
        best = reduced[:, nodes].argmin(axis=1)
        heads[:, b] = nodes[best]
        into[:, b] = reduced[np.arange(n), heads[:, b]]
    tails = np.empty((m, m), dtype=np.int64)
    for a, nodes in enumerate(members):
        tails[a] = nodes[into[nodes].argmin(axis=0)]
    contracted = into[tails, np.arange(m)]
    above = minimum_arborescence(contracted, number[root])
    for b, a in enumerate(above):
        if a >= 0:
            tail = tails[a, b]
            parents[heads[tail, b]] = tail
    return parents


def _find_cycles(parents):
    """Number the cycle that each node is on, -1 for none."""
    cycle_of = np.full(len(parents), -1)
    seen = np.full(len(parents), -1)
    n_cycles = 0
    for start in range(len(parents)):
        node = start
        while node >= 0 and seen[node] < 0:
            seen[node] = start
            node = parents[node]
        if node >= 0 and seen[node] == start:
            # The way from here came back to where it had been.
            while cycle_of[node] < 0:
                cycle_of[node] = n_cycles
                node = parents[node]
            n_cycles += 1
    return cycle_of
