"""What the tables of the second study say: the page second-study-results.md and its figures, for `second_study.py`.

Each question of second-study.md has a function here that returns its tests, and the page shows them as tables with one
verdict each. A test is written so that the claim is that a value is above 0. It is supported where the 95% interval
over seeds lies above 0, also after Benjamini and Hochberg's correction for all tests of the question, contradicted
where the interval lies below 0 in the same way, and else undecided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from analysis.claims import corrections, holds, values_by_seed
from analysis.laws.families import router_families
from analysis.laws.fit import FitError
from analysis.laws.forms import JOINT
from analysis.laws.identify import identified_fit
from analysis.laws.leave_size_out import leave_each_size_out
from analysis.laws.observations import observe
from analysis.load_records import MissingDataError
from analysis.object_experts import object_claims
from analysis.run_table import markdown, probability
from analysis.savings import growth, savings
from analysis.seed_intervals import Interval, difference, interval_of_mean
from analysis.style import TEXT_WIDTH_INCHES, Drawing, paper_style, router_color, write_drawing
from experiments.config.routers import ROUTERS, router_label

SHAPES = "shapes"
DATA = (SHAPES, "emoji")
NUM_SEEDS = 5
LINES = ("-", "--", "-.", ":")
WIDTH = "model.width"
DENSE = "Dense (same depth)"
AXIS_TITLES = {"images_seen": "images", "train_flops": "FLOPs", "train_seconds": "seconds"}
Tables = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Test:
    """A test of whether `value` is above 0, in logarithms where it is a factor; `p` is set where it has no interval."""

    data: str
    what: str
    at: str
    value: Interval
    is_factor: bool = False

    @property
    def text(self) -> str:
        """Returns the value with its interval, as a factor where it is one."""
        ends = [self.value.mean, self.value.low, self.value.high]
        shown = [None if each is None else math.exp(each) if self.is_factor else each for each in ends]
        form = "{:.2f}" if self.is_factor else "{:+.4f}"
        mean, low, high = ("?" if each is None else form.format(each) for each in shown)
        return f"{mean} ({low} to {high})"


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
            least = ", a limit" if rows["is_limit"].any() else ""
            what = f"{arm}: {AXIS_TITLES[str(axis)]}"
            value = interval_of_mean(rows["log_saving"].to_list())
            yield Test(str(data), what, f"width {width}{least}", value, is_factor=True)


def growth_tests(runs: pd.DataFrame) -> Iterator[Test]:
    """Question (a): how the saving changes with each doubling of the width."""
    for data, of_data in runs.groupby("data", sort=False):
        for (arm, axis), value in growth(savings(of_data, WIDTH)).items():
            yield Test(str(data), f"{arm}: {AXIS_TITLES[axis]}", "each doubling of the width", value)


def laws(runs: pd.DataFrame) -> Iterator[tuple[str, str, str, str]]:
    """Question (b): data, family, the joint law, and its mean error with each width left out in turn."""
    columns = {"N": "params_active", "D": "images_seen", "experts": "routing.num_experts", WIDTH: WIDTH}
    for data, of_data in runs.groupby("data", sort=False):
        for family, rows in router_families(of_data):
            observations = observe(rows, columns, arm="arm")
            try:
                fitted = identified_fit(JOINT, observations)
                law = ", ".join(f"{name} {value:.3g}" for name, value in fitted.parameters.items())
            except (MissingDataError, FitError) as error:
                yield str(data), family, f"not identified: {error}", ""
                continue
            try:
                errors = leave_each_size_out(JOINT, observations, by=WIDTH)
            except MissingDataError as error:
                yield str(data), family, law, str(error)
                continue
            cells = [f"{row[WIDTH]:g}: {row['mean_absolute_error']:.1%}" for row in errors.by_size.to_dict("records")]
            yield str(data), family, law, "; ".join([*cells, *errors.refused])


def timestep_tests(runs: pd.DataFrame) -> Iterator[Test]:
    """Question (c): the change from mixed batches to batches of one timestep, minus that of dense."""
    changes = runs.assign(change=runs["val_loss_same_t"] - runs["val_loss"])
    for (data, width), rows in longest(changes).groupby(["data", WIDTH], sort=False):
        dense = values_by_seed(rows, DENSE, "change")
        for arm in rows.loc[rows["arm_kind"] == "sparse", "arm"].unique() if dense else ():
            value = difference(values_by_seed(rows, arm, "change"), dense)
            yield Test(str(data), str(arm), f"width {width}", value)


def object_tests(objects: pd.DataFrame) -> Iterator[Test]:
    """Question (d): whether objects get more experts, late times more of them, and late layers."""
    if objects.empty:
        return
    for (arm, width), rows in longest(objects).groupby(["arm", WIDTH], sort=False):
        for claim, value in object_claims(rows).items():
            yield Test(SHAPES, f"{arm}: {claim}", f"width {width}", value, is_factor=True)


def rankings(runs: pd.DataFrame) -> Iterator[tuple[str, str, str, str]]:
    """Question (e): by width, Kendall's tau of the means on both data sets, its p-value, and reversed pairs."""
    ends = longest(runs)
    pairs = _pair_verdicts(ends)
    for width, rows in ends.groupby(WIDTH):
        means = rows.pivot_table(index="arm", columns="data", values="val_loss").dropna()
        if set(means.columns) != set(DATA) or len(means) < 3:
            continue
        found = stats.kendalltau(means[DATA[0]], means[DATA[1]], alternative="greater")
        known = [(one, other) for one, other in combinations(means.index, 2)]
        signs = [[pairs.get((data, width, *pair), 0) for data in DATA] for pair in known]
        both, reversed_ = sum(a * b > 0 for a, b in signs), sum(a * b < 0 for a, b in signs)
        yield f"{width}", f"{found.statistic:.2f}", probability(found.pvalue), f"{both} alike, {reversed_} reversed"


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
            twice = interval_of_mean((rows["log_saving"] - math.log(2)).to_list())
            yield Test(str(data), f"1. half of dense's images: {arm}", f"width {width}", twice, is_factor=True)
    claims: list[tuple[str, str, str]] = [
        ("2. level with token choice of four times the experts", choice.format(8, 2), "Token choice (32E)"),
        *(("3. below token choice", choice.format(number, 2), f"Token choice ({number}E)") for number in (8, 32)),
        *(("4. more experts are better", choice.format(32, f_c), choice.format(8, f_c)) for f_c in (1, 2)),
        *(("5. f_c = 2 is better", choice.format(number, 2), choice.format(number, 1)) for number in (8, 32)),
    ]
    for (data, width), rows in ends.groupby(["data", WIDTH], sort=False):
        for claim, ours, theirs in claims:
            values = [values_by_seed(rows, arm, "val_loss") for arm in (theirs, ours)]
            if all(values):
                yield Test(str(data), f"{claim}: {ours}", f"width {width}", difference(*values))
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
                    yield Test(str(data), f"6. level with the next dense: {arm}", at, difference(*pairs[0]))
                    dense, seconds = pairs[1]
                    logs = [math.log(0.338 * dense[seed] / seconds[seed]) for seed in dense if seed in seconds]
                    value = interval_of_mean(logs)
                    yield Test(str(data), f"6. in 33.8% of its time: {arm}", at, value, is_factor=True)


def verdicts(tests: Sequence[Test]) -> list[str]:
    """The verdict of each test after the correction for the number of all."""
    found = []
    for test, both in zip(tests, corrections([test.value.p_value for test in tests]), strict=True):
        is_held = both is not None and holds(both[0])
        above, below = test.value.is_above_zero and is_held, test.value.is_below_zero and is_held
        found.append("supported" if above else "contradicted" if below else "undecided")
    return found


def write_page(folder: Path) -> None:
    """Writes second-study-results.md, and the figures for which there are tables, beside second-study.md."""
    (folder / "second-study-results.md").write_text(page(folder / "second", folder))


def page(tables: Path, folder: Path | None = None) -> str:
    """The page of what the tables in `tables` say; with `folder` its figures are drawn there."""
    runs = read_runs(tables)
    lines = [*_opening(tables)]
    if runs.empty:
        return "\n".join(lines) + "\n"
    about = runs[["config_id", "data", "arm", "arm_kind", "images_seen", "seed", "routing.name", WIDTH]]
    objects, averages = (read_tables(tables, kind) for kind in ("objects", "averages"))
    objects = objects.merge(about, on=["config_id", "data"]) if len(objects) else objects
    lines += _section("(a) What an arm saves against dense, by size", saving_tests(runs), "Saving")
    lines += _section("(a) Whether the saving grows with size", growth_tests(runs), "Doublings")
    lines += ["## (b) The law of activated parameters, experts and images", ""]
    lines += [_table(("data", "family", "law", "error on each width left out"), laws(runs))]
    lines += _section("(c) Batches of one timestep", timestep_tests(runs), "Change beside dense's")
    lines += _section("(d) Experts on objects", object_tests(objects), "Ratio")
    lines += ["## (e) The ranking on emoji", ""]
    lines += [_table(("width", "Kendall's tau", "p", "separated pairs"), rankings(runs))]
    lines += _section("(f) The claims of the paper", paper_tests(runs), "Above 0, or 1, where it holds")
    lines += ["## Averages of the weights", ""]
    lines += [_table(("data", "arm", "raw", "width of the average", "loss"), best_averages(runs, averages))]
    if folder is not None:
        lines += list(_figures(runs, objects, folder))
    return "\n".join(lines) + "\n"


def best_averages(runs: pd.DataFrame, averages: pd.DataFrame) -> Iterator[tuple[str, str, str, str, str]]:
    """The mean loss of each arm over widths and seeds, of the raw weights and of the best average made afterwards."""
    if averages.empty:
        return
    ends = longest(runs)[["config_id", "data", "arm", "val_loss"]]
    for (data, arm), rows in averages.merge(ends, on=["config_id", "data"]).groupby(["data", "arm"], sort=False):
        means = rows.groupby("ema_width")["loss"].mean()
        raw = rows.drop_duplicates("config_id")["val_loss"].mean()
        yield str(data), str(arm), f"{raw:.4f}", f"{means.idxmin():g}", f"{means.min():.4f}"


def _opening(tables: Path) -> Iterator[str]:
    yield "# The second study: results"
    yield ""
    yield (
        "This page is made by `docs/study/second_study.py` from the tables in `docs/study/second`, by the rules of the "
        "[preregistration](second-study.md). Nothing on it is written by hand."
    )
    yield ""
    found = {data: [n for n in range(NUM_SEEDS) if (tables / f"{data}-{n}-runs.csv").exists()] for data in DATA}
    for data, seeds in found.items():
        lacking = [str(seed) for seed in range(NUM_SEEDS) if seed not in seeds]
        rest = f"; missing: {', '.join(lacking)}" if lacking else ""
        yield f"- {data}: {len(seeds)} of {NUM_SEEDS} seeds have run{rest}."
    lost = read_tables(tables, "diverged")
    yield f"- {len(lost)} runs diverged. They have no final loss and are in no test."
    if not any(found.values()):
        yield "\nNo part has run, so that there are no results."
    yield ""


def _section(title: str, tests: Iterator[Test], value: str) -> list[str]:
    """A heading, how many tests have which verdict, and a table of them."""
    found = list(tests)
    if not found:
        return [f"## {title}", "", "Nothing was measured that answers this.", ""]
    said, corrected = verdicts(found), corrections([test.value.p_value for test in found])
    counts = ", ".join(f"{said.count(each)} {each}" for each in ("supported", "contradicted", "undecided"))
    rows = [
        (
            test.data,
            test.what,
            test.at,
            test.text,
            probability(both and both[0]),
            probability(both and both[1]),
            verdict,
        )
        for test, both, verdict in zip(found, corrected, said, strict=True)
    ]
    header = ("data", "what", "at", f"{value} (95% interval)", "p (BH)", "p (Holm)", "verdict")
    return [f"## {title}", "", f"{len(found)} tests: {counts}.", "", _table(header, rows)]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [list(row) for row in rows]
    return markdown(header, cells) if cells else "Nothing was measured that answers this.\n"


def _figures(runs: pd.DataFrame, objects: pd.DataFrame, folder: Path) -> Iterator[str]:
    """Draws the savings, and where they were measured the experts on objects; yields the lines that show them."""
    yield "## Figures"
    yield ""
    found = pd.concat([savings(rows, WIDTH).assign(data=data) for data, rows in runs.groupby("data", sort=False)])
    if len(found):
        write_drawing(draw_savings(found[found["axis"] == "images_seen"]), folder, "second-study-savings")
        yield "![Images that an arm saves against dense, by width](second-study-savings.png)"
    if len(objects):
        write_drawing(draw_objects(longest(objects)), folder, "second-study-objects")
        yield "![Experts on objects over those on background, by time, layer and arm](second-study-objects.png)"


def draw_savings(found: pd.DataFrame) -> Drawing:
    """A panel for each data set: the mean saving in images of each arm by width, and its numbers."""
    means = found.groupby(["data", "arm", "size"], sort=False, as_index=False)["log_saving"].mean()
    means["saving"] = means["log_saving"].map(math.exp)
    with paper_style():
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, 3.2), layout="constrained")
        names = list(dict.fromkeys(means["data"]))
        for axes, data in zip(figure.subplots(1, len(names), squeeze=False, sharey=True)[0], names, strict=True):
            _draw_lines(axes, means[means["data"] == data], "size", "saving")
            axes.axhline(1, color="black", linewidth=0.6)
            axes.set(title=data, xlabel="Width", ylabel="Images of dense over those of the arm")
        figure.legend(*_keys(figure.axes), loc="outside lower center", ncols=3, fontsize=6)
    return Drawing(figure, means)


def draw_objects(objects: pd.DataFrame) -> Drawing:
    """A panel for each routed layer at the largest width: the ratio of experts on objects and background by time."""
    largest = objects[objects[WIDTH] == objects[WIDTH].max()]
    means = largest.groupby(["layer", "arm", "time"], sort=False, as_index=False)[
        ["object_experts", "background_experts"]
    ].mean()
    means["ratio"] = means["object_experts"] / means["background_experts"]
    with paper_style():
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, 3.2), layout="constrained")
        layers = sorted(means["layer"].unique())
        for axes, layer in zip(figure.subplots(1, len(layers), squeeze=False, sharey=True)[0], layers, strict=True):
            _draw_lines(axes, means[means["layer"] == layer], "time", "ratio")
            axes.axhline(1, color="black", linewidth=0.6)
            axes.set(title=f"layer {layer}", xlabel="t (1: noise)", ylabel="Experts on objects over background")
            axes.invert_xaxis()
        figure.legend(*_keys(figure.axes), loc="outside lower center", ncols=3, fontsize=6)
    return Drawing(figure, means)


def _draw_lines(axes: Axes, means: pd.DataFrame, x: str, y: str) -> None:
    """Draws a line for each arm; arms of one router share a color, and differ in their dashes."""
    num_by_color: dict[str, int] = {}
    for arm, rows in means.groupby("arm", sort=False):
        color = next((router_color(name) for name in ROUTERS if str(arm).startswith(router_label(name))), "black")
        dashes = LINES[num_by_color.setdefault(color, 0) % len(LINES)]
        num_by_color[color] += 1
        ordered = rows.sort_values(x)
        axes.plot(ordered[x], ordered[y], color=color, linestyle=dashes, marker=".", markersize=3, label=str(arm))


def _keys(panels: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    """The lines of all panels, each arm once."""
    labelled = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(labelled.values()), list(labelled)
