"""Turns a sweep file into the runs it asks for, each with its config and its cost, without building a model.

Combinations that result in the same config (a dense run at every `routing.num_experts`) are one run. Cheap runs come
first, so that problems show early. `plan.py` says what is kept on disk, and what happens to it when the file changes;
`cost.py` estimates time and memory.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from experiments.config.budget import Budget, budget
from experiments.config.designs import SEED, TRAIN_FLOPS, TUNE, DesignedConfig, load_designed, separate
from experiments.config.identity import config_id, run_name
from experiments.config.overrides import ARM, expand
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError
from experiments.records.record_types import TunedSetting
from sweeps.cost_keys import budget_key
from sweeps.plan import Plan, PlannedRun, long_name, with_parents
from sweeps.spec import SweepSpec
from sweeps.tune_design import is_design, tune_design

TunedOf = Callable[[Sequence[str]], TunedSetting | None]
Designed = tuple[DesignedConfig, TunedSetting | None]

PATIENCE = 1000
"""A random sweep ends after this many draws in a row that yield no new run."""


class Costs:
    """The budgets of configs, each model computed once: seed and learning rate do not change a budget."""

    def __init__(self) -> None:
        """Starts with an empty cache."""
        self._known: dict[Hashable, Budget] = {}

    def __call__(self, config: RunConfig) -> Budget:
        """Returns `budget(config)`, from the cache where a config with the same cost has been computed."""
        key = budget_key(config)
        if key not in self._known:
            self._known[key] = budget(config)
        return self._known[key]


def make_plan(spec: SweepSpec, overrides: Sequence[str] = (), tuned_of: TunedOf = lambda words: None) -> Plan:
    """Returns the plan of the runs of `spec`. `overrides` (`KEY=VALUE`) replace what the file says, for all runs.

    `tuned_of` returns the tuned setting of the arm with the given words, or None where none is tuned (yet). Raises
    `ConfigError` for a setting that does not exist or does not fit, naming the combination.
    """
    cost_of = Costs()
    designed, num_merged = _distinct(spec, _designed(spec, overrides, cost_of, tuned_of))
    runs = [planned_run(one, cost_of, tuned=tuned) for one, tuned in designed]
    plan = Plan(
        sweep=spec.name,
        spec=spec.model_dump(mode="json", exclude_unset=True),
        overrides=list(overrides),
        num_merged=num_merged,
        runs=sorted(with_unique_names(runs), key=lambda run: run.train_flops),
    )
    return with_parents(plan)


def with_unique_names(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Returns the runs with unique names: the usual 6 digits of the config id, or all 10 where names collide."""
    shared = Counter(run.name for run in runs)
    return [run if shared[run.name] == 1 else run.model_copy(update={"name": long_name(run)}) for run in runs]


def _distinct(spec: SweepSpec, designed: Iterator[Designed]) -> tuple[list[Designed], int]:
    """Returns the first of equal configs, and how many combinations of a grid were left out as equal.

    A random sweep draws until it has `run_cap` different runs, or finds no more.
    """
    found: dict[str, Designed] = {}
    num_repeated = num_in_a_row = 0
    for one in designed:
        identity = config_id(one[0].config)
        if identity in found:
            num_repeated, num_in_a_row = num_repeated + 1, num_in_a_row + 1
        else:
            found[identity], num_in_a_row = one, 0
        if spec.method == "random" and (len(found) == spec.run_cap or num_in_a_row >= PATIENCE):
            return list(found.values()), 0
    return list(found.values()), num_repeated


def _designed(spec: SweepSpec, overrides: Sequence[str], cost_of: Costs, tuned_of: TunedOf) -> Iterator[Designed]:
    """Yields one config per combination; settings given on the command line are not varied.

    Where an arm is not tuned yet, the first value of its grid stands for the tuned one, as the default may not fit.
    """
    design = tune_design(spec, overrides)
    open_value = [] if design is None else [design.word(design.values[0])]
    for words, settings in combinations(spec, overrides):
        with named_combination(settings):
            tuned = tuned_of(words)
            found = open_value if tuned is None else [f"{tuned.setting}={tuned.value:.12g}"]
            yield load_designed([*words, *found], cost_of=cost_of), tuned


def combinations(spec: SweepSpec, overrides: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Yields all words of each combination, and those of them that it takes from the parameters of the file.

    The words do not say what is tuned, which `tuning.py` decides for an arm and not for a run.
    """
    plain, designs = separate(overrides)
    first = [f"wandb.group={spec.name}", *spec.fixed_settings()]
    last = [word for word in overrides if not is_design(word, TUNE)]
    replaced = _replaced(plain, designs) | {TUNE} | {ARM for word in overrides if is_design(word, ARM)}
    for settings in _unrepeated(spec, replaced, designs.get(SEED)):
        yield [*first, *settings, *last], settings


@contextmanager
def named_combination(settings: Sequence[str]) -> Iterator[None]:
    """Adds the `settings` of the combination that is planned inside of the `with` block to the hint of an error."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(error.message, f"{error.hint} In the combination {' '.join(settings)}.".strip()) from error


def _unrepeated(spec: SweepSpec, replaced: set[str], seed: str | None) -> Iterator[list[str]]:
    """Yields combinations of settings; a random sweep skips those that were drawn before."""
    combinations = spec.combinations(replaced, None if seed is None else _whole_number(seed))
    if spec.method == "grid":
        yield from combinations
        return
    seen: set[tuple[str, ...]] = set()
    while True:
        patience = PATIENCE + 20 * len(seen)  # misses one of N equally likely ones with chance e^-20
        new = next((one for one in itertools.islice(combinations, patience) if tuple(one) not in seen), None)
        if new is None:
            return
        seen.add(tuple(new))
        yield new


def _replaced(plain: Sequence[str], designs: Mapping[str, str]) -> set[str]:
    """Returns the parameters of the file that the command line replaces.

    `train.images` and `ecdit.train_flops` both say how long to train, so that giving one replaces the other, too.
    """
    replaced = {*expand(plain), *designs}
    horizon = {"train.images", TRAIN_FLOPS}
    return replaced | horizon if replaced & horizon else replaced


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{SEED}={text} is not a whole number.", f"Write for example {SEED}=1.") from error


def planned_run(
    designed: DesignedConfig, cost_of: Costs, tuned: TunedSetting | None = None, tunes: str | None = None
) -> PlannedRun:
    """Returns the run of a config, whose setting was `tuned`, or which is a proxy that `tunes` the sweep named so."""
    config, cost = designed.config, cost_of(designed.config)
    identity = config_id(config)
    return PlannedRun(
        name=run_name(config, identity),
        config_id=identity,
        images=config.total_images,
        params_total=cost.params_total,
        params_active=cost.params_active,
        flops_per_image=cost.flops_per_image,
        train_flops_per_image=cost.train_flops_per_image,
        train_flops_budget=designed.train_flops_budget,
        matched_run=designed.matched_run,
        matched_params_active=designed.matched_params_active,
        tuned=tuned,
        tunes=tunes,
        config=config.model_dump(mode="json"),
    )
