"""Who descends from whom: the spanning tree, the rule, and the picture."""

import itertools

import numpy as np
import pytest

from skprobex import ModelCollection
from skprobex.datasets import make_digit_jungle
from skprobex.inspection import ModelTreeDisplay
from skprobex.inspection._trees import lay_out
from skprobex.trees import recover_heritage
from skprobex.trees._heritage import find_parents


def all_trees(n, root):
    """Every way to give parents so that all descend from the root."""
    for parents in itertools.product(range(n), repeat=n - 1):
        parents = list(parents)
        parents.insert(root, -1)
        for node in range(n):
            steps = 0
            while node != root and steps < n:
                node, steps = parents[node], steps + 1
            if node != root:
                break
        else:
            yield parents


def total(D2, parents):
    return sum(D2[p, c] for c, p in enumerate(parents) if p >= 0)


def draw_distances(kind, n, rng):
    F = rng.standard_normal((n, 3))
    if kind == "twins":
        F = F[rng.integers(n, size=n)]
    if kind == "ties":
        F = rng.integers(0, 2, (n, 3)).astype(float)
    if kind == "small":  # far below what SciPy takes for zero in dense graphs
        F *= 1e-9
    return np.square(F[:, None] - F).sum(axis=2)


KINDS = ["any", "twins", "ties", "small"]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_parents_are_the_cheapest_of_all_trees(n, kind):
    rng = np.random.default_rng(n)
    for _ in range(10):
        D2 = draw_distances(kind, n, rng)
        root = int(rng.integers(n))
        found, _ = find_parents(D2, root)
        trees = list(all_trees(n, root))
        assert found.tolist() in trees
        best = min(total(D2, parents) for parents in trees)
        assert total(D2, found) == pytest.approx(best, rel=1e-12, abs=0)


@pytest.mark.parametrize("kind", KINDS)
def test_parents_and_scores_of_many_models(kind):
    """Against a tree grown from the root by the shortest edge, model by model."""
    rng = np.random.default_rng(0)
    D2 = draw_distances(kind, 60, rng)
    parents, left = np.full(60, -1), set(range(60)) - {7}
    while left:
        edges = [(D2[p, c], p, c) for p in set(range(60)) - left for c in left]
        _, parent, child = min(edges)
        parents[child] = parent
        left.remove(child)
    found, scores = find_parents(D2, 7)
    assert total(D2, found) == pytest.approx(total(D2, parents), rel=1e-12, abs=0)
    if kind in ("any", "small"):  # no two are equal: there is one such tree
        np.testing.assert_array_equal(found, parents)

    def descends(model, other):
        while model >= 0 and model != other:
            model = found[model]
        return model == other

    for child, parent in enumerate(found):
        if parent < 0:
            assert np.isnan(scores[child])
            continue
        others = [
            D2[p, child] for p in range(60) if p != parent and not descends(p, child)
        ]
        next_best = min(others, default=np.inf)
        expected = 1 - D2[parent, child] / next_best if next_best > 0 else 0
        assert scores[child] == pytest.approx(max(expected, 0), rel=1e-12)


def with_base(jungle, layer="hidden2.weight"):
    """Weights with the base before them, and everyone's parent."""
    W = np.concatenate([jungle.bases[layer], jungle.layers[layer]])
    return W, np.r_[-1, jungle.parents + 1]


@pytest.fixture(scope="module")
def jungle():
    return make_digit_jungle(20, n_generations=2, cache=False)


def test_three_generations(jungle):
    W, parents = with_base(jungle)
    heritage = recover_heritage(W)
    assert heritage.roots_.tolist() == [0]
    assert np.mean(heritage.parents_ == parents) > 0.95
    np.testing.assert_array_equal(heritage.generation_[1:], jungle.generation)
    assert np.isnan(heritage.scores_[0])
    assert (heritage.scores_[1:] > 0).all() and (heritage.scores_[1:] <= 1).all()
    flat = W.reshape(21, -1).astype(float)
    np.testing.assert_allclose(heritage.statistic_, np.linalg.norm(flat, axis=1))


def test_order_does_not_matter(jungle):
    W, parents = with_base(jungle)
    order = np.random.default_rng(0).permutation(21)
    heritage = recover_heritage(W[order])
    named = np.where(heritage.parents_ >= 0, order[heritage.parents_], -1)
    np.testing.assert_array_equal(named, parents[order])


def test_roots_and_statistics_can_be_given(jungle):
    W, _ = with_base(jungle)
    assert recover_heritage(W, roots=4).roots_.tolist() == [4]
    dates = np.arange(21)[::-1]
    assert recover_heritage(W, statistic=dates).roots_.tolist() == [20]
    by_generation = recover_heritage(W, statistic=np.r_[0, jungle.generation])
    np.testing.assert_array_equal(by_generation.parents_, recover_heritage(W).parents_)


def test_several_trees():
    jungle = make_digit_jungle(24, n_trees=2, n_generations=2, cache=False)
    W = np.concatenate([jungle.bases["hidden2.weight"], jungle.data])
    parents = np.where(jungle.parents >= 0, jungle.parents + 2, jungle.tree)
    for n_trees in (2, None):
        heritage = recover_heritage(W, n_trees)
        assert sorted(heritage.roots_.tolist()) == [0, 1]
        np.testing.assert_array_equal(heritage.parents_[2:], parents)
    assert len(recover_heritage(W, roots=[0, 1], n_trees=2).roots_) == 2
    with pytest.raises(ValueError, match="Models 0 and 1 are in one Model Tree"):
        recover_heritage(W, roots=[0, 1])


def test_shapes_may_differ():
    rng = np.random.default_rng(0)
    models = [np.eye(4), np.eye(4) + 0.1 * rng.random((4, 4)), np.ones((2, 3))]
    heritage = recover_heritage(models, n_trees=2)
    assert heritage.parents_.tolist() == [-1, 0, -1]
    with pytest.raises(ValueError, match="2 architectures"):
        recover_heritage(models)


def test_twins_and_lone_models():
    twins = recover_heritage(np.ones((3, 4, 4)))
    assert (twins.parents_ < 0).sum() == 1
    assert (twins.scores_[twins.parents_ >= 0] == 0).all()
    lone = recover_heritage([np.ones((4, 4))])
    assert lone.parents_.tolist() == [-1] and lone.roots_.tolist() == [0]
    two = recover_heritage(np.stack([np.eye(3) + 0.1, np.eye(3)]))
    assert two.parents_.tolist() == [1, -1] and two.scores_[0] == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"statistic": "size"}, "statistic must be 'norm' or an array"),
        ({"statistic": [1.0, 2.0]}, "each of 4 models"),
        ({"roots": 9}, "from 0 to 3"),
        ({"n_trees": 5}, "more than there are models"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        recover_heritage(np.random.default_rng(0).random((4, 3, 3)), **arguments)


def test_wide_layers_are_projected():
    rng = np.random.default_rng(0)
    W = np.empty((7, 150, 140))
    W[0] = rng.standard_normal((150, 140))
    parents = [-1, 0, 0, 1, 1, 2, 2]
    for i in range(1, 7):
        W[i] = W[parents[i]] + 0.1 * rng.standard_normal((150, 140))
    assert recover_heritage(W).parents_.tolist() == parents


def test_graph(jungle):
    nx = pytest.importorskip("networkx")
    W, _ = with_base(jungle)
    names = [f"m{i}" for i in range(21)]
    models = ModelCollection.from_layers({"layer": W}, names=names)
    graph = recover_heritage(models).to_networkx()
    assert nx.is_arborescence(graph) and graph.nodes["m0"]["generation"] == 0
    assert recover_heritage(W).to_networkx().number_of_edges() == 20


def test_networkx_is_asked_for(jungle, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "networkx", None)
    with pytest.raises(ImportError, match="pip install networkx"):
        recover_heritage(jungle.data).to_networkx()


def test_layout_has_leaves_side_by_side():
    x, y = lay_out([-1, 0, 0, 1, 1, -1])
    assert y.tolist() == [0, -1, -1, -2, -2, 0]
    assert sorted(x[[2, 3, 4, 5]].tolist()) == [0, 1, 2, 3]
    assert x[1] == (x[3] + x[4]) / 2


def test_picture(jungle):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    W, _ = with_base(jungle)
    display = ModelTreeDisplay.from_heritage(recover_heritage(W))
    assert len(display.ax_.texts) == 21
    ticks = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert sorted(ticks) == ["0", "1", "2"]
    plt.close("all")
