"""Shows the layouts of `ecdit plan` as tables for a person, and the same numbers as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.columns import Column, Row
from ecdit_cli._console import print_rows
from experiments.units import count, duration, flops

if TYPE_CHECKING:
    from sweeps.parallel_layouts import LayoutPlan

GIB, MIB = 2**30, 2**20
ZETTA = 1e21
DAY = 24 * 3600
KINDS = {
    "parameters": "weights",
    "gathered": "weights of others, gathered",
    "gradients": "gradients",
    "reduction": "buffers of their reduction",
    "master_weights": "fp32 master weights",
    "optimizer_state": "optimizer state",
    "optimizer_scratch": "optimizer at work",
    "moving_average": "moving average (EMA)",
    "activations": "activations",
    "all_to_all": "all-to-all buffers",
    "batch": "batch",
}


def plan_row(plan: LayoutPlan, dollars_per_hour: float | None) -> dict[str, Any]:
    """Returns a layout with its memory, time and cost, without the keys that are not known."""
    config, hours = plan.config, plan.device_hours
    row = {
        "world": config.parallel.world,
        "expert_parallel": config.parallel.expert_parallel,
        "zero_stage": plan.zero_stage,
        "accumulation": config.train.accumulation,
        "activation_checkpointing": config.parallel.activation_checkpointing,
        "memory_gib": plan.needed_gib,
        "fits": plan.fits,
        "compute_seconds": plan.compute_seconds,
        "communication_seconds": plan.communication_seconds,
        "step_seconds": plan.step_seconds,
        "seconds": plan.seconds,
        "device_hours": hours,
        "dollars": None if hours is None or dollars_per_hour is None else hours * dollars_per_hour,
    }
    return {key: value for key, value in row.items() if value is not None}


def plan_json(plan: LayoutPlan, dollars_per_hour: float | None) -> dict[str, Any]:
    """Returns everything that the tables show."""
    from experiments.config.budget import budget

    cost = budget(plan.config)
    return {
        **plan_row(plan, dollars_per_hour),
        "device": plan.place.name,
        "device_memory_gib": plan.place.memory_gib,
        "devices_per_node": plan.place.devices_per_node,
        "basis": plan.place.basis(plan.config),
        "params_total": cost.params_total,
        "params_active": cost.params_active,
        "params_per_process": plan.params_per_process,
        "batch_images": plan.config.train.batch_images,
        "images": plan.config.total_images,
        "steps": plan.num_steps,
        "train_flops_per_step": plan.train_flops_per_step,
        "executed_flops_per_step": plan.executed_flops_per_step,
        "memory_gib_by_moment": {
            moment: {kind: size / GIB for kind, size in parts.items()} for moment, parts in _moments(plan).items()
        },
        "host_memory_gib_per_node": plan.host_gib,
        "network": [
            {**vars(transfer), **({} if seconds is None else {"seconds": seconds})}
            for transfer, seconds in zip(plan.transfers, plan.transfer_seconds, strict=True)
        ],
    }


def print_plan(plan: LayoutPlan, dollars_per_hour: float | None) -> None:
    """Prints four tables: the run, the memory of a device, its traffic, and time and cost."""
    _print_model(plan)
    _print_memory(plan)
    if plan.transfers:
        _print_network(plan)
    _print_cost(plan, dollars_per_hour)


def print_layouts(plans: Sequence[LayoutPlan], dollars_per_hour: float | None) -> None:
    """Prints a row for each layout."""
    rows = [{**plan_row(plan, dollars_per_hour), "layout": _layout(plan)} for plan in plans]
    columns = (
        Column("world", "devices"),
        Column("layout", "layout"),
        Column("memory_gib", "GiB", "{:.1f}".format),
        Column("step_seconds", "a step", _seconds, whole=True),
        Column("seconds", "training", _long, whole=True),
        Column("device_hours", "device-hours", _amount, whole=True),
        Column("dollars", "dollars", _amount, whole=True),
    )
    shown = [column for column in columns if any(column.key in row for row in rows)]
    _print_block(rows, shown, "Layouts that fit, the cheapest first: the cheapest of each number of devices")


def _print_model(plan: LayoutPlan) -> None:
    from experiments.config.budget import budget

    config, cost = plan.config, budget(plan.config)
    parallel = config.parallel
    experts = f", {config.routing.num_experts} experts" if config.sparse_layer_indices else ""
    passes = config.train.accumulation
    local = f"{config.micro_batch_images} on each process"
    batch = f"{config.train.batch_images:,} images, " + (local if passes == 1 else f"{passes} passes of {local}")
    rows = [
        {"what": "parameters", "value": f"{count(cost.params_total)}, {count(cost.params_active)} activated"},
        {"what": "of which a process computes with", "value": count(plan.params_per_process)},
        {"what": "layout", "value": f"{parallel.world} processes, {_layout(plan)}"},
        {"what": "batch", "value": batch},
    ]
    title = f"{config.model.name}, {config.routing.name}{experts}, on {plan.place.name}"
    _print_block(rows, [Column("what", "run"), Column("value", "", prose=True)], title)


def _print_memory(plan: LayoutPlan) -> None:
    """Prints the memory by kind, with a column for each moment of a step at which it may be largest."""
    moments, on_accelerator = _moments(plan), plan.place.on_accelerator
    name, unit, digits = ("GiB", GIB, 2) if plan.memory.peak >= GIB else ("MiB", MIB, 1)
    labels = {**KINDS, "outside": "driver and allocator" if on_accelerator else "process, allocator and saving"}
    rows: list[Row] = []
    for kind, label in labels.items():
        sizes = {moment: parts.get(kind, 0) / unit for moment, parts in moments.items()}
        shown = {moment: size for moment, size in sizes.items() if round(size, digits)}
        rows += [{"kind": label, **shown}] if shown else []
    rows.append({"kind": "total", **{moment: sum(parts.values()) / unit for moment, parts in moments.items()}})
    columns = [Column(moment, moment, f"{{:,.{digits}f}}".format, whole=True) for moment in moments]
    title = f"Memory of {'a device' if on_accelerator else 'a process'} in {name}, by moment of a step"
    _print_block(rows, [Column("kind", "kind"), *columns], title)


def _print_network(plan: LayoutPlan) -> None:
    rows: list[Row] = [
        {
            "what": transfer.what, "operation": transfer.operation, "group": transfer.group,
            "sent": transfer.bytes_sent / 1e9, "seconds": seconds,
        }
        for transfer, seconds in zip(plan.transfers, plan.transfer_seconds, strict=True)
    ]  # fmt: skip
    rows.append(
        {
            "what": "total",
            "sent": sum(transfer.bytes_sent for transfer in plan.transfers) / 1e9,
            "seconds": plan.communication_seconds,
        }
    )
    columns = [
        Column("what", "what"),
        Column("operation", "operation"),
        Column("group", "processes"),
        Column("sent", "GB sent", "{:,.3f}".format),
        Column("seconds", "time", _seconds, whole=True),
    ]
    shown = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    _print_block(rows, shown, "Network: what a process sends in a step")


def _print_cost(plan: LayoutPlan, dollars_per_hour: float | None) -> None:
    row = plan_row(plan, dollars_per_hour)
    executed = plan.executed_flops_per_step
    again = "" if executed == plan.train_flops_per_step else f", {flops(executed)} with what is recomputed"
    rows: list[Row] = [
        {"what": "FLOPs", "step": flops(plan.train_flops_per_step) + again,
         "training": _all_flops(plan.train_flops_per_step * plan.num_steps)},
        {"what": "computing", "step": _seconds(row.get("compute_seconds"))},
        {"what": "communicating", "step": _seconds(row.get("communication_seconds") if plan.transfers else None)},
        {"what": "time", "step": _seconds(row.get("step_seconds")), "training": _long(row.get("seconds"))},
        {"what": "device-hours", "training": _amount(row.get("device_hours"))},
        {"what": "dollars", "training": _amount(row.get("dollars"))},
    ]  # fmt: skip
    shown = [line for line in rows if line.get("step") or line.get("training")]
    columns = [
        Column("what", "cost"),
        Column("step", "a step", whole=True),
        Column("training", f"{plan.num_steps:,} steps ({plan.config.total_images:,} images)", whole=True),
    ]
    _print_block(shown, columns, "Time and cost")


def _print_block(rows: Sequence[Row], columns: Sequence[Column], title: str) -> None:
    """Prints a table under its title, in a pipe too, because several tables follow each other."""
    from ecdit_cli._console import data

    if not data().is_terminal:
        print(f"\n{title}")
    print_rows(rows, columns, as_json=False, title=title)


def _moments(plan: LayoutPlan) -> dict[str, dict[str, int]]:
    """Returns the bytes of each moment by kind, with those outside tensors.

    Outside tensors are the driver, the process and, on a CPU, the checkpoint that is being written.
    """
    return {
        name: {**parts, "outside": plan.memory.outside_tensors(sum(parts.values()))}
        for name, parts in plan.memory.moments().items()
    }


def _seconds(seconds: float | None) -> str:
    """Formats seconds as `0.324 s`, longer times as a duration, and an unknown time as nothing."""
    if seconds is None:
        return ""
    return f"{seconds:.3g} s" if seconds < 60 else duration(seconds)


def _long(seconds: float | None) -> str:
    """Formats seconds as a duration, from two days on in days."""
    if seconds is None:
        return ""
    return duration(seconds) if seconds < 2 * DAY else f"{seconds / DAY:,.1f} days"


def _amount(value: float | None) -> str:
    """Formats hours or dollars: `4.93`, `21,548`."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _all_flops(value: float) -> str:
    return f"{value / ZETTA:,.3g} ZFLOP" if value >= ZETTA else flops(value)


def _layout(plan: LayoutPlan) -> str:
    """Describes a layout: `ZeRO-1, experts over 64, 2 passes, recompute`."""
    parallel, passes = plan.config.parallel, plan.config.train.accumulation
    words = [f"ZeRO-{plan.zero_stage}"]
    words += [f"experts over {parallel.expert_parallel}"] if parallel.expert_parallel > 1 else []
    words += [f"{passes} passes"] if passes > 1 else []
    words += ["recompute"] if parallel.activation_checkpointing else []
    return ", ".join(words)
