"""`ecdit plan` estimates what one run costs in its parallel layout before it starts, and finds the cheapest layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ecdit_cli._console import print_json, say
from ecdit_cli._option_checks import ADD_DEVICE, WITHOUT_DEVICE, refuse_ignored
from ecdit_cli._options import ConfigFile, Device, Json, Overrides, Utilisation
from ecdit_cli._progress import progress

if TYPE_CHECKING:
    from pathlib import Path

    from experiments.config.schema import RunConfig
    from experiments.records.record_types import Precision
    from sweeps.cost import Place
    from sweeps.parallel_layouts import LayoutPlan

SHOWN_LAYOUTS = 8


def plan(
    overrides: Overrides,
    config_file: ConfigFile = None,
    device: Device = None,
    devices_per_node: Annotated[int, typer.Option(min=1, max=4096, help="Devices that share a node's fast links.")] = 8,
    utilisation: Utilisation = None,
    price: Annotated[
        float | None, typer.Option(min=0, max=1e6, metavar="DOLLARS", help="Price of one device for an hour.")
    ] = None,
    search: Annotated[bool, typer.Option("--search", help="Find the cheapest parallel layout that fits.")] = False,
    max_devices: Annotated[
        int | None, typer.Option(min=1, max=131_072, help="With --search: use at most so many devices.")
    ] = None,
    days: Annotated[
        float | None, typer.Option(min=0, max=1e6, help="With --search: the training must end within so many days.")
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Also simulate a step of one rank with fake tensors, without its memory.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Plan one run: memory of a device, traffic, time and cost in its parallel layout, or in the cheapest (--search).

    Examples: ecdit plan model=M routing.num_experts=64 parallel.world=512 parallel.expert_parallel=64 --device H100
    """
    from sweeps.parallel_layouts import plan_layout

    _refuse_ignored(device, devices_per_node, utilisation, max_devices, None if search else days)
    config = _config(overrides, config_file)
    place = _place(device, devices_per_node, utilisation, max_devices)
    asked = plan_layout(config, place)
    found = _search(config, place, days) if search else []
    shown = found[0] if search else asked
    simulated = _simulated(shown) if simulate else None
    _show(shown, found, search, price, as_json, simulated)
    if simulated is not None:
        _say_what_was_stepped(simulated)
    if not asked.fits:
        _say_that_it_does_not_fit(asked, found, search)


def _refuse_ignored(
    device: str | None,
    devices_per_node: int,
    utilisation: float | None,
    max_devices: int | None,
    days_without_search: float | None,
) -> None:
    """Raises `EcditError` for an option about devices where none is named, and for `--days` without a search."""
    from sweeps.cost import DEVICES_PER_NODE

    days = {"--days": days_without_search is not None}
    refuse_ignored(days, "is a limit for --search, which is not given", "Add --search, or leave it out.")
    of_devices = {
        "--devices-per-node": devices_per_node != DEVICES_PER_NODE,
        "--utilisation": utilisation is not None,
        "--max-devices": max_devices is not None,
    }
    if device is None:
        refuse_ignored(of_devices, WITHOUT_DEVICE, ADD_DEVICE)


def _config(overrides: list[str], config_file: Path | None) -> RunConfig:
    """Returns the settings of the run. A default batch that does not divide is rounded up to one that does."""
    from experiments.config.designs import load_designed, separate
    from experiments.config.overrides import build_config, expand

    settings = expand(separate(overrides)[0])
    if config_file is None and "train.batch_images" not in settings:
        open_config = build_config(settings)
        passes = open_config.parallel.world * open_config.train.accumulation
        if open_config.train.batch_images % passes:
            batch = -(-open_config.train.batch_images // passes) * passes
            say(f"train.batch_images is not given: planned with {batch}, for {passes} forward passes a step.")
            overrides = [f"train.batch_images={batch}", *overrides]
    return load_designed(overrides, config_file).config


def _place(device: str | None, devices_per_node: int, utilisation: float | None, max_devices: int | None) -> Place:
    """Returns accelerators of the table, or this machine."""
    from dataclasses import replace

    from sweeps.cost import MAX_DEVICES, table_device, this_machine
    from sweeps.devices import UTILISATION, accelerator_memory_gib

    if device is None:
        say("No --device is given, so the plan is for this machine, whose speed is not known.")
        return replace(this_machine(num_accelerators=int(accelerator_memory_gib() is not None)), devices_per_node=1)
    return table_device(device, utilisation or UTILISATION, max_devices or MAX_DEVICES, devices_per_node)


def _search(config: RunConfig, place: Place, days: float | None) -> list[LayoutPlan]:
    """Returns the layouts that fit. Raises `SpecError` where none does, or none in time."""
    from experiments.errors import SpecError
    from sweeps.layout_search import way_out
    from sweeps.parallel_layouts import DAY, search

    with progress("searching layouts") as show:
        found = search(config, place, None if days is None else days * DAY, show)
    if found:
        return found
    if days is not None:
        raise SpecError(
            f"no layout of train.batch_images={config.train.batch_images} on at most {place.max_world} x {place.name} "
            f"is known to end within {days:g} days.",
            "Use a larger --days, --max-devices or train.batch_images.",
        )
    raise SpecError(f"no layout fits {place.name}.", way_out(config, place))


def _show(
    shown: LayoutPlan,
    found: list[LayoutPlan],
    search: bool,
    price: float | None,
    as_json: bool,
    simulated: dict[str, Any] | None,
) -> None:
    """Prints the layout that was asked for; after a search the cheapest one, and the next ones."""
    from ecdit_cli._plan_tables import plan_json, plan_row, print_layouts, print_plan
    from sweeps.layout_search import settings

    if as_json:
        rows: dict[str, Any] = {"layouts": [plan_row(one, price) for one in found]} if search else {}
        rows |= {} if simulated is None else {"in_shape": simulated}
        print_json({**plan_json(shown, price), "settings": settings(shown.config), **rows})
        return
    print_plan(shown, price)
    if search:
        print_layouts(found[:SHOWN_LAYOUTS], price)
        say(f"The cheapest layout: {' '.join(settings(shown.config))}")
    _say_where_it_comes_from(shown)


def _simulated(plan: LayoutPlan) -> dict[str, Any]:
    """Simulates a step of the last rank, and returns its memory and collectives beside the estimate."""
    from dataclasses import asdict

    from experiments.config.activations import working_bytes
    from experiments.config.memory import memory

    say("Simulating a step of the last rank with fake tensors ...")
    precision: Precision = "bf16" if working_bytes(plan.config, plan.place.on_accelerator) == 2 else "fp32"
    train = plan.config.train.model_copy(update={"precision": precision})
    config = plan.config.model_copy(update={"train": train})
    from experiments.training.simulation import simulate_step

    step = simulate_step(config, precision, rank=config.parallel.world - 1)
    planned = memory(config, on_accelerator=False)  # as is the engine that was stepped, which reduces accordingly
    return {**asdict(step), "planned_persistent": planned.persistent, "planned_peak": planned.tensors_peak}


def _say_what_was_stepped(step: dict[str, Any]) -> None:
    gib = {name: step[name] / 2**30 for name in ("persistent", "planned_persistent", "peak", "planned_peak")}
    say(
        f"Simulated rank {step['rank']}: {step['params_total']:,} parameters built, partitioned and stepped in "
        f"{step['seconds']:.0f} s; {step['params_held']:,} of them here, {step['numbers_kept']:,} master weights."
    )
    say(
        f"Its tensors: {gib['persistent']:.2f} GiB between steps (planned {gib['planned_persistent']:.2f}), "
        f"{gib['peak']:.2f} at most (planned {gib['planned_peak']:.2f}), without the reduction buckets of a device."
    )
    for name, (calls, handed) in sorted(step["collectives"].items()):
        say(f"{name}: {calls} calls a step, {handed / 1e9:.3f} GB handed over.")


def _say_where_it_comes_from(shown: LayoutPlan) -> None:
    place = shown.place
    if shown.fits:
        world = shown.config.parallel.world
        whose = f"of each of {world} devices" if place.on_accelerator else f"for {world} process(es) together"
        say(f"It fits: {shown.needed_gib:.1f} of the {place.memory_gib:.1f} GiB {whose}.")
    if place.on_accelerator:
        say(f"Saving takes {shown.host_gib:.1f} GiB of the host memory of a node.")
    if shown.compute_seconds is not None:
        network = ", then the network at its data sheet's peak" if shown.transfers else ""
        say(f"Time: {place.basis(shown.config)}{network}.")
        say("Starting, evaluation and saving come on top.")
    else:
        say(f"Time is not known: {place.basis(shown.config)}.")
    if shown.compute_seconds is not None and shown.communication_seconds is None:
        say(f"What is sent between nodes is not timed: no data sheet fixes the network of {place.name}.")


def _say_that_it_does_not_fit(asked: LayoutPlan, found: list[LayoutPlan], search: bool) -> None:
    """Raises `SpecError` where this layout was asked for; after a search it only reports why it is not listed."""
    from experiments.errors import SpecError
    from sweeps.layout_search import way_out

    place, world = asked.place, asked.config.parallel.world
    needs = f"it needs {asked.needed_gib:.1f} GiB, and {place.name} has {place.memory_gib:.1f}."
    if place.on_accelerator and world > place.max_world:
        needs = f"it asks for parallel.world={world}, and there are {place.max_world}."
    if not search:
        raise SpecError(f"the layout does not fit: {needs}", way_out(asked.config, place))
    say(f"As given, the layout does not fit: {needs}")
