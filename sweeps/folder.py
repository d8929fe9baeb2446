"""`SweepFolder` names the files of a sweep, which no other module does. `RunDir` names those of a run.

A sweep's folder holds `plan.json`, `configs/<run>.yaml`, `runs/<run>/`, the lock files of runs in `claims/<run>/`, and
`server.log`. Where the sweep tunes its arms, `tuning/` is the sweep of the runs that do so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from experiments.config.designs import ORIGIN
from experiments.config.stored import stored_config
from experiments.errors import RecordError, SpecError
from experiments.records.lock_file import LockFile, take_if_dead
from experiments.records.origin import written_origin
from experiments.records.run_folder import RunDir
from experiments.records.storage import replace_atomically, storage_errors
from experiments.records.strict_reading import read_object, validated
from experiments.settings_id import settings_id
from sweeps.plan import MAX_PLAN_BYTES, PLAN_VERSION, Plan, PlannedRun

LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class SweepFolder:
    """The folder of one sweep. Reading from it creates nothing."""

    path: Path

    @property
    def plan_json(self) -> Path:
        """Returns the path of the file that holds the frozen `Plan`."""
        return self.path / "plan.json"

    def run_dir(self, run: PlannedRun) -> RunDir:
        """Returns the folder in which `run` keeps its records."""
        return self.run_dir_called(run.name)

    def run_dir_called(self, name: str) -> RunDir:
        """Returns the folder of the run with this name."""
        return RunDir(self.path / "runs" / name)

    def config_file(self, run: PlannedRun) -> Path:
        """Returns the file of the settings of `run`, in the form that `ecdit train --config` takes."""
        return self.path / "configs" / f"{run.name}.yaml"

    def locks(self, run: PlannedRun) -> Path:
        """Returns the folder of the lock files that name the sweep which executes `run` (`sharing.py`)."""
        return self.path / "claims" / run.name

    @property
    def tuning(self) -> SweepFolder:
        """Returns the folder of the sweep of proxies, on which a setting of each arm is tuned (`tuning.py`)."""
        return SweepFolder(self.path / "tuning")

    @property
    def server_log(self) -> Path:
        """Returns the path of the output of the server process from which runs are forked."""
        return self.path / "server.log"

    def read_plan(self, is_executed: bool = True) -> Plan | None:
        """Returns the frozen plan, or None before there is one. Raises `SpecError` when it cannot be used.

        The settings of every run are checked where the plan is executed. A command that only shows the runs leaves
        that out, since it takes half of the time.
        """
        if not os.path.lexists(self.plan_json):
            return None
        hint = f"Delete it and run the sweep again: finished runs in {self.path / 'runs'} are found by their names."
        try:
            raw = read_object(self.plan_json, max_bytes=MAX_PLAN_BYTES)
            if raw.get("schema_version") != PLAN_VERSION:
                raise SpecError(f"{self.plan_json} was not written by this version of ecdit.", hint)
            plan = validated(Plan, raw, self.plan_json)
            for run in plan.runs if is_executed else ():
                _check_settings(run, self.plan_json)
        except RecordError as error:
            raise SpecError(error.message, hint) from error
        return plan

    def write_plan(self, plan: Plan) -> None:
        """Replaces the plan atomically. Raises `StorageError`, and `SpecError` for one that could not be read again."""
        text = plan.model_dump_json(indent=1) + "\n"
        if len(text.encode()) > MAX_PLAN_BYTES:
            raise SpecError(
                f"{self.plan_json} would be larger than {MAX_PLAN_BYTES / 2**20:,.0f} MiB, the most that is read.",
                "Make several sweeps of it.",
            )
        _replace(self.plan_json, text)

    def write_config(self, run: PlannedRun) -> Path:
        """Writes the settings of `run` for its process, and returns the file. Raises `StorageError`."""
        file, origin = self.config_file(run), run.origin
        told = {} if origin is None else {ORIGIN: written_origin(origin)}
        _replace(file, yaml.safe_dump({**run.config, **told}, sort_keys=False))
        return file

    def started(self, plan: Plan) -> set[str]:
        """Returns the names of the runs of `plan` that have a folder with records."""
        return {run.name for run in plan.runs if self.run_dir(run).exists()}

    @contextmanager
    def lock(self, timeout_seconds: float = LOCK_SECONDS) -> Iterator[None]:
        """Holds the plan for this process while it is read and extended; other processes wait.

        Raises `SpecError` when another process does not release it in time, and `StorageError` when it cannot be
        written.
        """
        deadline = time.monotonic() + timeout_seconds
        while not isinstance(held := take_if_dead(self.path / "claims" / ".plan"), LockFile):
            if time.monotonic() > deadline:
                raise SpecError(
                    f"{self.path} is being planned by {held.owner}.", "Wait for it, or choose another --out."
                )
            time.sleep(0.05)
        try:
            yield
        finally:
            held.release()


def _check_settings(run: PlannedRun, file: Path) -> None:
    """Raises `RecordError` where the settings of a planned run do not match its id, or are not of this version."""
    found = settings_id(run.config)
    if found != run.config_id:
        raise RecordError(f"{file} is damaged: the config of {run.name} has the id {found}, not {run.config_id}.")
    stored_config(run.config, file)


def _replace(path: Path, text: str) -> None:
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(path, text.encode())
