"""Plans and executes a sweep on this machine: estimates, slots, the runs themselves, and the timing of images.

The caller says how the sweep is shown: `Screen` holds what prints a line and what shows the progress of the runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.environment import child_environment
from experiments.errors import SpecError
from experiments.plugins.runs import require_plugins
from experiments.plugins.sources import is_plugin
from experiments.records.run_folder import RunDir
from experiments.text import agreeing
from experiments.units import flops
from sweeps.calibration import FLOPS_PER_SECOND_OF_ACCELERATOR, calibrate_plan
from sweeps.cost import Place, estimated, table_device, this_machine
from sweeps.device_slots import Slot, choose_slots, visible_accelerators
from sweeps.folder import SweepFolder
from sweeps.layout_search import fits, refuse_what_does_not_fit
from sweeps.local import LocalExecutor
from sweeps.plan import Plan
from sweeps.planner import make_plan
from sweeps.progress import read_progress
from sweeps.rate_retries import retry_design, settled_by_retry, with_retries
from sweeps.run_queue import Retries
from sweeps.runner import OnProgress, SweepResult, freeze_plan, run_sweep
from sweeps.spec import load_spec
from sweeps.tuning import Tuning, tuning_of, untuned_plan
from sweeps.workers import CommandLauncher, PreloadedLauncher


@dataclass(frozen=True)
class Screen:
    """Shows a sweep to a person: `say` prints one line, and `live_view` yields what is called with each snapshot."""

    say: Callable[[str], None]
    live_view: Callable[[], AbstractContextManager[OnProgress]]


@dataclass(frozen=True)
class SweepOptions:
    """The options for executing a sweep on this machine, and for its estimates."""

    slots: int | None = None
    cores_per_run: int | None = None
    runs_per_accelerator: int = 1
    timeout_seconds: float = 600.0
    retries: int = 2
    retry_failed: bool = False
    device: str | None = None
    utilisation: float | None = None
    calibrate: bool = True

    def slots_for(self, plan: Plan, num_runs: int, must_fit: bool = True) -> tuple[Slot, ...]:
        """Returns the slots of this machine for `num_runs` runs of `plan`.

        Raises `ConfigError` for a run of more processes than there are accelerators, unless `must_fit` is False.
        """
        processes = max((run.world for run in plan.wanted), default=1)
        if not must_fit:
            processes = min(processes, len(visible_accelerators()) or processes)
        return choose_slots(num_runs, self.slots, self.cores_per_run, self.runs_per_accelerator, processes)


def asked_for(
    spec: str, overrides: Sequence[str], out: Path | None, say: Callable[[str], None]
) -> tuple[SweepFolder, Plan]:
    """Returns the folder of a sweep, and the runs that its file or frozen plan asks for. It writes nothing.

    Runs whose arm is yet to be tuned (`tuning.tuning_of`) have the first value of its grid. Raises `RecordError` where
    a run was trained with another source of a plugin, so that a dry run says so, too.
    """
    folder = SweepFolder(Path(spec))
    plan = (folder.read_plan() or untuned_plan(folder)) if os.path.isdir(spec) else None
    if plan is None:
        folder, plan = SweepFolder(out or Path("out") / Path(spec).stem), plan_of(spec, overrides, say)
    elif overrides or out is not None:
        raise SpecError(f"{spec} is a sweep already planned.", "Give its sweep file to change settings or --out.")
    _refuse_other_plugins(folder, plan)
    return folder, plan


def plan_of(spec: str, overrides: Sequence[str], say: Callable[[str], None]) -> Plan:
    """Returns the runs that a sweep file asks for. It writes nothing."""
    checked = load_spec(spec)
    retry_design(checked, overrides)
    plan = make_plan(checked, overrides)
    if plan.num_merged:
        more = agreeing(plan.num_merged, "more combination has", "more combinations have")
        say(f"{len(plan.runs)} runs: {plan.num_merged} {more} the same settings as one of them.")
    return plan


def execute(
    spec: str,
    overrides: Sequence[str],
    screen: Screen,
    out: Path | None = None,
    how: SweepOptions | None = None,
    command: Sequence[str] | None = None,
) -> tuple[SweepFolder, SweepResult]:
    """Runs a sweep to its end in `out` (default: `out/<spec>`), shown on `screen`.

    `command` is what a run is called with, `ecdit train` unless given; it gets `--config FILE --run-dir DIR`.
    """
    folder, plan = asked_for(spec, overrides, out, screen.say)
    return folder, run_here(folder, plan, how or SweepOptions(), screen, command)


def run_here(
    folder: SweepFolder, asked: Plan, how: SweepOptions, screen: Screen, command: Sequence[str] | None = None
) -> SweepResult:
    """Tunes the arms of `asked` where that is to be done, executes everything of it that is not done, and times images.

    Everything happens on this machine. Where tuning does not come to its end, the result is that of the proxies.
    """
    tuning = tuning_of(folder, asked)
    if tuning is not None:
        stopped = _tuned_here(tuning, how, screen, command)
        if stopped is not None:
            return stopped
        asked = tuning.study(tuning.survey())
    result = _run_plan(folder, asked, how, screen, command)
    if not result.interrupted:
        time_images([folder.path / "runs" / run.name for run in result.runs if run.state == "done"], screen.say)
    num_failed = sum(run.state == "failed" and run.name not in result.replaced for run in result.runs)
    if num_failed and not how.retry_failed:
        which = agreeing(num_failed, "run failed", "runs failed")
        again = agreeing(num_failed, "it", "them")
        screen.say(f"{num_failed} {which}: `ecdit sweep {folder.path} --retry-failed` starts {again} again.")
    return result


def _tuned_here(tuning: Tuning, how: SweepOptions, screen: Screen, command: Sequence[str] | None) -> SweepResult | None:
    """Executes proxies until every arm is tuned, and reports the winners.

    Returns the result of the proxies where they were interrupted or some could not be brought to an end, else None.
    """
    survey, is_first = tuning.survey(), True
    screen.say(tuning.said(survey))
    while not survey.is_settled or (is_first and how.retry_failed and any(arm.worst for arm in survey.arms.values())):
        result = _run_plan(tuning.folder, survey.plan, how, screen, command)
        before, survey, is_first = survey, tuning.survey(), False
        how = replace(how, calibrate=False)  # proxies of further values are as fast as those that were timed
        if result.interrupted or (not survey.is_settled and survey.plan == before.plan):
            return result
        for text in tuning.said_extensions(before, survey):
            screen.say(text)
    for arm in survey.arms.values():
        screen.say(str(arm))
        for text in arm.worst:
            screen.say(f"  counts as worst: {text}")
    return None


def _run_plan(
    folder: SweepFolder, asked: Plan, how: SweepOptions, screen: Screen, command: Sequence[str] | None
) -> SweepResult:
    """Executes everything of `asked` that is not done, and then the retries of runs that diverged."""
    num_left = _announce(folder, asked, screen.say)
    slots = how.slots_for(asked, num_left)
    if command is None and num_left:
        asked = _estimated(folder, asked, how, slots, screen.say)
    with folder.lock():
        plan = freeze_plan(folder, with_retries(folder, asked))
    _announce_retired(folder, plan, screen.say)
    while True:
        launcher = PreloadedLauncher(folder.server_log) if command is None else CommandLauncher(command)
        local = LocalExecutor(folder, slots, launcher, how.timeout_seconds)
        with screen.live_view() as show:
            result = run_sweep(folder, plan, local, show, Retries(how.retries), how.retry_failed)
        # By now another sweep may have extended the plan, which this one must not take back.
        with folder.lock():
            longer = freeze_plan(folder, with_retries(folder, folder.read_plan(is_executed=False) or plan))
        known = {run.config_id for run in plan.runs}
        retries = [run for run in longer.wanted if run.retry_of is not None and run.config_id not in known]
        if result.interrupted or not retries:
            return replace(result, replaced=frozenset(settled_by_retry(plan, result.runs)))
        for run in retries:
            rate = run.config["optim"]["learning_rate"]
            screen.say(f"{run.retry_of} diverged: it is trained again as {run.name}, optim.learning_rate={rate:g}.")
        plan = longer


def _estimated(
    folder: SweepFolder, plan: Plan, how: SweepOptions, slots: Sequence[Slot], say: Callable[[str], None]
) -> Plan:
    """Returns `plan` with estimates. Raises `SpecError` where a run cannot fit.

    Models are timed once: a plan whose runs all carry an estimate is not timed again.
    """
    frozen = folder.read_plan()
    known = {run.config_id: run.estimate for run in frozen.runs} if frozen is not None else {}
    is_known = all(known.get(run.config_id) is not None for run in plan.wanted)
    place = place_of(slots, how.device, how.utilisation)
    priced = estimated(plan, place)
    refuse_what_does_not_fit(priced, place)
    if not is_known:
        return estimated(plan, timed(place, plan, slots[0].num_threads, say)) if how.calibrate else priced
    return plan.model_copy(
        update={"runs": [run.model_copy(update={"estimate": known.get(run.config_id)}) for run in plan.runs]}
    )


def place_of(slots: Sequence[Slot], device: str | None, utilisation: float | None) -> Place:
    """Returns an accelerator of the table, or this machine with `slots`, whose speed is not measured yet."""
    if device is not None:
        return table_device(device) if utilisation is None else table_device(device, utilisation)
    runs_on = Counter(name for slot in slots for name in slot.accelerators)
    return this_machine(len(slots), len(runs_on), runs_per_accelerator=max(runs_on.values(), default=1))


def timed(place: Place, plan: Plan, num_threads: int, say: Callable[[str], None]) -> Place:
    """Returns `place`, which is this machine, with the measured speed of the models of `plan` that can be timed here.

    Raises `SpecError` when a training that is timed fails.
    """
    say("Timing a few training steps here (--no-calibration leaves that out) ...")
    assumed = FLOPS_PER_SECOND_OF_ACCELERATOR if place.on_accelerator else None
    points = calibrate_plan(
        plan, num_threads, has_room=lambda short: fits(short, place), assumed_flops_per_second=assumed
    )
    dearest = max((run.train_flops_per_image for run in plan.wanted), default=0)
    if not points and plan.wanted:
        say("No model was timed: none fits in memory here, or each takes too long. --device NAME estimates a device.")
    elif points and dearest > (limit := max(point.train_flops_per_image for point in points)):
        say(
            f"Models of more than {flops(limit)} of training an image were not timed: those that fit are assumed to "
            "reach the FLOP/s of the largest one that was."
        )
    return replace(place, points=points)


def time_images(runs: Sequence[Path], say: Callable[[str], None]) -> None:
    """Times the generation of images in a process of its own, unless all of `runs` have been timed.

    The runs are timed together, so that their times can be compared, and after all training, so that nothing else uses
    the cores. A failure is reported; the runs stay done.
    """
    if all(RunDir(path).has_metric("inference_seconds_per_image") for path in runs):
        return
    say("Timing the generation of images ...")
    command = [sys.executable, "-m", "ecdit_cli", "evaluate", "--metrics", "inference-time", *map(str, runs)]
    if subprocess.run(command, stdout=subprocess.DEVNULL, env=child_environment(), check=False).returncode != 0:
        say("The time to generate an image was not measured; the same command tries again.")


def _announce(folder: SweepFolder, plan: Plan, say: Callable[[str], None]) -> int:
    """Reports how many runs are left alone, and returns how many are to be executed."""
    states = [read_progress(folder.run_dir(run), evaluations=False).state for run in plan.wanted]
    num_done = states.count("done")
    if num_done:
        say(f"{num_done} of {len(plan.wanted)} runs {agreeing(num_done, 'is', 'are')} finished and left alone.")
    return len(plan.wanted) - num_done


def _refuse_other_plugins(folder: SweepFolder, plan: Plan) -> None:
    """Raises `RecordError` where a run, perhaps a finished one, was trained with another source of a plugin."""
    for run in plan.wanted:
        run_dir = folder.run_dir(run)
        if is_plugin("router", run.config["routing"]["name"]) and run_dir.run_json.exists():
            require_plugins(run_dir.read_run(), run_dir.run_json)


def _announce_retired(folder: SweepFolder, plan: Plan, say: Callable[[str], None]) -> None:
    """Reports how many runs of the frozen plan the sweep file does not ask for any more."""
    num_retired = len(plan.runs) - len(plan.wanted)
    if num_retired:
        say(
            f"{num_retired} runs of an earlier version of the sweep file stay in {folder.path}; they are not continued."
        )
