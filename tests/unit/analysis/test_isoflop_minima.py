"""The best size of every budget is found where it was put; what cannot give one is refused or flagged."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.isoflop_minima import OF_TRUNKS, IsoFlop, _studies, akima_minimum, isoflop, quadratic_minimum
from analysis.load_records import MissingDataError, load_records
from analysis.run_table import run_table

WriteBudgets = Callable[..., Path]
EXPERT_CHOICE, DENSE = "Expert choice", "Dense (same activated)"
SIZES = [math.log(size) for size in (2e5, 3e5, 5e5, 8e5)]


def analysed(folder: Path) -> IsoFlop:
    return isoflop(run_table(load_records([folder])))


def test_a_parabola_has_its_minimum_where_it_was_put() -> None:
    found = quadratic_minimum(SIZES, [0.1 + 0.02 * (at - math.log(4e5)) ** 2 for at in SIZES])
    assert (math.exp(found.log_params), found.loss, found.is_edge) == (pytest.approx(4e5), pytest.approx(0.1), False)


def test_akima_finds_the_minimum_of_a_smooth_curve_between_its_points() -> None:
    log_params = np.linspace(math.log(1e5), math.log(1e6), 12).tolist()
    found = akima_minimum(log_params, [0.1 + 0.02 * (at - math.log(4e5)) ** 2 for at in log_params])
    assert math.exp(found.log_params) == pytest.approx(4e5, rel=1e-2)
    assert found.loss == pytest.approx(0.1, abs=1e-5)
    assert not found.is_edge


@pytest.mark.parametrize("minimum", [quadratic_minimum, akima_minimum])
@pytest.mark.parametrize("best", [1e5, 1.2e6])
def test_a_curve_that_still_falls_at_its_end_has_an_edge_minimum(
    minimum: Callable[..., tuple[float, float, bool]], best: float
) -> None:
    log_params, _, is_edge = minimum(SIZES, [(at - math.log(best)) ** 2 for at in SIZES])
    assert is_edge
    assert log_params == pytest.approx(SIZES[0] if best < 2e5 else SIZES[-1])


def test_a_parabola_that_opens_downwards_has_an_edge_minimum() -> None:
    assert quadratic_minimum(SIZES, [0.1, 0.2, 0.2, 0.15]).is_edge


def test_the_law_of_the_minima_is_the_stated_one(write_budgets: WriteBudgets) -> None:
    found = analysed(write_budgets())
    assert found.refused == ()
    minima = found.minima[found.minima["method"] == "quadratic"]
    assert set(minima["arm"]) == {EXPERT_CHOICE, DENSE}
    assert minima["params"].to_list() == pytest.approx([5e5 * 2 ** (0.4 * n) for n in (0, 1, 2)] * 2, rel=0.01)
    laws = found.laws[found.laws["quantity"] == "params"].set_index(["arm", "method"])
    assert laws.loc[(EXPERT_CHOICE, "quadratic"), "exponent"] == pytest.approx(0.4, abs=0.005)
    assert laws.loc[(EXPERT_CHOICE, "akima"), "exponent"] == pytest.approx(0.4, abs=0.15)
    assert set(laws["num_budgets"]) == {3}


def test_size_times_training_grows_with_compute(write_budgets: WriteBudgets) -> None:
    laws = analysed(write_budgets()).laws
    exponents = laws[laws["method"] == "quadratic"].groupby("arm")["exponent"].sum()
    assert exponents.to_list() == pytest.approx([1, 1], abs=0.03)  # FLOPs per image grow a little less than parameters


def test_images_are_what_the_budget_buys_at_the_best_size(write_budgets: WriteBudgets) -> None:
    found = analysed(write_budgets())
    profile = found.profiles[(found.profiles["arm"] == EXPERT_CHOICE) & (found.profiles["flops"] < 1.5e12)]
    minimum = found.minima[(found.minima["arm"] == EXPERT_CHOICE) & (found.minima["flops"] < 1.5e12)].iloc[0]
    expected = np.interp(math.log(minimum["params"]), np.log(profile["params"]), np.log(profile["images"]))
    assert math.log(minimum["images"]) == pytest.approx(expected)


def test_images_include_those_that_first_weights_were_trained_on(write_budgets: WriteBudgets) -> None:
    """A budget counts the FLOPs of a parent, so the number of images that is best for it counts the parent's, too."""
    table = run_table(load_records([write_budgets()]))
    own, whole = (isoflop(table.assign(images_before=images)) for images in (0, 1600))
    assert (whole.profiles["images"] - own.profiles["images"]).to_list() == pytest.approx([1600] * len(own.profiles))
    of_own, of_whole = (each.minima[each.minima["method"] == "quadratic"] for each in (own, whole))
    assert (of_whole["images"] > of_own["images"] + 1500).all()
    assert of_whole["params"].to_list() == of_own["params"].to_list()


def off_the_parabolas(
    folder: Path, num_seeds: int = 1, errs: str = "configuration", of_trunks: bool = False
) -> IsoFlop:
    """The first seeds of `folder`, every configuration (or every run) 0.5% off its parabola.

    With `of_trunks` the runs of one size are lengths of one trunk.
    """
    table = run_table(load_records([folder])).query(f"seed < {num_seeds}")
    if of_trunks:
        table = table.assign(trunk=table["routing.name"] + table["model.width"].map(str))
    keys = ["routing.name", "train_flops_per_image", "images_seen", *(["seed"] if errs == "run" else [])]
    configuration = table.groupby(keys).ngroup()
    off = np.random.default_rng(3).normal(0, 0.005, configuration.max() + 1)
    return isoflop(table.assign(val_loss=table["val_loss"] * (1 + off[configuration])))


def log_widths(found: IsoFlop, quantity: str = "params") -> list[float]:
    inner = found.minima[(found.minima["method"] == "quadratic") & ~found.minima["is_edge"].astype(bool)]
    return np.log(inner[f"{quantity}_high"] / inner[f"{quantity}_low"]).to_list()


def test_configurations_on_their_parabola_leave_no_doubt(write_budgets: WriteBudgets) -> None:
    found = analysed(write_budgets())
    assert log_widths(found) == pytest.approx([0] * 6, abs=1e-6)
    assert log_widths(found, "images") == pytest.approx([0] * 6, abs=1e-6)
    by_budget = found.laws[found.laws["method"] != "parametric"]
    assert (by_budget["exponent_low"] < by_budget["exponent"]).all()


def test_budgets_that_share_trunks_leave_no_interval_of_an_exponent(write_budgets: WriteBudgets) -> None:
    """A size is off at every budget alike, so that it is counted once in the intervals of minima."""
    folder = write_budgets()
    apart, shared = (off_the_parabolas(folder, of_trunks=of_trunks) for of_trunks in (False, True))
    ends = ["exponent_low", "exponent_high", "exponent_cells_low", "exponent_cells_high"]
    assert shared.laws[ends].isna().all(axis=None)
    assert apart.laws.loc[apart.laws["method"] == "quadratic", ends].notna().all(axis=None)
    lines = {f"{arm}: {OF_TRUNKS}" for arm in (DENSE, EXPERT_CHOICE)}
    assert lines <= set(shared.refused)
    assert not lines & set(apart.refused)
    # Four sizes leave each of the three budgets one degree of freedom.
    ratio = stats.t.ppf(0.975, 1) / stats.t.ppf(0.975, 3)
    assert log_widths(shared) == pytest.approx([ratio * width for width in log_widths(apart)])


def test_one_seed_has_intervals_about_its_minima(write_budgets: WriteBudgets) -> None:
    found = off_the_parabolas(write_budgets())
    minima = found.minima[found.minima["method"] == "quadratic"]
    for quantity in ("params", "images"):
        assert (minima[f"{quantity}_low"] < minima[quantity]).all()
        assert (minima[quantity] < minima[f"{quantity}_high"]).all()


def test_more_seeds_of_the_same_configurations_do_not_narrow_the_interval(write_budgets: WriteBudgets) -> None:
    folder = write_budgets(seeds=(0, 1, 2, 3))
    one, many = (log_widths(off_the_parabolas(folder, num_seeds)) for num_seeds in (1, 4))
    assert len(one) == 6
    assert many == pytest.approx(one, rel=1e-6)


def test_seeds_that_err_on_their_own_do_narrow_the_interval(write_budgets: WriteBudgets) -> None:
    folder = write_budgets(seeds=tuple(range(8)))
    one, many = (np.mean(log_widths(off_the_parabolas(folder, num_seeds, "run"))) for num_seeds in (1, 8))
    assert many < 0.7 * one


def test_akimas_minima_have_no_interval(write_budgets: WriteBudgets) -> None:
    minima = off_the_parabolas(write_budgets(seeds=(0, 1)), 2).minima
    assert minima.loc[minima["method"] == "akima", "params_low"].isna().all()


def test_three_sizes_leave_no_interval_and_it_is_said_once_an_arm(write_budgets: WriteBudgets) -> None:
    found = analysed(write_budgets(widths=(48, 64, 128), seeds=(0, 1, 2), moved=0.05))
    assert found.minima.loc[found.minima["method"] != "parametric", "params_low"].isna().all()
    assert [line for line in found.refused if EXPERT_CHOICE in line and "no interval" in line] == [
        f"{EXPERT_CHOICE}: no interval of a minimum: 3 sizes a budget leave nothing to tell how far configurations are "
        "off a parabola."
    ]


def test_an_edge_minimum_is_flagged_said_and_not_used(write_budgets: WriteBudgets) -> None:
    found = analysed(write_budgets(budgets=(1e12, 2e12, 4e13)))
    edges = found.minima[found.minima["is_edge"]]
    assert set(edges["flops"].round(-11)) == {4e13}
    assert f"{EXPERT_CHOICE} at 40 TFLOP: the quadratic minimum lies at the edge of the sizes and is not used." in (
        found.refused
    )
    assert set(found.laws["num_budgets"]) == {2}
    assert edges["params_low"].isna().all()


def test_a_budget_of_two_sizes_is_refused_in_one_line(write_budgets: WriteBudgets) -> None:
    write_budgets(budgets=(1e12, 2e12))
    found = analysed(write_budgets(budgets=(4e12,), widths=(64, 96)))
    assert [line for line in found.refused if EXPERT_CHOICE in line] == [
        f"{EXPERT_CHOICE} at 4 TFLOP has 2 sizes; a minimum needs 3."
    ]


def test_runs_without_budgets_are_refused(write_arms: Callable[..., Path]) -> None:
    message = r"No budget of training FLOPs has 3 sizes of one arm \(Dense \(same depth\) at .* has 1 size; a minimum"
    with pytest.raises(MissingDataError, match=message):
        analysed(write_arms(seeds=(0,)))


def test_sizes_that_have_their_own_learning_rate_are_one_study(write_budgets: WriteBudgets) -> None:
    records = load_records([write_budgets(budgets=(1e12,))])
    table = run_table(records)
    table["optim.learning_rate"] = 0.1 / table["model.width"]
    assert set(isoflop(table).minima["study"]) == {""}


def test_runs_of_another_optimizer_are_a_study_of_their_own(
    write_budgets: WriteBudgets, write_run: Callable[..., object]
) -> None:
    folder = write_budgets(budgets=(1e12,))
    settings = {
        "model": {"name": "nano"},
        "train": {"images": 1600, "batch_images": 16},
        "optim": {"learning_rate": 0.1},
    }
    write_run(folder / "other", {**settings, "routing": {"name": "dense"}}, lambda n: 1.0, eval_images=[1600])
    found = analysed(folder)
    assert set(found.minima["study"]) == {"optim.learning_rate=0.002"}
    assert any("optim.learning_rate=0.1" in line and "1 size" in line for line in found.refused)


def test_a_setting_that_some_runs_do_not_have_is_none_in_a_study() -> None:
    """Runs of other objectives have settings that the others lack, which are missing values in the table."""
    columns = {"model.name": ["nano"] * 2, "flow.schedule": ["linear", np.nan], "flow.time_std": [np.nan, 1.0]}
    assert _studies(pd.DataFrame(columns)) == [
        "flow.schedule=linear, flow.time_std=None", "flow.schedule=None, flow.time_std=1",
    ]  # fmt: skip
