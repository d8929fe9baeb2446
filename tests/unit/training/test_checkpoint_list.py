"""A run that saved never starts anew unasked, whatever became of its checkpoints, and nobody's files are dropped."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.config.schema import RunConfig
from experiments.errors import CheckpointError, RecordError
from experiments.evaluation.exchange.exported_weights import newest
from experiments.records.record_types import EvalRow
from experiments.records.run_folder import RunDir
from experiments.records.writer import append_evaluations
from experiments.training import checkpoint
from experiments.training.checkpoint_files import sha256_of_content
from experiments.training.checkpoint_list import saved_checkpoints
from experiments.training.loop import train
from experiments.training.reporter import Reporter
from tests.unit.training.test_checkpoint import kept, load, write

Tiny = Callable[..., RunConfig]
SAVES = ("checkpoint.every_images=16", "eval.every_images=16")


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


@pytest.fixture
def interrupted(tiny: Tiny, run_dir: RunDir) -> RunDir:
    """A run that was asked to stop after 40 of its 64 images, and saved."""

    def stop_at_40(images_seen: int) -> None:
        if images_seen == 40:
            signal.raise_signal(signal.SIGTERM)

    assert train(tiny(*SAVES), run_dir, ["test"], Reporter(step=stop_at_40)) == "interrupted"
    return run_dir


def imported(images_seen: int, metric: str = "geneval") -> EvalRow:
    return EvalRow(images_seen=images_seen, metric=metric, value=0.5, num_samples=8, seed=0, weights="ema")


def contents(run_dir: RunDir) -> dict[str, bytes]:
    """Every record of the run."""
    return {path.name: path.read_bytes() for path in sorted(run_dir.path.glob("*.json*"))}


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def unmount(folder: Path) -> None:
    """The folder was a link to a disk that is not there."""
    shutil.rmtree(folder)
    folder.symlink_to("/mnt/not-mounted/checkpoints")


def replace_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def replace_by_a_loop(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder)


def unmount_each(folder: Path) -> None:
    """Every checkpoint was a link to a disk that is not there."""
    for each in list(folder.iterdir()):
        shutil.rmtree(each)
        each.symlink_to("/mnt/not-mounted")


def unmount_the_weights(folder: Path) -> None:
    for path in folder.rglob("weights.safetensors"):
        path.unlink()
        path.symlink_to("/mnt/not-mounted/weights.safetensors")


LOSSES = [remove, empty, unmount, replace_by_a_file, replace_by_a_loop, unmount_each, unmount_the_weights]


@pytest.mark.parametrize("lose", LOSSES)
def test_checkpoints_that_cannot_be_reached_stop_the_same_command_before_it_cuts_a_row(
    interrupted: RunDir, tiny: Tiny, lose: Callable[[Path], None]
) -> None:
    append_evaluations(interrupted, [imported(40)])
    lose(interrupted.checkpoints)
    before = contents(interrupted)
    with pytest.raises(CheckpointError) as caught:
        train(tiny(*SAVES), interrupted, ["test"])
    assert str(interrupted.checkpoints) in caught.value.message
    assert "damaged" not in str(caught.value)
    assert contents(interrupted) == before


@pytest.mark.parametrize("lose", [remove, empty])
def test_the_message_names_the_way_out(interrupted: RunDir, tiny: Tiny, lose: Callable[[Path], None]) -> None:
    lose(interrupted.checkpoints)
    line = r"holds no checkpoint, but the run has saved after 40 images\. Bring it back, or start anew .* --restart"
    with pytest.raises(CheckpointError, match=line):
        train(tiny(*SAVES), interrupted, ["test"])


@pytest.mark.parametrize("lose", LOSSES)
def test_commands_that_read_weights_say_why_they_find_none(interrupted: RunDir, lose: Callable[[Path], None]) -> None:
    lose(interrupted.checkpoints)
    with pytest.raises(CheckpointError) as caught:
        newest(interrupted, "raw", say=pytest.fail)
    assert "has no checkpoint yet" not in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_without_a_word_in_the_status_the_rows_say_that_there_was_one(interrupted: RunDir, tiny: Tiny) -> None:
    """A status of an earlier version, or one that was lost: the rows go beyond the second cadence, at 32."""
    remove(interrupted.checkpoints)
    interrupted.status_json.unlink()
    with pytest.raises(CheckpointError, match="has saved after 16 images"):
        train(tiny(*SAVES), interrupted, ["test"])


@pytest.mark.parametrize("rows", ["of training", "measured later"])
def test_where_only_measured_values_are_left_they_are_not_cut(interrupted: RunDir, tiny: Tiny, rows: str) -> None:
    """Neither the status nor a step says that there was a checkpoint, and the values would be gone."""
    if rows == "measured later":
        interrupted.evals.unlink()
        append_evaluations(interrupted, [imported(16)])
    remove(interrupted.checkpoints)
    interrupted.status_json.unlink()
    interrupted.steps.unlink()
    before = contents(interrupted)
    images = 16 if rows == "measured later" else 32
    with pytest.raises(
        CheckpointError, match=rf"no checkpoint, but evals\.jsonl has values after {images} images\. Bri"
    ):
        train(tiny(*SAVES), interrupted, ["test"])
    assert contents(interrupted) == before
    assert train(tiny(*SAVES), interrupted, ["test"], restart=True) == "done"


def test_a_newest_checkpoint_that_has_gone_is_said_before_the_rows_after_the_one_before_it_are_cut(
    interrupted: RunDir, tiny: Tiny
) -> None:
    remove(interrupted.checkpoints / "images_000000000040")
    line = f"{interrupted.checkpoints} has lost the checkpoint after 40 images; its newest is images_000000000032."
    said: list[str] = []
    newest(interrupted, "raw", say=said.append)
    assert said == [line]
    assert train(tiny(*SAVES), interrupted, ["test"], Reporter(warn=said.append)) == "done"
    assert said == [line, line]
    assert train(tiny(*SAVES), interrupted, ["test"], Reporter(warn=pytest.fail)) == "done"


@pytest.mark.parametrize("content", ["", "garbage", '{"state": "gone", "images_seen": 8}'])
def test_a_damaged_status_may_be_removed_as_its_message_says(interrupted: RunDir, tiny: Tiny, content: str) -> None:
    interrupted.status_json.write_text(content)
    with pytest.raises(RecordError, match=r"status\.json is damaged: .*\. Restore it, or remove it: its checkpoints"):
        interrupted.read_status()
    _, found = newest(interrupted, "raw", say=pytest.fail)
    assert found.state["images_seen"] == 40
    interrupted.status_json.unlink()
    said: list[str] = []
    assert train(tiny(*SAVES), interrupted, ["test"], Reporter(say=said.append)) == "done"
    assert said == ["Continuing at 40 of 64 images."]


@pytest.mark.parametrize(("router", "sparse_layers", "goes_on"), [
    ("token_choice", "all", False), ("switch", "all", False),
    ("token_choice", "alternate", True), ("expert_choice", "all", True),
])  # fmt: skip
def test_a_run_begun_with_the_mean_of_the_balance_losses_goes_on_where_the_sum_is_the_same(
    run_dir: RunDir, tiny: Tiny, router: str, sparse_layers: str, goes_on: bool
) -> None:
    """Its checkpoints do not say what they sum over. Of two layers `alternate` makes one a routed one."""
    config = tiny(*SAVES, f"routing={router}", f"model.sparse_layers={sparse_layers}")
    stop = Reporter(step=lambda images_seen: signal.raise_signal(signal.SIGTERM) if images_seen == 24 else None)
    assert train(config, run_dir, ["test"], stop) == "interrupted"
    for path in run_dir.checkpoints.glob("*/state.json"):
        content = json.loads(path.read_text())
        del content["state"]["balance_loss"], content["sha256_of_this"]
        path.write_text(json.dumps({**content, "sha256_of_this": sha256_of_content(content)}))
    before = contents(run_dir)
    if goes_on:
        assert train(config, run_dir, ["test"]) == "done"
        return
    with pytest.raises(CheckpointError, match=r"mean over the 2 routed layers; it is now their sum, 2 times .*=0\.01"):
        train(config, run_dir, ["test"])
    after = contents(run_dir)
    assert {name: after[name] for name in before} == before
    assert train(config, run_dir, ["test"], restart=True) == "done"


def test_a_run_that_ended_before_its_first_checkpoint_starts_over(tiny: Tiny, run_dir: RunDir) -> None:
    def die_at_24(images_seen: int) -> None:
        if images_seen == 24:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(tiny("checkpoint.every_images=32"), run_dir, ["test"], Reporter(step=die_at_24))
    assert len(run_dir.read_rows(run_dir.steps).rows) == 3
    assert saved_checkpoints(run_dir, pytest.fail) == []
    assert train(tiny("checkpoint.every_images=32"), run_dir, ["test"]) == "done"
    assert [row["images_seen"] for row in run_dir.read_rows(run_dir.steps).rows] == list(range(8, 72, 8))


def test_starting_anew_is_asked_for_and_sets_all_old_records_aside(interrupted: RunDir, tiny: Tiny) -> None:
    append_evaluations(interrupted, [imported(40)])
    unmount(interrupted.checkpoints)
    before = {name: content for name, content in contents(interrupted).items() if name != "run.json"}
    assert train(tiny(*SAVES), interrupted, ["test"], restart=True) == "done"
    aside = {path.name: path for path in interrupted.path.glob("*.set-aside-1")}
    assert {name: aside[f"{name}.set-aside-1"].read_bytes() for name in before} == before
    assert os.readlink(aside["checkpoints.set-aside-1"]) == "/mnt/not-mounted/checkpoints"
    assert [row["images_seen"] for row in interrupted.read_rows(interrupted.steps).rows] == list(range(8, 72, 8))
    assert train(tiny(*SAVES), interrupted, ["test"], restart=True) == "done"
    assert len(list(interrupted.path.glob("steps.jsonl.set-aside-*"))) == 2


def test_going_on_from_an_earlier_checkpoint_cuts_the_rows_of_training_alone(
    interrupted: RunDir, tiny: Tiny, tmp_path: Path
) -> None:
    """The newest checkpoint is damaged: training goes on from 32, and what was measured at 40 by others stays."""
    append_evaluations(interrupted, [imported(40), imported(40, "shapes-geneval"), imported(40, "val_loss_of_clip")])
    with interrupted.evals.open("a") as file:
        sampled = imported(40, "frechet-shapes").model_copy(update={"while_training": True})
        file.write(sampled.model_dump_json(exclude_none=True) + "\n")
    (interrupted.checkpoints / "images_000000000040" / "ema.safetensors").unlink()
    warned: list[str] = []
    assert train(tiny(*SAVES), interrupted, ["test"], Reporter(warn=warned.append)) == "done"
    assert [line.endswith("Trying the checkpoint before it.") for line in warned] == [True]
    metrics = [row["metric"] for row in interrupted.read_rows(interrupted.evals).rows]
    assert [metrics.count(name) for name in ("geneval", "shapes-geneval", "val_loss_of_clip", "frechet-shapes")] == [
        1, 1, 1, 0,
    ]  # fmt: skip
    undisturbed = RunDir(tmp_path / "undisturbed")
    assert train(tiny(*SAVES), undisturbed, ["test"]) == "done"
    mine = [row for row in interrupted.read_rows(interrupted.evals).rows if row["metric"].startswith("val_loss")]
    assert [row for row in mine if row["metric"] != "val_loss_of_clip"] == [
        row for row in undisturbed.read_rows(undisturbed.evals).rows if row["metric"].startswith("val_loss")
    ]


@pytest.mark.parametrize("name", ["steps.jsonl", "evals.jsonl", "routing.jsonl", "routing_maps.jsonl", "checkpoints"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_with_somebodys_records_and_no_run_json_is_refused(
    tiny: Tiny, tmp_path: Path, name: str, restart: bool
) -> None:
    (tmp_path / name).write_text('{"mine": 1}\n')
    with pytest.raises(RecordError, match=rf"holds {name} and no run\.json.*Use another --run-dir"):
        train(tiny(), RunDir(tmp_path), ["test"], restart=restart)
    assert (tmp_path / name).read_text() == '{"mine": 1}\n'
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    "name", ["images_000000000200_keep", "images_000000000300.bak", "images_200", "images_keep", "images_０00000000300"]
)
def test_only_the_names_that_training_writes_are_checkpoints(run_dir: RunDir, name: str) -> None:
    shutil.copytree(write(run_dir, 200), run_dir.checkpoints / name)
    for images in (300, 400):
        write(run_dir, images, keep=2)
    assert kept(run_dir) == [300, 400]
    assert (run_dir.checkpoints / name / "state.json").is_file()
    assert load(run_dir) == (400, [])


@pytest.mark.parametrize("copied_to", [50, 150, 999, 10**11])
def test_a_copy_under_the_name_of_another_checkpoint_is_named_and_neither_read_nor_dropped(
    run_dir: RunDir, copied_to: int
) -> None:
    copy = run_dir.checkpoints / f"images_{copied_to:012d}"
    shutil.copytree(write(run_dir, 100), copy)
    line = f"{copy} holds the checkpoint after 100 images: it is taken for a copy, and left alone."
    assert load(run_dir) == (100, [line])
    for images in (200, 300):
        write(run_dir, images, keep=1)
        assert kept(run_dir) == [images]
    assert load(run_dir) == (300, [line])
    shutil.rmtree(run_dir.checkpoints / "images_000000000300")
    assert load(run_dir) == (None, [line])
    content = (copy / "state.json").read_bytes()
    write(run_dir, copied_to, keep=1)  # training comes by that number of images itself
    assert (copy.with_name(f"{copy.name}.set-aside-1") / "state.json").read_bytes() == content
    assert load(run_dir) == (copied_to, [])


def test_a_checkpoint_whose_state_is_damaged_counts_by_its_name(run_dir: RunDir) -> None:
    write(run_dir, 100)
    (write(run_dir, 200) / "state.json").write_text('"state": {"images_seen": 100')
    assert kept(run_dir) == [100, 200]
    write(run_dir, 300, keep=1)
    assert kept(run_dir) == [300]


def test_a_folder_in_which_somebody_keeps_something_is_never_dropped(run_dir: RunDir) -> None:
    notes = write(run_dir, 100) / "notes.txt"
    notes.write_text("the good one")
    (write(run_dir, 200) / "ema.safetensors").unlink()
    (run_dir.checkpoints / "images_000000000200" / "notes.txt").write_text("damaged")
    write(run_dir, 200, keep=1)  # training went on from 100, and comes by 200 again
    assert notes.read_text() == "the good one"
    assert (run_dir.checkpoints / "images_000000000200.set-aside-1" / "notes.txt").read_text() == "damaged"
    assert load(run_dir) == (200, [])
    write(run_dir, 300, keep=1)
    assert kept(run_dir) == [100, 300]


def test_a_linked_checkpoint_is_read_and_never_dropped(run_dir: RunDir, tmp_path: Path) -> None:
    shutil.move(write(run_dir, 100), tmp_path / "elsewhere")
    (run_dir.checkpoints / "images_000000000100").symlink_to(tmp_path / "elsewhere")
    assert load(run_dir) == (100, [])
    write(run_dir, 200, keep=1)
    assert (tmp_path / "elsewhere" / "state.json").is_file()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("file", ["state.json", "ema.safetensors"])
def test_a_fifo_in_the_place_of_a_file_is_damage_and_never_waited_for(run_dir: RunDir, file: str) -> None:
    write(run_dir, 100)
    path = write(run_dir, 200) / file
    path.unlink()
    os.mkfifo(path)
    images, said = load(run_dir)
    assert images == 100
    assert str(path) in said[0]


@pytest.mark.parametrize("reason", ["Permission denied", "Input/output error", "Stale file handle"])
def test_what_the_system_will_not_read_is_not_called_damaged(run_dir: RunDir, reason: str, tmp_path: Path) -> None:
    """Root may read all, so the errors are made as the system makes them."""
    number = next(number for number in range(200) if os.strerror(number) == reason)
    error = checkpoint._not_read(tmp_path / "ema.safetensors", OSError(number, reason))
    assert not isinstance(error, checkpoint.DamagedCheckpointError)
    assert f"ema.safetensors cannot be read: {reason.lower()}." in str(error)


@pytest.mark.parametrize("content", ["", "garbage", "{}", "[]", None], ids=["empty", "garbage", "{}", "[]", "gone"])
def test_a_run_whose_run_json_was_replaced_writes_it_again_and_can_be_read(
    tiny: Tiny, run_dir: RunDir, content: str | None
) -> None:
    written: list[str] = []

    def replace_at_24(images_seen: int) -> None:
        if images_seen == 24:
            written.append(run_dir.run_json.read_text())
            run_dir.run_json.unlink()
            if content is not None:
                run_dir.run_json.write_text(content)

    warned: list[str] = []
    assert train(tiny(), run_dir, ["test"], Reporter(step=replace_at_24, warn=warned.append)) == "done"
    assert run_dir.run_json.read_text() == written[0]
    (line,) = warned
    assert line.startswith(f"Wrote {run_dir.run_json} again: ")
    aside = run_dir.path / "run.json.set-aside-1"
    assert aside.exists() == (content is not None)
    assert content is None or aside.read_text() == content
