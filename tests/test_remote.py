"""Remote models through a server on this machine: few bytes, and many faults."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext as nothing

import numpy as np
import pytest
import torch
from loopback import COMMIT, Loopback
from safetensors.torch import save, save_file

from skprobex.exceptions import FileChangedError, RemoteError, WeightFileError
from skprobex.files import open_models
from skprobex.files._http import HttpClient, check_redirect
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


def test_token_is_kept_where_a_repository_moves_on_its_hub(
    server, sharded, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    models = open_models("org/sharded")
    for path in [path for path in server.files if path.startswith("/org/sharded/")]:
        moved = path.replace("/org/sharded/", "/org/renamed/")
        server.files[moved] = server.files.pop(path)
        server.redirects[path] = f"{server.url}{moved}"
    server.authorizations.clear()
    np.testing.assert_array_equal(
        models["layers.0.1.weight"][0], sharded["layers.0.1.weight"]
    )
    assert server.authorizations == ["Bearer hf_secret"] * 2


def test_token_does_not_follow_to_another_host(server, sharded, monkeypatch):
    other = Loopback()
    try:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        for path in [path for path in server.files if path.startswith("/org/sharded/")]:
            other.files[path] = server.files.pop(path)
            server.redirects[path] = f"{other.url}{path}"
        models = open_models("org/sharded")
        np.testing.assert_array_equal(
            models["layers.0.1.weight"][0], sharded["layers.0.1.weight"]
        )
        assert set(server.authorizations) == {"Bearer hf_secret"}
        assert other.authorizations and set(other.authorizations) == {None}
    finally:
        other.close()


def test_no_token_where_the_user_forbids_it(server, sharded, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    np.asarray(open_models("org/sharded")["layers.0.1.weight"])
    assert set(server.authorizations) == {None}


# -------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """Three repositories of two owners, with cards, and an empty cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for i, (name, tags) in enumerate(
        [("org/bert-a", ["lora", "nlp"]), ("org/vit", ["lora"]), ("you/bert", [])]
    ):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        save_file({"w": torch.full((2, 3), float(i))}, folder / "model.safetensors")
        card = {"license": "mit", "base_model": ["org/base"], "tags": tags}
        card["datasets"] = ["squad"]
        server.add_repository(name, folder, card=card)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "README.md").write_text("# nothing")
    server.add_repository("org/none", tmp_path / "none")
    return server


def test_cards_of_the_hub_are_metadata(hub):
    models = open_models("org/bert-a")
    assert models.metadata == [
        {
            "license": "mit",
            "base_model": "org/base",
            "datasets": ["squad"],
            "tags": ["lora", "nlp"],
        }
    ]
    models = open_models(["org/bert-a", "org/vit"])
    assert models.labels("tags").y.tolist() == [[1, 1], [1, 0]]
    assert models.labels("license").tolist() == ["mit", "mit"]


def test_owners_and_searches(hub):
    def names(*source, **options):
        with pytest.warns(UserWarning, match="org/none") if is_all else nothing():
            models = open_models(*source, **options)
        assert np.asarray(models["w"]).shape == (len(models), 2, 3)
        return models.names

    is_all = True
    assert names("hf://org/*") == ["org/bert-a", "org/vit"]
    is_all = False
    hub.reset()
    assert names("hf://org/*t") == ["org/vit"]
    # One question for all of them, whatever the owner has.
    assert sum(path.startswith("/api") for path, _ in hub.requests) == 1
    assert names("hf://org/b*@main") == ["org/bert-a"]
    assert names(search="bert") == ["org/bert-a", "you/bert"]
    assert names("hf://org/*", search="bert") == ["org/bert-a"]
    assert names(search={"filter": ["lora", "nlp"]}) == ["org/bert-a"]
    assert names(search={"author": "org", "filter": "lora"}) == [
        "org/bert-a",
        "org/vit",
    ]
    assert names(search={"author": "org", "search": "t", "limit": 1}) == ["org/bert-a"]
    with pytest.raises(RemoteError, match="no repositories for search='nope'"):
        open_models(search="nope")
    with pytest.raises(ValueError, match=r"key 'tags': expected some of .*'filter'"):
        open_models(search={"tags": "lora"})
    with pytest.raises(ValueError, match="source is 'folder'"):
        open_models("folder", search="bert")
    with pytest.raises(WeightFileError, match="only the name of a repository"):
        open_models("hf://o*/bert")
    with pytest.raises(TypeError, match="needs a source, or a search"):
        open_models()


def test_pages_of_the_hub_are_repositories(hub):
    assert open_models(f"{hub.url}/org/vit").names == ["org/vit"]
    assert open_models(f"{hub.url}/org/vit/tree/main").names == ["org/vit"]
    page = f"{hub.url}/org/vit/blob/main/model.safetensors"
    assert open_models(page).names == ["org/vit"]


def into_cache(folder, name, value):
    snapshot = folder / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    save_file({"w": torch.full((2, 3), value)}, snapshot / "model.safetensors")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(COMMIT)


def test_files_in_the_hubs_cache_are_not_fetched(hub, tmp_path):
    into_cache(tmp_path / "hub", "org/vit", 1.0)
    hub.reset()
    assert open_models("org/vit")["w"][0][0, 0] == 1
    assert [path for path, _ in hub.requests] == ["/api/models/org/vit"]


@pytest.mark.parametrize("trouble", ["down", 503, "slow"])
def test_the_cache_stands_in_for_a_hub_out_of_reach(
    hub, trouble, tmp_path, monkeypatch
):
    into_cache(tmp_path / "hub", "org/vit", 8.0)
    into_cache(tmp_path / "hub", "you/bert", 9.0)
    if trouble == "down":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    elif trouble == "slow":
        monkeypatch.setattr("skprobex.files._hub._PATIENCE", 0.3)
        hub.delay = 2.0
    else:
        hub.statuses = {f"/api/models/{n}": 503 for n in ("org/vit", "you/bert", "a/b")}
    with pytest.warns(UserWarning, match="out of reach: 2 repositories") as caught:
        models = open_models(["org/vit", "you/bert"])
    assert len(caught) == 1 and models.names == ["org/vit", "you/bert"]
    assert np.asarray(models["w"])[:, 0, 0].tolist() == [8, 9]
    with pytest.raises(RemoteError, match="not in the hub's cache"):
        open_models("a/b")


def test_a_refusal_is_not_overcome_by_the_cache(hub, tmp_path):
    """Gone, or no longer for this user: not the network's fault."""
    into_cache(tmp_path / "hub", "org/gone", 8.0)
    with pytest.raises(RemoteError, match=r"org/gone.*HTTP 404"):
        open_models("org/gone")
    for status, hint in ((401, "private, gated"), (403, "ask for access")):
        hub.statuses = {"/api/models/org/gone": status}
        with pytest.raises(RemoteError, match=hint):
            open_models("org/gone")


@pytest.mark.parametrize(
    "change",
    [
        {"sha": 5},
        {"sha": None},
        {"sha": "\ud800"},
        {"sha": "../../x"},
        {"sha": "a" * 5000},
        {"siblings": [{"rfilename": 5}]},
        {"siblings": [{"rfilename": ["a"]}]},
        {"siblings": [{"rfilename": "\ud800.safetensors"}]},
        {"siblings": [{"rfilename": "../../../you/bert/model.safetensors"}]},
        {"siblings": [{"rfilename": "/etc/model.safetensors"}]},
        {"siblings": [{"rfilename": "a\\..\\model.safetensors"}]},
        {"siblings": [{}]},
        {"siblings": 3},
        {"siblings": None},
        {"id": None},
        {"cardData": 3},
        {"cardData": {"license": {"a": 1}, "tags": 5}},
        {"tags": {"a": 1}},
        {"lastModified": "yesterday"},
        [],
        3,
        "[" * 100_000,
        "nonsense",
        b"\xff\xfe",
    ],
    ids=lambda change: ascii(change)[:40],
)
def test_answers_of_a_hub_are_not_believed(hub, change):
    """Each ends in a documented error or a model, and the others open."""
    answer = {"id": "org/odd", "sha": COMMIT}
    answer["siblings"] = [{"rfilename": "model.safetensors"}]
    hub.files[f"/org/odd/resolve/{COMMIT}/model.safetensors"] = save(
        {"w": torch.full((2, 3), 7.0)}
    )
    if isinstance(change, dict):
        change = json.dumps({**answer, **change})
    elif not isinstance(change, (str, bytes)):
        change = json.dumps(change)
    body = change if isinstance(change, bytes) else change.encode()
    hub.answers["/api/models/org/odd"] = body
    hub.reset()
    models = open_models(["org/vit", "org/odd"], on_error="ignore")
    assert models.names[0] == "org/vit"
    try:
        assert open_models("org/odd")["w"][0][0, 0] == 7
    except WeightFileError as error:
        assert "org/odd" in str(error)
    assert not any(".." in path or "etc" in path for path, _ in hub.requests)


# ------------------------------------------------------------- servers that mean harm


@pytest.mark.parametrize("what", ["first", "range"])
def test_a_server_that_drips_is_given_up(server, what):
    url, _ = put(server)
    client = HttpClient(patience=0.5)
    server.faults = [("drip", 0.05)] * 20
    started = time.perf_counter()
    with pytest.raises(RemoteError, match=r"within \d+ seconds|too slow"):
        if what == "first":
            client.first_bytes(url, 1000)
        else:
            size = len(server.files["/a.safetensors"])
            client.range(url, 0, 50_000, size, "")
    # Half a second, and a second for each 50 kB.
    assert time.perf_counter() - started < 4


def test_a_server_that_never_answers(server):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.safetensors"
        started = time.perf_counter()
        with pytest.raises(RemoteError, match="did not answer within 1 seconds"):
            HttpClient(patience=1.0).first_bytes(url, 10)
        assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    "header, value",
    [
        ("Content-Range", "bytes 0-9/" + "9" * 5000),
        ("Content-Range", "bytes 0-9/-3"),
        ("Content-Range", "bytes 0-9/\u0663"),
        ("Content-Range", "bytes 0-9/1e3"),
        ("Content-Range", ""),
    ],
)
def test_numbers_of_servers_are_parsed_strictly(server, header, value):
    good, tensor = put(server)
    put(server, "b.safetensors")
    models = open_models([good])
    server.headers[header] = value.encode("utf-8").decode("latin-1")
    with pytest.raises(RemoteError, match="another range"):
        open_models(good)
    with pytest.raises(RemoteError, match="another range"):
        models["w"][0]
    del server.headers[header]
    np.testing.assert_array_equal(models["w"][0], tensor)


@pytest.mark.parametrize("length", ["9" * 5000, "abc", "-3", "", None])
def test_lengths_of_servers_without_ranges(server, length):
    url, _ = put(server)
    models = open_models(url)
    server.ranges = False
    server.headers["Content-Length"] = length
    for call in (lambda: open_models(url), lambda: models["w"][0]):
        try:
            call()
        except WeightFileError as error:
            assert "a.safetensors" in str(error)
        else:
            assert length is None  # the size is known from before


@pytest.mark.parametrize(
    "location",
    [
        "http://[::1",
        "http://\xff\xfe/",
        f"http://{'a' * 300}/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "data:text/plain,x",
        "http://127.0.0.1:99999/",
        "",
        "/a.safetensors",  # to itself, for ever
    ],
)
def test_redirects_that_lead_nowhere(server, location):
    good, _ = put(server, "good.safetensors")
    url, _ = put(server)
    server.redirects["/a.safetensors"] = location
    with pytest.raises(WeightFileError, match=r"a\.safetensors"):
        open_models(url)
    with pytest.warns(UserWarning, match="1 of 2 models"):
        assert open_models([url, good]).names == ["good"]


@pytest.mark.parametrize(
    "url, target, is_refused",
    [
        ("https://8.8.8.8/x", "http://8.8.8.8/x", True),
        ("https://8.8.8.8/x", "https://127.0.0.1/x", True),
        ("https://8.8.8.8/x", "https://169.254.169.254/latest/meta-data", True),
        ("https://8.8.8.8/x", "https://10.0.0.1/x", True),
        ("https://8.8.8.8/x", "https://[::1]/x", True),
        ("https://8.8.8.8/x", "https://9.9.9.9/x", False),
        ("http://8.8.8.8/x", "https://8.8.8.8/x", False),
        ("http://127.0.0.1/x", "http://127.0.0.1:81/x", False),
        ("http://127.0.0.1/x", "https://8.8.8.8/x", False),
    ],
)
def test_redirects_into_private_networks(url, target, is_refused):
    if not is_refused:
        check_redirect(url, target)
        return
    with pytest.raises(RemoteError, match=r"private network|not followed"):
        check_redirect(url, target)


def test_an_index_of_many_shards_is_not_followed(server):
    weight_map = {f"l{i}": f"{i}.safetensors" for i in range(5000)}
    server.files["/m.safetensors.index.json"] = json.dumps(
        {"weight_map": weight_map}
    ).encode()
    with pytest.raises(WeightFileError, match="names 5000 shards"):
        open_models(f"{server.url}/m.safetensors.index.json")
    assert len(server.requests) <= 2


def test_a_file_larger_than_memory_is_named(server, monkeypatch):
    url, _ = put(server)
    models = open_models(url)

    def fail(n_bytes):
        raise MemoryError

    monkeypatch.setattr("skprobex.files._http.bytearray", fail, raising=False)
    with pytest.raises(WeightFileError, match=r"a\.safetensors.*not fit in memory"):
        models["w"][0]


@pytest.mark.parametrize("tag", [None, 'W/"1"'])
def test_content_without_a_tag_is_compared(server, tag, tmp_path):
    """No promise of the server's: the header must be the same, nothing is kept."""
    url, tensor = put(server)
    server.headers["ETag"] = tag
    models = open_models(url)
    server.reset()
    for _ in range(2):
        np.testing.assert_array_equal(models["w"][0], tensor)
    assert server.n_bytes > 2 * tensor.numel() * 4
    server.files["/a.safetensors"] = save(
        {"pad": torch.zeros(20_000), "w": tensor + 1}, {"a": "b"}
    )[: len(server.files["/a.safetensors"])]
    with pytest.raises(FileChangedError, match=r"a\.safetensors has changed"):
        models["w"][0]


def test_a_tag_that_is_missing_later(server):
    """The answer is not kept under a tag that it did not have."""
    url, tensor = put(server)
    models = open_models(url)
    server.headers["ETag"] = None
    np.testing.assert_array_equal(models["w"][0], tensor)
    server.reset()
    np.testing.assert_array_equal(models["w"][0], tensor)
    assert server.n_bytes > tensor.numel() * 4
    put(server, seed=1)
    del server.headers["ETag"]
    with pytest.raises(FileChangedError, match="has changed"):
        models["w"][0]


@pytest.mark.parametrize("folder", ["a\0b", "/proc/nowhere"])
def test_caches_that_cannot_be(server, folder):
    url, tensor = put(server)
    np.testing.assert_array_equal(open_models(url, cache_dir=folder)["w"][0], tensor)


def test_other_file_systems_have_deadlines(monkeypatch):
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    with fsspec.open("memory://slow/a.safetensors", "wb") as file:
        file.write(save({"w": torch.ones(2, 3)}))
    wait = threading.Event()
    monkeypatch.setattr("skprobex.files._locate._LIST_SECONDS", 0.2)
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, **__: wait.wait(20))
    with pytest.raises(RemoteError, match="did not answer within"):
        open_models("memory://slow")
    wait.set()


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


def test_model_j_is_asked_with_the_token(model_j, monkeypatch):
    from skprobex.datasets._model_j import fetch_model_jungle

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch_model_jungle("SupViT", split="val", n_models=1)
    assert set(model_j.authorizations) == {"Bearer hf_secret"}


@pytest.mark.parametrize("answer", [b"<html>", b"[" * 100_000, b'{"a": 1}', b"[1]"])
def test_model_j_is_not_on_what_is_no_hub(model_j, answer):
    from skprobex.datasets._model_j import fetch_model_jungle

    for kind in ("models", "datasets/ProbeX/Model-J"):
        model_j.answers[f"/api/{kind}"] = answer
    for subset in ("SD_200", "SupViT"):
        with pytest.raises(RemoteError, match="HF_ENDPOINT is a hub"):
            fetch_model_jungle(subset)


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
