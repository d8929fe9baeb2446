"""`ecdit sweep --executor slurm` shows the Slurm jobs of a sweep and submits them. They then run by themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.columns import Column
from ecdit_cli._console import print_json, print_rows, say

if TYPE_CHECKING:
    from sweeps.cluster import Cluster
    from sweeps.folder import SweepFolder
    from sweeps.plan import Plan, PlannedRun

COLUMNS = (Column("name", "run"), Column("state", "state"), Column("job", "job"))


def cluster_of(spec: str, file: Path | None, plan: Plan) -> Cluster:
    """Returns the cluster of a cluster file or of the sweep file, and reports rules that apply to no run.

    Raises `SpecError` for a cluster on the command line and, without a cluster file, for the folder of a sweep: its
    plan keeps the sweep file with other values, such as 43200 for 12:00:00.
    """
    from experiments.config.designs import CLUSTER, separate
    from experiments.errors import SpecError
    from sweeps.cluster import load_cluster
    from sweeps.spec import find_spec

    is_planned = os.path.isdir(spec)
    if is_planned and file is None:
        raise SpecError(f"{spec} is a sweep already planned, which keeps no cluster.", "Give --cluster FILE.")
    if not is_planned and CLUSTER in separate(plan.overrides)[1]:
        raise SpecError(f"{CLUSTER} is not read from the command line.", "Give --cluster FILE.")
    cluster = load_cluster(file or find_spec(spec))
    for rule in cluster.idle_rules(run.config for run in plan.wanted):
        say(f"No run fits the rule {rule}.")
    return cluster


def next_part(folder: SweepFolder, plan: Plan, retry_failed: bool) -> tuple[SweepFolder, Plan, bool]:
    """Returns the folder and the plan to submit now, and whether nothing of the sweep comes after them.

    Those are the proxies as long as arms are to be tuned on them, and then the sweep itself with the tuned settings.
    """
    from sweeps.tuning import tuning_of

    tuning = tuning_of(folder, plan)
    if tuning is None:
        return folder, plan, True
    survey = tuning.survey()
    if not survey.is_settled or (retry_failed and any(arm.worst for arm in survey.arms.values())):
        return tuning.folder, survey.plan, False
    return folder, tuning.study(survey), True


def batch_scripts(folder: SweepFolder, plan: Plan, cluster: Cluster) -> list[str]:
    """Returns the batch script of every job array."""
    from sweeps.slurm import batch_script, job_arrays

    return [batch_script(folder, plan.sweep, array) for array in job_arrays(folder, plan.wanted, cluster)]


def submit_sweep(folder: SweepFolder, asked: Plan, cluster: Cluster, retry_failed: bool, as_json: bool) -> None:
    """Submits what is not done, running or queued; failed runs only with `retry_failed`."""
    from sweeps.progress import read_progress
    from sweeps.rate_retries import with_retries
    from sweeps.runner import freeze_plan
    from sweeps.slurm import submit

    with folder.lock():
        plan = freeze_plan(folder, with_retries(folder, asked))

        def is_left(run: PlannedRun) -> bool:
            return not retry_failed and read_progress(folder.run_dir(run), evaluations=False).state == "failed"

        left = [run for run in plan.wanted if is_left(run)]
        result = submit(folder, plan.sweep, [run for run in plan.wanted if run not in left], cluster)
    rows = [
        *({"name": name, "state": "submitted", "job": job} for name, job in result.submitted.items()),
        *({"name": name, "state": "queued before", "job": job} for name, job in result.queued.items()),
        *({"name": name, "state": "running"} for name in result.running),
        *({"name": name, "state": "done"} for name in result.done),
        *({"name": run.name, "state": "failed"} for run in left),
        *({"name": name, "state": f"waiting for {parent}"} for name, parent in result.waiting.items()),
    ]
    if as_json:
        print_json(rows)
    else:
        print_rows(rows, COLUMNS, as_json=False)
    if left:
        say(f"{len(left)} failed runs were left alone: --retry-failed submits them again.")
    if result.waiting:
        say(
            f"{len(result.waiting)} runs were not submitted: the run that each continues from has no job. Submit the "
            "sweep again once its checkpoint is there."
        )
    say(f"Where they stand: ecdit status {folder.path}")
