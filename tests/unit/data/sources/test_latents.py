"""Latents from a prepared data set: the right rows, exact on resume, and nothing but the data set of the model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from experiments.config.identity import config_id
from experiments.config.overrides import load_config
from experiments.config.schema import RunConfig
from experiments.data.loader import (
    Batch,
    TrainStream,
    loader_threads,
    same_time_batches,
    validation_set,
)
from experiments.data.sources.image_source import open_source
from experiments.errors import ConfigError
from tests.real_images import CHANNELS, LATENT_SIZE, MAX_TOKENS, POOLED_WIDTH, TEXT_WIDTH, tensors_of

NUM_TRAIN = 36
Settings = Callable[..., RunConfig]


@pytest.fixture
def settings(latent_set: Path) -> Settings:
    """A nano run on the data set, with overrides on top."""
    data = ["data.name=latents", f"data.path={latent_set}"]
    return lambda *overrides: load_config(["model=nano", *data, "train.batch_images=6", *overrides])


@pytest.fixture
def copied(latent_set: Path, tmp_path: Path) -> Path:
    return shutil.copytree(latent_set, tmp_path / "set")


def tensors(batch: Batch) -> dict[str, Tensor]:
    named = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    ours, theirs = ([tensors(batch) for batch in side] for side in (batches, others))
    for name in ours[0]:
        assert torch.equal(torch.cat([part[name] for part in ours]), torch.cat([part[name] for part in theirs])), name


def test_the_model_takes_its_shapes_and_its_data_set_from_the_index(settings: Settings, latent_set: Path) -> None:
    data = settings().data
    index = json.loads((latent_set / "index.json").read_text())
    assert (data.channels, data.image_size, data.caption_length) == (CHANNELS, LATENT_SIZE, MAX_TOKENS)
    assert (data.text_width, data.pooled_width, data.vocab_size) == (TEXT_WIDTH, POOLED_WIDTH, None)
    assert data.fingerprint == index["fingerprint"]
    assert (settings().eval.images, settings().eval.sample_images) == (4, 0)


def test_a_stored_config_is_whole_without_its_data_set(settings: Settings) -> None:
    config = settings()
    assert RunConfig.model_validate(json.loads(config.model_dump_json())) == config


def test_a_batch_holds_the_rows_of_the_shards_in_the_order_of_the_epoch(settings: Settings, latent_set: Path) -> None:
    batch = TrainStream(settings("train.batch_images=36", "train.caption_dropout=0")).batch(0)
    assert sorted(batch.index_B.tolist()) == list(range(NUM_TRAIN))
    mean, std = (tensors_of(latent_set, "train", f"latent_{part}_NCHW").float() for part in ("mean", "std"))
    raw_BCHW = batch.pixels_BCHW / 0.5 + 0.25
    noise = (raw_BCHW - mean[batch.index_B]) / std[batch.index_B]
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert batch.pooled_BU is not None
    assert torch.equal(batch.pooled_BU, tensors_of(latent_set, "train", "pooled_NU")[batch.index_B])
    assert batch.text_BLV is not None
    assert batch.text_length_B is not None
    real = torch.arange(MAX_TOKENS) < batch.text_length_B[:, None]
    assert not batch.text_BLV[~real].any()
    assert batch.text_BLV[real].any(dim=-1).all()


def test_an_epoch_has_every_image_once_and_the_next_another_order_and_other_latents(settings: Settings) -> None:
    first, second = (TrainStream(settings("train.batch_images=36")).batch(NUM_TRAIN * epoch) for epoch in (0, 1))
    assert sorted(first.index_B.tolist()) == sorted(second.index_B.tolist()) == list(range(NUM_TRAIN))
    assert first.index_B.tolist() != second.index_B.tolist()
    one, two = (batch.pixels_BCHW[batch.index_B.argsort()] for batch in (first, second))
    assert (one != two).float().mean() > 0.99


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_are_the_global_batch(settings: Settings, world: int) -> None:
    shares = [TrainStream(settings(), rank, world).batch(30) for rank in range(world)]
    assert_same(shares, [TrainStream(settings()).batch(30)])


def test_batch_size_and_resumption_change_nothing(settings: Settings) -> None:
    small = TrainStream(settings("train.images=72"))
    large = TrainStream(settings("train.images=72", "train.batch_images=12"))
    assert_same([small.batch(start) for start in range(24, 48, 6)], [large.batch(start) for start in (24, 36)])
    assert_same(list(small.iterate(30)), list(small.iterate(0))[5:])


def test_runs_of_other_seeds_share_images_and_latents(settings: Settings) -> None:
    one, two = (TrainStream(settings(f"seed={seed}")).batch(0) for seed in (0, 1))
    assert torch.equal(one.pixels_BCHW, two.pixels_BCHW)
    assert not torch.equal(one.noise_BCHW, two.noise_BCHW)
    other = TrainStream(settings("data.seed=1")).batch(0)
    assert other.index_B.tolist() != one.index_B.tolist()


def test_a_dropped_caption_is_the_stored_empty_one(settings: Settings, latent_set: Path) -> None:
    from safetensors.torch import load_file

    batch = TrainStream(settings("train.caption_dropout=1")).batch(0)
    empty = load_file(latent_set / "empty-caption.safetensors")
    assert batch.text_BLV is not None
    assert batch.pooled_BU is not None
    assert batch.text_length_B is not None
    assert batch.text_length_B.tolist() == [1] * 6
    assert torch.equal(batch.text_BLV[:, 0], empty["text_MV"].expand(6, -1))
    assert not batch.text_BLV[:, 1:].any()
    assert torch.equal(batch.pooled_BU, empty["pooled_NU"].expand(6, -1))


def test_validation_is_a_split_of_its_own_and_always_the_same(settings: Settings, latent_set: Path) -> None:
    plain, other = settings(), settings("seed=5", "train.caption_dropout=1", "flow.time_mean=1")
    for batches in (validation_set, same_time_batches):
        assert_same(batches(plain), batches(other))
    (batch,) = validation_set(plain)
    assert batch.index_B.tolist() == [0, 1, 2, 3]
    rows = [set(tensors_of(latent_set, split, "row_N").tolist()) for split in ("train", "validation")]
    assert not rows[0] & rows[1]
    assert batch.pooled_BU is not None
    assert torch.equal(batch.pooled_BU, tensors_of(latent_set, "validation", "pooled_NU"))


def test_where_a_data_set_lies_is_not_what_it_is(copied: Path, settings: Settings) -> None:
    there, here = settings(), settings(f"data.path={copied}")
    assert config_id(there) == config_id(here)
    assert_same([TrainStream(there).batch(0)], [TrainStream(here).batch(0)])


def changed_index(folder: Path, **changes: object) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_data_set_than_the_models_is_refused(copied: Path, settings: Settings) -> None:
    from experiments.config.prepared_set import fingerprint_of

    config = settings(f"data.path={copied}")
    changed_index(copied, scaling_factor=0.75)
    with pytest.raises(ConfigError, match="was changed after it was written"):
        open_source(config.data).check()
    other = fingerprint_of(json.loads((copied / "index.json").read_text()))
    changed_index(copied, fingerprint=other)
    with pytest.raises(ConfigError, match=rf"is another data set \(fingerprint {other}\) than the model's"):
        open_source(config.data).check()
    with pytest.raises(ConfigError, match=f"data.fingerprint=abc is not that of the data set .*, which has {other}"):
        settings(f"data.path={copied}", "data.fingerprint=abc")


@pytest.mark.parametrize(
    "name", ["train-00001.safetensors", "validation-00000.safetensors", "empty-caption.safetensors"]
)
def test_a_missing_cut_or_changed_file_is_one_line(name: str, copied: Path, settings: Settings) -> None:
    config, path = settings(f"data.path={copied}"), copied / name
    content = path.read_bytes()
    open_source(config.data).check()
    for damaged, message in (
        (content[:-1] + bytes([content[-1] ^ 1]), "is damaged: its checksum is another one."),
        (content[:-7], f"is damaged: it has {len(content) - 7:,} bytes of {len(content):,}."),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError) as caught:
            open_source(config.data).check()
        assert str(caught.value).startswith(f"the shard {path} {message}")
        assert "`ecdit data prepare` again" in caught.value.hint
    path.unlink()
    with pytest.raises(ConfigError, match=f"the data set lacks its shard {path}"):
        open_source(config.data).check()


def test_a_shard_that_breaks_later_is_one_line_too(copied: Path, settings: Settings) -> None:
    stream = TrainStream(settings(f"data.path={copied}", "train.batch_images=36"))
    path = copied / "train-00002.safetensors"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError, match=f"the shard {path} is damaged"):
        stream.batch(0)
    path.unlink()
    with pytest.raises(ConfigError, match=f"lacks its shard {path}"):
        stream.batch(0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("data.path=None", "data.name=latents needs a data set. Name a folder that `ecdit data prepare` wrote:"),
        (
            "data.path=somebody/pictures",
            "data.path=somebody/pictures is not a folder. Write one with: ecdit data prepare",
        ),
        ("data.channels=16", "data.channels=16 is not that of the data set"),
        ("data.image_size=32", "which has 16. Leave out data.image_size, or name another data.path."),
        ("eval.images=5", "eval.images=5 is more than the 4 validation images of"),
        ("eval.sample_images=2", "eval.sample_images=2 does not fit data.name=latents: pixels need the VAE."),
        ("eval.metric_images=8", "eval.metric_images=8 does not fit data.name=latents"),
        ("model.patch_size=3", "data.image_size=16 is not divisible by model.patch_size=3."),
        ("data.name=shapes", "does not fit data.name=shapes. Use data.name=latents or pixels."),
    ],
)
def test_settings_that_do_not_fit_are_one_line(overrides: str, message: str, settings: Settings) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(*overrides.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_index_that_cannot_be_read_is_one_line(copied: Path, settings: Settings) -> None:
    changed_index(copied, schema_version=3)
    with pytest.raises(ConfigError, match="is of schema version 3, and this ecdit reads up to 2"):
        settings(f"data.path={copied}")
    (copied / "index.json").write_text("{")
    with pytest.raises(ConfigError, match=r"index\.json is damaged"):
        settings(f"data.path={copied}")
    (copied / "index.json").unlink()
    with pytest.raises(ConfigError, match="is not finished. Run the same `ecdit data prepare` again"):  # noqa: RUF043
        settings(f"data.path={copied}")


def test_the_number_of_threads_changes_nothing_also_while_batches_are_kept(settings: Settings) -> None:
    stream = TrainStream(settings("train.images=216"))
    assert_same(list(stream.iterate(0, 3)), [TrainStream(settings()).batch(start) for start in range(0, 216, 6)])


def test_threads_follow_the_cores_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, processes, threads in ((2, 1, 1), (16, 1, 4), (104, 8, 3), (128, 1, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: set(range(cores)), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert loader_threads() == threads


def test_a_shard_is_mapped_and_not_read(tmp_path: Path) -> None:
    path, mebibyte = tmp_path / "shard.safetensors", 2**20
    text_MV = torch.ones(64, mebibyte // 2, dtype=torch.float16)
    save_file({"text_MV": text_MV, "text_start_N1": torch.arange(65), "pooled_NU": torch.zeros(64, 2)}, path)
    del text_MV
    code = (
        "import sys, psutil; from pathlib import Path; from experiments.data.sources.mapped_shards import MappedShard\n"
        "memory = lambda: psutil.Process().memory_info().rss\n"
        "before = memory(); shard = MappedShard(Path(sys.argv[1])); total = shard.text(63)[0].float().sum().item()\n"
        "print(total, memory() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    total, grown = map(float, done.stdout.split())
    assert total == mebibyte // 2
    assert grown < 16 * mebibyte
