"""Folders as people have them: what is a model, what is not, and what it is called."""

import json
import os
import pickle
import time
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from skprobex.exceptions import (
    CorruptFileError,
    UnsupportedFormatError,
    WeightFileError,
)
from skprobex.files import open_models
from skprobex.files._layouts import group_files


def model(path, value=0.0, layers=("a.weight", "b.weight"), metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.full((2, 3), value) for name in layers}, path, metadata)
    return path


def sharded(folder, value=0.0, n=2):
    shards = [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
    for i, shard in enumerate(shards):
        model(folder / shard, value + i, [f"layer.{i}.weight"])
    index = {
        "metadata": {"total_size": 48},
        "weight_map": {f"layer.{i}.weight": shard for i, shard in enumerate(shards)},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder, index


def test_flat_folder(tmp_path):
    for name in ("b", "a", "2100-lora", "Copy of a"):
        model(tmp_path / f"{name}.safetensors")
    assert open_models(tmp_path).names == ["2100-lora", "Copy of a", "a", "b"]


def test_a_folder_per_model_at_any_depth(tmp_path):
    model(tmp_path / "x" / "model.safetensors", 1.0)
    model(tmp_path / "x" / "checkpoint-10" / "model.safetensors", 2.0)
    model(tmp_path / "deep" / "er" / "adapter_model.safetensors", 3.0)
    model(tmp_path / "deep" / "er" / "Copy of adapter_model.safetensors", 3.0)
    model(tmp_path / "y" / "diffusion_pytorch_model.fp16.safetensors", 4.0)
    models = open_models(tmp_path)
    assert models.names == [
        "deep/er",
        "deep/er/Copy of adapter_model",
        "x",
        "x/checkpoint-10",
        "y",
    ]
    assert np.asarray(models["a.weight"])[:, 0, 0].tolist() == [3, 3, 1, 2, 4]
    assert open_models(tmp_path / "x").names == ["x", "checkpoint-10"][::-1]


def test_shards_with_and_without_index(tmp_path):
    sharded(tmp_path / "with", 1.0)
    folder, _ = sharded(tmp_path / "without", 5.0)
    (folder / "model.safetensors.index.json").unlink()
    # The same model in another format, as its authors publish it.
    model(tmp_path / "with" / "consolidated.safetensors", 9.0, ["layers.0.w"])
    models = open_models(tmp_path, on_error="raise")
    assert models.names == ["with", "without"]
    assert list(models.layers) == ["layer.0.weight", "layer.1.weight"]
    assert np.asarray(models["layer.1.weight"])[:, 0, 0].tolist() == [2, 6]


def test_missing_shard_and_wrong_index(tmp_path):
    folder, _ = sharded(tmp_path / "m")
    shard = folder / "model-00002-of-00002.safetensors"
    data = shard.read_bytes()
    shard.unlink()
    with pytest.raises(CorruptFileError, match="00002-of-00002"):
        open_models(tmp_path)
    (folder / "model.safetensors.index.json").rename(folder / "index")
    with pytest.raises(CorruptFileError, match=r"00002-of-00002.*missing"):
        open_models(tmp_path)
    (folder / "index").rename(folder / "model.safetensors.index.json")
    shard.write_bytes(data)
    open_models(tmp_path, on_error="raise")

    def with_map(weight_map):
        text = weight_map if isinstance(weight_map, str) else json.dumps(weight_map)
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CorruptFileError, match=r"index\.json") as raised:
            open_models(tmp_path, on_error="raise")
        return str(raised.value)

    name = "model-00001-of-00002.safetensors"
    assert "layer.9" in with_map({"weight_map": {"layer.9.weight": name}})
    assert "same folder" in with_map({"weight_map": {"a": "../x.safetensors"}})
    assert "same folder" in with_map({"weight_map": {"a": "/etc/passwd"}})
    assert "same folder" in with_map({"weight_map": {"a": 3}})
    for text in ("", "[]", "{}", '{"weight_map": []}', "[" * 100_000):
        assert "no shard index" in with_map(text)


def cached(root, repository, commit="c" * 40, ref="main", **files):
    folder = root / f"models--{repository.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True)
    snapshot = folder / "snapshots" / commit
    for i, (name, value) in enumerate(files.items()):
        blob = model(folder / "blobs" / f"{commit[:4]}{i}", value)
        name = name.replace("__", "/")
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / f"{name}.safetensors").symlink_to(
            os.path.relpath(blob, (snapshot / name).parent)
        )
    if ref:
        (folder / "refs").mkdir()
        (folder / "refs" / ref).write_text(commit)
    return folder


def test_hugging_face_cache(tmp_path):
    folder = cached(tmp_path, "org/one", model=1.0)
    cached(tmp_path, "org/many", train__m0__model=2.0, train__m1__model=3.0)
    cached(tmp_path, "org/no-ref", ref=None, model=4.0)
    # An older snapshot that no reference names.
    old = model(folder / "snapshots" / "old" / "model.safetensors", 9.0)
    (folder / "blobs" / "x.incomplete").write_bytes(b"abc")
    (tmp_path / ".locks" / "models--org--one").mkdir(parents=True)
    model(tmp_path / ".locks" / "models--org--one" / "model.safetensors")
    models = open_models(tmp_path, on_error="raise")
    assert models.names == [
        "org/many/train/m0",
        "org/many/train/m1",
        "org/no-ref",
        "org/one",
    ]
    assert np.asarray(models["a.weight"])[:, 0, 0].tolist() == [2, 3, 4, 1]
    assert open_models(folder).names == ["org/one"]
    assert open_models(folder, revision="old")["a.weight"][0][0, 0] == 9
    with pytest.raises(WeightFileError, match="no snapshot of revision 'nope'"):
        open_models(folder, revision="nope")
    assert old.exists()


def test_hub_ids_come_from_the_cache_when_offline(tmp_path, monkeypatch):
    cached(tmp_path, "org/one", model=1.0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert open_models("org/one").names == ["org/one"]
    with pytest.raises(WeightFileError, match="HF_HUB_OFFLINE"):
        open_models("org/two")


def test_pipeline_is_one_model(tmp_path):
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    model(tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors", 1.0)
    model(tmp_path / "pipe" / "text_encoder" / "model.safetensors", 2.0, ["x.weight"])
    models = open_models(tmp_path)
    assert models.names == ["pipe"]
    assert list(models.layers) == [
        "text_encoder.x.weight",
        "unet.a.weight",
        "unet.b.weight",
    ]
    assert models["text_encoder.x.weight"][0][0, 0] == 2


def test_jumble_opens_with_one_warning(tmp_path):
    good = model(tmp_path / "good.safetensors", 1.0)
    whole = good.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-5])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "two.safetensors").write_bytes(b"{}")
    (tmp_path / "page.safetensors").write_bytes(b"<html>" * 100)
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "partial.safetensors.incomplete").write_bytes(whole[:20])
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to("self")
    with pytest.warns(UserWarning) as caught:
        models = open_models(tmp_path)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "5 of 6 models" in message
    for name in ("cut", "empty", "two", "page", "dangling"):
        assert f"{name}.safetensors" in message
    assert models.names == ["good"]
    assert open_models(tmp_path, on_error="ignore").names == ["good"]
    with pytest.raises(WeightFileError, match="cut short"):
        open_models(tmp_path, on_error="raise")
    (tmp_path / "more.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="and 1 more"):
        open_models(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.ckpt", "x.pth"])
def test_pickles_are_refused_with_the_way_out(tmp_path, name):
    mark = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return (mark.touch, ())

    (tmp_path / name).write_bytes(pickle.dumps(Attack()))
    for source in (tmp_path, tmp_path / name, [tmp_path / name], f"{tmp_path}/*"):
        with pytest.raises(
            UnsupportedFormatError, match=r"(?s)never opened.*save_file"
        ):
            open_models(source)
    assert not mark.exists()


def test_gguf_and_nothing(tmp_path):
    with pytest.raises(WeightFileError, match="holds no safetensors"):
        open_models(tmp_path)
    (tmp_path / "training_args.bin").write_bytes(b"")
    with pytest.raises(WeightFileError, match="holds no safetensors"):
        open_models(tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedFormatError, match="GGUF"):
        open_models(tmp_path)
    with pytest.raises(WeightFileError, match="does not exist"):
        open_models(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="source is a int"):
        open_models(3)
    with pytest.raises(ValueError, match="on_error"):
        open_models(tmp_path, on_error="maybe")


def test_globs_and_lists(tmp_path):
    for i in range(3):
        model(tmp_path / f"run{i}" / "model.safetensors", float(i))
    models = open_models(f"{tmp_path}/run*/model.safetensors")
    assert models.names == ["run0", "run1", "run2"]
    assert open_models(f"{tmp_path}/run[12]").names == ["run1", "run2"]
    # A list keeps its order, as its labels do.
    paths = [tmp_path / "run2", tmp_path / "run0" / "model.safetensors"]
    models = open_models(paths)
    assert models.names == ["run2", "run0"]
    assert np.asarray(models["a.weight"])[:, 0, 0].tolist() == [2, 0]
    assert open_models((tmp_path / "run1").as_uri()).names == ["run1"]
    single = open_models(tmp_path / "run1" / "model.safetensors")
    assert single.names == ["model"]


def test_names_are_unique_whatever_the_files_are_called():
    files = ["a.safetensors", "a/model.safetensors", "model.safetensors"]
    names = [m.name for m in group_files(files, "a", str)]
    assert len(set(names)) == 3


def test_adapter_config_is_metadata(tmp_path):
    model(tmp_path / "x" / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"base_model_name_or_path": "org/base", "r": 4}
    (tmp_path / "x" / "adapter_config.json").write_text(json.dumps(config))
    assert open_models(tmp_path).metadata == [{**config, "format": "pt"}]
    (tmp_path / "x" / "adapter_config.json").write_text("{")
    with pytest.raises(CorruptFileError, match="no PEFT configuration"):
        open_models(tmp_path)


def test_ten_thousand_adapters(tmp_path):
    """Opened in seconds, and in little memory: equal layers are kept once."""
    tensors = {}
    for i in range(4):
        tensors[f"base_model.model.layers.{i}.lora_A.weight"] = torch.zeros(2, 8)
        tensors[f"base_model.model.layers.{i}.lora_B.weight"] = torch.zeros(8, 2)
        tensors[f"base_model.model.layers.{i}.alpha"] = torch.ones(())
    # Metadata of other lengths move the tensors, and are no other layers.
    data = [save(tensors, {"epochs": "3" * (1 + i * 5)}) for i in range(10)]
    for i in range(10_000):
        (tmp_path / f"m{i:05d}.safetensors").write_bytes(data[i % 10])
    start = time.perf_counter()
    models = open_models(tmp_path)
    elapsed = time.perf_counter() - start
    assert models.shape == (10_000, 4)
    assert len({id(m.specs) for m in models._store.models}) == 1
    assert elapsed < 20
    assert models["layers.2.weight"].shape == (10_000, 8, 8)
    assert (models.groups == 0).all()


def test_progress_bar_only_when_asked(tmp_path, capfd):
    model(tmp_path / "a.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_models(tmp_path)
        assert capfd.readouterr() == ("", "")
        open_models(tmp_path, verbose=1)
    out, err = capfd.readouterr()
    assert out == "" and "open_models" in err
