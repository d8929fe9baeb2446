"""The options of `ecdit sweep` alone; `_options.py` has those that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MAX_SLOTS = 4096
"""The most runs, cores or devices of one machine."""
MAX_TIMEOUT_SECONDS = 30 * 24 * 3600
MAX_RETRIES = 1000

PowerOf = Annotated[
    Path | None,
    typer.Option(
        "--power",
        metavar="DIR",
        help="With --dry-run: say which gap in loss the seeds separate, by the spread in this earlier sweep.",
    ),
]
Executor = Annotated[
    str, typer.Option(metavar="local|slurm", help="Where to execute the runs: on this machine or on Slurm.")
]
Cluster = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Cluster file for Slurm. Default: ecdit.cluster of SPEC.")
]
Slots = Annotated[
    int | None,
    typer.Option(
        min=1, max=MAX_SLOTS, help="How many runs to execute at a time. Default: one per accelerator or core."
    ),
]
CoresPerRun = Annotated[int | None, typer.Option(min=1, max=MAX_SLOTS, help="How many cores each run is pinned to.")]
RunsPerAccelerator = Annotated[int, typer.Option(min=1, max=MAX_SLOTS, help="How many runs share an accelerator.")]
Timeout = Annotated[
    float,
    typer.Option(
        min=1, max=MAX_TIMEOUT_SECONDS, help="A run is killed when it has not renewed its status for so many seconds."
    ),
]
Retries = Annotated[int, typer.Option(min=0, max=MAX_RETRIES, help="How often to start a run again that was killed.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Also start runs again that failed by themselves.")]
NoCalibration = Annotated[
    bool, typer.Option("--no-calibration", help="Do not time a few training steps for the estimates.")
]
Register = Annotated[
    bool, typer.Option("--register", help="Create the sweep on the W&B server for `wandb agent`, and execute no run.")
]
