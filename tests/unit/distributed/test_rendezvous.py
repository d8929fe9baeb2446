"""What makes a rank unfit to run with rank 0, and which network gloo is told to use."""

import socket
from dataclasses import replace
from importlib.metadata import version

import psutil
import pytest

from experiments.config.budget import budget
from experiments.config.overrides import load_config
from experiments.distributed.rendezvous import INTERFACE, Rank, choose_interface, facts_of, first_trouble
from experiments.training.description import describe_run

FACTS = {"torch": "2.13.0", "python": "3.11", "git commit": "abc", "seed": "0"}
FIRST = Rank(0, "n1", FACTS, "/shared/run", sees_folder=True)
SECOND = replace(FIRST, number=1, host="n2")


def changed(**facts):
    return replace(SECOND, facts={**FACTS, **facts})


def test_ranks_that_are_the_same_may_run():
    assert first_trouble([FIRST, SECOND]) is None
    assert first_trouble([FIRST]) is None


@pytest.mark.parametrize(
    ("rank", "message", "hint"),
    [
        (changed(torch="2.12.1"), "torch is 2.12.1 on rank 1 on n2 and 2.13.0 on rank 0 on n1.", "Install the same"),
        (changed(python="3.12"), "python is 3.12 on rank 1 on n2 and 3.11 on rank 0 on n1.", "Install the same"),
        (changed(seed="7"), "seed is 7 on rank 1 on n2 and 0 on rank 0 on n1.", "Start every rank with the same set"),
        (changed(new="7"), "new is 7 on rank 1 on n2 and missing on rank 0 on n1.", "Start every rank"),
        (
            replace(SECOND, folder="/tmp/run", sees_folder=False),
            "rank 1 on n2 does not see the run folder of rank 0 on n1, /shared/run: it looked in /tmp/run.",
            "Give a --run-dir on a disk that all nodes share.",
        ),
    ],
)  # fmt: skip
def test_a_rank_that_differs_is_named_with_both_values(rank, message, hint):
    found = first_trouble([FIRST, SECOND, replace(rank, number=2, host="n3"), rank])
    assert found is not None
    assert found[0] == message.replace("rank 1 on n2", "rank 2 on n3")
    assert found[1].startswith(hint)


def test_the_versions_of_what_computes_and_every_setting_are_compared():
    config = load_config(["seed=7"])
    facts = facts_of(describe_run(config, "fp32", budget(config), ["ecdit", "train"]))
    assert [*facts][:3] == ["torch", "deepspeed", "ecdit"]
    assert [facts[name] for name in ("torch", "deepspeed", "ecdit")] == [*map(version, ("torch", "deepspeed", "ecdit"))]
    assert (facts["seed"], facts["routing.name"]) == ("7", "expert_choice")


def test_another_version_is_said_before_another_setting():
    assert first_trouble([FIRST, changed(seed="7", torch="2.12.1")])[0].startswith("torch")


def test_a_commit_is_compared_where_both_are_known():
    installed = {key: value for key, value in FACTS.items() if key != "git commit"}
    assert first_trouble([FIRST, replace(SECOND, facts=installed)]) is None
    assert first_trouble([FIRST, changed(**{"git commit": "def"})])[0].startswith("git commit is def")


def own_address():
    """An address of this machine that others could reach, and its interface."""
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            if one.family == socket.AF_INET and not one.address.startswith("127."):
                return name, one.address
    pytest.skip("this machine has no network but its loopback")


def test_gloo_is_told_the_interface_that_leads_to_the_first_node():
    name, address = own_address()
    environment = {"MASTER_ADDR": address}
    choose_interface(environment)
    assert environment[INTERFACE] == name


@pytest.mark.parametrize(
    "environment",
    [{"MASTER_ADDR": "127.0.0.1"}, {"MASTER_ADDR": "no-such-host.invalid"}, {"MASTER_ADDR": "n1", INTERFACE: "ib0"}],
)
def test_the_interface_is_left_to_gloo_on_one_node_and_to_the_user(environment):
    before = dict(environment)
    choose_interface(environment)
    assert environment == before
