"""The second study answers its questions from its tables alone, and its preregistration says what its files do."""

from __future__ import annotations

import importlib
import json
import math
import re
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sweeps.planner import make_plan
from sweeps.spec import load_spec, parse_spec

ROOT = Path(__file__).parents[3]
STUDY = ROOT / "docs" / "study"
LENGTHS = (3840, 7680, 15360)
WIDTHS = (24, 48, 72, 96)
RATES = (0.002, 0.004, 0.008, 0.016)
ARMS: dict[str, dict[str, Any]] = {
    "dense": {"routing.name": "dense", "model.ffn_factor": 4.0, "routing.num_experts": 0},
    **{
        f"{name}-{number}": {"routing.name": name, "routing.num_experts": number, "routing.capacity_factor": 2.0}
        for name in ("expert_choice", "token_choice")
        for number in (8, 32)
    },
}
AHEAD = {"dense": 1.0, "expert_choice-8": 1.8, "expert_choice-32": 2.5, "token_choice-8": 1.3, "token_choice-32": 1.5}
"""How many times fewer images than dense each arm needs for the same loss, in the tables that these tests write."""


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(STUDY))
    names = ("second_study", "second_study_results", "second_study_page", "second_study_figures")
    return {name.rpartition("_")[2]: importlib.import_module(name) for name in names}


def write_runs(folder: Path, data: str, seeds: tuple[int, ...], grows: float = 0.0, **ahead: float) -> None:
    """Writes the runs of a data set, on a law without chance but a little of each seed, arm and length."""
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        random = np.random.default_rng([seed, len(data)])
        rows = []
        for (arm, settings), width, images in product(ARMS.items(), WIDTHS, LENGTHS):
            params = 50 * width**2
            factor = (AHEAD | ahead)[arm] * (width / 24) ** (grows * (arm != "dense"))
            loss = 2 * params**-0.2 + 3 * (images * factor) ** -0.3 + 1e-4 * random.standard_normal()
            rows.append({
                "config_id": f"{arm}-{width}-{images}-{seed}", "model.name": "nano", "model.width": width,
                "model.ffn_factor": 4.0, "model.sparse_layers": "alternate", **settings, "train.images": images,
                "routing.group_images": 1, "images_seen": images, "seed": seed, "params_active": params,
                "params_active_without_embeddings": params, "train_flops_per_image": 6.0 * params,
                "train_seconds": images / 100, "inference_seconds_per_image": 1e-6 * params, "val_loss": loss,
                "val_loss_same_t": loss + (0.01 if arm.startswith("token") else 0.001 * random.standard_normal()),
            })  # fmt: skip
        pd.DataFrame(rows).to_csv(folder / f"{data}-{seed}-runs.csv", index=False)


def verdicts_of(study: dict[str, ModuleType], tests: Any) -> dict[tuple[str, str, str], str]:
    found = list(tests)
    return {
        (test.claim, test.arm, test.at): said
        for test, said in zip(found, study["results"].verdicts(found), strict=True)
    }


def test_savings_are_found_and_do_not_grow_where_they_do_not(study: dict[str, ModuleType], tmp_path: Path) -> None:
    write_runs(tmp_path, "shapes", (0, 1, 2, 3, 4))
    runs = study["results"].read_runs(tmp_path)
    tests = {(each.claim, each.arm, each.at): each for each in study["results"].saving_tests(runs)}
    at = tests["images", "Expert choice (8E, f_c 2)", "width 48"]
    assert math.exp(at.value.mean) == pytest.approx(1.8, rel=0.05)
    assert set(verdicts_of(study, tests.values()).values()) == {"supported"}
    assert "supported" not in verdicts_of(study, study["results"].growth_tests(runs)).values()


def test_savings_that_grow_are_found(study: dict[str, ModuleType], tmp_path: Path) -> None:
    write_runs(tmp_path, "shapes", (0, 1, 2, 3, 4), grows=0.2)
    tests = list(study["results"].growth_tests(study["results"].read_runs(tmp_path)))
    of_images = next(each for each in tests if (each.claim, each.arm) == ("images", "Token choice (8E)"))
    assert of_images.value.mean == pytest.approx(0.2, abs=0.03)
    assert set(verdicts_of(study, tests).values()) == {"supported"}


def test_the_router_that_suffers_at_one_timestep_is_found(study: dict[str, ModuleType], tmp_path: Path) -> None:
    write_runs(tmp_path, "shapes", (0, 1, 2, 3, 4))
    said = verdicts_of(study, study["results"].timestep_tests(study["results"].read_runs(tmp_path)))
    assert {arm for (_, arm, _), verdict in said.items() if verdict == "supported"} == {
        "Token choice (8E)", "Token choice (32E)"
    }  # fmt: skip


def test_claims_of_the_paper_are_supported_and_contradicted(study: dict[str, ModuleType], tmp_path: Path) -> None:
    write_runs(tmp_path, "shapes", (0, 1, 2, 3, 4))
    said = verdicts_of(study, study["results"].paper_tests(study["results"].read_runs(tmp_path)))
    halves = {arm: said[claim, arm, at] for claim, arm, at in said if (claim[:2], at) == ("1.", "width 72")}
    assert halves == {"Expert choice (8E, f_c 2)": "contradicted", "Expert choice (32E, f_c 2)": "supported"}
    assert said["4. More experts are better", "Expert choice (32E, f_c 2)", "width 96"] == "supported"
    assert said["6. In 33.8% of its time", "Expert choice (8E, f_c 2)", "width 72 against 96"] == "contradicted"


def test_a_ranking_holds_or_is_reversed(study: dict[str, ModuleType], tmp_path: Path) -> None:
    results = study["results"]
    write_runs(tmp_path / "alike", "shapes", (0, 1, 2, 3, 4))
    write_runs(tmp_path / "alike", "emoji", (0, 1, 2, 3, 4))
    alike = results.rankings(results.read_runs(tmp_path / "alike"))
    assert [(each.width, each.num_alike, each.num_reversed) for each in alike] == [(width, 10, 0) for width in WIDTHS]
    assert [each.tau for each in alike] == pytest.approx([1.0] * 4)
    assert results.ranking_verdict(alike) == "supported"
    write_runs(tmp_path / "other", "shapes", (0, 1, 2, 3, 4))
    write_runs(tmp_path / "other", "emoji", (0, 1, 2, 3, 4), **{"token_choice-32": 3.0})
    other = results.rankings(results.read_runs(tmp_path / "other"))
    assert all(each.num_reversed == 2 for each in other)
    assert results.ranking_verdict(other) == "contradicted"
    assert results.ranking_verdict([]) == "undecided"


def test_the_law_that_the_losses_are_on_is_found_and_predicts_widths(
    study: dict[str, ModuleType], tmp_path: Path
) -> None:
    write_runs(tmp_path, "shapes", (0, 1, 2))
    found = list(study["results"].laws(study["results"].read_runs(tmp_path)))
    assert {each.family.split(",")[0] for each in found} == {"Expert choice", "Token choice"}
    assert {each.verdict for each in found} == {"supported"}, found


def test_a_law_that_a_width_left_out_leaves_unidentified_is_not_contradicted(
    study: dict[str, ModuleType], tmp_path: Path
) -> None:
    """The noise leaves a law that all widths together identify, and that cannot be fitted without some of them."""
    write_runs(tmp_path, "shapes", (0, 1, 2))
    runs = study["results"].read_runs(tmp_path)
    runs["val_loss"] += 0.012 * np.random.default_rng(0).standard_normal(len(runs))
    for law in study["results"].laws(runs):
        assert "alpha" in law.law, law
        assert any(reason.startswith("without model.width = ") for reason in law.reasons), law
        assert law.verdict == "not identified"


def test_the_page_says_what_is_missing(study: dict[str, ModuleType], tmp_path: Path) -> None:
    assert "No part has run, so that there are no results." in study["page"].page(tmp_path, tmp_path)
    write_runs(tmp_path, "shapes", (0, 3))
    opening = "\n".join(study["page"]._opening(tmp_path))
    assert "- shapes: 2 of 5 seeds have run; missing: 1, 2, 4." in opening
    assert "- emoji: 0 of 5 seeds have run; missing: 0, 1, 2, 3, 4." in opening
    assert "Seeds are missing, so that every verdict on this page is provisional." in opening


def test_the_committed_page_is_that_of_the_committed_tables(study: dict[str, ModuleType], tmp_path: Path) -> None:
    assert (STUDY / "second-study-results.md").read_text() == study["page"].page(STUDY / "second", tmp_path)


def test_both_sweeps_plan_what_is_registered() -> None:
    page = (STUDY / "second-study.md").read_text()
    shapes = make_plan(load_spec("second_study_shapes"), ["seed=0"])
    emoji = load_spec(str(STUDY / "second_study_emoji.yaml"))
    scenes = parse_spec({**emoji.model_dump(exclude_unset=True), "parameters": {
        **emoji.model_dump(exclude_unset=True)["parameters"], "data.path": {"value": None},
        "data.image_size": {"value": 16},
    }}, default_name="emoji")  # fmt: skip
    assert (len(shapes.runs), len(make_plan(scenes, ["seed=0"]).runs)) == (192, 108)
    assert "| `shapes-0` to `shapes-4`, each | 192 |" in page
    assert "| `emoji-0` to `emoji-4`, each | 108 |" in page
    of_shapes, of_emoji = (
        without_rate(each.parameters["arm"].values) for each in (load_spec("second_study_shapes"), emoji)
    )
    assert of_emoji == [arm for arm in of_shapes if "num_experts=32" not in arm]
    assert {each.images for each in shapes.runs} == set(LENGTHS)


def without_rate(arms: list[str]) -> list[str]:
    return [re.sub(r" optim\.learning_rate=\S+", "", arm) for arm in arms]


def test_numbers_of_seeds_are_those_of_the_script(study: dict[str, ModuleType]) -> None:
    lines, page = list(study["study"].power()), " ".join((STUDY / "second-study.md").read_text().split())
    for line in lines[:3]:
        seeds, gap, share = re.search(r"^(\d) seeds separate a gap of (\S+) \((\S+) of", line).groups()  # type: ignore[union-attr]
        assert f"{seeds} seeds" in page
        assert f"{gap} ({share}" in page
    assert "spreads by 0.0066, over 73 comparisons" in lines[3]
    assert "spreads by 0.0066, pooled over 73 comparisons" in page
    needed = [tuple(map(int, re.search(r"(\d+) / (\d+) seeds$", line).groups())) for line in lines[4:]]  # type: ignore[union-attr]
    of_dense = [pair for line, pair in zip(lines[4:], needed, strict=True) if "Dense" in line]
    assert ({one for one, _ in of_dense}, {both for _, both in of_dense}) == ({3}, {6, 7})


def test_a_rate_goes_to_its_arm_alone(study: dict[str, ModuleType], tmp_path: Path) -> None:
    script = study["study"]
    arms = load_spec("second_study_shapes").parameters["arm"].values
    rows = []
    for i, arm in enumerate(arms):
        settings = dict(word.split("=") for word in arm.split())
        for rate in RATES:
            best = RATES[i % 4]
            rows.append({
                "routing.name": settings["routing.name"],
                "model.ffn_factor": float(settings.get("model.ffn_factor", 4)),
                "routing.num_experts": int(settings.get("routing.num_experts", 0)),
                "routing.capacity_factor": float(settings["routing.capacity_factor"])
                if "routing.capacity_factor" in settings else None,
                "optim.learning_rate": rate, "val_loss": 0.2 + (rate != best),
            })  # fmt: skip
    spec = tmp_path / "spec.yaml"
    spec.write_text((ROOT / "sweeps/second_study_shapes.yaml").read_text())
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    script.write_rates(tmp_path / "runs.csv", spec)
    written = load_spec(str(spec)).parameters["arm"].values
    assert [float(arm.rpartition("=")[2]) for arm in written] == [RATES[i % 4] for i in range(16)]
    assert without_rate(written) == without_rate(arms)
    best = script.best_rates(pd.read_csv(tmp_path / "runs.csv"))
    assert best["is_edge"].sum() == 8


@pytest.mark.parametrize("data", ["shapes", "emoji"])
def test_the_rates_of_the_sweeps_are_those_of_the_tuning_table(study: dict[str, ModuleType], data: str) -> None:
    """Before the tuning has run, all arms have one rate."""
    script = study["study"]
    spec, tuned = ROOT / script.SPECS[data], STUDY / "second" / f"{data}-tuning-runs.csv"
    if tuned.exists():
        best = script.best_rates(pd.read_csv(tuned)).to_dict("records")
        assert all(script.with_rate(line, best) == line for line in spec.read_text().splitlines())
    else:
        assert not list((STUDY / "second").glob(f"{data}-[0-9]-runs.csv")), "a part has run without tuned rates"
        assert {arm.rpartition("=")[2] for arm in load_spec(str(spec)).parameters["arm"].values} == {"0.008"}


def test_no_two_routers_of_the_study_share_a_color(study: dict[str, ModuleType]) -> None:
    arms = (ROOT / study["study"].SPECS["shapes"]).read_text()
    routers = set(re.findall(r"routing\.name=(\w+)", arms))
    colors = study["figures"].study_colors()
    assert set(colors) == routers
    assert len(set(colors.values())) == len(colors)


def test_learning_rates_at_an_edge_of_those_tried_are_named(study: dict[str, ModuleType], tmp_path: Path) -> None:
    pd.DataFrame({"optim.learning_rate": RATES}).to_csv(tmp_path / "shapes-tuning-runs.csv")
    arms = ["MoMa (8E)", "Dense (same depth)"]
    runs = pd.DataFrame({"data": "shapes", "arm": arms, "optim.learning_rate": [0.008, 0.016]})
    line, _ = study["page"].rate_lines(runs, tmp_path)
    tried = "- shapes: of the learning rates 0.002, 0.004, 0.008, 0.016 the best were 0.008 (MoMa (8E)), "
    edge = "0.016 is at the edge of the rates tried, so that one beyond it may be better."
    assert line == f"{tried}0.016 (Dense (same depth)); {edge}"
    inside = runs[runs["optim.learning_rate"] == 0.008]
    assert [*study["page"].rate_lines(inside, tmp_path)] == [f"{tried.removesuffix(', ')}.", ""]


def test_the_figure_of_the_answer_shows_the_largest_width_of_arms_that_both_sets_have(
    study: dict[str, ModuleType], tmp_path: Path
) -> None:
    """What it draws are the values and intervals of the tests themselves."""
    write_runs(tmp_path, "shapes", (0, 1, 2))
    tests = list(study["results"].saving_tests(study["results"].read_runs(tmp_path)))
    shown = study["figures"].draw_answer(tests).numbers
    assert set(shown["arm"]) == {"Expert choice (8E, f_c 2)", "Token choice (8E)"}
    assert set(shown["axis"]) == {"images", "seconds"}
    assert set(shown["width"]) == {96}
    ends = {(test.arm, test.claim): test.ends for test in tests if test.at == "width 96"}
    assert all(ends[row.arm, row.axis] == (row.saving, row.low, row.high) for row in shown.itertuples())


def test_every_command_of_a_part_is_on_the_page(study: dict[str, ModuleType]) -> None:
    page = (STUDY / "second-study.md").read_text()
    for arguments in study["study"].commands("shapes-0"):
        words = [word.replace("sweeps/second_study_shapes.yaml", "second_study_shapes") for word in arguments]
        assert f"ecdit {' '.join(words)}" in page
    assert [each[0] for each in study["study"].commands("emoji-2")] == ["data", "sweep", "evaluate"]


TINY = """\
program: ecdit
command: ["${env}", "ecdit", "train", "${args_no_hyphens}"]
method: grid
name: tiny
parameters:
  model.name: {value: nano}
  model.patch_size: {value: 2}
  model.head_size: {value: 4}
  model.base_width: {value: 16}
  model.width: {values: [8, 16]}
  optim.parametrization: {value: mup}
  arm:
    values:
      - routing.name=dense optim.learning_rate=0.008
      - routing.name=expert_choice routing.num_experts=4 routing.group_images=8 optim.learning_rate=0.008
  seed: {values: [0, 1]}
  data.image_size: {value: 16}
  train.images: {values: [64, 128]}
  train.batch_images: {value: 8}
  train.ema: {value: power}
  optim.schedule: {value: wsd}
  optim.warmup_images: {value: 16}
  eval.every_images: {value: 64}
  eval.images: {value: 32}
  eval.batch_images: {value: 8}
  eval.sample_images: {value: 0}
  eval.sample_steps: {value: 2}
  checkpoint.every_images: {value: 24}
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_parts_are_run_and_their_tables_make_the_page(
    study: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sizes, two arms, two lengths and two seeds, by the commands of the study itself."""
    script, tables = study["study"], tmp_path / "second"
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "SPECS", {"shapes": "tiny.yaml"})
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    for part in ("shapes-0", "shapes-1"):
        script.run(part)
    kinds = ("runs", "curves", "times", "averages", "objects")
    assert sorted(path.name for path in tables.iterdir()) == sorted(
        f"shapes-{seed}-{kind}.csv" for seed in (0, 1) for kind in kinds
    )
    of_run = sorted((tmp_path / "out/second/shapes-0/runs").glob("*expert_choice*"))[0]
    assert not any(word in path.read_text() for path in tables.iterdir() for word in (str(tmp_path), of_run.name))
    runs = pd.read_csv(tables / "shapes-0-runs.csv")
    assert len(runs) == 8
    for run in (tmp_path / "out/second/shapes-0/runs").iterdir():
        losses = [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]
        last = [row["value"] for row in losses if row["metric"] == "val_loss" and row["weights"] == "raw"][-1]
        assert (runs["val_loss"] - last).abs().min() < 1e-6
    objects = pd.read_csv(tables / "shapes-0-objects.csv")
    assert objects.groupby("config_id").size().tolist() == [2 * 10] * 4
    assert set(pd.read_csv(tables / "shapes-0-times.csv")["condition"]) == {"mixed", "one timestep"}
    assert sorted(pd.read_csv(tables / "shapes-0-averages.csv")["ema_width"].unique()) == [0.05, 0.07, 0.1]
    before = {path.name: path.read_text() for path in tables.iterdir()}
    script.run("shapes-0")
    assert {path.name: path.read_text() for path in tables.iterdir()} == before
    study["page"].write_page(tmp_path)
    page = (tmp_path / "second-study-results.md").read_text()
    assert "- shapes: 2 of 5 seeds have run; missing: 2, 3, 4." in page
    assert "| data | arm | width 8 | width 16 |" in page
    assert re.search(r"\| shapes \| Expert choice \(4E, f\\_c 2\)( \| [\d.]+†? \([\d.]+ to [\d.]+\)){2}", page)
    tests = pd.read_csv(tmp_path / "second-study-tests.csv")
    of_images = tests[(tests["claim"] == "images") & tests["at"].isin(["width 8", "width 16"])]
    assert of_images["seeds"].tolist() == [2, 2]
    assert ((of_images["low"] <= of_images["value"]) & (of_images["value"] <= of_images["high"])).all()
    assert (tmp_path / "second-study-savings.png").stat().st_size > 10_000
    assert (tmp_path / "second-study-objects.png").stat().st_size > 10_000
    (of_run / "status.json").unlink()
    with pytest.raises(SystemExit, match=r"1 of 8 runs are not done"):
        script.finished_records([tmp_path / "out/second/shapes-0"])
