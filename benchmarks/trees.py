"""Model Trees: are they found, are models routed, and what do experts gain?

Run ``python benchmarks/trees.py``; `results/trees.txt` holds what it printed. About
five minutes on two cores; jungles are kept in the data home.
"""

import resource
import time
import warnings

import numpy as np
from sklearn.metrics import adjusted_rand_score

from skprobex import LowRankWeights, ProbeXClassifier
from skprobex.datasets import make_digit_jungle
from skprobex.trees import ModelTreeClustering, TreeExperts

SEEDS = range(5)
LAYER = "hidden2.weight"


def show(name, values, digits=4):
    values = np.asarray(values, dtype=float)
    spread = f"{values.mean():.{digits}f} +- {values.std():.{digits}f}"
    print(f"  {name:<54}{spread}   worst {values.min():.{digits}f}", flush=True)


def discover():
    print("Discovery: 4 trees x 150 models known, a fifth tree unknown; 5 seeds")
    rows = {}
    for seed in SEEDS:
        jungle = make_digit_jungle(800, n_trees=5, random_state=seed)
        W, tree = jungle.data, jungle.tree
        rng = np.random.RandomState(seed)
        ranks = np.empty(len(tree), dtype=int)
        for number in range(5):
            own = np.flatnonzero(tree == number)
            ranks[own] = np.arange(len(own))
        known = (tree < 4) & (ranks < 150)
        scale = np.exp(rng.uniform(np.log(0.02), np.log(2), len(W)))
        base = jungle.bases[LAYER][tree]
        rescaled = base + scale[:, None, None].astype(np.float32) * (W - base)
        for name, data in (("", W), (", deltas rescaled 100x", rescaled)):
            found = ModelTreeClustering().fit(data[known])
            add(rows, f"trees found{name}", found.n_trees_)
            add(
                rows,
                f"adjusted Rand index{name}",
                adjusted_rand_score(tree[known], found.labels_),
            )
            # Fit on 450, route the 150 held out.
            order = rng.permutation(np.flatnonzero(known))
            fitted = ModelTreeClustering().fit(data[order[:450]])
            routed = fitted.predict(data[order[450:]])
            name_of = {fitted.labels_[i]: tree[order[i]] for i in range(450)}
            right = [name_of.get(r, -1) for r in routed] == tree[order[450:]]
            add(rows, f"held-out models routed{name}", np.mean(right))
            add(rows, f"known held-out models refused{name}", np.mean(routed == -1))
            fifth = fitted.predict(data[tree == 4][:50])
            add(rows, f"models of a fifth tree refused{name}", np.mean(fifth == -1))
    report(rows)


def harder():
    print("\nHarder: branches (children of one base, each with 10 children), adapters")
    rows = {}
    for seed in SEEDS:
        jungle = make_digit_jungle(124, n_generations=2, random_state=seed)
        leaves = np.flatnonzero(jungle.generation == 2)
        branch = jungle.parents[leaves]
        W, k = jungle.data[leaves], len(np.unique(branch))
        add(rows, "branches: trees found, none asked for", count(W))
        found = ModelTreeClustering(k).fit(W)
        ari = adjusted_rand_score(branch, found.labels_)
        add(rows, "branches: adjusted Rand index, number given", ari)
        known, unknown = branch != branch[0], branch == branch[0]
        fitted = ModelTreeClustering(k - 1).fit(W[known])
        refused = fitted.predict(W[unknown]) == -1
        add(rows, "branches: models of an unseen branch refused", refused.mean())
    for seed in SEEDS:
        jungle = make_digit_jungle(600, n_trees=4, rank=4, random_state=seed)
        for layer in ("hidden1.weight", LAYER):
            W, tree = jungle.layers[layer], jungle.tree
            found = ModelTreeClustering(4).fit(W[:450])
            ari = adjusted_rand_score(tree[:450], found.labels_)
            add(rows, f"adapters, {layer}: Rand index, number given", ari)
            ari = adjusted_rand_score(tree[450:], found.predict(W[450:]))
            add(rows, f"adapters, {layer}: same, of held-out models", ari)
    report(rows)


def experts():
    print("\nExperts: 4 trees, label accuracy on 200 models held out; 5 seeds")
    for n_train in (100, 200, 400):
        rows = {}
        for seed in SEEDS:
            jungle = make_digit_jungle(600, n_trees=4, random_state=seed)
            W, Y, tree = jungle.data, jungle.target, jungle.tree
            train, test = np.arange(n_train), np.arange(400, 600)
            clf = ProbeXClassifier(random_state=0)
            deltas = W - jungle.bases[LAYER][tree]
            methods = {
                "one expert for all models": (clf, W),
                "TreeExperts": (TreeExperts(clf), W),
                "one expert, true base of each subtracted": (
                    ProbeXClassifier(center=None, random_state=0),
                    deltas,
                ),
            }
            for name, (method, X) in methods.items():
                method.fit(X[train], Y[train])
                add(rows, name, np.mean(method.predict(X[test]) == Y[test]))
        print(f" {n_train} labelled models")
        report(rows)


def transfer():
    print("\nNegative transfer: one tree's expert, other trees' models added; 5 seeds")
    for n_own in (25, 50, 100):
        rows = {}
        for seed in SEEDS:
            jungle = make_digit_jungle(600, n_trees=4, random_state=seed)
            W, Y, tree = jungle.data, jungle.target, jungle.tree
            own, others = np.flatnonzero(tree == 0), np.flatnonzero(tree > 0)
            test = own[100:]
            for n_added in (0, 50, 150, 450):
                train = np.concatenate([own[:n_own], others[:n_added]])
                clf = ProbeXClassifier(random_state=0).fit(W[train], Y[train])
                accuracy = np.mean(clf.predict(W[test]) == Y[test])
                add(rows, f"and {n_added} of other trees", accuracy)
        print(f" {n_own} models of the tree")
        report(rows)


def cost():
    print("\nCost, layers of 1024 x 1024")
    rng = np.random.default_rng(0)
    d, rank, n_trees = 1024, 4, 4
    bases = rng.standard_normal((n_trees, d, d), dtype=np.float32)
    dense = np.empty((1000, d, d), dtype=np.float16)
    for i in range(len(dense)):
        moved = 0.1 * rng.standard_normal((d, d), dtype=np.float32)
        dense[i] = bases[i % n_trees] + moved
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = ModelTreeClustering().fit(dense)
    seconds = time.perf_counter() - start
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    ari = adjusted_rand_score(np.arange(1000) % n_trees, found.labels_)
    print(
        f"  1,000 dense layers ({dense.nbytes / 2**30:.1f} GiB): {seconds:.0f} s, "
        f"{more:.1f} GiB more, index {ari:.2f}"
    )
    del dense
    B = rng.standard_normal((10000, d, rank), dtype=np.float32)
    A = rng.standard_normal((10000, rank, d), dtype=np.float32)
    # Each tree reads from a subspace of its own.
    spans = rng.standard_normal((n_trees, d, d // 16), dtype=np.float32)
    for i in range(len(A)):
        mix = rng.standard_normal((rank, d // 16), dtype=np.float32)
        A[i] = mix @ spans[i % n_trees].T
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = ModelTreeClustering(n_trees).fit(LowRankWeights(B, A))
    seconds = time.perf_counter() - start
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    ari = adjusted_rand_score(np.arange(10000) % n_trees, found.labels_)
    print(
        f"  10,000 adapters of rank {rank} ({(B.nbytes + A.nbytes) / 2**30:.1f} GiB): "
        f"{seconds:.0f} s, {max(0, more):.1f} GiB more, index {ari:.2f}"
    )


def count(W):
    return ModelTreeClustering().fit(W).n_trees_


def add(rows, name, value):
    rows.setdefault(name, []).append(value)


def report(rows):
    for name, values in rows.items():
        show(name, values)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    discover()
    harder()
    experts()
    transfer()
    cost()
