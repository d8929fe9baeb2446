"""`ecdit sweep`: run all that a sweep file asks for on this machine, or say what it would cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ecdit_cli._console import Column, count, duration, flops, print_json, print_rows, talk
from ecdit_cli._options import DryRun, Json, OutDirectory, Overrides

if TYPE_CHECKING:
    from experiments.records.layout import RunDir
    from sweeps.folder import SweepFolder
    from sweeps.plan import Plan, PlannedRun
    from sweeps.runner import SweepResult

COST_COLUMNS = (
    Column("name", "run"),
    Column("params_total", "total", count),
    Column("params_active", "active", count),
    Column("flops_per_image", "per image", flops),
    Column("images", "images", "{:,}".format),
    Column("train_flops", "training", flops),
)


def sweep(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A shipped sweep, e.g. quickstart, or a W&B sweep file.")],
    overrides: Overrides,
    out: OutDirectory = None,
    executor: Annotated[str, typer.Option(metavar="local|slurm", help="Where the runs go.")] = "local",
    slots: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time. Default: one per accelerator or core.")
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run a sweep file; the same command resumes it and leaves finished runs alone."""
    _check_executor(executor)
    if dry_run:
        _print_cost(plan_of(spec, overrides), as_json)
        return
    folder, result = execute(spec, overrides, out, slots)
    _print_result(folder, result, as_json)
    raise typer.Exit(result.exit_code)


def plan_of(spec: str, overrides: Sequence[str]) -> Plan:
    """The runs that a sweep file asks for. Writes nothing."""
    from sweeps.planner import make_plan
    from sweeps.spec import load_spec

    plan = make_plan(load_spec(spec), overrides)
    if plan.num_merged:
        _say(f"{len(plan.runs)} runs: {plan.num_merged} more combinations come to the same settings as one of them.")
    return plan


def execute(
    spec: str,
    overrides: Sequence[str],
    out: Path | None = None,
    num_slots: int | None = None,
    command: Sequence[str] | None = None,
) -> tuple[SweepFolder, SweepResult]:
    """Run a sweep to its end in `out` (default: `out/<spec>`), with a live view on stderr.

    `command` is what a run is called with, `ecdit train` unless given; it gets `--config FILE --run-dir DIR`.
    """
    from ecdit_cli._sweep_view import live_view
    from sweeps.folder import SweepFolder
    from sweeps.local import TRAIN, LocalExecutor, choose_slots
    from sweeps.runner import freeze_plan, run_sweep

    asked = plan_of(spec, overrides)
    folder = SweepFolder(out or Path("out") / Path(spec).stem)
    with folder.lock():
        plan = freeze_plan(folder, asked)
        slots = choose_slots(_announce(folder, plan), num_slots)
        with live_view() as show:
            result = run_sweep(folder, plan, LocalExecutor(folder, slots, command or TRAIN), show)
        if not result.interrupted:
            measure_inference([folder.path / "runs" / run.name for run in result.runs if run.state == "done"])
    return folder, result


def measure_inference(runs: Sequence[Path]) -> None:
    """Time the generation of images in one process of its own, unless all of `runs` have been timed.

    All together, so that the times can be compared, and after all training, so that nothing else uses the cores. A
    failure is said; the runs stay done.
    """
    import subprocess
    import sys

    from experiments.records.layout import RunDir

    if all(_has_inference_time(RunDir(path)) for path in runs):
        return
    _say("Timing the generation of images ...")
    command = [sys.executable, "-m", "ecdit_cli", "evaluate", "--metrics", "inference-time", *map(str, runs)]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0:
        _say("The time to generate an image was not measured; the same command tries again.")


def _has_inference_time(run: RunDir) -> bool:
    return any(row.get("metric") == "inference_seconds_per_image" for row in run.read_rows(run.evals).rows)


def _check_executor(executor: str) -> None:
    from experiments.errors import EcditError, did_you_mean

    if executor == "slurm":
        raise EcditError("--executor slurm is not in this version.", "Use --executor local.")
    if executor != "local":
        raise EcditError(f"--executor {executor!r} does not exist.", did_you_mean(executor, ["local"]))


def _announce(folder: SweepFolder, plan: Plan) -> int:
    """Say what is left alone, and return how many runs are to go."""
    from sweeps.progress import read_progress

    states = [read_progress(folder.run_dir(run), evaluations=False).state for run in plan.wanted]
    num_done = states.count("done")
    num_retired = len(plan.runs) - len(plan.wanted)
    if num_done:
        _say(f"{num_done} of {len(plan.wanted)} runs are finished and left alone.")
    if num_retired:
        _say(
            f"{num_retired} runs of an earlier version of the sweep file stay in {folder.path}; they are not continued."
        )
    return len(plan.wanted) - num_done


def _print_cost(plan: Plan, as_json: bool) -> None:
    rows = [_cost_row(run) for run in plan.runs]
    total = {
        "num_runs": len(rows),
        "num_merged": plan.num_merged,
        "images": sum(run.images for run in plan.runs),
        "train_flops": sum(run.train_flops for run in plan.runs),
    }
    if as_json:
        print_json({"runs": rows, "total": total})
    else:
        print_rows([*rows, {**total, "name": f"total of {len(rows)} runs"}], COST_COLUMNS, False, title=plan.sweep)


def _cost_row(run: PlannedRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "config_id": run.config_id,
        "params_total": run.params_total,
        "params_active": run.params_active,
        "flops_per_image": run.flops_per_image,
        "train_flops_per_image": run.train_flops_per_image,
        "images": run.images,
        "train_flops": run.train_flops,
    }


def _print_result(folder: SweepFolder, result: SweepResult, as_json: bool) -> None:
    from ecdit_cli._sweep_view import RESULT_COLUMNS, run_row, total_row
    from sweeps.progress import Snapshot

    rows, snapshot = [run_row(run) for run in result.runs], Snapshot(result.runs)
    if as_json:
        print_json({"runs": rows, "total": total_row(snapshot)})
    else:
        print_rows(rows, RESULT_COLUMNS, False)
    num_done = snapshot.num_by_state["done"]
    _say(f"{num_done} of {len(rows)} runs done in {duration(result.seconds)}: {folder.path / 'runs'}")


def _say(line: str) -> None:
    talk().print(line, soft_wrap=True, highlight=False, markup=False)
