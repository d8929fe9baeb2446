"""Makes the page second-study-results.md and its figures from the tables of the second study, for `second_study.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
from second_study_figures import draw_answer, draw_objects, draw_savings, write_figure
from second_study_results import (
    DATA,
    NUM_SEEDS,
    RATE,
    WIDTH,
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
)
from second_study_tables import Question, arm_order, law_lines, question_lines, rows_of_tests, text_table

from analysis.run_table import probability
from analysis.savings import savings


def write_page(folder: Path) -> None:
    """Writes second-study-results.md, and beside it every test as a table and the figures for which there are data."""
    (folder / "second-study-results.md").write_text(page(folder / "second", folder))


def page(tables: Path, folder: Path) -> str:
    """The page of what the tables in `tables` say; its figures and the table of tests are written into `folder`."""
    runs = read_runs(tables)
    lines = [*_opening(tables)]
    if runs.empty:
        return "\n".join(lines) + "\n"
    lines += [*rate_lines(runs, tables)]
    about = runs[["config_id", "data", "arm", "arm_kind", "images_seen", "seed", "routing.name", WIDTH]]
    objects, averages = (read_tables(tables, kind) for kind in ("objects", "averages"))
    objects = objects.merge(about, on=["config_id", "data"]) if len(objects) else objects
    questions = saving, growth, timestep, on_objects, paper = [*_questions(runs, objects)]
    lines += [*_answer_figure(saving, folder), *question_lines(saving), *_savings_figure(runs, folder)]
    lines += question_lines(growth)
    lines += ["## (b) The law of activated parameters, experts and images", "", *law_lines(laws(runs))]
    lines += [*question_lines(timestep), "### By tenths of t", "", *_tenths(runs, read_tables(tables, "times"))]
    lines += [*question_lines(on_objects), *_objects_figure(objects, folder)]
    lines += ["## (e) The ranking on emoji", "", *_ranking_lines(runs)]
    lines += question_lines(paper)
    lines += ["## Averages of the weights", ""]
    lines += [
        "Losses of the longest training, means over widths and seeds: of the raw weights, and of the best average.",
        "",
    ]
    lines += [text_table(("data", "arm", "raw", "width of the average", "average"), best_averages(runs, averages))]
    rows = [row for question in questions for row in rows_of_tests(question)]
    pd.DataFrame(rows).to_csv(folder / "second-study-tests.csv", index=False, float_format="%.7g")
    return "\n".join(lines).rstrip("\n") + "\n"


def _questions(runs: pd.DataFrame, objects: pd.DataFrame) -> Iterator[Question]:
    """The questions that are answered by tests, in the order of the page."""
    for title, value, tests in (
        ("(a) What an arm saves against dense, by size",
         "dense's need over that of the arm for the same loss", saving_tests(runs)),
        ("(a) Whether the saving grows with size",
         "the number of doublings by which the saving grows with each doubling of the width", growth_tests(runs)),
        ("(c) Batches of one timestep",
         "the change of the loss from mixed batches to those of one timestep, minus that of dense, and above 0 where "
         "sampling is harder for the arm than training",
         timestep_tests(runs)),
        ("(d) Experts on objects",
         "a ratio of experts per token, or of two such ratios, and above 1 where the claim holds. Token choice, switch "
         "and loss-free bias are controls, since they give all tokens equally many experts but for drops",
         object_tests(objects)),
        ("(f) The claims of the paper",
         "a factor that is above 1 or a difference of losses that is above 0 where the claim holds",
         paper_tests(runs)),
    ):  # fmt: skip
        yield Question(title, value, tuple(tests))


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
    yield text_table(header, rows)


def _tenths(runs: pd.DataFrame, times: pd.DataFrame) -> Iterator[str]:
    """The change from mixed batches to those of one timestep beside dense's, by tenth of t, over widths and seeds."""
    if times.empty:
        yield text_table((), ())
        return
    yield (
        "The change in loss minus that of dense, over widths and seeds, in the tenths of t that batches of one "
        "timestep had; t 0.1 are times from 0.1 to 0.2. It is described and not tested."
    )
    yield ""
    ends = longest(runs)[["config_id", "data", "arm", "arm_kind"]]
    wide = times.merge(ends, on=["config_id", "data"]).pivot_table(
        index=["data", "arm", "arm_kind"], columns=["condition", "tenth"], values="loss"
    )
    if set(wide.columns.get_level_values("condition")) != {"mixed", "one timestep"}:
        yield text_table((), ())
        return
    change = (wide["one timestep"] - wide["mixed"]).dropna(axis="columns", how="all").reset_index()
    tenths = [name for name in change.columns if name not in ("data", "arm", "arm_kind")]
    rows = []
    for data in DATA:
        of_data = change[change["data"] == data]
        dense = of_data[of_data["arm_kind"] == "dense_same_depth"]
        sparse = of_data[of_data["arm_kind"] == "sparse"].to_dict("records") if len(dense) else []
        for row in sorted(sparse, key=lambda row: arm_order(row["arm"])):
            rows.append([data, row["arm"], *(f"{row[t] - dense[t].iloc[0]:+.4f}" for t in tenths)])
    yield text_table(("data", "arm", *(f"t {int(t) / 10:.1f}" for t in tenths)), rows)


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
        "[preregistration](second-study.md), with the "
        "[changes and deviations](second-study.md#changes-after-registration) that are listed there. Nothing on it is "
        "written by hand. In its tables a value is a mean over "
        "seeds with its 95% interval; ▲ means that the claim is supported and ▼ that it is contradicted, after "
        "Benjamini and Hochberg's correction for all tests of the question, and no mark that it is undecided. Every "
        "test with its p-values is a row of [second-study-tests.csv](second-study-tests.csv)."
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
        yield from ("No part has run, so that there are no results.", "")
    elif any(len(seeds) < NUM_SEEDS for seeds in found.values()):
        yield from ("Seeds are missing, so that every verdict on this page is provisional.", "")


def rate_lines(runs: pd.DataFrame, tables: Path) -> Iterator[str]:
    """The rate of each arm, and which of them are at an edge of the rates that were tried."""
    for data in DATA:
        tuning, ours = tables / f"{data}-tuning-runs.csv", runs[runs["data"] == data]
        if tuning.exists() and len(ours):
            tried = sorted(pd.read_csv(tuning)[RATE].unique())
            rates = ours.groupby("arm")[RATE].first()
            parts = [f"{rate:g} ({_arms_of(rates[rates == rate].index)})" for rate in sorted(rates.unique())]
            edge = ", ".join(f"{rate:g}" for rate in (tried[0], tried[-1]) if rate in set(rates))
            said = f"; {edge} is at the edge of the rates tried, so that one beyond it may be better" if edge else ""
            choices = ", ".join(f"{rate:g}" for rate in tried)
            yield f"- {data}: of the learning rates {choices} the best were {', '.join(parts)}{said}."
    yield ""


def _arms_of(arms: Iterable[str]) -> str:
    return ", ".join(sorted(arms, key=arm_order))


def _answer_figure(saving: Question, folder: Path) -> Iterator[str]:
    """Draws what arms save at the largest width, where there are tests of it, and yields the lines that show them."""
    if saving.tests:
        write_figure(draw_answer(saving.tests), folder, "second-study-answer")
        yield from ("![What each arm saves at the largest width, in images and seconds](second-study-answer.png)", "")


def _savings_figure(runs: pd.DataFrame, folder: Path) -> Iterator[str]:
    """Draws the savings in images, where there are any, and yields the lines that show them."""
    found = pd.concat([savings(rows, WIDTH).assign(data=data) for data, rows in runs.groupby("data", sort=False)])
    if len(found):
        write_figure(draw_savings(found[found["axis"] == "images_seen"]), folder, "second-study-savings")
        yield from ("![Images that an arm saves against dense, by width](second-study-savings.png)", "")


def _objects_figure(objects: pd.DataFrame, folder: Path) -> Iterator[str]:
    """Draws the experts on objects, where they were measured, and yields the lines that show them."""
    if len(objects):
        write_figure(draw_objects(longest(objects)), folder, "second-study-objects")
        yield from (
            "![Experts on objects over those on background, by time, layer and arm](second-study-objects.png)",
            "",
        )
