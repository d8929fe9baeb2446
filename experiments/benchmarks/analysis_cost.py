"""Measures how long the commands take that read many runs, and their memory, each in a process of its own.

The runs are those of `study_folders.py`, in a sweep's folder. Each command runs twice: first where none of the rows was
read before, and again when they are in the reader's cache (`analysis/row_cache.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.study_folders import NUM_ROWS, study_plan, write_runs
from experiments.environment import child_environment
from experiments.errors import RunFailedError
from sweeps.folder import SweepFolder

PROMISED_RUNS = 10_000
START_SECONDS = 1.0
"""The part of a promise that starting a command takes, which fewer runs do not shorten."""
MAX_GIBIBYTES = 3.0
LOAD = """
import sys
from pathlib import Path
from analysis.load_records import load_records
if __name__ == "__main__":
    load_records([Path(sys.argv[1])])
"""


class Measure(NamedTuple):
    """One command that reads runs, and the seconds that it may take for `PROMISED_RUNS` runs on two cores."""

    name: str
    command: Sequence[str]
    max_seconds: float


def measures(study: str, out: str) -> list[Measure]:
    """Returns the commands for the runs in `study`; those that write something write it below `out`."""
    ecdit = [sys.executable, "-m", "ecdit_cli"]
    return [
        Measure("ecdit status", [*ecdit, "status", study], 2),
        Measure("load", [sys.executable, "-c", LOAD, study], 8),
        Measure("ecdit export", [*ecdit, "export", study, "--out", f"{out}/runs"], 20),
        Measure("ecdit plot all", [*ecdit, "plot", "all", study, "--out", f"{out}/figures"], 90),
        Measure("ecdit report", [*ecdit, "report", study, "--out", f"{out}/report"], 90),
    ]


NUM_MEASURES = len(measures("", ""))


def measure_analysis(
    folder: Path,
    num_runs: int,
    overrides: Sequence[str] = (),
    num_rows: int = NUM_ROWS,
    on_part: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Returns a row for each command over `num_runs` runs. `folder` must be empty.

    `on_part` is called when the runs are there, and after each of the `NUM_MEASURES` commands.
    """
    write_runs(SweepFolder(folder / "study"), study_plan(num_runs, num_rows, overrides), num_rows)
    on_part()
    rows = []
    for number, (name, command, most) in enumerate(measures(str(folder / "study"), str(folder / "out"))):
        environment = child_environment({"ECDIT_CACHE_DIR": str(folder / f"cache-{number}")})
        seconds, first = _measured(command, environment)
        again_seconds, second = _measured(command, environment)
        rows.append({
            "measure": name, "runs": num_runs, "rows": num_rows, "seconds": seconds, "again_seconds": again_seconds,
            "limit_seconds": START_SECONDS + (most - START_SECONDS) * num_runs / PROMISED_RUNS,
            "gibibytes": max(first, second), "limit_gibibytes": MAX_GIBIBYTES,
        })  # fmt: skip
        on_part()
    return rows


def _measured(command: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """Returns the seconds of a command, and the peak memory in GiB of the largest of its processes."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace").strip()
    _, status, usage = os.wait4(process.pid, 0)  # what the process took, which `Popen.wait` does not tell
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode != 0:
        last = said.splitlines()[-1] if said else f"exit code {process.returncode}"
        raise RunFailedError(f"{' '.join(command[:4])} failed: {last}")
    return seconds, usage.ru_maxrss / 2**20
