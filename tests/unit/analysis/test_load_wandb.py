"""Runs read from W&B give the frames of their folders: through wandb's own writer and its own public API."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb

from analysis.load_records import Records, load_records, read_routing
from analysis.run_table import run_table
from analysis.wandb_runs import WandbError
from experiments.errors import RecordError
from experiments.records.record_types import EvalRow, RoutingRow, State, StepRow
from experiments.records.run_folder import RunDir
from experiments.records.wandb_mirror import RESOLVED, mirror_id, start_mirror
from experiments.records.writer import RecordWriter, stored_rows
from tests.wandb_server import Server

PLACE = "wandb:me/ecdit"
SETTINGS: dict[str, Any] = {
    "routing": {"name": "expert_choice", "num_experts": 4},
    "train": {"images": 3200},
    "eval": {"every_images": 1600},
    "wandb": {"mode": "online"},
}
MirrorRun = Callable[..., RunDir]


def routing_row(images: int, layer: int, condition: str) -> RoutingRow:
    shares = {"load": [0.1, 0.2, 0.3, 0.4], "experts_per_token": [0.125, 0.5, 0.375]}
    facts = {"entropy": 1 / 3, "load_entropy": 0.9, "dropped_share": 0.125}
    return RoutingRow.model_validate({"images_seen": images, "layer": layer, "condition": condition, **facts, **shares})


@pytest.fixture
def mirror_run(tmp_path: Path, write_run: Callable[..., RunDir], wandb_server: Server) -> MirrorRun:
    """A run as training writes it, folder and mirror: rows in the order of images, a status at its end."""

    def mirror(
        name: str, seed: int = 0, state: State = "done", settings: dict[str, Any] = SETTINGS,
        why: str | None = None, **options: Any,
    ) -> RunDir:  # fmt: skip
        source = write_run(tmp_path / "source" / name, settings | {"seed": seed}, lambda n: 1 / (n + seed), **options)
        record, run = source.read_run(), RunDir(tmp_path / "runs" / name)
        writer = RecordWriter.open(run, record, 0, start_mirror)
        evals = list(stored_rows(source.evals, EvalRow))
        for step in stored_rows(source.steps, StepRow):
            writer.step(step)
            if rows := [row for row in evals if row.images_seen == step.images_seen]:
                sampled = {"metric": "shapes-geneval", "interval_low": 0.1, "settings": {"guidance": 2.0, "steps": 8}}
                writer.evaluation([*rows, rows[0].model_copy(update={"weights": "ema"})])
                writer.evaluation([rows[0].model_copy(update=sampled)])
                writer.routing([routing_row(step.images_seen, layer, "mixed_t") for layer in (1, 3)])
                writer.routing([routing_row(step.images_seen, 1, "same_t")])
        writer.status(state, 3200, "SIGTERM" if state == "interrupted" else why, peak_memory_gib=0.75)
        writer.close()
        wandb.teardown()  # the server has everything
        return run

    return mirror


def assert_same(mine: Records, theirs: Records) -> None:
    for frame in ("runs", "steps", "evals"):
        left, right = (getattr(records, frame).drop(columns="run") for records in (mine, theirs))
        pd.testing.assert_frame_equal(left, right)
    routing = [read_routing(records)[0].drop(columns="run") for records in (mine, theirs)]
    pd.testing.assert_frame_equal(*routing)


@pytest.mark.parametrize("exported", [False, True], ids=["live", "parquet"])
def test_a_round_trip_gives_the_frames_of_the_folder(
    exported: bool, mirror_run: MirrorRun, wandb_server: Server
) -> None:
    run = mirror_run("a")
    folder = load_records([run.path])
    wandb_server.exported = exported
    mirrored = load_records([], [PLACE])
    assert_same(mirrored, folder)
    assert mirrored.left_out == ()
    assert len(mirrored.steps) == 10
    assert len(read_routing(mirrored)[0]) == 6
    pd.testing.assert_frame_equal(
        run_table(mirrored).drop(columns="run"), run_table(folder).drop(columns="run")
    )  # fmt: skip
    fetched = RunDir(Path(mirrored.runs["run"][0]))
    assert fetched.read_status().peak_memory_gib == 0.75
    assert fetched.read_run() == run.read_run()


def test_the_whole_history_is_read_however_far_its_steps_are_apart(mirror_run: MirrorRun, wandb_server: Server) -> None:
    run = mirror_run("a")
    stored = wandb_server.runs[mirror_id(run.read_run())]
    first = stored.rows[320]
    stored.rows |= {step: first | {"_step": step, "images_seen": step} for step in range(10, 3200, 7) if step % 320}
    records = load_records([], [PLACE])
    assert set(records.steps["images_seen"]) == set(stored.rows)
    pages = wandb_server.asked_for("HistoryPage")
    assert len(pages) == 1
    assert all(page["pageSize"] >= page["maxStep"] - page["minStep"] for page in pages)


def test_a_run_that_is_a_folder_and_in_wandb_counts_once_and_others_join(mirror_run: MirrorRun, tmp_path: Path) -> None:
    here, there = mirror_run("a"), mirror_run("b", seed=1, created_at="2026-01-02T00:00:00Z")
    shutil.rmtree(there.path)
    records = load_records([here.path], [PLACE])
    assert sorted(records.runs["seed"]) == [0, 1]
    assert [entry.reason for entry in records.left_out] == [f"it is the same run as {here.path}"]


def test_what_wandb_has_no_news_of_is_not_fetched_again(mirror_run: MirrorRun, wandb_server: Server) -> None:
    run = mirror_run("a")
    first = load_records([], [PLACE])
    wandb_server.asked.clear()
    assert_same(load_records([], [PLACE]), first)
    assert wandb_server.asked_for("RunParquetHistory") == []
    stored = wandb_server.runs[mirror_id(run.read_run())]
    stored.heartbeat = "2026-01-02T00:00:00Z"
    stored.rows[3200]["loss"] = 7.0
    assert load_records([], [PLACE]).steps["loss"].iloc[-1] == 7.0


def test_runs_that_cannot_be_used_are_left_out_and_named(mirror_run: MirrorRun, wandb_server: Server) -> None:
    done = mirror_run("a")
    mirror_run("b", seed=1, state="failed")
    stored = wandb_server.runs[mirror_id(done.read_run())]
    wandb_server.runs["other"] = type(stored)("other", "ecdit", config={"lr": {"value": 0.1}})
    older = {key: value for key, value in stored.config.items() if key != RESOLVED} | {"model": {"value": {"x": 1}}}
    wandb_server.runs["older"] = type(stored)("older", "ecdit", config=older)
    records = load_records([], [PLACE])
    reasons = sorted(entry.reason for entry in records.left_out)
    assert len(records.runs) == 1
    assert reasons[0].startswith("failed at 3,200 of 3,200 images")
    assert reasons[1] == "it was not recorded by ecdit"
    assert reasons[2].startswith("its settings are not of this ecdit")


def test_runs_of_agents_come_back_where_a_parameter_has_the_name_of_a_section(
    mirror_run: MirrorRun, wandb_server: Server
) -> None:
    """W&B puts the parameter `model: nano` in the place of the section `model`."""
    run = mirror_run("a")
    wandb_server.runs[mirror_id(run.read_run())].config |= {"model": {"value": "nano"}, "optim": {"value": "adamw"}}
    assert_same(load_records([], [PLACE]), load_records([run.path]))


def test_runs_of_an_earlier_mirror_are_read_from_their_sections(mirror_run: MirrorRun, wandb_server: Server) -> None:
    run = mirror_run("a")
    del wandb_server.runs[mirror_id(run.read_run())].config[RESOLVED]
    assert_same(load_records([], [PLACE]), load_records([run.path]))


def test_a_run_that_diverged_comes_back_with_its_rows(mirror_run: MirrorRun, wandb_server: Server) -> None:
    done = mirror_run("a")
    mirror_run("b", seed=1, state="failed", why="Not finite after 3,200 images: blocks.1 (loss nan).")
    records = load_records([], [PLACE])
    assert len(records.runs) == 1
    assert records.diverged is not None
    assert records.diverged.runs["diverged_at_images"].to_list() == [3200]
    assert len(records.diverged.steps) == len(load_records([done.path]).steps) == 10
    assert set(records.diverged.evals["images_seen"]) == {1600, 3200}


def test_rows_that_wandb_does_not_give_are_counted(mirror_run: MirrorRun, wandb_server: Server) -> None:
    mirror_run("a")
    mirror_run("b", seed=1)
    kept, cut = list(wandb_server.runs.values())
    cut.rows = {step: row for step, row in cut.rows.items() if step != 640}
    cut.num_rows = 10
    records = load_records([], [PLACE])
    (entry,) = records.left_out
    assert str(entry) == f"{PLACE}/{cut.name}: W&B gave 9 of the 10 rows it has"
    assert kept.name in records.runs["run"][0]


def test_a_run_of_a_newer_version_is_left_out(mirror_run: MirrorRun, wandb_server: Server) -> None:
    """Until now a single one made the whole project unreadable."""
    mirror_run("b", seed=1)
    stored = wandb_server.runs[mirror_id(mirror_run("a").read_run())]
    stored.config["schema_version"] = {"value": 2}
    records = load_records([], [PLACE])
    assert list(records.runs["seed"]) == [1]
    (entry,) = records.left_out
    assert str(entry).startswith(f"{PLACE}/{stored.name}: ")
    assert entry.reason.endswith("was written by a newer version of ecdit (schema version 2; this one reads 1).")


def test_the_balance_loss_of_a_run_comes_back(mirror_run: MirrorRun, wandb_server: Server) -> None:
    """Runs of an earlier version, whose mirror did not send it, are known by that."""
    for seed in (0, 1):
        mirror_run(str(seed), seed=seed, settings=SETTINGS | {"routing": {"name": "token_choice"}})
    assert len(load_records([], [PLACE]).runs) == 2
    old = next(iter(wandb_server.runs.values()))
    del old.summary["balance_loss"]
    records = load_records([], [PLACE])
    (entry,) = records.left_out
    assert f"{PLACE}/{old.name}".endswith(Path(entry.run).name)
    assert "with the mean over layers of the balance loss" in entry.reason


def test_mistakes_are_one_line_each(
    mirror_run: MirrorRun, wandb_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror_run("a", state="interrupted")
    cases = {
        "wandb:me": "--from wandb:me is not a W&B project",
        "wandb:me/none": "W&B has no project me/none, or your key may not see it",
        "wandb:me/empty": "wandb:me/empty holds no runs",
        PLACE: r"None of the 1 runs is finished .*SIGTERM",
    }
    for place, message in cases.items():
        with pytest.raises((WandbError, RecordError), match=message):
            load_records([], [place])
    monkeypatch.delenv("WANDB_API_KEY")
    wandb.teardown()
    with pytest.raises(WandbError, match=r"needs a W&B key\. Log in with `wandb login`"):
        load_records([], [PLACE])


READ = """
import sys
from analysis.load_records import load_records
from analysis import wandb_runs
wandb_runs.TIMEOUT_SECONDS = 1
try:
    load_records([], ["wandb:me/ecdit"])
except wandb_runs.WandbError as error:
    print(error)
"""


def test_without_a_network_it_says_so(no_account: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, timeout=200, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("wandb:me/ecdit could not be read from W&B: ")
    assert line.endswith("Check the network, WANDB_BASE_URL and the key.")
