"""The measures of `ecdit bench`: each sets up the configs, measures them, and returns the rows of one table.

`progress` shows how far a measure is; it is shown before torch is imported, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from experiments.errors import EcditError
from experiments.text import printable, shortened

if TYPE_CHECKING:
    from experiments.benchmarks.sides import SpeedRow
    from experiments.config.schema import RunConfig

Rows = list[dict[str, Any]]
Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
ROUTERS = ("dense", "expert_choice", "token_choice")
NUM_LOADED_IMAGES = 4096
STALL_LIMIT = 0.05
"""The largest share of training that saves may cost at the cadence of a run."""
COORDINATE_WIDTHS = "64,128,256,512"
MAX_DIGITS = 9
"""A longer number is no width; Python refuses to read numbers of thousands of digits."""

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
    routers: str | None = None
    """Names of routers separated by commas, or all; None for expert choice beside its peers."""
    has_neighbour: bool = False
    """Another process is then busy on one core while layers are measured."""


def bench_routing(options: SpeedOptions, progress: Progress) -> Rows:
    """Measures the layer at every width with every number of experts, or the layers of other routers beside dense."""
    from experiments.config.overrides import load_config

    if options.routers is not None:
        return _bench_routers(options, options.routers, progress)

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
            measure_routing(config, options.tokens, options.rounds, options.clock, advance, options.has_neighbour)
            for config in settings
        ]
    return list(_once(row for rows in measured for row in rows))


def _bench_routers(options: SpeedOptions, routers: str, progress: Progress) -> Rows:
    """Measures the layers of `routers`, names separated by commas or all, beside dense layers of the same FLOPs."""
    from experiments.config.overrides import load_config
    from experiments.config.routers import ROUTERS as KNOWN
    from experiments.errors import did_you_mean

    in_layers = [name for name, row in KNOWN.items() if row.rule not in ("dense", "blocks")]
    names = in_layers if routers == "all" else routers.split(",")
    for name in names:
        if name not in in_layers:
            raise EcditError(f"--routers {name!r} is no router of a layer.", did_you_mean(name, ["all", *in_layers]))
    configs = [
        load_config([MODEL, f"model.width={width}", f"routing={name}", f"routing.num_experts={experts}",
                     f"train.batch_images={options.tokens}", *options.overrides])
        for width in options.widths for experts in options.experts for name in names
    ]  # fmt: skip
    with progress("layers of routers", len(configs) * (options.rounds + 2)) as advance:
        from experiments.benchmarks.router_layers import measure_router
        from experiments.training.host_memory import keep_freed_memory

        keep_freed_memory(configs[0])
        measured = [
            measure_router(each, options.tokens, options.rounds, options.clock, advance, options.has_neighbour)
            for each in configs
        ]
    return list(_once(measured))


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
    _refuse_biases(dropless)
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


def bench_step_shares(overrides: list[str], steps: int, progress: Progress) -> Rows:
    """Measures which share of an iteration each part of a training step takes, for each of `ROUTERS`."""
    from experiments.config.overrides import load_config

    configs = [load_config([*overrides, f"routing={name}"]) for name in ROUTERS]
    with progress("training", len(configs)) as advance:
        from experiments.benchmarks.step_shares import measure_step_shares
        from experiments.training.host_memory import keep_freed_memory

        keep_freed_memory(configs[0])
        rows = []
        for config in configs:
            settings = {"model": config.model.name, "routing": config.routing.name, "steps": steps}
            rows.append({**settings, "batch_images": config.train.batch_images, **measure_step_shares(config, steps)})
            advance()
        return rows


def bench_drawing(overrides: list[str], steps: int, progress: Progress) -> Rows:
    """Measures how fast images are drawn and trained on by a dense model, which is the fastest to train."""
    from experiments.config.overrides import load_config

    config = load_config(["routing=dense", *overrides])
    with progress("drawing and training", 2) as advance:
        from experiments.benchmarks.drawing import measure_loader
        from experiments.benchmarks.step_shares import measure_step_shares
        from experiments.training.host_memory import keep_freed_memory

        keep_freed_memory(config)
        loader = measure_loader(config, NUM_LOADED_IMAGES)
        advance()
        trained = measure_step_shares(config, steps)["images_per_second"]
    drawn = loader.pop("images_per_second")
    return [
        {
            "model": config.model.name,
            "routing": config.routing.name,
            **loader,
            "loader_images_per_second": drawn,
            "training_images_per_second": trained,
            "ratio": drawn / trained,
        }
    ]


def bench_checkpoint(overrides: list[str], steps: int, rounds: int, progress: Progress) -> Rows:
    """Measures `rounds` saves that are `steps` iterations apart."""
    from experiments.config.overrides import load_config

    config = load_config(overrides)
    with progress("training and saving", 1 + (rounds + 1) * steps) as advance:
        from experiments.benchmarks.saving_cost import measure_saving
        from experiments.training.host_memory import keep_freed_memory

        keep_freed_memory(config)
        cost = measure_saving(config, steps, rounds, advance)
    settings = {"model": config.model.name, "routing": config.routing.name, "num_experts": config.routing.num_experts}
    return [{**settings, **cost, "limit": STALL_LIMIT}]


def bench_commands(overrides: list[str], steps: int, rounds: int, progress: Progress) -> Rows:
    """Measures how long commands take to start."""
    from experiments.benchmarks.command_start import LIMIT_SECONDS, measure_commands

    with progress("starting commands", rounds * len(LIMIT_SECONDS)) as advance:
        return measure_commands(rounds, overrides, advance)


def bench_sweep(overrides: list[str], steps: int, rounds: int, progress: Progress) -> Rows:
    """Measures what the executor and the planner of sweeps cost."""
    import tempfile
    from pathlib import Path

    from experiments.benchmarks.executor_cost import measure_sweep

    with tempfile.TemporaryDirectory() as folder, progress("sweeping", 4) as advance:
        return measure_sweep(Path(folder), overrides, on_part=advance)


def bench_analysis(overrides: list[str], num_runs: int, progress: Progress) -> Rows:
    """Measures the commands that read runs, over `num_runs` runs that never trained."""
    import tempfile
    from pathlib import Path

    from experiments.benchmarks.analysis_cost import NUM_MEASURES, measure_analysis

    with tempfile.TemporaryDirectory() as folder, progress("reading runs", 1 + NUM_MEASURES) as advance:
        return measure_analysis(Path(folder), num_runs, overrides, on_part=advance)


def _refuse_other_routers(configs: list[RunConfig]) -> None:
    from experiments.errors import ConfigError

    for config in configs:
        _refuse_biases(config)
        routing = config.routing
        if routing.name != "expert_choice" or routing.group_images != 1:
            raise ConfigError(
                f"ecdit bench routing measures expert choice routed by image, not routing.name={routing.name} with "
                f"routing.group_images={routing.group_images}.",
                "Leave both out.",
            )


def _refuse_biases(config: RunConfig) -> None:
    """Raises `ConfigError` for experts with biases, beside which other forms of the layer would do less work."""
    from experiments.errors import ConfigError

    if config.routing.expert_bias:
        raise ConfigError(
            "routing.expert_bias=True does not fit ecdit bench routing and train: a loop over experts and other forms "
            "of the layer have no biases there.",
            "Use routing.expert_bias=False.",
        )


def _once(rows: Iterator[SpeedRow] | list[SpeedRow]) -> Iterator[dict[str, Any]]:
    """Yields rows as dicts; rows for an accelerator that is not there are repeated for each setting, and kept once."""
    seen = set()
    for row in rows:
        key = (row.what, row.setting)
        if key not in seen:
            seen.add(key)
            yield {**asdict(row), "gap": row.gap, "is_met": row.is_met}


def bench_coordinates(overrides: list[str], widths: str, seeds: int, progress: Progress) -> Rows:
    """Returns a row of exponents for each output. Raises `EcditError` for `widths` that are not several numbers."""
    texts = widths.split(",")
    numbers = [int(text) for text in texts if text.isdecimal() and len(text) <= MAX_DIGITS]
    if len(numbers) != len(texts) or len(set(numbers)) < 2:
        raise EcditError(
            f"--widths {shortened(printable(widths), 40)} is not a list of several widths.",
            f"Use --widths {COORDINATE_WIDTHS}.",
        )
    with progress("training", 2 * len(numbers) * seeds) as advance:
        from experiments.benchmarks.coordinates import measure_coordinates

        return measure_coordinates(overrides, numbers, seeds, advance)
