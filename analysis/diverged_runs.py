"""The runs that diverged, as visible cells of a study: their arms, where they diverged, and what repeats them.

A run that diverged has no final loss, so it enters no mean, test or fit. It is not lost either, because an arm of which
one seed diverged at a learning rate is another result than an arm of which none did. Tables count the runs that
diverged beside the seeds of their arm, and figures mark the last finite loss.

A sweep may repeat such a run at a lower learning rate. The repetition names the first run in `retry_of`. Its learning
rate differs from that of the other seeds, so it forms a setup of its own and is never averaged with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.arms import with_arms
from analysis.curves import validation_curves
from analysis.load_records import Records

LABELS = ["setup", "arm", "arm_kind", "variant"]
RATE = "optim.learning_rate"
LAST = ("images_seen", "flops", "seconds", "loss")
"""The columns of a validation curve, of which the last finite row is kept."""
COLUMNS = [
    "run", "name", "seed", "routing.name", *LABELS, "diverged_at_images", *(f"last_{column}" for column in LAST),
    "retried_by", "retry_rate", "retry_state",
]  # fmt: skip
"""The columns of the table of runs that diverged which do not depend on the settings of the runs."""
Repeats = dict[tuple[Path, str], tuple[int, dict[str, Any]]]
"""The number and the columns of the run that repeats another one, by the folder and the name of that."""
MOST_NAMED = 4
"""The number of runs that a note names; the others are only counted."""


def finished_arms(records: Records) -> pd.DataFrame:
    """Returns `records.runs` with the columns of `with_arms`, named together with the runs that diverged."""
    return _with_labels(records.runs, records.once(_labels)) if records.diverged else with_arms(records.runs)


def diverged_table(records: Records) -> pd.DataFrame:
    """Returns a row for each run that diverged, with the columns of `with_arms` and of its record.

    Added are the last finite validation as `last_images_seen`, `last_flops`, `last_seconds` and `last_loss` (missing
    where there was none), `retried_by` (the name of the run that repeats it), `retry_rate` (the learning rate of that)
    and `retry_state` (done or diverged). The table is empty where no run diverged.
    """
    if records.diverged is None:
        return pd.DataFrame(columns=COLUMNS)
    return records.once(_diverged_table).copy()


def shown_with(diverged: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Returns the runs of `diverged` in the setups of `table`, which a figure or a page shows."""
    return diverged[diverged["setup"].isin(table["setup"])]


def divergence_texts(diverged: pd.DataFrame) -> Iterator[str]:
    """Yields for each run that diverged its arm, setup and seed, where it diverged, and what repeats it."""
    for row in diverged.to_dict("records"):
        text = f"{row['arm']} ({row['setup']}), seed {row['seed']}, at {row['diverged_at_images']:,} images"
        if row["retried_by"]:
            state = "done" if row["retry_state"] == "done" else "which diverged too"
            text += f", repeated at {RATE}={row['retry_rate']:g} by {row['retried_by']} ({state})"
        yield text


def divergence_note(diverged: pd.DataFrame) -> str:
    """Says which runs diverged, and that no mean has them; empty where none did."""
    if diverged.empty:
        return ""
    texts = list(divergence_texts(diverged))
    rest = len(texts) - MOST_NAMED
    more = f"; and {rest} more" if rest > 0 else ""
    return f"Diverged, and in no mean, test or fit: {'; '.join(texts[:MOST_NAMED])}{more}."


def _labels(records: Records) -> pd.DataFrame:
    """Returns `LABELS` by run, of the finished runs and those that diverged, in the order of `with_arms`."""
    assert records.diverged is not None
    together = pd.concat([records.runs, records.diverged.runs], ignore_index=True)
    return with_arms(together).set_index("run")[LABELS]


def _with_labels(runs: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Returns `runs` in the order of `labels`, with their labels. The types of all other columns stay as they are."""
    by_run = runs.set_index("run", drop=False)
    ordered = by_run.loc[[run for run in labels.index if run in by_run.index]]
    ours = labels.loc[ordered["run"]]
    return ordered.assign(**{name: ours[name].to_numpy() for name in LABELS}).reset_index(drop=True)


def _diverged_table(records: Records) -> pd.DataFrame:
    assert records.diverged is not None
    table = _with_labels(records.diverged.runs, records.once(_labels))
    curves = validation_curves(records.diverged, table).drop_duplicates("run", keep="last").set_index("run")
    for column in LAST:
        table[f"last_{column}"] = table["run"].map(curves[column]).astype(float)
    repeats = _repeats(records)
    retries = [_retry(row, repeats) for row in table.to_dict("records")]
    return pd.concat([table, pd.DataFrame(retries, index=table.index)], axis=1)


def _repeats(records: Records) -> Repeats:
    """Finds the runs that repeat others, and numbers them: first those that diverged again, then the finished ones."""
    assert records.diverged is not None
    parts = (("diverged", records.diverged.runs), ("done", records.runs))
    rows = [(state, row) for state, runs in parts for row in runs[runs["retry_of"].notna()].to_dict("records")]
    return {
        (Path(row["run"]).parent, row["retry_of"]): (
            number,
            {"retried_by": row["name"], "retry_rate": float(row[RATE]), "retry_state": state},
        )
        for number, (state, row) in enumerate(rows)
    }


def _retry(row: Mapping[Any, Any], repeats: Repeats) -> dict[str, Any]:
    """Returns what repeats the run of `row`, the last of several. Names are unique in a sweep only."""
    run = Path(row["run"])
    found = [repeats[run.parent, name] for name in {row["name"], run.name} if (run.parent, name) in repeats]
    if not found:
        return {"retried_by": "", "retry_rate": float("nan"), "retry_state": ""}
    return max(found, key=lambda each: each[0])[1]
