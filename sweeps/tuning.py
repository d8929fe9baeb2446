"""Tunes a setting of each arm of a sweep on proxies, before the runs of the sweep itself are planned.

A comparison of routings in which all share a learning rate that was tuned for one of them favours that one. With the
design `ecdit.tune` (`tune_design.py`) every arm gets the value that is best for it. The arms of a sweep are what its
combinations become when the tuned setting and the seed are left out and the settings of `on` are applied: combinations
with the same proxy share a value.

The proxies are a sweep of their own in `<out>/tuning`. The value with the lowest final validation loss, as a mean over
seeds, wins; a value counts as worst when a run of it diverged or failed. A winner at the edge of its grid extends the
grid by one value, in the ratio of the two values at that edge, up to `MAX_EXTENSIONS` times; after that the value is
marked as one at the edge. All of this follows from the spec and from the folder of the proxies, so that a sweep that
was interrupted continues from there. `execution.py` runs proxies and study.

The lowest loss of several values is in part low by chance, the more so the more values there are. Proxies have seeds
that the sweep has not, so that this chance does not enter what the sweep reports.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from experiments.config.designs import TRAIN_FLOPS, TUNE, load_designed
from experiments.config.overrides import resolved_name, split_words
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError, SpecError
from experiments.records.record_types import TunedSetting
from sweeps.folder import SweepFolder
from sweeps.plan import Plan, PlannedRun
from sweeps.planner import Costs, combinations, make_plan, named_combination, planned_run, with_unique_names
from sweeps.progress import RunProgress, ending_of, frozen_names
from sweeps.spec import SweepSpec, parse_spec
from sweeps.tune_design import TuneDesign, is_design, tune_design

MAX_EXTENSIONS = 3
"""The number of values that are added to the grid of an arm at most."""
FIRST_SEED = 1000
"""The first seed of proxies. It lies above those that studies usually have: if proxies took the first numbers that a
sweep leaves free, then a sweep that gets more seeds would be tuned anew, in the end to another value."""

Values = tuple[int | float, ...]


@dataclass(frozen=True)
class TunedArm:
    """The state of one arm: its grid so far with the proxies, and the result once all of them have ended."""

    name: str
    values: Values
    proxies: tuple[PlannedRun, ...]
    tuned: TunedSetting | None = None
    worst: tuple[str, ...] = ()
    """The proxies that diverged or failed, each with the reason. It is empty until all proxies have ended. Where
    there is one at every value, the arm is ended and not tuned."""

    @property
    def is_ended(self) -> bool:
        """Returns whether no proxy is left to be trained."""
        return self.tuned is not None or bool(self.worst)

    def __str__(self) -> str:
        """Says the result, as `nano-dense: optim.learning_rate=0.002 (val_loss 0.41 at 0.001, 0.4 at 0.002, ...)`."""
        if self.tuned is None:
            return f"{self.name}: not tuned yet"
        losses = ["worst" if loss is None else f"{loss:.4g}" for loss in self.tuned.losses]
        tried = ", ".join(f"{loss} at {value:g}" for value, loss in zip(self.tuned.values, losses, strict=True))
        edge = ", at the edge of its grid" if self.tuned.edge else ""
        return f"{self.name}: {self.tuned.setting}={self.tuned.value:g}{edge} (val_loss {tried})"


@dataclass(frozen=True)
class Survey:
    """The state of the tuning as its folder tells it: the arms, and the plan of all proxies needed so far."""

    plan: Plan
    arms: dict[str, TunedArm]
    is_settled: bool


@dataclass
class Tuning:
    """The tuning of one sweep: `folder` holds the proxies, `spec` and `overrides` are those of the sweep itself."""

    folder: SweepFolder
    spec: SweepSpec
    overrides: Sequence[str]
    design: TuneDesign
    _costs: Costs = field(default_factory=Costs)
    _proxies: dict[tuple[tuple[str, ...], float, int], PlannedRun] = field(default_factory=dict)
    _seeds: tuple[int, ...] = ()
    """The seeds of the proxies, none of which the sweep has."""
    _words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The words of the proxies of each arm."""
    _arm_of: dict[tuple[str, ...], str] = field(default_factory=dict)
    """The arm of each combination of the sweep."""

    def __post_init__(self) -> None:
        """Finds the arms, and seeds for their proxies.

        Raises `SpecError` where a combination gives the tuned setting, and `ConfigError` where a proxy, or a run of the
        sweep with one of the values, cannot be. Otherwise the second would be known only after the proxies are trained.
        """
        seeds_of_sweep = set[int]()
        for words, settings in combinations(self.spec, self.overrides):
            self._refuse_given(words)
            with named_combination(settings):
                proxy = self._proxy_words(words)
                arm = self._proxy(proxy, self.design.values[0], 0).config_id
                seeds_of_sweep |= {self._run(words, value).seed for value in self.design.values}
            self._words.setdefault(arm, proxy)
            self._arm_of[tuple(words)] = arm
        free = (seed for seed in itertools.count(FIRST_SEED) if seed not in seeds_of_sweep)
        self._seeds = tuple(itertools.islice(free, self.design.num_seeds))

    def survey(self) -> Survey:
        """Reads how far the proxies have come, and extends grids where they end at a winner. It writes nothing."""
        names, called = frozen_names(self.folder), self._names()
        arms = {arm: self._tuned_arm(called[arm], words, names) for arm, words in self._words.items()}
        distinct = {run.config_id: run for arm in arms.values() for run in arm.proxies}
        plan = Plan(
            sweep=f"{self.spec.name}-tuning",
            spec=self.spec.model_dump(mode="json", exclude_unset=True),
            overrides=list(self.overrides),
            num_merged=0,
            runs=sorted(with_unique_names(list(distinct.values())), key=lambda run: run.train_flops),
        )
        return Survey(plan, arms, all(arm.is_ended for arm in arms.values()))

    def said(self, survey: Survey) -> str:
        """Says what is tuned, on what, and with how many runs."""
        on = "".join(f" {name}={value}" for name, value in self.design.on.items())
        arms = f"{len(survey.arms)} arm{'s' * (len(survey.arms) != 1)}"
        return f"Tuning {self.design.setting} of {arms}{f' on{on}' if on else ''}: {len(survey.plan.runs)} runs."

    def said_extensions(self, before: Survey, now: Survey) -> list[str]:
        """Says for each arm whose grid has grown which value is tried next."""
        pairs = [(arm, sorted(set(now.arms[key].values) - set(arm.values))) for key, arm in before.arms.items()]
        return [
            f"{arm.name}: the best value lies at the edge of {', '.join(f'{value:g}' for value in arm.values)}; "
            f"{', '.join(f'{value:g}' for value in added)} is tried, too."
            for arm, added in pairs
            if added
        ]

    def study(self, survey: Survey) -> Plan:
        """Returns the plan of the sweep itself, in which each run has the value of its arm, where that is known.

        Raises `SpecError` where no value of an arm has a loss, because a proxy of each has diverged or failed.
        """
        for arm in survey.arms.values():
            if arm.is_ended and arm.tuned is None:
                raise SpecError(
                    f"No value of {self.design.setting} can be chosen for {arm.name}: at each a tuning run diverged or "
                    f"failed ({arm.worst[0]}).",
                    f"Give other values in {TUNE}, or start them again with --retry-failed.",
                )
        return make_plan(self.spec, self.overrides, lambda words: survey.arms[self._arm_of[tuple(words)]].tuned)

    def _tuned_arm(self, name: str, words: tuple[str, ...], names: dict[str, str]) -> TunedArm:
        values: Values = self.design.values
        while True:
            grid = [[self._proxy(words, value, seed) for seed in self._seeds] for value in values]
            proxies = tuple(run for runs in grid for run in runs)
            ended = {run.config_id: ending_of(self.folder, run, names) for run in proxies}
            if any(one is None for one in ended.values()):
                return TunedArm(name, values, proxies)
            losses = [_mean([_loss(ended[run.config_id]) for run in runs]) for runs in grid]
            worst = tuple(
                f"{one.name}: {one.reason or 'it has no validation loss'}"
                for one in ended.values()
                if one is not None and _loss(one) is None
            )
            if all(loss is None for loss in losses):
                return TunedArm(name, values, proxies, None, worst)
            ranks = [math.inf if loss is None else loss for loss in losses]
            best = ranks.index(min(ranks))
            is_edge = best in (0, len(values) - 1)
            longer = self._extended(words, values, best) if is_edge else None
            if longer is None:
                tuned = TunedSetting(
                    setting=self.design.setting, value=values[best], values=list(values), losses=losses,
                    num_seeds=self.design.num_seeds, seeds=list(self._seeds), on=dict(self.design.on), edge=is_edge,
                    proxies=[names[run.config_id] for run in proxies],
                )  # fmt: skip
                return TunedArm(name, values, proxies, tuned, worst)
            values = longer

    def _extended(self, words: tuple[str, ...], values: Values, best: int) -> Values | None:
        """Returns `values` with one more beyond the edge at `best`; None where there may or can be no more."""
        if len(values) == len(self.design.values) + MAX_EXTENSIONS:
            return None
        edge, inner = values[best], values[1 if best == 0 else -2]
        added = self.design.value(edge * edge / inner)
        if added is None or added in values:
            return None
        try:
            self._proxy(words, added, 0)
            for combination, arm in self._arm_of.items():
                if self._words[arm] == words:
                    self._run(combination, added)
        except ConfigError:  # beyond the limits of the setting, which is then an edge of its own
            return None
        return (added, *values) if best == 0 else (*values, added)

    def _names(self) -> dict[str, str]:
        """Returns the names of the arms: those of their runs without the seed, with digits of an id where shared."""
        first = {arm: self._proxy(words, self.design.values[0], 0).name for arm, words in self._words.items()}
        short = {arm: name.rpartition("-s0-")[0] for arm, name in first.items()}
        shared = Counter(short.values())
        return {arm: name if shared[name] == 1 else f"{name}-{arm[:6]}" for arm, name in short.items()}

    def _refuse_given(self, words: Sequence[str]) -> None:
        if any(resolved_name(key) == self.design.setting for key, _ in split_words(words)):
            raise SpecError(
                f"{self.design.setting} is tuned by {TUNE}, and given, too.",
                f"Leave out one of them; {TUNE}=None on the command line turns tuning off.",
            )

    def _proxy_words(self, words: Sequence[str]) -> tuple[str, ...]:
        """Returns the words of a combination with the settings of `on` over them."""
        group, theirs = f"wandb.group={self.spec.name}", f"wandb.group={self.spec.name}-tuning"
        kept = [theirs if word == group else word for word in words]
        if "train.images" in self.design.on:  # it takes the place of a budget of FLOPs
            kept = [word for word in kept if not is_design(word, TRAIN_FLOPS)]
        return (*kept, *(f"{name}={value}" for name, value in self.design.on.items()))

    def _run(self, words: Sequence[str], value: float) -> RunConfig:
        """Returns the settings of a run of the sweep itself with `value`. Raises `ConfigError` where it cannot be."""
        return load_designed([*words, self.design.word(value)], cost_of=self._costs).config

    def _proxy(self, words: tuple[str, ...], value: float, seed: int) -> PlannedRun:
        key = (words, value, seed)
        if key not in self._proxies:
            designed = load_designed([*words, self.design.word(value), f"seed={seed}"], cost_of=self._costs)
            self._proxies[key] = planned_run(designed, self._costs, tunes=self.spec.name)
        return self._proxies[key]


def tuning_of(folder: SweepFolder, asked: Plan) -> Tuning | None:
    """Returns the tuning that the plan `asked` of `folder` needs; None where nothing is tuned, or all runs are already.

    Raises `SpecError` for a mistake in `ecdit.tune`.
    """
    if all(run.tuned is not None or run.tunes is not None or run.retry_of is not None for run in asked.wanted):
        return None
    spec = parse_spec(asked.spec, asked.sweep)
    design = tune_design(spec, asked.overrides)
    return None if design is None else Tuning(folder.tuning, spec, asked.overrides, design)


def preview(folder: SweepFolder, asked: Plan) -> tuple[Plan, str | None]:
    """Returns `asked` with the proxies that it needs before its own runs, and the setting that is tuned.

    A run whose arm is not tuned yet has no config id, and a name without one. The setting is None where none is tuned.
    """
    tuning = tuning_of(folder, asked)
    if tuning is None:
        return asked, None
    survey = tuning.survey()
    study = tuning.study(survey)
    runs = [run if run.tuned is not None else _without_id(run) for run in study.runs]
    return study.model_copy(update={"runs": [*survey.plan.runs, *runs]}), tuning.design.setting


def _without_id(run: PlannedRun) -> PlannedRun:
    name = run.name.removesuffix(f"-{run.config_id}").removesuffix(f"-{run.config_id[:6]}")
    return run.model_copy(update={"name": name, "config_id": ""})


def untuned_plan(folder: SweepFolder) -> Plan | None:
    """Returns the runs of a sweep whose arms are still being tuned, from the plan of the proxies; None without one."""
    tuning = folder.tuning.read_plan()
    return None if tuning is None else make_plan(parse_spec(tuning.spec, tuning.sweep), tuning.overrides)


def _loss(ended: RunProgress | None) -> float | None:
    """Returns the final validation loss of a proxy, None for one that did not come to its end."""
    return ended.val_loss if ended is not None and ended.state == "done" else None


def _mean(losses: Sequence[float | None]) -> float | None:
    known = [loss for loss in losses if loss is not None]
    return fmean(known) if len(known) == len(losses) else None
