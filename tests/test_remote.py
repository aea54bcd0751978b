"""Remote models through a server on this machine: few bytes, and many faults."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from loopback import COMMIT, Loopback
from safetensors.torch import save, save_file

from skprobex.exceptions import FileChangedError, RemoteError, WeightFileError
from skprobex.files import open_models
from skprobex.files._http import HttpClient
from skprobex.files._range_cache import RangeCache

CPU = torch.device("cpu")


@pytest.fixture
def server(monkeypatch, tmp_path):
    loopback = Loopback()
    monkeypatch.setenv("HF_ENDPOINT", loopback.url)
    monkeypatch.setenv("SKPROBEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    # Proxies of the machine that runs the tests are none of the server's.
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield loopback
    loopback.close()


@pytest.fixture
def sharded(server, tmp_path):
    """Two shards, 2 MB, in a repository; the layer of interest is 256 kB."""
    folder = tmp_path / "repository"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    weight_map, tensors = {}, {}
    for shard in range(2):
        name = f"model-{shard + 1:05d}-of-00002.safetensors"
        part = {
            f"layers.{shard}.{i}.weight": torch.randn(256, 256, generator=generator)
            for i in range(4)
        }
        save_file(part, folder / name, {"epochs": "3"})
        weight_map.update(dict.fromkeys(part, name))
        tensors.update(part)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    server.add_repository("org/sharded", folder)
    return tensors


def entries(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_one_layer_of_a_sharded_model_costs_one_layer(server, sharded, tmp_path):
    models = open_models("org/sharded")
    assert models.names == ["org/sharded"]
    assert len(models.layers) == 8 and models.labels("epochs").tolist() == [3]
    header_bytes, n_layer = server.n_bytes, 256 * 256 * 4
    # The listing, the index, and the start of each shard.
    assert len(server.requests) == 4 and header_bytes < 80_000
    server.reset()
    weights = models["layers.1.2.weight"]
    assert weights.shape == (1, 256, 256) and server.n_bytes == 0
    np.testing.assert_array_equal(weights[0], sharded["layers.1.2.weight"])
    assert n_layer <= server.n_bytes < 1.1 * n_layer and len(server.requests) == 1
    # A second time, and in a second process, it comes from the cache.
    server.reset()
    (batch,) = pickle.loads(pickle.dumps(weights)).batches(CPU)
    np.testing.assert_array_equal(batch[0], sharded["layers.1.2.weight"])
    assert not server.requests
    # A commit never changes: opening again asks for the listing only.
    again = open_models("org/sharded")
    np.testing.assert_array_equal(
        np.asarray(again["layers.1.2.weight"])[0], sharded["layers.1.2.weight"]
    )
    assert len(server.requests) == 1


def test_many_repositories_keep_their_order(server, tmp_path):
    for i in range(5):
        folder = tmp_path / f"r{i}"
        folder.mkdir()
        save_file({"w": torch.full((2, 3), float(i))}, folder / "model.safetensors")
        server.add_repository(f"org/r{i}", folder)
    models = open_models([f"org/r{i}" for i in (3, 1, 4)])
    assert models.names == ["org/r3", "org/r1", "org/r4"]
    assert np.asarray(models["w"])[:, 0, 0].tolist() == [3, 1, 4]
    assert open_models("hf://org/r2@main").names == ["org/r2"]
    # Same content at the same place in other repositories: another URL, not mixed up.
    assert {path for path, _ in server.requests} >= {
        f"/org/r2/resolve/{COMMIT}/model.safetensors"
    }


def put(server, name="a.safetensors", shape=(300, 300), seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator)
    server.files[f"/{name}"] = save({"pad": torch.zeros(20_000), "w": tensor})
    return f"{server.url}/{name}", tensor


def test_plain_urls(server):
    url, tensor = put(server, "folder/a b.safetensors")
    url = url.replace(" ", "%20")
    models = open_models([url])
    assert models.names == ["folder/a b"]
    np.testing.assert_array_equal(models["w"][0], tensor)
    with pytest.raises(WeightFileError, match="pickle"):
        open_models(f"{server.url}/x.bin")


def test_dropped_connections_resume_where_they_broke(server):
    url, tensor = put(server)
    models = open_models(url)
    server.reset()
    server.faults = [("drop", 100_000), 503, ("drop", 0), ("drop", 200_000), 500]
    np.testing.assert_array_equal(models["w"][0], tensor)
    assert tensor.numel() * 4 == server.n_bytes - len(b"no") * 2
    starts = [int(r.removeprefix("bytes=").split("-")[0]) for _, r in server.requests]
    assert np.diff(starts).tolist() == [100_000, 0, 0, 200_000, 0]


def test_opening_survives_faults(server):
    url, tensor = put(server)
    server.faults = [502, ("drop", 10), 429, 504]
    np.testing.assert_array_equal(open_models(url)["w"][0], tensor)


def test_giving_up_says_so(server):
    url, _ = put(server)
    models = open_models(url)
    server.faults = [500] * 6
    with pytest.raises(RemoteError, match=r"a\.safetensors.*6 attempts.*HTTP 500"):
        models["w"][0]
    server.faults = [403]
    with pytest.raises(RemoteError, match=r"HTTP 403.*may not"):
        models["w"][0]
    with pytest.raises(RemoteError, match="HTTP 404"):
        open_models(f"{server.url}/nope.safetensors")
    with pytest.raises(RemoteError, match=r"no folder here.*HTTP 404"):
        open_models("org/nope")
    server.answers["/api/models/org/page"] = b"<html>"
    with pytest.raises(RemoteError, match="something else than a repository"):
        open_models("org/page")


def test_endless_drops_end(server):
    """A server that always sends a little and drops is given up."""
    url, _ = put(server, shape=(10, 10))
    models = open_models(url)
    server.reset()
    server.faults = [("drop", 3)] * 134
    with pytest.raises(RemoteError, match="6 attempts"):
        models["w"][0]
    assert len(server.requests) == 6


def test_content_that_changes_is_named(server):
    url, tensor = put(server)
    models = open_models(url)
    put(server, seed=1)
    with pytest.raises(FileChangedError, match=r"a\.safetensors has changed"):
        models["w"][0]
    # Another version is another entry of the cache.
    fresh = open_models(url)["w"][0]
    assert not np.array_equal(fresh, tensor)


def test_servers_without_ranges(server):
    url, tensor = put(server)
    server.ranges = False
    np.testing.assert_array_equal(open_models(url)["w"][0], tensor)


def test_remote_corruption_is_skipped_or_raised(server):
    url, _ = put(server)
    server.files["/cut.safetensors"] = server.files["/a.safetensors"][:-10]
    server.files["/empty.safetensors"] = b""
    urls = [url, f"{server.url}/cut.safetensors", f"{server.url}/empty.safetensors"]
    with pytest.warns(UserWarning, match="2 of 3"):
        assert open_models(urls).names == ["a"]
    with pytest.raises(WeightFileError, match=r"cut\.safetensors"):
        open_models(urls, on_error="raise")


def test_token_goes_to_the_hub_only(server, sharded, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    open_models("org/sharded")
    assert set(server.authorizations) == {"Bearer hf_secret"}
    server.authorizations.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    url, _ = put(server)
    open_models(url)
    assert set(server.authorizations) == {None}


def test_memory_file_system_of_fsspec(tmp_path):
    import fsspec

    tensor = torch.randn(3, 4)
    for i in range(2):
        with fsspec.open(f"memory://zoo/m{i}.safetensors", "wb") as file:
            file.write(save({"w": tensor + i}))
    models = open_models("memory://zoo", cache_dir=tmp_path)
    assert models.names == ["m0", "m1"]
    np.testing.assert_array_equal(models["w"], torch.stack([tensor, tensor + 1]))
    assert open_models("memory://zoo/*1.safetensors", cache_dir=tmp_path).names == [
        "m1"
    ]
    with pytest.raises(WeightFileError, match="cannot be listed"):
        open_models("nosuchscheme://zoo")


def test_cache_has_whole_entries_or_none(tmp_path, monkeypatch):
    cache = RangeCache(tmp_path)
    cache.write("u", "t", 0, b"abc")
    assert cache.read("u", "t", 0, 3) == b"abc"
    assert cache.read("u", "other", 0, 3) is None and cache.read("u", "t", 1, 3) is None
    (entry,) = entries(tmp_path)
    entry.write_bytes(b"ab")
    assert cache.read("u", "t", 0, 3) is None

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("skprobex.files._range_cache.os.replace", fail)
    cache.write("u", "t", 8, b"abc")  # costs the cache, not the result
    assert entries(tmp_path) == [entry]
    RangeCache("/proc/nowhere").write("u", "t", 0, b"abc")


def test_killed_while_downloading(server, tmp_path):
    """kill -9 leaves no entry that reads as something else than the truth."""
    url, tensor = put(server, shape=(1000, 1000))
    cache = tmp_path / "killed"
    code = (
        "import sys, numpy as np\n"
        "from skprobex.files import open_models, _range_cache\n"
        "import os, signal\n"
        "def die(fd):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "models = open_models(sys.argv[1], cache_dir=sys.argv[2])\n"
        # Killed when the bytes are written, and not yet in their place.
        "_range_cache.os.fsync = die\n"
        "np.asarray(models['w'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, url, str(cache)], check=False)
    assert done.returncode == -signal.SIGKILL
    left = [p for p in entries(cache) if not p.name.startswith(".")]
    assert all(p.stat().st_size <= 32 * 1024 + 200 for p in left)
    server.reset()
    models = open_models(url, cache_dir=cache)
    np.testing.assert_array_equal(models["w"][0], tensor)
    assert server.n_bytes >= tensor.numel() * 4  # it was fetched again, whole
    assert not [p for p in entries(cache) if p.name.startswith(".")]
    server.reset()
    np.testing.assert_array_equal(models["w"][0], tensor)
    assert server.n_bytes == 0


def test_client_gives_up_within_its_time(server):
    client = HttpClient(max_attempts=2)
    with pytest.raises(RemoteError, match="2 attempts"):
        client.first_bytes("http://127.0.0.1:9/x", 10)
    assert os.environ["HF_ENDPOINT"] == server.url


# --------------------------------------------------------------------------- Model-J

VIT_LAYER = "vit.encoder.layer.7.attention.output.dense.weight"


@pytest.fixture
def model_j(server, tmp_path):
    """The hub's two ways of holding a subset, in small."""
    table = tmp_path / "table" / "SupViT"
    table.mkdir(parents=True)
    number = 0
    for split, n_models in [("train", 4), ("val", 2), ("test", 2)]:
        rows = ["hf_model_id,hf_model_url"]
        for _ in range(n_models):
            name = f"ProbeX/Model-J__SupViT__model_idx_{number:04d}"
            folder = tmp_path / name
            folder.mkdir(parents=True)
            targets = ["apple", "bee", "cat"][number % 2 : 2 + number % 2]
            metadata = {"dataset_chosen_targets": str(targets), "seed": str(number)}
            tensors = {
                VIT_LAYER: torch.full((64, 64), float(number)),
                "vit.rest.weight": torch.zeros(512, 512),
            }
            save_file(tensors, folder / "model.safetensors", metadata)
            server.add_repository(name, folder)
            rows.append(f"{name},https://huggingface.co/{name}")
            number += 1
        (table / f"{split}.csv").write_text("\n".join(rows))
    server.add_repository("ProbeX/Model-J", table.parent, kind="datasets")

    name, module = "ProbeX/Model-J__SD_200", fetch_layer()
    for split in ("train", "test_holdout"):
        for i in range(2):
            folder = tmp_path / name / split / f"model_idx_{i:04d}"
            folder.mkdir(parents=True)
            tensors = {
                f"{module}.lora.down.weight": torch.ones(2, 3),
                f"{module}.lora.up.weight": torch.full((4, 2), float(i)),
            }
            metadata = {"imagenet_class_id": f"n0{i}", "imagenet_class_name": "fox"}
            path = folder / "pytorch_lora_weights.safetensors"
            save_file(tensors, path, metadata)
    server.add_repository(name, tmp_path / name)
    listing = [{"id": f"{name}_other"}, {"id": name}, {"id": "ProbeX/else"}]
    server.answers["/api/models"] = json.dumps(listing).encode()
    return server


def fetch_layer():
    from skprobex.datasets._model_j import _SUBSETS

    return _SUBSETS["SD_200"].layer.removesuffix(".weight")


def test_fetching_a_subset_of_networks(model_j):
    from skprobex.datasets._model_j import fetch_model_jungle

    jungle = fetch_model_jungle("SupViT")
    assert jungle.layer == VIT_LAYER and jungle.W.shape == (8, 64, 64)
    assert jungle.split.tolist() == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    assert jungle.classes.tolist() == ["apple", "bee", "cat"]
    assert jungle.y.tolist() == [[1, 1, 0], [0, 1, 1]] * 4
    assert jungle.models.labels("seed").tolist() == list(range(8))
    assert "SupViT" in jungle.DESCR
    # The rest of the models, a megabyte each, was not touched.
    assert model_j.n_bytes < 8 * (64 * 64 * 4 + 36_000) + 10_000
    model_j.reset()
    np.testing.assert_array_equal(np.asarray(jungle.W)[:, 0, 0], np.arange(8))
    assert not model_j.requests
    W, y = fetch_model_jungle("SupViT", split="val", n_models=1, return_X_y=True)
    assert W.shape == (1, 64, 64) and y.shape == (1, 2)


def test_fetching_a_subset_of_adapters(model_j, capfd):
    from skprobex.datasets._model_j import fetch_model_jungle

    jungle = fetch_model_jungle("SD_200", split=["train", "test_holdout"], verbose=1)
    assert jungle.W.is_low_rank and jungle.W.shape == (4, 4, 3)
    assert jungle.y.tolist() == ["fox"] * 4 and jungle.classes.tolist() == ["fox"]
    assert jungle.split.tolist() == ["train"] * 2 + ["test_holdout"] * 2
    np.testing.assert_array_equal(np.asarray(jungle.W)[:, 0, 0], [0, 2, 0, 2])
    assert "Model-J" in capfd.readouterr().err


def test_model_j_says_what_it_has(model_j):
    from skprobex.datasets._model_j import fetch_model_jungle

    with pytest.raises(ValueError, match=r"subset='x'.*SupViT"):
        fetch_model_jungle("x")
    with pytest.raises(ValueError, match="no split 'val_holdout'"):
        fetch_model_jungle("DINO", split="val_holdout")
    with pytest.raises(RemoteError, match="no table of DINO"):
        fetch_model_jungle("DINO", split="val")
    with pytest.raises(RemoteError, match="no repository of SD_1k"):
        fetch_model_jungle("SD_1k")


def test_a_missing_repository_is_left_out_of_a_list(server, sharded):
    with pytest.warns(UserWarning, match="1 of 2 models"):
        models = open_models(["org/sharded", "org/missing"])
    assert models.names == ["org/sharded"]
    with pytest.raises(RemoteError, match="org/missing"):
        open_models(["org/sharded", "org/missing"], on_error="raise")
    with pytest.raises(WeightFileError, match="empty list"):
        open_models([])
