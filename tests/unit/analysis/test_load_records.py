"""Only finished, whole runs enter the frames; the rest is counted and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import processes
from analysis.load_records import Records, load_records, read_routing
from experiments.config.routers import ROUTERS
from experiments.errors import RecordError
from experiments.records.record_types import BALANCE_LOSS
from experiments.records.run_folder import RunDir

WriteRun = Callable[..., RunDir]
SHORT: dict[str, Any] = {"routing": {"name": "dense"}, "train": {"images": 3200}, "eval": {"every_images": 1600}}


def loss(images: int) -> float:
    return 1.0 / images


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def reasons(records: Records) -> list[str]:
    return [entry.reason for entry in records.left_out]


@pytest.fixture
def done(tmp_path: Path, write_run: WriteRun) -> RunDir:
    return write_run(tmp_path / "runs" / "done", SHORT, loss)


def test_settings_become_dotted_columns_and_rows_keep_their_run(done: RunDir) -> None:
    records = load_records([done.path])
    run = records.runs.iloc[0]
    assert (run["routing.name"], run["train.images"], run["seed"]) == ("dense", 3200, 0)
    assert list(records.steps["images_seen"]) == list(range(320, 3201, 320))
    assert set(records.steps["run"]) == set(records.evals["run"]) == {str(done.path)}
    assert records.left_out == ()


@pytest.mark.parametrize("state", ["running", "failed", "interrupted", "planned"])
def test_an_unfinished_run_is_left_out_with_its_state_and_reason(state: str, done: RunDir, write_run: WriteRun) -> None:
    write_run(done.path.parent / "other", SHORT | {"seed": 1}, loss, state=state, reason="loss is not finite")
    records = load_records([done.path.parent])
    assert len(records.runs) == 1
    assert reasons(records) == [f"{state} at 3,200 of 3,200 images: loss is not finite"]


def test_a_damaged_run_is_left_out_with_what_is_wrong(done: RunDir, write_run: WriteRun) -> None:
    damaged = write_run(done.path.parent / "other", SHORT | {"seed": 1}, loss)
    damaged.run_json.write_text('{"schema_version": 1, "config"')
    records = load_records([done.path.parent])
    assert len(records.runs) == 1
    assert reasons(records)[0].startswith(f"{damaged.run_json} is damaged")


def test_a_cut_line_is_counted_and_the_others_are_kept(done: RunDir) -> None:
    append(done.steps, '{"images_seen": 3520, "lo')
    records = load_records([done.path])
    assert len(records.steps) == 10
    assert reasons(records) == ["1 row of steps.jsonl damaged (line 11: EOF while parsing a string at column 25)"]


def test_rows_without_finite_numbers_are_counted(done: RunDir) -> None:
    row = json.loads(done.steps.read_text().splitlines()[0])
    append(done.steps, json.dumps(row | {"images_seen": 1, "loss": float("nan")}) + "\n")
    append(done.evals, json.dumps({"images_seen": 5, "metric": "val_loss", "weights": "raw", "value": "high"}) + "\n")
    records = load_records([done.path])
    assert len(records.steps) == 10
    assert set(records.evals["images_seen"]) == {1600, 3200}
    assert reasons(records) == [
        "1 row of steps.jsonl without finite numbers (line 11)",
        "1 row of evals.jsonl damaged (line 3: value: Input should be a valid number)",
    ]


def test_a_row_of_routing_that_cannot_be_used_is_counted_when_routing_is_asked_for(done: RunDir) -> None:
    row = {"images_seen": 1600, "layer": 1, "condition": "mixed_t", "load": [0.5, 0.5], "dropped_share": 0.1}
    whole = row | {"entropy": 0.9, "load_entropy": 1.0, "experts_per_token": [0.1, 0.9]}
    append(done.routing, json.dumps(whole) + "\n" + '{"images_seen": 3200, "la')
    frame, left_out = read_routing(load_records([done.path]))
    assert frame[["run", "layer", "dropped_share"]].to_dict("records") == [
        {"run": str(done.path), "layer": 1, "dropped_share": 0.1}
    ]
    assert [str(entry) for entry in left_out] == [
        f"{done.path}: 1 row of routing.jsonl damaged (line 2: EOF while parsing a string at column 25)"
    ]


def test_a_row_written_again_after_a_resumption_replaces_the_first(done: RunDir) -> None:
    last = json.loads(done.steps.read_text().splitlines()[-1])
    append(done.steps, json.dumps(last | {"loss": 7.0}) + "\n")
    steps = load_records([done.path]).steps
    assert len(steps) == 10
    assert steps["loss"].iloc[-1] == 7.0


def test_rows_that_a_resumption_wrote_elsewhere_stand_in_the_order_of_images(done: RunDir) -> None:
    lines = done.steps.read_text().splitlines()
    again = [json.dumps(json.loads(line) | {"loss": 7.0}) for line in lines[6:8]]
    between = json.dumps(json.loads(lines[6]) | {"images_seen": 2400, "loss": 8.0})
    append(done.steps, "\n".join([again[0], between, again[1]]) + "\n")
    steps = load_records([done.path]).steps
    assert list(steps["images_seen"]) == sorted([*range(320, 3201, 320), 2400])
    assert list(steps["loss"][steps["loss"] >= 7]) == [7.0, 8.0, 7.0]


def test_a_number_that_some_rows_lack_is_missing_there(done: RunDir) -> None:
    row = json.loads(done.steps.read_text().splitlines()[-1])
    append(done.steps, json.dumps(row | {"images_seen": 3360, "auxiliary_loss": 0.5}) + "\n")
    records = load_records([done.path])
    assert list(records.steps["auxiliary_loss"].dropna()) == [0.5]
    assert len(records.steps) == 11
    assert records.left_out == ()


def test_a_copy_of_a_run_is_not_another_seed(done: RunDir, write_run: WriteRun) -> None:
    settings = SHORT | {"log": {"every_images": 160}, "parallel": {"world": 2}}
    write_run(done.path.parent / "same", settings, loss, created_at="2026-01-02T00:00:00Z")
    records = load_records([done.path.parent])
    assert len(records.runs) == 1
    assert reasons(records) == [f"it has the same settings and seed as {done.path}"]


@pytest.mark.parametrize(("router", "group", "num_runs"), [("token_choice", "batch", 2), ("expert_choice", 8, 1)])
def test_another_number_of_processes_makes_a_copy_where_routing_groups_stay_what_they_are(
    router: str, group: str | int, num_runs: int, tmp_path: Path, write_run: WriteRun
) -> None:
    """On four processes a group of a batch of 32 images has 8, and the losses are those of other competitions."""
    for world in (1, 4):
        routing, train = {"name": router, "group_images": group}, {"images": 3200, "batch_images": 32}
        settings = SHORT | {"routing": routing, "train": train, "parallel": {"world": world}}
        write_run(tmp_path / str(world), settings, loss, created_at=f"2026-01-0{world}T00:00:00Z")
    records = load_records([tmp_path])
    assert len(records.runs) == num_runs
    assert reasons(records) == [f"it has the same settings and seed as {tmp_path / '1'}"] * (2 - num_runs)


@pytest.mark.parametrize(("router", "num_runs"), [("dense", 1), ("expert_choice", 2)])
def test_a_placement_of_experts_makes_a_copy_of_a_dense_run_alone(
    router: str, num_runs: int, tmp_path: Path, write_run: WriteRun
) -> None:
    for placement in ("all", "alternate"):
        settings = SHORT | {"model": {"name": "nano", "sparse_layers": placement}, "routing": {"name": router}}
        write_run(tmp_path / placement, settings, loss)
    records = load_records([tmp_path])
    assert len(records.runs) == num_runs
    assert reasons(records) == [f"it has the same settings and seed as {tmp_path / 'all'}"] * (2 - num_runs)


def test_an_earlier_loss_does_not_pass_for_the_final_one(done: RunDir, write_run: WriteRun) -> None:
    write_run(done.path.parent / "other", SHORT | {"seed": 1}, loss, eval_images=[1600])
    records = load_records([done.path.parent])
    assert set(records.evals["run"]) == {str(done.path)}
    assert reasons(records) == ["no validation loss at 3,200 images, its end"]


@pytest.mark.parametrize("status", [{}, {"state": "dreaming"}, {"mood": 3}], ids=["known", "state", "key"])
def test_a_run_of_a_newer_version_is_left_out_by_its_file_and_the_others_are_used(
    status: dict[str, Any], done: RunDir, write_run: WriteRun
) -> None:
    """Its status may hold what this version does not know, too; until now the whole folder was refused."""
    other = write_run(done.path.parent / "other", SHORT | {"seed": 1}, loss)
    for file, changed in ((other.run_json, {"schema_version": 2}), (other.status_json, status)):
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    records = load_records([done.path.parent])
    assert list(records.runs["run"]) == [str(done.path)]
    written = f"{other.run_json} was written by a newer version of ecdit (schema version 2; this one reads 1)."
    assert [str(entry) for entry in records.left_out] == [f"{other.path}: {written}"]
    with pytest.raises(RecordError, match=r"None of the 1 runs is finished .*was written by a newer version of ecdit"):
        load_records([other.path])


def with_balance_loss(seed: int, router: str = "token_choice") -> dict[str, Any]:
    return SHORT | {"routing": {"name": router}, "seed": seed}


@pytest.mark.parametrize("router", [name for name, row in ROUTERS.items() if row.balance_loss_weight])
def test_a_run_of_the_mean_balance_loss_is_left_out_beside_one_of_the_sum(
    router: str, tmp_path: Path, write_run: WriteRun
) -> None:
    """They have the same config id, so that both losses would stand in one arm, as its seeds or as copies."""
    write_run(tmp_path / "a-old", with_balance_loss(0, router), loss, balance_loss=None)
    write_run(tmp_path / "b-old", with_balance_loss(1, router), loss, balance_loss=None)
    write_run(tmp_path / "dense", with_balance_loss(0, "dense"), loss, balance_loss=None)
    write_run(tmp_path / "new", with_balance_loss(0, router), loss)
    records = load_records([tmp_path])
    assert list(records.runs["name"]) == ["dense", "new"]
    assert set(records.steps["run"]) == set(records.evals["run"]) == set(records.runs["run"])
    assert [str(entry) for entry in records.left_out] == [
        f"{tmp_path / name}: an earlier version trained it with the mean over layers of the balance loss, of which "
        f"{tmp_path / 'new'} has the sum over layers"
        for name in ("a-old", "b-old")
    ]


def test_runs_of_one_balance_loss_are_compared_whichever_it_is(tmp_path: Path, write_run: WriteRun) -> None:
    """A single routed layer has the same loss either way."""
    for name, balance_loss in (("old", None), ("new", BALANCE_LOSS)):
        for seed in (0, 1):
            write_run(tmp_path / name / str(seed), with_balance_loss(seed), loss, balance_loss=balance_loss)
        records = load_records([tmp_path / name])
        assert (len(records.runs), records.left_out) == (2, ())
    for seed, balance_loss in enumerate((None, BALANCE_LOSS)):
        one_layer = with_balance_loss(seed) | {"model": {"name": "nano", "num_layers": 2, "sparse_layers": "alternate"}}
        write_run(tmp_path / "one" / str(seed), one_layer, loss, balance_loss=balance_loss)
    records = load_records([tmp_path / "one"])
    assert (len(records.runs), records.left_out) == (2, ())


def test_a_missing_folder_and_one_without_runs_are_said(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="nothing is not a folder"):
        load_records([tmp_path / "nothing"])
    with pytest.raises(RecordError, match=r"No runs at or below .*ecdit sweep"):
        load_records([tmp_path])


def test_when_no_run_is_finished_the_states_are_said(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "run", SHORT, loss, state="running")
    with pytest.raises(RecordError, match=r"None of the 1 runs is finished \(.*running at 3,200 of 3,200 images\)"):
        load_records([tmp_path])


def test_several_processes_read_the_same_frames_as_one(
    done: RunDir, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(done.path.parent / "other", SHORT | {"seed": 1}, loss)
    alone = load_records([done.path.parent])
    monkeypatch.setattr(processes, "MIN_RUNS_FOR_PROCESSES", 1)
    together = load_records([done.path.parent])
    for mine, theirs in ((alone.steps, together.steps), (alone.evals, together.evals)):
        pd.testing.assert_frame_equal(mine, theirs)


def test_a_damaged_copy_does_not_take_the_place_of_a_whole_one(done: RunDir, write_run: WriteRun) -> None:
    cut = write_run(done.path.parent / "a-cut", SHORT, loss, eval_images=[1600])
    records = load_records([done.path.parent])
    assert list(records.runs["run"]) == [str(done.path)]
    assert [str(entry) for entry in records.left_out] == [f"{cut.path}: no validation loss at 3,200 images, its end"]


def test_a_schema_version_that_never_was_is_damage_and_stops_nothing(done: RunDir, write_run: WriteRun) -> None:
    other = write_run(done.path.parent / "other", SHORT | {"seed": 1}, loss)
    other.run_json.write_text(json.dumps(json.loads(other.run_json.read_text()) | {"schema_version": 0}))
    records = load_records([done.path.parent])
    assert list(records.runs["run"]) == [str(done.path)]
    assert [entry.run for entry in records.left_out] == [str(other.path)]


def test_values_that_were_measured_while_training_are_read_beside_others(done: RunDir) -> None:
    row = json.loads(done.evals.read_text().splitlines()[0]) | {"metric": "frechet-shapes"}
    append(done.evals, json.dumps(row | {"while_training": True}) + "\n")
    append(done.evals, json.dumps(row | {"num_samples": 7, "while_training": 1}) + "\n")
    records = load_records([done.path])
    assert (records.evals["metric"] == "frechet-shapes").sum() == 1
    (reason,) = reasons(records)
    assert "while_training: Input should be a valid boolean" in reason


@pytest.mark.parametrize("value", [1.7e308, -1.7e308, 1e41])
def test_a_measured_number_whose_square_is_none_is_left_out(value: float, done: RunDir) -> None:
    row = json.loads(done.evals.read_text().splitlines()[0])
    step = json.loads(done.steps.read_text().splitlines()[0])
    append(done.evals, json.dumps(row | {"metric": "frechet-shapes", "value": value}) + "\n")
    append(done.evals, json.dumps(row | {"metric": "shapes-geneval", "interval_high": value}) + "\n")
    append(done.steps, json.dumps(step | {"images_seen": 3360, "loss": value}) + "\n")
    records = load_records([done.path])
    assert set(records.evals["metric"]) == {"val_loss"}
    assert len(records.steps) == 10
    evals, steps = sorted(reasons(records), reverse=True)
    assert steps.startswith("1 row of steps.jsonl damaged (line 11: loss: Input should be")
    assert evals.startswith("2 rows of evals.jsonl damaged (line 3: value: Input should be")


def test_a_value_of_no_samples_is_no_value(done: RunDir) -> None:
    row = json.loads(done.evals.read_text().splitlines()[0])
    append(done.evals, json.dumps(row | {"num_samples": 0}) + "\n")
    assert "line 3: num_samples: Input should be greater than or equal to 1" in reasons(load_records([done.path]))[0]


def test_a_run_in_the_folder_of_another_is_listed(done: RunDir, write_run: WriteRun) -> None:
    inner = write_run(done.path / "inner", SHORT | {"seed": 1}, loss)
    records = load_records([done.path.parent])
    assert list(records.runs["run"]) == [str(done.path)]
    assert [str(each) for each in records.left_out] == [
        f"{inner.path}: it lies in the folder of the run done: name it by itself"
    ]
    assert list(load_records([inner.path]).runs["run"]) == [str(inner.path)]
