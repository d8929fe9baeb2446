"""`ecdit sweep --register`: the server gets the sweep file; here the server is a program that answers as W&B does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from sweeps.spec import COMMAND, find_spec
from tests.wandb_server import Server


def register(spec: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "ecdit_cli", "sweep", spec, "--register"],
        capture_output=True, text=True, env={**os.environ, "WANDB_PROJECT": "study"}, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_the_server_gets_the_sweep_file_and_agents_its_name(wandb_server: Server) -> None:
    done = register("isoflop")
    assert done.stdout == "study/abc123\n"
    assert "wandb agent study/abc123" in done.stderr
    (variables,) = wandb_server.asked_for("UpsertSweep")
    assert yaml.safe_load(variables["config"]) == yaml.safe_load(find_spec("isoflop").read_text())
    assert variables["projectName"] == "study"


def test_agents_get_a_command_that_they_can_start_where_the_file_has_none(wandb_server: Server, tmp_path: Path) -> None:
    """Their own default is to start `program` as a file of Python, and no file is called ecdit."""
    (tmp_path / "mine.yaml").write_text("program: ecdit\nmethod: grid\nparameters: {seed: {values: [0, 1]}}\n")
    register(str(tmp_path / "mine.yaml"))
    (variables,) = wandb_server.asked_for("UpsertSweep")
    assert yaml.safe_load(variables["config"])["command"] == COMMAND
