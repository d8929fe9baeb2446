"""Tests what DiT-MoE found about its experts (arXiv 2407.11633, section 4.4) on our runs, and gives each a verdict.

1. Experts prefer positions and times, and do not care about the class.
2. Shallow layers route by position, and deep ones evenly.
3. Routing is concentrated in the early steps of denoising, and becomes uniform after half of them.

The measures are those of `experiments.evaluation.inference.expert_information`, in units of log E: how much the expert
of an assignment says about a position, a time or a class, and how far the load is from even (its concentration). A
finding is *supported* when the 95% interval lies wholly on the side that it names, also after Benjamini and Hochberg's
correction for the number of findings that were tested together, *contradicted* when it lies wholly on the other side,
and *undecided* otherwise. The interval is over seeds where an arm has at least `MIN_SEEDS`; otherwise it is over the
images of its first run, by the jackknife over groups of images (Efron and Stein 1981), which also removes the bias that
few images give to an entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analysis.claims import MIN_SEEDS, with_corrected_verdicts
from analysis.maps import MappedRun, SceneMaps, scene_maps
from analysis.seed_intervals import CONFIDENCE, Interval, interval_of_mean
from experiments.records.routing_map_row import RoutingMapRow
from experiments.records.run_folder import RunDir

FindingVerdict = Literal["supported", "contradicted", "undecided", "not testable"]
SOURCE = "arXiv 2407.11633, section 4.4"
MOST_UNEVEN = 0.05
"""The concentration up to which a load counts as uniform: its entropy is at least 95% of that of an even load."""
MIN_GROUPS = 5
"""The fewest groups of images of which an interval is given."""
EVEN_WITHIN = 1e-5

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Holds a measure of all images, and without each group of them; `value` has the bias of few images removed."""

    value: float
    left_out_G: Values

    @classmethod
    def of(cls, recorded: Values) -> Estimate:
        """Returns the estimate of a recorded measure [1 + G]; its value is G v - (G - 1) mean(v without a group)."""
        whole, left_out_G = float(recorded[0]), recorded[1:]
        num_groups = len(left_out_G)
        return cls(num_groups * whole - (num_groups - 1) * float(left_out_G.mean()), left_out_G)

    @classmethod
    def without_bias(cls, recorded: Values) -> Estimate:
        """Returns the estimate of a recorded measure [1 + G] that has had its bias removed before."""
        return cls(float(recorded[0]), recorded[1:])

    def __sub__(self, other: Estimate) -> Estimate:
        """Returns the difference of two measures of the same images."""
        return Estimate(self.value - other.value, self.left_out_G - other.left_out_G)

    def interval(self) -> Interval:
        """Returns the 95% interval over images; it has no ends with fewer than `MIN_GROUPS` groups."""
        num_groups = len(self.left_out_G)
        if num_groups < MIN_GROUPS:
            return Interval(self.value, None, None, num_groups)
        error = (num_groups - 1) / math.sqrt(num_groups) * float(self.left_out_G.std(ddof=1))
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, num_groups - 1)) * error
        p_value = float(2 * stats.t.sf(abs(self.value) / error, num_groups - 1)) if error else float(self.value == 0)
        return Interval(self.value, self.value - half, self.value + half, num_groups, p_value=p_value)


@dataclass(frozen=True)
class FindingForm:
    """The wording of a finding, the measure that tests it, and on which side of `limit` it holds."""

    finding: str
    measure: str
    estimate: Callable[[SceneMaps], Estimate]
    """Computes the measure of one run. Raises `LookupError` with the reason where it cannot."""
    limit: float = 0.0
    holds_above: bool = True
    needs_free_load: bool = False
    """Says whether it cannot be tested where a router fills all experts alike at every time."""


WITHDRAWN: dict[str, FindingVerdict] = {"supported": "undecided", "contradicted": "undecided"}
"""Maps verdicts that do not hold after the correction for the number of findings to what they become."""


@dataclass(frozen=True)
class ExpertFinding:
    """A finding tested on one arm: our value, what its interval is over, the verdict and the reason for it."""

    form: FindingForm
    setup: str
    arm: str
    ours: Interval | None
    over: str
    verdict: FindingVerdict
    reason: str
    p_value: float | None = None
    p_benjamini_hochberg: float | None = None
    p_holm: float | None = None


def expert_findings(table: pd.DataFrame) -> list[ExpertFinding]:
    """Tests every finding on every routed arm whose routing was measured by class; none where no arm has it."""
    found = []
    for (setup, arm, router), runs in table.groupby(["setup", "arm", "routing.name"], sort=False):
        if router == "dense":
            continue
        read = {str(run): scene_maps(MappedRun(RunDir(Path(run)), str(router), str(arm))) for run in runs["run"]}
        maps = [each for each in read.values() if each is not None and _is_measured(each)]
        if maps:
            found += [_tested(form, str(setup), str(arm), maps) for form in FINDINGS]
    return with_corrected_verdicts(found, "findings", WITHDRAWN)


def findings_of_run(maps: SceneMaps) -> list[ExpertFinding]:
    """Tests every finding on one run, over its images. Where it was measured without what they need, there are none."""
    tested = [_tested(form, "", maps.run.label, [maps]) for form in FINDINGS] if _is_measured(maps) else []
    return with_corrected_verdicts(tested, "findings", WITHDRAWN)


def finding_rows(found: Sequence[ExpertFinding]) -> list[dict[str, object]]:
    """Returns a row per finding and arm for tables."""
    rows = []
    for each in found:
        at = each.ours or Interval(math.nan, None, None, 0)
        rows.append(
            {
                "finding": each.form.finding, "arm": each.arm, "setup": each.setup, "verdict": each.verdict,
                "reason": each.reason, "value": at.mean, "low": at.low, "high": at.high, "over": each.over,
                "p": each.p_value, "p_bh": each.p_benjamini_hochberg, "p_holm": each.p_holm,
                "measure": each.form.measure, "source": SOURCE,
            }
        )  # fmt: skip
    return rows


def _is_measured(maps: SceneMaps) -> bool:
    return any(row.position_information is not None for row in maps.rows)


def _tested(form: FindingForm, setup: str, arm: str, maps: Sequence[SceneMaps]) -> ExpertFinding:
    """Tests one finding on the runs of an arm."""
    try:
        estimates = [form.estimate(each) for each in maps]
    except LookupError as error:
        return ExpertFinding(form, setup, arm, None, "", "not testable", str(error.args[0]))
    if form.needs_free_load and all(_is_even(each) for each in maps):
        return ExpertFinding(form, setup, arm, None, "", "not testable", "the router fills all experts alike")
    if len(maps) >= MIN_SEEDS:
        over = f"{len(maps)} seeds"
        shifted = interval_of_mean([each.value - form.limit for each in estimates])
    else:
        over = f"{maps[0].rows[0].num_images:,} images of {maps[0].run.name}"
        first = estimates[0]
        shifted = replace(first, value=first.value - form.limit).interval()
    if shifted.low is None or shifted.high is None:
        value = replace(shifted, mean=shifted.mean + form.limit)
        return ExpertFinding(form, setup, arm, value, over, "not testable", "too few images for an interval")
    value = replace(
        shifted, mean=shifted.mean + form.limit, low=shifted.low + form.limit, high=shifted.high + form.limit
    )
    is_above, is_below = shifted.low > 0, shifted.high < 0
    where = "lies above" if is_above else "lies below" if is_below else "includes"
    verdict: FindingVerdict = "undecided"
    if is_above or is_below:
        verdict = "supported" if is_above == form.holds_above else "contradicted"
    return ExpertFinding(
        form, setup, arm, value, over, verdict, f"the interval {where} {form.limit:g}", shifted.p_value
    )


def _mean(recorded: Iterable[Sequence[float] | None], what: str) -> Values:
    """Returns the mean over rows of recorded measures [1 + G]. Raises `LookupError` where one is missing, or all."""
    values = list(recorded)
    if not values or any(each is None for each in values):
        raise LookupError(f"{what} was not measured")
    return np.mean(np.array(values, dtype=np.float64), axis=0)  # type: ignore[no-any-return]


def _whole(maps: SceneMaps, layers: Sequence[int]) -> list[RoutingMapRow]:
    return [row for layer in layers if (row := maps.over_all_times(layer)) is not None]


def _position(maps: SceneMaps, layers: Sequence[int] | None = None) -> Estimate:
    rows = _whole(maps, maps.layers if layers is None else layers)
    return Estimate.of(_mean((row.position_information for row in rows), "the information about positions"))


def _time(maps: SceneMaps) -> Estimate:
    rows = _whole(maps, maps.layers)
    return Estimate.of(_mean((row.time_information for row in rows), "the information about times"))


def _class(maps: SceneMaps) -> Estimate:
    """Returns the information about the attribute of the class of which the experts say most."""
    rows = _whole(maps, maps.layers)
    names = {name for row in rows for name in row.class_information or {}}
    by_name = [
        _mean(((row.class_information or {}).get(name) for row in rows), "the information about classes")
        for name in sorted(names)
    ]
    if not by_name:
        raise LookupError("the information about classes was not measured")
    return Estimate.without_bias(max(by_name, key=lambda values: float(values[0])))


def _by_depth(maps: SceneMaps) -> Estimate:
    """Returns the information about positions in the first third of the routed layers minus that in the last third."""
    third = len(maps.layers) // 3 or len(maps.layers) // 2
    if third == 0:
        raise LookupError("it has one routed layer")
    return _position(maps, maps.layers[:third]) - _position(maps, maps.layers[-third:])


def _concentration(maps: SceneMaps, is_early: bool) -> Estimate:
    """Returns 1 minus the entropy of the load, mean over the layers and the times of one half of denoising."""
    rows = [row for row in maps.rows if row.time is not None and (row.time > 0.5) == is_early]
    entropy = Estimate.of(_mean((row.load_entropy for row in rows), "the load by time"))
    return Estimate(1 - entropy.value, 1 - entropy.left_out_G)


def _is_even(maps: SceneMaps) -> bool:
    """Says whether every load is even in all layers and at all times, as a router with equal slots fills experts."""
    return all(abs(share * len(row.load) - 1) < EVEN_WITHIN for row in maps.rows for share in row.load)


FINDINGS: tuple[FindingForm, ...] = (
    FindingForm(
        "1. Experts say more about the position than about the class",
        "information about the position minus that about the class, of log E",
        lambda maps: _position(maps) - _class(maps),
    ),
    FindingForm(
        "1. Experts say more about the time than about the class",
        "information about the time minus that about the class, of log E",
        lambda maps: _time(maps) - _class(maps),
        needs_free_load=True,
    ),
    FindingForm(
        "2. Shallow layers route by position, and deep ones evenly",
        "information about the position, first third of the layers minus last third, of log E",
        _by_depth,
    ),
    FindingForm(
        "3. Routing is concentrated in the early steps of denoising",
        "1 - entropy of the load over log E, t above 0.5 minus t below",
        lambda maps: _concentration(maps, True) - _concentration(maps, False),
        needs_free_load=True,
    ),
    FindingForm(
        "3. Routing becomes uniform after half of the steps",
        f"1 - entropy of the load over log E, t below 0.5; uniform up to {MOST_UNEVEN:g}",
        lambda maps: _concentration(maps, False),
        limit=MOST_UNEVEN,
        holds_above=False,
        needs_free_load=True,
    ),
)
