"""`ecdit train` trains one run to its end; the same command continues it after an interruption."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ecdit_cli._options import ConfigFile, DryRun, Json, Overrides, RunDirectory
from ecdit_cli._streams import unwritable_output_is_said
from experiments.errors import ConfigError, EcditError

if TYPE_CHECKING:
    from experiments.config.schema import RunConfig
    from experiments.records.record_types import Origin
    from experiments.records.run_folder import RunDir


def train(
    overrides: Overrides,
    config_file: ConfigFile = None,
    run_dir: RunDirectory = None,
    dry_run: DryRun = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew; the old records of the run are renamed, not deleted.")
    ] = False,
    branch_from: Annotated[
        Path | None,
        typer.Option(
            "--branch-from",
            metavar="DIR",
            help="Continue from the beginning of the cooldown of a shorter run (optim.schedule=wsd).",
        ),
    ] = None,
    as_json: Json = False,
    plain: Annotated[bool, typer.Option("--no-progress", help="Show no progress bar.")] = False,
) -> None:
    """Train one model. The same command continues it; a finished run is left alone; --restart begins anew.

    Examples: ecdit train model=nano routing=expert_choice train.images=6400
    """
    from experiments.config.designs import load_designed
    from experiments.config.identity import run_name
    from experiments.distributed.launchers import adopt_ranks, leave_it_to_the_speaker
    from experiments.records.origin import read_origin
    from experiments.records.outputs import require_outside_runs
    from experiments.records.run_folder import RunDir

    is_speaker = adopt_ranks()
    try:
        if restart and branch_from is not None:
            raise ConfigError("--restart and --branch-from both say where to begin.", "Give only one of them.")
        begun = None if restart else _begun_settings(run_dir)
        designed = load_designed([*_launched_world(), *overrides], config_file, begun=begun)
        config, origin = designed.config, read_origin(designed.origin)
        folder = RunDir(run_dir or _default_folder(run_name(config)))
        require_outside_runs(folder.path)
    except EcditError as error:  # a mistake on the command line, which all processes make
        if is_speaker:
            raise
        leave_it_to_the_speaker(error.exit_code)
    if dry_run:
        _is_recorded(config, folder)  # refuses a plugin that has changed, as the run itself would
        _print_plan(config, folder, as_json)
        return
    is_finished = not restart and _is_finished(config, folder)
    state = "done" if is_finished else _run(config, folder, plain, restart, branch_from, origin)
    if _is_main_process():
        with unwritable_output_is_said():  # printing must not change the exit code of the run
            _print_result(folder, as_json)
    if state != "done":
        raise typer.Exit(130)


def _run(
    config: RunConfig, folder: RunDir, plain: bool, restart: bool, branch_from: Path | None, origin: Origin | None
) -> str:
    """Imports torch, and trains. Returns the state of the run."""
    from ecdit_cli._progress import training_progress

    with training_progress(config, visible=not plain and _is_main_process()) as reporter:
        from experiments.evaluation.cadence import measure_at_cadence
        from experiments.evaluation.sampling.preview import preview
        from experiments.records.run_folder import RunDir
        from experiments.training.host_memory import keep_freed_memory
        from experiments.training.loop import train as train_run

        keep_freed_memory(config)
        command, observers = ["ecdit", *sys.argv[1:]], [preview, measure_at_cadence]
        parent = None if branch_from is None else RunDir(branch_from)
        return train_run(
            config, folder, command, reporter, observers, restart=restart, branch_from=parent, origin=origin
        )


def _launched_world() -> list[str]:
    """Returns the number of processes as a setting under a launcher; one on the command line still overrides it."""
    import os

    return [f"parallel.world={os.environ['WORLD_SIZE']}"] if "WORLD_SIZE" in os.environ else []


def _begun_settings(run_dir: Path | None) -> dict[str, Any] | None:
    """Returns the settings of the run in this folder, so that it goes on without the run that it began from."""
    from experiments.records.run_folder import RunDir

    has_begun = run_dir is not None and RunDir(run_dir).run_json.exists()
    return RunDir(run_dir).read_run().config if run_dir is not None and has_begun else None


def _is_main_process() -> bool:
    import os

    return os.environ.get("RANK", "0") == "0"


def _default_folder(name: str) -> Path:
    return Path("out") / "runs" / name


def _is_finished(config: RunConfig, folder: RunDir) -> bool:
    """Returns whether this very run is done, with a message, so that nobody waits for it. It needs no torch."""
    from ecdit_cli._console import say

    status = folder.read_status() if folder.exists() else None
    if status is None or status.state != "done" or not _is_recorded(config, folder):
        return False
    say(f"Finished already, left alone: {folder.path}")
    return True


def _is_recorded(config: RunConfig, folder: RunDir) -> bool:
    """Returns whether the folder holds this very run. Raises `RecordError` where it used another source of a plugin."""
    from experiments.config.identity import config_id
    from experiments.plugins.runs import require_plugins
    from experiments.settings_id import settings_id

    if not folder.run_json.exists():
        return False
    record = folder.read_run()
    if settings_id(record.config) != config_id(config):
        return False
    require_plugins(record, folder.run_json)  # else the numbers of another router would pass for this one's
    return True


def _print_plan(config: RunConfig, folder: RunDir, as_json: bool) -> None:
    from analysis.columns import Column
    from ecdit_cli._console import print_json, print_rows
    from experiments.config.budget import budget
    from experiments.config.identity import config_id
    from experiments.units import count, flops

    cost = budget(config)
    row = {
        "run_dir": str(folder.path),
        "config_id": config_id(config),
        "params_total": cost.params_total,
        "params_active": cost.params_active,
        "flops_per_image": cost.flops_per_image,
        "train_flops": cost.train_flops_per_image * config.total_images,
        "images": config.total_images,
    }
    if config.train.init_from is not None and not folder.exists():  # a run that has begun no longer reads its parent
        _say_beginnings(config)
    if as_json:
        print_json({**row, "config": config.model_dump(mode="json")})
        return
    columns = [
        Column("run_dir", "run folder"),
        Column("params_total", "parameters", count),
        Column("params_active", "activated", count),
        Column("flops_per_image", "forward, an image", flops),
        Column("train_flops", "training", flops),
        Column("images", "images", "{:,}".format),
    ]
    print_rows([row], columns, as_json=False)


def _say_beginnings(config: RunConfig) -> None:
    """Says what the run would take of `train.init_from`, and what would be new, without reading a tensor."""
    from ecdit_cli._console import say
    from experiments.config.initial_weights import beginnings, require_parent_fits, said_of_beginnings
    from experiments.models.parts import count_by_part
    from experiments.records.parent_weights import find_parent

    parent = find_parent(Path(config.train.init_from or ""), config.train.init_weights)
    theirs = require_parent_fits(config, parent)
    for line in said_of_beginnings(config, theirs, parent, count_by_part(beginnings(config, theirs))):
        say(line)


def _print_result(folder: RunDir, as_json: bool) -> None:
    """Prints the last losses and the path of the run folder."""
    from analysis.columns import Column
    from ecdit_cli._console import print_json, print_rows
    from experiments.config.metrics import VELOCITY_ERROR
    from experiments.units import duration

    status, step = folder.read_status(), folder.last_step() or {}
    evals = folder.read_rows(folder.evals).rows
    last = {(row["metric"], row["weights"]): row["value"] for row in evals}
    row = {
        "run_dir": str(folder.path),
        "state": status.state if status else None,
        "images_seen": status.images_seen if status else None,
        "loss": step.get("loss"),
        "val_loss": last.get(("val_loss", "raw")),
        "val_loss_ema": last.get(("val_loss", "ema")),
        "velocity_error": last.get((VELOCITY_ERROR, "raw")),
        "seconds": step.get("seconds"),
    }
    if as_json:
        print_json({key: value for key, value in row.items() if value is not None})
        return
    columns = [
        Column("state", "state"),
        Column("images_seen", "images", "{:,}".format),
        Column("loss", "loss", "{:.4f}".format),
        Column("val_loss", "val_loss", "{:.4f}".format),
        Column("val_loss_ema", "ema/val_loss", "{:.4f}".format),
        Column("velocity_error", "velocity error", "{:.4f}".format),
        Column("seconds", "training", duration),
        Column("run_dir", "run folder"),
    ]
    hidden = {"velocity_error"} if row["velocity_error"] == row["val_loss"] else set()
    shown = [column for column in columns if row[column.key] is not None and column.key not in hidden]
    print_rows([row], shown, as_json=False)
