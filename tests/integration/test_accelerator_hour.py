"""The script for an hour on an accelerator: its commands are real, and it goes on where it was cut off."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ecdit_cli.app import app
from experiments.config.designs import load_designed
from sweeps.planner import make_plan
from sweeps.spec import load_spec

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "benchmarks"))
hour = importlib.import_module("accelerator")


@pytest.mark.parametrize("small", [True, False])
def test_every_command_of_the_hour_is_one_that_exists(small, tmp_path):
    # An hour on a card is too dear to learn there that an option has another name.
    commands = typer.main.get_command(app).commands
    seen = set()
    for stage in hour.stages(tmp_path, small):
        for _, module_option, module, *words in stage.commands:
            assert module_option == "-m"
            seen.add(module)
            if module == "pytest":
                paths = [word for word in words if word.startswith("tests/")]
                assert paths
                assert all((ROOT / path).exists() for path in paths)
                continue
            if module == "torch.distributed.run":
                words = [*words[words.index("ecdit_cli") + 1 :], "parallel.world=2"]
            command = commands[words[0]]
            given = command.make_context(words[0], list(words[1:])).params
            settings = list(given.get("overrides") or ())
            if words[0] == "sweep":
                assert make_plan(load_spec(given["spec"]), settings).runs
            elif settings:
                load_designed(settings)
    assert seen == {"ecdit_cli", "pytest", "torch.distributed.run"}


def test_a_stage_that_has_ended_is_not_run_again_and_the_page_has_the_others_as_not_run(tmp_path):
    command = [sys.executable, str(ROOT / "docs/benchmarks/accelerator.py"), "--small", "--out", str(tmp_path)]
    words = [*command, "--only", "doctor"]
    first = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert first.returncode == 0, first.stderr
    page = (tmp_path / "page.md").read_text()
    assert "| torch | ok |" in page
    assert str(ROOT) not in page
    assert page.count("Not run.") == len(hour.stages(tmp_path, True)) - 1
    assert json.loads((tmp_path / "doctor.json").read_text())[0]["exit_code"] == 0
    assert subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout == ""
    wrong = subprocess.run([*command, "--only", "dentist"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert wrong.returncode == 2
    assert "no such stage: dentist" in wrong.stderr


def test_a_command_whose_time_is_over_is_ended_and_what_it_printed_is_kept():
    program = "import time; print('3 passed, 1 failed in 2.00s', flush=True); time.sleep(600)"
    result = hour.run_command([sys.executable, "-c", program], 2.0)
    assert result.exit_code is None
    assert result.counts == "3 passed, 1 failed in 2.00s"


def test_names_of_failed_tests_are_on_the_page():
    program = (
        "print('FAILED tests/unit/a.py::test_b - AssertionError\\n= 1 failed, 3 passed in 2.00s =');raise SystemExit(1)"
    )
    result = hour.run_command([sys.executable, "-c", program], 60)
    assert (result.exit_code, result.counts) == (1, "1 failed, 3 passed in 2.00s")
    assert list(hour.said(result)) == ["1 failed, 3 passed in 2.00s\n", "- `tests/unit/a.py::test_b`"]
