"""Folders as people have them: what is a model, what is not, and what it is called."""

import json
import os
import pickle
import socket
import subprocess
import time
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from skprobex import ProbeXClassifier, load
from skprobex.exceptions import (
    CorruptFileError,
    UnsupportedFormatError,
    WeightFileError,
)
from skprobex.files import open_models, save_models
from skprobex.files._layouts import group_files
from skprobex.files._runs import last_of_stems


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
    models = open_models(tmp_path, checkpoints="all")
    assert models.names == [
        "deep/er",
        "deep/er/Copy of adapter_model",
        "x",
        "x/checkpoint-10",
        "y",
    ]
    assert np.asarray(models["a.weight"])[:, 0, 0].tolist() == [3, 3, 1, 2, 4]
    models = open_models(tmp_path / "x", checkpoints="all")
    assert models.names == ["checkpoint-10", "x"]


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
    folder = cached(tmp_path, "org/one", model=1.0, sub__model=3.0)
    model(folder / "snapshots" / ("d" * 40) / "model.safetensors", 2.0)
    (folder / "refs" / "v2").write_text("d" * 40)
    cached(tmp_path, "org/two", model=4.0)
    cached(tmp_path, "other/three", model=5.0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    def first(source, **options):
        models = open_models(source, **options)
        return models.names, np.asarray(models["a.weight"])[:, 0, 0].tolist()

    assert first("org/one") == (["org/one", "org/one/sub"], [1, 3])
    assert first("hf://org/one@v2") == (["org/one"], [2])
    assert first("org/one", revision="v2") == (["org/one"], [2])
    assert first("hf://org/one@" + "d" * 40) == (["org/one"], [2])
    assert first("hf://org/one/sub") == (["org/one/sub"], [3])
    assert first("hf://org/one@main/sub/model.safetensors") == (["org/one/sub"], [3])
    names = ["org/one", "org/one (2)"]
    assert first(["hf://org/one@v2", "hf://org/one@v2"]) == (names, [2, 2])
    assert first("hf://org/*")[0] == ["org/one", "org/one/sub", "org/two"]
    assert first("hf://org/t*") == (["org/two"], [4])
    for source in ("org/none", "hf://org/one@nope", "hf://org/one@../main"):
        with pytest.raises(WeightFileError, match=r"not in .* at revision.*OFFLINE"):
            open_models(source)
    with pytest.raises(WeightFileError, match="org/one/no holds no safetensors"):
        open_models("hf://org/one@v2/no")
    with pytest.raises(WeightFileError, match="no such repositories"):
        open_models("hf://nobody/*")
    with pytest.raises(WeightFileError, match="OFFLINE forbids"):
        open_models(search="one")
    # TRANSFORMERS_OFFLINE and HF_HOME are honoured as well.
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_HUB_CACHE")
    (tmp_path / "hub").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert first("org/two") == (["org/two"], [4])


def test_snapshots_are_opened_by_their_own_path(tmp_path):
    folder = cached(tmp_path, "org/one", model=1.0)
    models = open_models(folder / "snapshots" / ("c" * 40), on_error="raise")
    assert models.names == ["org/one"] and models.skipped_ == {}


def test_references_lead_nowhere_else(tmp_path):
    folder = cached(tmp_path, "org/one", model=1.0)
    model(tmp_path / "secret" / "model.safetensors", 9.0)
    for text in ("../../secret", "..", ".", "", "\0", "a" * 10_000):
        (folder / "refs" / "main").write_text(text)
        assert open_models(folder)["a.weight"][0][0, 0] == 1  # the only snapshot
    if hasattr(os, "mkfifo"):
        (folder / "refs" / "main").unlink()
        os.mkfifo(folder / "refs" / "main")
        assert open_models(folder).names == ["org/one"]


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


def test_pipelines_with_shards_and_several_precisions(tmp_path):
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    sharded(tmp_path / "pipe" / "transformer", 1.0)
    model(tmp_path / "pipe" / "vae" / "diffusion_pytorch_model.safetensors", 5.0, ["v"])
    model(tmp_path / "pipe" / "vae" / "diffusion_pytorch_model.fp16.safetensors", 6.0)
    model(tmp_path / "pipe" / "safety_checker" / "model.safetensors", 7.0)
    model(tmp_path / "pipe" / "all_in_one.safetensors", 8.0)
    models = open_models(tmp_path, on_error="raise")
    assert models.names == ["pipe"]
    assert list(models.layers) == [
        "transformer.layer.0.weight",
        "transformer.layer.1.weight",
        "vae.v",
    ]
    assert models["transformer.layer.1.weight"][0][0, 0] == 2
    assert models["vae.v"][0][0, 0] == 5
    assert set(models.skipped_) == {
        "pipe/all_in_one.safetensors",
        "pipe/vae/diffusion_pytorch_model.fp16.safetensors",
    }


def test_components_are_no_models(tmp_path):
    """Without a list of components as well, and whatever lies beside them."""
    for part, value in (("unet", 1.0), ("vae", 2.0), ("text_encoder", 3.0)):
        model(tmp_path / "sd" / part / "model.safetensors", value, ["w"])
    for part, value in (("", 4.0), ("vae", 5.0), ("image_encoder", 6.0)):
        model(tmp_path / "root" / part / "model.safetensors", value, ["w"])
    model(tmp_path / "st" / "model.safetensors", 7.0, ["w"])
    model(tmp_path / "st" / "2_Dense" / "model.safetensors", 8.0, ["linear.weight"])
    (tmp_path / "st" / "modules.json").write_text("[]")
    # A folder that is called as a component is, and is none.
    model(tmp_path / "zoo" / "transformer" / "model.safetensors", 9.0, ["w"])
    model(tmp_path / "zoo" / "mlp" / "model.safetensors", 10.0, ["w"])
    model(tmp_path / "vae" / "model.safetensors", 11.0, ["w"])
    models = open_models(tmp_path, on_error="raise")
    assert models.names == ["root", "sd", "st", "vae", "zoo/mlp", "zoo/transformer"]
    one = models.select("sd")
    assert one["unet.w"][0][0, 0] == 1 and one["text_encoder.w"][0][0, 0] == 3
    one = models.select("st")
    assert one["w"][0][0, 0] == 7 and one["2_Dense.linear.weight"][0][0, 0] == 8
    assert models.select("root")["w"][0][0, 0] == 4
    assert set(models.skipped_) == {
        "root/vae/model.safetensors",
        "root/image_encoder/model.safetensors",
    }


# ---------------------------------------------------------------- shards by any name


def indexed(folder, names, index="model.safetensors.index.json"):
    for i, name in enumerate(names):
        model(folder / name, float(i), [f"layer.{i}.weight"])
    weight_map = {f"layer.{i}.weight": name for i, name in enumerate(names)}
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    "names",
    [
        [f"model-{i:05d}-of-000163.safetensors" for i in range(1, 4)],
        ["model-1-of-2.safetensors", "model-2-of-2.safetensors"],
        ["model-a.safetensors", "model-b.safetensors"],
        ["consolidated-00001-of-00002.safetensors", "x.safetensors"],
        ["original/model.safetensors", "original/b.safetensors"],
        ["consolidated.safetensors", "model.safetensors"],
        ["model-00001-of-00002.safetensors", "model-extra.safetensors"],
        [f"model-{i}.safetensors" for i in range(12)],
    ],
    ids=lambda names: names[0],
)
def test_what_an_index_names_belongs_to_it(names, tmp_path):
    indexed(tmp_path / "m", names)
    models = open_models(tmp_path, on_error="raise")
    assert models.names == ["m"] and len(models.layers) == len(names)
    for i in range(len(names)):
        assert models[f"layer.{i}.weight"][0][0, 0] == i
    models = open_models(f"{tmp_path}/m/**", on_error="raise")
    assert len(models) == 1 and len(models.layers) == len(names)


@pytest.mark.parametrize(
    "names",
    [
        ["model-1-of-3.safetensors", "model-2-of-3.safetensors"],
        ["model-000001-of-000003.safetensors", "model-000003-of-000003.safetensors"],
        ["model_0_of_3.safetensors", "model_1_of_3.safetensors"],
    ],
)
def test_shards_that_are_missing_without_an_index(names, tmp_path):
    for i, name in enumerate(names):
        model(tmp_path / "m" / name, 0.0, [f"l{i}"])
    with pytest.raises(CorruptFileError, match=r"is missing beside.*expected 3 shards"):
        open_models(tmp_path)
    last = {"1": "3", "000001": "000002", "0": "2"}[names[0].split("of")[0][6:-1]]
    spelt = names[0].split("of")[0].replace(names[0].split("of")[0][6:-1], last)
    model(tmp_path / "m" / (spelt + "of" + names[0].split("of")[1]), 0.0, ["l2"])
    assert len(open_models(tmp_path, on_error="raise").layers) == 3


def test_shards_of_another_precision(tmp_path):
    """diffusers puts the precision into the names of index and shards."""
    names = [f"m-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
    indexed(tmp_path / "m", names, "m.safetensors.index.fp16.json")
    assert open_models(tmp_path, on_error="raise").names == ["m"]
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    indexed(tmp_path / "n", names)
    names = [f"model-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
    for name in names:
        model(tmp_path / "n" / name, 9.0, ["layer.0.weight"])
    models = open_models(tmp_path / "n", on_error="raise")
    assert models.names == ["n"] and models["layer.0.weight"][0][0, 0] == 0
    assert list(models.skipped_) == [names[0]]


def test_shards_of_another_version_are_told_of(tmp_path):
    folder = indexed(
        tmp_path / "m", ["model-00001-of-00002.safetensors", "b.safetensors"]
    )
    model(folder / "model-00002-of-00002.safetensors", 9.0)
    with pytest.warns(UserWarning, match="a shard that the index beside it does not"):
        models = open_models(tmp_path)
    assert models.names == ["m"]


def test_the_same_model_in_its_authors_format(tmp_path):
    sharded(tmp_path / "m", 1.0)
    model(tmp_path / "m" / "original" / "consolidated.00.safetensors", 9.0)
    model(tmp_path / "n" / "model.safetensors", 2.0, ["layer.0.weight"])
    model(tmp_path / "n" / "consolidated.safetensors", 9.0)
    models = open_models(tmp_path, on_error="raise")
    assert models.names == ["m", "n"]
    assert set(models.skipped_) == {
        "m/original/consolidated.00.safetensors",
        "n/consolidated.safetensors",
    }
    # Alone it is a model.
    model(tmp_path / "o" / "consolidated.safetensors", 3.0)
    assert "o/consolidated" in open_models(tmp_path).names


def test_indices_that_name_too_many_shards_or_odd_ones(tmp_path):
    folder, _ = sharded(tmp_path / "m")
    model(tmp_path / "good.safetensors")
    bad = ["a\0b.safetensors", "\ud800.safetensors", "x" * 5000 + ".safetensors"]
    bad += ["a/../../b.safetensors", "a//b.safetensors", "c:b.safetensors"]
    for shards in (
        *([name] for name in bad),
        [f"{i}.safetensors" for i in range(3000)],
    ):
        weight_map = {f"l{i}": shard for i, shard in enumerate(shards)}
        index = json.dumps({"weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(index)
        with pytest.warns(UserWarning, match="1 of 2 models"):
            assert open_models(tmp_path).names == ["good"]
        with pytest.raises(CorruptFileError, match=r"names (the shard|3000 shards)"):
            open_models(tmp_path, on_error="raise")


# --------------------------------------------------------------- checkpoints of one run


def test_checkpoints_of_one_run_are_one_model(tmp_path):
    for step in (500, 1000, 20):
        for run in ("end", "open"):
            path = tmp_path / run / f"checkpoint-{step}" / "model.safetensors"
            model(path, float(step))
            (path.parent / "optimizer.pt").write_bytes(b"")
    model(tmp_path / "end" / "model.safetensors", 7.0)
    with pytest.warns(
        UserWarning, match="5 x a checkpoint of a training run"
    ) as caught:
        models = open_models(tmp_path)
    assert len(caught) == 1 and "checkpoints='all'" in str(caught[0].message)
    assert models.names == ["end", "open"]
    assert np.asarray(models["a.weight"])[:, 0, 0].tolist() == [7, 1000]
    assert sorted(models.skipped_) == [
        "end/checkpoint-1000",
        "end/checkpoint-20",
        "end/checkpoint-500",
        "open/checkpoint-20",
        "open/checkpoint-500",
    ]
    everything = open_models(tmp_path, checkpoints="all")
    assert everything.names == [
        "end",
        "end/checkpoint-20",
        "end/checkpoint-500",
        "end/checkpoint-1000",
        "open/checkpoint-20",
        "open/checkpoint-500",
        "open/checkpoint-1000",
    ]
    with pytest.raises(ValueError, match="checkpoints='best'"):
        open_models(tmp_path, checkpoints="best")
    with pytest.warns(UserWarning, match="checkpoint"):
        assert open_models(tmp_path / "open").names == ["open"]
    # Patterns and lists call models as the folder does.
    with pytest.warns(UserWarning, match="checkpoint"):
        assert open_models(f"{tmp_path}/*").names == ["end", "open"]
    with pytest.warns(UserWarning, match="checkpoint"):
        listed = open_models([tmp_path / "open", tmp_path / "end"])
    assert listed.names == ["open", "end"]
    assert open_models(tmp_path / "open" / "checkpoint-20").names == ["checkpoint-20"]


@pytest.mark.parametrize(
    "folders",
    [
        ["epoch_2", "epoch_10"],
        ["step-9", "step-10"],
        ["global_step9", "global_step100"],
        ["iter_0000900", "iter_0001000"],
        ["epoch=2-step=900", "epoch=10-step=20"],
        ["ckpt-2", "ckpt-10"],
        ["Checkpoint_2", "Checkpoint_10"],
    ],
    ids=lambda folders: folders[0],
)
def test_other_spellings_of_checkpoints(folders, tmp_path):
    for i, folder in enumerate(folders):
        path = (
            tmp_path / "run" / folder / "unet" / "diffusion_pytorch_model.safetensors"
        )
        model(path, float(i))
    with pytest.warns(UserWarning, match="1 x a checkpoint"):
        models = open_models(tmp_path)
    assert models.names == ["run/unet"] and models["a.weight"][0][0, 0] == 1


def test_checkpoints_beside_other_models(tmp_path):
    """A folder of models that holds a run's checkpoints as well."""
    model(tmp_path / "zoo" / "other.safetensors", 1.0)
    for step in (5, 10):
        model(
            tmp_path / "zoo" / f"checkpoint-{step}" / "model.safetensors", float(step)
        )
        (tmp_path / "zoo" / f"checkpoint-{step}" / "adapter_config.json").write_text(
            json.dumps({"step": step})
        )
    with pytest.warns(UserWarning, match="1 x a checkpoint"):
        models = open_models(tmp_path)
    assert models.names == ["zoo/checkpoint-10", "zoo/other"]
    assert models.metadata == [{"step": 10}, {}]


@pytest.mark.parametrize(
    "stems, names",
    [
        (["lora-000002", "lora-000004", "lora"], ["lora"]),
        (["lora-step00000500", "lora-step00001000"], ["lora"]),
        (["0000100_adapters", "0000200_adapters", "adapters"], ["adapters"]),
        (["net_epoch_9", "net_epoch_10", "other_epoch_3"], ["net", "other_epoch_3"]),
        (["model-step-5", "model-step-10"], [""]),
        (["checkpoint-5", "checkpoint-10"], [""]),
        (["checkpoint-5", "model"], [""]),
        # Numbers that count models, not steps.
        (["model_0001", "model_0002"], ["model_0001", "model_0002"]),
        (["lora-000002", "lora-000004"], ["lora-000002", "lora-000004"]),
        (["2100-lora", "2200-lora"], ["2100-lora", "2200-lora"]),
    ],
)
@pytest.mark.filterwarnings("ignore:[0-9]+ files or folders")
def test_checkpoints_as_files(stems, names, tmp_path):
    for i, stem in enumerate(stems):
        model(tmp_path / "z" / f"{stem}.safetensors", float(i))
    models = open_models(tmp_path)
    assert models.names == [f"z/{name}" if name else "z" for name in names]
    assert len(models.skipped_) == len(stems) - len(names)
    if len(names) == 1:  # of one run the last in the list is the last
        assert models["a.weight"][0][0, 0] == len(stems) - 1
    assert len(open_models(tmp_path, checkpoints="all")) == len(stems)


def test_long_names_are_no_checkpoints():
    stem = "a-step" * 100_000
    started = time.perf_counter()
    assert last_of_stems({stem, "b"}, False) == ({}, [])
    assert time.perf_counter() - started < 1


# ------------------------------------------------------------------ what is left out


def test_all_that_is_left_out_is_listed(tmp_path):
    model(tmp_path / "good" / "model.safetensors")
    (tmp_path / "good" / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "good" / "optimizer.bin").write_bytes(b"")
    for folder, name in [
        ("pickle", "pytorch_model.bin"),
        ("gguf", "m.gguf"),
        ("keras", "net.h5"),
        ("state", "optimizer.pt"),
    ]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(b"")
    model(tmp_path / "seeds" / "model.safetensors")
    model(tmp_path / "seeds" / "model.seed1.safetensors")
    model(tmp_path / "seeds" / "model.fp16.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning) as caught:
        models = open_models(tmp_path)
    assert models.names == ["good", "seeds"] and len(caught) == 1
    message = str(caught[0].message)
    assert "1 of 3 models" in message and "4 files or folders" in message
    assert "seed1" not in message.partition("files or folders")[0]
    assert sorted(models.skipped_) == [
        "bad",
        "gguf/m.gguf",
        "good/pytorch_model.bin",
        "keras/net.h5",
        "pickle/pytorch_model.bin",
        "seeds/model.fp16.safetensors",
        "seeds/model.seed1.safetensors",
    ]
    assert "convert" in models.skipped_["pickle/pytorch_model.bin"]
    assert "rename it" in models.skipped_["seeds/model.seed1.safetensors"]
    assert "0 bytes" in models.skipped_["bad"]
    assert open_models(tmp_path, on_error="ignore").skipped_ == models.skipped_
    # Without the one of plain name they are models each.
    (tmp_path / "seeds" / "model.safetensors").unlink()
    names = open_models(tmp_path / "seeds", on_error="ignore").names
    assert names == ["model.seed1", "seeds"]


def test_saved_estimators_are_no_models(tmp_path):
    estimator = ProbeXClassifier().fit(
        np.random.default_rng(0).random((20, 3, 4)), np.arange(20) % 2
    )
    estimator.save(tmp_path / "expert.safetensors")
    with pytest.raises(UnsupportedFormatError, match=r"saved ProbeXClassifier.*load"):
        open_models(tmp_path)
    model(tmp_path / "net.safetensors")
    with pytest.warns(UserWarning, match="saved ProbeXClassifier"):
        models = open_models(tmp_path)
    assert models.names == ["net"] and list(models.skipped_) == ["expert"]
    with pytest.warns(UserWarning, match="saved ProbeXClassifier"):
        assert open_models(tmp_path, on_error="raise").names == ["net"]


@pytest.mark.parametrize(
    "content, match",
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "lfs pull",
        ),
        (b"# xet version 0\nfilesize = 3\n", "Xet storage"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"\n <HTML><body>Not found", "is a web page"),
        (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "is a web page"),
        (
            pickle.dumps({"w": 1}, protocol=2),
            "is a pickle.*Call it .pt.*convert_checkpoints",
        ),
        (
            pickle.dumps({"w": 1}, protocol=4),
            "is a pickle.*Call it .pt.*convert_checkpoints",
        ),
        (b"GGUF\3\0\0\0" + bytes(20), "is a GGUF file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
        (b"\x93NUMPY" + bytes(20), "NumPy array"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b'{"error":"Repository not found"}', "bytes of text.*not found"),
        (b"{}", "2 bytes"),
        (b"", "0 bytes"),
    ],
)
def test_files_that_are_something_else(content, match, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightFileError, match=rf"(?s)model\.safetensors.*{match}"):
        open_models(tmp_path)


def test_a_zipped_pickle(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.safetensors", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}))
    with pytest.raises(
        UnsupportedFormatError, match=r"zip archive.*convert_checkpoints"
    ):
        open_models(tmp_path)


# ---------------------------------------------------------------- folders of strangers


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    root = tmp_path / "zoo"
    inside = model(root / "a.safetensors", 1.0)
    outside = model(tmp_path / "elsewhere" / "b.safetensors", 2.0)
    (root / "link.safetensors").symlink_to(outside)
    (root / "folder").symlink_to(outside.parent, target_is_directory=True)
    (root / "again.safetensors").symlink_to(inside)
    with pytest.warns(UserWarning, match="2 x a link that leads out of the folder"):
        models = open_models(root)
    assert models.names == ["a", "again"]
    assert sorted(models.skipped_) == ["folder", "link.safetensors"]
    # Whoever names a link means it.
    assert open_models(root / "link.safetensors").names == ["link"]
    assert open_models(root / "folder").names == ["b"]
    # What an index names is no way out either.
    indexed(root / "m", ["x.safetensors"])
    (root / "m" / "x.safetensors").unlink()
    (root / "m" / "x.safetensors").symlink_to(outside)
    with pytest.warns(UserWarning, match=r"x\.safetensors is not beside it"):
        assert open_models(root).names == ["a", "again"]


def test_folders_are_visited_once(tmp_path):
    """Links that double the way at each level would take for ever."""
    folder = tmp_path
    for _ in range(30):
        (folder / "d").mkdir()
        (folder / "e").symlink_to("d", target_is_directory=True)
        folder = folder / "d"
    model(folder / "model.safetensors")
    started = time.perf_counter()
    assert len(open_models(tmp_path)) == 1
    assert len(open_models(f"{tmp_path}/**/model.safetensors")) == 1
    assert time.perf_counter() - started < 5


def test_folders_nested_without_end(tmp_path):
    model(tmp_path / "a.safetensors")
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(990):
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    try:
        with pytest.warns(UserWarning, match="more than 40 levels deep"):
            assert open_models(tmp_path).names == ["a"]
    finally:
        # Too deep for pytest to clean up.
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "adapter_config.json", "README.md"]
    + ["model.safetensors.index.json"],
)
def test_pipes_are_not_waited_for(name, tmp_path):
    model(tmp_path / "good.safetensors")
    (tmp_path / "m").mkdir()
    if name != "model.safetensors":
        model(tmp_path / "m" / "adapter_model.safetensors")
    os.mkfifo(tmp_path / "m" / name)
    if name == "README.md":  # says nothing that the weights need
        assert open_models(tmp_path).names == ["good", "m"]
        return
    with pytest.warns(UserWarning, match="is no regular file"):
        assert "good" in open_models(tmp_path).names


def test_other_things_that_are_no_files(tmp_path, monkeypatch):
    model(tmp_path / "good.safetensors")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # their names must be short
        server.bind("s.safetensors")
        with pytest.warns(UserWarning, match="no regular file"):
            assert open_models(tmp_path).names == ["good"]
    with pytest.raises(WeightFileError, match="no regular file"):
        open_models(tmp_path / "zero.safetensors")


@pytest.mark.parametrize(
    "error", [RuntimeError("odd"), RecursionError(), MemoryError()]
)
def test_errors_nobody_thought_of_end_one_model(error, tmp_path, monkeypatch):
    """Whatever a file breaks, the others open."""
    from skprobex.files import _open

    for name in "abc":
        model(tmp_path / f"{name}.safetensors")
    whole = _open.find_layers

    def find_layers(tensors, metadata, config, sources, plain_float8):
        if str(sources[0]).endswith("b.safetensors"):
            raise error
        return whole(tensors, metadata, config, sources, plain_float8)

    monkeypatch.setattr(_open, "find_layers", find_layers)
    # Other headers, or the layers of the first would be taken.
    model(tmp_path / "b.safetensors", layers=["a.weight"])
    with pytest.warns(UserWarning, match=r"b\.safetensors cannot be read"):
        assert open_models(tmp_path).names == ["a", "c"]
    with pytest.raises(CorruptFileError, match=type(error).__name__):
        open_models(tmp_path, on_error="raise")


def test_components_are_read_by_one_rule(tmp_path):
    """Doubts, plain 8-bit floats and new names are those of all of a model's parts."""
    W = torch.arange(6.0).reshape(2, 3)
    pair = {"q.lora_A.weight": torch.ones(1, 3), "q.lora_B.weight": torch.ones(2, 1)}
    pair["q.lora_magnitude_vector.weight"] = torch.ones(2)
    for name, tensors in [
        ("text_encoder", {"a.weight": W.to(torch.float8_e4m3fn)}),
        ("unet", pair),
        ("vae", {"b.weight": W}),
    ]:
        folder = tmp_path / "pipe" / name
        folder.mkdir(parents=True)
        save_file(tensors, folder / "model.safetensors")
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    with pytest.warns(UserWarning, match="hold DoRA adapters") as caught:
        models = open_models(tmp_path, rename={"vae.*": "decoder.*"}, plain_float8=True)
    assert len(caught) == 1
    assert list(models.layers) == [
        "decoder.b.weight",
        "text_encoder.a.weight",
        "unet.q.weight",
    ]
    np.testing.assert_array_equal(models["text_encoder.a.weight"][0], W)
    np.testing.assert_array_equal(models["unet.q.weight"][0], np.ones((2, 3)))


def test_names_that_cannot_be_made_out_end_one_model(tmp_path, monkeypatch):
    from skprobex.files import _rename

    model(tmp_path / "a.safetensors")
    pair = {
        "lora_unet_x.lora_down.weight": torch.ones(1, 3),
        "lora_unet_x.lora_up.weight": torch.ones(2, 1),
    }
    save_file({**pair, "lora_unet_x.alpha": torch.ones(())}, tmp_path / "b.safetensors")

    def dotted(*_):
        raise RecursionError("deep")

    monkeypatch.setattr(_rename, "dotted", dotted)
    with pytest.warns(UserWarning, match=r"b\.safetensors has names of layers"):
        assert open_models(tmp_path).names == ["a"]
    with pytest.raises(CorruptFileError, match="names of layers"):
        open_models(tmp_path, on_error="raise")
    # The user's own function is the user's.
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ZeroDivisionError):
        open_models(tmp_path, rename=lambda name: 1 / 0)


def test_errors_nobody_thought_of_end_one_item(tmp_path):
    model(tmp_path / "a.safetensors")
    odd = ["a\0b", "\ud800x", "x" * 5000, "hf://", "http://[::1", "file://\0"]
    for source in odd:
        with pytest.raises(WeightFileError):
            open_models(source)
    with pytest.warns(UserWarning, match=f"{len(odd)} of {len(odd) + 1} models"):
        assert open_models([tmp_path / "a.safetensors", *odd]).names == ["a"]


# ----------------------------------------------------------------------------- names


def test_models_are_sorted_as_people_count(tmp_path):
    for i in (10, 9, 1):
        model(tmp_path / f"m{i}.safetensors")
        model(tmp_path / f"deep{i}" / "model.safetensors")
    assert open_models(tmp_path).names == [
        "deep1",
        "deep9",
        "deep10",
        "m1",
        "m9",
        "m10",
    ]


def test_home_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    model(tmp_path / "home" / "zoo" / "a.safetensors")
    assert open_models("~/zoo").names == ["a"]
    assert open_models("~/zoo/*").names == ["a"]
    assert open_models(["~/zoo/a.safetensors"]).names == ["a"]
    save_models("~/made", {"w": np.ones((1, 2, 2))})
    ProbeXClassifier().fit(
        np.random.default_rng(0).random((20, 3, 4)), np.arange(20) % 2
    ).save("~/c.sk")
    assert load("~/c.sk").classes_.tolist() == [0, 1]
    models = open_models("~/zoo")
    (tmp_path / "home" / "runs.csv").write_text("name,task\na,birds\n")
    models.metadata = "~/runs.csv"
    assert models.labels("task").tolist() == ["birds"]
    assert sorted(os.listdir(tmp_path)) == ["home"]
    with pytest.raises(ValueError, match="'__metadata__'"):
        save_models("~/x", {"__metadata__": np.ones((1, 2, 2))})


# ------------------------------------------------------------------------ model cards


CARD = """---
license: apache-2.0
base_model: org/base
datasets:
- squad
- glue
tags: [lora, "a: b"]
model-index:
- name: x
  results: []
---
# A model
"""


def test_cards_are_metadata(tmp_path):
    config = {"base_model_name_or_path": "/data/base", "r": 4}
    model(tmp_path / "x" / "adapter_model.safetensors", metadata={"license": "mine"})
    (tmp_path / "x" / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "x" / "README.md").write_text(CARD)
    model(tmp_path / "y" / "model.safetensors")
    models = open_models(tmp_path)
    assert models.metadata == [
        {
            "license": "mine",
            "base_model": "org/base",
            "datasets": ["squad", "glue"],
            "tags": ["lora", "a: b"],
            **config,
        },
        {},
    ]
    # One above speaks for all below it, as that of a repository does.
    (tmp_path / "README.md").write_text("---\r\ntags: zoo\r\n---\r\n")
    assert open_models(tmp_path).metadata[1] == {"tags": ["zoo"]}


@pytest.mark.parametrize(
    "text",
    [
        "# no front matter\n",
        "---\nlicense: [\n---\n",
        "---\ntags: " + "[" * 3000 + "\n---\n",
        "---\ntags:\n" + " - " * 1500 + "\n---\n",
        "---\nlicense: 3\ntags: {a: b}\ndatasets: [[x]]\nbase_model: null\n---\n",
        "---\nlicense: !!python/object/apply:os.system ['touch pwned']\n---\n",
        "---\n" + "license: &a [x]\ntags: *a\n" + "---\n",
        "---\nlicense: mit\n",
        "---\n" * 50_000,
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
)
def test_cards_that_say_nothing(text, tmp_path):
    model(tmp_path / "model.safetensors")
    (tmp_path / "README.md").write_text(text)
    started = time.perf_counter()
    (metadata,) = open_models(tmp_path, on_error="raise").metadata
    assert metadata in ({}, {"license": "x"})
    assert time.perf_counter() - started < 5


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
            UnsupportedFormatError, match=r"(?s)never opened.*convert_checkpoints"
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
    models, _ = group_files(files, "a", str)
    names = [model.name for model in models]
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
    start = time.process_time()
    models = open_models(tmp_path)
    elapsed = time.process_time() - start
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
