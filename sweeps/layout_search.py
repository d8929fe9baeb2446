"""Checks whether a plan fits where it is meant to run, and finds the smallest layout of a run that does.

The smallest layout has the fewest devices. Among layouts with as many devices the cheapest comes first: gradient
accumulation is free, a higher ZeRO stage and expert parallelism communicate more, and activation checkpointing comes
last, because it computes a third more. Only layouts that training accepts (`experiments/config/checks.py`) are
proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from experiments.config.activations import working_bytes
from experiments.config.checks import check_config
from experiments.config.execution_settings import ZeroStage
from experiments.config.memory import memory
from experiments.config.multiples import divisors
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError, SpecError
from sweeps.cost import Place
from sweeps.plan import Plan, PlannedRun


def refuse_what_does_not_fit(plan: Plan, place: Place) -> None:
    """Raises a `SpecError` for the largest run of `plan` that does not fit; its hint is the smallest layout that does.

    `plan` carries the estimates of `cost.estimated(plan, place)`.
    """
    misfit = misfit_of(plan, place)
    if misfit is not None:
        raise misfit


def misfit_of(plan: Plan, place: Place) -> SpecError | None:
    """Returns the error that `refuse_what_does_not_fit` raises, or None where everything fits."""
    refused = [run for run in plan.wanted if not is_fitting(run, place)]
    if not refused:
        return None
    worst = max(refused, key=lambda run: _planned_gib(run, place))
    more = f" Other runs that do not fit: {len(refused) - 1}." if len(refused) > 1 else ""
    if place.on_accelerator and worst.world > place.max_world:
        problem = f"asks for parallel.world={worst.world}, and there are {place.max_world}"
    else:
        needs = _planned_gib(worst, place)
        problem = f"needs {needs:.1f} GiB, and {place.name} has {place.memory_gib:.1f}"
    return SpecError(f"{worst.name} {problem}.{more}", way_out(RunConfig.model_validate(worst.config), place))


def fits(config: RunConfig, place: Place) -> bool:
    """Returns whether `place` has the accelerators and the memory for `config`."""
    return place.has_room(memory(config, place.on_accelerator).peak_gib, config.parallel.world)


def is_fitting(run: PlannedRun, place: Place) -> bool:
    """Returns whether `place` has room for a planned run, judged by its estimate."""
    assert run.estimate is not None, "fit follows cost.estimated"
    return place.has_room(run.estimate.memory_gib, run.world)


def needed_gib(config: RunConfig, place: Place) -> float:
    """Returns the GiB that an accelerator needs; on a CPU that of all processes, which share the memory."""
    return place.needed_gib(memory(config, place.on_accelerator).peak_gib, config.parallel.world)


def _planned_gib(run: PlannedRun, place: Place) -> float:
    """Returns the same as `needed_gib`, computed from the estimate of a planned run."""
    assert run.estimate is not None, "fit follows cost.estimated"
    return place.needed_gib(run.estimate.memory_gib, run.world)


def smallest_layout(config: RunConfig, place: Place) -> RunConfig | None:
    """Returns `config` in the first layout that fits at `place`, or None where none does."""
    max_world = place.max_world if place.on_accelerator else 1  # on a CPU more processes take more of the same memory
    found = layouts(config, max_world, place.on_accelerator, lambda candidate: may_fit(candidate, place))
    return next((candidate for candidate in found if fits(candidate, place)), None)


def may_fit(config: RunConfig, place: Place) -> bool:
    """Returns whether `config` fits with some number of accumulation steps: a cheap test before all of them are tried.

    It tries no accumulation and one image at a time, which takes the least memory, without asking whether training
    would accept these two. A batch of a million images can be accumulated in hundreds of ways, and where none of them
    fits they would otherwise all be tried.
    """
    images, parallel = config.train.batch_images // config.parallel.world, config.parallel
    spread = (parallel.zero_stage, parallel.expert_parallel, parallel.activation_checkpointing)
    return any(fits(laid_out(config, parallel.world, number, *spread), place) for number in dict.fromkeys((images, 1)))


def layouts(
    config: RunConfig,
    max_world: int,
    on_accelerator: bool = True,
    is_hopeful: Callable[[RunConfig], bool] = lambda candidate: True,
) -> Iterator[RunConfig]:
    """Yields every way to spread the batch of `config` over at most `max_world` processes, the smallest first.

    Activation checkpointing that `config` asks for stays on. `is_hopeful` is called once for each combination of ZeRO
    stage, expert parallelism and checkpointing; a combination that it rejects is not tried with any accumulation.
    """
    batch, asked = config.train.batch_images, config.parallel.activation_checkpointing
    for world in divisors(batch, max_world):
        for checkpointing in (True,) if asked else (False, True):
            ways = [
                (zero_stage, expert_parallel, checkpointing)
                for zero_stage in zero_stages(config, on_accelerator)
                for expert_parallel in divisors(world, max(1, config.routing.num_experts))
            ]
            ways = [way for way in ways if is_hopeful(laid_out(config, world, 1, *way))]
            for accumulation in divisors(batch // world, batch) if ways else ():
                for way in ways:
                    found = laid_out(config, world, accumulation, *way)
                    if is_accepted(found):
                        yield found


def zero_stages(config: RunConfig, on_accelerator: bool) -> tuple[ZeroStage, ...]:
    """Returns the values of `parallel.zero_stage` that may be proposed, the cheapest first.

    ZeRO-0 is proposed in fp32 only, where there is no second copy of the weights. With `train.precision=auto` it would
    change the precision of a bf16 run.
    """
    sharded = config.model_copy(update={"parallel": config.parallel.model_copy(update={"zero_stage": 1})})
    return ("auto", 2, 3) if working_bytes(sharded, on_accelerator) == 2 else ("auto", 0, 2, 3)


def differences(config: RunConfig, other: RunConfig) -> list[str]:
    """Returns the layout of `other` as `KEY=VALUE` words, as far as it differs from that of `config`."""
    return [after for after, before in zip(settings(other), settings(config), strict=True) if after != before]


def way_out(config: RunConfig, place: Place) -> str:
    """Says in one line which smallest layout fits, or else what could help."""
    smallest = smallest_layout(config, place)
    if smallest is not None:
        return f"Use {' '.join(differences(config, smallest))} ({needed_gib(smallest, place):.1f} GiB)."
    if not place.on_accelerator:
        return "No micro batch fits: use a smaller model, or fewer runs at a time."
    return f"No layout of train.batch_images={config.train.batch_images} over up to {place.max_world} of them fits."


def laid_out(
    config: RunConfig, world: int, accumulation: int, zero_stage: ZeroStage, expert_parallel: int, checkpointing: bool
) -> RunConfig:
    """Returns `config` in another layout, without checking that training accepts it."""
    parallel = {
        "world": world, "zero_stage": zero_stage, "expert_parallel": expert_parallel,
        "activation_checkpointing": checkpointing,
    }  # fmt: skip
    return config.model_copy(
        update={
            "parallel": config.parallel.model_copy(update=parallel),
            "train": config.train.model_copy(update={"accumulation": accumulation}),
        }
    )


def settings(config: RunConfig) -> list[str]:
    """Returns the layout of `config` as `KEY=VALUE` words."""
    parallel = config.parallel
    return [
        f"parallel.world={parallel.world}",
        f"train.accumulation={config.train.accumulation}",
        f"parallel.zero_stage={parallel.zero_stage}",
        f"parallel.expert_parallel={parallel.expert_parallel}",
        f"parallel.activation_checkpointing={parallel.activation_checkpointing}",
    ]


def is_accepted(config: RunConfig) -> bool:
    """Returns whether training would accept `config`."""
    try:
        check_config(config)
    except ConfigError:
        return False
    return True
