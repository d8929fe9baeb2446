"""Makes the table and the numbers that docs/getting-started.md says about `make demo`.

    python docs/study/demo_numbers.py out/demo       # takes the tables and figures of a new demo

demo-runs.csv is `ecdit export out/demo` without columns that hold paths, hosts or commands, and demo-arms.csv the
comparison.csv that `make demo` writes, which has what needs the curves of the runs: the images to dense's loss.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from exported_runs import FOLDER, LEFT_OUT, arms, differences, exported

from analysis.claims import SAME_T
from analysis.export_tables import export_runs

RUNS, ARMS = "demo-runs.csv", "demo-arms.csv"
IMAGES = FOLDER.parent / "images"
FIGURES = ("loss-convergence", "inference-time", "routing")
"""The figures of the demo that the pages show. They are drawn from curves and measured times."""
PRIVATE = {*LEFT_OUT, "host", "wandb.project", "wandb.entity"} - {"state", "images_total"}
"""The columns of an export that hold paths, hosts, commands or accounts, or nothing of a run that finished."""
LABELS = {
    "Dense (same depth)": "dense (same depth)", "Token choice": "token choice", "Expert choice": "expert choice",
}  # fmt: skip


def take(demo: Path) -> None:
    """Copies the tables and figures of a finished demo to the docs."""
    table = export_runs(demo)
    table.drop(columns=[name for name in table if name in PRIVATE]).to_csv(FOLDER / RUNS, index=False)
    shutil.copy(demo / "tables" / "comparison.csv", FOLDER / ARMS)
    for name in FIGURES:
        shutil.copy(demo / "figures" / f"{name}.png", IMAGES / f"demo-{name}.png")


def _rows() -> list[dict[str, str]]:
    """Returns the cells of each arm, dense first."""
    losses = arms(RUNS).groupby("arm")["val_loss"]
    rows = []
    for row in pd.read_csv(FOLDER / ARMS).to_dict("records"):
        label = next(label for name, label in LABELS.items() if row["arm"].startswith(name))
        at, dropped = row["images_to_dense_loss"], row["dropped_share"]
        rows.append(
            {
                "arm": label,
                "parameters": f"{row['params_total'] / 1e3:.0f}K",
                "activated": f"{row['params_active'] / 1e3:.0f}K",
                "FLOPs an image": f"{row['flops_per_image'] / 1e6:.1f} M",
                "validation loss, 3 seeds": f"{losses.mean()[row['arm']]:.4f} ± {losses.std()[row['arm']]:.4f}",
                "images to dense's loss": "never" if pd.isna(at) else f"{at:,.0f}",
                "dropped": "" if pd.isna(dropped) else f"{dropped:.1%}",
            }
        )
    return rows


def _lines(rows: list[dict[str, str]]) -> Iterator[str]:
    yield f"| {' | '.join(rows[0])} |"
    yield "|---|" + "--:|" * (len(rows[0]) - 1)
    yield from (f"| {' | '.join(row.values())} |" for row in rows)


def table() -> Iterator[str]:
    """Yields the table of getting-started.md."""
    yield from _lines(_rows())


def values() -> Iterator[tuple[str, str]]:
    """Yields the name and the text of every number."""
    runs = exported(RUNS)
    commits = dict.fromkeys(commit[:7] + commit[40:] for commit in runs["git_commit"])  # `-dirty` stays
    yield "demo.commit", " and ".join(f"`{commit}`" for commit in commits)
    yield "demo.date", runs["created_at"].min()[:10]
    yield "demo.device", re.sub(r"^cpu: |, \d+ cores?$", "", runs["device"].iloc[0])
    yield "demo.precision", runs["precision"].iloc[0]
    yield "demo.images", f"{runs['images_seen'].iloc[0]:,}"
    of_arm = {name: runs.loc[runs["routing.name"] == name, "name"] for name in ("dense", "expert_choice")}
    yield "demo.runs", f"`{of_arm['dense'].iloc[0]}` to `{of_arm['expert_choice'].iloc[-1]}`"
    gaps = {(each.arm, each.reference): each for each in differences(RUNS) if each.reference != SAME_T}
    for name, (arm, reference) in {
        "expert-dense": ("Expert choice", "Dense (same depth)"),
        "expert-token": ("Expert choice", "Token choice"),
    }.items():
        gap = gaps[arm, reference].gap
        yield f"demo.{name}", f"{gap.low:z.4f} to {gap.high:z.4f}"
    supported = [each for each in gaps.values() if each.verdict in ("lower", "higher")]
    yield "demo.conclusion", f"{len(supported) or 'no'} difference{'s' * (len(supported) > 1)}"
    means = arms(RUNS).groupby("arm")["val_loss"].mean()
    yield "demo.lowest", means.idxmin().lower()


TABLES = {"demo": table}

if __name__ == "__main__":
    take(Path(sys.argv[1]))
