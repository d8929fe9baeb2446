"""A rank that is lost ends the other within a minute, and the same command continues."""

import signal

import pytest

from experiments.records.run_folder import RunDir
from tests.training_runs import losses, wait_for_rows
from tests.two_nodes import start_ranks

pytestmark = [pytest.mark.slow, pytest.mark.multi]


@pytest.fixture
def ranks():
    """Starts two ranks; what is left of them is killed."""
    started = []

    def start(folder, *settings):
        started.append(start_ranks(folder, *settings))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """Loses a rank of several runs at once, since it takes half a minute until a silent one counts as lost.

    By the rank and its signal it has the folder, the exit code of the other rank, and the errors that this one said.
    """
    running, found = {}, {}
    try:
        for rank in (0, 1):
            for how in (signal.SIGKILL, signal.SIGSTOP):
                folder = tmp_path_factory.mktemp("lost") / "run"
                running[rank, how] = folder, start_ranks(folder)
                wait_for_rows(folder, 3, running[rank, how][1].processes[0])
                running[rank, how][1].processes[rank].send_signal(how)
        for (rank, how), (folder, both) in running.items():
            other = both.processes[1 - rank]
            _, said = other.communicate(timeout=60)
            errors = [line for line in said.splitlines() if line.startswith("error:")]
            found[rank, how] = folder, other.returncode, errors
    finally:
        for _, both in running.values():
            both.kill()
    return found


def assert_continues(ranks, folder, undisturbed):
    assert [code for code, _ in ranks(folder).ends()] == [0, 0]
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=2e-5)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (signal.SIGKILL, "Another process of this run has ended. If it said nothing, look for its memory limit."),
        (signal.SIGSTOP, "Another process of this run has ended or hangs: rank 1 on "),
    ],
)
def test_a_lost_rank_fails_the_run(lost, ranks, undisturbed, how, reason):
    folder, code, errors = lost[1, how]
    status = RunDir(folder).read_status()
    assert code == 1
    assert status.state == "failed"
    assert status.reason.startswith(reason)
    assert errors == [f"error: {status.reason}"]
    assert_continues(ranks, folder, undisturbed)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_without_the_rank_that_writes_the_others_end_and_its_folder_is_free(lost, ranks, undisturbed, how):
    folder, code, [error] = lost[0, how]
    assert code == 1
    assert "Another process of this run has ended" in error
    assert_continues(ranks, folder, undisturbed)


def test_a_folder_that_rank_0_may_not_write_ends_all_ranks(ranks, undisturbed):
    """Rank 0 finds another run in it before the process group is made."""
    (code, said), (other_code, _) = ranks(undisturbed, "seed=7").ends(60)
    assert code == 2
    assert "seed is 0 there and 7 here" in said
    assert other_code == 1
