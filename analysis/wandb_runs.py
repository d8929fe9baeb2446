"""Reads runs back from Weights & Biases and makes a run folder of each, from what the mirror has sent.

`wandb:ENTITY/PROJECT` names a project. Its runs are stored as folders in W&B's cache folder (`WANDB_CACHE_DIR` moves
it), so that all code that reads run folders reads them. A run is fetched again only when its state in W&B has changed.
Rows come from the whole history (`scan_history`), never from the sampled one. The status is written last, so that an
interrupted download is not taken for a run.

W&B does not hold what `ecdit evaluate` and `ecdit sample` add after training, checkpoints and logs. wandb is imported
inside functions, as it is optional. `wandb_mirror.py` defines the names under which the mirror writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from experiments.config.schema import RunConfig
from experiments.errors import ConfigError, EcditError, RecordError
from experiments.records.divergence import diverged_at
from experiments.records.record_types import SCHEMA_VERSION, RunRecord, State, Status, StepRow
from experiments.records.run_folder import RunDir, other_version
from experiments.records.run_lock import without_missing
from experiments.records.storage import replace_atomically, storage_errors, write_json_atomic
from experiments.records.wandb_mirror import EVAL_LINES, RESOLVED, ROUTING_LINES, ask_wandb, one_line
from experiments.settings_id import settings_id

PREFIX = "wandb:"
RUNS_PER_REQUEST = 100
RUNS_AT_A_TIME = 8
TIMEOUT_SECONDS = 20
ROWS_PER_REQUEST = 1000
MAX_STEPS_PER_REQUEST = 10**9
"""W&B counts a page in steps, which are images here, and stores that number in 32 bits."""

STATES: dict[str, State] = {
    "finished": "done", "running": "running", "pending": "planned", "preempting": "interrupted",
    "preempted": "interrupted",
}  # fmt: skip
"""Maps W&B's states to ours. Every other one (crashed, failed, killed) is a run that failed."""


class WandbError(EcditError):
    """A W&B project that cannot be read."""


@dataclass(frozen=True)
class Fetched:
    """The folders of a project's runs, and (run, reason) for what could not become one or is not whole."""

    folders: list[Path]
    left_out: list[tuple[str, str]]


def fetch_project(place: str) -> Fetched:
    """Returns the runs of `wandb:ENTITY/PROJECT` as run folders, and fetches those that have changed in W&B.

    Raises `WandbError` when `place` is no such name, without a key, for an unknown project or one without runs, and
    where W&B cannot be reached.
    """
    entity, project = _parse(place)
    if not ask_wandb("online")[1]:
        raise WandbError(f"{place} needs a W&B key.", "Log in with `wandb login`, or set WANDB_API_KEY.")
    with _clear_errors(place):
        runs, root = _list(entity, project)
    if not runs:
        raise WandbError(f"{place} holds no runs.", "Runs appear there when wandb.mode is online or auto.")
    with ThreadPoolExecutor(RUNS_AT_A_TIME) as pool:
        fetched = list(pool.map(lambda run: _fetch_run(place, run, root / entity / project / str(run.id)), runs))
    return Fetched(
        [one for each in fetched for one in each.folders], [one for each in fetched for one in each.left_out]
    )


def _parse(place: str) -> tuple[str, str]:
    parts = place.removeprefix(PREFIX).split("/")
    if not place.startswith(PREFIX) or len(parts) != 2 or not all(parts):
        raise WandbError(f"--from {place} is not a W&B project.", "Write it as wandb:ENTITY/PROJECT.")
    return parts[0], parts[1]


def _list(entity: str, project: str) -> tuple[list[Any], Path]:
    """Lists W&B's runs with their settings, and returns the cache folder for all runs of this server."""
    import wandb
    from wandb.env import get_cache_dir

    api = wandb.Api(timeout=TIMEOUT_SECONDS)
    server = urlparse(api.settings["base_url"]).netloc.replace(":", "_")
    runs = list(api.runs(f"{entity}/{project}", per_page=RUNS_PER_REQUEST, lazy=False))
    return runs, Path(get_cache_dir()) / "ecdit" / server


@contextmanager
def _clear_errors(place: str) -> Iterator[None]:
    """Turns W&B's errors into a `WandbError` of one line."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except ValueError as error:
        if "Could not find project" not in str(error):
            raise
        raise WandbError(
            f"W&B has no project {place.removeprefix(PREFIX)}, or your key may not see it.", "Check the name."
        ) from error
    except (wandb.Error, WandbApiFailedError, TimeoutError) as error:
        raise WandbError(
            f"{place} could not be read from W&B: {one_line(error)}", "Check the network, WANDB_BASE_URL and the key."
        ) from error


def _fetch_run(place: str, run: Any, folder: Path) -> Fetched:
    name = f"{place}/{run.id}"
    try:
        record = _record(name, run.config)
        status = None if record is None else _status(run, record)
    except RecordError as error:
        return Fetched([], [(name, error.message)])
    except (ConfigError, TypeError, ValueError) as error:
        return Fetched([], [(name, f"its settings are not of this ecdit: {one_line(error)}")])
    if record is None or status is None:
        return Fetched([], [(name, "it was not recorded by ecdit")])
    run_dir = RunDir(folder)
    if _has_status(run_dir, status):
        return Fetched([folder], [])
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        run_dir.status_json.unlink(missing_ok=True)
    write_json_atomic(run_dir.run_json, without_missing(record.model_dump(mode="json")))
    left_out = []
    if status.state == "done" or diverged_at(status) is not None:  # of another unfinished run no row is used
        with _clear_errors(place):
            num_rows = _write_rows(run, record, run_dir)
        if num_rows < run.history_line_count:
            left_out = [(name, f"W&B gave {num_rows:,} of the {run.history_line_count:,} rows it has")]
    if not left_out:
        write_json_atomic(run_dir.status_json, status.model_dump(mode="json", exclude_none=True))
    return Fetched([] if left_out else [folder], left_out)


def _status(run: Any, record: RunRecord) -> Status:
    """Builds the status of a W&B run. Raises `ValueError` or `TypeError` where W&B's values are not the mirror's."""
    return Status(
        state=STATES.get(run.state, "failed"),
        images_seen=int(run.summary_metrics.get("images_seen") or 0),
        images_total=record.config["train"]["images"],
        heartbeat=datetime.fromisoformat(run.heartbeat_at).timestamp(),
        reason=run.summary_metrics.get("reason"),
        peak_memory_gib=run.summary_metrics.get("peak_memory_gib"),
        balance_loss=run.summary_metrics.get("balance_loss"),
    )


def _has_status(run_dir: RunDir, status: Status) -> bool:
    """Says whether the folder was already fetched whole in this state; a damaged one is fetched again."""
    try:
        return run_dir.read_status() == status
    except RecordError:
        return False


def _record(name: str, settings: dict[str, Any]) -> RunRecord | None:
    """Rebuilds the record of `run.json` from the settings of a W&B run, or returns None for a run of another program.

    The settings pass through `RunConfig`, because W&B's JSON does not distinguish 1.0 from 1 and config ids do. Raises
    `RecordError` for another schema version.
    """
    facts = {fact: settings[fact] for fact in RunRecord.model_fields if fact in settings and fact != "config"}
    if "schema_version" not in facts:
        return None
    if facts["schema_version"] != SCHEMA_VERSION:
        raise other_version(name, facts["schema_version"])
    stored = json.loads(settings[RESOLVED]) if RESOLVED in settings else settings
    sections = {section: stored[section] for section in RunConfig.model_fields if section in stored}
    config = RunConfig.model_validate(sections).model_dump(mode="json")
    if settings_id(config) != facts.get("config_id"):
        config = _as_given(config, sections)
    return RunRecord.model_validate({**facts, "config": config})


def _as_given(settings: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Keeps the `settings` that W&B was given: an earlier version had fewer, and its config ids hash only those."""
    return {
        name: _as_given(value, given[name]) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name in given
    }


def _write_rows(run: Any, record: RunRecord, run_dir: RunDir) -> int:
    """Writes the three JSONL files from the whole history and returns its number of rows."""
    steps, evals, routing = [], [], []
    config = record.config
    images_per_row = min(config["log"]["every_images"], config["eval"]["every_images"])
    page = min(ROWS_PER_REQUEST // 2 * images_per_row, MAX_STEPS_PER_REQUEST)
    num_rows = 0
    for row in run.scan_history(page_size=page, use_cache=False):  # W&B's cache does not see that a run went on
        num_rows += 1
        if row.get("loss") is not None:
            step = {name: row[name] for name in StepRow.model_fields if row.get(name) is not None}
            steps.append(json.dumps(step) + "\n")
        evals.append(row.get(EVAL_LINES) or "")
        routing.append(row.get(ROUTING_LINES) or "")
    for path, lines in ((run_dir.steps, steps), (run_dir.evals, evals), (run_dir.routing, routing)):
        replace_atomically(path, "".join(lines).encode())
    return num_rows
