"""One run in one layout, priced before it is started; and the cheapest layout that fits.

Time is what the device executes over the share of its peak that is assumed, and what is sent over the bandwidth of the
data sheet, one after the other: DeepSpeed overlaps the two in ZeRO-3 alone. A ring over several nodes is as fast as all
network cards that its processes have on a node together. Training only: starting, evaluation and saving come on top.
Memory and traffic are arithmetic (`experiments/config`), devices those of `devices.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from experiments.config.budget import budget, recomputed_flops_per_image
from experiments.config.checks import divisors
from experiments.config.memory import GIB, Memory, memory
from experiments.config.schema import RunConfig
from experiments.config.traffic import Transfer, transfers
from sweeps.cost import Place
from sweeps.devices import Device
from sweeps.fit import is_accepted, laid_out, may_fit, zero_stages

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True)
class LayoutPlan:
    """What a run takes in the layout of its config. Seconds are None where the speed of the place is not known."""

    config: RunConfig
    place: Place
    memory: Memory
    transfers: list[Transfer]
    train_flops_per_step: int
    """Forward and backward of all processes."""
    executed_flops_per_step: int
    """With what activation checkpointing computes again."""
    compute_seconds: float | None
    """Of a step."""
    transfer_seconds: list[float | None]
    """Of a step, in the order of `transfers`."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps."""
        return self.config.total_images // self.config.train.batch_images

    @property
    def communication_seconds(self) -> float | None:
        """Of a step."""
        known = [seconds for seconds in self.transfer_seconds if seconds is not None]
        return sum(known) if len(known) == len(self.transfer_seconds) else None

    @property
    def step_seconds(self) -> float | None:
        """Computing and communicating, one after the other."""
        if self.compute_seconds is None or self.communication_seconds is None:
            return None
        return self.compute_seconds + self.communication_seconds

    @property
    def seconds(self) -> float | None:
        """Of the whole training."""
        return None if self.step_seconds is None else self.step_seconds * self.num_steps

    @property
    def device_hours(self) -> float | None:
        """Hours times devices."""
        return None if self.seconds is None else self.seconds / HOUR * self.config.parallel.world

    @property
    def needed_gib(self) -> float:
        """Of every accelerator; on a CPU of all processes together."""
        return self.memory.peak_gib * (1 if self.place.on_accelerator else self.config.parallel.world)

    @property
    def host_gib(self) -> float:
        """Of the host memory of a node, while a checkpoint is written."""
        processes = min(self.config.parallel.world, self.place.devices_per_node)
        return self.memory.host_peak * processes / GIB

    @property
    def fits(self) -> bool:
        """Whether the place has the accelerators and the memory."""
        enough = not self.place.on_accelerator or self.config.parallel.world <= self.place.max_world
        return enough and self.needed_gib <= self.place.memory_gib


def plan_layout(config: RunConfig, place: Place) -> LayoutPlan:
    """Of `config` as it is laid out, whether it fits or not."""
    cost, sent = budget(config), transfers(config, place.on_accelerator)
    batch, speed = config.train.batch_images, place.assumed_flops_per_second(config)
    executed = batch * (cost.train_flops_per_image + recomputed_flops_per_image(config))
    device = place.device
    return LayoutPlan(
        config=config,
        place=place,
        memory=memory(config, place.on_accelerator),
        transfers=sent,
        train_flops_per_step=batch * cost.train_flops_per_image,
        executed_flops_per_step=executed,
        compute_seconds=None if speed is None else executed / (speed * config.parallel.world),
        transfer_seconds=[None if device is None else _seconds(one, device, place.devices_per_node) for one in sent],
    )


def _seconds(transfer: Transfer, device: Device, devices_per_node: int) -> float | None:
    """None across nodes where the network of the device is not known."""
    inside, network = device.node_gigabytes_per_second * 1e9, device.network_gigabytes_per_second
    if (transfer.group - 1) * transfer.stride < devices_per_node:
        return transfer.bytes_sent / inside
    if network is None:
        return None
    if transfer.operation == "all-to-all":
        near = (devices_per_node - 1) / (transfer.group - 1)
        return max(transfer.bytes_sent * near / inside, transfer.bytes_sent * (1 - near) / (network * 1e9))
    on_a_node = max(1, devices_per_node // transfer.stride)
    return transfer.bytes_sent / min(inside, on_a_node * network * 1e9)


def search(
    config: RunConfig,
    place: Place,
    most_seconds: float | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[LayoutPlan]:
    """For every number of devices the cheapest layout that fits, the cheapest first; of equals the fewest devices.

    Cheap is few device-hours, where they are not known few devices. `most_seconds` bounds the whole training.
    `on_progress` is called with the numbers of devices that were looked at, and that there are.
    """
    worlds, best = _worlds(config, place), []
    for done, world in enumerate(worlds):
        on_progress(done, len(worlds))
        fitting = [plan for plan in _fitting(config, place, world) if _in_time(plan, most_seconds)]
        if fitting:
            best.append(min(fitting, key=_price))
    on_progress(len(worlds), len(worlds))
    return sorted(best, key=_price)


def _worlds(config: RunConfig, place: Place) -> list[int]:
    """Numbers of processes that divide the batch: on one node, or on whole nodes."""
    most = place.max_world if place.on_accelerator else 1  # more processes on a CPU take more of the same memory
    found = divisors(config.train.batch_images, most)
    return [world for world in found if world <= place.devices_per_node or world % place.devices_per_node == 0]


def _fitting(config: RunConfig, place: Place, world: int) -> Iterator[LayoutPlan]:
    """Of each kind of layout the one with the least accumulation that fits: more only sends more."""
    for expert_parallel in divisors(world, max(1, config.routing.num_experts)):
        for zero_stage in zero_stages(config, place.on_accelerator):
            for checkpointing in (False, True):
                if not may_fit(laid_out(config, world, 1, zero_stage, expert_parallel, checkpointing), place):
                    continue
                for accumulation in divisors(config.train.batch_images // world, config.train.batch_images):
                    candidate = laid_out(config, world, accumulation, zero_stage, expert_parallel, checkpointing)
                    if not is_accepted(candidate):
                        continue
                    plan = plan_layout(candidate, place)
                    if plan.fits:
                        yield plan
                        break


def _in_time(plan: LayoutPlan, most_seconds: float | None) -> bool:
    return most_seconds is None or (plan.seconds is not None and plan.seconds <= most_seconds)


def _price(plan: LayoutPlan) -> tuple[float, ...]:
    """Device-hours to six digits; then the fewest devices and the plainest layout, ZeRO-1 before the others."""
    parallel, hours = plan.config.parallel, plan.device_hours
    return (
        float("inf") if hours is None else float(f"{hours:.6g}"),
        parallel.world,
        parallel.activation_checkpointing,
        plan.config.train.accumulation,
        parallel.zero_stage != 1,
        parallel.zero_stage,
        parallel.expert_parallel,
    )
