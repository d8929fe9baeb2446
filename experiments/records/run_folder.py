"""`RunDir` names the files of a run, which no other module does, and reads them back.

Records are input: a file may be cut, edited, written by another version or be no file at all. Whatever is read
here is validated, and a `RecordError` names the file and its fault. Reading never fails on a file of rows that
is being written: a line that was cut, or that is no row, is left out and named. `strict_reading.py` reads the bytes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.errors import RecordError
from experiments.records.record_types import SCHEMA_VERSION, RunRecord, Status, StepRow
from experiments.records.strict_reading import (
    WAY_OUT,
    RecordRows,
    last_rows,
    parse_row,
    read_jsonl,
    read_object,
    validated,
)
from experiments.settings_id import is_settings_id, settings_id
from experiments.text import printable, shortened

__all__ = ["RunDir", "Skipped", "find_runs", "other_version", "parse_row", "read_jsonl"]

Skipped = list[tuple[str, str]]
"""Paths that are not used, each with the reason."""


@dataclass(frozen=True)
class RunDir:
    """Names the files of one run folder and reads them. No method creates a file."""

    path: Path

    @property
    def run_json(self) -> Path:
        """Returns the path of the run's description (`RunRecord`)."""
        return self.path / "run.json"

    @property
    def status_json(self) -> Path:
        """Returns the path of the run's state (`Status`)."""
        return self.path / "status.json"

    @property
    def steps(self) -> Path:
        """Returns the path of the file of `StepRow`s."""
        return self.path / "steps.jsonl"

    @property
    def routing(self) -> Path:
        """Returns the path of the file of `RoutingRow`s."""
        return self.path / "routing.jsonl"

    @property
    def evals(self) -> Path:
        """Returns the path of the file of `EvalRow`s."""
        return self.path / "evals.jsonl"

    @property
    def routing_maps(self) -> Path:
        """Returns the path of the file of `RoutingMapRow`s."""
        return self.path / "routing_maps.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Returns the folder that holds one subfolder per complete checkpoint."""
        return self.path / "checkpoints"

    def checkpoint(self, images_seen: int) -> Path:
        """Returns the folder of the complete checkpoint after `images_seen` images."""
        return self.checkpoints / f"images_{images_seen:012d}"

    @property
    def samples(self) -> Path:
        """Returns the folder of sample grids as PNG."""
        return self.path / "samples"

    @property
    def compute_map(self) -> Path:
        """Returns the path of the newest `ComputeMap`: images with the experts of every token."""
        return self.samples / "compute_map.npz"

    @property
    def exported(self) -> Path:
        """Returns the path of the file that marks a folder of `ecdit export-weights`; a run has no such file."""
        return self.path / "model.json"

    @property
    def log(self) -> Path:
        """Returns the path of the log of what libraries print during the run."""
        return self.path / "log.txt"

    @property
    def locks(self) -> Path:
        """Returns the folder of lock files, which name the process that writes here (`lock_file.py`)."""
        return self.path / ".claims"

    def token(self, word: str) -> Path:
        """Returns the path of a short-lived file by which processes on several nodes see that they share the folder."""
        return self.path / f".token-{word}"

    @property
    def wandb(self) -> Path:
        """Returns the folder in which the W&B mirror keeps its files; deleting it loses nothing."""
        return self.path / "wandb"

    @property
    def row_files(self) -> tuple[Path, ...]:
        """Returns the paths of all files of rows."""
        return self.steps, self.routing, self.evals, self.routing_maps

    def exists(self) -> bool:
        """Says whether a run was ever started or planned here."""
        return os.path.lexists(self.run_json) or os.path.lexists(self.status_json)

    def missing_records(self) -> str | None:
        """Returns why this folder is no run although it holds rows of one; None where nothing is missing."""
        rows = [path.name for path in self.row_files if os.path.isfile(path)]
        return f"it has {rows[0]} but neither run.json nor status.json" if rows and not self.exists() else None

    def read_run(self) -> RunRecord:
        """Returns the content of `run.json`. Raises `RecordError` if it is missing, damaged or of another version.

        It is damaged, too, where its settings do not give its config id: then one of the two was changed afterwards.
        """
        raw = read_object(self.run_json)
        version = raw.get("schema_version")
        if version != SCHEMA_VERSION:
            raise other_version(self.run_json, version)
        record = validated(RunRecord, raw, self.run_json)
        if not is_settings_id(record.config_id, record.config):
            found = settings_id(record.config)
            raise RecordError(
                f"{self.run_json} is damaged: its config has the id {found}, its config_id is {record.config_id}.",
                WAY_OUT,
            )
        return record

    def newer_version(self) -> RecordError | None:
        """Returns the error for a run of a newer version, which explains what else is unknown in its files, or None."""
        try:
            version = read_object(self.run_json).get("schema_version")
        except RecordError:
            return None
        return other_version(self.run_json, version) if _is_newer(version) else None

    def read_status(self) -> Status | None:
        """Returns the content of `status.json`, or None before it exists. Raises `RecordError` where it is damaged."""
        if not os.path.lexists(self.status_json):
            return None
        way_out = "Restore it, or remove it: its checkpoints and rows say, too, where the run stands."
        return validated(Status, read_object(self.status_json, way_out), self.status_json, way_out)

    def read_rows(self, path: Path) -> RecordRows:
        """Returns the readable rows of one of this run's JSONL files; there are none before it exists."""
        return read_jsonl(path)

    def has_metric(self, metric: str) -> bool:
        """Says whether `evals.jsonl` has a value of `metric`; False where the file cannot be read."""
        try:
            return any(row.get("metric") == metric for row in read_jsonl(self.evals).rows)
        except RecordError:
            return False

    def last_step(self) -> dict[str, Any] | None:
        """Returns the newest complete and valid row of `steps.jsonl`, which is read from its end."""
        return next(last_rows(self.steps, StepRow), None)


def other_version(file: Path | str, version: object) -> RecordError:
    """Returns the error for a `file` of another schema version, whose numbers cannot be compared with ours."""
    if _is_newer(version):
        message = f"was written by a newer version of ecdit (schema version {version}; this one reads {SCHEMA_VERSION})"
    else:
        message = f"has schema version {shortened(printable(str(version)), 20)}, this ecdit reads {SCHEMA_VERSION}"
    return RecordError(f"{file} {message}.", "Use the version of ecdit that wrote it.")


def _is_newer(version: object) -> bool:
    return type(version) is int and version > SCHEMA_VERSION


def find_runs(*roots: Path, skipped: Skipped | None = None) -> Iterator[RunDir]:
    """Yields every run folder at or below `roots` once, in the order of paths. It does not search inside runs.

    A folder with `run.json` or `status.json` in it is a run, whatever state these files are in: reading them says what
    is wrong. During the iteration everything that is not used is added to `skipped` with the reason: runs in the folder
    of another, folders that cannot be listed, links to folders elsewhere, links that lead nowhere, and folders that
    hold rows of a run and no record of it.
    """
    left_out: Skipped = [] if skipped is None else skipped
    inside = [root.resolve() for root in roots]
    seen: set[Path] = set()
    for root in roots:
        for run_dir in _runs_below(root, inside, left_out):
            resolved = run_dir.path.resolve()
            if resolved not in seen:
                seen.add(resolved)
                yield run_dir


def _runs_below(root: Path, inside: list[Path], skipped: Skipped) -> Iterator[RunDir]:
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        run_dir = RunDir(folder)
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except FileNotFoundError:  # it has been removed since its parent was listed
            continue
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # only a root can have such a name, and the command says so
                raise
            skipped.append((str(folder), f"it cannot be read: {error.strerror}"))
            continue
        names = {entry.name for entry in entries}
        if not names.isdisjoint({run_dir.run_json.name, run_dir.status_json.name}):
            yield run_dir  # and not what is in it: checkpoints and samples can be thousands of files
            skipped += _runs_inside(run_dir, entries)
        elif (reason := run_dir.missing_records()) is not None:
            skipped.append((str(folder), reason))
        else:
            skipped += [(entry.path, why) for entry in entries if (why := _unused_link(entry, inside)) is not None]
            waiting += [folder / entry.name for entry in reversed(entries) if entry.is_dir(follow_symlinks=False)]


def _runs_inside(run_dir: RunDir, entries: list[os.DirEntry[str]]) -> Iterator[tuple[str, str]]:
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and RunDir(Path(entry.path)).exists():
            yield entry.path, f"it lies in the folder of the run {run_dir.path.name}: name it by itself"


def _unused_link(entry: os.DirEntry[str], inside: list[Path]) -> str | None:
    """Returns why a link is not followed; None for an entry that is no link, or a link to a file."""
    if not entry.is_symlink():
        return None
    target = Path(os.path.realpath(entry.path))
    if not os.path.exists(target):
        return "it is a link to something that does not exist"
    if not os.path.isdir(target):
        return None
    if any(target.is_relative_to(root) for root in inside):
        return f"it is a link to {target}, which is read by itself"
    return f"it is a link, and links are not followed: name {target}"
