"""Measures how long commands take to start, each in a process of its own, as a user waits for them."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.environment import child_environment

NUM_PLANNED_RUNS = 500
SPEC = f"""\
program: ecdit
method: grid
parameters:
  routing.name: {{values: [dense, expert_choice]}}
  seed: {{values: {list(range(NUM_PLANNED_RUNS // 2))}}}
"""
LIMIT_SECONDS = {"help": 0.4, "plan": 2.0, "first_row": 3.0}
"""The limits that the project promises on a machine with 2 cores."""


def measure_commands(rounds: int, overrides: Sequence[str], on_round: Callable[[], None]) -> list[dict[str, Any]]:
    """Returns the median seconds of each command over `rounds`. The commands take turns."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "sweep.yaml"
        spec.write_text(SPEC)
        measures: dict[str, tuple[str, Callable[[], float]]] = {
            "help": ("ecdit --help", lambda: _seconds_of(["--help"])),
            "plan": (
                f"ecdit sweep --dry-run --no-calibration of {NUM_PLANNED_RUNS} runs",
                lambda: _seconds_of(["sweep", str(spec), "--dry-run", "--no-calibration"]),
            ),
            "first_row": ("ecdit train to the first step", lambda: _seconds_to_first_row(overrides)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in measures}
        for _ in range(rounds):
            for name, (_, measure) in measures.items():
                seconds[name].append(measure())
                on_round()
    return [
        {
            "measure": name,
            "command": command,
            "seconds": statistics.median(seconds[name]),
            "fastest_seconds": min(seconds[name]),
            "slowest_seconds": max(seconds[name]),
            "limit_seconds": LIMIT_SECONDS[name],
            "rounds": rounds,
        }
        for name, (command, _) in measures.items()
    ]


def _seconds_of(arguments: Sequence[str]) -> float:
    started = time.perf_counter()
    command, nowhere = _ecdit(arguments), subprocess.DEVNULL
    subprocess.run(command, stdout=nowhere, stderr=nowhere, env=child_environment(), check=True)
    return time.perf_counter() - started


def _seconds_to_first_row(overrides: Sequence[str]) -> float:
    """Returns the seconds from the command to the first row of `steps.jsonl` in a fresh folder, and ends the run."""
    from experiments.errors import RunFailedError
    from experiments.records.run_folder import RunDir

    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        arguments = ["train", *overrides, "log.every_images=1", "wandb.mode=disabled", "--run-dir", str(run.path)]
        started = time.perf_counter()
        process = subprocess.Popen(
            _ecdit(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=child_environment()
        )
        try:
            while run.last_step() is None:
                if process.poll() is not None:
                    raise RunFailedError(
                        f"ecdit train ended with exit code {process.returncode}.", "Run it by itself to see why."
                    )
                time.sleep(0.01)
            return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()


def _ecdit(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "ecdit_cli", *arguments]
