"""What is said of the seeds that gaps need, of finished studies and of planned ones, is what the power computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.claims import PairedDifference, corrected
from analysis.compare import compare, comparison_markdown
from analysis.load_records import MissingDataError, load_records
from analysis.power import power, seeds_needed
from analysis.run_table import run_table
from analysis.seed_intervals import Interval
from analysis.seed_planning import corrected_significance, plan_power, seeds_sentence, seeds_wanted

WriteRun = Callable[..., Any]
DENSE = [0.130, 0.132, 0.131]
ROUTED = [0.1299, 0.1322, 0.1301]


def with_gap(arm: str, gap: float, p_value: float) -> PairedDifference:
    ends = (gap - 0.5 * abs(gap), gap + 0.5 * abs(gap)) if p_value < 0.05 else (gap - 2 * abs(gap), gap + 2 * abs(gap))
    return PairedDifference("nano", arm, "Dense", Interval(gap, min(ends), max(ends), 3, "paired", p_value, 1.0))


FOUND = corrected(
    [with_gap("A", -0.5, 0.4), with_gap("B", -9.0, 1e-6), with_gap("C", -1.0, 0.04), with_gap("D", 0.001, 0.9)]
)


def test_only_gaps_that_are_not_separated_have_a_number_of_seeds() -> None:
    assert [claim.verdict for claim in FOUND] == ["not separated", "lower", "not after correction", "not separated"]
    assert corrected_significance(FOUND) == pytest.approx(0.05 / 4)
    assert seeds_wanted(FOUND) == [("34", "48"), ("", ""), ("10", "15"), ("more than 1,000", "more than 1,000")]


def test_the_sentence_names_the_nearest_gaps_first() -> None:
    assert seeds_sentence(FOUND) == (
        "Seeds an arm that would separate a gap as large as measured with 80% power, without / with Holm's correction: "
        "C from Dense (nano): 10 / 15; A from Dense (nano): 34 / 48; "
        "D from Dense (nano): more than 1,000 / more than 1,000."
    )
    assert seeds_sentence([FOUND[1]]) == ""


def test_a_sentence_of_many_gaps_counts_the_rest() -> None:
    many = corrected([with_gap(f"A{i}", 0.5, 0.4) for i in range(8)])
    assert seeds_sentence(many).endswith("; and 2 more, see the table.")


def write(folder: Path, write_run: WriteRun, losses: dict[str, list[float]]) -> Path:
    for router, by_seed in losses.items():
        for seed, loss in enumerate(by_seed):
            settings = {"routing": {"name": router}, "train": {"images": 3200}, "seed": seed}
            write_run(folder / f"{router}-{seed}", settings, lambda n, at=loss: at, eval_images=[3200])
    return folder


def test_a_comparison_says_the_seeds_that_its_gaps_need(tmp_path: Path, write_run: WriteRun) -> None:
    comparison = compare(load_records([write(tmp_path, write_run, {"dense": DENSE, "expert_choice": ROUTED})]))
    (claim,) = comparison.claims
    needed = seeds_needed(claim.gap)
    assert claim.verdict == "not separated"
    assert claim.gap.spread == pytest.approx(np.std(np.subtract(ROUTED, DENSE), ddof=1))
    assert f"| not separated | {needed} | {needed} |" in comparison_markdown(comparison)
    assert f"Expert choice from Dense (same depth) (nano): {needed} / {needed}." in "\n".join(comparison.notes)


def planned(seeds: dict[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    return [{"routing": {"name": name}, "seed": seed} for name, of_arm in seeds.items() for seed in of_arm]


def test_a_plan_of_shared_seeds_separates_what_pairs_of_them_do(tmp_path: Path, write_run: WriteRun) -> None:
    earlier = run_table(load_records([write(tmp_path, write_run, {"dense": DENSE, "expert_choice": ROUTED})]))
    found = plan_power(earlier, planned({"dense": (0, 1, 2, 3), "switch": (0, 1, 2, 3)}))
    assert (found.is_paired, found.num_seeds) == (True, 4)
    assert found.spread == pytest.approx(np.std(np.subtract(ROUTED, DENSE), ddof=1))
    assert found.smallest_gap is not None
    assert power(found.smallest_gap, found.spread, 4) == pytest.approx(0.8, abs=1e-6)
    assert found.rows[0]["seeds"] == found.rows[0]["seeds_corrected"]  # one comparison needs no correction
    assert str(found).startswith("val_loss: with 4 seeds an arm (paired by seed) the plan separates a gap of 0.00")


def test_a_plan_of_separate_seeds_is_judged_by_the_spread_within_arms(tmp_path: Path, write_run: WriteRun) -> None:
    earlier = run_table(load_records([write(tmp_path, write_run, {"dense": DENSE, "expert_choice": ROUTED})]))
    found = plan_power(earlier, planned({"dense": (0, 1, 2), "switch": (5, 6, 7, 8)}))
    assert (found.is_paired, found.num_seeds, found.freedom_per_seed) == (False, 3, 2.0)
    within = np.mean([np.var(losses, ddof=1) for losses in (DENSE, ROUTED)])
    assert found.spread == pytest.approx(math.sqrt(2 * within))


def test_a_plan_of_one_seed_separates_nothing(tmp_path: Path, write_run: WriteRun) -> None:
    earlier = run_table(load_records([write(tmp_path, write_run, {"dense": DENSE, "expert_choice": ROUTED})]))
    found = plan_power(earlier, planned({"dense": (0,), "switch": (0,)}))
    assert found.smallest_gap is None
    assert str(found) == (
        "val_loss: with 1 seed an arm (paired by seed) the plan separates no gap, because one seed has no spread."
    )


def test_an_earlier_study_of_one_seed_has_no_spread_to_plan_with(tmp_path: Path, write_run: WriteRun) -> None:
    folder = write(tmp_path, write_run, {"dense": DENSE[:1], "expert_choice": ROUTED[:1]})
    with pytest.raises(MissingDataError, match="no two arms with two seeds each, so there is no spread over seeds"):
        plan_power(run_table(load_records([folder])), planned({"dense": (0, 1)}))
