"""Launchers other than torchrun, each as a user would type it: the losses of one process."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.records.run_folder import RunDir
from tests.system_packages import program
from tests.training_runs import environment, losses, train_command
from tests.two_nodes import ADDRESSES, PORT, two_nodes

pytestmark = [pytest.mark.slow, pytest.mark.multi]
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]


def assert_done(folder, undisturbed, talk):
    assert RunDir(folder).read_status().state == "done", talk
    assert RunDir(folder).read_run().world == 2
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=2e-5)


@pytest.fixture
def mpirun():
    """Runs a command twice under Open MPI and returns the finished process."""
    if program("mpirun") is None:
        pytest.skip("NOT TESTED UNDER OPEN MPI: mpirun is not installed (Debian: openmpi-bin)")

    def run(command):
        return subprocess.run(
            [*MPIRUN, *command], capture_output=True, text=True, env=environment(), timeout=180, check=False
        )

    return run


def test_open_mpi_gives_the_losses_of_one_process(mpirun, undisturbed, tmp_path):
    done = mpirun(train_command(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert_done(tmp_path / "run", undisturbed, done.stderr)


def test_a_mistake_of_a_command_that_two_processes_share_is_said_once(mpirun, tmp_path):
    done = mpirun(train_command(tmp_path / "run", "seeed=1"))
    assert done.returncode == 2
    assert done.stderr.count("error: 'seeed' is not a setting.") == 1


def test_deepspeeds_hostfile_on_two_nodes_gives_the_losses_of_one_process(undisturbed, tmp_path):
    folder, hosts = tmp_path / "run", tmp_path / "hosts"
    hosts.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    launcher = [sys.executable, str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(hosts), "--no_ssh"]
    place = ["--master_addr", ADDRESSES[0], "--master_port", str(PORT), "--module"]
    variables = {**environment(), "DS_ACCELERATOR": "cpu"}
    with two_nodes() as nodes:
        started = [
            subprocess.Popen(
                [*nodes.enter(node), *launcher, "--node_rank", str(node), *place, *train_command(folder)[2:]],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables,
            )
            for node in range(2)
        ]  # fmt: skip
        talk = [process.communicate(timeout=180)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], talk
    assert_done(folder, undisturbed, talk)
