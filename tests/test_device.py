"""Devices, and arrays of any stride, byte order and flag as tensors."""

import numpy as np
import pytest
import torch

from skprobex import ProbeXClassifier
from skprobex.probing.device import (
    as_array,
    as_tensor,
    make_generator,
    resolve_device,
    solver_device,
)

CPU = torch.device("cpu")
VALUES = np.arange(24).reshape(4, 3, 2) - 7.5


def read_only(tmp_path):
    array = VALUES.copy()
    array.flags.writeable = False
    return array


def memory_mapped(tmp_path):
    np.save(tmp_path / "weights.npy", VALUES)
    return np.load(tmp_path / "weights.npy", mmap_mode="r")


ARRAYS = {
    "plain": lambda _: VALUES.copy(),
    "read-only": read_only,
    "memory-mapped": memory_mapped,
    "negative strides": lambda _: VALUES[::-1, :, ::-1].copy()[::-1, :, ::-1],
    "transposed": lambda _: VALUES.transpose(2, 0, 1).copy().transpose(1, 2, 0),
    "Fortran order": lambda _: np.asfortranarray(VALUES),
    "broadcast": lambda _: np.broadcast_to(VALUES, (1, *VALUES.shape))[0],
    "every other": lambda _: np.repeat(VALUES, 2, axis=1)[:, ::2],
    "big-endian": lambda _: VALUES.astype(">f8"),
    "big-endian float32": lambda _: VALUES.astype(">f4"),
    "little-endian": lambda _: VALUES.astype("<f8"),
    "float16": lambda _: VALUES.astype(np.float16),
    "float32": lambda _: VALUES.astype(np.float32),
    "long double": lambda _: VALUES.astype(np.longdouble),
    "object": lambda _: VALUES.astype(object),
    "nested lists": lambda _: VALUES.tolist(),
    "tensor": lambda _: torch.from_numpy(VALUES.copy()),
    "bfloat16 tensor": lambda _: torch.from_numpy(VALUES).to(torch.bfloat16),
    "float16 tensor": lambda _: torch.from_numpy(VALUES).half(),
    "transposed tensor": lambda _: torch.from_numpy(VALUES.T.copy()).permute(2, 1, 0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ARRAYS)
def test_any_array_becomes_a_tensor(kind, dtype, tmp_path):
    array = ARRAYS[kind](tmp_path)
    tensor = as_tensor(array, dtype, CPU)
    assert tensor.dtype == dtype
    assert tensor.device == CPU
    np.testing.assert_array_equal(tensor.numpy(), VALUES)


@pytest.mark.parametrize("dtype", [bool, np.int8, ">i4", np.int64, np.uint8], ids=str)
def test_integers_and_booleans_become_floats(dtype):
    array = np.array([[0, 1], [1, 0]]).astype(dtype)
    tensor = as_tensor(array, torch.float32, CPU)
    assert tensor.tolist() == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("kind", ["read-only", "memory-mapped", "broadcast"])
def test_what_may_not_be_written_is_copied(kind, tmp_path):
    array = ARRAYS[kind](tmp_path)
    as_tensor(array, torch.float64, CPU).zero_()
    np.testing.assert_array_equal(array, VALUES)


def test_nothing_is_copied_without_need():
    array = VALUES.copy()
    assert as_tensor(array, torch.float64, CPU).data_ptr() == array.ctypes.data
    tensor = torch.from_numpy(array)
    assert as_tensor(tensor, torch.float64, CPU) is tensor


def test_fitting_is_blind_to_how_the_array_lies(tmp_path):
    rng = np.random.default_rng(0)
    W, y = rng.standard_normal((12, 5, 4)), np.arange(12) % 2
    expected = ProbeXClassifier(device="cpu").fit(W, y).decision_function(W)
    np.save(tmp_path / "weights.npy", W)
    frozen = W.copy()
    frozen.flags.writeable = False
    for other in (
        frozen,
        np.load(tmp_path / "weights.npy", mmap_mode="r"),
        W[::-1].copy()[::-1],
        np.asfortranarray(W),
        W.astype(">f8"),
        torch.from_numpy(W),
        torch.from_numpy(W).requires_grad_(),
    ):
        model = ProbeXClassifier(device="cpu").fit(other, y)
        np.testing.assert_allclose(
            model.decision_function(other), expected, rtol=0, atol=1e-10
        )


def test_results_are_numpy_on_the_cpu():
    tensor = torch.ones(2, 3, requires_grad=True)
    array = as_array(2 * tensor)
    assert type(array) is np.ndarray
    np.testing.assert_array_equal(array, np.full((2, 3), 2.0))


# Which device


def test_auto_is_a_device_that_exists():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected


@pytest.mark.parametrize("device", ["cpu", CPU])
def test_the_cpu_is_always_there(device):
    assert resolve_device(device) == CPU


def test_auto_takes_cuda_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto").type == "cuda"


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 0)], ids=str)
def test_cuda_where_there_is_none_names_the_way_out(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"0 CUDA devices.*device='auto' or 'cpu'"):
        resolve_device(device)


def test_a_cuda_device_too_many(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"cuda:2.*2 CUDA devices"):
        resolve_device("cuda:2")


def test_mps_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"mps.*device='auto' or 'cpu'"):
        resolve_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps").type == "mps"


@pytest.mark.parametrize("device", ["nonsense", "cuda:x", "", "cpu:-3", 1.5])
def test_nonsense_is_no_device(device):
    with pytest.raises(ValueError, match="is not a device"):
        resolve_device(device)


@pytest.mark.parametrize("device", ["meta", "xpu"])
def test_other_devices_are_not_supported(device):
    with pytest.raises(ValueError, match=f"'{device}' is not supported"):
        resolve_device(device)


@pytest.mark.parametrize("device", ["nonsense", "cuda"])
def test_a_device_that_is_not_there_fits_nothing(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = ProbeXClassifier(device=device)
    with pytest.raises(ValueError, match="device="):
        model.fit(VALUES, [0, 1, 0, 1])
    assert not hasattr(model, "coef_")


def test_small_solves_are_on_a_device_with_float64():
    assert solver_device(torch.device("mps")) == CPU
    assert solver_device(CPU) == CPU
    assert solver_device(torch.device("cuda", 0)) == torch.device("cuda", 0)


def test_generators_are_on_the_cpu_and_of_their_own():
    before = torch.get_rng_state()
    first, second, other = (
        torch.rand(5, generator=make_generator(seed)) for seed in (3, np.int64(3), 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
