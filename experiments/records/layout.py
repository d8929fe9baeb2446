"""`RunDir`: the only place that names the files of a run, and reads them back.

Reading never fails on a file that is being written: a last line that was cut is left out and counted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from experiments.errors import RecordError
from experiments.records.schema import SCHEMA_VERSION, RunRecord, Status

Kind = TypeVar("Kind", RunRecord, Status)


@dataclass(frozen=True)
class Rows:
    """The rows of one JSONL file, and how many lines could not be read."""

    rows: list[dict[str, Any]]
    num_damaged: int


@dataclass(frozen=True)
class RunDir:
    """One run folder. Nothing here creates anything."""

    path: Path

    @property
    def run_json(self) -> Path:
        """What the run is (`RunRecord`)."""
        return self.path / "run.json"

    @property
    def status_json(self) -> Path:
        """Where it stands (`Status`)."""
        return self.path / "status.json"

    @property
    def steps(self) -> Path:
        """Rows of `StepRow`."""
        return self.path / "steps.jsonl"

    @property
    def routing(self) -> Path:
        """Rows of `RoutingRow`."""
        return self.path / "routing.jsonl"

    @property
    def evals(self) -> Path:
        """Rows of `EvalRow`."""
        return self.path / "evals.jsonl"

    @property
    def routing_maps(self) -> Path:
        """Rows of `RoutingMapRow`."""
        return self.path / "routing_maps.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder per complete checkpoint."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Sample grids as PNG."""
        return self.path / "samples"

    @property
    def compute_map(self) -> Path:
        """The newest `ComputeMap`: images with the experts of every token."""
        return self.samples / "compute_map.npz"

    @property
    def exported(self) -> Path:
        """What a folder of `ecdit export-weights` holds; a run has none."""
        return self.path / "model.json"

    @property
    def log(self) -> Path:
        """What libraries print while the run goes."""
        return self.path / "log.txt"

    @property
    def claims(self) -> Path:
        """Which process writes here (`ownership.py`)."""
        return self.path / ".claims"

    def token(self, word: str) -> Path:
        """A file that is there for a moment, by which processes on several nodes see that they share the folder."""
        return self.path / f".token-{word}"

    @property
    def wandb(self) -> Path:
        """Where the mirror keeps its files; deleting it loses nothing."""
        return self.path / "wandb"

    def exists(self) -> bool:
        """Whether a run was ever started or planned here."""
        return self.run_json.is_file() or self.status_json.is_file()

    def read_run(self) -> RunRecord:
        """`run.json`; a `RecordError` when it is missing, damaged or of another schema version."""
        raw = _read_json(self.run_json)
        version = raw.get("schema_version")
        if version != SCHEMA_VERSION:
            raise RecordError(
                f"{self.run_json} has schema version {version}, this ecdit reads {SCHEMA_VERSION}.",
                "Use the version of ecdit that wrote it.",
            )
        return _validated(RunRecord, raw, self.run_json)

    def read_status(self) -> Status | None:
        """`status.json`, or None before the run has one."""
        if not self.status_json.is_file():
            return None
        return _validated(Status, _read_json(self.status_json), self.status_json)

    def read_rows(self, path: Path) -> Rows:
        """The readable rows of one of this run's JSONL files; empty when it is not there yet."""
        return read_jsonl(path)

    def last_step(self) -> dict[str, Any] | None:
        """The newest complete row of `steps.jsonl`, read from the end of the file."""
        if not self.steps.is_file():
            return None
        with self.steps.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().split(b"\n")
        for line in reversed(lines):
            row = parse_row(line)
            if row is not None:
                return row
        return None


def other_version(run: Path | str, version: object) -> RecordError:
    """What to raise for a run of another schema version, of which no number may be compared."""
    return RecordError(
        f"{run} has schema version {version}; this ecdit reads and compares version {SCHEMA_VERSION}.",
        "Leave that run out, or use the version of ecdit that wrote it.",
    )


def find_runs(*roots: Path) -> Iterator[RunDir]:
    """Every run folder at or below `roots`, in the order of their paths, each once. A run is not searched inside."""
    seen: set[Path] = set()
    for root in roots:
        for run_dir in _runs_below(root):
            resolved = run_dir.path.resolve()
            if resolved not in seen:
                seen.add(resolved)
                yield run_dir


def _runs_below(root: Path) -> Iterator[RunDir]:
    for folder, subfolders, _ in os.walk(root):
        run_dir = RunDir(Path(folder))
        if run_dir.exists():
            subfolders.clear()  # checkpoints and samples can be thousands of files
            yield run_dir
        subfolders.sort()


def read_jsonl(path: Path) -> Rows:
    """The rows of a JSONL file; a line that is not a JSON object is counted as damaged."""
    if not path.is_file():
        return Rows([], 0)
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    parsed = [parse_row(line) for line in lines]
    rows = [row for row in parsed if row is not None]
    return Rows(rows, len(lines) - len(rows))


def parse_row(line: bytes) -> dict[str, Any] | None:
    """One line of a JSONL file, or None where it is cut or no JSON object."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecordError(f"{path} does not exist.", "Is this the folder of a run?") from error
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}.", "Make it readable.") from error
    except ValueError as error:
        raise RecordError(f"{path} is damaged: {error}.", "Restore it, or start the run in a new folder.") from error
    if not isinstance(raw, dict):
        raise RecordError(f"{path} does not hold a JSON object.", "Restore it, or start the run in a new folder.")
    return raw


def _validated(kind: type[Kind], raw: dict[str, Any], path: Path) -> Kind:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path} is damaged: {where}: {first['msg']}.", "Restore it, or start anew.") from error
