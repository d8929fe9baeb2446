"""Tells whether a run that continues from a shorter one, its parent, can be started yet.

It continues from the checkpoint at which the parent's cooldown begins, as soon as that is complete; the parent goes on
with its cooldown meanwhile. `plan.py` decides which run continues from which.
"""

from __future__ import annotations

from experiments.records.run_folder import RunDir
from experiments.records.trunk import has_begun
from sweeps.folder import SweepFolder
from sweeps.plan import PlannedRun


def parent_dir(folder: SweepFolder, run: PlannedRun) -> RunDir | None:
    """Returns the folder of the run from which `run` continues when it is started now, or None where it needs none."""
    if run.parent is None or has_begun(folder.run_dir(run)):
        return None
    return folder.run_dir_called(run.parent)


def branch_options(folder: SweepFolder, run: PlannedRun) -> tuple[str, ...]:
    """Returns the options of `ecdit train` by which `run` takes over its parent's checkpoint, if it has not begun."""
    parent = parent_dir(folder, run)
    return () if parent is None else ("--branch-from", str(parent.path))


def is_waiting(folder: SweepFolder, run: PlannedRun) -> bool:
    """Returns whether `run` cannot be started, because the checkpoint from which it continues is not there."""
    if run.parent is None or folder.run_dir_called(run.parent).checkpoint(run.trunk_images).is_dir():
        return False
    return parent_dir(folder, run) is not None
