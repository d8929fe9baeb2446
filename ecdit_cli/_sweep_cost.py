"""Estimates what the runs of a sweep cost before they are started, and prints the table of the estimates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.columns import Column
from ecdit_cli._console import print_json, print_rows, say
from ecdit_cli._sweep_power import power_of, print_power
from ecdit_cli._sweep_view import DIFFERS, apart_cell
from experiments.units import count, duration, flops

if TYPE_CHECKING:
    from pathlib import Path

    from sweeps.cost import Place
    from sweeps.device_slots import Slot
    from sweeps.execution import SweepOptions
    from sweeps.plan import Plan, PlannedRun

COST_COLUMNS = (
    Column("name", "run"),
    DIFFERS,
    Column("params_total", "total", count, priority=3),
    Column("params_active", "active", count, priority=2),
    Column("flops_per_image", "per image", flops, priority=4),
    Column("images", "images", "{:,}".format, priority=3),
    Column("train_flops", "training", flops, priority=2),
    Column("train_flops_spent", "spent", flops, priority=3),
    Column("train_flops_mismatch", "off budget", "{:+z.2%}".format, priority=4),
    Column("params_active_mismatch", "off match", "{:+z.2%}".format, priority=4),
    Column("memory_gib", "GiB", "{:.2f}".format, priority=1),
    Column("seconds", "time", duration),
)
FITS = Column("fits", "fits", lambda fits: "yes" if fits else "no")
"""The column that is shown where at least one run does not fit."""


TO_BE_TUNED = "to be tuned"
"""The value of a setting that is not known before proxies have been trained."""


def cost_rows(
    plan: Plan, num_slots: int, place: Place | None = None, tuned: str | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns one row per run, and the total; with `place` each row also says whether the run fits there.

    `tuned` names the setting that is tuned on the proxies in `plan`, which are counted in the total.
    """
    from sweeps.cost import total
    from sweeps.differing_settings import differing_settings
    from sweeps.layout_search import is_fitting

    whole = total(plan, num_slots)
    sums = {
        "num_runs": whole.num_runs,
        "num_merged": plan.num_merged,
        "images": whole.images,
        "train_flops": whole.train_flops,
        "train_flops_spent": whole.train_flops_spent,
        "memory_gib": whole.memory_gib,
        "device_seconds": whole.device_seconds,
        "seconds": whole.seconds,
        "num_slots": num_slots,
    }
    if tuned is not None:
        proxies = [run for run in plan.wanted if run.tunes is not None]
        sums |= {"num_tuning_runs": len(proxies), "tuning_train_flops": sum(run.train_flops for run in proxies)}
    apart = differing_settings(plan.wanted)
    rows = [
        _row(run)
        | apart_cell(apart, run.name)
        | _tuned_cell(run, tuned)
        | ({} if place is None else {"fits": is_fitting(run, place)})
        for run in plan.wanted
    ]
    return rows, {key: value for key, value in sums.items() if value is not None}


def print_cost(plan: Plan, num_slots: int, place: Place | None = None, tuned: str | None = None) -> None:
    """Prints the table of runs in the order of the plan, the cheap ones first, and where the times come from.

    Where a setting is tuned, the runs of an arm are one line.
    """
    rows, sums = cost_rows(plan, num_slots, place, tuned)
    last = [{**sums, "name": f"total of {len(rows)} runs"}]
    if tuned is not None:
        rows = _by_arm(plan, rows)
    columns = [column for column in COST_COLUMNS if any(row.get(column.key) is not None for row in rows)]
    if not any("parent" in row for row in rows):  # what is spent is then what the runs cost
        columns = [column for column in columns if column.key != "train_flops_spent"]
    if tuned is not None:
        columns.insert(1, Column(tuned, tuned, lambda value: value if isinstance(value, str) else f"{value:g}"))
        columns.insert(2, Column("num_seeds", "seeds"))
        part = {"name": f"of these {sums['num_tuning_runs']} for tuning", "train_flops": sums["tuning_train_flops"]}
        last.append(part)
    if not all(row.get("fits", True) for row in rows):
        columns.append(FITS)
    print_rows([*rows, *last], columns, False, title=plan.sweep)
    if any(row.get("num_seeds", 1) > 1 for row in rows):
        say("A row of several seeds has the cost of one of them; the total counts all.")
    whole, spent = sums["train_flops"], sums["train_flops_spent"]
    if spent < whole:
        say(
            f"Of {flops(whole)} of training {flops(spent)} are spent ({spent / whole:.0%}): the trunk that runs of "
            "several lengths share is trained once."
        )
    bases = {run.estimate.basis for run in plan.wanted if run.estimate is not None and run.estimate.seconds is not None}
    if bases:
        at_once = f", {num_slots} runs at a time" if num_slots > 1 else ""
        say(f"Times are of training alone, estimated from {', '.join(sorted(bases))}{at_once}.")


def _by_arm(plan: Plan, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row for the runs of `plan` that differ in their seed alone, with the number of seeds."""
    arms: dict[str, list[tuple[PlannedRun, dict[str, Any]]]] = {}
    for run, row in zip(plan.wanted, rows, strict=True):
        settings = json.dumps([run.tunes, {**run.config, "seed": None}], sort_keys=True)
        arms.setdefault(settings, []).append((run, row))
    return [_row_of_arm(*runs[0], len(runs)) for runs in arms.values()]


def _row_of_arm(run: PlannedRun, row: dict[str, Any], num_seeds: int) -> dict[str, Any]:
    """Returns the row of the first run of an arm, without its seed where the arm has several."""
    if num_seeds == 1:
        return {**row, "num_seeds": 1}
    name = row["name"].rpartition(f"-s{run.config['seed']}")[0]
    differs = {key: value for key, value in row.get(DIFFERS.key, {}).items() if key != "seed"}
    return {**row, "name": name, "num_seeds": num_seeds, DIFFERS.key: differs or None}


def show_cost(
    plan: Plan,
    how: SweepOptions,
    scripts: Sequence[str],
    as_json: bool,
    earlier: Path | None = None,
    tuned: str | None = None,
) -> None:
    """Prints the table and the batch scripts, and then reports what does not fit. `tuned` is as in `cost_rows`.

    With `earlier` it also says which gap the seeds of the plan separate, by the spread over the seeds of that sweep.

    A run that does not fit this machine is only reported, because the plan may be for another one. Raises `SpecError`
    where it does not fit a device that was asked for.
    """
    from sweeps.cost import estimated
    from sweeps.execution import place_of
    from sweeps.layout_search import misfit_of

    power = None if earlier is None else power_of(plan, earlier)
    slots = how.slots_for(plan, len(plan.wanted), must_fit=False) if how.device is None and not scripts else ()
    place = place_of(slots, how.device, how.utilisation) if slots or how.device is not None else None
    if place is not None:
        plan = estimated(plan, _timed_if_asked(place, plan, how, slots))
    num_slots = max(1, len(slots) if slots else how.slots or 1)
    if as_json:
        rows, total = cost_rows(plan, num_slots, place, tuned)
        beside = {"scripts": list(scripts)} if scripts else {}
        print_json({"runs": rows, "total": total, **beside, **({} if power is None else {"power": power.as_json()})})
    else:
        print_cost(plan, num_slots, place, tuned)
        if power is not None:
            print_power(power)
        for script in scripts:
            print(f"\n{script}")
    misfit = None if place is None else misfit_of(plan, place)
    if misfit is not None and how.device is not None:
        raise misfit
    if misfit is not None:
        say(str(misfit))


def _timed_if_asked(place: Place, plan: Plan, how: SweepOptions, slots: Sequence[Slot]) -> Place:
    """Returns `place` with the measured speed of its models where that is asked for and timing does not fail."""
    from experiments.errors import SpecError
    from sweeps.execution import timed

    if not (how.calibrate and slots):
        return place
    try:
        return timed(place, plan, slots[0].num_threads, say)
    except SpecError as error:
        say(f"No times: {error}")
        return place


def _tuned_cell(run: PlannedRun, tuned: str | None) -> dict[str, Any]:
    """Returns the value of the tuned setting, or that it is to be tuned, and a name by which proxies are recognised."""
    from experiments.config.stored import stored_value

    if tuned is None:
        return {}
    value = stored_value(run.config, tuned) if run.config_id else TO_BE_TUNED
    return {"name": f"tuning/{run.name}" if run.tunes is not None else run.name, tuned: value}


def _row(run: PlannedRun) -> dict[str, Any]:
    row = {
        "name": run.name,
        "config_id": run.config_id or None,
        "tunes": run.tunes,
        "params_total": run.params_total,
        "params_active": run.params_active,
        "flops_per_image": run.flops_per_image,
        "train_flops_per_image": run.train_flops_per_image,
        "images": run.images,
        "train_flops": run.train_flops,
        "train_flops_spent": run.train_flops_spent,
        "parent": run.parent,
        "train_flops_mismatch": run.train_flops_mismatch,
        "params_active_mismatch": run.params_active_mismatch,
        "matched_run": run.matched_run,
    }
    if run.estimate is not None:
        row |= {"memory_gib": run.estimate.memory_gib, "seconds": run.seconds_spent, "basis": run.estimate.basis}
    return {key: value for key, value in row.items() if value is not None}
