"""Makes the page second-study-results.md and its figures from the tables of the second study, for `second_study.py`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from second_study_results import (
    DATA,
    NUM_SEEDS,
    WIDTH,
    Test,
    growth_tests,
    laws,
    longest,
    object_tests,
    paper_tests,
    ranking_verdict,
    rankings,
    read_runs,
    read_tables,
    saving_tests,
    timestep_tests,
    verdicts,
)

from analysis.claims import corrections
from analysis.router_looks import NAMED_COLORS, SPARE_COLORS
from analysis.run_table import markdown, probability
from analysis.savings import savings
from analysis.style import TEXT_WIDTH_INCHES, Drawing, paper_style, router_color, write_drawing
from experiments.config.routers import router_label

NOTHING = "Nothing was measured that answers this."
LINES = ("-", "--", "-.", ":")
STUDY_ROUTERS = ("dense", "expert_choice", "token_choice", "switch", "expert_race", "moma", "loss_free")
WORDS = ("data", "arm", "what", "at", "family", "law", "verdict", "rate at an edge")


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
    lines += [_table(("data", "family", "law", "error on each width left out", "verdict"), laws(runs))]
    lines += _section("(c) Batches of one timestep", timestep_tests(runs), "Change beside dense's")
    lines += ["### By tenths of t", "", *_tenths(runs, read_tables(tables, "times"))]
    lines += _section("(d) Experts on objects", object_tests(objects), "Ratio")
    lines += ["## (e) The ranking on emoji", "", *_ranking_lines(runs)]
    lines += _section("(f) The claims of the paper", paper_tests(runs), "Above 0, or 1, where it holds")
    lines += ["## Averages of the weights", "", "Means over widths and seeds of the longest training.", ""]
    lines += [_table(("data", "arm", "raw", "width of the average", "loss"), best_averages(runs, averages))]
    if folder is not None:
        lines += list(_figures(runs, objects, folder))
    return "\n".join(lines) + "\n"


def _ranking_lines(runs: pd.DataFrame) -> Iterator[str]:
    found = rankings(runs)
    if found:
        yield f"That the ranking holds is {ranking_verdict(found)}."
        yield ""
    header = ("width", "Kendall's tau", "p", "separated pairs alike", "reversed")
    rows = [
        (str(each.width), f"{each.tau:.2f}", probability(each.p_value), str(each.num_alike), str(each.num_reversed))
        for each in found
    ]
    yield _table(header, rows)


def _tenths(runs: pd.DataFrame, times: pd.DataFrame) -> Iterator[str]:
    """The change from mixed batches to those of one timestep beside dense's, by tenth of t, over widths and seeds."""
    if times.empty:
        yield _table((), ())
        return
    yield "The change in loss minus that of dense, over widths and seeds. It is described and not tested."
    yield ""
    ends = longest(runs)[["config_id", "data", "arm", "arm_kind"]]
    wide = times.merge(ends, on=["config_id", "data"]).pivot_table(
        index=["data", "arm", "arm_kind"], columns=["condition", "tenth"], values="loss"
    )
    if set(wide.columns.get_level_values("condition")) != {"mixed", "one timestep"}:
        yield _table((), ())
        return
    change = (wide["one timestep"] - wide["mixed"]).dropna(axis="columns", how="all").reset_index()
    tenths = [name for name in change.columns if name not in ("data", "arm", "arm_kind")]
    rows = []
    for data, of_data in change.groupby("data", sort=False):
        dense = of_data[of_data["arm_kind"] == "dense_same_depth"]
        for row in of_data[of_data["arm_kind"] == "sparse"].to_dict("records") if len(dense) else ():
            rows.append([str(data), row["arm"], *(f"{row[t] - dense[t].iloc[0]:+.4f}" for t in tenths)])
    yield _table(("data", "arm", *(f"t {int(t) / 10:.1f}" for t in tenths)), rows)


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
    yield ""
    if not any(found.values()):
        yield "No part has run, so that there are no results."
    elif any(len(seeds) < NUM_SEEDS for seeds in found.values()):
        yield "Seeds are missing, so that every verdict on this page is provisional."
    yield ""


def _section(title: str, tests: Iterator[Test], value: str) -> list[str]:
    """A heading, how many tests have which verdict, and a table of them."""
    found = list(tests)
    if not found:
        return [f"## {title}", "", NOTHING, ""]
    said, corrected = verdicts(found), corrections([test.value.p_value for test in found])
    counts = ", ".join(f"{said.count(each)} {each}" for each in ("supported", "contradicted", "undecided"))
    rows = [
        (test.data, test.what, test.at, test.text, *(probability(both and both[i]) for i in (0, 1)), verdict)
        for test, both, verdict in zip(found, corrected, said, strict=True)
    ]
    header = ("data", "what", "at", f"{value} (95% interval)", "p (BH)", "p (Holm)", "verdict")
    return [f"## {title}", "", f"{len(found)} tests: {counts}.", "", _table(header, rows)]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [list(row) for row in rows]
    return markdown(header, cells, [name in WORDS for name in header]) if cells else f"{NOTHING}\n"


def _figures(runs: pd.DataFrame, objects: pd.DataFrame, folder: Path) -> Iterator[str]:
    """Draws the savings, and where they were measured the experts on objects; yields the lines that show them."""
    yield "## Figures"
    yield ""
    found = pd.concat([savings(rows, WIDTH).assign(data=data) for data, rows in runs.groupby("data", sort=False)])
    if len(found):
        _draw(draw_savings(found[found["axis"] == "images_seen"]), folder, "second-study-savings")
        yield "![Images that an arm saves against dense, by width](second-study-savings.png)"
    if len(objects):
        _draw(draw_objects(longest(objects)), folder, "second-study-objects")
        yield "![Experts on objects over those on background, by time, layer and arm](second-study-objects.png)"


def _draw(drawing: Drawing, folder: Path, name: str) -> None:
    """Writes a figure as PNG, with its numbers."""
    for old in folder.glob(f"{name}.*"):  # a checkout has no record that this script made them
        old.unlink()
    write_drawing(drawing, folder, name)
    (folder / f"{name}.svg").unlink()


def draw_savings(found: pd.DataFrame) -> Drawing:
    """A panel for each data set: the mean saving in images of each arm by width, and its numbers."""
    means = found.groupby(["data", "arm", "size"], sort=False, as_index=False)["log_saving"].mean()
    means["saving"] = means["log_saving"].map(math.exp)
    with paper_style():
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, 3.2), layout="constrained")
        names, looks = list(dict.fromkeys(means["data"])), arm_looks(means["arm"])
        for axes, data in zip(figure.subplots(1, len(names), squeeze=False, sharey=True)[0], names, strict=True):
            _draw_lines(axes, means[means["data"] == data], "size", "saving", looks)
            axes.axhline(1, color="black", linewidth=0.6)
            axes.set(title=data, xlabel="Width", ylabel="Saving in images", xticks=sorted(means["size"].unique()))
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
        layers, looks = sorted(means["layer"].unique()), arm_looks(means["arm"])
        for axes, layer in zip(figure.subplots(1, len(layers), squeeze=False, sharey=True)[0], layers, strict=True):
            _draw_lines(axes, means[means["layer"] == layer], "time", "ratio", looks)
            axes.axhline(1, color="black", linewidth=0.6)
            axes.set(title=f"layer {layer}", xlabel="t (1: noise)", ylabel="Experts, objects / background")
            axes.invert_xaxis()
            axes.set_yscale("log")  # some routers give objects a tenth more, and others a hundred times as many
            axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
        figure.legend(*_keys(figure.axes), loc="outside lower center", ncols=3, fontsize=6)
    return Drawing(figure, means)


def _draw_lines(axes: Axes, means: pd.DataFrame, x: str, y: str, looks: Mapping[str, tuple[str, str]]) -> None:
    """Draws a line for each arm, in its color and dashes of `looks`."""
    for arm, rows in means.groupby("arm", sort=False):
        (color, dashes), ordered = looks[str(arm)], rows.sort_values(x)
        axes.plot(ordered[x], ordered[y], color=color, linestyle=dashes, marker=".", markersize=3, label=str(arm))


def arm_looks(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A color and dashes for each arm of a figure, the same in all panels; arms of one router share its color."""
    colors, num_by_color = study_colors(), dict.fromkeys(study_colors().values(), 0)
    looks = {}
    for arm in sorted(set(arms)):
        color = next(color for router, color in colors.items() if arm.startswith(router_label(router)))
        looks[arm] = (color, LINES[num_by_color[color] % len(LINES)])
        num_by_color[color] += 1
    return looks


def study_colors() -> dict[str, str]:
    """A color for each router of the study: its usual one, or a free one where a router before it has the same.

    Usual colors repeat between families of routers, which other figures show in panels of their own.
    """
    colors: dict[str, str] = {}
    for router in STUDY_ROUTERS:
        free = [color for color in (*SPARE_COLORS, *NAMED_COLORS) if color not in colors.values()]
        usual = router_color(router)
        colors[router] = free[0] if usual in colors.values() else usual
    return colors


def _keys(panels: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    """The lines of all panels, each arm once."""
    labelled = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(labelled.values()), list(labelled)
