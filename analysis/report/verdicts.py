"""The verdicts of a report as tables: differences in loss, compute multipliers and the paper's claims.

The tests themselves are computed in `claims.py`, `multiplier.py` and `paper_claims.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from analysis.claims import PairedDifference, correction
from analysis.columns import Column
from analysis.expert_findings import ExpertFinding, finding_rows
from analysis.load_records import MissingDataError, Records
from analysis.maps import MEASURED_BY
from analysis.multiplier import Multiplier, multiplier_correction, multiplier_rows, multipliers, over_setups
from analysis.paper_claims import PaperClaim, paper_claim_rows
from analysis.report.answers import AXIS_WORDS
from analysis.report.document import Block, Paragraph, table
from analysis.report.run_rows import whole
from analysis.run_table import fixed, probability
from analysis.seed_planning import seeds_wanted

signed = "{:+z.4f}".format
four = partial(fixed, decimals=4)
three = partial(fixed, decimals=3)

P_COLUMNS = (
    Column("p", "p", probability),
    Column("p_bh", "p (BH)", probability),
    Column("p_holm", "p (Holm)", probability),
)
"""The p-value of a test by itself, and after both corrections for how many were tested."""
OURS_COLUMNS = (Column("value", "Ours", four), Column("low", "95% low", four), Column("high", "95% high", four))
"""Our value of what a paper claims, and its interval."""
DIFFERENCE_COLUMNS = (
    Column("arm", "Arm"),
    Column("reference", "Against"),
    Column("setup", "Setup"),
    Column("difference", "Difference", signed),
    Column("low", "95% low", signed),
    Column("high", "95% high", signed),
    Column("seeds", "Seeds", whole),
    Column("method", "Method"),
    *P_COLUMNS,
    Column("verdict", "Verdict"),
    Column("seeds_for_power", "Seeds for 80% power"),
    Column("seeds_corrected", "the same, corrected"),
)
MULTIPLIER_COLUMNS = (
    Column("setup", "Setup"),
    Column("arm", "Arm"),
    Column("reference", "Reference"),
    Column("axis", "Counted in"),
    Column("factor", "Times less", three),
    Column("factor_low", "95% low", three),
    Column("factor_high", "95% high", three),
    Column("at_lowest", "At the lowest loss", three),
    Column("at_lowest_low", "its 95% low", three),
    Column("at_lowest_high", "its 95% high", three),
    Column("num_seeds", "Seeds", whole),
    *P_COLUMNS,
    Column("refusal", "Why there is none"),
)
OVER_SETUPS_COLUMNS = (
    Column("arm", "Arm"),
    Column("reference", "Reference"),
    Column("axis", "Counted in"),
    Column("factor", "Times less", three),
    Column("factor_low", "95% low", three),
    Column("factor_high", "95% high", three),
    Column("num_setups", "Setups", whole),
)
PAPER_COLUMNS = (
    Column("claim", "Claim"),
    Column("setup", "Setup"),
    Column("verdict", "Verdict"),
    Column("reason", "Because"),
    Column("printed", "Printed"),
    *OURS_COLUMNS,
    Column("num_seeds", "Seeds", whole),
    *P_COLUMNS,
    Column("quantity", "Quantity"),
    Column("source", "Printed in"),
)

FINDING_COLUMNS = (
    Column("finding", "Finding"),
    Column("arm", "Arm"),
    Column("setup", "Setup"),
    Column("verdict", "Verdict"),
    Column("reason", "Because"),
    *OURS_COLUMNS,
    Column("over", "Interval over"),
    *P_COLUMNS,
    Column("measure", "Measure"),
    Column("source", "Printed in"),
)


def found_multipliers(records: Records, runs: pd.DataFrame) -> tuple[list[Multiplier], str]:
    """Returns the compute multipliers and an empty text, or an empty list and the reason why there are none."""
    try:
        return multipliers(records, runs), ""
    except MissingDataError as error:
        return [], str(error)


def verdict_blocks(
    found: Sequence[PairedDifference],
    multipliers: Sequence[Multiplier],
    refusal: str,
    paper: Sequence[PaperClaim],
    findings: Sequence[ExpertFinding],
) -> list[Block]:
    """Returns the four tables; a table without rows is replaced by a sentence that says why."""
    compute = [_multipliers(multipliers, refusal), *_over_setups(multipliers)]
    return [_differences(found), *compute, _paper(paper), _findings(findings)]


def _differences(found: Sequence[PairedDifference]) -> Block:
    if not found:
        return Paragraph("No setup has two routings to compare, so no difference in validation loss was tested.")
    rows = [
        {
            "arm": claim.arm, "reference": claim.reference, "setup": claim.setup, "verdict": claim.verdict,
            "difference": claim.gap.mean, "low": claim.gap.low, "high": claim.gap.high,
            "seeds": claim.gap.num_values, "method": claim.gap.method,
            "p": claim.gap.p_value, "p_bh": claim.p_benjamini_hochberg, "p_holm": claim.p_holm,
            "seeds_for_power": wanted, "seeds_corrected": corrected,
        }
        for claim, (wanted, corrected) in zip(found, seeds_wanted(found), strict=True)
    ]  # fmt: skip
    note = (
        "Final validation loss of the arm minus that of the reference, raw weights. Intervals are Student's t over "
        "seeds, of one difference each; p is corrected for how many were tested (Benjamini and Hochberg, by which the "
        f"verdict goes, and Holm). {correction(found)} What is not lower or higher is not supported: the last "
        "columns say how many seeds an arm would separate such a gap with 80% power, the second with Holm's correction."
    )
    return table("differences", "Differences in validation loss", DIFFERENCE_COLUMNS, rows, note)


def _multipliers(found: Sequence[Multiplier], refusal: str) -> Block:
    if not found:
        return Paragraph(f"There is no compute multiplier: {refusal}")
    rows = multiplier_rows(found).replace({"axis": AXIS_WORDS}).to_dict("records")
    note = (
        "How many times less the arm needs for the losses that both curves reach; above 1 the arm needs less. "
        "Mean over the losses, seed by seed; intervals are Student's t over seeds, of one multiplier each; p tests "
        f"that the multiplier is 1. {multiplier_correction(found)}"
    )
    return table("multipliers", "Compute multipliers", MULTIPLIER_COLUMNS, rows, note)


def _over_setups(found: Sequence[Multiplier]) -> list[Block]:
    """Returns the table of means over setups, or nothing where no pair of arms has several."""
    rows = over_setups(found)
    if rows.empty:
        return []
    note = (
        "Each setup (a size at a length of training) counts once, with all its seeds together, and the lengths of one "
        "trunk (optim.schedule=wsd) count as one setup; intervals are Student's t over setups, since a claim about all "
        "setups has only them as independent observations."
    )
    shown = rows.replace({"axis": AXIS_WORDS}).to_dict("records")
    return [table("multipliers-over-setups", "Multipliers over setups", OVER_SETUPS_COLUMNS, shown, note)]


def _paper(found: Sequence[PaperClaim]) -> Block:
    given = paper_claim_rows(list(found))
    rows = given.assign(num_seeds=given["num_seeds"].where(given["value"].notna())).to_dict("records")
    note = (
        "These runs are not of the paper's scale: what is not supported here is not refuted there. Verdicts go by p "
        "after Benjamini and Hochberg's correction for how many claims were tested; intervals are of one claim each."
    )
    return table("paper-claims", "Claims of EC-DIT in the same form", PAPER_COLUMNS, rows, note)


def _findings(found: Sequence[ExpertFinding]) -> Block:
    if not found:
        return Paragraph(
            "What DiT-MoE found about its experts was not tested: no run has its routing measured by class. "
            f"{MEASURED_BY}."
        )
    note = (
        "Tested on each routed arm whose routing was measured, at the scale of these runs. Verdicts go by p after "
        "Benjamini and Hochberg's correction for how many findings were tested; intervals are of one finding each, "
        "over seeds where an arm has three or more, and otherwise over the images of one run (jackknife)."
    )
    return table("expert-findings", "Findings of DiT-MoE about experts", FINDING_COLUMNS, finding_rows(found), note)
