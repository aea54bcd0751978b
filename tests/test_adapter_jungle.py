"""The adapter jungle: its drawings and names, its training, and what it is good for."""

import functools
import re

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch.nn import functional as F

from skprobex import LowRankWeights, ProbeXClassifier
from skprobex.datasets import (
    _adapter_jungle,
    _adapter_training,
    _finetune,
    make_adapter_jungle,
)
from skprobex.datasets._drawings import (
    ATTRIBUTES,
    N_VALUES,
    all_concepts,
    concept_name,
    draw_concept,
    draw_images,
)

LAYERS = [f"block{b}.{name}.weight" for b in (1, 2, 3) for name in ("up", "down")]


@pytest.fixture(scope="module")
def jungle(data_home):
    return make_adapter_jungle(160, 2, data_home=data_home)


@pytest.fixture
def brief(monkeypatch):
    """Train for a few steps only, where it does not matter what is learnt."""
    monkeypatch.setattr(_adapter_training, "_BASE_N_STEPS", 3)
    monkeypatch.setattr(_adapter_training, "N_STEPS", (2, 5))
    monkeypatch.setattr(_adapter_training, "_N_IMAGES", 2)
    monkeypatch.setattr(_adapter_training, "_N_TEST_IMAGES", 1)


def flatten(bunch):
    """All arrays of a jungle, by name."""
    arrays = {}
    for name, value in bunch.items():
        for key, array in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(array, LowRankWeights):
                arrays[f"{name}.{key}.A"], arrays[f"{name}.{key}.B"] = array.A, array.B
            elif isinstance(array, np.ndarray):
                arrays[f"{name}.{key}"] = array
    return arrays


def assert_same(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert_array_equal(a[name], b[name], err_msg=name)


# Names and drawings


def test_names_are_english_and_distinct():
    names = [concept_name(codes) for codes in all_concepts()]
    assert len(set(names)) == np.prod(N_VALUES) == 864
    colors, shapes = ("|".join(ATTRIBUTES[key]) for key in ("color", "shape"))
    words = rf"(small|large) ((striped|dotted) )?({colors})"
    for name in names:
        one = re.fullmatch(rf"a {words} ({shapes})", name)
        several = re.fullmatch(rf"(two|three) {words} ({shapes})(s|es)", name)
        assert bool(one) != bool(several), name
    assert {"three small striped red stars", "a large green ring"} <= set(names)
    assert "two large dotted pink crosses" in names


def test_combinations_are_in_the_order_that_codes_unravel():
    numbers = np.ravel_multi_index(all_concepts().T, N_VALUES)
    assert_array_equal(numbers, np.arange(len(numbers)))


def area(concept):
    """Mean number of pixels much brighter than the background, in red."""
    images = draw_concept(concept, 50, random_state=0)
    assert images.shape == (50, 24, 24, 3) and images.dtype == np.float32
    assert images.min() >= 0 and images.max() <= 1
    return (images[..., 0] > 0.6).sum(axis=(1, 2)).mean()


@pytest.mark.parametrize("shape", ATTRIBUTES["shape"])
def test_drawings_show_what_their_names_say(shape):
    plural = "crosses" if shape == "cross" else f"{shape}s"
    one = area(f"a large red {shape}")
    assert_allclose(area(f"two large red {plural}"), 2 * one, rtol=0.1)
    assert_allclose(area(f"three large red {plural}"), 3 * one, rtol=0.1)
    assert_allclose(area(f"a small red {shape}"), (3.2 / 4.8) ** 2 * one, rtol=0.25)
    assert area(f"a large striped red {shape}") < 0.7 * one
    assert 0.5 * one < area(f"a large dotted red {shape}") < 0.9 * one


def test_colors_are_told_apart():
    image = [
        draw_concept(f"a large {color} square", 50, random_state=0)
        for color in ATTRIBUTES["color"]
    ]
    brightest = np.array([np.quantile(i, 0.95, axis=(0, 1, 2)) for i in image])
    distance = np.linalg.norm(brightest[:, None] - brightest, axis=2)
    assert distance[~np.eye(len(distance), dtype=bool)].min() > 0.2


def test_drawings_are_seeded_and_differ():
    name = "three small striped blue stars"
    images = draw_concept(name, 3, random_state=1)
    assert_array_equal(images, draw_concept(name, 3, random_state=1))
    assert np.abs(images[0] - images[1]).max() > 0.5
    with pytest.raises(ValueError, match=r"no concept 'a red house'.*striped.*star"):
        draw_concept("a red house")
    with pytest.raises(ValueError, match="n_images must be"):
        draw_concept(name, 0)


# The jungle


def test_keys_and_shapes(jungle):
    n = 320
    assert set(jungle) == {
        *("data", "target", "concepts", "attributes", "held_out", "layers", "models"),
        *("heads", "settings", "accuracy", "bases", "DESCR"),
    }
    assert list(jungle.layers) == LAYERS
    for name, W in jungle.layers.items():
        shape = (n, 128, 64) if "up" in name else (n, 64, 128)
        assert isinstance(W, LowRankWeights) and W.dtype == np.float32
        assert W.shape == shape and W.rank == 4
        assert np.isfinite(W.A).all() and np.isfinite(W.B).all()
        assert jungle.bases[name].shape == (1, *shape[1:])
    assert jungle.data is jungle.layers["block3.down.weight"]
    assert {k: v.shape for k, v in jungle.heads.items()} == {
        "head.weight": (n, 1, 64),
        "head.bias": (n, 1),
    }
    assert len(set(jungle.concepts)) == 160
    names, counts = np.unique(jungle.target, return_counts=True)
    assert set(names) == set(jungle.concepts) and (counts == 2).all()
    assert all(v.shape == (n,) for v in jungle.settings.values())
    assert "320 LoRA adapters" in jungle.DESCR
    assert "24\nconcepts are held out" in jungle.DESCR


def test_attributes_are_those_of_the_names(jungle):
    assert list(jungle.attributes) == list(ATTRIBUTES)
    codes = [
        [ATTRIBUTES[key].index(values[i]) for key, values in jungle.attributes.items()]
        for i in range(len(jungle.target))
    ]
    assert [concept_name(row) for row in codes] == jungle.target.tolist()


def test_concepts_held_out_are_new_combinations_of_known_values(jungle):
    held_out = jungle.held_out
    unknown, known = set(jungle.target[held_out]), set(jungle.target[~held_out])
    assert len(unknown) == 24 and not unknown & known
    for values in jungle.attributes.values():
        assert set(values[held_out]) <= set(values[~held_out])


def test_the_collection_slices_and_describes(jungle):
    part = jungle.models[jungle.held_out]
    assert part.shape == (48, 6)
    W = part["block1.up.weight"]
    assert isinstance(W, LowRankWeights)
    assert_array_equal(W.A, jungle.layers["block1.up.weight"].A[jungle.held_out])
    assert_array_equal(part.labels("concept"), jungle.target[jungle.held_out])
    entry, i = part.metadata[0], np.flatnonzero(jungle.held_out)[0]
    assert entry["color"] == jungle.attributes["color"][i]
    assert entry["accuracy"] == jungle.accuracy[i]
    assert entry["n_steps"] == jungle.settings["n_steps"][i]


def test_adapters_recognise_their_concepts_in_new_drawings(jungle):
    base = {name: torch.from_numpy(W[0]) for name, W in jungle.bases.items()}
    rng = np.random.RandomState(1)
    right = []
    for i in range(0, 200, 10):
        own = draw_concept(jungle.target[i], 40, random_state=rng)
        codes = all_concepts()
        others = [concept_name(c) != jungle.target[i] for c in codes]
        codes = codes[others][rng.permutation(863)[:40]]
        images = np.concatenate([own, draw_images(codes, rng)])
        # The network written out, with dense weights.
        h = _adapter_training.stem(base, torch.from_numpy(images)).numpy()
        for b in (1, 2, 3):
            up, down = (
                jungle.bases[f"block{b}.{k}.weight"][0]
                + jungle.layers[f"block{b}.{k}.weight"][i]
                for k in ("up", "down")
            )
            bias = [jungle.bases[f"block{b}.{k}.bias"][0] for k in ("up", "down")]
            inner = np.maximum(standardize(h) @ up.T + bias[0], 0)
            h = h + inner @ down.T + bias[1]
        logits = standardize(h) @ jungle.heads["head.weight"][i, 0]
        logits += jungle.heads["head.bias"][i]
        right.append(((logits > 0) == (np.arange(80) < 40)).mean())
    assert np.mean(right) > 0.8
    assert jungle.accuracy.mean() > 0.8


def standardize(h):
    h = h - h.mean(axis=1, keepdims=True)
    return h / np.sqrt((h**2).mean(axis=1, keepdims=True) + 1e-5)


def test_attributes_of_concepts_held_out_are_read_off_the_weights(jungle):
    known, unknown = ~jungle.held_out, jungle.held_out
    for name, chance in (("size", 1 / 2), ("count", 1 / 3)):
        y = jungle.attributes[name]
        clf = ProbeXClassifier(random_state=0).fit(jungle.data[known], y[known])
        assert clf.score(jungle.data[unknown], y[unknown]) > chance + 0.25


def test_same_seed_same_bits(brief):
    torch_state = torch.get_rng_state()
    n_threads = torch.get_num_threads()
    first = make_adapter_jungle(10, held_out=0, cache=False)
    assert_same(first, make_adapter_jungle(10, held_out=0, cache=False))
    rng = np.random.RandomState(0)
    assert_same(first, make_adapter_jungle(10, held_out=0, random_state=rng))
    other = make_adapter_jungle(10, held_out=0, random_state=1, cache=False)
    assert not np.array_equal(first.data.A, other.data.A)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert torch.get_num_threads() == n_threads


def test_cache(brief, tmp_path, monkeypatch):
    sizes = {"n_concepts": 30, "n_adapters_per_concept": 1, "rank": 2}
    built = make_adapter_jungle(**sizes, data_home=tmp_path)
    assert built.data.rank == 2

    def fail(*args, **kwargs):
        raise AssertionError("built again")

    monkeypatch.setattr(_adapter_jungle, "grow_adapters", fail)
    assert_same(built, make_adapter_jungle(**sizes, data_home=tmp_path))
    models, target = make_adapter_jungle(**sizes, data_home=tmp_path, return_X_y=True)
    assert models.shape == (30, 6) and models.names == built.models.names
    assert_array_equal(target, built.target)
    with pytest.raises(AssertionError, match="built again"):
        make_adapter_jungle(**sizes, held_out=0.1, data_home=tmp_path)


@pytest.mark.parametrize(
    "parameters, error, message",
    [
        ({"n_concepts": 1}, ValueError, "n_concepts must be an integer from 2 to 864"),
        ({"n_concepts": 865}, ValueError, "from 2 to 864; got 865"),
        ({"n_concepts": 2.5}, TypeError, "n_concepts must be an integer"),
        ({"n_adapters_per_concept": 0}, ValueError, "n_adapters_per_concept must be"),
        ({"rank": 65}, ValueError, "rank must be an integer from 1 to 64"),
        ({"held_out": 1.5}, ValueError, "held_out must be from 0 to 1"),
        ({"held_out": "some"}, TypeError, "held_out must be a real number"),
        ({"held_out": 1.0}, ValueError, r"asks for 400 concepts, but only \d+ can"),
        ({"n_concepts": 4, "held_out": 0.5}, ValueError, "Lower held_out"),
    ],
)
def test_bad_parameters(parameters, error, message):
    with pytest.raises(error, match=message):
        make_adapter_jungle(**parameters, cache=False)


# The training


def test_others_are_never_own_and_half_of_them_are_near():
    generator = torch.Generator().manual_seed(0)
    own = torch.arange(864)
    batches = _adapter_training.Batches(torch.zeros(864, 1), own, 200, generator)
    others = batches.draw_others(864).numpy()
    codes = all_concepts()
    n_different = (codes[others] != codes[:, None]).sum(axis=2)
    assert n_different.min() == 1
    # A few that are any differ in one attribute only, too.
    assert 0.5 < (n_different == 1).mean() < 0.54
    seen = torch.arange(2.0 * 864)[:, None]
    batches = _adapter_training.Batches(seen, own, 11, generator)
    x, is_own = batches.draw(7)
    assert x.shape == (7, 11, 1) and (is_own.sum(dim=1) == 5).all()
    assert_array_equal(x[:, :, 0] // 2 == own[:7, None], is_own == 1)


def tiny(n_models, generator):
    """A base of 6 units in two blocks, and adapters with all factors non-zero."""
    shapes = {"block1.up": (8, 6), "block1.down": (6, 8)}
    shapes |= {"block2.up": (8, 6), "block2.down": (6, 8)}
    base, adapters = {}, {}
    for name, (d_out, d_in) in shapes.items():
        base[f"{name}.weight"] = torch.randn(d_out, d_in, generator=generator)
        base[f"{name}.bias"] = torch.randn(d_out, generator=generator)
        for factor, shape in (("B", (d_out, 2)), ("A", (2, d_in))):
            drawn = torch.randn(n_models, *shape, generator=generator)
            adapters[f"{name}.weight.lora_{factor}"] = drawn
    adapters["head.weight"] = torch.randn(n_models, 1, 6, generator=generator)
    adapters["head.bias"] = torch.randn(n_models, 1, generator=generator)
    double = [{k: v.double() for k, v in part.items()} for part in (base, adapters)]
    x = torch.randn(n_models, 5, 6, generator=generator, dtype=torch.float64)
    is_own = torch.tensor([1.0, 1, 0, 0, 0], dtype=torch.float64).repeat(n_models, 1)
    return *double, x, is_own


def lone_loss(base, adapter, x, is_own):
    """The loss of one adapter alone, through dense weights."""
    h = x
    for b in (1, 2):
        inner = F.layer_norm(h, (6,))
        for name in (f"block{b}.up", f"block{b}.down"):
            up, down = (adapter[f"{name}.weight.lora_{f}"] for f in "BA")
            weight = base[f"{name}.weight"] + up @ down
            inner = inner @ weight.T + base[f"{name}.bias"]
            inner = inner.relu() if name.endswith("up") else inner
        h = h + inner
    logits = F.layer_norm(h, (6,)) @ adapter["head.weight"][0] + adapter["head.bias"]
    return F.binary_cross_entropy_with_logits(logits, is_own)


def test_gradients_are_those_of_each_adapter_alone():
    base, adapters, x, is_own = tiny(3, torch.Generator().manual_seed(0))
    leaves = {name: v.clone().requires_grad_() for name, v in adapters.items()}
    _adapter_training.concept_loss(base, leaves, x, is_own).backward()
    for i in range(3):
        alone = {n: v[i].clone().requires_grad_() for n, v in adapters.items()}
        lone_loss(base, alone, x[i], is_own[i]).backward()
        for name, values in alone.items():
            assert_allclose(leaves[name].grad[i], values.grad, atol=1e-12, err_msg=name)


def test_training_is_adam_on_each_adapter_alone():
    base, adapters, x, is_own = tiny(2, torch.Generator().manual_seed(1))
    shapes = {name: tuple(v.shape[1:]) for name, v in adapters.items()}
    params = torch.cat([v.flatten(1) for v in adapters.values()], dim=1)
    loss = functools.partial(_adapter_training.concept_loss, base)
    rates, n_steps = [0.01, 0.02], [4, 7]
    trained = _finetune.train_groups(
        params.clone(),
        shapes,
        lambda rows: (lambda n: (x[rows][:n], is_own[rows][:n]), loss),
        learning_rate=torch.tensor(rates),
        schedule=["constant"] * 2,
        n_steps=torch.tensor(n_steps),
    )
    layers = _finetune.split_layers(trained, shapes)
    for i in range(2):
        alone = {n: v[i].clone().requires_grad_() for n, v in adapters.items()}
        adam = torch.optim.Adam(alone.values(), lr=rates[i])
        for _ in range(n_steps[i]):
            adam.zero_grad()
            lone_loss(base, alone, x[i], is_own[i]).backward()
            adam.step()
        for name, values in alone.items():
            assert_allclose(layers[name][i], values.detach(), rtol=1e-5, atol=1e-6)


def test_warmup_rises_and_falls():
    rates = _finetune._learning_rates(
        torch.tensor([2.0]), ["warmup"], torch.tensor([1000])
    )[0]
    peak = int(rates.argmax())
    assert rates[0] == 0 and abs(peak - 300) < 3 and abs(rates.max() - 2) < 0.02
    assert (rates[:peak].diff() > 0).all() and (rates[peak:].diff() < 0).all()
    assert rates[-1] < 1e-4
