"""The content of a report in order, from the question to how each number is reproduced.

Every number comes from the module that also computes it for the other commands; this module sets the order and the
wording only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from analysis.arm_columns import arm_columns, columns_of
from analysis.columns import Column
from analysis.compare import Comparison, compare
from analysis.diverged_runs import diverged_table
from analysis.executed_flops import train_flops
from analysis.expert_findings import expert_findings
from analysis.laws.bootstrap import NUM_RESAMPLES
from analysis.laws.families import best_conditions
from analysis.load_records import Records
from analysis.paper_claims import paper_claims
from analysis.parameter_counts import ACTIVATED, Count
from analysis.published_fid import COLUMNS as PUBLISHED_COLUMNS
from analysis.published_fid import CONDITIONS, DISAGREEMENT, published_rows
from analysis.report.answers import FOLDED_FROM, answer_blocks
from analysis.report.diverged_rows import diverged_blocks
from analysis.report.document import Block, Bullets, Paragraph, Report, Section, Table, table
from analysis.report.laws import Law, laws
from analysis.report.pictures import Pictures
from analysis.report.reproduction import reproduction_blocks
from analysis.report.run_rows import columns_with_scores, whole
from analysis.report.verdicts import found_multipliers, verdict_blocks
from analysis.run_table import INFERENCE, significant, with_losses
from analysis.smoothed_losses import with_smoothed_losses

QUESTION = (
    "How much compute does routing tokens to experts save in a diffusion transformer, how does the loss scale with "
    "activated parameters, experts and data, and how sure are we? Every arm is one routing on one backbone and one "
    "stream of data; arms of one setup differ in their feed-forward layers, and else only in values that were tuned "
    "for each arm."
)
LAW_WORDS = (
    "N are activated parameters, D images, C training FLOPs, E experts. A law is fitted where the runs identify it, by "
    "Huber's loss in the logarithm; intervals are 95% percentiles over resampled configurations, each with all its "
    "seeds; lengths of one trunk count as one. The error on the largest runs, which the law has not seen, is what it "
    "is to be judged by; its interval is that of a prediction, and where it excludes 0 the law does not hold there."
)

ARM_COLUMNS = arm_columns(
    "setup", "arm", "rate", "num_experts", "capacity_factor", "params_total", "params_active", "flops_per_image",
    "executed_flops_per_image", "executed_flops_per_image_same_t", "planned_train_flops_per_image",
    "executed_train_flops_per_image", "train_flops", "flops_before", "num_seeds", "num_diverged", "val_loss_mean",
    "val_loss_std", "val_loss_low", "val_loss_high", "val_loss_ema_mean", "val_loss_same_t_mean",
    "val_loss_training_decision", "images_to_dense_loss", "images_per_second", INFERENCE, "dropped_share",
    "dropped_share_same_t", "max_violation", "pair_usage", "peak_memory_gib",
)  # fmt: skip
LAW_COLUMNS = (
    Column("law", "Law"),
    Column("family", "Runs of"),
    Column("num_runs", "Runs", whole),
    Column("headline", "Error on the largest runs, unseen"),
    Column("sizes", "Error on each size, left out in turn"),
    Column("parameters", "Parameters (95% interval)"),
    Column("resamples", "Intervals"),
)
REFUSAL_COLUMNS = (*LAW_COLUMNS[:3], Column("refusal", "Why it is not fitted"))


def content(
    records: Records,
    runs: pd.DataFrame,
    rows: pd.DataFrame,
    pictures: Pictures,
    roots: Sequence[str],
    num_resamples: int = NUM_RESAMPLES,
    parameters: Count = ACTIVATED,
    tell: Callable[[str], None] = lambda _: None,
    smoothed: bool = False,
) -> Report:
    """Returns the report of `records`, whose run table is `runs`, with `rows` for every run (`run_rows`).

    `roots` are the folders given on the command line. With `smoothed`, laws are fitted to the ends of smoothed curves.
    Raises `MissingDataError` where no run has a final loss.
    """
    comparison = compare(records, runs)
    compared, with_loss = with_losses(runs), with_losses(rows)
    losses, gain = with_smoothed_losses(records, with_loss) if smoothed else (with_loss, "")
    best, of_others = best_conditions(losses)
    fitted, paper = laws(best, parameters.column, num_resamples, tell), paper_claims(records, compared)
    multipliers, refusal = found_multipliers(records, compared)
    lost = diverged_blocks(diverged_table(records))
    answers = answer_blocks(compared, comparison.claims, multipliers, paper, fitted)
    verdicts = verdict_blocks(comparison.claims, multipliers, refusal, paper, expert_findings(runs))
    sections = [
        Section("question", "The question", [Paragraph(QUESTION)]),
        Section("answer", "The answer at this scale", answers),
        Section("runs", "The runs", [_runs_table(rows), *lost, *_left_out(records)]),
        Section("arms", "The arms", [_arms_table(comparison.arms), *_alarms(comparison)]),
        Section("figures", "Figures", _figures(pictures)),
        Section("fits", "Scaling laws", _laws(fitted, parameters, f"{gain} {of_others}")),
        Section("verdicts", "What is supported and what is not", verdicts),
        Section("published", "Published FID of other models", [_published_table()]),
        Section("notes", "What to know before believing it", [Bullets(_notes(comparison))]),
        Section("reproduce", "How to reproduce each number", reproduction_blocks(rows, roots)),
    ]
    return Report("Report of a scaling study", _scale(runs), sections)


def _scale(runs: pd.DataFrame) -> str:
    counts = {
        "run": len(runs), "arm": runs["arm"].nunique(), "setup": runs["setup"].nunique(),
        "seed": runs["seed"].nunique(),
    }  # fmt: skip
    parts = [f"{count:,} {what}{'' if count == 1 else 's'}" for what, count in counts.items()]
    flops = float((train_flops(runs) - runs["flops_before"]).sum())
    smallest, largest = significant(runs["params_active"].min()), significant(runs["params_active"].max())
    return (
        f"{', '.join(parts)}; {smallest} to {largest} activated parameters; {significant(flops)} training FLOPs and "
        f"{runs['train_seconds'].sum() / 3600:,.2f} hours of training in all."
    )


def _runs_table(rows: pd.DataFrame) -> Table:
    note = (
        "Final values at the last evaluation, weights raw unless the column says EMA; evaluations are the last of each "
        "run, with the guidance scale behind @. The spread is over the seeds of the run's arm; one seed has none. "
        "The same with full digits: runs.csv."
    )
    columns = columns_with_scores(rows)
    shown = rows[[column.key for column in columns if column.key in rows]].to_dict("records")
    return table("run-table", f"The {len(rows):,} runs", columns, shown, note)


def _left_out(records: Records) -> list[Block]:
    """Returns the list of the runs and rows that were left out, or a sentence saying that nothing was."""
    if not records.left_out:
        return [Paragraph("Nothing was left out: every run that was found is finished and whole.")]
    items = [str(entry) for entry in records.left_out]
    summary = f"Left out: {len(items):,} {'entry' if len(items) == 1 else 'entries'}"
    return [Bullets(items, summary, len(items) >= FOLDED_FROM)]


def _arms_table(arms: pd.DataFrame) -> Table:
    note = (
        "Means over seeds; the spread with n - 1 and the 95% interval, Student's, are missing with one seed. Images to "
        "dense: where the mean curve reaches the final loss of dense of the same depth."
    )
    return table("arm-table", f"The {len(arms):,} arms", columns_of(arms, ARM_COLUMNS), arms.to_dict("records"), note)


def _alarms(comparison: Comparison) -> list[Block]:
    return [Bullets(comparison.alarms, "Alarms: where a validation loss misleads")] if comparison.alarms else []


def _published_table() -> Table:
    rows = published_rows()
    caption = f"{len(rows)} values that papers printed"
    return table("published-fid", caption, PUBLISHED_COLUMNS, rows, f"{CONDITIONS} {DISAGREEMENT}")


def _figures(pictures: Pictures) -> list[Block]:
    if not pictures.not_drawn:
        return list(pictures.blocks)
    missing = [f"{name}: {reason}" for name, reason in pictures.not_drawn]
    return [*pictures.blocks, Bullets(missing, f"Not drawn: {len(missing)} figures, and why")]


def _laws(found: Sequence[Law], parameters: Count, notes: str) -> list[Block]:
    blocks: list[Block] = [Paragraph(f"{LAW_WORDS} N counts: {parameters.label.lower()}. {notes}".strip())]
    fitted = [_law_row(law) for law in found if law.parameters is not None]
    refused = [_law_row(law) for law in found if law.parameters is None]
    if fitted:
        blocks.append(table("laws", f"The {len(fitted)} laws that the runs identify", LAW_COLUMNS, fitted))
    else:
        blocks.append(Paragraph("The runs identify none of the laws. What each lacks:"))
    if refused:
        blocks.append(table("refused-laws", f"The {len(refused)} laws that were not fitted", REFUSAL_COLUMNS, refused))
    return blocks


def _law_row(law: Law) -> dict[str, object]:
    parameters = "; ".join(f"{name} = {value}" for name, value in (law.parameters or {}).items())
    return {
        "law": f"{law.form.name}: {law.form.equation}", "family": law.family, "num_runs": law.num_runs,
        "parameters": parameters, "headline": law.headline, "sizes": law.sizes,
        "resamples": law.resamples, "refusal": law.refusal,
    }  # fmt: skip


def _notes(comparison: Comparison) -> list[str]:
    """Returns the notes of the comparison except those on left-out runs, which the section on runs already lists."""
    return [note for note in comparison.notes if not note.startswith("Left out: ")]
