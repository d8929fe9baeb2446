"""`ecdit sweep` with `ecdit.tune`: what it costs, how it goes on after every interruption, and what is said of it."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from ecdit_cli._sweep_view import screen
from ecdit_cli.app import run
from sweeps.execution import Screen, SweepOptions, asked_for, execute, run_here
from sweeps.folder import SweepFolder

WORKER = Path(__file__).parents[1] / "unit" / "sweeps" / "worker.py"
TUNE = {"optim.learning_rate": [1e-3, 2e-3], "on": {"train.images": 32}}
RUNS = ("nano-dense-s0", "nano-dense-s1")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def write_spec(tmp_path):
    def write(tune=TUNE, **parameters):
        given = {"routing.name": "dense", "seed": [0, 1], "train.images": 64, "ecdit.tune": tune, **parameters}
        forms = {name: {"values" if isinstance(value, list) else "value": value} for name, value in given.items()}
        file = tmp_path / "tuned.yaml"
        file.write_text(json.dumps({"program": "ecdit", "method": "grid", "parameters": forms}))
        return str(file)

    return write


@pytest.fixture
def spec(write_spec):
    return write_spec()


def worker(*behaviours):
    return [sys.executable, str(WORKER), *behaviours]


def silent(on_progress=lambda snapshot: None):
    return Screen(lambda line: None, lambda: nullcontext(on_progress))


def sweep(spec, out, *behaviours, on_progress=lambda snapshot: None, **options):
    return execute(spec, [], silent(on_progress), out, SweepOptions(slots=2, **options), worker(*behaviours))


def rates(folder):
    return {run.config["optim"]["learning_rate"] for run in folder.read_plan().wanted}


def files_of(out):
    kept = [path for path in out.rglob("*") if path.is_file() and "claims" not in path.parts]
    return {path: path.stat().st_mtime_ns for path in kept}


def test_a_dry_run_shows_the_tuning_and_the_study_and_the_flops_of_both(spec, out, capsys):
    assert run(["sweep", spec, "--out", str(out), "--dry-run", "--no-calibration", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    proxies, study = plan["runs"][:2], plan["runs"][2:]
    assert [row["optim.learning_rate"] for row in proxies] == [1e-3, 2e-3]
    assert all(row["name"].startswith("tuning/nano-dense-s1000-") and row["tunes"] == "tuned" for row in proxies)
    assert [(row["name"], row["optim.learning_rate"]) for row in study] == [(name, "to be tuned") for name in RUNS]
    assert not any("config_id" in row for row in study)
    assert plan["total"]["train_flops"] == sum(row["train_flops"] for row in plan["runs"])
    assert plan["total"]["tuning_train_flops"] == sum(row["train_flops"] for row in proxies)
    assert (plan["total"]["num_runs"], plan["total"]["num_tuning_runs"]) == (4, 2)
    assert run(["sweep", spec, "--dry-run", "--no-calibration"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].split()[:3] == ["run", "optim.learning_rate", "seeds"]
    assert lines[3].split()[:5] == ["nano-dense", "to", "be", "tuned", "2"]
    assert [line.split()[2] for line in lines[1:3]] == ["1", "1"]
    assert len(lines) == 6
    assert "A row of several seeds has the cost of one of them; the total counts all." in shown.err
    assert lines[-2].startswith("total of 4 runs")
    assert lines[-1].startswith("of these 2 for tuning")
    assert not out.exists()


def test_a_dry_run_has_a_line_for_each_arm_and_value_of_several_seeds(write_spec, out, capsys):
    spec = write_spec(TUNE | {"seeds": 3}, **{"routing.name": ["dense", "switch"]})
    words = ["sweep", spec, "--out", str(out), "--dry-run", "--no-calibration"]
    assert run(words) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    arms = ("nano-dense", "nano-switch-8e-k1-c1-gbatch")
    proxies = [[f"tuning/{arm}", rate, "3"] for arm in arms for rate in ("0.001", "0.002")]
    assert sorted(row[:3] for row in rows[:4]) == proxies
    assert sorted(row[:5] for row in rows[4:6]) == [[arm, "to", "be", "tuned", "2"] for arm in arms]
    assert rows[6][:4] == ["total", "of", "16", "runs"]


def test_a_dry_run_shows_a_tuned_setting_at_a_default_that_is_not_stored(write_spec, capsys):
    spec = write_spec({"flow.time_shift": [1.0, 3.0], "on": {"train.images": 32}})
    assert run(["sweep", spec, "--dry-run", "--no-calibration", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [row["flow.time_shift"] for row in rows] == [1.0, 3.0, "to be tuned", "to be tuned"]


def test_arms_are_tuned_and_then_trained_and_the_second_time_nothing_is(spec, out, capsys):
    folder, result = execute(spec, [], screen(), out, SweepOptions(slots=2), worker("best=0.004"))
    said = capsys.readouterr().err
    assert "Tuning optim.learning_rate of 1 arm on train.images=32: 2 runs." in said
    assert "nano-dense: the best value lies at the edge of 0.001, 0.002; 0.004 is tried, too." in said
    assert "nano-dense: optim.learning_rate=0.004 (val_loss 2.125 at 0.001, 1.125 at 0.002, 0.125 at 0.004," in said
    assert result.exit_code == 0
    assert rates(folder) == {4e-3}
    record = folder.run_dir(folder.read_plan().runs[0]).read_run()
    assert record.tuned.values == [1e-3, 2e-3, 4e-3, 8e-3]
    assert record.tunes is None
    assert {folder.tuning.run_dir(proxy).read_run().tunes for proxy in folder.tuning.read_plan().runs} == {"tuned"}
    before = files_of(out)
    _, again = sweep(spec, out, "0=crash", "1=crash")
    assert again.exit_code == 0
    assert files_of(out) == before
    assert run(["sweep", str(out), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [row["tuned"]["value"] for row in rows] == [4e-3, 4e-3]


def test_status_shows_tuning_beside_the_study(spec, out, capsys):
    sweep(spec, out, "best=0.002", "1=fail")
    capsys.readouterr()
    assert run(["status", str(out)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert sum(line.startswith("tuning/nano-dense-s1000-") for line in lines) == 3
    assert sum("optim.learning_rate=0.002" in line for line in lines) == 2
    assert "planned when every arm is tuned" not in captured.err


@pytest.mark.parametrize("by_folder", [False, True])
def test_an_interrupted_tuning_goes_on_by_the_file_and_by_the_folder(spec, out, capsys, by_folder):
    def interrupt(snapshot):
        if not snapshot.stopping and any(one.state == "running" and one.images_seen for one in snapshot.runs):
            os.kill(os.getpid(), signal.SIGTERM)

    _, result = sweep(spec, out, "1000=wait_for_stop", on_progress=interrupt)
    assert (result.interrupted, result.exit_code) == (True, 130)
    assert not SweepFolder(out).plan_json.exists()
    assert run(["status", str(out)]) == 0
    captured = capsys.readouterr()
    assert "interrupted" in captured.out
    assert "The runs of the sweep itself are planned when every arm is tuned." in captured.err
    if by_folder:
        folder, asked = asked_for(str(out), [], None, print)
        result = run_here(folder, asked, SweepOptions(slots=2), silent(), worker("best=0.002"))
    else:
        folder, result = sweep(spec, out, "best=0.002")
    assert result.exit_code == 0
    assert rates(folder) == {2e-3}
    assert len(folder.tuning.read_plan().runs) == 3


def test_proxies_that_failed_count_as_worst_until_they_are_retried(spec, out, capsys):
    _, result = execute(spec, [], screen(), out, SweepOptions(slots=2), worker("best=0.002", "finite=0.0015"))
    said = capsys.readouterr().err
    assert "counts as worst: nano-dense-s1000-" in said
    assert "diverged at 16 images" in said
    assert result.exit_code == 0
    assert rates(SweepFolder(out)) == {5e-4 * 2}
    folder, again = sweep(spec, out, "best=0.002", retry_failed=True)
    assert again.exit_code == 0
    assert rates(folder) == {2e-3}
    assert len(folder.read_plan().runs) == 4  # the runs at the old rate stay


def test_an_arm_that_cannot_be_tuned_is_one_line_and_exit_code_2(spec, out, capsys):
    from experiments.errors import SpecError

    with pytest.raises(SpecError) as raised:
        sweep(spec, out, "1000=fail")
    assert str(raised.value).startswith(
        "No value of optim.learning_rate can be chosen for nano-dense: at each a tuning"
    )
    assert run(["sweep", spec, "--out", str(out), "--dry-run"]) == 2
    assert "start them again with --retry-failed." in " ".join(capsys.readouterr().err.split())
    folder, result = sweep(spec, out, "best=0.002", retry_failed=True)
    assert (result.exit_code, rates(folder)) == (0, {2e-3})


def test_a_new_arm_in_the_file_is_tuned_and_the_others_stay(write_spec, out):
    sweep(write_spec(), out, "best=0.002")
    before = {path: time for path, time in files_of(out).items() if "runs" in path.parts}
    _, result = sweep(write_spec(**{"routing.name": ["dense", "switch"]}), out, "best=0.002")
    assert result.exit_code == 0
    assert len(result.runs) == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_on_slurm_the_proxies_are_submitted_first(spec, out, tmp_path, capsys):
    (tmp_path / "cluster.yaml").write_text("time: 1:00:00\n")
    slurm = ["--executor", "slurm", "--cluster", str(tmp_path / "cluster.yaml"), "--out", str(out)]
    assert run(["sweep", spec, *slurm, "--dry-run", "--json"]) == 0
    (script,) = json.loads(capsys.readouterr().out)["scripts"]
    assert "#SBATCH --job-name=ecdit-tuned-tuning" in script
    sweep(spec, out, "best=0.002")
    assert run(["sweep", spec, *slurm, "--dry-run", "--json"]) == 0
    (script,) = json.loads(capsys.readouterr().out)["scripts"]
    assert "#SBATCH --job-name=ecdit-tuned\n" in script


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "SPEC", "optim.learning_rate=1e-3"], "optim.learning_rate is tuned by ecdit.tune, and given, too."),
        (["sweep", "SPEC", "--register"], "ecdit.tune is not done by W&B agents, which train one run each."),
        (["train", "ecdit.tune={'optim.learning_rate': [1, 2]}"], "ecdit.tune compares several runs, and this command"),
        (["train", "ecdit.origin={}", "ecdit.origin=[]", "--dry-run"], "ecdit.origin is not what a sweep writes"),
    ],
)
def test_mistakes_are_one_line(spec, out, capsys, arguments, message):
    words = [spec if word == "SPEC" else word for word in arguments]
    planned = words[0] == "sweep" and "--register" not in words
    assert run([*words, *(["--out", str(out), "--dry-run"] if planned else [])]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in " ".join(captured.err.split())
    assert len(captured.err.splitlines()) == 1


def test_the_command_line_turns_tuning_off(spec, out, capsys):
    words = ["sweep", spec, "ecdit.tune=None", "optim.learning_rate=1e-3", "--dry-run", "--no-calibration", "--json"]
    assert run(words) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [row["name"].rpartition("-")[0] for row in rows] == list(RUNS)
    assert all("config_id" in row for row in rows)
