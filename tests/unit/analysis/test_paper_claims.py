"""The paper's claims: the verdict follows the interval of our own runs, and missing runs are named."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.load_records import load_records
from analysis.paper_claims import (
    HALF_EXPERTS,
    HALF_EXPERTS_SCORE,
    HALF_STEPS,
    NOT_TESTABLE,
    THIRD_TIME,
    ClaimForm,
    PaperClaim,
    corrected,
    paper_claim_rows,
    paper_claims,
)
from analysis.paper_values import CAPACITIES, SCORES, SIZES, paper_score, paper_scores
from analysis.run_table import run_table
from experiments.records.record_types import EvalRow
from experiments.records.run_folder import find_runs
from experiments.records.writer import append_evaluations

WriteArms = Callable[..., Path]
WriteRun = Callable[..., Any]
DENSE: dict[str, Any] = {"dense": ({}, {"name": "dense"}, 1e-5)}


def expert_choice(slope: float, num_experts: int = 8) -> dict[str, Any]:
    return {f"ec{num_experts}": ({}, {"name": "expert_choice", "num_experts": num_experts}, slope)}


def token_choice(slope: float, num_experts: int = 16) -> dict[str, Any]:
    return {f"tc{num_experts}": ({}, {"name": "token_choice", "num_experts": num_experts}, slope)}


def found(folder: Path) -> Mapping[ClaimForm, PaperClaim]:
    records = load_records([folder])
    return {claim.form: claim for claim in paper_claims(records, run_table(records))}


@pytest.mark.parametrize(("slope", "share", "verdict"), [(2.5e-5, 0.4, "supported"), (1.25e-5, 0.8, "not supported")])
def test_the_share_of_steps_is_where_denses_final_loss_is_reached(
    slope: float, share: float, verdict: str, write_arms: WriteArms
) -> None:
    claim = found(write_arms({**DENSE, **expert_choice(slope)}))[HALF_STEPS]
    assert claim.ours is not None
    assert claim.ours.mean == pytest.approx(share, rel=5e-3)
    assert (claim.verdict, claim.ours.num_values, claim.form.printed) == (verdict, 3, "0.5")


def write_shares(folder: Path, write_run: WriteRun, *all_shares: tuple[float, ...]) -> list[PaperClaim]:
    """Writes a dense arm, and arms of expert choice that reach its final loss after these shares of its images.

    Returns the claims about them. The share is given by seed; arms have 8, 16, ... experts.
    """
    evals: dict[str, Any] = {"eval_images": [1600, 3200, 8000], "step_images": [8000]}
    for seed in range(len(all_shares[0])):
        settings = {"train": {"images": 8000}, "seed": seed}
        write_run(folder / f"d{seed}", {**settings, "routing": {"name": "dense"}}, lambda n: 1 - n / 16000, **evals)
        for arm, shares in enumerate(all_shares, start=1):
            routing = {"name": "expert_choice", "num_experts": 8 * arm}
            reached = 8000 * shares[seed]  # a straight line between the last two evaluations goes through 0.5 there
            curve = {1600: 0.9, **{images: 0.5 + 1e-4 * (reached - images) for images in (3200, 8000)}}
            write_run(folder / f"e{arm}-{seed}", {**settings, "routing": routing}, curve.__getitem__, **evals)
    records = load_records([folder])
    return [claim for claim in paper_claims(records, run_table(records)) if claim.form is HALF_STEPS]


def test_an_interval_that_includes_half_is_said_to_do_so(tmp_path: Path, write_run: WriteRun) -> None:
    (claim,) = write_shares(tmp_path, write_run, (0.4, 0.5, 0.6))
    assert (claim.verdict, claim.reason) == ("not supported", "the interval includes 0.5")


def test_claims_are_corrected_for_how_many_are_tested(tmp_path: Path, write_run: WriteRun) -> None:
    """A p of 0.04 supports a claim that is tested alone, and not one of two of which the other is not so."""
    shares, others = (0.40, 0.41, 0.45), (0.4, 0.5, 0.6)
    p_values = [float(stats.ttest_1samp(np.log(each), math.log(0.5)).pvalue) for each in (shares, others)]
    (alone,) = write_shares(tmp_path / "alone", write_run, shares)
    assert alone.ours is not None
    assert alone.ours.mean == pytest.approx(math.exp(np.mean(np.log(shares))))
    assert (alone.verdict, alone.p_benjamini_hochberg) == ("supported", pytest.approx(p_values[0], rel=1e-6))
    first, second = write_shares(tmp_path / "both", write_run, shares, others)
    assert first.ours == pytest.approx(alone.ours)
    assert (first.p_value, second.p_value) == (pytest.approx(p_values[0]), pytest.approx(p_values[1]))
    assert (first.p_benjamini_hochberg, second.p_benjamini_hochberg) == (pytest.approx(2 * p_values[0]), second.p_value)
    assert (first.p_holm, second.p_holm) == (pytest.approx(2 * p_values[0]), pytest.approx(second.p_value))
    assert first.verdict == second.verdict == "not supported"
    assert first.reason == "the interval lies below 0.5, but not after correction for 2 tested claims"
    rows = paper_claim_rows([first])
    assert rows[["p_bh", "p_holm"]].to_numpy().tolist() == [pytest.approx([2 * p_values[0]] * 2)]


def test_many_claims_that_are_not_so_are_not_called_supported() -> None:
    """Without correction, intervals support 2.5% of 2,000 claims that have no true effect; with it, none."""
    p_values = np.random.default_rng(0).uniform(size=2000)
    claims = [
        PaperClaim(HALF_EXPERTS, "nano", None, "supported" if p < 0.025 else "not supported", "", float(p))
        for p in p_values
    ]
    untested = PaperClaim(THIRD_TIME, "nano", None, NOT_TESTABLE, "")
    after = corrected([*claims, untested])
    assert sum(claim.verdict == "supported" for claim in claims) == pytest.approx(50, abs=25)
    assert not [claim for claim in after if claim.verdict == "supported"]
    assert after[-1] == untested
    assert corrected([untested]) == [untested]


def test_a_loss_that_is_never_reached_does_not_support_the_claim(write_arms: WriteArms) -> None:
    claim = found(write_arms({**DENSE, **expert_choice(0.9e-5)}))[HALF_STEPS]
    assert (claim.ours, claim.verdict) == (None, "not supported")
    assert claim.reason == "it never reaches dense's final loss in 3 of 3 seeds (0, 1, 2)"


def test_one_seed_that_never_reaches_the_loss_tests_nothing(write_arms: WriteArms) -> None:
    claim = found(write_arms({**DENSE, **expert_choice(0.9e-5)}, seeds=(0,)))[HALF_STEPS]
    assert (claim.ours, claim.verdict) == (None, NOT_TESTABLE)
    assert claim.reason == "one seed, so no spread can be given; it never reaches dense's final loss"


def test_one_seed_is_not_testable_and_still_shows_its_value(write_arms: WriteArms) -> None:
    claim = found(write_arms({**DENSE, **expert_choice(2e-5)}, seeds=(0,)))[HALF_STEPS]
    assert claim.ours is not None
    assert (claim.ours.mean, claim.verdict) == (pytest.approx(0.5, rel=5e-2), NOT_TESTABLE)
    assert claim.reason == "one seed, so no spread can be given"


@pytest.mark.parametrize(
    ("ours", "verdict", "reason"),
    [(1.3e-5, "supported", "excludes that it is worse"), (1.1e-5, "not supported", "says it is worse")],
)
def test_half_the_experts_is_level_where_the_loss_is_not_higher(
    ours: float, verdict: str, reason: str, write_arms: WriteArms
) -> None:
    claims = found(write_arms({**expert_choice(ours), **token_choice(1.2e-5)}))
    claim = claims[HALF_EXPERTS]
    assert claim.ours is not None
    assert claim.ours.mean == pytest.approx(9600 * (1.2e-5 - ours))
    assert (claim.verdict, claim.reason) == (verdict, f"the interval {reason}")
    assert claims[HALF_EXPERTS_SCORE].verdict == NOT_TESTABLE
    assert claims[HALF_EXPERTS_SCORE].reason == "No run has shapes-geneval at its end."


def test_the_score_is_compared_in_points_beside_the_printed_differences(
    write_arms: WriteArms, sampled: Callable[..., EvalRow]
) -> None:
    folder = write_arms({**expert_choice(1e-5), **token_choice(1e-5)})
    for run in find_runs(folder):
        config = run.read_run().config
        gain = 0.03 + 0.001 * config["seed"] if config["routing"]["name"] == "expert_choice" else 0.0
        append_evaluations(run, [sampled("shapes-geneval", 0.5 + gain)])
    claim = found(folder)[HALF_EXPERTS_SCORE]
    assert claim.ours is not None
    assert (claim.ours.mean, claim.verdict) == (pytest.approx(3.1), "supported")
    assert claim.form.printed == "XL: GenEval +0.62, DSG +0.13; XXL: GenEval +0.62, DSG -0.27"


@pytest.mark.parametrize(
    ("seconds", "loss", "verdict"),
    [(0.003, 0.05, "supported"), (0.003, 0.07, "not supported"), (0.005, 0.05, "not supported")],
)
def test_a_third_of_the_time_needs_both_the_time_and_the_quality(
    seconds: float, loss: float, verdict: str, tmp_path: Path, write_run: WriteRun
) -> None:
    for seed in range(3):
        for preset, router, at, time in (
            ("nano", "dense", 0.09, 0.002), ("nano", "expert_choice", loss, seconds), ("micro", "dense", 0.06, 0.01),
        ):  # fmt: skip
            settings = {"model": {"name": preset}, "routing": {"name": router}, "train": {"images": 3200}, "seed": seed}
            noise = 1 + 0.001 * seed
            path = tmp_path / f"{preset}-{router}-{seed}"
            write_run(path, settings, lambda n, at=at: at, eval_images=[3200], inference_seconds=time * noise)
    claim = found(tmp_path)[THIRD_TIME]
    assert claim.ours is not None
    assert claim.ours.mean == pytest.approx(seconds / 0.01)
    assert claim.verdict == verdict
    assert claim.setup == "nano: Expert choice against micro: Dense"
    assert f"its loss is {loss - 0.06:+.4f} from the larger model's" in claim.reason


def test_a_claim_whose_runs_are_missing_says_what_it_needs(write_arms: WriteArms) -> None:
    claims = found(write_arms(DENSE, inference_seconds=None))
    assert {claim.verdict for claim in claims.values()} == {NOT_TESTABLE}
    assert claims[HALF_STEPS].reason == "it needs dense of the same depth and expert choice in one setup"
    assert "token choice with 16 experts" in claims[HALF_EXPERTS].reason
    assert "measured inference times" in claims[THIRD_TIME].reason


def test_rows_hold_every_claim_with_its_source(write_arms: WriteArms) -> None:
    records = load_records([write_arms({**DENSE, **expert_choice(2.5e-5)})])
    claims = paper_claims(records, run_table(records))
    rows = paper_claim_rows(claims)
    assert len(rows) == len(claims) == 3
    assert rows["source"].str.contains("EC-DIT").all()
    assert rows["value"].to_list() == pytest.approx([0.4, math.nan, math.nan], nan_ok=True)


def test_printed_sizes_follow_the_papers_own_arithmetic() -> None:
    width = {"XL": 1152, "XXL": 1536, "3XL": 2304, "M": 3072}
    sparse = {"XL": 14, "XXL": 19, "3XL": 21, "M": 19}
    for size in SIZES:
        extra = sparse[size.size] * (size.num_experts - 1) * 8 * width[size.size] ** 2 / 1e9
        if size.size != "M":  # whose dense model has other layers
            assert size.dense_billions + extra == pytest.approx(size.total_billions, abs=0.02)


def test_printed_scores_are_found_and_rise_with_experts() -> None:
    assert paper_score("expert_choice", "XXL", 32).geneval == 70.86
    frame = paper_scores()
    assert len(frame) == len(SCORES)
    assert isinstance(frame, pd.DataFrame)
    for _, models in frame[frame["size"].isin(["XL", "XXL"])].groupby(["router", "size"]):
        assert models["geneval"].is_monotonic_increasing
    assert frame.loc[frame["router"] == "dense", "params_active"].to_list() == [4.5e9]


def test_the_printed_ablation_has_every_cell_once() -> None:
    cells = {(cell.group_tokens, cell.capacity_factor) for cell in CAPACITIES}
    assert cells == {(group, factor) for group in (256, 512, 1024) for factor in (1.0, 2.0)}
    assert min(CAPACITIES, key=lambda cell: cell.fid)[:2] == (1024, 2.0)
