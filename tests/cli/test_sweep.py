"""`ecdit sweep`: costs without torch, runs with a table, mistakes in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ecdit_cli.app import run
from ecdit_cli.sweep import execute

WORKER = Path(__file__).parents[1] / "unit" / "sweeps" / "worker.py"
DRY_RUN = """
import sys
from ecdit_cli.app import run
code = run(["sweep", "quickstart", "train.images=3200", "--dry-run", "--json"])
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
    assert run(["sweep", spec, "--dry-run"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 1 + 3 + 1
    assert "nano-switch-4e" in captured.out
    assert lines[-1].startswith("total of 3 runs")
    assert "3 runs: 1 more combinations come to the same settings as one of them." in captured.err


def test_a_sweep_runs_everything_and_the_second_time_nothing(spec, out, capsys):
    _, result = execute(spec, [], out, command=worker())
    assert result.exit_code == 0
    assert "nano-dense-s0" in capsys.readouterr().err
    _, again = execute(spec, [], out, command=worker("0=crash"))
    assert again.exit_code == 0
    assert "3 of 3 runs are finished and left alone." in capsys.readouterr().err


def test_the_result_is_a_table_on_stdout_or_json(spec, out, capsys):
    execute(spec, [], out, command=worker())
    capsys.readouterr()
    assert run(["sweep", spec, "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].split() == ["run", "state", "images", "of", "val_loss", "training", "reason"]
    assert str(out / "runs") in captured.err
    assert run(["sweep", spec, "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["state"], row["val_loss"]) for row in result["runs"]] == [("done", 0.125)] * 3
    assert result["total"]["num_done"] == result["total"]["num_runs"] == 3


def test_a_failed_run_is_exit_code_1_with_its_reason_in_the_table(spec, out, capsys):
    folder, result = execute(spec, [], out, command=worker())
    blocked = folder.path / "runs" / result.runs[0].name
    for file in sorted(blocked.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    blocked.rmdir()
    blocked.write_text("a file where a folder should be")
    assert run(["sweep", spec, "--out", str(out)]) == 1
    assert "failed" in (line := capsys.readouterr().out.splitlines()[1])
    assert "cannot write" in line


def test_a_changed_sweep_says_what_it_leaves_behind(spec, out, capsys):
    execute(spec, [], out, command=worker())
    _, result = execute(spec, ["routing=dense"], out, command=worker("0=crash"))
    assert len(result.runs) == 1
    assert "2 runs of an earlier version of the sweep file stay" in " ".join(capsys.readouterr().err.split())


def test_the_default_folder_carries_the_name_of_the_sweep(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _ = execute(spec, ["routing=dense"], command=worker())
    assert folder.path == Path("out") / "tiny"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quikstart"], "'quikstart' is not a sweep. Did you mean 'quickstart'?"),
        (["quickstart", "--executor", "slurm"], "--executor slurm is not in this version. Use --executor local."),
        (["quickstart", "--executor", "locl"], "Did you mean 'local'?"),
        (["quickstart", "train.imags=64", "--dry-run"], "'train.imags' is not a setting. Did you mean 'train.images'?"),
        (["quickstart", "train.images=many", "--dry-run"], "train.images='many' is not an integer"),
        (["quickstart", "routing.num_experts=512", "--dry-run"], "In the combination "),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert run(["sweep", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
