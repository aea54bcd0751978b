"""Pickle checkpoints become safetensors, in a process that cannot do harm."""

import json
import pickle
import time

import numpy as np
import pytest
import torch

from skprobex import convert_checkpoints, open_models
from skprobex.exceptions import UnsupportedFormatError, WeightFileError
from skprobex.files import _convert, _convert_worker

W = torch.arange(6.0).reshape(2, 3)


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


class Evil:
    def __reduce__(self):
        return open, ("PWNED", "w")


def test_checkpoints_of_all_suffixes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, out = tmp_path / "in", tmp_path / "out"
    # Two names of one tensor, and a view of it.
    save(source / "a" / "pytorch_model.bin", {"w": W, "tied": W, "row": W[:1].T})
    save(source / "b.ckpt", {"state_dict": {"w": W.half()}, "epoch": 3})
    save(source / "c.pt", {"x.lora_A.weight": W, "x.lora_B.weight": W.T})
    (source / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "r": 2}))
    save(source / "d" / "training_args.bin", {"w": W})
    (source / "evil.pth").write_bytes(pickle.dumps({"w": Evil()}))
    save(source / "odd.pt", [1, 2])
    with pytest.warns(UserWarning, match=r"(?s)2 of 5.*evil\.pth.*odd\.pt") as caught:
        written = convert_checkpoints(source, out)
    assert len(caught) == 1
    names = ["a/pytorch_model", "b", "c"]
    assert written == [out / f"{name}.safetensors" for name in names]
    # Nothing else is left, here or there.
    assert not (tmp_path / "PWNED").exists()
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert files == [
        "a/pytorch_model.safetensors",
        "adapter_config.json",
        "b.safetensors",
        "c.safetensors",
    ]
    models = open_models(out)
    by_name = dict(zip(models.names, range(len(models)), strict=True))
    np.testing.assert_array_equal(models[[by_name["a"]]]["tied"][0], W)
    np.testing.assert_array_equal(models[[by_name["a"]]]["row"][0], W[:1].T)
    delta = models[[by_name["c"]]]["x.weight"]
    np.testing.assert_array_equal(delta[0], 2 * W.T @ W)


def test_shards_go_with_their_index(tmp_path):
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for i, name in enumerate(names):
        save(tmp_path / "m" / name, {f"w{i}": W + i})
    index = {"weight_map": {f"w{i}": name for i, name in enumerate(names)}}
    (tmp_path / "m" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert_checkpoints(tmp_path, tmp_path / "out")
    models = open_models(tmp_path / "out")
    assert models.shape == (1, 2)
    np.testing.assert_array_equal(models["w1"][0], W + 1)


def test_files_that_take_too_much_are_stopped(tmp_path):
    # 64 GiB of one number.
    save(tmp_path / "bomb.pt", {"w": torch.ones(1).expand(2**20, 2**14)})
    with pytest.raises(UnsupportedFormatError, match=r"bomb\.pt.*out of proportion"):
        convert_checkpoints(tmp_path, tmp_path / "out")
    start = time.perf_counter()
    with pytest.raises(UnsupportedFormatError, match=r"in 0\.01 s: raise `timeout`"):
        convert_checkpoints(tmp_path, tmp_path / "out", timeout=0.01)
    assert time.perf_counter() - start < 5
    assert not list((tmp_path / "out").rglob("*.*"))


def test_the_process_bounds_itself(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    limits = {}
    monkeypatch.setattr(
        resource, "setrlimit", lambda which, pair: limits.update({which: pair[0]})
    )
    _convert_worker._limit(1000, 7)
    assert limits[resource.RLIMIT_CPU] == 7 and limits[resource.RLIMIT_CORE] == 0
    assert limits[resource.RLIMIT_FSIZE] == 17_000 + 2**21
    if limits[resource.RLIMIT_AS] != resource.RLIM_INFINITY:
        assert 2**30 < limits[resource.RLIMIT_AS] < 2**40


def test_it_gets_no_credentials(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    calls = []

    def run(command, **arguments):
        calls.append((command, arguments))
        raise _convert.subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(_convert.subprocess, "run", run)
    save(tmp_path / "a.pt", {"w": W})
    with pytest.raises(UnsupportedFormatError):
        convert_checkpoints(tmp_path, tmp_path / "out")
    ((command, arguments),) = calls
    assert "HF_TOKEN" not in arguments["env"] and "-I" in command


def test_what_is_asked_of_it(tmp_path):
    with pytest.raises(WeightFileError, match="no pickle checkpoints"):
        convert_checkpoints(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="on_error='no'"):
        convert_checkpoints(tmp_path, tmp_path, on_error="no")
    for timeout in (0, float("inf")):
        with pytest.raises(ValueError, match="timeout="):
            convert_checkpoints(tmp_path, tmp_path, timeout=timeout)


@pytest.mark.parametrize(
    "loaded, names",
    [
        ({"a": W, "step": 1}, ["a"]),
        ({"state_dict": {"a": W}, "b": W}, ["a"]),
        ({"model": {"a": W, "x": None}}, ["a"]),
        ({"model": W, "b": W}, ["model", "b"]),
        ([W], None),
        ({"optimizer": {"a": W}}, None),
        ({1: W}, None),
    ],
)
def test_where_tensors_are_found(loaded, names):
    if names is None:
        with pytest.raises(ValueError, match="no tensors by name"):
            _convert_worker.find_tensors(loaded, torch.Tensor)
    else:
        assert list(_convert_worker.find_tensors(loaded, torch.Tensor)) == names


def test_links_out_of_the_folder_are_not_converted(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    save(source / "a.pt", {"w": W})
    (source / "b.pt").symlink_to(save(tmp_path / "elsewhere.pt", {"w": W}))
    with pytest.warns(UserWarning, match=r"(?s)1 of 2.*b\.pt is a link that leads out"):
        assert convert_checkpoints(source, out) == [out / "a.safetensors"]
    with pytest.raises(UnsupportedFormatError, match=r"b\.pt is a link"):
        convert_checkpoints(source, out, on_error="raise")
