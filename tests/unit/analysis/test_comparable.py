"""Runs over different data, validation sets or conditions are refused, with the difference named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.load_records import load_records
from analysis.run_table import run_table
from experiments.errors import RecordError
from experiments.records.run_folder import RunDir

WriteRun = Callable[..., RunDir]
BASE: dict[str, Any] = {"routing": {"name": "dense"}, "train": {"images": 3200}, "eval": {"every_images": 1600}}


def write_two(folder: Path, write_run: WriteRun, other: dict[str, Any], **options: Any) -> tuple[RunDir, RunDir]:
    first = write_run(folder / "a", BASE, lambda images: 1.0, inference_seconds=0.1)
    return first, write_run(folder / "b", BASE | {"seed": 1} | other, lambda images: 1.0, **options)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"data": {"seed": 3}}, r"Runs differ in data\.seed: 0 in .*a, 3 in .*b\."),
        ({"eval": {"every_images": 1600, "images": 64}}, r"Runs differ in eval\.images: 512 in .*a, 64 in .*b\."),
    ],
)
def test_different_data_are_refused(other: dict[str, Any], message: str, tmp_path: Path, write_run: WriteRun) -> None:
    write_two(tmp_path, write_run, other)
    with pytest.raises(RecordError, match=message):
        run_table(load_records([tmp_path]))


def test_runs_of_other_objectives_are_setups_of_their_own(tmp_path: Path, write_run: WriteRun) -> None:
    other = {"flow": {"objective": "ddpm", "schedule": "cosine"}}
    write_two(tmp_path, write_run, other, final={"velocity_error": 0.5})
    table = run_table(load_records([tmp_path])).set_index("setup")
    assert set(table.index) == {"nano, flow.objective=rectified_flow", "nano, flow.objective=ddpm"}


def test_a_setup_names_what_its_objective_does_not_decide(tmp_path: Path, write_run: WriteRun) -> None:
    other = {"flow": {"objective": "ddpm", "schedule": "cosine"}}
    write_two(tmp_path, write_run, other, final={"velocity_error": 0.5})
    third = BASE | {"seed": 1, "flow": {"objective": "ddpm", "schedule": "linear"}}
    write_run(tmp_path / "c", third, lambda images: 1.0, final={"velocity_error": 0.5})
    assert set(run_table(load_records([tmp_path]))["setup"]) == {
        "nano, flow.objective=rectified_flow, flow.schedule=None",
        "nano, flow.objective=ddpm, flow.schedule=cosine",
        "nano, flow.objective=ddpm, flow.schedule=linear",
    }


@pytest.mark.parametrize("block", ["dit", "mmdit"])
def test_blocks_that_read_captions_or_classes_of_the_same_images_are_setups_of_their_own(
    block: str, tmp_path: Path, write_run: WriteRun
) -> None:
    write_two(tmp_path, write_run, {"model": {"name": "nano", "block": block}})
    named = {f"nano, model.block={each}" for each in ("pixart", block)}
    assert set(run_table(load_records([tmp_path]))["setup"]) == named


def test_blocks_do_not_make_other_data_comparable(tmp_path: Path, write_run: WriteRun) -> None:
    write_two(tmp_path, write_run, {"model": {"name": "nano", "block": "dit"}, "data": {"seed": 3}})
    with pytest.raises(RecordError, match=r"Runs differ in data\.seed: 0 in .*a, 3 in .*b\."):
        run_table(load_records([tmp_path]))


def test_a_validation_set_of_another_size_is_refused(tmp_path: Path, write_run: WriteRun) -> None:
    _, second = write_two(tmp_path, write_run, {})
    rows = [json.loads(line) for line in second.evals.read_text().splitlines()]
    second.evals.write_text("".join(json.dumps(row | {"num_samples": 100}) + "\n" for row in rows))
    with pytest.raises(RecordError, match=r"Runs differ in num_samples of val_loss: 512 in .*a, 100 in .*b\."):
        run_table(load_records([tmp_path]))


def measure(run: RunDir, value: float, **settings: Any) -> None:
    row = {"images_seen": 3200, "metric": "inference_seconds_per_image", "value": value, "num_samples": 4, "seed": 0}
    with run.evals.open("a") as file:
        file.write(json.dumps(row | {"weights": "raw", "settings": {"steps": 24, **settings}}) + "\n")


def test_times_measured_under_other_conditions_are_refused(tmp_path: Path, write_run: WriteRun) -> None:
    first, second = write_two(tmp_path, write_run, {})
    measure(first, 0.1, batch_images=16)
    measure(second, 0.1, batch_images=8)
    with pytest.raises(RecordError, match=r"batch_images of inference_seconds_per_image: 16 in .*a, 8 in .*b\."):
        run_table(load_records([tmp_path]))


def test_how_a_measurement_went_is_no_condition_and_the_last_one_counts(tmp_path: Path, write_run: WriteRun) -> None:
    first, second = write_two(tmp_path, write_run, {})
    measure(first, 0.2, slowest_seconds=0.3)
    measure(second, 0.4, slowest_seconds=0.5)
    assert run_table(load_records([tmp_path]))["inference_seconds_per_image"].to_list() == [0.2, 0.4]


def test_of_several_conditions_those_that_all_runs_share_count(tmp_path: Path, write_run: WriteRun) -> None:
    first, second = write_two(tmp_path, write_run, {}, inference_seconds=0.1)
    for guidance, seconds in ((2.0, 0.2), (4.0, 0.4)):
        measure(first, seconds, batch_images=16, guidance=guidance)
    measure(second, 0.3, batch_images=16, guidance=2.0)
    table = run_table(load_records([tmp_path]))
    assert table["inference_seconds_per_image"].tolist() == [0.2, 0.3]


LATENTS: dict[str, Any] = {
    "name": "latents", "channels": 4, "text_width": 8, "pooled_width": 8, "fingerprint": "0123456789abcdef",
    "path": "/here/photos",
}  # fmt: skip


def test_one_prepared_set_may_lie_in_several_places(tmp_path: Path, write_run: WriteRun) -> None:
    for seed, place in enumerate(("/here/photos", "/there/photos")):
        write_run(tmp_path / str(seed), BASE | {"seed": seed, "data": LATENTS | {"path": place}}, lambda images: 1.0)
    assert run_table(load_records([tmp_path]))["setup"].to_list() == ["nano", "nano"]
    copied = {"created_at": "2026-01-02T00:00:00Z"}
    write_run(tmp_path / "copy", BASE | {"seed": 1, "data": LATENTS}, lambda images: 1.0, **copied)
    (copy,) = load_records([tmp_path]).left_out
    assert copy.reason == f"it has the same settings and seed as {tmp_path / '1'}"


def test_another_prepared_set_is_refused(tmp_path: Path, write_run: WriteRun) -> None:
    for seed, fingerprint in enumerate(("0123456789abcdef", "fedcba9876543210")):
        settings = BASE | {"seed": seed, "data": LATENTS | {"fingerprint": fingerprint}}
        write_run(tmp_path / str(seed), settings, lambda images: 1.0)
    with pytest.raises(RecordError, match=r"Runs differ in data\.fingerprint: 0123456789abcdef in"):
        run_table(load_records([tmp_path]))


def test_times_with_guidance_on_in_other_intervals_are_refused(tmp_path: Path, write_run: WriteRun) -> None:
    first, second = write_two(tmp_path, write_run, {}, inference_seconds=0.1)
    for run in (first, second):
        lines = run.evals.read_text().splitlines(keepends=True)
        run.evals.write_text("".join(line for line in lines if "inference" not in line))
    measure(first, 0.1, guidance=2.0, guidance_start=0.3, guidance_stop=0.7)
    measure(second, 0.2, guidance=2.0)
    message = r"guidance_start of inference_seconds_per_image: 0\.3 in .*a, 0\.0 in .*b\."
    with pytest.raises(RecordError, match=message):
        run_table(load_records([tmp_path]))
    measure(first, 0.4, guidance=2.0, guidance_start=0.0, guidance_stop=1.0)
    assert run_table(load_records([tmp_path]))["inference_seconds_per_image"].to_list() == [0.4, 0.2]
