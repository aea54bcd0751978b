"""Generations and adapters of the digit jungle."""

import hashlib

import numpy as np
import pytest
import torch

from skprobex import LowRankWeights
from skprobex.datasets import _digit_training, _finetune, make_digit_jungle
from skprobex.datasets._digit_training import plant_generations


@pytest.fixture
def brief(monkeypatch):
    """Train for a few steps only, where it does not matter what is learnt."""
    monkeypatch.setattr(_digit_training, "_BASE_N_STEPS", 5)
    monkeypatch.setattr(_digit_training, "N_STEPS", (2, 5))


@pytest.mark.parametrize(
    "n_models, n_generations, sizes",
    [(20, 2, [4, 16]), (39, 3, [3, 9, 27]), (2, 2, [1, 1]), (9, 2, [3, 6])],
)
def test_generations_grow_geometrically(n_models, n_generations, sizes):
    tree = np.zeros(n_models, dtype=int)
    rng = np.random.RandomState(0)
    parents, generation = plant_generations(tree, n_generations, rng)
    assert np.bincount(generation)[1:].tolist() == sizes
    assert (parents[generation == 1] == -1).all()
    later = generation > 1
    assert (generation[parents[later]] == generation[later] - 1).all()
    n_children = np.bincount(parents[later], minlength=n_models)
    inner = generation < n_generations
    assert np.ptp(n_children[inner]) <= 1 and (n_children[~inner] == 0).all()


def test_children_start_from_their_parents():
    jungle = make_digit_jungle(12, 4, n_generations=2, n_trees=2, cache=False)
    W, base = jungle.data, jungle.bases["hidden2.weight"]
    parent = np.where(
        (jungle.parents >= 0)[:, None, None], W[jungle.parents], base[jungle.tree]
    )
    own = np.linalg.norm(W - parent, axis=(1, 2))
    for i in range(12):
        if jungle.parents[i] >= 0:
            assert jungle.tree[jungle.parents[i]] == jungle.tree[i]
            assert own[i] < np.linalg.norm(W[i] - base[jungle.tree[i]])
    assert "2 generations" in jungle.DESCR
    assert jungle.accuracy.mean() > 0.85


def test_one_generation_is_what_it_was(brief):
    """Same draws in the same order."""
    old = make_digit_jungle(6, 4, n_trees=2, cache=False)
    assert (old.parents == -1).all() and (old.generation == 1).all()
    digest = hashlib.sha256(np.ascontiguousarray(old.tree).tobytes())
    digest.update(old.target.tobytes() + old.settings["n_steps"].tobytes())
    assert digest.hexdigest()[:12] == EXPECTED


# What the revision before there were generations and adapters drew.
EXPECTED = "4bde9275050a"


def test_adapters(tmp_path):
    jungle = make_digit_jungle(20, 4, n_trees=2, rank=3, data_home=tmp_path)
    assert set(jungle.layers) == {
        *("hidden1.weight", "hidden2.weight", "head.weight", "head.bias")
    }
    assert isinstance(jungle.data, LowRankWeights)
    assert jungle.data.shape == (20, 64, 64) and jungle.data.rank == 3
    assert jungle.data is jungle.layers["hidden2.weight"]
    assert jungle.accuracy.mean() > 0.85
    assert "adapters of rank 3 (LoRA)" in jungle.DESCR
    assert jungle.models["hidden1.weight"].is_low_rank
    again = make_digit_jungle(20, 4, n_trees=2, rank=3, data_home=tmp_path)
    np.testing.assert_array_equal(again.data.B, jungle.data.B)
    W, Y = make_digit_jungle(
        20, 4, n_trees=2, rank=3, data_home=tmp_path, return_X_y=True
    )
    assert W.is_low_rank and Y.shape == (20, 4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_generations": 0}, "n_generations"),
        ({"n_models": 5, "n_trees": 3, "n_generations": 2}, "each generation"),
        ({"rank": 65}, "rank"),
        ({"rank": 2, "n_generations": 2}, "do not go together"),
    ],
)
def test_argument_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_digit_jungle(**arguments)


def test_adapter_training_equals_torch():
    """Against autograd and torch.optim.Adam, one network at a time."""
    dense = _finetune.layer_shapes(6, 5, 3)
    shapes = _finetune.adapter_shapes(dense, 2)
    generator = torch.Generator().manual_seed(0)
    frozen = _finetune.draw_parameters(3, dense, generator).double()
    frozen = _finetune.split_layers(frozen, dense)
    frozen = {name: t for name, t in frozen.items() if name.startswith("hidden")}
    start = _finetune.draw_parameters(3, shapes, generator).double()
    layers = _finetune.split_layers(start, shapes)
    assert all((t == 0).all() for n, t in layers.items() if n.endswith("lora_B"))
    # One image per class and network: the batches are then known without drawing them.
    images = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    units = torch.tensor([[1, -1, -1], [-1, 2, -1], [-1, -1, 0]])
    n_steps = torch.tensor([4, 7, 5])
    trained = _finetune.train_on_classes(
        start,
        shapes,
        images,
        torch.arange(3),
        units,
        learning_rate=torch.tensor([0.01, 0.02, 0.03]),
        schedule=["constant"] * 3,
        n_steps=n_steps,
        batch_size=2,
        generator=generator,
        frozen=frozen,
    )
    for i in range(3):
        row = start[i].clone().requires_grad_()
        adam = torch.optim.Adam([row], lr=0.01 * (i + 1))
        for _ in range(n_steps[i]):
            p = {k: v[0] for k, v in _finetune.split_layers(row[None], shapes).items()}
            h = images[i]
            for name in ("hidden1", "hidden2"):
                up, down = p[f"{name}.weight.lora_B"], p[f"{name}.weight.lora_A"]
                weight = frozen[f"{name}.weight"][i] + up @ down
                h = torch.relu(weight @ h + frozen[f"{name}.bias"][i])
            logits = p["head.weight"] @ h + p["head.bias"]
            adam.zero_grad()
            torch.nn.functional.cross_entropy(logits, units[i, i]).backward()
            adam.step()
        torch.testing.assert_close(trained[i], row.detach(), rtol=1e-5, atol=1e-6)
