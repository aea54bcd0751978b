"""What a base does with examples: activations and gradients of one of its layers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skprobex.simulation import (
    Activations,
    RandomHead,
    collect_activations,
    collect_gradients,
)
from skprobex.simulation._moments import N_AGREEING


class Words(nn.Module):
    """Mean of words after a layer, without padding; takes a dict by name."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.inner = nn.Linear(6, 5)
        self.drop = nn.Dropout(0.5)
        self.outer = nn.Linear(5, 4)

    def forward(self, input_ids, attention_mask):
        hidden = self.outer(self.drop(self.inner(self.table(input_ids)).relu()))
        mask = attention_mask[:, :, None].to(hidden)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def words(rng):
    torch.manual_seed(0)
    ids = torch.from_numpy(rng.integers(0, 11, (7, 4)))
    mask = torch.from_numpy(np.arange(4) < rng.integers(1, 5, (7, 1))).long()
    return Words(), {"input_ids": ids, "attention_mask": mask}


def inner_inputs(module, batch):
    """Inputs of the inner layer, sample by sample, computed by hand."""
    table = module.table.weight.detach()
    return [
        table[ids[mask > 0]].numpy()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_padding_is_no_row(words):
    module, batch = words
    found = collect_activations(module, "inner", batch, batch_size=3)
    expected = inner_inputs(module, batch)
    np.testing.assert_array_equal(found.rows, np.concatenate(expected))
    lengths = [len(rows) for rows in expected]
    np.testing.assert_array_equal(found.samples, np.repeat(np.arange(7), lengths))
    assert (found.n_samples, found.weight_shape, found.layer) == (7, (5, 6), "inner")


def test_sums_are_those_of_all_rows(words):
    module, batch = words
    y = np.array(["b", "a", "b", "b", "a", "a", "b"])
    found = collect_activations(module, "inner", batch, y, batch_size=2, max_rows=1)
    inputs = inner_inputs(module, batch)
    for name, moment, n_samples in zip(
        found.classes, found.moments, found.n_samples, strict=True
    ):
        rows = np.concatenate(
            [x for x, label in zip(inputs, y, strict=True) if label == name]
        )
        second = sum(np.outer(row, row) for row in rows.astype(float)) / len(rows)
        mean = rows.mean(axis=0)
        expected = (second + (N_AGREEING - 1) * np.outer(mean, mean)) / N_AGREEING
        np.testing.assert_allclose(moment, expected, rtol=1e-5, atol=1e-6)
        assert n_samples == (y == name).sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": (2, 0), "dilation": (2, 1)},
        {"padding": "same", "dilation": 2},
        {"padding": 1, "groups": 2},
        {"padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_rows_of_a_convolution_are_what_its_filters_meet(options, rng):
    conv = nn.Conv2d(4, 6, (3, 2), **options)
    images = torch.from_numpy(rng.normal(size=(3, 4, 7, 8))).float()
    found = collect_activations(nn.Sequential(conv), "0", images)
    groups = options.get("groups", 1)
    rows = torch.from_numpy(found.rows).reshape(3, groups, -1, found.rows.shape[1])
    filters = conv.weight.flatten(1).unflatten(0, (groups, -1))
    outputs = torch.einsum("ngpd,god->ngop", rows, filters).flatten(1, 2)
    expected = (conv(images) - conv.bias[:, None, None]).flatten(2)
    torch.testing.assert_close(outputs, expected)
    np.testing.assert_array_equal(
        found.samples, np.repeat([0, 1, 2], len(rows[0, 0]) * groups)
    )


def test_conv1d_of_transformers(rng):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D(5, 3)
    x = torch.from_numpy(rng.normal(size=(4, 2, 3))).float()
    found = collect_activations(nn.Sequential(conv1d), "0", x)
    np.testing.assert_array_equal(found.rows, x.flatten(0, 1))
    assert found.weight_shape == (5, 3)
    moments = collect_gradients(
        nn.Sequential(conv1d), "0", {"a": x, "b": -x}, RandomHead(3)
    )
    assert moments.moments.shape == (2, 3, 3)
    assert moments.outputs.shape == (2, 5, 5)


def test_rows_are_thinned_out_evenly():
    x = torch.arange(24.0).reshape(2, 12, 1)
    found = collect_activations(nn.Sequential(nn.Linear(1, 1)), "0", x, max_rows=3)
    np.testing.assert_array_equal(found.rows[:, 0], [0, 4, 8, 12, 16, 20])
    np.testing.assert_array_equal(found.samples, [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    "kind", ["tensor", "array", "list", "loader", "pairs", "generator"]
)
def test_kinds_of_inputs(kind, rng):
    x = torch.from_numpy(rng.normal(size=(5, 3))).float()
    labels = torch.zeros(5)
    inputs = {
        "tensor": x,
        "array": x.numpy(),
        "list": list(x),
        "loader": torch.utils.data.DataLoader(x, batch_size=2),
        "pairs": torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, labels), batch_size=2
        ),
        "generator": (part for part in x.split(4)),
    }[kind]
    found = collect_activations(nn.Sequential(nn.Linear(3, 2)), "0", inputs)
    np.testing.assert_array_equal(found.rows, x)
    np.testing.assert_array_equal(found.samples, np.arange(5))


def test_collate_and_forward(words):
    module, batch = words
    texts = [{n: v[i] for n, v in batch.items()} for i in range(7)]
    found = collect_activations(
        module,
        "inner",
        texts,
        collate=lambda part: torch.stack([example["input_ids"] for example in part]),
        forward=lambda module, ids: module(ids, torch.ones_like(ids)),
    )
    np.testing.assert_array_equal(
        found.rows, module.table.weight.detach()[batch["input_ids"].flatten()]
    )


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("collect", ["activations", "gradients"])
def test_module_is_left_as_it_was(words, fails, collect):
    module, batch = words
    module.train()
    module.inner.eval()
    module.inner.weight.requires_grad_(False)
    if fails:
        module.outer.register_forward_hook(lambda *args: 1 / 0)
    modes = [part.training for part in module.modules()]
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def run():
        if collect == "activations":
            collect_activations(module, "inner", batch)
        else:
            collect_gradients(module, "inner", {"a": batch}, RandomHead())

    if fails:
        with pytest.raises(ZeroDivisionError):
            run()
    else:
        run()
    assert [part.training for part in module.modules()] == modes
    assert not module.inner._forward_pre_hooks
    assert not module.inner.weight.requires_grad
    assert module.outer.weight.requires_grad
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(before[n], v) for n, v in module.state_dict().items())


def test_dropout_is_off(words):
    module, batch = words
    module.train()
    first, second = (collect_activations(module, "outer", batch).rows for _ in "ab")
    np.testing.assert_array_equal(first, second)


def test_gradients_are_those_of_autograd(words):
    module, batch = words
    half = {name: values[:3] for name, values in batch.items()}
    rest = {name: values[3:] for name, values in batch.items()}
    loss = RandomHead(n_outputs=3)
    found = collect_gradients(
        module, "inner", {"x": [half, rest], "y": rest}, loss, n_heads=2, random_state=5
    )
    module.eval()
    gradients = []
    for part in (half, rest):
        for seed in (5, 6):
            generator = torch.Generator().manual_seed(seed)
            bound = 4**-0.5
            weight = torch.empty(3, 4).uniform_(-bound, bound, generator=generator)
            bias = torch.empty(3).uniform_(-bound, bound, generator=generator)
            logits = module(**part) @ weight.T + bias
            value = F.cross_entropy(logits, torch.zeros(len(logits)).long())
            (gradient,) = torch.autograd.grad(value, module.inner.weight)
            gradients.append(gradient / gradient.norm())
    expected = sum(g.T @ g for g in gradients) / 4
    np.testing.assert_allclose(found.moments[0], expected, rtol=1e-4, atol=1e-6)
    expected = sum(g @ g.T for g in gradients) / 4
    np.testing.assert_allclose(found.outputs[0], expected, rtol=1e-4, atol=1e-6)
    expected = sum(g.T @ g for g in gradients[2:]) / 2
    np.testing.assert_allclose(found.moments[1], expected, rtol=1e-4, atol=1e-6)
    assert found.classes.tolist() == ["x", "y"]
    assert found.n_samples.tolist() == [7, 4]


def test_a_head_of_one_unit_tells_a_concept_from_others(rng):
    x = torch.from_numpy(rng.normal(size=(6, 4))).float()
    labels = torch.tensor([1, 1, 1, 0, 0, 0])
    module = nn.Sequential(nn.Linear(4, 3))
    found = collect_gradients(
        module, "0", {"c": (x, labels)}, RandomHead(1), n_heads=1, random_state=2
    )
    generator = torch.Generator().manual_seed(2)
    weight = torch.empty(1, 3).uniform_(-(3**-0.5), 3**-0.5, generator=generator)
    bias = torch.empty(1).uniform_(-(3**-0.5), 3**-0.5, generator=generator)
    with torch.no_grad():
        residual = (module(x) @ weight.T + bias).sigmoid()[:, 0] - labels
    # The gradient of the weight is (sum of residuals times inputs) times the head's.
    pulled = residual @ x
    expected = torch.outer(pulled, pulled) / (pulled @ pulled)
    np.testing.assert_allclose(found.moments[0], expected, rtol=1e-4, atol=1e-6)


MLP = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Embedding(5, 3), nn.ReLU())


class Shuffled(nn.Module):
    """Splits every sample in two before the layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(torch.cat([x, x]))


class Attention(nn.Module):
    """Uses the weights of a layer without calling it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x)[0]


X = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: collect_activations("base", "0", X), TypeError, "torch module"),
        (lambda: collect_activations(MLP, "9", X), ValueError, "no layer '9'"),
        (lambda: collect_activations(MLP, "2", X), TypeError, "'2' is an embedding"),
        (lambda: collect_activations(MLP, "3", X), TypeError, "type ReLU"),
        (
            lambda: collect_activations(MLP[:2], "1", X, forward=lambda m, x: m[0](x)),
            ValueError,
            "does not run layer",
        ),
        (
            lambda: collect_activations(Attention(), "out_proj", torch.ones(2, 3, 4)),
            ValueError,
            "without calling it",
        ),
        (
            lambda: collect_activations(
                nn.ModuleDict({"a": MLP[0], "b": nn.ModuleDict({"a": MLP[0]})}), "c", X
            ),
            ValueError,
            "no layer 'c'",
        ),
        (
            lambda: collect_activations(Shuffled(), "layer", X),
            ValueError,
            "batch_size=1",
        ),
        (lambda: collect_activations(MLP[:2], "0", X * np.nan), ValueError, "sample 0"),
        (lambda: collect_activations(MLP[:2], "0", X[:0]), ValueError, "no examples"),
        (lambda: collect_activations(MLP[:2], "0", "text"), TypeError, "list of texts"),
        (lambda: collect_activations(MLP[:2], "0", ["text"]), TypeError, "collate"),
        (lambda: collect_activations(MLP[:2], "0", 3), TypeError, "type int"),
        (
            lambda: collect_activations(MLP[:2], "0", X, ["a"] * 3),
            ValueError,
            "3 entries",
        ),
        (
            lambda: collect_activations(MLP[:2], "0", X, ["a"] * 5),
            ValueError,
            "5 entries",
        ),
        (
            lambda: collect_activations(MLP[:2], "0", X, max_rows=0),
            ValueError,
            "max_rows",
        ),
        (
            lambda: collect_gradients(MLP[:2], "0", [X], RandomHead()),
            TypeError,
            "dict with the batches",
        ),
        (
            lambda: collect_gradients(MLP[:2], "0", {"a": X}, lambda o, b, g: o),
            ValueError,
            "class 'a' is no scalar",
        ),
        (
            lambda: collect_gradients(
                MLP[:2], "0", {"a": X}, lambda o, b, g: o.detach().sum()
            ),
            ValueError,
            "class 'a' does not depend",
        ),
        (
            lambda: collect_gradients(MLP[:2], "0", {"a": 0 * X}, RandomHead()),
            ValueError,
            "on class 'a' is zero",
        ),
        (
            lambda: collect_gradients(MLP[:2], "0", {"a": X}, RandomHead(1)),
            ValueError,
            "needs labels",
        ),
        (
            lambda: collect_gradients(MLP[:2], "0", {"a": X}, RandomHead(), n_heads=0),
            ValueError,
            "n_heads=0",
        ),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_mask_that_does_not_fit_is_refused(words):
    module, batch = words

    def longer(module, batch):
        return module(
            batch["input_ids"].repeat(1, 2), batch["attention_mask"].repeat(1, 2)
        )

    with pytest.raises(ValueError, match="attention mask has 4"):
        collect_activations(module, "inner", batch, forward=longer)


def test_a_class_whose_samples_are_all_padding(words):
    module, batch = words
    batch["attention_mask"][0] = 0
    with pytest.raises(ValueError, match="Class 'x' has no rows"):
        collect_activations(module, "inner", batch, ["x", *"yyyyyy"])


def test_an_end_of_a_name_will_do_where_it_is_the_only_one(rng):
    module = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), nn.Linear(2, 2))
    x = torch.from_numpy(rng.normal(size=(2, 3))).float()
    assert collect_activations(module, "0.1.weight", x).layer == "0.1"
    twice = nn.ModuleDict(
        {
            "a": nn.ModuleDict({"q": nn.Linear(3, 2)}),
            "b": nn.ModuleDict({"q": nn.Linear(3, 2)}),
        }
    )
    with pytest.raises(ValueError, match=r"2 layers end in 'q': 'a\.q', 'b\.q'"):
        collect_activations(twice, "q", x)


def test_activations_say_what_they_are():
    rows = Activations(np.zeros((6, 3)), np.repeat([0, 1], 3), 2, (4, 3))
    assert (len(rows), repr(rows)) == (2, "Activations(2 samples, 6 rows of 3)")
