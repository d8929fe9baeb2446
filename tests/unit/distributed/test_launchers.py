import subprocess
import sys

import pytest

from experiments.distributed.launchers import adopt_ranks, first_host, launched_ranks, slurm_ranks, work_share
from experiments.errors import ConfigError

STEP = {
    "SLURM_JOB_ID": "70123",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
    "PMIX_NAMESPACE": "1226571777",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def test_a_task_of_a_step_gets_what_torchrun_would_set():
    assert slurm_ranks(STEP) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu03",
        "MASTER_PORT": "20123",
    }


def test_all_tasks_of_a_step_meet_at_one_place_and_two_steps_at_two():
    def place(environment):
        ranks = slurm_ranks(environment)
        return ranks["MASTER_ADDR"], ranks["MASTER_PORT"]

    assert place(STEP) == place({**STEP, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    assert place(STEP) != place({**STEP, "SLURM_STEP_ID": "1"})


def test_a_batch_script_and_a_single_task_are_left_alone():
    assert slurm_ranks({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) == {}
    assert slurm_ranks({**STEP, "SLURM_STEP_NUM_TASKS": "1"}) == {}
    assert slurm_ranks({}) == {}


def test_a_launcher_inside_the_step_wins():
    assert slurm_ranks({**STEP, "WORLD_SIZE": "4", "RANK": "2"}) == {}


def test_a_given_master_address_stays():
    environment = {**STEP, "MASTER_ADDR": "10.0.0.3"}
    adopt_ranks(environment)
    assert environment["MASTER_ADDR"] == "10.0.0.3"
    assert environment["RANK"] == "5"


def test_a_task_that_sees_one_device_uses_it():
    assert slurm_ranks({**STEP, "CUDA_VISIBLE_DEVICES": "1"})["LOCAL_RANK"] == "0"
    assert slurm_ranks({**STEP, "CUDA_VISIBLE_DEVICES": "0,1"})["LOCAL_RANK"] == "1"
    assert slurm_ranks({**STEP, "CUDA_VISIBLE_DEVICES": ""})["LOCAL_RANK"] == "1"


@pytest.mark.parametrize(
    ("node_list", "first"),
    [
        ("n1", "n1"),
        ("n[3-5,8],m1", "n3"),
        ("rack0-n[03-09]", "rack0-n03"),
        ("rack[0-1]n[2,7],x", "rack0n2"),
        ("login,n[1-2]", "login"),
        ("a[1-2]-ib,b", "a1-ib"),
    ],
)
def test_the_first_host_of_a_node_list(node_list, first):
    assert first_host(node_list) == first


def test_a_step_without_a_rank_is_an_error_that_says_so():
    half = {name: value for name, value in STEP.items() if name != "SLURM_PROCID"}
    with pytest.raises(ConfigError, match=r"started 8 processes but did not set SLURM_PROCID\. Start with srun"):
        slurm_ranks(half)


def test_a_process_of_open_mpi_gets_what_torchrun_would_set():
    ranks = launched_ranks(OPEN_MPI)
    assert 10_000 <= int(ranks.pop("MASTER_PORT")) < 30_000
    assert ranks == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}


def test_the_processes_of_one_job_of_open_mpi_meet_at_one_port_and_two_jobs_at_two():
    def port(**changed):
        return launched_ranks({**OPEN_MPI, **changed})["MASTER_PORT"]

    assert port() == port(OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_LOCAL_RANK="0")
    assert port() != port(PMIX_NAMESPACE="prterun-n1-10255@1")


def test_a_process_of_mpich_gets_what_torchrun_would_set():
    ranks = launched_ranks(HYDRA)
    assert (ranks["RANK"], ranks["WORLD_SIZE"], ranks["LOCAL_RANK"]) == ("1", "2", "1")
    assert ranks["MASTER_ADDR"] == "127.0.0.1"
    assert ranks["MASTER_PORT"] == launched_ranks({**HYDRA, "PMI_RANK": "0", "MPI_LOCALRANKID": "0"})["MASTER_PORT"]


@pytest.mark.parametrize(
    ("environment", "here"),
    [({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, "4"), ({**HYDRA, "MPI_LOCALNRANKS": "1"}, "1")],
)
def test_mpi_on_several_nodes_needs_the_node_of_rank_0(environment, here):
    line = rf"on several nodes, {here} of them here, and MASTER_ADDR is not set\. Name the node of rank 0"
    with pytest.raises(ConfigError, match=line):
        adopt_ranks(dict(environment))
    adopted = {**environment, "MASTER_ADDR": "n1"}
    adopt_ranks(adopted)
    assert adopted["MASTER_ADDR"] == "n1"


def test_one_process_of_mpi_is_left_alone():
    assert launched_ranks({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1"}) == {}
    assert launched_ranks({**HYDRA, "PMI_SIZE": "1"}) == {}


def test_under_slurm_the_daemons_of_mpi_are_not_taken_for_the_processes():
    daemon = {**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    assert launched_ranks({**daemon, **OPEN_MPI})["WORLD_SIZE"] == "8"
    ours = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "8"}
    assert launched_ranks({**daemon, **ours})["RANK"] == "5"
    assert launched_ranks({**STEP, **ours})["MASTER_ADDR"] == "gpu03", "srun speaks PMI too, and knows the nodes"


def test_one_process_of_a_command_speaks_for_all():
    """srun and mpirun were typed in once; torchrun once on every node."""
    assert adopt_ranks({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "0"})
    assert not adopt_ranks(dict(OPEN_MPI))
    assert not adopt_ranks({**STEP, "SLURM_LOCALID": "0"})
    torchrun = {"WORLD_SIZE": "4", "RANK": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
    assert adopt_ranks({**torchrun, "LOCAL_RANK": "0"})
    assert not adopt_ranks({**torchrun, "LOCAL_RANK": "1"})
    assert adopt_ranks({})


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (
            {"WORLD_SIZE": "2"},
            r"WORLD_SIZE=2 is set but RANK and MASTER_ADDR and MASTER_PORT not\. Start with torchrun",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, r"WORLD_SIZE=2 is set but MASTER_ADDR not\."),
        ({"WORLD_SIZE": "two"}, r"WORLD_SIZE='two' is not a number of processes\."),
    ],
)
def test_half_an_environment_is_an_error_that_says_so(environment, line):
    with pytest.raises(ConfigError, match=line):
        adopt_ranks(environment)


TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
NOT_NUMBERS = ("", "abc", "-1", "1.5", "\u00b2", "9" * 5000)


@pytest.mark.parametrize("text", NOT_NUMBERS)
@pytest.mark.parametrize(
    ("launcher", "name"),
    [
        *((TORCHRUN, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")),
        *((STEP, name) for name in STEP if name != "SLURM_STEP_NODELIST"),
        *((OPEN_MPI, name) for name in OPEN_MPI if name != "PMIX_NAMESPACE"),
        *((HYDRA, name) for name in HYDRA),
    ],
)
def test_what_should_be_a_number_and_is_not_is_one_line_that_names_it(launcher, name, text):
    with pytest.raises(ConfigError) as caught:
        adopt_ranks({**launcher, name: text})
    assert name in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({**TORCHRUN, "RANK": "2"}, "RANK='2' is not a rank of 2 process\\(es\\), from 0 to 1"),
        ({**TORCHRUN, "WORLD_SIZE": "0"}, "WORLD_SIZE='0' is not a number of processes"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT='70000' is not a port"),
        ({**TORCHRUN, "MASTER_ADDR": ""}, "WORLD_SIZE=2 is set but MASTER_ADDR not"),
        ({"RANK": "0"}, "RANK=0 is set but WORLD_SIZE and MASTER_ADDR and MASTER_PORT not"),
        ({**STEP, "SLURM_PROCID": "8"}, "SLURM_PROCID='8' is not a rank of 8"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE is not set"),
    ],
)
def test_numbers_that_fit_no_launch_are_one_line(environment, name):
    with pytest.raises(ConfigError, match=name):
        adopt_ranks(environment)


def test_one_process_needs_nothing_else_and_speaks_for_itself():
    """A shell may keep the LOCAL_RANK of an earlier launch."""
    for environment in ({"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "1"}, {}):
        assert adopt_ranks(dict(environment))
        assert adopt_ranks({**environment, "LOCAL_RANK": "1"})


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (0, 1, 0)),
        ({**TORCHRUN, "RANK": "1", "LOCAL_RANK": "1"}, (1, 2, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2, 0)),
        (STEP, (5, 8, 1)),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, (5, 8, 1)),
        ({"RANK": "0"}, (0, 1, 0)),
        ({**TORCHRUN, "RANK": "7"}, (0, 1, 0)),
        ({"SLURM_STEP_NUM_TASKS": ""}, (0, 1, 0)),
    ],
)
def test_work_that_needs_no_meeting_is_shared_by_those_who_know_their_rank(environment, share):
    assert work_share(environment) == share


def test_it_needs_no_torch():
    code = "import experiments.distributed.launchers, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
