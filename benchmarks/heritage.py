"""Heritage: the share of parents found, against the two obvious rules.

Run ``python benchmarks/heritage.py``; `results/heritage.txt` holds what it printed.
Ten seeds of each jungle; the base is among the models unless said otherwise.
"""

import numpy as np

from skprobex.datasets import make_digit_jungle
from skprobex.trees import recover_heritage

SEEDS = range(10)
JUNGLES = {
    "1 base, 4 children, 16 grandchildren": (20, 2, True),
    "1 base, 3 children, and so on for 4 generations": (120, 4, True),
    "3 children, 9, 27; the base is not among them": (39, 3, False),
}


def obvious_rules(W, base):
    """Nearest neighbour; nearest neighbour that is closer to the base.

    The second is told the base; where there is none, the medoid stands for it.
    """
    F = W.reshape(len(W), -1).astype(float)
    D2 = np.square(F[:, None] - F).sum(axis=2)
    np.fill_diagonal(D2, np.inf)
    yield "nearest neighbour", D2.argmin(axis=1)
    if base is None:
        base = int(np.where(np.isinf(D2), 0, D2).sum(axis=1).argmin())
    to_base = np.where(np.arange(len(W)) == base, 0, D2[base])
    closer = to_base[None, :] < to_base[:, None]
    yield "nearest that is closer to the base", np.where(closer, D2, np.inf).argmin(1)


if __name__ == "__main__":
    for name, (n_models, n_generations, with_base) in JUNGLES.items():
        for layer in ("hidden1.weight", "hidden2.weight"):
            shares, n_roots = {}, 0
            for seed in SEEDS:
                jungle = make_digit_jungle(
                    n_models, n_generations=n_generations, random_state=seed
                )
                W, truth = jungle.layers[layer], jungle.parents
                if with_base:
                    W = np.concatenate([jungle.bases[layer], W])
                    truth = np.r_[-1, truth + 1]
                known = truth >= 0
                found = dict(obvious_rules(W, 0 if with_base else None))
                heritage = recover_heritage(W)
                found["recover_heritage"] = heritage.parents_
                n_roots += with_base and heritage.roots_[0] == 0
                for rule, parents in found.items():
                    share = np.mean(parents[known] == truth[known])
                    shares.setdefault(rule, []).append(share)
            print(f"{name}; {layer}")
            if with_base:
                print(f"  roots found: {n_roots} of {len(SEEDS)}")
            for rule, values in shares.items():
                print(
                    f"  {rule:<46}{np.mean(values):.3f} +- {np.std(values):.3f}"
                    f"   worst {np.min(values):.3f}"
                )
            print(flush=True)
