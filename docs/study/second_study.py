"""The second study (second-study.md): runs a part, writes its small tables, and makes the page of results from them.

    python docs/study/second_study.py power          # the number of seeds, from the table of the first study
    python docs/study/second_study.py run shapes-0   # or another part: tuning, shapes-1 ... emoji-4
    python docs/study/second_study.py page           # second-study-results.md, from all tables that are there

`run` executes what second-study.md lists for the part. Whatever is done already is left alone, so that the same command
continues a part that was interrupted. `second_study_results.py` decides what the tables say, and
`second_study_page.py` writes the page.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from second_study_page import write_page
from second_study_results import NUM_SEEDS, SHAPES
from study_numbers import study_table

from analysis.claims import claims
from analysis.diverged_runs import diverged_table
from analysis.load_records import Records, load_records
from analysis.object_experts import object_experts
from analysis.power import seeds_text
from analysis.run_table import run_table
from analysis.seed_intervals import CONFIDENCE
from analysis.seed_planning import plan_power
from sweeps.folder import SweepFolder

FOLDER = Path(__file__).parent
SPECS = {SHAPES: "sweeps/second_study_shapes.yaml", "emoji": "docs/study/second_study_emoji.yaml"}
OUT = Path("out/second")
TUNING = "tuning"
PARTS = (TUNING, *(f"{data}-{seed}" for data in SPECS for seed in range(NUM_SEEDS)))
NUM_TESTS = 56
"""The tests of one question on one data set at most: 14 routed arms at four widths."""
CHOSEN = ("Token choice (8E, f_c 1)", "Token choice (8E, f_c 2)")
RATES = ("0.002", "0.004", "0.008", "0.016")
PROXY = (
    "model.width=48", "seed=5", "train.images=15360", "eval.every_images=15360"
)  # fmt: skip
"""The settings of the runs that tune: the base width, a seed that is none of the study's, and the longest training."""
PREPARE = ("data", "prepare", "emoji", "out/emoji", "--image-size", "16", "--validation-images", "320")
SCENES = ("--metrics", "routing", "--weights", "raw", "--images", "64")
AVERAGES = ("--metrics", "validation-loss", "--ema", "0.05,0.07,0.1")
SETTINGS = (
    "model.name", "model.width", "model.ffn_factor", "model.sparse_layers", "routing.name", "routing.num_experts",
    "routing.capacity_factor", "routing.group_images", "optim.learning_rate", "train.images", "seed",
)  # fmt: skip
MEASURED = (
    "images_seen", "params_total", "params_active", "params_active_without_embeddings", "flops_per_image",
    "train_flops_per_image", "planned_train_flops_per_image", "executed_flops_per_image",
    "executed_flops_per_image_same_t", "train_seconds", "images_per_second", "inference_seconds_per_image", "val_loss",
    "val_loss_ema", "val_loss_same_t", "val_loss_training_decision", "dropped_share", "dropped_share_same_t", "device",
    "git_commit",
)  # fmt: skip
TENTH = r"^val_loss(?P<condition>_same_t)?_t(?P<tenth>\d)$"


def commands(part: str) -> Iterator[tuple[str, ...]]:
    """The arguments of `ecdit` that make a part, in their order."""
    for data, spec in SPECS.items():
        if part == TUNING:
            for rate in RATES:
                out = str(OUT / f"{part}-{data}-{rate}")
                yield from ([PREPARE] if data == "emoji" else [])
                yield ("sweep", spec, *PROXY, f"optim.learning_rate={rate}", "wandb.mode=disabled", "--out", out)
        elif part.startswith(data):
            out = str(OUT / part)
            yield from ([PREPARE] if data == "emoji" else [])
            yield ("sweep", spec, f"seed={part[-1]}", "wandb.mode=disabled", "--out", out)
            yield from ([("evaluate", f"{out}/runs", *SCENES)] if data == SHAPES else [])  # where objects are known
            yield ("evaluate", f"{out}/runs", *AVERAGES)


def run(part: str) -> None:
    """Executes a part and writes its tables. The first command that fails ends it."""
    for arguments in commands(part):
        print("ecdit", *arguments, flush=True)
        ended = subprocess.run([sys.executable, "-m", "ecdit_cli", *arguments], check=False)
        # A sweep of which a run diverged ends with 1. That is a result, and `finished_records` refuses any other end.
        if ended.returncode and (arguments[0] != "sweep" or ended.returncode != 1):
            sys.exit(f"this command failed: ecdit {' '.join(arguments)}")
    tables = FOLDER / "second"
    if part != TUNING:
        write_tables(finished_records([OUT / part]), tables, part)
        return
    for data, spec in SPECS.items():
        found = finished_records([OUT / f"{part}-{data}-{rate}" for rate in RATES])
        write_tables(found, tables, f"{data}-{part}")
        write_rates(tables / f"{data}-{part}-runs.csv", FOLDER.parents[1] / spec)


def finished_records(folders: Sequence[Path]) -> Records:
    """The records of sweeps of which every run has finished or diverged; ends the program where others are left."""
    records = load_records(folders, tell=print)
    planned = sum(len(plan.runs) for plan in (SweepFolder(folder).read_plan() for folder in folders) if plan)
    lacking = planned - len(records.runs) - (0 if records.diverged is None else len(records.diverged.runs))
    if lacking:
        sys.exit(f"{lacking} of {planned} runs are not done: run the same command again; ecdit status says why.")
    return records


def write_tables(records: Records, folder: Path, name: str) -> None:
    """Writes `name`-runs, -curves, -times, -averages and -objects.csv, without paths, hosts and commands."""
    folder.mkdir(parents=True, exist_ok=True)
    table = run_table(records)
    key = table[["run", "config_id"]]
    write(table[["config_id", *(each for each in (*SETTINGS, *MEASURED) if each in table)]], folder, name, "runs")
    evals = records.evals
    raw = evals[evals["weights"] == "raw"]
    curves = raw.loc[raw["metric"] == "val_loss", ["run", "images_seen", "value"]].rename(columns={"value": "loss"})
    write(key.merge(curves, on="run"), folder, name, "curves")
    last = key.merge(table[["run", "images_seen"]], on="run").merge(raw, on=["run", "images_seen"])
    parts = last["metric"].str.extract(TENTH).assign(config_id=last["config_id"], loss=last["value"])
    times = parts[parts["tenth"].notna()]
    one_timestep = times["condition"].notna().map({True: "one timestep", False: "mixed"})
    write(times.assign(condition=one_timestep)[["config_id", "condition", "tenth", "loss"]], folder, name, "times")
    widths = evals["settings_key"].map(lambda key: json.loads(key).get("ema_width"))
    averages = evals.assign(ema_width=widths)[widths.notna() & (evals["metric"] == "validation-loss")]
    averages = key.merge(averages, on="run").rename(columns={"value": "loss"})
    write(averages[["config_id", "ema_width", "loss"]], folder, name, "averages")
    write(key.merge(object_experts(table), on="run"), folder, name, "objects")
    lost = diverged_table(records).reindex(columns=[*SETTINGS, "diverged_at_images", "last_loss"])
    write(lost, folder, name, "diverged")


def write(rows: pd.DataFrame, folder: Path, name: str, kind: str) -> None:
    """Writes a table with seven digits of each number; one without rows is not written, and an old one is removed."""
    path = folder / f"{name}-{kind}.csv"
    path.unlink(missing_ok=True)
    if len(rows):
        rows.drop(columns=["run"], errors="ignore").to_csv(path, index=False, float_format="%.7g")


def best_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """The rate with the lowest loss of every arm, with `is_edge` where it is the first or last that was tried."""
    arm = ["routing.name", "model.ffn_factor", "routing.num_experts", "routing.capacity_factor"]
    runs = runs.fillna({"routing.capacity_factor": -1})
    best = runs.loc[runs.groupby(arm)["val_loss"].idxmin(), [*arm, "optim.learning_rate", "val_loss"]]
    rates = runs["optim.learning_rate"]
    return best.assign(is_edge=best["optim.learning_rate"].isin([rates.min(), rates.max()])).reset_index(drop=True)


def write_rates(tuned: Path, spec: Path) -> None:
    """Writes the rates that were best in the table `tuned` into the arms of a sweep file."""
    best = best_rates(pd.read_csv(tuned)).to_dict("records")
    spec.write_text("".join(with_rate(line, best) for line in spec.read_text().splitlines(keepends=True)))


def with_rate(line: str, best: Sequence[dict[object, object]]) -> str:
    """A line of a sweep file; one that is an arm gets the rate that was best for this arm."""
    if not line.lstrip().startswith("- routing.name="):
        return line
    settings = dict(word.split("=") for word in line.split() if "=" in word)
    same = [row for row in best if is_arm(row, settings)]
    assert len(same) == 1, f"{len(same)} tuned arms fit this line: {line}"
    return re.sub(r"optim\.learning_rate=\S+", f"optim.learning_rate={same[0]['optim.learning_rate']:g}", line)


def is_arm(row: dict[object, object], settings: dict[str, str]) -> bool:
    """Says whether a row of `best_rates` is the arm with these settings."""
    wanted = {"routing.name": settings["routing.name"], "model.ffn_factor": 4.0} | {
        name: float(value)
        for name, value in settings.items()
        if name in ("model.ffn_factor", "routing.num_experts", "routing.capacity_factor")
    }
    return all(row[name] == value for name, value in wanted.items())


def power() -> Iterator[str]:
    """What numbers of seeds separate, and how many known gaps need, by the spread over seeds of the first study."""
    earlier = study_table()
    earlier = earlier[earlier["images_seen"] == earlier["images_seen"].max()]
    for seeds in (3, 5, 8):
        plan = plan_power(earlier, [{"seed": seed} for seed in range(seeds)])
        assert plan.smallest_gap is not None
        relative = plan.smallest_gap / earlier["val_loss"].mean()
        yield f"{seeds} seeds separate a gap of {plan.smallest_gap:.4f} ({relative:.1%} of the mean loss)"
    yield f"The difference of two runs of a seed spreads by {plan.spread:.4f}, over {len(plan.rows)} comparisons."
    strict = (1 - CONFIDENCE) / NUM_TESTS
    for claim in claims(earlier):
        if claim.arm.startswith("Expert choice (8E") and claim.reference in ("Dense (same depth)", *CHOSEN):
            pooled = replace(claim.gap, spread=plan.spread)
            needed = seeds_text(pooled), seeds_text(pooled, strict)
            gap = f"{claim.arm} from {claim.reference}, {claim.gap.mean:+.4f}"
            yield f"{claim.setup}: {gap}: {' / '.join(needed)} seeds"


if __name__ == "__main__":
    what, part, *_ = [*sys.argv[1:], "", ""]
    if what == "run" and part in PARTS:
        run(part)
    elif what == "power":
        print("\n".join(power()))
    elif what == "page":
        write_page(FOLDER)
    else:
        sys.exit(f"usage: second_study.py power | page | run PART, where PART is one of {', '.join(PARTS)}")
