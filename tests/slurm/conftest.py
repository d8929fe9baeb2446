"""A Slurm of three nodes on this machine for the session, sweeps on it, and the same runs without it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.records.record_types import Status
from experiments.records.run_folder import RunDir, read_jsonl
from sweeps.cluster import Cluster, parse_cluster
from sweeps.folder import SweepFolder
from sweeps.plan import Plan, PlannedRun
from sweeps.planner import make_plan
from sweeps.runner import freeze_plan
from sweeps.slurm import Submission, submit
from sweeps.slurm_job import TRAIN
from sweeps.spec import parse_spec
from tests.slurm.one_host import CannotStartError, OneHost, ensure_installed
from tests.training_runs import TIMEOUT_SECONDS, TINY, environment

LONGER = ("train.images=640", "eval.every_images=320", "checkpoint.every_images=320")
"""Seconds of training, so that a signal finds it at work."""


@pytest.fixture(scope="session")
def slurm() -> Iterator[OneHost]:
    """The cluster; its tests are skipped, with the reason, where it cannot be started."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path is at most 107 characters long
    host = OneHost(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in host.variables.items():
                patch.setenv(name, value)
            try:
                ensure_installed()
                host.start()
            except CannotStartError as error:
                pytest.skip(f"NOT TESTED ON SLURM: {error}")
            yield host
    finally:
        host.stop()
        shutil.rmtree(folder)


@dataclass(frozen=True)
class OnSlurm:
    """One sweep of tiny runs, in a folder of its own."""

    folder: SweepFolder
    plan: Plan
    cluster: Cluster

    @property
    def runs(self) -> list[PlannedRun]:
        return self.plan.wanted

    def submit(self, command: Sequence[str] = TRAIN) -> Submission:
        return submit(self.folder, self.plan.sweep, self.runs, self.cluster, command)

    def run_dir(self, number: int = 0) -> RunDir:
        return self.folder.run_dir(self.runs[number])

    def status(self, number: int = 0) -> Status | None:
        return self.run_dir(number).read_status()

    def logs(self) -> str:
        """What the jobs said: shown where a test fails."""
        files = [*self.folder.path.glob("slurm/*_log.*"), *self.folder.path.glob("runs/*/log.txt")]
        return "\n".join(f"--- {file.name}\n{file.read_text()}" for file in sorted(files))

    def wait_for_rows(self, num_rows: int, number: int = 0) -> None:
        """Until a run is under way."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(read_jsonl(self.run_dir(number).steps).rows) < num_rows:
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.02)


@pytest.fixture(scope="session")
def sweep(slurm: OneHost, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., OnSlurm]:
    """`sweep("train.images=64", nodes="2")`: a frozen plan of one tiny run, or of one for each of `arms`."""

    def make(*settings: str, arms: Sequence[str] = ("seed=0",), **keys: str) -> OnSlurm:
        words = [(*TINY, *LONGER, *settings, *arm.split()) for arm in arms]
        last = [dict(word.split("=", maxsplit=1) for word in each) for each in words]  # an arm names each setting once
        values = [" ".join(f"{key}={value}" for key, value in each.items()) for each in last]
        varied = {"arm": {"values": values}}
        spec = parse_spec({"program": "ecdit", "method": "grid", "parameters": varied}, default_name="tiny")
        folder = SweepFolder(tmp_path_factory.mktemp("sweep"))
        plan = freeze_plan(folder, make_plan(spec))
        # the names of the nodes are no hosts' names; no accelerator, so that the sums are those of the reference
        setup = ["export MASTER_ADDR=127.0.0.1", "export CUDA_VISIBLE_DEVICES="]
        return OnSlurm(folder, plan, parse_cluster({"time": "10", "setup": setup, **keys}))

    return make


@pytest.fixture(scope="session")
def without_slurm(sweep: Callable[..., OnSlurm]) -> Callable[[int], Path]:
    """The folder of the same run with that seed, trained here by `ecdit train` and disturbed by nobody."""
    same = sweep(arms=["seed=0", "seed=1"])
    finished: dict[int, Path] = {}

    def run(seed: int) -> Path:
        if seed not in finished:
            planned = next(run for run in same.runs if run.config["seed"] == seed)
            folder = same.folder.run_dir(planned).path
            command = [sys.executable, *TRAIN, "--config", str(same.folder.write_config(planned))]
            command += ["--run-dir", str(folder)]
            subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
            finished[seed] = folder
        return finished[seed]

    return run
