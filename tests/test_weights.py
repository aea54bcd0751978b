"""Every kind of weights, against one contract."""

import numpy as np
import pytest
import torch
from weights_contract import SpoiltContract, WeightsContract

from skprobex import LowRankWeights, open_models, save_models
from skprobex.weights._dense import DenseWeights

NAMES = [f"m{i}" for i in range(7)]


class TestArray(SpoiltContract, WeightsContract):
    def make(self, array, folder):
        return DenseWeights(array)


class TestTensor(WeightsContract):
    def make(self, array, folder):
        return DenseWeights(torch.from_numpy(array.astype("f4")))


class TestKernels(WeightsContract):
    shape = (7, 6, 5, 1)

    def make(self, array, folder):
        return DenseWeights(array[..., None])


class TestLowRank(WeightsContract):
    def make(self, array, folder):
        left, singular, right = np.linalg.svd(array)
        return LowRankWeights(
            left[:, :, :2] * singular[:, None, :2] / 2, right[:, :2], scale=2
        )


class TestInFiles(SpoiltContract, WeightsContract):
    def make(self, array, folder):
        save_models(folder, {"layer.weight": array}, names=NAMES)
        return open_models(folder)["layer.weight"]

    def test_it_knows_its_layer_and_its_models(self, weights):
        assert weights.layer == "layer.weight" and weights.is_lazy
        assert weights[[2, 0]].names == ["m2", "m0"]


class TestLowRankInFiles(WeightsContract):
    def make(self, array, folder):
        save_models(folder, {"layer.weight": TestLowRank().make(array, folder)})
        return open_models(folder)["layer.weight"]


def test_a_spoilt_factor_is_named():
    B, A = np.ones((3, 4, 2)), np.ones((3, 2, 4))
    A[1, 0, 0] = np.inf
    with pytest.raises(ValueError, match="factor A of W contains infinity: model 1"):
        list(LowRankWeights(B, A).batches(torch.device("cpu")))
