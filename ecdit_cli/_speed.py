"""The benchmarks of routing against dense, as a table of measured value, target, floor of this machine, and gap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from analysis.columns import Column

if TYPE_CHECKING:
    from experiments.benchmarks.sides import SpeedRow
    from experiments.config.schema import RunConfig

Rows = list[dict[str, Any]]
Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
MODEL = "model=mini"
"""The largest preset for a CPU; settings on the command line override it."""


@dataclass(frozen=True)
class SpeedOptions:
    """The options of a measurement on the command line."""

    overrides: list[str]
    rounds: int
    tokens: int
    widths: list[int]
    experts: list[int]
    clock: Literal["wall", "cpu"]


def bench_routing(options: SpeedOptions, progress: Progress) -> Rows:
    """Measures the layer at every width with every number of experts."""
    from experiments.config.overrides import load_config

    settings = [
        load_config([MODEL, f"model.width={width}", f"routing.num_experts={experts}", *options.overrides])
        for width in options.widths
        for experts in options.experts
    ]
    _refuse_other_routers(settings)
    with progress("layers", len(settings) * (options.rounds + 2)) as advance:
        from experiments.benchmarks.routed_layer import measure_routing
        from experiments.training.host_memory import keep_freed_memory

        keep_freed_memory(settings[0])
        measured = [
            measure_routing(config, options.tokens, options.rounds, options.clock, advance) for config in settings
        ]
    return list(_once(row for rows in measured for row in rows))


def bench_training(options: SpeedOptions, steps: int, progress: Progress) -> Rows:
    """Measures training with expert choice beside the dense model with as many activated parameters."""
    from experiments.config.designs import load_designed

    ours, dense = (
        load_designed([MODEL, *options.overrides, *design]).config
        for design in (["routing=expert_choice"], ["routing=expert_choice", "ecdit.iso_activation=ffn_factor"])
    )
    with progress("steps side by side", steps + 2) as advance:
        from experiments.benchmarks.whole_models import measure_training
        from experiments.training.host_memory import keep_freed_memory

        keep_freed_memory(ours)
        return list(_once(measure_training(ours, dense, steps, options.clock, advance)))


def bench_dropless(options: SpeedOptions, steps: int, progress: Progress) -> Rows:
    """Measures training with DiT-MoE's dropless routing beside expert choice and beside a loop over experts."""
    from experiments.config.overrides import load_config

    dropless = load_config([MODEL, *options.overrides, "routing=shared_expert", "routing.capacity_factor=null"])
    routing = dropless.routing
    assert routing.top_k is not None
    assert routing.expert_factor is not None
    # Expert choice has no shared experts: more slots of the same experts take their FLOPs, as far as there are experts.
    slots_per_token = min(routing.top_k + (routing.shared_factor or 0) / routing.expert_factor, routing.num_experts)
    same_flops = (
        f"routing.capacity_factor={slots_per_token}",
        f"routing.expert={routing.expert}",
        f"routing.expert_factor={routing.expert_factor}",
    )
    expert_choice, same = (
        load_config([MODEL, *options.overrides, "routing=expert_choice", *design]) for design in ((), same_flops)
    )
    with progress("dropless steps side by side", 3 * (steps + 2)) as advance:
        from experiments.benchmarks.dropless_steps import measure_dropless
        from experiments.training.host_memory import keep_freed_memory

        keep_freed_memory(dropless)
        return list(_once(measure_dropless(dropless, expert_choice, same, steps, options.clock, advance)))


def bench_sample(options: SpeedOptions, progress: Progress) -> Rows:
    """Measures sampling with expert choice beside a dense model of the same depth and width."""
    from experiments.config.overrides import load_config

    ours, dense = (load_config([MODEL, *options.overrides, f"routing={name}"]) for name in ("expert_choice", "dense"))
    with progress("sampling", options.rounds + 2) as advance:
        from experiments.benchmarks.whole_models import measure_sampling
        from experiments.training.host_memory import keep_freed_memory

        keep_freed_memory(ours)
        return list(_once(measure_sampling(ours, dense, options.rounds, options.clock, advance)))


def _refuse_other_routers(configs: list[RunConfig]) -> None:
    from experiments.errors import ConfigError

    for config in configs:
        routing = config.routing
        if routing.name != "expert_choice" or routing.group_images != 1:
            raise ConfigError(
                f"ecdit bench routing measures expert choice routed by image, not routing.name={routing.name} with "
                f"routing.group_images={routing.group_images}.",
                "Leave both out.",
            )


def _once(rows: Iterator[SpeedRow] | list[SpeedRow]) -> Iterator[dict[str, Any]]:
    """Yields rows as dicts; rows for an accelerator that is not there are repeated for each setting, and kept once."""
    seen = set()
    for row in rows:
        key = (row.what, row.setting)
        if key not in seen:
            seen.add(key)
            yield {**asdict(row), "gap": row.gap, "is_met": row.is_met}


def _seconds(value: float) -> str:
    return f"{1000 * value:.1f}"


def _met(value: bool) -> str:
    return "yes" if value else "no"


SPEED_COLUMNS = (
    Column("what", "what"),
    Column("setting", "setting"),
    Column("measured", "measured", "{:.2f}".format, whole=True),
    Column("target", "target", "{:.2f}".format, whole=True),
    Column("is_met", "met", _met),
    Column("floor", "floor", "{:.2f}".format, whole=True),
    Column("gap", "gap", "{:.2f}".format, whole=True),
    Column("seconds", "ours ms", _seconds, whole=True),
    Column("peer_seconds", "peer ms", _seconds, whole=True),
    Column("skipped", "skipped"),
    Column("command", "to fill it"),
)
