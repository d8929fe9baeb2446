"""The numbers of the study that follow from runs.csv, by the project's own analysis.

    python docs/study/recompute.py

It renews scaling-law.csv, scaling-law.png, laws.csv and the sentences and differences of comparison.md, and prints
numbers of README.md. What needs the curves of the runs, which are not committed (the table of comparison.md, compute
multipliers, where a curve reaches a loss), stays what it was at the study's commits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from analysis.claims import PairedDifference, claims, conclusion, correction, values_by_seed
from analysis.compare import INTERVALS, differences_markdown
from analysis.figures.scaling_law import draw_scaling_law
from analysis.laws.bootstrap import NUM_RESAMPLES
from analysis.load_records import Records
from analysis.report.laws import Law, laws
from analysis.seed_intervals import difference
from analysis.seed_planning import seeds_sentence
from analysis.style import write_drawing

FOLDER = Path(__file__).parent
KINDS = {"Dense (same depth)": "dense_same_depth", "Dense (same activated)": "dense_same_active"}
GROUP_IMAGES = 8.0
"""Images of a routing group, in every routed run of the study."""
NO_RECORDS = Records(pd.DataFrame(), pd.DataFrame(), pd.DataFrame(), ())
OWN_NOTES = ("- Intervals are ", "- Of ", "- Seeds an arm ")
"""How the notes begin that are renewed."""
LONGEST = "nano, model.width={}, 9,600 images"
CHANGES = [(arm, width) for width in (32, 48, 72) for arm in ("Expert choice", "Token choice", "Switch")]


def study_table() -> pd.DataFrame:
    """runs.csv as a run table: what it lacks follows from the names of the arms or is the same in all runs."""
    table = pd.read_csv(FOLDER / "runs.csv")
    table["arm_kind"] = table["arm"].map(KINDS).fillna("sparse")
    table["routing.group_images"] = table["routing.name"].map(lambda name: None if name == "dense" else GROUP_IMAGES)
    table["train.images"] = table["images_seen"]
    table["train_flops_per_image"] = table["train_flops"] / table["images_seen"]
    arms = table.drop_duplicates("arm").sort_values(
        ["routing.num_experts", "arm_kind", "arm"], ascending=[True, False, True]
    )
    variants = arms.set_index("arm").groupby("routing.name").cumcount()
    return table.assign(variant=table["arm"].map(variants))


def from_8_to_16(table: pd.DataFrame) -> Iterator[str]:
    """What twice the experts change in the loss, by router, capacity factor and width."""
    for router, width in CHANGES:
        runs = table[table["setup"] == LONGEST.format(width)]
        for f_c in (1, 2):
            more, fewer = (values_by_seed(runs, f"{router} ({experts}E, f_c {f_c})", "val_loss") for experts in (16, 8))
            if more and fewer:
                gap = difference(more, fewer)
                yield f"{router}, f_c {f_c}, width {width}: {gap.mean:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})"


def costs(table: pd.DataFrame) -> Iterator[str]:
    """What f_c = 2 costs and buys against f_c = 1, by router, experts and width."""
    for router, width in CHANGES:
        runs = table[table["setup"] == LONGEST.format(width)]
        for experts in (8, 16):
            names = [f"{router} ({experts}E, f_c {f_c})" for f_c in (1, 2)]
            one, two = (runs[runs["arm"] == name] for name in names)
            if len(one) and len(two):
                flops = two["flops_per_image"].iloc[0] / one["flops_per_image"].iloc[0] - 1
                gap = difference(*(values_by_seed(runs, name, "val_loss") for name in reversed(names)))
                loss = f"loss {gap.mean:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})"
                yield f"{router}, {experts}E, width {width}: {flops:+.1%} FLOPs, {loss}"


def dropped(table: pd.DataFrame) -> Iterator[str]:
    """The share of tokens in mixed batches that f_c = 1 leaves out: dropped, or chosen by no expert."""
    tight = table[(table["routing.capacity_factor"] == 1) & (table["images_seen"] == table["images_seen"].max())]
    for router, runs in tight.groupby("routing.name"):
        shares = runs.groupby(["setup", "arm"])["dropped_share"].mean()
        yield f"{router}, f_c 1: {shares.min():.1%} to {shares.max():.1%} in mixed batches"


def law_rows(found: list[Law]) -> pd.DataFrame:
    """The laws that the runs identify, with their intervals and how well they predict the largest runs."""
    fitted = [law for law in found if law.parameters is not None]
    return pd.DataFrame(
        {
            "law": law.form.name, "family": law.family, "num_runs": law.num_runs,
            "parameters": "; ".join(f"{name} = {value}" for name, value in (law.parameters or {}).items()),
            "largest_runs": law.headline, "sizes_left_out": law.sizes, "intervals": law.resamples,
        }
        for law in fitted
    )  # fmt: skip


def write_comparison(table: pd.DataFrame, found: list[PairedDifference]) -> None:
    """Renews everything in comparison.md but the table of the arms and the other notes."""
    path = FOLDER / "comparison.md"
    old = path.read_text()
    arms = old[old.index("| Arm | Params") : old.index("## Differences")]
    kept = [line for line in old[old.index("## Notes") :].splitlines()[2:] if not line.startswith(OWN_NOTES)]
    notes = [f"- {INTERVALS}", f"- {correction(found)}", f"- {seeds_sentence(found)}", *kept]
    parts = ["# Comparison of routers\n", f"{conclusion(table, found)}\n", arms + differences_markdown(found)]
    path.write_text("\n".join([*parts, "## Notes\n", *notes]) + "\n")


def main() -> None:
    """Renews the files and prints the numbers."""
    table = study_table()
    found = claims(table)
    print(correction(found))
    for part in (from_8_to_16, costs, dropped):
        print(f"\n{(part.__doc__ or '').splitlines()[0]}")
        print("\n".join(f"- {line}" for line in part(table)))
    write_comparison(table, found)
    write_drawing(draw_scaling_law(NO_RECORDS, table, NUM_RESAMPLES), FOLDER, "scaling-law")
    (FOLDER / "scaling-law.svg").unlink()
    rows = law_rows(laws(table))
    rows.to_csv(FOLDER / "laws.csv", index=False)
    print(f"\nLaws that the runs identify ({len(rows)}):")
    print(
        "\n".join(
            f"- {law}, {family}: {text}" for law, family, text in rows[["law", "family", "largest_runs"]].to_numpy()
        )
    )


if __name__ == "__main__":
    main()
