"""`ecdit sweep --register`: the server gets the sweep file; here the server is a program that answers as W&B does."""

from __future__ import annotations

import os
import subprocess
import sys

import yaml

from sweeps.spec import find_spec
from tests.wandb_server import Server


def test_the_server_gets_the_sweep_file_and_agents_its_name(wandb_server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ecdit_cli", "sweep", "isoflop", "--register"],
        capture_output=True, text=True, env={**os.environ, "WANDB_PROJECT": "study"}, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "study/abc123\n"
    assert "wandb agent study/abc123" in done.stderr
    (variables,) = wandb_server.asked_for("UpsertSweep")
    assert yaml.safe_load(variables["config"]) == yaml.safe_load(find_spec("isoflop").read_text())
    assert variables["projectName"] == "study"
