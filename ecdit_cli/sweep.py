"""`ecdit sweep` executes the runs of a sweep file, here or on a Slurm cluster, or shows what they would cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ecdit_cli._console import duration, print_json, print_rows, say
from ecdit_cli._options import (
    Cluster,
    CoresPerRun,
    Device,
    DryRun,
    Executor,
    Json,
    NoCalibration,
    OutDirectory,
    Overrides,
    Register,
    Retries,
    RetryFailed,
    RunsPerAccelerator,
    Slots,
    Timeout,
    Utilisation,
)  # fmt: skip

if TYPE_CHECKING:
    from sweeps.folder import SweepFolder
    from sweeps.plan import Plan
    from sweeps.runner import SweepResult
    from sweeps.slots import Slot

EXECUTORS = ("local", "slurm")


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
        from sweeps.slots import choose_slots, visible_accelerators

        processes = max((run.config["parallel"]["world"] for run in plan.wanted), default=1)
        if not must_fit:
            processes = min(processes, len(visible_accelerators()) or processes)
        return choose_slots(num_runs, self.slots, self.cores_per_run, self.runs_per_accelerator, processes)


def sweep(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC|DIR", help="A shipped sweep, a W&B sweep file, or the folder of a sweep.")
    ],
    overrides: Overrides,
    out: OutDirectory = None,
    executor: Executor = "local",
    cluster: Cluster = None,
    slots: Slots = None,
    cores_per_run: CoresPerRun = None,
    runs_per_accelerator: RunsPerAccelerator = 1,
    timeout: Timeout = 600,
    retries: Retries = 2,
    retry_failed: RetryFailed = False,
    device: Device = None,
    utilisation: Utilisation = None,
    no_calibration: NoCalibration = False,
    register: Register = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run a sweep file; the same command resumes it and leaves finished runs alone.

    Several of them on one folder, also on several hosts, share the work. A run that was killed is tried again; one that
    failed by itself only with --retry-failed.
    """
    _check_executor(executor)
    if register:
        from ecdit_cli._sweep_register import register as create

        name = create(spec, overrides)
        print(name)
        say(f"Start agents with: wandb agent {name}")
        return
    how = SweepOptions(
        slots, cores_per_run, runs_per_accelerator, timeout, retries, retry_failed, device, utilisation,
        calibrate=not no_calibration and device is None and executor == "local",
    )  # fmt: skip
    folder, plan = asked_for(spec, overrides, out)
    if executor == "slurm":
        _on_slurm(spec, cluster, folder, plan, how, dry_run, as_json)
    elif dry_run:
        from ecdit_cli._sweep_cost import show_cost

        show_cost(plan, how, [], as_json)
    else:
        result = run_here(folder, plan, how)
        _print_result(folder, result, as_json)
        raise typer.Exit(result.exit_code)


def asked_for(spec: str, overrides: Sequence[str], out: Path | None) -> tuple[SweepFolder, Plan]:
    """Returns the folder of a sweep, and the runs that its file or frozen plan asks for. It writes nothing."""
    from experiments.errors import SpecError
    from sweeps.folder import SweepFolder

    frozen = SweepFolder(Path(spec)).read_plan() if os.path.isdir(spec) else None
    if frozen is None:
        return SweepFolder(out or Path("out") / Path(spec).stem), plan_of(spec, overrides)
    if overrides or out is not None:
        raise SpecError(f"{spec} is a sweep already planned.", "Give its sweep file to change settings or --out.")
    return SweepFolder(Path(spec)), frozen


def plan_of(spec: str, overrides: Sequence[str]) -> Plan:
    """Returns the runs that a sweep file asks for. It writes nothing."""
    from sweeps.planner import make_plan
    from sweeps.spec import load_spec

    plan = make_plan(load_spec(spec), overrides)
    if plan.num_merged:
        say(f"{len(plan.runs)} runs: {plan.num_merged} more combinations come to the same settings as one of them.")
    return plan


def execute(
    spec: str,
    overrides: Sequence[str],
    out: Path | None = None,
    how: SweepOptions | None = None,
    command: Sequence[str] | None = None,
) -> tuple[SweepFolder, SweepResult]:
    """Run a sweep to its end in `out` (default: `out/<spec>`), with a live view on stderr.

    `command` is what a run is called with, `ecdit train` unless given; it gets `--config FILE --run-dir DIR`.
    """
    folder, plan = asked_for(spec, overrides, out)
    return folder, run_here(folder, plan, how or SweepOptions(), command)


def run_here(folder: SweepFolder, asked: Plan, how: SweepOptions, command: Sequence[str] | None = None) -> SweepResult:
    """Executes everything of `asked` that is not done on this machine, and then times generating an image."""
    from ecdit_cli._sweep_view import live_view
    from sweeps.local import LocalExecutor
    from sweeps.run_queue import Retries as RetryPolicy
    from sweeps.runner import freeze_plan, run_sweep
    from sweeps.workers import CommandLauncher, PreloadedLauncher

    num_left = _announce(folder, asked)
    slots = how.slots_for(asked, num_left)
    if command is None and num_left:
        asked = _estimated(folder, asked, how, slots)
    with folder.lock():
        plan = freeze_plan(folder, asked)
    _announce_retired(folder, plan)
    launcher = PreloadedLauncher(folder.server_log) if command is None else CommandLauncher(command)
    local = LocalExecutor(folder, slots, launcher, how.timeout_seconds)
    with live_view() as show:
        result = run_sweep(folder, plan, local, show, RetryPolicy(how.retries), how.retry_failed)
    if not result.interrupted:
        measure_inference([folder.path / "runs" / run.name for run in result.runs if run.state == "done"])
    num_failed = sum(run.state == "failed" for run in result.runs)
    if num_failed and not how.retry_failed:
        say(f"{num_failed} failed: `ecdit sweep {folder.path} --retry-failed` starts them again.")
    return result


def _estimated(folder: SweepFolder, plan: Plan, how: SweepOptions, slots: Sequence[Slot]) -> Plan:
    """Returns `plan` with estimates. Raises `SpecError` where a run cannot fit.

    Models are timed once: a plan whose runs all carry an estimate is not timed again.
    """
    from ecdit_cli._sweep_cost import place_of, timed
    from sweeps.cost import estimated
    from sweeps.fit import refuse_what_does_not_fit

    frozen = folder.read_plan()
    known = {run.config_id: run.estimate for run in frozen.runs} if frozen is not None else {}
    is_known = all(known.get(run.config_id) is not None for run in plan.wanted)
    place = place_of(slots, how.device, how.utilisation)
    priced = estimated(plan, place)
    refuse_what_does_not_fit(priced, place)
    if not is_known:
        return estimated(plan, timed(place, plan, slots[0].num_threads)) if how.calibrate else priced
    return plan.model_copy(
        update={"runs": [run.model_copy(update={"estimate": known.get(run.config_id)}) for run in plan.runs]}
    )


def _on_slurm(
    spec: str, file: Path | None, folder: SweepFolder, plan: Plan, how: SweepOptions, dry_run: bool, as_json: bool
) -> None:
    """Submits the runs, or shows the scripts that would be submitted."""
    from ecdit_cli._sweep_slurm import batch_scripts, cluster_of, submit_sweep

    cluster = cluster_of(spec, file, plan)
    if dry_run:
        from ecdit_cli._sweep_cost import show_cost

        show_cost(plan, how, batch_scripts(folder, plan, cluster), as_json)
    else:
        submit_sweep(folder, plan, cluster, how.retry_failed, as_json)


def measure_inference(runs: Sequence[Path]) -> None:
    """Times the generation of images in a process of its own, unless all of `runs` have been timed.

    The runs are timed together, so that their times can be compared, and after all training, so that nothing else uses
    the cores. A failure is reported; the runs stay done.
    """
    import subprocess
    import sys

    from experiments.environment import child_environment
    from experiments.records.run_folder import RunDir

    if all(RunDir(path).has_metric("inference_seconds_per_image") for path in runs):
        return
    say("Timing the generation of images ...")
    command = [sys.executable, "-m", "ecdit_cli", "evaluate", "--metrics", "inference-time", *map(str, runs)]
    if subprocess.run(command, stdout=subprocess.DEVNULL, env=child_environment(), check=False).returncode != 0:
        say("The time to generate an image was not measured; the same command tries again.")


def _check_executor(executor: str) -> None:
    from experiments.errors import EcditError, did_you_mean

    if executor not in EXECUTORS:
        raise EcditError(f"--executor {executor!r} does not exist.", did_you_mean(executor, EXECUTORS))


def _announce(folder: SweepFolder, plan: Plan) -> int:
    """Reports how many runs are left alone, and returns how many are to be executed."""
    from sweeps.progress import read_progress

    _refuse_other_plugins(folder, plan)
    states = [read_progress(folder.run_dir(run), evaluations=False).state for run in plan.wanted]
    num_done = states.count("done")
    if num_done:
        say(f"{num_done} of {len(plan.wanted)} runs are finished and left alone.")
    return len(plan.wanted) - num_done


def _refuse_other_plugins(folder: SweepFolder, plan: Plan) -> None:
    """Raises `RecordError` where a run, perhaps a finished one, was trained with another source of a plugin."""
    from experiments.plugins.runs import require_plugins
    from experiments.plugins.sources import is_plugin

    for run in plan.wanted:
        run_dir = folder.run_dir(run)
        if is_plugin("router", run.config["routing"]["name"]) and run_dir.run_json.exists():
            require_plugins(run_dir.read_run(), run_dir.run_json)


def _announce_retired(folder: SweepFolder, plan: Plan) -> None:
    num_retired = len(plan.runs) - len(plan.wanted)
    if num_retired:
        say(
            f"{num_retired} runs of an earlier version of the sweep file stay in {folder.path}; they are not continued."
        )


def _print_result(folder: SweepFolder, result: SweepResult, as_json: bool) -> None:
    from ecdit_cli._sweep_view import RESULT_COLUMNS, errors_by_name, run_row, total_row
    from sweeps.progress import SweepSnapshot

    off = errors_by_name(folder)
    rows, snapshot = [run_row(run) | off.get(run.name, {}) for run in result.runs], SweepSnapshot(result.runs)
    if as_json:
        print_json({"runs": rows, "total": total_row(snapshot)})
    else:
        print_rows(rows, [column for column in RESULT_COLUMNS if any(column.key in row for row in rows)], False)
    num_done = snapshot.num_by_state["done"]
    say(f"{num_done} of {len(rows)} runs done in {duration(result.seconds)}: {folder.path / 'runs'}")
