"""What every kind of weights must do; a kind inherits this and says how it is made."""

import numpy as np
import pytest
import torch

from skprobex.probing.batches import LowRankBatch, as_dense
from skprobex.weights import Weights, _contract
from skprobex.weights._dense import DenseWeights

CPU = torch.device("cpu")
SELECTIONS = [
    slice(2, 5),
    slice(None, None, -2),
    [0, 3],
    np.array([5, 1, 1]),
    np.arange(7) % 2 == 0,
    (slice(1, 3), slice(None)),
    (np.array([2]), Ellipsis),
    [],
]


class WeightsContract:
    """Seven models; `make` is given arrays ``(7, 6, 5)``, or what a kind draws."""

    shape = (7, 6, 5)

    @pytest.fixture
    def array(self):
        rng = np.random.default_rng(0)
        return rng.standard_normal((7, 6, 2)) @ rng.standard_normal((7, 2, 5))

    @pytest.fixture
    def weights(self, array, tmp_path):
        return self.make(array, tmp_path)

    def make(self, array, folder):
        raise NotImplementedError

    def batches(self, weights, **options):
        return list(weights.batches(CPU, **options))

    def read(self, weights):
        parts = [as_dense(batch).numpy() for batch in self.batches(weights)]
        return np.concatenate(parts) if parts else np.empty((0, 6, 5))

    def test_it_is_weights_of_a_shape(self, weights):
        assert isinstance(weights, Weights)
        assert weights.shape == self.shape
        assert weights.ndim == len(self.shape)
        assert len(weights) == 7
        assert weights.lifted_shape == (7, 6, 5)

    def test_batches_and_array_hold_the_models(self, weights, array):
        array = array.reshape(7, 6, 5)
        np.testing.assert_allclose(self.read(weights), array, rtol=0, atol=1e-6)
        whole = np.asarray(weights).reshape(7, 6, 5)
        np.testing.assert_allclose(whole, array, rtol=0, atol=1e-6)
        assert np.asarray(weights).dtype == weights.dtype
        for i in (0, 6, -1):
            one = np.asarray(weights[i]).reshape(6, 5)
            np.testing.assert_allclose(one, array[i], rtol=0, atol=1e-6)

    def test_an_array_is_a_copy(self, weights):
        if isinstance(weights, DenseWeights):
            return  # is an array already
        with pytest.raises(ValueError, match="without a copy"):
            weights.__array__(copy=False)

    @pytest.mark.parametrize("key", SELECTIONS, ids=repr)
    def test_selections_are_numpy_s_and_of_its_kind(self, weights, array, key):
        selected = weights[key]
        assert type(selected) is type(weights)
        models = key[0] if isinstance(key, tuple) else key
        expected = array[np.arange(7)[models] if len(np.atleast_1d(models)) else []]
        assert len(selected) == len(expected)
        np.testing.assert_allclose(
            self.read(selected), expected.reshape(-1, 6, 5), rtol=0, atol=1e-6
        )
        # Of a selection, again.
        if len(expected):
            np.testing.assert_allclose(
                self.read(selected[:1]), expected[:1].reshape(-1, 6, 5), atol=1e-6
            )

    @pytest.mark.parametrize("key", [1.5, [0.5], [[0, 1]], "a"], ids=repr)
    def test_other_keys_are_refused(self, weights, key):
        with pytest.raises(IndexError, match="Models are selected by"):
            weights[key]

    def test_only_models_are_indexed(self, weights):
        with pytest.raises(IndexError, match="by model only"):
            weights[:, 0]
        with pytest.raises(IndexError):
            weights[7]

    @pytest.mark.parametrize("n_models", [1, 3, 100])
    def test_a_batch_is_of_bounded_size(self, weights, n_models, monkeypatch):
        dtype = weights.compute_dtype
        row = 30 if not weights.is_low_rank else weights.rank * 11
        monkeypatch.setattr(_contract, "BATCH_BYTES", n_models * row * dtype.itemsize)
        sizes = [
            len(batch.B if isinstance(batch, LowRankBatch) else batch)
            for batch in self.batches(weights)
        ]
        assert sizes == [min(n_models, 7 - i) for i in range(0, 7, n_models)]
        shards = weights.shards(dtype)
        assert [len(shard) for shard in shards] == sizes

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_batches_are_cast(self, weights, dtype):
        (batch,) = self.batches(weights, dtype=dtype)
        assert as_dense(batch).dtype == dtype

    def test_low_rank_batches_are_factors(self, weights):
        (batch,) = self.batches(weights)
        assert isinstance(batch, LowRankBatch) == weights.is_low_rank
        if weights.is_low_rank:
            assert batch.B.shape == (7, 6, weights.rank)
            assert batch.A.shape == (7, weights.rank, 5)
        else:
            assert weights.rank is None

    def test_titles_stay_with_a_selection(self, weights):
        named = weights.titled("layer 'x'")
        assert named.title == named[:2].title == "layer 'x'"
        assert weights.title != "layer 'x'"


class SpoiltContract:
    """Kinds that are made of a user's numbers, which may be no numbers."""

    @pytest.mark.parametrize("value, word", [(np.nan, "NaN"), (np.inf, "infinity")])
    def test_the_first_model_that_is_not_finite_is_named(
        self, array, value, word, tmp_path
    ):
        array[4:6, 1, 1] = value
        weights = self.make(array, tmp_path)
        with pytest.raises(ValueError, match=rf"contains {word}: model .*4.*1 more"):
            self.batches(weights)
        # Not where the model is left out.
        assert len(self.read(weights[[0, 6]])) == 2
