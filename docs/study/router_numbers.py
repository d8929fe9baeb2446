"""Makes the numbers and the table of routers.md from routers-runs.csv.

MaxVio and pair usage need the routing rows of the runs, which are not committed: they are read from the table that
`ecdit compare-routing` wrote to routers-comparison.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from exported_runs import arms, differences, printed_table

from analysis.claims import PairedDifference, supported_differences
from analysis.power import seeds_needed
from analysis.seed_planning import corrected_significance

RUNS, PAGE = "routers-runs.csv", "routers-comparison.md"
ACTIVATED, DEPTH = "Dense (same activated)", "Dense (same depth)"
CONTROLS = {"random": "Random (4E)", "position": "By position (4E)", "noise": "Experts by noise level (4E)"}
WITHOUT_GAIN = ("Soft MoE (8E)", "Switch-DiT (3E)", "ProMoE, experts choose (8E)")
"""Routers that the page names for not gaining over dense of the same activated parameters."""
NAMED = {
    "race": "Expert Race (8E)", "diffmoe": "DiffMoE (8E)", "promoe": "ProMoE (8E)",
    "promoe-ec": "ProMoE, experts choose (8E)", "threshold": "Expert threshold (12E)", "moma": "MoMa (8E)",
    "soft": "Soft MoE (8E)",
}  # fmt: skip


def table() -> Iterator[str]:
    """Yields the table of the arms, with the lowest loss first."""
    yield "| arm | learning rate | loss | at one t | dropped % | MaxVio | pair usage % |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    printed = printed_table(PAGE)
    means = _means()
    for arm in means.sort_values("val_loss").index:
        row = means.loc[arm]
        dropped = "" if pd.isna(row["dropped_share"]) else f"{100 * row['dropped_share']:.1f}"
        violation, usage = (printed.loc[arm, column].replace("–", "") for column in ("MaxVio", "Pair usage %"))
        usage = f"{float(usage):.0f}" if usage else ""
        loss = f"{row['val_loss']:.4f} ± {row['std']:.4f} | {row['val_loss_same_t']:.4f}"
        yield f"| {arm} | {row['optim.learning_rate']:g} | {loss} | {dropped} | {violation} | {usage} |"


def _means() -> pd.DataFrame:
    """Returns the means of every arm over seeds, and the standard deviation of its loss."""
    columns = [
        "val_loss", "val_loss_same_t", "dropped_share", "optim.learning_rate", "val_loss_training_decision",
        "params_active", "flops_per_image", "executed_flops_per_image",
    ]  # fmt: skip
    by_arm = arms(RUNS).groupby("arm")
    return by_arm[columns].mean().assign(std=by_arm["val_loss"].std())


def values() -> Iterator[tuple[str, str]]:
    """Yields the name and the text of every number."""
    means, found = _means(), differences(RUNS)
    alike = means.drop([DEPTH, NAMED["soft"]])
    yield "routers.arms", str(len(means))
    low, high = (f"{number / 1e3:.0f}K" for number in (alike["params_active"].min(), alike["params_active"].max()))
    yield "routers.activated", f"{low} to {high}"
    flops = alike["flops_per_image"]
    yield "routers.flops-within", f"{100 * (flops.max() / flops.median() - 1):.1f}%"
    soft = means.loc[NAMED["soft"]]
    yield "routers.soft-activated", f"{soft['params_active'] / 1e3:.0f}K"
    yield "routers.soft-flops", f"{100 * (soft['flops_per_image'] / flops.median() - 1):.0f}%"
    yield "routers.tested", str(len(found))
    yield "routers.outside", str(sum(each.gap.is_below_zero or each.gap.is_above_zero for each in found))
    yield "routers.supported", "none" if not supported_differences(found) else "some"
    yield from _seeds(found)
    yield from _below_dense(means)
    for name in ("race", "diffmoe", "promoe", "promoe-ec", "threshold"):
        yield f"routers.loss-{name}", f"{means.loc[NAMED[name], 'val_loss']:.4f}"
    for name in ("promoe-ec", "threshold", "moma"):
        yield f"routers.dropped-{name}", f"{100 * means.loc[NAMED[name], 'dropped_share']:.0f}%"
    yield "routers.std-race", f"{means.loc[NAMED['race'], 'std']:.4f}"
    for name in ("race", "diffmoe"):
        yield f"routers.training-{name}", f"{means.loc[NAMED[name], 'val_loss_training_decision']:.4f}"
    executed = 100 * (means["executed_flops_per_image"] / means["flops_per_image"] - 1)
    yield "routers.executed-within", f"{executed[[NAMED['race'], NAMED['diffmoe']]].abs().max():.1f}%"
    yield "routers.executed-fewer", f"{-executed[NAMED['threshold']]:.1f}%"


def _seeds(found: list[PairedDifference]) -> Iterator[tuple[str, str]]:
    """Yields the difference that is nearest to being supported, and the seeds that it needs after the correction."""
    ours = next(each for each in found if (each.arm, each.reference) == ("Expert choice (8E)", ACTIVATED))
    gap = ours.gap
    yield "routers.expert-choice", f"{gap.mean:z.4f}, {gap.low:z.4f} to {gap.high:z.4f}, p {gap.p_value:.4f}"
    significance = corrected_significance(found)
    yield "routers.expert-choice-seeds", str(seeds_needed(gap, significance))
    left_out = {ours.arm, *CONTROLS.values(), *WITHOUT_GAIN}
    others = [each for each in found if each.reference == ACTIVATED and each.arm not in left_out]
    seeds = [seeds_needed(each.gap, significance) or 0 for each in others]
    yield "routers.other-seeds", f"{min(seeds)} to {max(seeds)}"


def _below_dense(means: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yields how far learned routers are below dense of the same activated parameters, and where the controls are."""
    gaps = means["val_loss"] - means.loc[ACTIVATED, "val_loss"]
    others = {DEPTH, ACTIVATED, *CONTROLS.values(), *WITHOUT_GAIN}
    learned = -gaps[[arm for arm in gaps.index if arm not in others]]
    yield "routers.learned", str(len(learned))
    yield "routers.learned-below", f"{learned.min():.3f} to {learned.max():.3f}"
    yield "routers.learned-within", f"{learned.max() - learned.min():.3f}"
    for name, arm in CONTROLS.items():
        yield f"routers.control-{name}", f"{gaps[arm]:+z.4f}"


TABLES = {"routers": table}
