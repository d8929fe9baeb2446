"""This module tests differences between arms and says which of them the data supports.

A claim is a difference between two arms of one setup, paired by seed where both have the same seeds. It is supported
when it differs from 0 after the correction for the number of claims, and not supported otherwise. With one seed there
is no interval and nothing is supported. These claims are tested: every routed arm against both dense baselines, expert
choice against token choice with the same number of experts and capacity factor, an arm that began from trained weights
against the same arm from scratch, and the effect of batches of one timestep on a routed arm. Only arms of one depth are
compared, but for the dense baseline of equal activated parameters. Where a setup has no two such arms, as where
variants of one router were run alone, every arm is compared with the first one. Runs without a final loss, such as
imported weights, are in no claim.

Batches of one timestep contain other values of t than mixed batches, so they change the loss of a dense model too,
although nothing is routed there. The effect on routing is therefore the change of the routed arm minus that of the
dense one. All claims hold at the scale of the runs only.

Of 100 differences that do not exist, five have a 95% interval that excludes 0. Two corrections are therefore made over
all claims of one table. The verdict follows Benjamini and Hochberg (1995), which keeps the expected share of wrong
claims among the supported ones at 5%. The stricter correction of Holm (1979), which keeps the chance of even one wrong
claim at 5%, is shown beside it. The intervals themselves are not corrected: each is that of one difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import pandas as pd
from scipy import stats

from analysis.arms import PLACEMENT, arm_list, setting_text
from analysis.baselines import DEPTH, baselines, narrowed
from analysis.equal_compute import began_from_weights
from analysis.found_runs import BEGAN_FROM
from analysis.seed_intervals import CONFIDENCE, Interval, difference

ROUTER = "routing.name"
MIN_SEEDS = 3
SAME_T = "Dense, in the change from mixed batches to batches of one timestep"

MANY_ARMS, FEW_OTHERS = 5, 2
"""A sentence says "all routed arms" from `MANY_ARMS` arms on, if it must name at most `FEW_OTHERS` exceptions."""

Verdict = Literal["lower", "higher", "not after correction", "not separated", "not testable"]


@dataclass(frozen=True)
class PairedDifference:
    """The difference of `arm` from `reference` in validation loss, or in the change of that loss for `SAME_T`."""

    setup: str
    arm: str
    reference: str
    gap: Interval
    p_benjamini_hochberg: float | None = None
    """The p-value of `gap`, corrected for the number of claims that it was tested with; None before that."""
    p_holm: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Says what the interval and the corrected p-value allow to conclude about `arm`."""
        if self.gap.low is None:
            return "not testable"
        if not (self.gap.is_below_zero or self.gap.is_above_zero):
            return "not separated"
        if not holds(self.p_benjamini_hochberg):
            return "not after correction"
        return "lower" if self.gap.is_below_zero else "higher"


def claims(table: pd.DataFrame) -> list[PairedDifference]:
    """Tests every claim for which the run table has the runs, with p-values corrected for the number of claims."""
    measured = narrowed(table)[table["val_loss"].notna()]
    return corrected([claim for _, runs in measured.groupby("setup", sort=False) for claim in _claims_of_setup(runs)])


def corrected(found: Sequence[PairedDifference]) -> list[PairedDifference]:
    """Returns `found` with p-values that are corrected for the number of claims that have an interval."""
    pairs = corrections([claim.gap.p_value for claim in found])
    return [claim if pair is None else _with_p_values(claim, *pair) for claim, pair in zip(found, pairs, strict=True)]


def corrections(p_values: Sequence[float | None]) -> list[tuple[float, float] | None]:
    """Returns each p-value after the corrections of Benjamini and Hochberg and of Holm; None stays None."""
    tested = [p_value for p_value in p_values if p_value is not None]
    if not tested:
        return [None] * len(p_values)
    pairs = iter(zip(stats.false_discovery_control(tested).tolist(), holm(tested), strict=True))
    return [None if p_value is None else next(pairs) for p_value in p_values]


class Tested(Protocol):
    """A dataclass of something that was tested, with the verdict that its interval allows and the reason for it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def verdict(self) -> str:
        """Returns what the interval allows to conclude."""

    @property
    def reason(self) -> str:
        """Returns why the verdict is what it is."""

    @property
    def p_value(self) -> float | None:
        """Returns the p-value of the test by itself; None where nothing was tested."""


AnyTested = TypeVar("AnyTested", bound=Tested)


def with_corrected_verdicts(found: Sequence[AnyTested], things: str, withdrawn: Mapping[str, str]) -> list[AnyTested]:
    """Returns `found` with p-values corrected for the number of tested `things`, and the verdicts that follow.

    `withdrawn` maps each verdict that does not hold after the correction of Benjamini and Hochberg to what it becomes.
    """
    num_tested = sum(each.p_value is not None for each in found)
    checked = []
    for each, pair in zip(found, corrections([each.p_value for each in found]), strict=True):
        if pair is not None:
            after: dict[str, Any] = {"p_benjamini_hochberg": pair[0], "p_holm": pair[1]}
            if each.verdict in withdrawn and not holds(pair[0]):
                reason = f"{each.reason}, but not after correction for {num_tested} tested {things}"
                after |= {"verdict": withdrawn[each.verdict], "reason": reason}
            each = replace(each, **after)
        checked.append(each)
    return checked


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns Holm's p-values: the k-th smallest of m is multiplied by m - k + 1, kept monotonic and capped at 1."""
    p_values_m = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values_m, kind="stable")
    stepped = np.maximum.accumulate(p_values_m[order] * np.arange(len(order), 0, -1))
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]


def correction(found: Sequence[PairedDifference]) -> str:
    """Says in one sentence how many differences remain after each correction; empty where none was tested."""
    tested = [claim for claim in found if claim.gap.low is not None]
    if not tested:
        return ""
    before = sum(claim.gap.is_below_zero or claim.gap.is_above_zero for claim in tested)
    after = sum(claim.verdict in ("lower", "higher") for claim in tested)
    strict = sum(holds(claim.p_holm) for claim in tested)
    return (
        f"Of {len(tested)} differences tested, the 95% interval excludes 0 for {before}. That number is {after} after "
        f"Benjamini and Hochberg's correction, by which differences are called supported, and {strict} after Holm's."
    )


def _with_p_values(claim: PairedDifference, benjamini_hochberg: float, holms: float) -> PairedDifference:
    return replace(claim, p_benjamini_hochberg=benjamini_hochberg, p_holm=holms)


def holds(p_value: float | None) -> bool:
    """Says whether a difference is significant after correction. One that was tested alone (None) needs none."""
    return p_value is None or p_value <= 1 - CONFIDENCE


def _claims_of_setup(runs: pd.DataFrame) -> Iterator[PairedDifference]:
    setup = str(runs["setup"].iloc[0])
    losses = {str(arm): values_by_seed(ours, str(arm), "val_loss") for arm, ours in runs.groupby("arm")}
    for arm, reference in arm_pairs(runs):
        yield PairedDifference(setup, arm, reference, difference(losses[arm], losses[reference]))
    yield from _claims_of_one_timestep(runs, setup)


def _claims_of_one_timestep(runs: pd.DataFrame, setup: str) -> Iterator[PairedDifference]:
    """Yields the claims about batches of one timestep. Without `Dense (same depth)` another dense arm stands in."""
    changes = runs.assign(change=runs["val_loss_same_t"] - runs["val_loss"]).dropna(subset=["change"])
    arms, baseline_of = arm_list(changes), baselines(changes)
    dense = [label for label, router, _ in arms if router == "dense"]
    by_arm = {str(arm): values_by_seed(ours, str(arm), "change") for arm, ours in changes.groupby("arm")}
    for label, router, _ in arms:
        reference = baseline_of.get(label) if baseline_of else next(iter(dense), None)
        if reference is not None and router != "dense":
            yield PairedDifference(setup, label, SAME_T, difference(by_arm[label], by_arm[reference]))


def arm_pairs(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Returns (arm, reference), with the references in the order same depth, same activated, token choice, scratch.

    An arm that began from the weights of another run is compared with the same arm from scratch. Where there are no
    such pairs, the reference is the first arm, which is the plain form of its router.
    """
    first, *others = (label for label, _, _ in arm_list(runs))
    return list(_pairs_with_baselines(runs)) or [(label, first) for label in others]


def _pairs_with_baselines(runs: pd.DataFrame) -> Iterator[tuple[str, str]]:
    by_label = runs.drop_duplicates("arm").set_index("arm", drop=False)
    arms = by_label.loc[[label for label, _, _ in arm_list(runs)]]
    routed = arms[arms["arm_kind"] == "sparse"]
    baseline_of = baselines(runs)
    yield from ((arm, baseline_of[arm]) for arm in map(str, routed["arm"]) if arm in baseline_of)
    for reference in arms.loc[arms["arm_kind"] == "dense_same_active", "arm"]:
        yield from ((str(arm), str(reference)) for arm in routed["arm"])
    same = ["routing.num_experts", "routing.capacity_factor", PLACEMENT, DEPTH]
    experts, tokens = (routed[routed[ROUTER] == name] for name in ("expert_choice", "token_choice"))
    yield from _alike(experts, tokens, [*same, BEGAN_FROM])
    began = began_from_weights(routed)
    yield from _alike(routed[began], routed[~began], [*same, ROUTER])


def _alike(arms: pd.DataFrame, others: pd.DataFrame, same: list[str]) -> Iterator[tuple[str, str]]:
    """Yields the labels of an arm and another one where both have the same values; a table may lack a column."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for theirs in others.to_dict("records"):
        alike.setdefault(tuple(setting_text(theirs.get(name)) for name in same), []).append(str(theirs["arm"]))
    for ours in arms.to_dict("records"):
        found = alike.get(tuple(setting_text(ours.get(name)) for name in same), [])
        yield from ((str(ours["arm"]), reference) for reference in found)


def values_by_seed(runs: pd.DataFrame, arm: str, column: str) -> dict[int, float]:
    """Maps the seeds of one arm in one setup to a column of the run table, where that was measured."""
    measured = runs[(runs["arm"] == arm) & runs[column].notna()]
    return {int(seed): float(value) for seed, value in zip(measured["seed"], measured[column], strict=True)}


def conclusion(table: pd.DataFrame, found: list[PairedDifference]) -> str:
    """Writes a paragraph for each setup of the run table: the scale, what is supported and what is not."""
    of_setup: dict[str, list[PairedDifference]] = {}
    for claim in found:
        of_setup.setdefault(claim.setup, []).append(claim)
    by_setup = table.groupby("setup", sort=False)
    return "\n\n".join(_sentence(runs, of_setup.get(str(setup), [])) for setup, runs in by_setup)


def _sentence(runs: pd.DataFrame, ours: list[PairedDifference]) -> str:
    runs, setup = runs[runs["val_loss"].notna()], runs["setup"].iloc[0]
    if runs.empty:
        return f"At {setup}, no run has a validation loss, so that nothing is compared."
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
    setup, images = str(runs["setup"].iloc[0]), f"{int(runs['train.images'].iloc[0]):,}"
    length = "" if setup.endswith(f"{images} images") else f"{images} training images and "
    return f"At {setup} with {length}{number}{few}"


def supported_differences(found: list[PairedDifference]) -> list[str]:
    """Says the supported claims in words, one text for each reference and direction."""
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
    """Says in words which claims the data cannot decide, one text for each reference."""
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
    """Lists the arms that have one of these verdicts, or says "all (but ...)" where they are many."""
    tested = [claim for claim in found if claim.reference == reference]
    named = [claim.arm for claim in tested if claim.verdict in verdicts]
    others = [claim.arm for claim in tested if claim.verdict not in verdicts]
    if len(named) < MANY_ARMS or len(others) > FEW_OTHERS:
        return listed(named)
    return f"all {len(tested)} routed arms" + (f" but {listed(others)}" if others else "")


def listed(parts: list[str], last: str = " and ") -> str:
    """Joins words as `a, b and c`."""
    return last.join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
