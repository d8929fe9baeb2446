"""The comparison of routers: the arm table, the claims, a conclusion in words, and the files that hold them.

`comparison.csv` holds the arm table, `comparison.md` the conclusion, table, alarms, claims, published FID and notes,
and `comparison.png` and `.svg` the figure. Means are made in `arm_table.py`, verdicts in `claims.py`, the figure in
`figures/comparison.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.alarms import alarms
from analysis.arm_columns import arm_columns, columns_of
from analysis.arm_scores import arm_scores, score_columns
from analysis.arm_table import arm_table, json_rows
from analysis.arms import ACTIVATED_TOLERANCE
from analysis.claims import MIN_SEEDS, PairedDifference, claims, conclusion, correction, listed
from analysis.comparable import MEASURED_ON
from analysis.diverged_runs import diverged_table, divergence_note
from analysis.equal_compute import EQUAL_COMPUTE
from analysis.escaping import markdown_text
from analysis.executed_flops import notes_on_parents
from analysis.figures.registry import find_figure
from analysis.load_records import Records
from analysis.published_fid import COLUMNS as PUBLISHED_COLUMNS
from analysis.published_fid import CONDITIONS, DISAGREEMENT, published_rows
from analysis.report.document import cell
from analysis.routing_balance import with_balance
from analysis.run_table import INFERENCE, is_missing, markdown, probability, run_table
from analysis.seed_planning import seeds_sentence, seeds_wanted
from analysis.style import write_drawing
from analysis.tuned_arms import tuning_notes
from experiments.records.outputs import output_files

NAME = "comparison"
ARM_COLUMNS = arm_columns(
    "arm", "rate", "params_total", "params_active", "flops_per_image", "executed_flops_per_image",
    "executed_flops_per_image_same_t", "planned_train_flops_per_image", "executed_train_flops_per_image", "train_flops",
    "flops_before", "num_seeds", "num_diverged", "val_loss_mean", "val_loss_std", "val_loss_same_t_mean",
    "val_loss_training_decision", "images_to_dense_loss", "images_per_second", INFERENCE, "dropped_share",
    "dropped_share_same_t", "max_violation", "pair_usage", "peak_memory_gib",
)  # fmt: skip
INTERVALS = "Intervals are Student's t over seeds, of one difference each; p (BH) and p (Holm) are corrected for all."


@dataclass(frozen=True)
class Comparison:
    """The runs compared, one row per arm in `arms` (columns as in `arm_table`), and what may be said about them."""

    records: Records
    table: pd.DataFrame
    arms: pd.DataFrame
    claims: list[PairedDifference]
    conclusion: str
    alarms: list[str]
    notes: list[str]


def compare(records: Records, table: pd.DataFrame | None = None) -> Comparison:
    """Compares the arms in `records`, whose run table is `table` where it was made before.

    Raises `RecordError` when the runs differ in data or validation set.
    """
    table = run_table(records) if table is None else table
    arms = arm_table(records, table)
    found = claims(table)
    notes = list(_notes(records, table, arms, found))
    return Comparison(records, table, arms, found, conclusion(table, found), alarms(arms), notes)


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes the four files into `folder` and returns their paths. Raises `OutputError` and `StorageError`."""
    text = folder / f"{NAME}.md"
    with output_files([text]) as (part,):
        drawing = find_figure(NAME).drawing(comparison.records, comparison.table)
        paths = write_drawing(drawing, folder, NAME)
        part.write_text(comparison_markdown(comparison), encoding="utf-8")
    return [*paths, text]


def comparison_markdown(comparison: Comparison) -> str:
    """Returns the comparison as a page of Markdown."""
    header, rows = comparison_cells(comparison.arms)
    parts = ["# Comparison of routers\n", f"{markdown_text(comparison.conclusion)}\n", markdown(header, rows)]
    if comparison.alarms:
        parts += ["## Alarms\n", "".join(f"- {markdown_text(alarm)}\n" for alarm in comparison.alarms)]
    if comparison.claims:
        parts.append(differences_markdown(comparison.claims))
    parts.append(published_markdown())
    if comparison.notes:
        parts += ["## Notes\n", "".join(f"- {markdown_text(note)}\n" for note in comparison.notes)]
    return "\n".join(parts)


def differences_markdown(found: list[PairedDifference]) -> str:
    """Returns the section of the page that lists the differences."""
    return "\n".join(["## Differences in validation loss\n", markdown(*_claim_cells(found))])


def published_markdown() -> str:
    """Returns the section of the page that lists the published FID."""
    rows = [[cell(row[column.key], column).text for column in PUBLISHED_COLUMNS] for row in published_rows()]
    table = markdown([column.title for column in PUBLISHED_COLUMNS], rows)
    return "\n".join(["## Published FID of other models\n", f"{CONDITIONS} {DISAGREEMENT}\n", table])


def comparison_json(comparison: Comparison) -> list[dict[str, Any]]:
    """Returns the rows of the arm table for JSON, each with its alarms and the published FID of its router."""
    return [
        {
            **row,
            "alarms": [line for line in comparison.alarms if line.startswith(f"{row['arm']} ({row['setup']}): ")],
            "published_fid": published_rows([row["routing"]]),
        }
        for row in json_rows(comparison.arms)
    ]


def comparison_cells(arms: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Returns the arm table for display: its header and cells, with a dash where a value is missing."""
    several = arms["setup"].nunique() > 1
    scores, columns = score_columns(arms.columns), columns_of(arms, ARM_COLUMNS)
    named = arms.assign(arm=arms["setup"] + ": " + arms["arm"]) if several else arms
    rows = [
        [cell(arm[column.key], column).text for column in columns]
        + ["–" if is_missing(arm[key]) else value.text(arm[key]) for key, value in scores.items()]
        for arm in named.to_dict("records")
    ]
    titles = [column.title for column in columns] + [value.title or value.name for value in scores.values()]
    return titles, rows


def _claim_cells(found: list[PairedDifference]) -> tuple[list[str], list[list[str]]]:
    header = [
        "Arm", "Against", "Setup", "Difference", "95% interval", "Seeds", "Method",
        "p", "p (BH)", "p (Holm)", "Verdict", "Seeds for 80%", "corrected",
    ]  # fmt: skip
    rows = []
    for claim, wanted in zip(found, seeds_wanted(found), strict=True):
        gap = claim.gap
        interval = "–" if gap.low is None else f"{gap.low:+z.4f} to {gap.high:+z.4f}"
        numbers = [f"{gap.mean:+z.4f}", interval, str(gap.num_values), gap.method]
        p_values = [probability(p) for p in (gap.p_value, claim.p_benjamini_hochberg, claim.p_holm)]
        rows.append([claim.arm, claim.reference, claim.setup, *numbers, *p_values, claim.verdict, *wanted])
    return header, rows


def _notes(records: Records, table: pd.DataFrame, arms: pd.DataFrame, found: list[PairedDifference]) -> Iterator[str]:
    """Yields the reservations that a reader must know before believing the table."""
    yield INTERVALS
    if remaining := correction(found):
        yield remaining
    if needed := seeds_sentence(found):
        yield needed
    if table["val_loss_same_t"].notna().any():
        yield "Batches of one timestep hold other t than mixed ones: compare their losses between arms."
    if diverged := divergence_note(diverged_table(records)):
        yield diverged
    yield from tuning_notes(table)
    yield from notes_on_parents(table)
    few = arms.loc[arms["num_seeds"].between(1, MIN_SEEDS - 1)]
    for _, arm in few.iterrows():
        seeds = "1 seed: no spread can be given" if arm["num_seeds"] == 1 else f"{arm['num_seeds']} seeds"
        yield f"{arm['arm']} ({arm['setup']}) has {seeds}; at least {MIN_SEEDS} are needed to trust a spread."
    yield from arm_scores(records, table).notes
    yield from _unmatched(arms)
    yield from _dearer(arms)
    for column in MEASURED_ON:
        if table[column].nunique() > 1:
            values = ", ".join(sorted(map(str, table[column].unique())))
            what = "losses and speeds" if column == "precision" else "speeds"
            yield f"Runs differ in {column} ({values}): {what} are not comparable between them."
    for missing in (*records.left_out, *with_balance(records, table)[1]):
        yield f"Left out: {str(missing).rstrip('.')}."


def _unmatched(arms: pd.DataFrame) -> Iterator[str]:
    """Names routed arms for which the widened dense model is no baseline of equal activated parameters."""
    pairs = _beside_dense(arms, "dense_same_active")
    gaps = (pairs["params_active_dense"] / pairs["params_active"] - 1).rename("gap")
    far = pairs.join(gaps)[(gaps.abs() > ACTIVATED_TOLERANCE) & (pairs["kind"] == "sparse")]
    for (dense, is_more), rows in far.groupby(["arm_dense", far["gap"] > 0]):
        more = "more" if is_more else "fewer"
        names = listed(list(rows["arm"].unique()))
        yield f"{dense} has {_range(rows['gap'].abs(), '.0%')} {more} activated parameters than {names}."


def _dearer(arms: pd.DataFrame) -> Iterator[str]:
    """Names arms whose comparison with dense of the same depth is not at equal compute."""
    pairs = _beside_dense(arms, "dense_same_depth")
    pairs = pairs[pairs["baseline"] == pairs["arm_dense"]]
    flops = pairs["executed_flops_per_image"].fillna(pairs["flops_per_image"])
    gaps = (flops / pairs["flops_per_image_dense"] - 1).rename("gap")
    far = pairs.join(gaps)[gaps.abs() > EQUAL_COMPUTE]
    for dense, rows in far.groupby("arm_dense"):
        texts = [f"{arm} {_range(of_arm['gap'], '+.0%')}" for arm, of_arm in rows.groupby("arm", sort=False)]
        yield f"FLOPs per image against {dense} are not equal: {', '.join(texts)}."


def _beside_dense(arms: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Joins every arm with the dense arms of `kind` in its setup; the columns of these end in `_dense`."""
    dense = arms.loc[arms["kind"] == kind, ["setup", "arm", "params_active", "flops_per_image"]]
    pairs = arms.merge(dense, on="setup", suffixes=("", "_dense"))
    return pairs[pairs["arm"] != pairs["arm_dense"]].reset_index(drop=True)


def _range(gaps: pd.Series[float], form: str) -> str:
    """Writes a range as `12% to 16%`, or as one number where both ends are written alike."""
    low, high = format(gaps.min(), form), format(gaps.max(), form)
    return low if low == high else f"{low} to {high}"
