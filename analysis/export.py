"""All runs of a folder as one table: a row per run, finished or not, its settings and the last value of everything.

For other programs: nothing is compared here and nothing refused but a folder without runs. A column is named as in the
records: settings with dots (`routing.name`), `steps.loss` the last row of `steps.jsonl`, `evals.val_loss` the last
value of a metric with raw weights and `evals.ema.val_loss` with averaged ones. Where a metric was measured under
several conditions the last counts, and `...@guidance` says the scale where it has one. A missing value is empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.load import RECORD_COLUMNS, dotted
from experiments.errors import RecordError
from experiments.records.layout import RunDir, find_runs
from experiments.records.storage import storage_errors

STATUS_COLUMNS = ("state", "images_seen", "images_total", "reason")


def export_runs(root: Path) -> pd.DataFrame:
    """One row per run at or below `root`, in the order of the paths. A `RecordError` when there is none."""
    if not root.is_dir():
        raise RecordError(f"{root} is not a folder.", "Name the folder of a sweep, or one that holds runs.")
    rows = [_row(run, root) for run in find_runs(root)]
    if not rows:
        raise RecordError(f"{root} holds no runs.", "Make some with: ecdit sweep quickstart --out out/demo")
    return pd.DataFrame(rows)


def write_table(table: pd.DataFrame, prefix: Path) -> list[Path]:
    """`PREFIX.csv` and `PREFIX.parquet`, each whole or not there. Raises `StorageError`."""
    paths = [prefix.with_name(f"{prefix.name}.{kind}") for kind in ("csv", "parquet")]
    for path in paths:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.writing")
            if path.suffix == ".csv":
                table.to_csv(temporary, index=False)
            else:
                _for_parquet(table).to_parquet(temporary, index=False)
            temporary.replace(path)
    return paths


def _row(run: RunDir, root: Path) -> dict[str, Any]:
    """What is readable of one run; `damaged` says what is not."""
    row: dict[str, Any] = {"run": str(run.path.relative_to(root))}
    damaged: list[str] = []
    try:
        status = run.read_status()
        row |= {name: getattr(status, name, None) for name in STATUS_COLUMNS}
        record = run.read_run()
        row |= {name: getattr(record, name) for name in RECORD_COLUMNS} | dict(dotted(record.config))
        row["command"] = " ".join(record.command)
    except RecordError as error:
        damaged.append(error.message)
    row |= {f"steps.{name}": value for name, value in (run.last_step() or {}).items() if _is_plain(value)}
    evals = run.read_rows(run.evals)
    row |= dict(_last_values(evals.rows))
    if evals.num_damaged:
        damaged.append(f"{evals.num_damaged} lines of {run.evals.name} are damaged")
    return row | {"damaged": "; ".join(damaged) or None}


def _last_values(rows: Iterable[dict[str, Any]]) -> Iterable[tuple[str, Any]]:
    """Later rows replace earlier ones."""
    for row in rows:
        if not _is_plain(row.get("value")) or not isinstance(row.get("metric"), str):
            continue
        name = f"evals.{'ema.' if row.get('weights') == 'ema' else ''}{row['metric']}"
        yield name, row["value"]
        settings = row.get("settings")
        if isinstance(settings, dict) and _is_plain(settings.get("guidance")):
            yield f"{name}@guidance", settings["guidance"]


def _is_plain(value: object) -> bool:
    return isinstance(value, int | float | str)


def _for_parquet(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of one type: where numbers and words mix, as in a setting that may be `same`, words."""
    mixed = [str(name) for name in table if _kinds(table[name]) > 1 and table[name].dtype == object]
    return table.assign(
        **{name: table[name].map(lambda value: None if pd.isna(value) else str(value)) for name in mixed}
    )


def _kinds(values: pd.Series[Any]) -> int:
    return int(values.dropna().map(type).nunique())
