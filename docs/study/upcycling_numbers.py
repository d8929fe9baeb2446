"""Makes the numbers and tables of upcycling.md from upcycling-runs.csv."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from block_numbers import ROUTERS, by_seed
from exported_runs import differences, exported

from analysis.seed_intervals import difference

RUNS = "upcycling-runs.csv"


def upcycling() -> pd.DataFrame:
    """Returns the runs of the upcycling study, with the start and the FLOPs of each, its parent's included."""
    runs = exported(RUNS).copy()
    runs["start"] = runs["parent"].notna().map({True: "upcycled", False: "scratch"})
    runs["total_flops"] = runs["train_flops_per_image"] * runs["images_seen"] + runs["flops_before"].fillna(0)
    return runs


def table() -> Iterator[str]:
    """Yields the mean loss of every arm, with its images and FLOPs."""
    yield "| router | first weights | images of its own | TFLOP, with the parent's | validation loss |"
    yield "|---|---|--:|--:|--:|"
    runs = upcycling()
    for router, label in ROUTERS.items():
        for start in ("upcycled", "scratch"):
            arm = runs[(runs["routing.name"] == router) & (runs["start"] == start)]
            if arm.empty:
                continue
            loss = f"{arm['evals.val_loss'].mean():.4f} ± {arm['evals.val_loss'].std():.4f}"
            images, flops = arm["images_seen"].iloc[0], arm["total_flops"].iloc[0] / 1e12
            yield f"| {label} | {start} | {images:,} | {flops:.1f} | {loss} |"


def differences_table() -> Iterator[str]:
    """Yields the difference of the final loss, upcycled minus from scratch, over the seeds."""
    yield "| router | upcycled - from scratch | 95% interval | p |"
    yield "|---|--:|--:|--:|"
    for router, runs in upcycling().groupby("routing.name", sort=False):
        gap = difference(
            *(by_seed(runs[runs["start"] == start], "evals.val_loss") for start in ("upcycled", "scratch"))
        )
        interval = f"{gap.low:+z.4f} to {gap.high:+z.4f}"
        yield f"| {ROUTERS[str(router)]} | {gap.mean:+z.4f} | {interval} | {gap.p_value:.4f} |"


def values() -> Iterator[tuple[str, str]]:
    """Yields the name and the text of every number."""
    runs = upcycling()
    upcycled = runs[runs["start"] == "upcycled"]
    means = upcycled.groupby("routing.name")["evals.val_loss"].mean()
    yield "upcycling.images", f"{upcycled['images_seen'].iloc[0]:,}"
    yield "upcycling.scratch-images", f"{runs.loc[runs['start'] == 'scratch', 'images_seen'].iloc[0]:,}"
    yield "upcycling.losses", " and ".join(f"{means[router]:.3f}" for router in ("token_choice", "expert_choice"))
    supported = sum(each.verdict == "higher" for each in differences(RUNS))
    yield "upcycling.supported", ("none", "one", "both")[supported]


TABLES = {"upcycling": table, "upcycling-differences": differences_table}
