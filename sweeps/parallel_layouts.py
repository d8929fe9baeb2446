"""Prices one run in one layout before it is started, and searches for the cheapest layout that fits.

The seconds of a step are the executed FLOPs over the assumed share of the peak, plus the bytes sent over the bandwidth
of the data sheet. The two are added because DeepSpeed overlaps computation and communication in ZeRO-3 only. A ring
over several nodes is taken to be as fast as all network cards together that its processes use on one node. The plan
covers training only: starting, evaluation and saving come on top. Memory and traffic are computed from the config
(`experiments/config`); the accelerators are those of `devices.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from experiments.config.budget import budget, recomputed_flops_per_image
from experiments.config.memory import GIB, Memory, memory
from experiments.config.multiples import divisors
from experiments.config.schema import RunConfig
from experiments.config.tensors import experts_spread
from experiments.config.traffic import Transfer, transfers
from experiments.config.zero_stage import planned_stage
from sweeps.cost import Place
from sweeps.devices import Device
from sweeps.layout_search import is_accepted, laid_out, may_fit, zero_stages

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True)
class LayoutPlan:
    """Memory, traffic and time of a run in the layout of its config. Seconds are None where the speed is not known."""

    config: RunConfig
    place: Place
    memory: Memory
    transfers: list[Transfer]
    train_flops_per_step: int
    """FLOPs of the forward and backward pass, summed over all processes."""
    executed_flops_per_step: int
    """The FLOPs of a step plus those that activation checkpointing recomputes."""
    compute_seconds: float | None
    """Seconds that a process computes for one step."""
    transfer_seconds: list[float | None]
    """Seconds of each transfer in one step, in the order of `transfers`."""

    @property
    def zero_stage(self) -> int:
        """Returns the ZeRO stage, also where the setting is `auto`."""
        return planned_stage(self.config, self.place.on_accelerator)

    @property
    def params_per_process(self) -> int:
        """Returns the number of parameters that a process computes with."""
        params = budget(self.config).params_by_part
        return sum(params.values()) - params["experts"] + params["experts"] // experts_spread(self.config)

    @property
    def num_steps(self) -> int:
        """Returns the number of optimizer steps of the training."""
        return self.config.total_images // self.config.train.batch_images

    @property
    def communication_seconds(self) -> float | None:
        """Returns the seconds of all transfers of one step, or None where the time of one is not known."""
        known = [seconds for seconds in self.transfer_seconds if seconds is not None]
        return sum(known) if len(known) == len(self.transfer_seconds) else None

    @property
    def step_seconds(self) -> float | None:
        """Returns the seconds of one step: computation followed by communication, without overlap."""
        if self.compute_seconds is None or self.communication_seconds is None:
            return None
        return self.compute_seconds + self.communication_seconds

    @property
    def seconds(self) -> float | None:
        """Returns the seconds of the whole training."""
        return None if self.step_seconds is None else self.step_seconds * self.num_steps

    @property
    def device_hours(self) -> float | None:
        """Returns the hours of the whole training times the number of devices."""
        return None if self.seconds is None else self.seconds / HOUR * self.config.parallel.world

    @property
    def needed_gib(self) -> float:
        """Returns the GiB that every accelerator needs, or that all processes of a CPU need together."""
        return self.place.needed_gib(self.memory.peak_gib, self.config.parallel.world)

    @property
    def host_gib(self) -> float:
        """Returns the GiB of host memory that one node needs while a checkpoint is written."""
        processes = min(self.config.parallel.world, self.place.devices_per_node)
        return self.memory.host_peak * processes / GIB

    @property
    def fits(self) -> bool:
        """Returns whether the place has the accelerators and the memory for this layout."""
        return self.place.has_room(self.memory.peak_gib, self.config.parallel.world)


def plan_layout(config: RunConfig, place: Place) -> LayoutPlan:
    """Returns the plan of `config` in the layout that it has, whether it fits or not."""
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
    """Returns the seconds of one transfer in a step.

    A group that lies inside one node uses the links of the node. An all-to-all across nodes sends a share of its bytes
    inside and the rest over the network at the same time, so that the slower of the two counts. Every other operation
    across nodes is taken for a ring, which is limited by its slowest link. Returns None across nodes where the network
    of the device is not known.
    """
    inside, network = device.node_gigabytes_per_second * 1e9, device.network_gigabytes_per_second
    if (transfer.group - 1) * transfer.stride < devices_per_node:
        return transfer.bytes_sent / inside
    if network is None:
        return None
    if transfer.operation == "all-to-all":
        # All other members get equal shares, and this many of them are on the same node.
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
    """Returns the cheapest layout that fits for every number of devices, the cheapest first.

    The cheapest has the fewest device-hours or, where these are not known, the fewest devices; the latter also breaks
    ties. `most_seconds` bounds the whole training. `on_progress` is called with how many numbers of devices were tried
    so far, and how many there are.
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
    """Returns the numbers of processes that divide the batch and lie on one node or fill whole nodes."""
    most = place.max_world if place.on_accelerator else 1  # on a CPU more processes take more of the same memory
    found = divisors(config.train.batch_images, most)
    return [world for world in found if world <= place.devices_per_node or world % place.devices_per_node == 0]


def _fitting(config: RunConfig, place: Place, world: int) -> Iterator[LayoutPlan]:
    """Yields the layout with the least accumulation that fits, for each kind: more would only send more."""
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
    """Returns the sort key of a layout: device-hours rounded to six digits, then devices, then how plain the layout is.

    Among layouts that cost the same the plainest wins: no activation checkpointing, little accumulation, and the
    default ZeRO stage before others.
    """
    parallel, hours = plan.config.parallel, plan.device_hours
    return (
        float("inf") if hours is None else float(f"{hours:.6g}"),
        parallel.world,
        parallel.activation_checkpointing,
        plan.config.train.accumulation,
        parallel.zero_stage != "auto",
        plan.zero_stage,
        parallel.expert_parallel,
    )
