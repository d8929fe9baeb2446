"""From a sweep file to the runs it asks for, each with its config and its cost. Builds no model.

Combinations that come to the same config (a dense run at every `routing.num_experts`) are one run. Cheap runs come
first, so that trouble shows early. What is kept on disk, and what happens to it when the file changes, is in `plan.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from experiments.config.budget import budget
from experiments.config.identity import config_id, run_name
from experiments.config.overrides import expand, load_config
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError
from sweeps.plan import Plan, PlannedRun
from sweeps.spec import SweepSpec


def make_plan(spec: SweepSpec, overrides: Sequence[str] = ()) -> Plan:
    """The runs of `spec`, where `overrides` (`KEY=VALUE`) replace what the file says for all of them.

    Raises `ConfigError` for a setting that does not exist or does not fit, naming the combination.
    """
    configs = list(_configs(spec, overrides))
    by_id = {config_id(config): config for config in reversed(configs)}
    runs = [_planned_run(identity, config) for identity, config in reversed(by_id.items())]
    return Plan(
        sweep=spec.name,
        spec=spec.model_dump(mode="json", exclude_unset=True),
        overrides=list(overrides),
        num_merged=len(configs) - len(runs),
        runs=sorted(with_unique_names(runs), key=lambda run: run.train_flops),
    )


def _configs(spec: SweepSpec, overrides: Sequence[str]) -> Iterator[RunConfig]:
    """One config per combination; what the command line gives is not varied."""
    fixed = [f"wandb.group={spec.name}", *spec.fixed_settings()]
    for settings in spec.combinations(replaced=expand(overrides)):
        try:
            yield load_config([*fixed, *settings, *overrides])
        except ConfigError as error:
            hint = f"{error.hint} In the combination {' '.join(settings)}.".strip()
            raise ConfigError(error.message, hint) from error


def _planned_run(identity: str, config: RunConfig) -> PlannedRun:
    cost = budget(config)
    return PlannedRun(
        name=run_name(config),
        config_id=identity,
        images=config.total_images,
        params_total=cost.params_total,
        params_active=cost.params_active,
        flops_per_image=cost.flops_per_image,
        train_flops_per_image=cost.train_flops_per_image,
        config=config.model_dump(mode="json"),
    )


def with_unique_names(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """A name carries 6 digits of the config id; the rare runs that share it get all 10."""
    shared = Counter(run.name for run in runs)
    return [
        run if shared[run.name] == 1 else run.model_copy(update={"name": f"{run.name}{run.config_id[6:]}"})
        for run in runs
    ]
