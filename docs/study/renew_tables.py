"""Renews the tables of the pages beside this file from the committed numbers of their runs.

    python docs/study/renew_tables.py

A table of a page stands between `<!-- table: NAME -->` and `<!-- end -->`, and this program writes what stands there.
A test holds the pages to it, so that a number of a page cannot differ from that of the runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import pandas as pd

from analysis.seed_intervals import difference

FOLDER = Path(__file__).parent
ROUTERS = {"dense": "dense", "token_choice": "token choice", "expert_choice": "expert choice"}
BLOCKS = {"pixart": "PixArt", "dit": "DiT", "mmdit": "MM-DiT"}
OBJECTIVES = {"rectified_flow": "rectified flow", "ddpm": "DDPM"}
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def blocks() -> pd.DataFrame:
    """The runs of `blocks_and_objectives`, with the setting that is left out of a run at its default."""
    runs = pd.read_csv(FOLDER / "blocks-runs.csv")
    runs["model.block"] = runs["model.block"].fillna("pixart")
    runs["flow.objective"] = runs["flow.objective"].fillna("rectified_flow")
    return runs.assign(velocity_error=runs["evals.velocity_error"].fillna(runs["evals.val_loss"]))


def upcycling() -> pd.DataFrame:
    """The runs of the upcycling study, with the images, the FLOPs and the arm of each."""
    runs = pd.read_csv(FOLDER / "upcycling-runs.csv")
    runs["start"] = runs["parent"].notna().map({True: "upcycled", False: "scratch"})
    runs["total_flops"] = runs["train_flops_per_image"] * runs["images_seen"] + runs["flops_before"].fillna(0)
    return runs


def by_seed(runs: pd.DataFrame, column: str) -> dict[int, float]:
    """A value of each seed."""
    return dict(zip(runs["seed"], runs[column], strict=True))


def blocks_table() -> Iterator[str]:
    """Mean and standard deviation of every arm in both measures, and the order of the means."""
    yield "| block | objective | router | learning rate | own loss | velocity error |"
    yield "|---|---|---|--:|--:|--:|"
    for (objective, block), setup in blocks().groupby(["flow.objective", "model.block"], sort=False):
        for router, label in ROUTERS.items():
            arm = setup[setup["routing.name"] == router]
            own, error = (
                f"{arm[name].mean():.4f} ± {arm[name].std():.4f}" for name in ("evals.val_loss", "velocity_error")
            )
            rate = f"{arm['optim.learning_rate'].iloc[0]:g}"
            yield f"| {BLOCKS[str(block)]} | {OBJECTIVES[str(objective)]} | {label} | {rate} | {own} | {error} |"


def blocks_differences() -> Iterator[str]:
    """The difference of every two routers in every setup, over the seeds that they share, in the loss trained on."""
    yield (
        "| block | objective | "
        + " | ".join(f"{ROUTERS[b]} - {ROUTERS[a]}" for a, b in combinations(ROUTERS, 2))
        + " |"
    )
    yield "|---|---|" + "--:|" * 3
    for (objective, block), setup in blocks().groupby(["flow.objective", "model.block"], sort=False):
        cells = []
        for one, other in combinations(ROUTERS, 2):
            values = [by_seed(setup[setup["routing.name"] == each], "evals.val_loss") for each in (other, one)]
            gap = difference(*values)
            cells.append(f"{gap.mean:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})")
        yield f"| {BLOCKS[str(block)]} | {OBJECTIVES[str(objective)]} | " + " | ".join(cells) + " |"


def upcycling_table() -> Iterator[str]:
    """Mean loss of every arm, with the images and FLOPs of the whole."""
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


def upcycling_differences() -> Iterator[str]:
    """The difference of the final loss, upcycled minus from scratch, over the seeds."""
    yield "| router | upcycled - from scratch | 95% interval | p |"
    yield "|---|--:|--:|--:|"
    for router, runs in upcycling().groupby("routing.name", sort=False):
        values = [by_seed(runs[runs["start"] == start], "evals.val_loss") for start in ("upcycled", "scratch")]
        gap = difference(*values)
        yield f"| {ROUTERS[str(router)]} | {gap.mean:+.4f} | {gap.low:+.4f} to {gap.high:+.4f} | {gap.p_value:.4f} |"


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "blocks": blocks_table, "blocks-differences": blocks_differences, "upcycling": upcycling_table,
    "upcycling-differences": upcycling_differences,
}  # fmt: skip


def renewed(page: str) -> str:
    """A page with the tables of today."""
    return MARKED.sub(lambda found: found[1] + "\n".join(TABLES[found[2]]()) + "\n" + found[3], page)


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.md")):
        path.write_text(renewed(path.read_text()))
