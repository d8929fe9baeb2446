"""`ecdit evaluate`: measures, records, skips what is recorded, and says in one line what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ecdit_cli.app import run
from experiments.data.scenes import objects as shapes
from experiments.evaluation.metrics import judge
from experiments.records.run_folder import RunDir, read_jsonl
from tests.command_errors import error_of
from tests.training_runs import random_run_folder

Captured = pytest.CaptureFixture[str]
FEW = ("--images", "6", "--steps", "2")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "runs"
    for name in ("dense", "expert_choice"):
        random_run_folder(folder / name, f"routing={name}")
    return folder


@pytest.fixture
def runs(originals: Path, tmp_path: Path) -> Path:
    """Copies, which a test may write to."""
    return Path(shutil.copytree(originals, tmp_path / "runs"))


def recorded(folder: Path) -> list[dict[str, Any]]:
    """Without what training recorded."""
    return [row for row in read_jsonl(RunDir(folder).evals).rows if row["metric"] != "val_loss"]


def test_one_line_for_each_run_and_scale_and_rows_in_the_records(runs: Path, capsys: Captured) -> None:
    assert run(["evaluate", str(runs), "--guidance", "1,2", *FEW]) == 0
    captured = capsys.readouterr()
    values, by_kind = captured.out.split("\n\n")
    title, by_kind = by_kind.split("\n", 1)
    assert title == "shapes-geneval, by part:"
    for table in (values, by_kind):
        head, *lines = table.splitlines()
        assert head.split()[:2] == ["run", "guidance"]
        assert [line.split()[:2] for line in lines] == [[r, g] for r in ("dense", "expert_choice") for g in ("1", "2")]
    for name in ("dense", "expert_choice"):
        rows = recorded(runs / name)
        assert sorted(row["settings"]["guidance"] for row in rows if row["metric"] == "frechet-shapes") == [1.0, 2.0]
        assert {"shapes-geneval", "shapes-geneval-held-out"} <= {row["metric"] for row in rows}


def test_what_is_recorded_is_not_measured_again(runs: Path, capsys: Captured) -> None:
    command = ["evaluate", str(runs / "dense"), *FEW]
    assert run(command) == 0
    first = recorded(runs / "dense")
    assert run([*command, "--json"]) == 0
    captured = capsys.readouterr()
    assert "shapes-geneval, frechet-shapes recorded already." in captured.err
    assert recorded(runs / "dense") == first
    assert sorted(row["metric"] for row in json.loads(captured.out[captured.out.index("[") :])[0]["rows"]) == sorted(
        row["metric"] for row in first
    )
    assert run([*command, "--again"]) == 0
    assert len(recorded(runs / "dense")) == 2 * len(first)


def test_times_come_with_the_overhead_over_dense(runs: Path, capsys: Captured) -> None:
    command = ["evaluate", str(runs), "--metrics", "inference-time", "--steps", "1", "--rounds", "1", "--json"]
    assert run([*command, "--batch-images", "2"]) == 0
    dense, routed = json.loads(capsys.readouterr().out)
    assert "overhead_over_dense" not in dense
    assert set(routed["overhead_over_dense"]) == {"params_active", "flops", "seconds"}
    assert routed["overhead_over_dense"]["flops"] > 0


def test_runs_of_one_name_in_two_folders_keep_their_rows_apart(runs: Path, tmp_path: Path, capsys: Captured) -> None:
    folders = [str(runs / "dense"), str(shutil.copytree(runs / "dense", tmp_path / "other" / "dense"))]
    command = ["evaluate", *folders, "--metrics", "frechet-shapes,inference-time", "--rounds", "1", *FEW]
    assert run([*command, "--batch-images", "2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(one["run"], one["folder"]) for one in shown] == [("dense", folder) for folder in folders]
    for one, folder in zip(shown, folders, strict=True):
        assert one["rows"] == recorded(Path(folder))
    assert run([*command, "--batch-images", "2"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["run", *folders]
    assert run(["evaluate", folders[0], "--metrics", "frechet-shapes", *FEW, "--json"]) == 0
    printed = capsys.readouterr().out
    assert "folder" not in json.loads(printed[printed.index("[") :])[0]


def test_routing_leaves_maps_that_the_figures_find(runs: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(["evaluate", str(runs), "--metrics", "routing", *FEW]) == 0
    assert "object/backgr." in capsys.readouterr().out
    assert not RunDir(runs / "dense").routing_maps.exists()
    for figure in ("compute-map", "specialization"):
        assert run(["plot", figure, str(runs), "--out", str(tmp_path / "figures")]) == 0
        assert (tmp_path / "figures" / f"{figure}.png").is_file()


def test_the_judge_is_checked_without_a_run(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecdit_cli._evaluation.JUDGE_CHECK_IMAGES", 24)
    assert run(["evaluate", "--check-judge"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].split()[0] == "pictures"
    assert len(captured.out.splitlines()) == 1 + 12 + 1
    assert captured.out.splitlines()[-1].split()[:5] == ["independent", "0", "0", "40", "100.0%"]
    assert "% of true captions" in captured.err
    assert "Of 40 pictures that were drawn without the data's drawing code it reads 40 right." in captured.err


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_check_of_the_judge_fails_when_the_drawing_code_is_wrong(
    options: tuple[str, ...], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    circle, square = shapes.SHAPES["circle"], shapes.SHAPES["square"]
    monkeypatch.setitem(shapes.SHAPES, "circle", square)
    monkeypatch.setitem(shapes.SHAPES, "square", circle)
    monkeypatch.setattr("ecdit_cli._evaluation.JUDGE_CHECK_IMAGES", 2)
    judge._bank.cache_clear()
    try:
        line = error_of(["evaluate", "--check-judge", *options], capsys, code=1)
    finally:
        judge._bank.cache_clear()
    assert "misreads 14 of 40 pictures that were drawn independently of the data" in line
    assert "Shapes that it does not recognise: circle, square." in line


def test_images_too_small_for_the_judge_are_refused_with_its_rate(tmp_path: Path, capsys: Captured) -> None:
    small = random_run_folder(tmp_path / "small", "data.image_size=12", "routing=dense")
    line = error_of(["evaluate", str(small.path), *FEW], capsys)
    assert "shapes-geneval does not fit data.image_size=12: below 16 pixels the judge" in line
    assert "92.6% at 12" in line
    assert "Measure without it: --metrics frechet-shapes." in line
    assert run(["evaluate", str(small.path), "--metrics", "frechet-shapes", *FEW]) == 0
    capsys.readouterr()
    assert run(["sample", str(small.path), "--steps", "2", "--json"]) == 0
    captured = capsys.readouterr()
    assert "Images of 12 pixels are not judged: below 16 pixels" in captured.err
    assert {row["verdict"] for row in json.loads(captured.out[captured.out.index("{") :])["images"]} == {None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "shapes-genval"], "--metrics 'shapes-genval' does not exist. Did you mean 'shapes-geneval'?"),
        (["--guidance", "1,two"], "--guidance '1,two' is not a list of scales."),
        (["--metrics", "fid"], "--inception-weights FILE"),
        (["--metrics", "clip-score"], "--clip-model FOLDER"),
        (["--import-geneval", "results.jsonl"], "2 runs are named, but the results are of one."),
        (["--inception-weights", "x"], "--inception-weights is for fid, which is not measured. Add it to --metrics,"),
        (["--metrics", "fid", "--clip-model", "x"], "--clip-model is for clip-score, which is not measured."),
    ],
)
def test_mistakes_in_options_are_one_line(runs: Path, capsys: Captured, options: list[str], message: str) -> None:
    assert message in error_of(["evaluate", str(runs), *options, *FEW], capsys)


@pytest.mark.parametrize("command", ["sample", "evaluate"])
@pytest.mark.parametrize(
    ("option", "value", "bound"),
    [
        ("--shift", "inf", "less than or equal to 100"),
        ("--shift", "nan", "less than or equal to 100"),
        ("--shift", "1e-300", "greater than or equal to 0.01"),
        ("--steps", "0", "greater than or equal to 1"),
        ("--steps", "10001", "less than or equal to 10000"),
        ("--seed", "-1", "greater than or equal to 0"),
        ("--seed", str(2**63), "less than or equal to 9223372036854775807"),
        ("--seed", "9" * 30, "less than or equal to 9223372036854775807"),
        ("--batch-images", "100000000000", "less than or equal to 16384"),
    ],
)
def test_every_number_has_a_bound_that_the_message_says(
    command: str, option: str, value: str, bound: str, tmp_path: Path, capsys: Captured
) -> None:
    line = error_of([command, str(tmp_path), option, value], capsys)
    assert line == f"error: Invalid value for '{option}': Input should be {bound}, not {value}."


@pytest.mark.parametrize(
    ("command", "option", "value", "bound"),
    [
        ("sample", "--guidance", "1e308", "less than or equal to 1000"),
        ("sample", "--guidance", "nan", "less than or equal to 1000"),
        ("sample", "--guidance", "-0.5", "greater than or equal to 0"),
        ("sample", "--per-caption", "1001", "less than or equal to 1000"),
        ("sample", "--per-caption", "0", "greater than or equal to 1"),
        ("evaluate", "--images", "100000000000", "less than or equal to 100000"),
        ("evaluate", "--images", "1", "greater than or equal to 2"),
        ("evaluate", "--rounds", "10001", "less than or equal to 10000"),
    ],
)
def test_numbers_of_one_command_have_bounds_too(
    command: str, option: str, value: str, bound: str, tmp_path: Path, capsys: Captured
) -> None:
    line = error_of([command, str(tmp_path), option, value], capsys)
    assert line.startswith(f"error: Invalid value for '{option}': Input should be {bound}, not ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1e308", "--guidance '1e308' is out of range. A scale is from 0 to 1000; 1 is no guidance."),
        ("1,nan", "--guidance '1,nan' is out of range."),
        ("1,-1", "--guidance '1,-1' is out of range."),
        ("", "--guidance '' is not a list of scales."),
        (",".join(str(scale / 8) for scale in range(101)), "--guidance names 101 scales. At most 100"),
        ("1," + "\x1b" * 300, "is not a list of scales."),
    ],
)
def test_guidance_scales_are_bounded(text: str, message: str, tmp_path: Path, capsys: Captured) -> None:
    line = error_of(["evaluate", str(tmp_path), "--guidance", text], capsys)
    assert message in line
    assert len(line) < 300


def test_a_usage_error_says_the_value_once(tmp_path: Path, capsys: Captured) -> None:
    assert error_of(["sample", str(tmp_path), "--sampler", "rk45"], capsys).count("rk45") == 1


def test_more_images_than_are_kept_are_refused(runs: Path, tmp_path: Path, capsys: Captured) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("a circle\n" * 101)
    line = error_of(["sample", str(runs / "dense"), "--captions", str(captions), "--per-caption", "1000"], capsys)
    assert "--per-caption 1000 of 101 captions makes 101,000 images. At most 100,000 are sampled at a time." in line


def test_a_frechet_distance_of_too_few_images_has_a_word(runs: Path, capsys: Captured) -> None:
    command = ["evaluate", str(runs / "dense"), "--metrics", "frechet-shapes", "--steps", "1", "--images"]
    for options in ([], ["--json"]):
        assert run([*command, "64", *options]) == 0
        captured = capsys.readouterr()
        assert "frechet-shapes of 64 images says little: of no more images than its 64 features" in captured.err
        assert ("(too few)" in captured.out) == (not options)
    assert run([*command, "66"]) == 0
    captured = capsys.readouterr()
    assert "says little" not in captured.err
    assert "(too few)" not in captured.out


def test_the_number_of_images_is_that_of_each_metric(runs: Path, capsys: Captured) -> None:
    settings = ["--metrics", "frechet-shapes,validation-loss", *FEW]
    assert run(["evaluate", str(runs / "dense"), *settings]) == 0
    table = capsys.readouterr().out
    counts = {row["metric"]: row["num_samples"] for row in recorded(runs / "dense")}
    assert counts["frechet-shapes"] == 6 != counts["validation-loss"]
    assert f"frechet-shapes 6, validation-loss {counts['validation-loss']}" in table
    assert run(["evaluate", str(runs / "dense"), "--metrics", "frechet-shapes", *FEW, "--again"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert " 6 " in line


def test_no_runs_is_one_line(tmp_path: Path, capsys: Captured) -> None:
    assert "No runs are named." in error_of(["evaluate"], capsys)
    assert "is not a folder" in error_of(["evaluate", str(tmp_path / "none")], capsys)
    assert "No runs in" in error_of(["evaluate", str(tmp_path)], capsys)


def test_a_run_without_a_checkpoint_is_one_line(runs: Path, capsys: Captured) -> None:
    shutil.rmtree(RunDir(runs / "dense").checkpoints)
    assert "holds no checkpoint, but the run has saved after 640 images" in error_of(
        ["evaluate", str(runs / "dense"), *FEW], capsys
    )
    assert "holds no checkpoint, but the run has saved after 640 images" in error_of(
        ["sample", str(runs / "dense")], capsys
    )


def test_a_damaged_checkpoint_is_one_line(runs: Path, capsys: Captured) -> None:
    (weights,) = RunDir(runs / "dense").checkpoints.glob("*/ema.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    line = error_of(["evaluate", str(runs / "dense"), *FEW], capsys)
    assert "checkpoint" in line


def test_a_checkpoint_of_another_run_is_one_line(runs: Path, capsys: Captured) -> None:
    foreign, mine = (RunDir(runs / name).checkpoints for name in ("dense", "expert_choice"))
    shutil.rmtree(mine)
    shutil.copytree(foreign, mine)
    line = error_of(["evaluate", str(runs / "expert_choice"), *FEW], capsys)
    assert "expert_choice" in line


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_is_one_line(runs: Path, capsys: Captured) -> None:
    RunDir(runs / "dense").evals.unlink()
    RunDir(runs / "dense").evals.symlink_to("/dev/full")
    assert "no space left on device" in error_of(
        ["evaluate", str(runs / "dense"), "--metrics", "frechet-shapes", *FEW], capsys, 1
    )


def test_results_of_geneval_join_the_records(runs: Path, tmp_path: Path, capsys: Captured) -> None:
    results = tmp_path / "results.jsonl"
    results.write_text(
        "".join(json.dumps({"tag": "counting", "correct": i > 0, "prompt": "x"}) + "\n" for i in range(4))
    )
    assert run(["evaluate", str(runs / "dense"), "--import-geneval", str(results)]) == 0
    assert "75.0%" in capsys.readouterr().out
    values = {row["metric"]: row["value"] for row in recorded(runs / "dense")}
    assert values == {"geneval": 0.75, "geneval/counting": 0.75}


def test_a_run_that_cannot_be_read_is_left_out_and_the_others_are_measured(runs: Path, capsys: Captured) -> None:
    RunDir(runs / "dense").run_json.unlink()
    os.mkfifo(RunDir(runs / "dense").run_json)
    (runs / "linked").symlink_to(runs.parent)
    assert run(["evaluate", str(runs), "--metrics", "frechet-shapes", *FEW]) == 0
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()] == ["run", "expert_choice"]
    assert f"Left out: {runs / 'dense'}: {runs / 'dense' / 'run.json'} cannot be read: it is a FIFO" in captured.err
    assert f"Left out: {runs / 'linked'}: it is a link" in captured.err
    assert "it is a FIFO" in error_of(["evaluate", str(runs / "dense"), *FEW], capsys)
