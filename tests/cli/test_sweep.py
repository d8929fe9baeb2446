"""`ecdit sweep`: costs without torch, runs with a table, mistakes in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ecdit_cli._console import say
from ecdit_cli._sweep_view import screen
from ecdit_cli.app import run
from sweeps.cost import estimated, table_device
from sweeps.execution import SweepOptions, asked_for, execute, run_here
from sweeps.runner import freeze_plan

WORKER = Path(__file__).parents[1] / "unit" / "sweeps" / "worker.py"
DRY_RUN = """
import sys
from ecdit_cli.app import run
code = run(["sweep", "quickstart", "train.images=3200", "--dry-run", "--no-calibration", "--json"])
sys.exit(code or "torch" in sys.modules or "pandas" in sys.modules)
"""


@pytest.fixture
def spec(tmp_path):
    file = tmp_path / "tiny.yaml"
    parameters = {
        "routing.name": {"values": ["dense", "switch"]},
        "routing.num_experts": {"values": [4, 8]},
        "train.images": {"value": 64},
    }
    file.write_text(json.dumps({"program": "ecdit", "method": "grid", "parameters": parameters}))
    return str(file)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def worker(*behaviours):
    return [sys.executable, str(WORKER), *behaviours]


def test_dry_run_gives_costs_without_torch_and_without_writing(tmp_path):
    done = subprocess.run([sys.executable, "-c", DRY_RUN], cwd=tmp_path, capture_output=True, text=True, check=True)
    plan = json.loads(done.stdout)
    assert list(tmp_path.iterdir()) == []
    assert plan["total"]["num_runs"] == len(plan["runs"]) == 9
    assert plan["total"]["images"] == 9 * 3200
    assert plan["total"]["train_flops"] == sum(run["train_flops"] for run in plan["runs"])
    keys = {"name", "config_id", "params_total", "params_active", "flops_per_image", "train_flops", "images"}
    assert all(keys <= set(run) for run in plan["runs"])


def test_dry_run_shows_every_run_the_total_and_what_was_merged(spec, capsys):
    assert run(["sweep", spec, "--dry-run", "--no-calibration"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 1 + 3 + 1
    assert "nano-switch-4e" in captured.out
    assert lines[-1].startswith("total of 3 runs")
    assert "3 runs: 1 more combination has the same settings as one of them." in captured.err


def test_a_sweep_runs_everything_and_the_second_time_nothing(spec, out, capsys):
    _, result = execute(spec, [], screen(), out, command=worker())
    assert result.exit_code == 0
    assert "nano-dense-s0" in capsys.readouterr().err
    _, again = execute(spec, [], screen(), out, command=worker("0=crash"))
    assert again.exit_code == 0
    assert "3 of 3 runs are finished and left alone." in capsys.readouterr().err


def test_the_result_is_a_table_on_stdout_or_json(spec, out, capsys):
    execute(spec, [], screen(), out, command=worker())
    capsys.readouterr()
    assert run(["sweep", spec, "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].split() == ["run", "state", "images", "of", "val_loss", "training"]
    assert str(out / "runs") in captured.err
    assert run(["sweep", spec, "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["state"], row["val_loss"]) for row in result["runs"]] == [("done", 0.125)] * 3
    assert result["total"]["num_done"] == result["total"]["num_runs"] == 3


def test_a_failed_run_is_exit_code_1_with_its_reason_in_the_table(spec, out, capsys):
    folder, result = execute(spec, [], screen(), out, command=worker())
    blocked = folder.path / "runs" / result.runs[0].name
    for file in sorted(blocked.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    blocked.rmdir()
    blocked.write_text("a file where a folder should be")
    assert run(["sweep", spec, "--out", str(out), "--no-calibration"]) == 1
    assert "failed" in (line := capsys.readouterr().out.splitlines()[1])
    assert "cannot write" in line


def test_a_changed_sweep_says_what_it_leaves_behind(spec, out, capsys):
    execute(spec, [], screen(), out, command=worker())
    _, result = execute(spec, ["routing=dense"], screen(), out, command=worker("0=crash"))
    assert len(result.runs) == 1
    assert "2 runs of an earlier version of the sweep file stay" in " ".join(capsys.readouterr().err.split())


def test_the_default_folder_carries_the_name_of_the_sweep(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _ = execute(spec, ["routing=dense"], screen(), command=worker())
    assert folder.path == Path("out") / "tiny"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quikstart"], "'quikstart' is not a sweep. Did you mean 'quickstart'?"),
        (["quickstart", "--executor", "slurm"], "quickstart.yaml has no cluster. Add `ecdit.cluster:"),
        (
            ["quickstart", "--executor", "slurm", "ecdit.cluster=big.yaml"],
            "ecdit.cluster is not read from the command line. Give --cluster FILE.",
        ),
        (["quickstart", "--dry-run", "--device", "H10"], "Did you mean 'H100"),
        (["quickstart", "--slots", "1", "--cores-per-run", "4096"], "--cores-per-run 4096 is more than the"),
        (["quickstart", "--register"], "No W&B key is configured."),
        (
            ["quickstart", "--register", "--dry-run"],
            "--dry-run has no meaning with --register, which creates the sweep",
        ),
        (["quickstart", "--register", "--out", "out"], "--out has no meaning with --register, which creates the sweep"),
        (["quickstart", "--register", "--executor", "slurm"], "--executor slurm has no meaning with --register"),
        (["quickstart", "--cluster", "c.yaml"], "--executor is local. Add --executor slurm, or leave it out."),
        (["quickstart", "--executor", "slurm", "--slots", "2"], "--slots is for runs on this machine, and --executor"),
        (["quickstart", "--executor", "slurm", "--timeout", "60"], "--timeout is for runs on this machine, and --exec"),
        (
            ["quickstart", "--executor", "slurm", "--retries", "0"],
            "Leave it out: the cluster file says what a run gets",
        ),
        (
            ["quickstart", "--executor", "slurm", "--device", "H100", "--utilisation", "0.4"],
            "for estimates, which --executor slurm makes in a dry run only. Add --dry-run, or leave it out.",
        ),
        (["quickstart", "--dry-run", "--utilisation", "0.4"], "and no --device is given. Add --device NAME, or leave"),
        (["quickstart", "--executor", "locl"], "Did you mean 'local'?"),
        (["quickstart", "train.imags=64", "--dry-run"], "'train.imags' is not a setting. Did you mean 'train.images'?"),
        (["quickstart", "train.images=many", "--dry-run"], "train.images='many' is not an integer"),
        (["quickstart", "routing.num_experts=512", "--dry-run"], "In the combination "),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert run(["sweep", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def dry_run(capsys, *arguments):
    assert run(["sweep", *arguments, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_device_of_the_table_prices_memory_and_time(capsys):
    plan = dry_run(capsys, "quickstart", "--device", "H100", "train.precision=bf16")
    assert all(row["memory_gib"] > 0 and row["seconds"] > 0 for row in plan["runs"])
    assert plan["total"]["seconds"] == pytest.approx(sum(row["seconds"] for row in plan["runs"]))
    twice = dry_run(capsys, "quickstart", "--device", "H100", "--utilisation", "0.7", "train.precision=bf16")
    assert plan["total"]["seconds"] == pytest.approx(2 * twice["total"]["seconds"])


def test_a_plan_that_cannot_fit_is_refused_with_the_layout_that_does(capsys):
    large = ["routing=dense", "model=L", "train.batch_images=256", "train.images=25600", "train.precision=bf16"]
    assert run(["sweep", "quickstart", *large, "--device", "RTX 4090", "--dry-run"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: L-dense")
    assert "RTX-4090 has 22.4" in last
    assert "Use train.accumulation=" in last
    layout = last.split("Use ")[1].split(" (")[0]
    assert run(["sweep", "quickstart", *large, layout, "--device", "RTX 4090", "--dry-run"]) == 0


def test_a_dry_run_shows_what_does_not_fit_this_machine(tmp_path, capsys, monkeypatch):
    """A model of hundreds of GiB beside a small one: the plan is for a larger machine, and is printed."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    parameters = {"model.name": {"values": ["nano", "XXL"]}, "routing.num_experts": {"value": 64}}
    (tmp_path / "two.yaml").write_text(json.dumps({"program": "ecdit", "method": "grid", "parameters": parameters}))
    sweep = [str(tmp_path / "two.yaml"), "train.images=6400", "train.batch_images=4", "eval.batch_images=4"]
    plan = dry_run(capsys, *sweep)
    small, large = plan["runs"]
    assert (small["fits"], large["fits"]) == (True, False)
    assert small["seconds"] > 0
    assert "seconds" not in large
    assert "seconds" not in plan["total"]
    assert run(["sweep", *sweep, "--dry-run", "--no-calibration"]) == 0
    captured = capsys.readouterr()
    assert [line.split()[-1] for line in captured.out.splitlines()[:3]] == ["fits", "yes", "no"]
    assert f"{large['name']} needs " in captured.err


def test_a_dry_run_is_shown_without_times_where_the_timing_fails(spec, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")  # no Python starts any more
    assert run(["sweep", spec, "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)["runs"]
    assert len(rows) == 3
    assert all("seconds" not in row for row in rows)
    assert "No times: the calibration failed: " in captured.err


def test_a_dry_run_for_more_accelerators_than_there_are_shows_its_plan(spec, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert len(dry_run(capsys, spec, "parallel.world=2", "--no-calibration")["runs"]) == 3


def test_estimates_are_compared_with_what_was_measured(spec, out, capsys):
    folder, plan = asked_for(spec, ["train.precision=bf16"], out, say)
    run_here(folder, estimated(plan, table_device("H100")), SweepOptions(), screen(), worker())
    capsys.readouterr()
    assert run(["status", str(out), "--json"]) == 0
    assert all("seconds_error" in row for row in json.loads(capsys.readouterr().out)["runs"])


def test_the_folder_of_a_sweep_is_a_sweep(spec, out, capsys):
    execute(spec, [], screen(), out, command=worker())
    capsys.readouterr()
    assert run(["sweep", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["num_done"] == 3
    assert run(["sweep", str(out), "train.images=128"]) == 2
    assert "is a sweep already planned" in capsys.readouterr().err


def test_what_failed_by_itself_is_left_alone_until_asked_for(spec, out, capsys):
    _, first = execute(spec, [], screen(), out, command=worker("0=fail"))
    assert {progress.state for progress in first.runs} == {"failed"}
    assert f"`ecdit sweep {out} --retry-failed` starts them again." in " ".join(capsys.readouterr().err.split())
    _, left = execute(spec, [], screen(), out, command=worker())
    assert {progress.state for progress in left.runs} == {"failed"}
    _, again = execute(spec, [], screen(), out, SweepOptions(retry_failed=True), command=worker())
    assert again.exit_code == 0


def test_a_single_run_that_failed_is_spoken_of_as_one(spec, out, capsys):
    execute(spec, ["routing.name=dense"], screen(), out, command=worker("0=fail"))
    line = f"1 run failed: `ecdit sweep {out} --retry-failed` starts it again."
    assert line in " ".join(capsys.readouterr().err.split())


CLUSTER = "time: 1:00:00\npartition: gpu\ngpus_per_node: 2\ntasks_per_node: 1\n"


def test_a_dry_run_on_slurm_prints_the_batch_script(spec, tmp_path, capsys):
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    slurm = ["--executor", "slurm", "--cluster", str(tmp_path / "cluster.yaml")]
    assert run(["sweep", spec, *slurm, "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --partition=gpu" in script
    assert "#SBATCH --array=0-2" in script
    plan = dry_run(capsys, spec, *slurm, "--device", "H100")
    assert all(row["memory_gib"] > 0 for row in plan["runs"])
    assert len(plan["scripts"]) == 1
    assert plan["total"]["num_runs"] == 3


def test_the_folder_of_a_sweep_needs_a_cluster_file(spec, out, tmp_path, capsys):
    freeze_plan(*asked_for(spec, ["ecdit.cluster=big.yaml"], out, say))
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    capsys.readouterr()
    assert run(["sweep", str(out), "--executor", "slurm", "--dry-run"]) == 2
    message = f"{out} is a sweep already planned, which keeps no cluster. Give --cluster FILE."
    assert message in " ".join(capsys.readouterr().err.split())
    assert (
        run(["sweep", str(out), "--executor", "slurm", "--cluster", str(tmp_path / "cluster.yaml"), "--dry-run"]) == 0
    )
    assert "#SBATCH --partition=gpu" in capsys.readouterr().out


def test_a_dry_run_says_what_runs_cost_alone_and_what_is_spent(capsys):
    arguments = ["sweep", "isoflop", "--dry-run", "--no-calibration"]
    assert run([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    whole = plan["total"]
    assert whole["train_flops"] == sum(one["train_flops"] for one in plan["runs"])
    assert whole["train_flops_spent"] == sum(one["train_flops_spent"] for one in plan["runs"])
    assert whole["train_flops_spent"] / whole["train_flops"] <= 0.6
    assert sum("parent" in one for one in plan["runs"]) == 32  # of five lengths all but the shortest
    assert run(arguments) == 0
    shown = capsys.readouterr()
    assert "Of 89.6 TFLOP of training 43.5 TFLOP are spent (49%)" in shown.err


def test_a_dry_run_of_runs_that_train_alone_says_nothing_of_trunks(spec, capsys):
    assert run(["sweep", spec, "--dry-run", "--no-calibration"]) == 0
    shown = capsys.readouterr()
    assert "spent" not in (shown.out + shown.err).lower()
