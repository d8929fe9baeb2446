"""Tests the claims of EC-DIT on our runs, in the form in which they were printed, and gives each a verdict.

1. Half the steps: expert choice reaches the final loss of dense of the same depth after at most half of its images.
2. Half the experts: expert choice with 8 experts is level with token choice with 16, in loss and in the judge's score.
3. A third of the time: expert choice is level with dense of the next larger size in 33.8% of its time.

A claim is *supported* when the 95% interval over seeds lies wholly on the side that it names, also after Benjamini and
Hochberg's correction for the number of claims that were tested together, and *not supported* otherwise; "level" means
not worse. It is *not testable* where runs that it needs are missing or have a single seed. Verdicts hold at the scale
of our runs, which is not the paper's: a claim not supported here is not refuted there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import pandas as pd

from analysis.baselines import baselines, measured_from, narrowed
from analysis.claims import values_by_seed, with_corrected_verdicts
from analysis.curves import reach, validation_curves
from analysis.load_records import MissingDataError, Records
from analysis.multiplier import geometric_mean
from analysis.paper_values import SHARE_OF_STEPS, SHARE_OF_TIME, SOURCES, paper_score
from analysis.run_table import INFERENCE
from analysis.scores import SCORE, measured_panels
from analysis.seed_intervals import Interval, difference, interval_of_mean

PaperVerdict = Literal["supported", "not supported", "not testable at this scale"]
NOT_TESTABLE: PaperVerdict = "not testable at this scale"
FEW_EXPERTS, MANY_EXPERTS = 8, 16
ONE_SEED = "one seed, so no spread can be given"
NO_SEED = "no seed in common"


@dataclass(frozen=True)
class ClaimForm:
    """The wording of a claim, the quantity that tests it, the printed value and its source."""

    claim: str
    quantity: str
    printed: str
    source: str


def _printed_score_gaps() -> str:
    """Writes the printed score of expert choice with 8 experts minus token choice with 16, in points, by size."""
    parts = []
    for size in ("XL", "XXL"):
        ours = paper_score("expert_choice", size, FEW_EXPERTS)
        theirs = paper_score("token_choice", size, MANY_EXPERTS)
        assert ours.dsg is not None
        assert theirs.dsg is not None
        parts.append(f"{size}: GenEval {ours.geneval - theirs.geneval:+z.2f}, DSG {ours.dsg - theirs.dsg:+z.2f}")
    return "; ".join(parts)


HALF_STEPS = ClaimForm(
    "Expert choice reaches dense's final loss after half of dense's steps",
    "share of dense's images", f"{SHARE_OF_STEPS:g}", SOURCES["share_of_steps"],
)  # fmt: skip
HALF_EXPERTS = ClaimForm(
    "Expert choice with 8 experts is level with token choice with 16",
    "difference in validation loss", "level", SOURCES["expert_counts"],
)  # fmt: skip
HALF_EXPERTS_SCORE = ClaimForm(
    HALF_EXPERTS.claim, f"difference in {SCORE.name} (points)", _printed_score_gaps(), SOURCES["scores"]
)
THIRD_TIME = ClaimForm(
    "Expert choice is level with dense of the next larger size in 33.8% of its inference time",
    "share of dense's time per image", f"{SHARE_OF_TIME:g}", SOURCES["share_of_time"],
)  # fmt: skip
NEEDS = {
    HALF_STEPS: "dense of the same depth and expert choice in one setup",
    HALF_EXPERTS: f"expert choice with {FEW_EXPERTS} and token choice with {MANY_EXPERTS} experts in one setup",
    THIRD_TIME: "measured inference times of expert choice and of dense of a larger preset",
}


@dataclass(frozen=True)
class PaperClaim:
    """A claim at one setup (empty where no setup has its runs): our value, the verdict and the reason for it."""

    form: ClaimForm
    setup: str
    ours: Interval | None
    verdict: PaperVerdict
    reason: str
    p_value: float | None = None
    """Gives the two-sided p-value of the hypothesis that the true value is exactly at the limit of the claim."""
    p_benjamini_hochberg: float | None = None
    """Gives the p-value after correction for the number of tested claims, or None before it."""
    p_holm: float | None = None


class _Pair(NamedTuple):
    """Two arms, each with the runs of its setup, and a name for the pair."""

    name: str
    ours: pd.DataFrame
    our_arm: str
    theirs: pd.DataFrame
    their_arm: str

    def by_seed(self, column: str) -> tuple[dict[int, float], dict[int, float]]:
        """Returns the values of `column` for both arms, by seed."""
        return values_by_seed(self.ours, self.our_arm, column), values_by_seed(self.theirs, self.their_arm, column)


def paper_claims(records: Records, table: pd.DataFrame) -> list[PaperClaim]:
    """Tests every claim at every setup that has its runs. Where none has, the claim appears once as not testable."""
    found = {
        HALF_STEPS: list(_half_steps(records, table)),
        HALF_EXPERTS: list(_half_experts(records, table)),
        THIRD_TIME: list(_third_time(table)),
    }
    for form, claims in found.items():
        if not claims:
            claims.append(PaperClaim(form, "", None, NOT_TESTABLE, f"it needs {NEEDS[form]}"))
    return corrected([each for claims in found.values() for each in claims])


def corrected(found: Sequence[PaperClaim]) -> list[PaperClaim]:
    """Returns the claims with p-values corrected for the number of tested claims, and with the verdicts that follow."""
    return with_corrected_verdicts(found, "claims", {"supported": "not supported"})


def paper_claim_rows(found: list[PaperClaim]) -> pd.DataFrame:
    """Returns a row per claim: form, setup, value and interval, seeds, p before and after correction, and verdict."""
    rows = []
    for each in found:
        at = each.ours or Interval(math.nan, None, None, 0)
        numbers = {"value": at.mean, "low": at.low, "high": at.high, "num_seeds": at.num_values}
        numbers |= {"p": each.p_value, "p_bh": each.p_benjamini_hochberg, "p_holm": each.p_holm}
        rows.append(
            {**asdict(each.form), "setup": each.setup, **numbers, "verdict": each.verdict, "reason": each.reason}
        )
    return pd.DataFrame(rows).astype(dict.fromkeys(("value", "low", "high", "p", "p_bh", "p_holm"), "float64"))


def _half_steps(records: Records, table: pd.DataFrame) -> Iterator[PaperClaim]:
    curves = validation_curves(records, table)
    by_run = {str(run): curve for run, curve in curves.groupby("run")}
    for setup, runs in narrowed(table, "run").groupby("setup", sort=False):
        baseline_of = baselines(runs)
        for arm in [arm for arm in _arms(runs, "expert_choice") if arm in baseline_of]:
            dense = runs[runs["arm"] == baseline_of[arm]]
            shares = _shares_of_images(by_run, dense, runs[runs["arm"] == arm])
            never = [str(seed) for seed, share in shares.items() if share is None]
            if never:
                yield _never(f"{setup}: {arm}", never, len(shares))
            else:
                logs = [math.log(share) for share in shares.values() if share is not None]
                yield _at_most(HALF_STEPS, f"{setup}: {arm}", logs, SHARE_OF_STEPS)


def _never(name: str, seeds: list[str], num_seeds: int) -> PaperClaim:
    """Judges the claim of half the steps where some seeds never reach dense's loss. One seed alone proves nothing."""
    reason = f"it never reaches dense's final loss in {len(seeds)} of {num_seeds} seeds ({', '.join(seeds)})"
    if num_seeds == 1:
        return PaperClaim(HALF_STEPS, name, None, NOT_TESTABLE, f"{ONE_SEED}; it never reaches dense's final loss")
    return PaperClaim(HALF_STEPS, name, None, "not supported", reason)


def _shares_of_images(
    curves: Mapping[str, pd.DataFrame], dense: pd.DataFrame, ours: pd.DataFrame
) -> dict[int, float | None]:
    """Maps each shared seed to the images at which our run reaches dense's final loss, as a share of dense's images."""
    dense_runs = dict(zip(dense["seed"], dense["run"], strict=True))
    shares: dict[int, float | None] = {}
    for seed, run in zip(ours["seed"], ours["run"], strict=True):
        if seed in dense_runs:
            end, curve = curves[dense_runs[seed]].iloc[-1], curves[run]
            at = reach(curve["images_seen"].to_list(), curve["loss"].to_list(), float(end["loss"]))
            shares[int(seed)] = None if at is None else at / float(end["images_seen"])
    return shares


def _half_experts(records: Records, table: pd.DataFrame) -> Iterator[PaperClaim]:
    """Tests claim 2 in validation loss, and in the exact judge's score, which is the form of the paper's table."""
    scores, unscored = _scores(records, table)
    scored = narrowed(table).assign(score=table["run"].map(scores).astype(float))
    for setup, runs in scored.groupby("setup", sort=False):
        for ours in _arms(runs, "expert_choice", FEW_EXPERTS):
            for theirs in _arms(runs, "token_choice", MANY_EXPERTS):
                pair = _Pair(f"{setup}: {ours} against {theirs}", runs, ours, runs, theirs)
                yield _level(HALF_EXPERTS, pair, "val_loss", "")
                yield _level(HALF_EXPERTS_SCORE, pair, "score", unscored)


def _scores(records: Records, table: pd.DataFrame) -> tuple[dict[str, float], str]:
    """Maps runs to the judge's score in percent. The second value says why there is none, where there is none."""
    try:
        rows = measured_panels(records, table, (SCORE,))[0].rows
    except MissingDataError as error:
        return {}, error.message
    return dict(zip(rows["run"], rows["value"], strict=True)), ""


def _level(form: ClaimForm, pair: _Pair, column: str, missing: str) -> PaperClaim:
    ours, theirs = pair.by_seed(column)
    if not ours or not theirs:
        return PaperClaim(form, pair.name, None, NOT_TESTABLE, missing or "not measured of both")
    gap = difference(ours, theirs)
    if gap.low is None or gap.high is None:
        return PaperClaim(form, pair.name, gap, NOT_TESTABLE, ONE_SEED)
    lower_is_better = form is HALF_EXPERTS
    is_level = gap.high <= 0 if lower_is_better else gap.low >= 0
    is_worse = gap.is_above_zero if lower_is_better else gap.is_below_zero
    what = "excludes that it is worse" if is_level else "says it is worse" if is_worse else "includes better and worse"
    reason = f"the interval {what}"
    return PaperClaim(form, pair.name, gap, _verdict(is_level), reason, _p_value(gap))


def _third_time(table: pd.DataFrame) -> Iterator[PaperClaim]:
    """Tests claim 3: expert choice of every setup against dense of the next larger preset, all else equal.

    Where the larger preset has several dense arms, the one of our depth is the reference (`baselines.py`), and the only
    one whatever its depth, as larger presets are deeper.
    """
    timed = narrowed(table, "model.name", "params_active", INFERENCE)[table[INFERENCE].notna()]
    studies = [setup.removeprefix(preset) for setup, preset in zip(timed["setup"], timed["model.name"], strict=True)]
    for _, runs in timed.groupby(pd.Series(studies, index=timed.index, dtype=object), sort=False):
        dense = runs[runs["arm_kind"] == "dense_same_depth"]
        setups = list(dense.sort_values("params_active", kind="stable")["setup"].unique())
        for smaller, larger in pairwise(setups):
            ours, theirs = runs[runs["setup"] == smaller], dense[dense["setup"] == larger]
            for arm in _arms(ours, "expert_choice"):
                run = ours[ours["arm"] == arm].iloc[0]
                for reference in measured_from(theirs.drop_duplicates("arm"), run, takes_only=True)["arm"].iloc[:1]:
                    name = f"{smaller}: {arm} against {larger}: Dense"
                    yield _share_of_time(_Pair(name, ours, arm, theirs, str(reference)))


def _share_of_time(pair: _Pair) -> PaperClaim:
    ours, theirs = pair.by_seed(INFERENCE)
    logs = [math.log(ours[seed] / theirs[seed]) for seed in ours if seed in theirs]
    claim = _at_most(THIRD_TIME, pair.name, logs, SHARE_OF_TIME)
    gap = difference(*pair.by_seed("val_loss"))
    if claim.verdict == NOT_TESTABLE or gap.high is None:
        return claim
    is_level = gap.high <= 0
    reason = f"{claim.reason}; its loss is {gap.mean:+z.4f} from the larger model's, {'' if is_level else 'not '}level"
    verdict = _verdict(claim.verdict == "supported" and is_level)
    p_values = [p_value for p_value in (claim.p_value, _p_value(gap)) if p_value is not None]
    return PaperClaim(THIRD_TIME, pair.name, claim.ours, verdict, reason, max(p_values))  # as both must hold


def _at_most(form: ClaimForm, name: str, logs: list[float], most: float) -> PaperClaim:
    """Tests a share, given by its logarithms over seeds, against the limit that it must not exceed."""
    if not logs:
        return PaperClaim(form, name, None, NOT_TESTABLE, NO_SEED)
    share = geometric_mean(logs)
    if share.low is None or share.high is None:
        return PaperClaim(form, name, share, NOT_TESTABLE, ONE_SEED)
    is_below = share.high <= most
    where = "lies below" if is_below else "lies above" if share.low > most else "includes"
    p_value = _p_value(interval_of_mean([log - math.log(most) for log in logs]))
    return PaperClaim(form, name, share, _verdict(is_below), f"the interval {where} {most:g}", p_value)


def _p_value(at: Interval) -> float | None:
    """Returns the p-value of a mean of 0. It is 0 where all seeds agree exactly, which leaves nothing to chance."""
    return 0.0 if at.low is not None and at.low == at.high else at.p_value


def _verdict(is_so: bool) -> PaperVerdict:
    return "supported" if is_so else "not supported"


def _arms(runs: pd.DataFrame, router: str, num_experts: int | None = None) -> list[str]:
    ours = runs[runs["routing.name"] == router]
    if num_experts is not None:
        ours = ours[ours["routing.num_experts"] == num_experts]
    return [str(arm) for arm in ours["arm"].unique()]
