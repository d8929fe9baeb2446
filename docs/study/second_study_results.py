"""What the tables of the second study say, for `second_study_page.py`.

Each question of second-study.md has a function here that returns its tests. A test is written so that the claim is that
a value is above 0. It is supported where the 95% interval over seeds lies above 0, also after Benjamini and Hochberg's
correction for all tests of the question, contradicted where the interval lies below 0 in the same way, and else
undecided.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import pandas as pd
from scipy import stats

from analysis.claims import corrections, holds, holm, values_by_seed
from analysis.laws.families import router_families
from analysis.laws.fit import FitError
from analysis.laws.forms import JOINT
from analysis.laws.identify import identified_fit
from analysis.laws.leave_size_out import leave_each_size_out
from analysis.laws.observations import Observations, observe
from analysis.load_records import MissingDataError
from analysis.object_experts import object_claims
from analysis.savings import growth, savings
from analysis.seed_intervals import Interval, difference, interval_of_mean
from experiments.config.routers import router_label

SHAPES = "shapes"
DATA = (SHAPES, "emoji")
NUM_SEEDS = 5
WIDTH = "model.width"
RATE = "optim.learning_rate"
DENSE = "Dense (same depth)"
AXIS_TITLES = {"images_seen": "images", "train_flops": "FLOPs", "train_seconds": "seconds"}
OBJECT_CLAIMS = {
    "more": "more experts on objects", "late times": "more so at late times", "late layers": "more so in late layers"
}  # fmt: skip
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
UNIDENTIFIED = "not identified"
"""The verdict on a law that is not identified by all runs, or not by those without one of the widths."""
MEAN_ERROR, LARGEST_ERROR = 0.03, 0.05
"""The largest errors of a law that is supported: the mean over widths left out, and that of the largest width."""
REVERSED_WIDTHS = 2
"""The number of widths at which a pair of arms must be reversed for the ranking to be contradicted."""


@dataclass(frozen=True)
class Test:
    """A test of a claim about an arm: whether `value` is above 0, in natural logarithms where it is a factor.

    `at` is the width, or the pair of widths. `is_limit` says that the value of a seed is only a limit of what it is.
    """

    data: str
    claim: str
    arm: str
    at: str
    value: Interval
    is_factor: bool = False
    is_limit: bool = False

    @property
    def ends(self) -> tuple[float | None, float | None, float | None]:
        """Returns the value and the ends of its interval, as factors where they are."""
        ends = (self.value.mean, self.value.low, self.value.high)
        mean, low, high = (None if each is None else math.exp(each) if self.is_factor else each for each in ends)
        return mean, low, high

    @property
    def text(self) -> str:
        """Returns the value with its interval, as a factor where it is one, and with a dagger where it is a limit."""
        mean, low, high = (
            "" if each is None else f"{each:.2f}" if self.is_factor else f"{each:+.4f}" for each in self.ends
        )
        return f"{mean}{'†' if self.is_limit else ''}" + (f" ({low} to {high})" if low else "")


def read_tables(folder: Path, kind: str) -> pd.DataFrame:
    """Reads the tables of one kind of all seeds, with the columns `data` and, in all but `runs`, those of the runs."""
    found = [
        pd.read_csv(path).assign(data=data) for data in DATA for path in sorted(folder.glob(f"{data}-[0-9]-{kind}.csv"))
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def read_runs(folder: Path) -> pd.DataFrame:
    """Reads the runs with the names of their arms, and the columns by which `analysis` compares and fits."""
    runs = read_tables(folder, "runs")
    if runs.empty:
        return runs
    is_dense = runs["routing.name"] == "dense"
    runs["arm"] = [arm_name(row) for row in runs.to_dict("records")]
    runs["arm_kind"] = is_dense.map({True: "dense_same_active", False: "sparse"})
    runs.loc[runs["arm"] == DENSE, "arm_kind"] = "dense_same_depth"
    runs["setup"] = [f"nano, {WIDTH}={row[WIDTH]}, {row['images_seen']:,} images" for row in runs.to_dict("records")]
    runs["train_flops"] = runs["train_flops_per_image"] * runs["images_seen"]
    return runs


def arm_name(row: Mapping[object, object]) -> str:
    """The name of an arm: the router, its experts and, where expert choice is run with both, its capacity factor."""
    router = str(row["routing.name"])
    if router == "dense":
        return DENSE if row["model.ffn_factor"] == 4 else "Dense (same activated)"
    f_c = f", f_c {row['routing.capacity_factor']:g}" if router == "expert_choice" else ""
    return f"{router_label(router)} ({row['routing.num_experts']:g}E{f_c})"


def longest(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the longest training of each data set."""
    return runs[runs["images_seen"] == runs.groupby("data")["images_seen"].transform("max")]


def saving_tests(runs: pd.DataFrame) -> Iterator[Test]:
    """Question (a): the saving of every arm at every width, on every axis."""
    for data, of_data in runs.groupby("data", sort=False):
        found = savings(of_data, WIDTH)
        for (arm, axis, width), rows in found.groupby(["arm", "axis", "size"], sort=False):
            value, is_limit = interval_of_mean(rows["log_saving"].to_list()), bool(rows["is_limit"].any())
            yield Test(str(data), AXIS_TITLES[str(axis)], str(arm), f"width {width}", value, True, is_limit)


def growth_tests(runs: pd.DataFrame) -> Iterator[Test]:
    """Question (a): how the saving changes with each doubling of the width."""
    for data, of_data in runs.groupby("data", sort=False):
        for (arm, axis), value in growth(savings(of_data, WIDTH)).items():
            yield Test(str(data), AXIS_TITLES[axis], arm, "each doubling of the width", value)


@dataclass(frozen=True)
class FamilyLaw:
    """The joint law of a family of routers: its parameters, its errors by the width left out, and the verdict.

    `reasons` say why it is not identified, or why it could not be fitted without one of the widths.
    """

    data: str
    family: str
    law: str
    errors: str
    verdict: str
    reasons: tuple[str, ...] = ()


def laws(runs: pd.DataFrame) -> Iterator[FamilyLaw]:
    """Question (b): the joint law of each family, or where its floor is not identified the same without one."""
    columns = {"N": "params_active_without_embeddings", "D": "images_seen", "experts": "routing.num_experts"}
    for data, of_data in runs.groupby("data", sort=False):
        for family, rows in router_families(of_data):
            yield _law(str(data), family, observe(rows, {**columns, WIDTH: WIDTH}, arm="arm"))


def _law(data: str, family: str, observations: Observations) -> FamilyLaw:
    reasons = []
    for form in (JOINT, JOINT.without_floor()):
        try:
            fitted = identified_fit(form, observations)
            errors = leave_each_size_out(form, observations, by=WIDTH)
        except (MissingDataError, FitError) as error:
            reasons.append(f"{form.name}: {error}")
            continue
        law = ", ".join(f"{name} {value:.3g}" for name, value in fitted.parameters.items())
        by_width = errors.by_size.set_index(WIDTH)["mean_absolute_error"]
        cells = "; ".join(f"{width:g}: {error:.1%}" for width, error in by_width.items())
        is_good = by_width.mean() <= MEAN_ERROR and by_width.iloc[-1] <= LARGEST_ERROR
        verdict = UNIDENTIFIED if errors.refused else SUPPORTED if is_good else CONTRADICTED
        return FamilyLaw(data, family, f"{form.name}: {law}", cells, verdict, (*reasons, *errors.refused))
    return FamilyLaw(data, family, "–", "–", UNIDENTIFIED, tuple(reasons))


def timestep_tests(runs: pd.DataFrame) -> Iterator[Test]:
    """Question (c): the change from mixed batches to batches of one timestep, minus that of dense."""
    changes = runs.assign(change=runs["val_loss_same_t"] - runs["val_loss"])
    for (data, width), rows in longest(changes).groupby(["data", WIDTH], sort=False):
        dense = values_by_seed(rows, DENSE, "change")
        for arm in rows.loc[rows["arm_kind"] == "sparse", "arm"].unique() if dense else ():
            value = difference(values_by_seed(rows, arm, "change"), dense)
            yield Test(str(data), "one timestep is harder", str(arm), f"width {width}", value)


def object_tests(objects: pd.DataFrame) -> Iterator[Test]:
    """Question (d): whether objects get more experts, late times more of them, and late layers."""
    if objects.empty:
        return
    for (arm, width), rows in longest(objects).groupby(["arm", WIDTH], sort=False):
        for claim, value in object_claims(rows).items():
            yield Test(SHAPES, OBJECT_CLAIMS[claim], str(arm), f"width {width}", value, is_factor=True)


@dataclass(frozen=True)
class Ranking:
    """How alike the arms are ordered on both data sets at one width, and how many separated pairs agree or do not."""

    width: int
    tau: float
    p_value: float
    num_alike: int
    num_reversed: int


def rankings(runs: pd.DataFrame) -> list[Ranking]:
    """Question (e): Kendall's tau of the arms' mean losses on both data sets, by width, and the pairs of arms."""
    ends = longest(runs)
    pairs, found = _pair_verdicts(ends), []
    for width, rows in ends.groupby(WIDTH):
        means = rows.pivot_table(index="arm", columns="data", values="val_loss").dropna()
        if set(means.columns) != set(DATA) or len(means) < 3:
            continue
        tau = stats.kendalltau(means[DATA[0]], means[DATA[1]], alternative="greater")
        signs = [[pairs.get((data, width, *pair), 0) for data in DATA] for pair in combinations(means.index, 2)]
        both, reversed_ = sum(a * b > 0 for a, b in signs), sum(a * b < 0 for a, b in signs)
        found.append(Ranking(int(width), float(tau.statistic), float(tau.pvalue), both, reversed_))
    return found


def ranking_verdict(found: Sequence[Ranking]) -> str:
    """Supported where every tau is above 0 after Holm's correction and no pair is reversed; see second-study.md."""
    num_reversed = sum(each.num_reversed > 0 for each in found)
    if num_reversed >= REVERSED_WIDTHS:
        return CONTRADICTED
    is_alike = found and all(map(holds, holm([each.p_value for each in found])))
    return SUPPORTED if is_alike and not num_reversed else UNDECIDED


def _pair_verdicts(ends: pd.DataFrame) -> dict[tuple[object, ...], int]:
    """The sign of each difference between two arms that is supported after correction for all of them, else 0."""
    found: dict[tuple[object, ...], Interval] = {}
    for (data, width), rows in ends.groupby(["data", WIDTH]):
        for one, other in combinations(sorted(rows["arm"].unique()), 2):
            values = [values_by_seed(rows, arm, "val_loss") for arm in (one, other)]
            found[data, width, one, other] = difference(*values)
    corrected = corrections([gap.p_value for gap in found.values()])
    return {
        pair: 0 if both is None or not holds(both[0]) else int(math.copysign(1, gap.mean))
        for (pair, gap), both in zip(found.items(), corrected, strict=True)
    }


def paper_tests(runs: pd.DataFrame) -> Iterator[Test]:
    """Question (f): the claims of the paper that are about losses, each as a value that is above 0 where it holds."""
    ends, choice = longest(runs), "Expert choice ({}E, f_c {})"
    for data, of_data in runs.groupby("data", sort=False):
        found = savings(of_data, WIDTH)
        halves = found[found["arm"].str.startswith("Expert choice") & (found["axis"] == "images_seen")]
        for (arm, width), rows in halves.groupby(["arm", "size"], sort=False):
            twice, is_limit = (
                interval_of_mean((rows["log_saving"] - math.log(2)).to_list()),
                bool(rows["is_limit"].any()),
            )
            yield Test(str(data), "1. Half of dense's images", str(arm), f"width {width}", twice, True, is_limit)
    claims: list[tuple[str, str, str]] = [
        ("2. Below token choice of four times the experts", choice.format(8, 2), "Token choice (32E)"),
        *(("3. Below token choice", choice.format(number, 2), f"Token choice ({number}E)") for number in (8, 32)),
        *(("4. More experts are better", choice.format(32, f_c), choice.format(8, f_c)) for f_c in (1, 2)),
        *(("5. f_c = 2 is better", choice.format(number, 2), choice.format(number, 1)) for number in (8, 32)),
    ]
    for (data, width), rows in ends.groupby(["data", WIDTH], sort=False):
        for claim, ours, theirs in claims:
            values = [values_by_seed(rows, arm, "val_loss") for arm in (theirs, ours)]
            if all(values):
                yield Test(str(data), claim, ours, f"width {width}", difference(*values))
    yield from _next_size_tests(ends)


def _next_size_tests(ends: pd.DataFrame) -> Iterator[Test]:
    """The claim about dense of the next width: below its loss, and in a third of its time for an image."""
    for data, of_data in ends.groupby("data", sort=False):
        widths = sorted(of_data[WIDTH].unique())
        for small, large in pairwise(widths):
            ours, theirs = of_data[of_data[WIDTH] == small], of_data[of_data[WIDTH] == large]
            for arm in [each for each in ours["arm"].unique() if each.startswith("Expert choice")]:
                pairs = [
                    (values_by_seed(theirs, DENSE, column), values_by_seed(ours, arm, column))
                    for column in ("val_loss", "inference_seconds_per_image")
                ]
                if all(values for pair in pairs for values in pair):
                    at = f"width {small} against {large}"
                    yield Test(str(data), "6. Below dense of the next width", str(arm), at, difference(*pairs[0]))
                    dense, seconds = pairs[1]
                    logs = [math.log(0.338 * dense[seed] / seconds[seed]) for seed in dense if seed in seconds]
                    value = interval_of_mean(logs)
                    yield Test(str(data), "6. In 33.8% of its time", str(arm), at, value, is_factor=True)


def verdicts(tests: Sequence[Test]) -> list[str]:
    """The verdict of each test after the correction for the number of all."""
    found = []
    for test, both in zip(tests, corrections([test.value.p_value for test in tests]), strict=True):
        is_held = both is not None and holds(both[0])
        above, below = test.value.is_above_zero and is_held, test.value.is_below_zero and is_held
        found.append(SUPPORTED if above else CONTRADICTED if below else UNDECIDED)
    return found
