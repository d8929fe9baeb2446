"""`ecdit sweep` executes the runs of a sweep file, here or on a Slurm cluster, or shows what they would cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ecdit_cli._console import print_json, print_rows, say
from ecdit_cli._option_checks import ADD_DEVICE, WITHOUT_DEVICE, refuse_ignored
from ecdit_cli._options import Device, DryRun, Json, OutDirectory, Overrides, Utilisation
from ecdit_cli._sweep_options import (
    Cluster,
    CoresPerRun,
    Executor,
    NoCalibration,
    PowerOf,
    Register,
    Retries,
    RetryFailed,
    RunsPerAccelerator,
    Slots,
    Timeout,
)  # fmt: skip
from experiments.units import duration

if TYPE_CHECKING:
    from sweeps.execution import SweepOptions
    from sweeps.folder import SweepFolder
    from sweeps.plan import Plan
    from sweeps.runner import SweepResult

EXECUTORS = ("local", "slurm")


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
    power: PowerOf = None,
    as_json: Json = False,
) -> None:
    """Run a sweep file; the same command resumes it and leaves finished runs alone.

    Several of them on one folder, also on several hosts, share the work. A run that was killed is tried again; one that
    failed by itself only with --retry-failed.
    """
    from sweeps.execution import SweepOptions, asked_for, run_here

    _check_executor(executor)
    how = SweepOptions(
        slots, cores_per_run, runs_per_accelerator, timeout, retries, retry_failed, device, utilisation,
        calibrate=not no_calibration and device is None and executor == "local",
    )  # fmt: skip
    elsewhere = {"--dry-run": dry_run, "--out": out is not None, "--cluster": cluster is not None}
    _refuse_ignored(how, executor, register, elsewhere)
    _check_power(power, dry_run)
    if register:
        from sweeps.register import register_sweep

        name = register_sweep(spec, overrides, say)
        print(name)
        say(f"Start agents with: wandb agent {name}")
        return
    from ecdit_cli._sweep_view import screen

    folder, plan = asked_for(spec, overrides, out, say)
    if executor == "slurm":
        _on_slurm(spec, cluster, folder, plan, how, dry_run, power, as_json)
    elif dry_run:
        from ecdit_cli._sweep_cost import show_cost
        from sweeps.tuning import preview

        plan, tuned = preview(folder, plan)
        show_cost(plan, how, [], as_json, power, tuned)
    else:
        result = run_here(folder, plan, how, screen())
        _print_result(folder, result, as_json)
        raise typer.Exit(result.exit_code)


def _on_slurm(
    spec: str, file: Path | None, folder: SweepFolder, plan: Plan, how: SweepOptions, dry_run: bool, power: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Submits the runs, or shows the scripts that would be submitted."""
    from ecdit_cli._sweep_slurm import batch_scripts, cluster_of, next_part, submit_sweep
    from sweeps.tuning import preview

    cluster = cluster_of(spec, file, plan)
    part, runs, is_last = next_part(folder, plan, how.retry_failed)
    if dry_run:
        from ecdit_cli._sweep_cost import show_cost

        plan, tuned = preview(folder, plan)
        show_cost(plan, how, batch_scripts(part, runs, cluster), as_json, power, tuned)
        return
    submit_sweep(part, runs, cluster, how.retry_failed, as_json)
    if not is_last:
        say("These runs tune the arms. When they are done, the same command submits what comes next.")


def _check_executor(executor: str) -> None:
    from experiments.errors import EcditError, did_you_mean

    if executor not in EXECUTORS:
        raise EcditError(f"--executor {executor!r} does not exist.", did_you_mean(executor, EXECUTORS))


def _refuse_ignored(how: SweepOptions, executor: str, register: bool, given: Mapping[str, bool]) -> None:
    """Raises `EcditError` for an option that would be ignored. `given` says which of the other options were given."""
    from sweeps.execution import SweepOptions

    usual, on_slurm = SweepOptions(), executor == "slurm"
    here = {
        "--slots": how.slots is not None,
        "--cores-per-run": how.cores_per_run is not None,
        "--runs-per-accelerator": how.runs_per_accelerator != usual.runs_per_accelerator,
        "--timeout": how.timeout_seconds != usual.timeout_seconds,
        "--retries": how.retries != usual.retries,
    }
    planned = {"--device": how.device is not None, "--utilisation": how.utilisation is not None}
    if register:
        every = {**given, "--executor slurm": on_slurm, **here, "--retry-failed": how.retry_failed, **planned}
        because = "has no meaning with --register, which creates the sweep on the server and runs nothing"
        refuse_ignored(every, because, "Leave out one of them.")
    elif on_slurm:
        because = "is for runs on this machine, and --executor is slurm"
        refuse_ignored(here, because, "Leave it out: the cluster file says what a run gets.")
        if not given["--dry-run"]:
            because = "is for estimates, which --executor slurm makes in a dry run only"
            refuse_ignored({"--device": planned["--device"]}, because, "Add --dry-run, or leave it out.")
    else:
        because = "is for runs on Slurm, and --executor is local"
        refuse_ignored({"--cluster": given["--cluster"]}, because, "Add --executor slurm, or leave it out.")
    if how.device is None:
        refuse_ignored({"--utilisation": planned["--utilisation"]}, WITHOUT_DEVICE, ADD_DEVICE)


def _check_power(power: Path | None, dry_run: bool) -> None:
    from experiments.errors import EcditError

    if power is not None and not dry_run:
        raise EcditError("--power is for plans, and needs --dry-run.", "Add --dry-run, or leave it out.")


def _print_result(folder: SweepFolder, result: SweepResult, as_json: bool) -> None:
    from ecdit_cli._sweep_view import (
        ERRORS_EXPLAINED,
        RESULT_COLUMNS,
        errors_by_name,
        origins_by_name,
        run_row,
        total_row,
    )
    from sweeps.progress import SweepSnapshot

    plan = folder.read_plan()
    off, origins = errors_by_name(folder, plan), origins_by_name(plan)
    rows = [run_row(run) | off.get(run.name, {}) | origins.get(run.name, {}) for run in result.runs]
    snapshot = SweepSnapshot(result.runs)
    if as_json:
        print_json({"runs": rows, "total": total_row(snapshot)})
    else:
        print_rows(rows, [column for column in RESULT_COLUMNS if any(column.key in row for row in rows)], False)
        if any(off.values()):
            say(ERRORS_EXPLAINED)
    num_done = snapshot.num_by_state["done"]
    say(f"{num_done} of {len(rows)} runs done in {duration(result.seconds)}: {folder.path / 'runs'}")
