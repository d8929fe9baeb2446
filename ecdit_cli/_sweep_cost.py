"""What a sweep takes, before it is spent: estimates for every run, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ecdit_cli._console import Column, count, duration, flops, print_rows, talk

if TYPE_CHECKING:
    from sweeps.calibration import SpeedPoint
    from sweeps.cost import Place
    from sweeps.plan import Plan, PlannedRun
    from sweeps.slots import Slot

COST_COLUMNS = (
    Column("name", "run"),
    Column("params_total", "total", count, priority=3),
    Column("params_active", "active", count, priority=2),
    Column("flops_per_image", "per image", flops, priority=4),
    Column("images", "images", "{:,}".format, priority=3),
    Column("train_flops", "training", flops, priority=2),
    Column("train_flops_mismatch", "off budget", "{:+.2%}".format, priority=4),
    Column("params_active_mismatch", "off match", "{:+.2%}".format, priority=4),
    Column("memory_gib", "GiB", "{:.2f}".format, priority=1),
    Column("seconds", "time", duration),
)


def place_of(
    plan: Plan, slots: Sequence[Slot], device: str | None, utilisation: float | None, calibrate: bool
) -> Place:
    """An accelerator of the table, or this machine with `slots`, timed unless `calibrate` is False."""
    from sweeps.cost import table_device, this_machine

    if device is not None:
        return table_device(device) if utilisation is None else table_device(device, utilisation)
    num_accelerators = len({name for slot in slots for name in slot.accelerators})
    points: tuple[SpeedPoint, ...] = ()
    if calibrate and plan.wanted:
        from sweeps.calibration import calibrate_plan

        talk().print("Timing a few training steps here (--no-calibration leaves that out) ...", soft_wrap=True)
        points = calibrate_plan(plan, slots[0].num_threads)
    return this_machine(len(slots), num_accelerators, points)


def cost_rows(plan: Plan, num_slots: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row per run, and the total."""
    from sweeps.cost import total

    whole = total(plan, num_slots)
    sums = {
        "num_runs": whole.num_runs,
        "num_merged": plan.num_merged,
        "images": whole.images,
        "train_flops": whole.train_flops,
        "memory_gib": whole.memory_gib,
        "device_seconds": whole.device_seconds,
        "seconds": whole.seconds,
        "num_slots": num_slots,
    }
    return [_row(run) for run in plan.wanted], {key: value for key, value in sums.items() if value is not None}


def print_cost(plan: Plan, num_slots: int) -> None:
    """The table, cheap runs first as they will be run, and where the times come from."""
    rows, sums = cost_rows(plan, num_slots)
    last = {**sums, "name": f"total of {len(rows)} runs"}
    columns = [column for column in COST_COLUMNS if any(row.get(column.key) is not None for row in rows)]
    print_rows([*rows, last], columns, False, title=plan.sweep)
    bases = {run.estimate.basis for run in plan.wanted if run.estimate is not None and run.estimate.seconds is not None}
    if bases:
        at_once = f", {num_slots} runs at a time" if num_slots > 1 else ""
        talk().print(
            f"Time: training alone, from {', '.join(sorted(bases))}{at_once}.",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


def _row(run: PlannedRun) -> dict[str, Any]:
    row = {
        "name": run.name,
        "config_id": run.config_id,
        "params_total": run.params_total,
        "params_active": run.params_active,
        "flops_per_image": run.flops_per_image,
        "train_flops_per_image": run.train_flops_per_image,
        "images": run.images,
        "train_flops": run.train_flops,
        "train_flops_mismatch": run.train_flops_mismatch,
        "params_active_mismatch": run.params_active_mismatch,
        "matched_run": run.matched_run,
    }
    if run.estimate is not None:
        row |= {"memory_gib": run.estimate.memory_gib, "seconds": run.estimate.seconds, "basis": run.estimate.basis}
    return {key: value for key, value in row.items() if value is not None}
