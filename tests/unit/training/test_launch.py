import subprocess
import sys

import pytest

from experiments.errors import ConfigError
from experiments.training.launch import adopt_slurm_ranks, first_host, slurm_ranks

STEP = {
    "SLURM_JOB_ID": "70123",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


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
    adopt_slurm_ranks(environment)
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


def test_it_needs_no_torch():
    code = "import experiments.training.launch, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
