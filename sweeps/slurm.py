"""Submits sweeps to a Slurm cluster, through submitit: one job array for the runs that get the same resources.

This module only submits jobs, which then run by themselves. `slurm_job.py` defines what a job does (train, save when
told to, requeue), and `cluster.py` which resources it gets. The state of a run is read from its folder. Slurm is only
asked which jobs are still queued, so that nothing runs twice when a sweep is submitted twice.

`<out>/slurm/jobs.jsonl` records which job has which run, and `<out>/slurm/<job>_*` are submitit's scripts and logs.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.config.checks import check_config
from experiments.config.limits import MAX_WORLD
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError, EcditError, SpecError
from experiments.plugins.loading import VARIABLE
from experiments.records.run_folder import read_jsonl
from experiments.records.storage import append_line, storage_errors
from sweeps.cluster import Cluster, Resources
from sweeps.folder import SweepFolder
from sweeps.plan import PlannedRun
from sweeps.progress import read_progress
from sweeps.slurm_job import TRAIN, RunJob
from sweeps.trunks import is_waiting

DEFAULT_ARRAY_SIZE = 1000
"""The array size where the cluster does not tell its own; Slurm's default MaxArraySize is 1001."""
SAFE_PATH = "export PYTHONSAFEPATH=1"
"""A job starts in the folder where it was submitted, whose modules must not shadow ours."""
COMMAND_SECONDS = 60.0
"""Seconds that squeue and scontrol may take to answer."""


@dataclass(frozen=True)
class JobArray:
    """Runs that get the same resources, in the order of the plan, or one run that waits for another one's job."""

    resources: Resources
    runs: tuple[PlannedRun, ...]
    parent: str | None = None
    """The run whose job has to end before, because the one run of this job continues from its checkpoint."""


@dataclass(frozen=True)
class Submission:
    """The result of submitting: job ids of new jobs and of those queued before, and runs without a job."""

    submitted: dict[str, str] = field(default_factory=dict)
    queued: dict[str, str] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)
    """Runs that continue from another run, whose name is the value and which has no job to wait for."""


def job_arrays(
    folder: SweepFolder, runs: Sequence[PlannedRun], cluster: Cluster, max_size: int = DEFAULT_ARRAY_SIZE
) -> list[JobArray]:
    """Returns the job arrays for `runs`, parents first. Raises `SpecError` or `ConfigError` for unfit resources.

    A run that waits for the checkpoint of another one is a job by itself, since all tasks of an array share the jobs
    that they depend on.
    """
    groups: dict[str, tuple[Resources, list[PlannedRun]]] = {}
    children: list[JobArray] = []
    for run in runs:
        resources = cluster.resources(run.config)
        _check_world(run, resources)
        if is_waiting(folder, run):
            children.append(JobArray(resources, (run,), run.parent))
        else:
            groups.setdefault(resources.model_dump_json(), (resources, []))[1].append(run)
    arrays = [
        JobArray(resources, tuple(members[start : start + max_size]))
        for resources, members in groups.values()
        for start in range(0, len(members), max_size)
    ]
    return arrays + sorted(children, key=lambda array: array.runs[0].images)  # a parent is shorter than its children


def batch_script(folder: SweepFolder, sweep: str, array: JobArray) -> str:
    """Returns the script that `submit` hands to sbatch for `array`.

    It needs no Slurm. Raises `EcditError` without submitit.
    """
    jobs = jobs_folder(folder)
    parameters = _parameters(sweep, array, f"JOB_OF_{array.parent}")
    count = {"map_count": len(array.runs)} if len(array.runs) > 1 else {}  # as in submitit, one run is a plain job
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(jobs))}"
    script: str = _submitit()._make_sbatch_string(command=command, folder=jobs, **count, **parameters)
    return script


def submit(
    folder: SweepFolder, sweep: str, runs: Sequence[PlannedRun], cluster: Cluster, command: Sequence[str] = TRAIN
) -> Submission:
    """Submits every one of `runs` that is not done, running or queued already. Call it with the folder locked.

    `command` (for Python) gets `--config FILE --run-dir DIR`. Raises `EcditError` where there is no Slurm or no
    submitit, or when Slurm refuses the jobs.
    """
    known = {run.name: read_progress(folder.run_dir(run), run.images, evaluations=False).state for run in runs}
    queued = queued_jobs(folder)
    result = Submission(
        queued={run.name: queued[run.name] for run in runs if run.name in queued and known[run.name] != "done"},
        running=[run.name for run in runs if known[run.name] == "running" and run.name not in queued],
        done=[run.name for run in runs if known[run.name] == "done"],
    )
    settled = {*result.queued, *result.running, *result.done}
    left = [run for run in runs if run.name not in settled]
    for array in job_arrays(folder, left, cluster, _max_array_size() if left else DEFAULT_ARRAY_SIZE):
        parent = array.parent or ""
        job = result.submitted.get(parent) or result.queued.get(parent)
        if parent and job is None:
            result.waiting[array.runs[0].name] = parent
        else:
            result.submitted.update(_submit_array(folder, sweep, array, command, job))
    return result


def queued_jobs(folder: SweepFolder) -> dict[str, str]:
    """Returns job ids by run, for the jobs of this sweep that Slurm has, waiting or running. Raises `EcditError`."""
    recorded = recorded_jobs(folder)
    if not recorded:
        return {}
    alive = set(_answer("squeue", "--me", "--noheader", "--array", "--format=%i").split())
    return {run: job for run, job in recorded.items() if job in alive}


def recorded_jobs(folder: SweepFolder) -> dict[str, str]:
    """Returns the newest job id of each run that was ever submitted, without asking Slurm."""
    rows = read_jsonl(_jobs_file(folder)).rows
    return {str(row["run"]): str(row["job_id"]) for row in rows if "run" in row and "job_id" in row}


def jobs_folder(folder: SweepFolder) -> Path:
    """Returns where submitit keeps scripts, pickles and logs; it is absolute, because jobs start elsewhere."""
    return folder.path.absolute() / "slurm"


def _submit_array(
    folder: SweepFolder, sweep: str, array: JobArray, command: Sequence[str], parent_job: str | None
) -> dict[str, str]:
    """Submits one array, which starts after `parent_job` if there is one, and records which job has which run."""
    slurm, absolute = _submitit(), SweepFolder(folder.path.absolute())
    executor = slurm.SlurmExecutor(jobs_folder(folder))
    executor.update_parameters(**_parameters(sweep, array, parent_job))
    for run in array.runs:
        absolute.write_config(run)
    try:
        with redirect_stderr(io.StringIO()), executor.batch():  # submitit prints what it also raises
            jobs = [executor.submit(RunJob(absolute, run, tuple(command))) for run in array.runs]
    except slurm.utils.FailedJobError as error:
        reason = " ".join(str(error).replace("sbatch: error: ", "").split())
        raise EcditError(f"Slurm refused the jobs: {reason}.", "Correct the cluster file.") from error
    ids = {run.name: str(job.job_id) for run, job in zip(array.runs, jobs, strict=True)}
    _record(folder, ids)
    return ids


def _parameters(sweep: str, array: JobArray, parent_job: str | None) -> dict[str, Any]:
    """Returns the parameters of `array` for submitit. A None leaves an option out that submitit has a default for."""
    resources = array.resources
    options: dict[str, str | bool] = {"requeue": True, **resources.extra_options()}
    if array.parent is not None:
        # However the parent's job ends, its checkpoint may be there; the job of the child looks. A job that is queued
        # again after a preemption has not ended.
        given = [str(options["dependency"])] if "dependency" in options else []
        options["dependency"] = ",".join([f"afterany:{parent_job}", *given])
    if resources.mem is not None:
        options["mem"] = resources.mem
    return {
        "job_name": f"ecdit-{sweep}",
        "time": resources.time,
        "partition": resources.partition,
        "account": resources.account,
        "constraint": resources.constraint,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.num_tasks_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "gpus_per_node": resources.gpus_per_node or None,
        "setup": [*resources.setup, SAFE_PATH, *_plugins()],
        "signal_delay_s": resources.save_seconds,
        "array_parallelism": resources.max_parallel or len(array.runs),
        "wckey": None,
        "additional_parameters": options,
        # Since Slurm 22.05 srun does not inherit the processors of a task from sbatch.
        "srun_args": [f"--cpus-per-task={resources.cpus_per_task}", "--kill-on-bad-exit=1"],
    }


def _plugins() -> list[str]:
    """Returns the line that hands the files of plugins to the jobs; sites may not pass the environment on."""
    files = os.environ.get(VARIABLE)
    return [f"export {VARIABLE}={shlex.quote(files)}"] if files else []


def _check_world(run: PlannedRun, resources: Resources) -> None:
    """Raises `SpecError` or `ConfigError` where the run cannot use as many processes as it gets."""
    wanted, world = run.world, resources.world
    layout = f"{resources.nodes} x {resources.num_tasks_per_node} tasks"
    if wanted not in (1, world):
        raise SpecError(
            f"{run.name} has parallel.world={wanted}, but its cluster gives it {layout}.",
            "Leave parallel.world out, or change nodes and tasks_per_node.",
        )
    if world > MAX_WORLD:
        raise SpecError(
            f"{run.name} gets {layout} from its cluster, and a run has at most {MAX_WORLD:,} processes.",
            "Change nodes and tasks_per_node.",
        )
    parallel = {**run.config["parallel"], "world": world}
    try:
        check_config(RunConfig.model_validate({**run.config, "parallel": parallel}))
    except ConfigError as error:
        raise ConfigError(f"{run.name} on {layout}: {error.message}", error.hint) from error


def _record(folder: SweepFolder, ids: Mapping[str, str]) -> None:
    path = _jobs_file(folder)
    with storage_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        for run, job in ids.items():
            row = {"run": run, "job_id": job, "submitted_at": time.time()}
            append_line(descriptor, json.dumps(row).encode() + b"\n", path)
    finally:
        os.close(descriptor)


def _max_array_size() -> int:
    """Returns how many runs one array may hold: indices must be below Slurm's MaxArraySize."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _answer("scontrol", "show", "config"))
    return max(1, int(found.group(1)) - 1) if found else DEFAULT_ARRAY_SIZE


def _answer(*command: str) -> str:
    """Returns the output of a Slurm command. Raises `EcditError` when it is missing or Slurm does not answer."""
    hint = "Submit from a machine where `sinfo` answers, or use the local executor."
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except FileNotFoundError as error:
        raise EcditError(f"There is no Slurm here: {command[0]} is not found.", hint) from error
    except subprocess.TimeoutExpired as error:
        raise EcditError(f"Slurm does not answer: {command[0]} took over {COMMAND_SECONDS:g} s.", hint) from error
    if done.returncode != 0:
        raise EcditError(f"Slurm does not answer: {' '.join(done.stderr.split())}.", hint)
    return done.stdout


def _jobs_file(folder: SweepFolder) -> Path:
    return jobs_folder(folder) / "jobs.jsonl"


def _submitit() -> ModuleType:
    try:
        from submitit.slurm import slurm
    except ImportError as error:
        raise EcditError("Slurm needs the package submitit.", "Install it: pip install 'ecdit[slurm]'.") from error
    return slurm
