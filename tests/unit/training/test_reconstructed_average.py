"""Averages of any width from the stored ones: how exact they are, what is stored, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.errors import CheckpointError, ConfigError
from experiments.records.run_folder import RunDir
from experiments.training import checkpoint_files
from experiments.training.checkpoint import Checkpoint, load_newest, open_checkpoint
from experiments.training.checkpoint_files import write_checkpoint
from experiments.training.checkpoint_list import complete_checkpoints, stored_averages
from experiments.training.engine import Engine
from experiments.training.power_profiles import exponent_of
from experiments.training.reconstructed_average import MAX_ERROR, reconstructed_average
from experiments.training.restore import snapshot
from experiments.training.saver import Saver

Build = Callable[[RunConfig], Engine]
Tiny = Callable[..., RunConfig]
Advance = Callable[..., list[float]]
Weights = dict[str, Tensor]


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def write(run_dir: RunDir, images_seen: int, keep: int = 2, widths: tuple[float, ...] = (0.05, 0.1)) -> Path:
    """A checkpoint whose averages are what a weight that grows with the images would give."""
    averages = {
        f"w/{width:g}" if place else "w": torch.full((4,), images_seen * (g := exponent_of(width) + 1) / (g + 1))
        for place, width in enumerate(widths or (0.05,))
    }
    tensors = {"weights": {"w": torch.full((4,), float(images_seen))}, "ema": averages}
    tensors["optimizer"] = {"w/exp_avg": torch.zeros(4)}
    state = {"images_seen": images_seen, **({"ema_widths": list(widths)} if widths else {})}
    return write_checkpoint(run_dir, "abc", state, tensors, keep)


def newest(run_dir: RunDir) -> Checkpoint:
    found = load_newest(run_dir, "abc", say=pytest.fail, files=["ema"])
    assert found is not None
    return found


def images_in(paths: list[Path]) -> list[int]:
    return [int(path.name.rpartition("_")[2]) for path in paths]


def relative(ours: Weights, exact: Weights) -> float:
    """The norm of the difference over that of what is exact."""
    differences = [(ours[name] - exact[name]).double().norm() for name in exact]
    return float(torch.stack(differences).norm() / torch.stack([t.double().norm() for t in exact.values()]).norm())


def test_averages_of_a_real_run_are_near_those_over_all_its_weights(
    build: Build, tiny: Tiny, advance: Advance, run_dir: RunDir
) -> None:
    """64 steps in which the weights move by an eighth, and 8 checkpoints of which the last stays."""
    config = tiny("train.ema=power", "train.images=512", "optim.schedule=constant", "optim.learning_rate=1e-3")
    engine = build(config)
    initial = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    past: list[Weights] = []
    run_dir.path.mkdir()
    saver = Saver(run_dir, "abc", engine.partitions.shapes, 1, 0, 1)
    for step in range(64):
        advance(engine, config, start=step, num_steps=1)
        past.append({name: p.detach().double() for name, p in engine.model.named_parameters()})
        if step % 8 == 7:
            saver.begin({"images_seen": 8 * (step + 1)}, snapshot(engine))
            saver.finish()
    found = newest(run_dir)
    assert relative({name: t.double() for name, t in initial.items()}, past[-1]) > 0.1
    for width in (0.04, 0.05, 0.07, 0.1, 0.15, 0.2):
        power = exponent_of(width) + 1
        shares = [((step + 1) / 64) ** power - (step / 64) ** power for step in range(64)]
        exact = {
            name: sum((share * each[name] for share, each in zip(shares, past, strict=True)), torch.tensor(0.0))
            for name in initial
        }
        made = reconstructed_average(run_dir, found, width, pytest.fail).full("ema")
        error = relative(made, exact)
        assert error < (1e-6 if width in (0.05, 0.1) else 0.001), width
        assert error < 0.05 * relative(past[-1], exact), width


def test_of_a_checkpoint_that_makes_room_the_averages_stay_bit_for_bit(run_dir: RunDir) -> None:
    first = write(run_dir, 100)
    content = {name: (first / name).read_bytes() for name in ("ema.safetensors", "state.json")}
    for images in (200, 300, 400):
        write(run_dir, images)
    assert images_in(complete_checkpoints(run_dir)) == [300, 400]
    assert images_in(stored_averages(run_dir)) == [100, 200]
    kept = stored_averages(run_dir)[0]
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == content
    assert open_checkpoint(kept, "abc", ["ema"]).ema_widths == (0.05, 0.1)


def test_with_a_halflife_a_checkpoint_makes_room_as_ever(run_dir: RunDir) -> None:
    for images in (100, 200, 300):
        write(run_dir, images, widths=())
    assert sorted(os.listdir(run_dir.checkpoints)) == ["images_000000000200", "images_000000000300"]


def test_a_process_that_died_between_renaming_and_removing_is_made_good(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run_dir, 100, keep=1)
    with monkeypatch.context() as dying:
        dying.setattr(checkpoint_files, "_remove_ours", lambda *_: os._exit(1))
        child = os.fork()
        if child == 0:
            write(run_dir, 200, keep=1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    (between,) = stored_averages(run_dir)
    assert {path.name for path in between.iterdir()} >= {"weights.safetensors", "ema.safetensors"}
    assert images_in(complete_checkpoints(run_dir)) == [200]
    write(run_dir, 300, keep=1)
    for averages in stored_averages(run_dir):
        assert {path.name for path in averages.iterdir()} == {"ema.safetensors", "state.json"}
    assert images_in(stored_averages(run_dir)) == [100, 200]


def test_files_of_others_and_copies_stay(run_dir: RunDir) -> None:
    noted = write(run_dir, 100)
    (noted / "notes.txt").write_text("mine")
    for images in (200, 300, 400):
        write(run_dir, images)
    assert (noted / "notes.txt").exists()
    assert (noted / "weights.safetensors").exists()
    assert images_in(stored_averages(run_dir)) == [200]


def test_a_checkpoint_that_is_reached_again_replaces_its_averages(run_dir: RunDir) -> None:
    """The run went on from before, because a user brought an old checkpoint back."""
    for images in (100, 200, 300):
        write(run_dir, images, keep=1)
    write(run_dir, 200, keep=1)
    assert images_in(complete_checkpoints(run_dir)) == [200]
    made = reconstructed_average(run_dir, newest(run_dir), 0.07, pytest.fail)
    assert [one.images_seen for one, *_ in made.parts] == [100, 100, 200, 200]
    write(run_dir, 300, keep=1)
    assert images_in(stored_averages(run_dir)) == [100, 200]


def test_a_weight_that_grows_evenly_is_averaged_as_the_formula_says(run_dir: RunDir) -> None:
    for images in range(100, 1700, 100):
        write(run_dir, images)
    for width in (0.03, 0.07, 0.2):
        power = exponent_of(width) + 1
        made = reconstructed_average(run_dir, newest(run_dir), width, pytest.fail)
        assert made.read("ema", "w", 1, 3).tolist() == pytest.approx([1600 * power / (power + 1)] * 2, rel=2e-3)


def test_widths_that_are_too_narrow_or_too_wide_are_refused_with_those_that_are_not(run_dir: RunDir) -> None:
    for images in range(100, 700, 100):
        write(run_dir, images)
    message = (
        r"--ema (0\.01|0\.28) cannot be made of the averages of 6 checkpoints in .*: their sum would be off by "
        r"[0-9]+%, and at most 10% is allowed\. Widths from 0\.033 to 0\.186 can; more checkpoints"
    )
    assert MAX_ERROR == 0.1
    for width in (0.01, 0.28):
        with pytest.raises(ConfigError, match=message):
            reconstructed_average(run_dir, newest(run_dir), width, pytest.fail)
    for width in (0.033, 0.186):
        assert reconstructed_average(run_dir, newest(run_dir), width, pytest.fail).parts
    write(run_dir, 700)  # one more allows more
    reconstructed_average(run_dir, newest(run_dir), 0.2, pytest.fail)


def test_a_single_checkpoint_has_its_own_widths_only(run_dir: RunDir) -> None:
    write(run_dir, 100)
    stored = reconstructed_average(run_dir, newest(run_dir), 0.1, pytest.fail)
    assert torch.equal(stored.full("ema")["w"], newest(run_dir).read("ema", "w", 0, 4, "0.1"))
    message = r"has averages of one checkpoint only, of the widths 0\.05 and 0\.1: --ema 0\.07 cannot be made of them\."
    with pytest.raises(ConfigError, match=message):
        reconstructed_average(run_dir, newest(run_dir), 0.07, pytest.fail)


def test_a_run_with_a_halflife_has_one_width(run_dir: RunDir) -> None:
    write(run_dir, 100, widths=())
    write(run_dir, 200, widths=())
    with pytest.raises(ConfigError, match=r"was trained with train\.ema=halflife, whose average has one width\. Leave"):
        reconstructed_average(run_dir, newest(run_dir), 0.05, pytest.fail)


def test_damaged_averages_are_left_out_and_said(run_dir: RunDir) -> None:
    for images in range(100, 700, 100):
        write(run_dir, images)
    damaged = stored_averages(run_dir)[1] / "ema.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    said: list[str] = []
    made = reconstructed_average(run_dir, newest(run_dir), 0.07, said.append)
    assert 200 not in [one.images_seen for one, *_ in made.parts]
    assert said == [f"{damaged} is damaged (its checksum does not match). Its averages are left out."]


def test_averages_of_another_model_are_refused(run_dir: RunDir) -> None:
    for images in (100, 200, 300):
        write(run_dir, images)
    other = RunDir(run_dir.path.with_name("other"))
    tensors = {file: {"v": torch.zeros(2)} for file in ("weights", "ema", "optimizer")}
    state = {"images_seen": 50}
    write_checkpoint(other, "abc", state, tensors, 1).rename(run_dir.checkpoints / "averages_000000000050")
    with pytest.raises(CheckpointError, match=r"averages_000000000050 holds other parameters than .* Move it away\."):
        reconstructed_average(run_dir, newest(run_dir), 0.07, pytest.fail)


@pytest.mark.parametrize(
    ("ema_widths", "words"),
    [
        ([0.05, 2.0], "state.ema_widths.1: Input should be less than or equal to 0.288"),
        ([0.05, 0.1], "w/0.1 is not in it"),
    ],
    ids=["a width that is none", "an average that is missing"],
)
def test_what_a_stranger_says_of_widths_is_checked(run_dir: RunDir, ema_widths: list[float], words: str) -> None:
    write(run_dir, 100, widths=(0.05, 0.1))
    write_checkpoint(
        run_dir, "abc", {"images_seen": 200, "ema_widths": ema_widths},
        {"weights": {"w": torch.ones(4)}, "ema": {"w": torch.ones(4)}}, 2,
    )  # fmt: skip
    said: list[str] = []
    found = load_newest(run_dir, "abc", said.append, files=["ema"])
    assert found is not None
    assert found.images_seen == 100
    assert words in said[0]
