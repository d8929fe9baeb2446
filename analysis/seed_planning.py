"""Says how many seeds the gaps of a study need that are not separated, and what the seeds of a plan can separate.

`seeds_wanted` looks at a finished study: a gap that the seeds do not separate is either no gap or one that needs more
seeds, and the number of seeds says which gap would have been found. `plan_power` looks ahead: it takes the spread over
seeds from an earlier study, pooled over its comparisons, and the number of seeds from the plan.

Numbers are given without correction, and with the significance that Holm's correction asks of the smallest p-value
(0.05 divided by the number of tests), which is the most that it asks of any. `power.py` computes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.claims import SAME_T, PairedDifference, Verdict, claims
from analysis.load_records import MissingDataError
from analysis.power import POWER, seeds_needed, seeds_text, smallest_gap
from analysis.seed_intervals import CONFIDENCE

UNDECIDED: tuple[Verdict, ...] = ("not after correction", "not separated")
MOST_NAMED = 6
"""The number of gaps that one sentence names; a table has all of them."""


def corrected_significance(found: Sequence[PairedDifference]) -> float:
    """Returns the significance that Holm's correction asks of the smallest p-value among the tested differences."""
    return (1 - CONFIDENCE) / max(1, sum(claim.gap.low is not None for claim in found))


def seeds_wanted(found: Sequence[PairedDifference]) -> list[tuple[str, str]]:
    """Returns for each claim the seeds an arm that would separate its gap, without and with Holm's correction.

    Both texts are empty where the verdict needs no more seeds, and a dash where one seed gives no spread.
    """
    significance = corrected_significance(found)
    return [
        (seeds_text(claim.gap), seeds_text(claim.gap, significance)) if claim.verdict in UNDECIDED else ("", "")
        for claim in found
    ]


def seeds_sentence(found: Sequence[PairedDifference]) -> str:
    """Says how many seeds would separate the gaps that are not separated; empty where all are."""
    wanted = list(zip(found, seeds_wanted(found), strict=True))
    undecided = sorted(
        (each for each in wanted if each[0].verdict in UNDECIDED),
        key=lambda each: seeds_needed(each[0].gap) or math.inf,
    )
    if not undecided:
        return ""
    texts = [f"{claim.arm} from {claim.reference} ({claim.setup}): {' / '.join(pair)}" for claim, pair in undecided]
    rest = len(texts) - MOST_NAMED
    return (
        f"Seeds an arm that would separate a gap as large as measured with {POWER:.0%} power, without / with Holm's "
        f"correction: {'; '.join(texts[:MOST_NAMED])}{f'; and {rest} more, see the table' if rest > 0 else ''}."
    )


@dataclass(frozen=True)
class PlanPower:
    """The power of a plan in validation loss, judged by the spread over seeds of an earlier study.

    `spread` is the standard deviation of the difference of two single runs, pooled over the comparisons of the earlier
    study, in `rows` one by one: `arm`, `reference`, `setup`, `gap`, `spread`, `seeds` and `seeds_corrected`, the last
    two as texts. `smallest_gap` is None for a plan of one seed.
    """

    is_paired: bool
    num_seeds: int
    spread: float
    freedom_per_seed: float
    rows: list[dict[str, Any]]

    @property
    def smallest_gap(self) -> float | None:
        """Returns the smallest difference in validation loss that the plan finds with `POWER`."""
        return smallest_gap(self.spread, self.num_seeds, self.freedom_per_seed)

    def as_json(self) -> dict[str, Any]:
        """Returns what `ecdit sweep --dry-run --power --json` prints below `power`."""
        about: dict[str, Any] = {"metric": "val_loss", "power": POWER, "is_paired": self.is_paired}
        about |= {"num_seeds": self.num_seeds, "spread": self.spread, "smallest_gap": self.smallest_gap}
        return about | {"gaps": self.rows}

    def __str__(self) -> str:
        """Says in one sentence what the seeds of the plan separate."""
        pairing = "paired by seed" if self.is_paired else "arms have different seeds"
        found = self.smallest_gap
        seeds = f"{self.num_seeds} seed{'s' * (self.num_seeds > 1)} an arm ({pairing})"
        if found is None:
            return f"val_loss: with {seeds} the plan separates no gap, because one seed has no spread."
        return (
            f"val_loss: with {seeds} the plan separates a gap of {found:.4g} with {POWER:.0%} power, where the "
            f"difference of two runs spreads by {self.spread:.4g}, as in {len(self.rows)} earlier comparisons."
        )


def plan_power(earlier: pd.DataFrame, planned: Sequence[Mapping[str, Any]]) -> PlanPower:
    """Returns the power of a plan whose runs have the configs `planned` by the spread of the run table `earlier`.

    Raises `MissingDataError` where the earlier study has no comparison of arms with at least two seeds.
    """
    tested = [claim for claim in claims(earlier) if claim.reference != SAME_T]  # which is no difference in loss alone
    found = [claim for claim in tested if claim.gap.spread is not None]
    if not found:
        raise MissingDataError(
            "The earlier study has no two arms with two seeds each, so there is no spread over seeds to plan with.",
            "Name a study with more seeds.",
        )
    seeds = _seeds_by_arm(planned)
    is_paired = len({tuple(sorted(each)) for each in seeds}) == 1
    spread = _spread_of_pairs(found) if is_paired else _spread_of_separate_runs(earlier)
    rows = [
        {
            "arm": claim.arm, "reference": claim.reference, "setup": claim.setup, "gap": claim.gap.mean,
            "spread": claim.gap.spread, "seeds": seeds_text(claim.gap),
            "seeds_corrected": seeds_text(claim.gap, corrected_significance(found)),
        }
        for claim in found
    ]  # fmt: skip
    return PlanPower(is_paired, min(map(len, seeds)), spread, 1.0 if is_paired else 2.0, rows)


def _spread_of_pairs(found: Sequence[PairedDifference]) -> float:
    """Returns the standard deviation of a difference, pooled over claims by their degrees of freedom."""
    freedom = [claim.gap.freedom_per_seed * (claim.gap.num_values - 1) for claim in found]
    squares = sum(weight * (claim.gap.spread or 0.0) ** 2 for claim, weight in zip(found, freedom, strict=True))
    return math.sqrt(squares / sum(freedom))


def _spread_of_separate_runs(earlier: pd.DataFrame) -> float:
    """Returns sqrt(2) times the standard deviation within arms, which is that of the difference of unpaired runs."""
    by_arm = earlier.groupby(["setup", "arm"])["val_loss"]
    freedom = int((by_arm.count() - 1).clip(lower=0).sum())
    return math.sqrt(2 * float(((earlier["val_loss"] - by_arm.transform("mean")) ** 2).sum()) / freedom)


def _seeds_by_arm(planned: Sequence[Mapping[str, Any]]) -> list[set[int]]:
    """Returns the seeds of every group of planned configs that differ in their seed alone."""
    groups: dict[str, set[int]] = {}
    for config in planned:
        rest = json.dumps({name: value for name, value in config.items() if name != "seed"}, sort_keys=True)
        groups.setdefault(rest, set()).add(int(config["seed"]))
    return list(groups.values())
