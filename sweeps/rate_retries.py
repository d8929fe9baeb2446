"""Retries runs that diverged at a lower learning rate, as the design `ecdit.on_divergence` of a sweep file asks.

    ecdit.on_divergence: {value: {learning_rate_factor: 0.5, times: 2}}

A run whose loss is not finite stays in the plan as failed. The sweep then plans it again as another run, with the
learning rate times the factor, and after that with the factor squared, and so on, at most `times` times. Such a run has
a config id of its own, and its `retry_of` names the run that diverged first. Proxies (`tuning.py`) are never retried,
because that a value diverges is what they are to find out. Which retries there are follows from the
folder of the sweep, so that a sweep that was interrupted plans the same ones. Without the design nothing is retried.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from experiments.config.designs import ON_DIVERGENCE
from experiments.config.identity import config_id, run_name
from experiments.config.overrides import validated
from experiments.config.schema import RunConfig
from experiments.config.values import shown
from experiments.errors import SpecError, did_you_mean
from experiments.records.trunk import has_begun
from sweeps.folder import SweepFolder
from sweeps.plan import Plan, PlannedRun, long_name
from sweeps.progress import RunProgress, ending_of, frozen_names
from sweeps.spec import SweepSpec, parse_spec
from sweeps.tune_design import design_mapping

EXAMPLE = "{learning_rate_factor: 0.5, times: 2}"
FACTOR, TIMES = "learning_rate_factor", "times"
LEARNING_RATE = "optim.learning_rate"
MAX_TIMES = 10


@dataclass(frozen=True)
class RetryDesign:
    """The content of `ecdit.on_divergence`: the factor of the learning rate, and how often it is applied at most."""

    factor: float
    times: int


def retry_design(spec: SweepSpec, overrides: Collection[str] = ()) -> RetryDesign | None:
    """Returns what `spec`, or the command line over it, says of runs that diverge; None for nothing.

    Raises `SpecError` where it is no such design.
    """
    content = design_mapping(ON_DIVERGENCE, spec, list(overrides), EXAMPLE)
    if content is None:
        return None
    for key in content:
        if key not in (FACTOR, TIMES):
            raise SpecError(f"{ON_DIVERGENCE}: '{shown(key)}' is not a key.", did_you_mean(key, (FACTOR, TIMES)))
    factor, times = _number(content.get(FACTOR, "")), _number(content.get(TIMES, "1"))
    if not 0 < factor < 1:
        given = f"{FACTOR}={shown(str(content[FACTOR]))}" if FACTOR in content else f"no {FACTOR}"
        raise SpecError(f"{ON_DIVERGENCE} has {given}.", f"Give a number between 0 and 1: {EXAMPLE}.")
    if not (times.is_integer() and 1 <= times <= MAX_TIMES):
        raise SpecError(
            f"{ON_DIVERGENCE}: {TIMES}={shown(str(content[TIMES]))} is not a number of retries.",
            f"Give a whole number from 1 to {MAX_TIMES}.",
        )
    return RetryDesign(factor, int(times))


def with_retries(folder: SweepFolder, plan: Plan) -> Plan:
    """Returns `plan` with the retries of its runs that have diverged by now. It writes nothing."""
    design = retry_design(parse_spec(plan.spec, plan.sweep), plan.overrides)
    if design is None:
        return plan
    names, by_id = frozen_names(folder), {run.config_id: run for run in plan.runs}
    taken = {run.name for run in plan.runs} | set(names.values())
    for run in [run for run in plan.wanted if run.retry_of is None and run.tunes is None]:
        first = run.model_copy(update={"name": names.get(run.config_id, run.name)})
        last = run
        for retry in _lowered(first, design):
            if not _has_diverged(folder, last, names, plan):
                break
            last = by_id.get(retry.config_id) or _named(retry, names, taken)
            by_id[last.config_id] = last
            taken.add(last.name)
    return plan.model_copy(update={"runs": list(by_id.values())})


def _has_diverged(folder: SweepFolder, run: PlannedRun, names: dict[str, str], plan: Plan) -> bool:
    """Returns whether `run` diverged, or is not started because its trunk did, so that it would diverge, too."""
    ending = ending_of(folder, run, names)
    if ending is not None or run.parent is None or has_begun(folder.run_dir(run)):
        return ending is not None and ending.diverged_at is not None
    if folder.run_dir_called(run.parent).checkpoint(run.trunk_images).is_dir():
        return False
    return any(_has_diverged(folder, each, names, plan) for each in plan.wanted if each.name == run.parent)


def settled_by_retry(plan: Plan, runs: Collection[RunProgress]) -> set[str]:
    """Returns the names of the runs that diverged, or were not started since their trunk did, with a retry done."""
    first = {run.name: run.retry_of or run.name for run in plan.wanted}
    retried = {run.retry_of for run in plan.wanted}
    done = {first[run.name] for run in runs if run.state == "done" and run.name in first} & retried
    names = {run.name for run in runs if run.diverged_at is not None or run.name in retried}
    return {name for name in names if first.get(name) in done}


def _lowered(run: PlannedRun, design: RetryDesign) -> Iterator[PlannedRun]:
    """Yields the retries of `run`, each with a lower learning rate than the one before."""
    config = RunConfig.model_validate(run.config)
    # The proxies of the arm did not choose the lower rate, and tables take runs of one tuned arm for one setup.
    tuned = None if run.tuned is not None and run.tuned.setting == LEARNING_RATE else run.tuned
    for number in range(1, design.times + 1):
        rate = float(f"{config.optim.learning_rate * design.factor**number:.12g}")
        optim = config.optim.model_copy(update={"learning_rate": rate})
        lower = validated(config.model_copy(update={"optim": optim}))
        identity = config_id(lower)
        yield run.model_copy(
            update={
                "name": run_name(lower, identity),
                "config_id": identity,
                "config": lower.model_dump(mode="json"),
                "tuned": tuned,
                "retry_of": run.name,
                "parent": None,  # the trunk of another rate is another trunk
                "trunk_images": 0,
            }
        )


def _named(run: PlannedRun, names: dict[str, str], taken: Collection[str]) -> PlannedRun:
    """Returns `run` with the name that it began with, or with all digits of its id where the usual name is taken."""
    name = names.get(run.config_id) or (long_name(run) if run.name in taken else run.name)
    return run.model_copy(update={"name": name})


def _number(text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        return float("nan")
