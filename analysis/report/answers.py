"""The short answers at the top of a report: each setup, the compute multipliers, the paper's claims, the laws.

Each answer sums up in one line what the tables below show in full; this module computes no results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import pandas as pd

from analysis.claims import PairedDifference, conclusion, correction
from analysis.multiplier import Multiplier
from analysis.paper_claims import NOT_TESTABLE, PaperClaim, PaperVerdict
from analysis.report.document import Block, Bullets
from analysis.report.laws import Law

FOLDED_FROM = 12
"""Lists of at least this many items are collapsed in the HTML page."""

COMPUTE = "How many times less is needed for the same loss at {} (below 1: more is needed)"
AXIS_WORDS = {"images_seen": "images", "flops": "activated training FLOPs", "seconds": "training seconds"}
VERDICTS: tuple[PaperVerdict, ...] = ("supported", "not supported", NOT_TESTABLE)


def answer_blocks(
    runs: pd.DataFrame,
    claims: Sequence[PairedDifference],
    multipliers: Sequence[Multiplier],
    paper: Sequence[PaperClaim],
    laws: Sequence[Law],
) -> list[Block]:
    """Returns four lists: one sentence for each setup, pair of arms, claim of the paper and fitted law.

    The pairs of arms are those of the last setup of `runs`, which is sorted so that the largest comes last.
    """
    setups = conclusion(runs, list(claims)).split("\n\n")
    setups += filter(None, [correction(claims)])
    largest = str(runs["setup"].iloc[-1])
    blocks: list[Block] = [_list(setups, "What the data supports")]
    compute = list(_compute(multipliers, largest))
    if compute:
        blocks.append(_list(compute, COMPUTE.format(largest)))
    blocks.append(_list(list(_paper(paper)), "What the paper claims"))
    fitted = [f"{law.form.name}, {law.family}: {law.headline}" for law in laws if law.parameters is not None]
    none = [f"None of {len(laws)} could be fitted: the section on scaling laws says what each lacks."]
    blocks.append(_list(fitted or none, "Scaling laws, judged by their error on the largest runs"))
    return blocks


def _list(items: list[str], summary: str) -> Bullets:
    return Bullets(items, summary, len(items) >= FOLDED_FROM)


def _compute(found: Sequence[Multiplier], setup: str) -> Iterator[str]:
    ours = [each for each in found if each.setup == setup]
    for (arm, reference), pair in groupby(ours, lambda each: (each.arm, each.reference)):
        yield f"{arm} against {reference}: {', '.join(map(_times, pair))}."


def _times(each: Multiplier) -> str:
    axis = AXIS_WORDS[each.axis]
    if each.factor is None:
        return f"{axis} not comparable"
    at = each.factor
    spread = "one seed, no interval" if at.low is None else f"{at.low:.2f} to {at.high:.2f}"
    return f"{axis} {at.mean:.2f}× ({spread})"


def _paper(found: Sequence[PaperClaim]) -> Iterator[str]:
    """Yields a line for each claim: how many comparisons had each verdict, or the reason if there is only one."""
    for form in dict.fromkeys(each.form for each in found):
        of_form = [each for each in found if each.form == form]
        counts = Counter(each.verdict for each in of_form)
        said = ", ".join(f"{verdict} in {counts[verdict]}" for verdict in VERDICTS if counts[verdict])
        if len(of_form) == 1:
            said = f"{of_form[0].verdict}, because {of_form[0].reason.rstrip('.')}"
        else:
            said += f" of {len(of_form)} comparisons"
        yield f"{form.claim} ({form.quantity}; printed: {form.printed}): {said}."
