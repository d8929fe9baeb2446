"""What is said to be supported is what the intervals support."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from analysis.claims import (
    SAME_T,
    PairedDifference,
    claims,
    conclusion,
    corrected,
    correction,
    supported_differences,
    unsupported_differences,
)
from analysis.compare import Comparison, compare, comparison_markdown, write_comparison
from analysis.load_records import Records, load_records
from analysis.run_table import run_table
from analysis.seed_intervals import Interval, difference

WriteRun = Callable[..., object]
Losses = Mapping[tuple[str, float | None], list[float]]

# (router, width of a dense feed-forward): the final loss by seed
SEPARATED: Losses = {
    ("dense", None): [0.130, 0.132, 0.131],
    ("dense", 6.0): [0.128, 0.130, 0.129],
    ("token_choice", None): [0.124, 0.1262, 0.1249],
    ("expert_choice", None): [0.127, 0.1292, 0.1279],
}


def write_losses(folder: Path, write_run: WriteRun, losses: Losses, same_t: float | None = None) -> Path:
    for (router, width), by_seed in losses.items():
        for seed, loss in enumerate(by_seed):
            settings = {
                "model": {"name": "nano", **({"ffn_factor": width} if width else {})},
                "routing": {"name": router},
                "train": {"images": 3200},
                "seed": seed,
            }
            change = -0.004 + 0.0001 * seed * (router == "expert_choice") + (same_t or 0) * (router == "token_choice")
            final = {"val_loss_same_t": loss + change} if same_t is not None else {}
            write_run(
                folder / f"{router}-{width}-{seed}", settings, lambda n, at=loss: at, eval_images=[3200], final=final
            )
    return folder


@pytest.fixture
def found(tmp_path: Path, write_run: WriteRun) -> dict[tuple[str, str], PairedDifference]:
    table = run_table(load_records([write_losses(tmp_path, write_run, SEPARATED, same_t=0.02)]))
    return {(claim.arm, claim.reference): claim for claim in claims(table)}


def test_an_interval_below_zero_is_a_lower_loss(found: dict[tuple[str, str], PairedDifference]) -> None:
    assert found["Expert choice", "Dense (same depth)"].verdict == "lower"
    assert found["Expert choice", "Dense (same depth)"].gap.mean == pytest.approx(-0.002966, abs=1e-6)
    assert found["Token choice", "Dense (same activated)"].verdict == "lower"


def test_the_wrong_direction_is_said_as_well(found: dict[tuple[str, str], PairedDifference]) -> None:
    assert found["Expert choice", "Token choice"].verdict == "higher"


def test_of_batches_of_one_timestep_only_what_dense_does_not_show_counts(
    found: dict[tuple[str, str], PairedDifference],
) -> None:
    assert found["Token choice", SAME_T].verdict == "higher"
    assert found["Token choice", SAME_T].gap.mean == pytest.approx(0.02)
    assert found["Expert choice", SAME_T].verdict == "not separated"
    assert ("Dense (same depth)", SAME_T) not in found


def test_the_sentence_says_both_sides_and_the_scale(tmp_path: Path, write_run: WriteRun) -> None:
    losses = {**SEPARATED, ("switch", None): [0.129, 0.133, 0.131]}
    comparison = compare(load_records([write_losses(tmp_path, write_run, losses)]))
    assert comparison.conclusion == (
        "At nano with 3,200 training images and 3 seeds, the data supports (95% intervals) a lower validation loss "
        "than Dense (same depth) for Token choice and Expert choice, a lower validation loss than Dense (same "
        "activated) for Token choice and Expert choice, and a higher validation loss than Token choice for Expert "
        "choice; it does not support a difference from Dense (same depth) for Switch, or a difference from Dense (same "
        "activated) for Switch; larger scales were not tested."
    )


def test_many_arms_are_named_by_the_exceptions() -> None:
    def claim(arm: str, low: float) -> PairedDifference:
        return PairedDifference("nano", arm, "Dense", Interval(low + 0.01, low, low + 0.02, 3, "paired"))

    found = [claim(arm, -0.05) for arm in "ABCDE"] + [claim("F", -0.01)]
    assert supported_differences(found) == ["a lower validation loss than Dense for all 6 routed arms but F"]
    assert unsupported_differences(found) == ["a difference from Dense for F"]


def test_differences_are_corrected_for_how_many_were_tested() -> None:
    """p of 0.01 and 0.03 among five: by hand 5 * 0.01 / 1 and 5 * 0.03 / 2; by Holm 5 * 0.01 and 4 * 0.03."""
    p_values = (0.03, 0.5, 0.01, 0.8, None, 0.9)
    gaps = [Interval(-0.1, -0.2, -0.01 if p and p < 0.05 else 0.1, 3, "paired", p) for p in p_values[:4]]
    gaps += [Interval(-0.1, None, None, 1, "paired"), Interval(0.0, -0.1, 0.1, 3, "paired", 0.9)]
    found = corrected([PairedDifference("nano", arm, "Dense", gap) for arm, gap in zip("ABCDEF", gaps, strict=True)])
    assert [claim.p_benjamini_hochberg for claim in found] == pytest.approx([0.075, 0.8333333, 0.05, 0.9, None, 0.9])
    assert [claim.p_holm for claim in found] == pytest.approx([0.12, 1.0, 0.05, 1.0, None, 1.0])
    assert [claim.verdict for claim in found] == [
        "not after correction", "not separated", "lower", "not separated", "not testable", "not separated",
    ]  # fmt: skip
    assert unsupported_differences(found) == ["a difference from Dense for all 6 routed arms but C"]
    assert correction(found) == (
        "Of 5 differences tested, the 95% interval excludes 0 for 2. That number is 1 after Benjamini and Hochberg's "
        "correction, by which differences are called supported, and 1 after Holm's."
    )


def test_many_differences_that_do_not_exist_are_not_called_supported() -> None:
    """Of 2,000 comparisons of three seeds without a difference, 5% have intervals that exclude 0."""
    random = np.random.default_rng(0)
    gaps = [difference(dict(enumerate(one)), dict(enumerate(other))) for one, other in random.normal(size=(2000, 2, 3))]
    found = corrected([PairedDifference("nano", "A", "B", gap) for gap in gaps])
    assert sum(gap.is_below_zero or gap.is_above_zero for gap in gaps) == pytest.approx(100, abs=30)
    assert not [claim for claim in found if claim.verdict in ("lower", "higher")]


def test_one_seed_supports_nothing(tmp_path: Path, write_run: WriteRun) -> None:
    one_seed = {arm: losses[:1] for arm, losses in SEPARATED.items()}
    table = run_table(load_records([write_losses(tmp_path, write_run, one_seed)]))
    found = claims(table)
    assert {claim.verdict for claim in found} == {"not testable"}
    sentence = conclusion(table, found)
    assert "1 seed (fewer than 3, and one has no spread), the data supports no difference; it does not" in sentence


def test_a_baseline_that_was_not_run_is_named(tmp_path: Path, write_run: WriteRun) -> None:
    only = {arm: losses for arm, losses in SEPARATED.items() if arm != ("dense", 6.0)}
    table = run_table(load_records([write_losses(tmp_path, write_run, only)]))
    assert "dense of the same activated parameters was not run" in conclusion(table, claims(table))


def test_a_single_arm_supports_no_conclusion(tmp_path: Path, write_run: WriteRun) -> None:
    folder = write_losses(tmp_path, write_run, {("dense", None): [0.1, 0.2, 0.3]})
    assert "supports no conclusion" in compare(load_records([folder])).conclusion


def test_notes_name_few_seeds_unequal_costs_and_what_was_left_out(
    write_arms: Callable[..., Path], write_run: WriteRun
) -> None:
    folder = write_arms(seeds=(0, 1))
    write_run(folder / "lost", {"routing": {"name": "dense"}, "seed": 9}, lambda n: 1.0, state="failed", reason="gone")
    notes = "\n".join(compare(load_records([folder])).notes)
    assert "Expert choice (nano) has 2 seeds; at least 3 are needed" in notes
    assert "FLOPs per image against Dense (same depth) are not equal" in notes
    assert "lost: failed at 38,400 of 38,400 images: gone." in notes


def test_the_note_on_unequal_costs_counts_executed_flops(tmp_path: Path, write_run: WriteRun) -> None:
    """The plan of DiffMoE is that of dense and its predictor, and its thresholds may let many more pairs through."""
    routing = {"name": "diffmoe", "capacity_factor": 1.0}
    run = write_run(tmp_path / "routed", {"routing": routing}, lambda n: 1.0)
    planned = run.read_run().flops_per_image
    write_run(tmp_path / "dense", {"routing": {"name": "dense"}}, lambda n: 1.0)
    assert "DiffMoE +4%" in "\n".join(compare(load_records([tmp_path])).notes)
    executed = {"executed_flops_per_image": 1.5 * planned}
    write_run(tmp_path / "again", {"routing": routing, "seed": 1}, lambda n: 1.0, final=executed)
    assert "DiffMoE +56%" in "\n".join(compare(load_records([tmp_path])).notes)


def test_runs_of_another_precision_are_not_passed_over(write_arms: Callable[..., Path], write_run: WriteRun) -> None:
    folder = write_arms(seeds=(0,))
    settings = {"routing": {"name": "switch"}, "train": {"images": 9600}}
    write_run(folder / "bf16", settings, lambda n: 1.0, eval_images=[9600], precision="bf16")
    notes = compare(load_records([folder])).notes
    assert "Runs differ in precision (bf16, fp32): losses and speeds are not comparable between them." in notes


def test_a_dense_model_that_matches_some_arms_is_not_sold_as_matching_all(
    write_arms: Callable[..., Path],
) -> None:
    arms = {
        "dense": ({}, {"name": "dense"}, 1e-5),
        "wide": ({"ffn_factor": 6.0}, {"name": "dense"}, 1e-5),
        "switch": ({}, {"name": "switch"}, 1e-5),
        "ec": ({}, {"name": "expert_choice"}, 1e-5),
    }
    notes = compare(load_records([write_arms(arms, seeds=(0,))])).notes
    assert "Dense (same activated) has 19% more activated parameters than Switch." in notes


@pytest.fixture
def comparison(study: Records) -> Comparison:
    return compare(study)


def test_the_files_hold_the_sentence_the_table_and_the_claims(comparison: Comparison, tmp_path: Path) -> None:
    paths = write_comparison(comparison, tmp_path / "new")
    assert sorted(path.name for path in paths) == [f"comparison.{kind}" for kind in ("csv", "md", "png", "svg")]
    text = (tmp_path / "new" / "comparison.md").read_text()
    assert text == comparison_markdown(comparison)
    assert comparison.conclusion in text
    small = r"\<0.0001"
    row = (
        f"| Expert choice | Dense (same depth) | nano | -0.0480 | -0.0480 to -0.0480 | 3 | paired | {small} | {small} |"
    )
    assert f"{row} {small} | lower |" in text
    assert (tmp_path / "new" / "comparison.csv").read_text().count("\n") == 5


def test_variants_of_one_router_without_dense_are_compared(tmp_path: Path, write_run: WriteRun) -> None:
    for factor, losses in ((1.0, [0.130, 0.132, 0.131]), (2.0, [0.120, 0.1222, 0.1211])):
        for seed, loss in enumerate(losses):
            settings = {
                "model": {"name": "nano"}, "routing": {"name": "expert_choice", "capacity_factor": factor},
                "train": {"images": 3200}, "seed": seed,
            }  # fmt: skip
            write_run(tmp_path / f"{factor}-{seed}", settings, lambda n, at=loss: at, eval_images=[3200])
    table = run_table(load_records([tmp_path]))
    (claim,) = claims(table)
    assert {claim.arm, claim.reference} == set(table["arm"])
    assert abs(claim.gap.mean) == pytest.approx(0.0099)
    assert claim.verdict in ("lower", "higher")
    said = conclusion(table, [claim])
    assert "no two arms" not in said
    assert f"a {claim.verdict} validation loss than {claim.reference} for {claim.arm}" in said


def test_a_single_arm_is_compared_with_nothing(tmp_path: Path, write_run: WriteRun) -> None:
    only = {("expert_choice", None): [0.130, 0.132, 0.131]}
    table = run_table(load_records([write_losses(tmp_path, write_run, only)]))
    assert claims(table) == []
    assert "there are no two arms to compare" in conclusion(table, [])


def test_imported_weights_are_in_no_claim(tmp_path: Path, write_imported: WriteRun) -> None:
    for factor in (2.0, 4.0):
        model = {"name": "nano", "block": "dit", "ffn_factor": factor}
        write_imported(tmp_path / str(factor), {"model": model, "routing": {"name": "dense"}})
    comparison = compare(load_records([tmp_path]))
    assert comparison.claims == []
    assert comparison.conclusion == "At nano, no run has a validation loss, so that nothing is compared."
