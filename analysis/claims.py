"""What the data supports and what it does not, as claims with intervals and as one sentence.

The rules: a claim is a difference between two arms of one setting, paired by seed where both have the same seeds. It
is supported when its difference from 0 remains after the correction for the number of claims, in the direction it lies,
and not supported otherwise; with one seed there is no interval and nothing is supported. Tested are: every routed arm
against both dense baselines, expert choice against token choice of the same experts and capacity factor, and what
batches of one timestep do to a routed arm.

Batches of one timestep hold other t than mixed ones, so the loss of a dense model changes too, where routing plays no
part: that change is taken off. All of it holds at the scale of the runs.

Of 100 differences that do not exist, five have an interval that excludes 0. Two corrections are made over all claims
of one table: that of Benjamini and Hochberg (1995), after which 5% of what is called supported is expected to be wrong,
and by which the verdict goes; and the stricter one of Holm (1979), after which a single wrong one has a chance of 5%,
which is shown beside it. The intervals themselves are of one difference each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from analysis.arms import arm_list
from analysis.intervals import CONFIDENCE, Interval, difference

MIN_SEEDS = 3
SAME_T = "Dense, in the change from mixed batches to batches of one timestep"

MANY_ARMS, FEW_OTHERS = 5, 2
"""From how many arms on a sentence says all, and how many it may name as exceptions."""

Verdict = Literal["lower", "higher", "not after correction", "not separated", "not testable"]


@dataclass(frozen=True)
class PairedDifference:
    """`arm` against `reference` in validation loss, or in its change for `SAME_T`."""

    setting: str
    arm: str
    reference: str
    gap: Interval
    p_benjamini_hochberg: float | None = None
    """The p-value of `gap`, corrected for the number of claims that it was tested with; None before that."""
    p_holm: float | None = None

    @property
    def verdict(self) -> Verdict:
        """What the interval and the corrected p-value allow to say about `arm`."""
        if self.gap.low is None:
            return "not testable"
        if not (self.gap.is_below_zero or self.gap.is_above_zero):
            return "not separated"
        if not holds(self.p_benjamini_hochberg):
            return "not after correction"
        return "lower" if self.gap.is_below_zero else "higher"


def claims(table: pd.DataFrame) -> list[PairedDifference]:
    """Every claim that the runs of the run table allow to test, corrected for how many these are."""
    return corrected([claim for _, runs in table.groupby("setting", sort=False) for claim in _claims_of_setting(runs)])


def corrected(found: Sequence[PairedDifference]) -> list[PairedDifference]:
    """`found` with p-values that are corrected for the number of those with an interval."""
    p_values = np.array([claim.gap.p_value for claim in found if claim.gap.p_value is not None])
    if not len(p_values):
        return list(found)
    pairs = iter(zip(stats.false_discovery_control(p_values).tolist(), holm(p_values.tolist()), strict=True))
    return [claim if claim.gap.p_value is None else _with_p_values(claim, *next(pairs)) for claim in found]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's p-values: the k-th smallest of m times m - k + 1, never below a smaller one's and at most 1."""
    p_values_m = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values_m, kind="stable")
    stepped = np.maximum.accumulate(p_values_m[order] * np.arange(len(order), 0, -1))
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]


def correction(found: Sequence[PairedDifference]) -> str:
    """How many of the differences remain after each correction, in one sentence; empty where none was tested."""
    tested = [claim for claim in found if claim.gap.low is not None]
    if not tested:
        return ""
    before = sum(claim.gap.is_below_zero or claim.gap.is_above_zero for claim in tested)
    after = sum(claim.verdict in ("lower", "higher") for claim in tested)
    strict = sum(holds(claim.p_holm) for claim in tested)
    return (
        f"Of {len(tested)} differences tested, 0 lies outside the 95% interval in {before}; in {after} after Benjamini "
        f"and Hochberg's correction for their number, by which they are called supported, and in {strict} after Holm's."
    )


def _with_p_values(claim: PairedDifference, benjamini_hochberg: float, holms: float) -> PairedDifference:
    return replace(claim, p_benjamini_hochberg=benjamini_hochberg, p_holm=holms)


def holds(p_value: float | None) -> bool:
    """Whether a corrected p-value leaves the difference standing; one that was tested alone (None) needs none."""
    return p_value is None or p_value <= 1 - CONFIDENCE


def _claims_of_setting(runs: pd.DataFrame) -> Iterator[PairedDifference]:
    setting = str(runs["setting"].iloc[0])
    for arm, reference in arm_pairs(runs):
        gap = difference(values_by_seed(runs, arm, "val_loss"), values_by_seed(runs, reference, "val_loss"))
        yield PairedDifference(setting, arm, reference, gap)
    yield from _claims_of_one_timestep(runs, setting)


def _claims_of_one_timestep(runs: pd.DataFrame, setting: str) -> Iterator[PairedDifference]:
    changes = runs.assign(change=runs["val_loss_same_t"] - runs["val_loss"])
    arms = [(label, router) for label, router, _ in arm_list(runs) if values_by_seed(changes, label, "change")]
    dense = [label for label, router in arms if router == "dense"]
    for label, router in arms:
        if dense and router != "dense":
            gap = difference(values_by_seed(changes, label, "change"), values_by_seed(changes, dense[0], "change"))
            yield PairedDifference(setting, label, SAME_T, gap)


def arm_pairs(runs: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """(arm, reference) in the order of the references: same depth, same activated, token choice."""
    by_label = runs.drop_duplicates("arm").set_index("arm", drop=False)
    arms = by_label.loc[[label for label, _, _ in arm_list(runs)]]
    routed = arms[arms["arm_kind"] == "sparse"]
    for kind in ("dense_same_depth", "dense_same_active"):
        for reference in arms.loc[arms["arm_kind"] == kind, "arm"]:
            yield from ((arm, reference) for arm in routed["arm"])
    same = ["routing.num_experts", "routing.capacity_factor"]
    chosen = routed[routed["routing.name"] == "token_choice"]
    for _, ours in routed[routed["routing.name"] == "expert_choice"].iterrows():
        for _, theirs in chosen.iterrows():
            if all(ours[name] == theirs[name] for name in same):
                yield ours["arm"], theirs["arm"]


def values_by_seed(runs: pd.DataFrame, arm: str, column: str) -> dict[int, float]:
    """A column of the run table for the runs of one arm in one setting, where it was measured."""
    measured = runs[(runs["arm"] == arm) & runs[column].notna()]
    return {int(seed): float(value) for seed, value in zip(measured["seed"], measured[column], strict=True)}


def conclusion(table: pd.DataFrame, found: list[PairedDifference]) -> str:
    """A sentence for each setting of the run table, a paragraph each: the scale, what is supported, what is not."""
    return "\n\n".join(_sentence(runs, found) for _, runs in table.groupby("setting", sort=False))


def _sentence(runs: pd.DataFrame, found: list[PairedDifference]) -> str:
    ours = [claim for claim in found if claim.setting == runs["setting"].iloc[0]]
    if not ours:
        return f"{_scale(runs)}, the data supports no conclusion: there are no two arms to compare."
    supported, unsupported = supported_differences(ours), unsupported_differences(ours)
    what = f"(95% intervals) {listed(supported, ', and ')}" if supported else "no difference"
    parts = [f"the data supports {what}"]
    if unsupported:
        parts.append(f"it does not support {listed(unsupported, ', or ')}")
    parts += _not_run(runs)
    return f"{_scale(runs)}, {'; '.join(parts)}; larger scales were not tested."


def _scale(runs: pd.DataFrame) -> str:
    seeds = runs.groupby("arm")["seed"].nunique()
    low, high = int(seeds.min()), int(seeds.max())
    number = f"{low} seed{'s' * (low > 1)}" if low == high else f"{low} to {high} seeds"
    few = f" (fewer than {MIN_SEEDS}{', and one has no spread' if low == 1 else ''})" if low < MIN_SEEDS else ""
    setting, images = str(runs["setting"].iloc[0]), f"{int(runs['train.images'].iloc[0]):,}"
    length = "" if setting.endswith(f"{images} images") else f"{images} training images and "
    return f"At {setting} with {length}{number}{few}"


def supported_differences(found: list[PairedDifference]) -> list[str]:
    """In words, by reference and direction, the claims that are supported."""
    parts = []
    for reference in dict.fromkeys(claim.reference for claim in found):
        for verdict in ("lower", "higher"):
            arms = _arms(found, reference, verdict)
            what = f"a {verdict} validation loss than {reference}"
            if reference == SAME_T:
                what = f"a {verdict} loss through batches of one timestep"
            parts += [f"{what} for {arms}"] if arms else []
    return parts


def unsupported_differences(found: list[PairedDifference]) -> list[str]:
    """In words, by reference, the claims that the data cannot decide."""
    parts = []
    for reference in dict.fromkeys(claim.reference for claim in found):
        arms = _arms(found, reference, "not after correction", "not separated", "not testable")
        what = "an effect of batches of one timestep" if reference == SAME_T else f"a difference from {reference}"
        parts += [f"{what} for {arms}"] if arms else []
    return parts


def _not_run(runs: pd.DataFrame) -> list[str]:
    names = {"dense_same_depth": "same depth", "dense_same_active": "same activated parameters"}
    return [f"dense of the {name} was not run" for kind, name in names.items() if kind not in set(runs["arm_kind"])]


def _arms(found: list[PairedDifference], reference: str, *verdicts: Verdict) -> str:
    """The arms with one of these verdicts by name, or as all (but a few) where they are many."""
    tested = [claim for claim in found if claim.reference == reference]
    named = [claim.arm for claim in tested if claim.verdict in verdicts]
    others = [claim.arm for claim in tested if claim.verdict not in verdicts]
    if len(named) < MANY_ARMS or len(others) > FEW_OTHERS:
        return listed(named)
    return f"all {len(tested)} routed arms" + (f" but {listed(others)}" if others else "")


def listed(parts: list[str], last: str = " and ") -> str:
    """`a, b and c`."""
    return last.join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
