"""Two nodes with one network between them: the losses of one process, and whatever differs between them is said."""

import subprocess

import pytest

from experiments.records.run_folder import RunDir
from tests.training_runs import environment, losses, wait_for_rows
from tests.two_nodes import start_ranks, torchrun, two_nodes

pytestmark = [pytest.mark.slow, pytest.mark.multi]


@pytest.fixture(scope="module")
def nodes():
    with two_nodes() as made:
        yield made


@pytest.fixture
def ranks(nodes):
    """`ranks(folder, ...)`: a rank on each node; what is left of them is killed."""
    started = []

    def start(folder, *settings, **options):
        started.append(start_ranks(folder, *settings, nodes=nodes, **options))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def errors(said):
    return [line for line in said.splitlines() if line.startswith("error:")]


def assert_refused(ended, folder, *words):
    """Rank 0 says it in one line, rank 1 nothing, and nothing is written but the log."""
    (code, said), (other_code, other_said) = ended
    assert (code, other_code) == (2, 2), said + other_said
    [line] = errors(said)
    assert errors(other_said) == []
    assert "Traceback" not in said + other_said
    for word in words:
        assert word in line
    assert not RunDir(folder).exists()


def test_torchrun_on_two_nodes_gives_the_losses_of_one_process(undisturbed, nodes, tmp_path):
    folder = tmp_path / "run"
    started = [
        subprocess.Popen(
            [*nodes.enter(node), *torchrun(folder, node)], stderr=subprocess.PIPE, text=True, env=environment()
        )
        for node in range(2)
    ]
    talk = [process.communicate(timeout=180)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], talk
    assert RunDir(folder).read_status().state == "done"
    assert RunDir(folder).read_run().world == 2
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=2e-5)


def test_a_network_that_is_cut_ends_both_and_the_same_command_continues(undisturbed, nodes, ranks, tmp_path):
    folder = tmp_path / "run"
    running = ranks(folder)
    wait_for_rows(folder, 3, running.processes[0])
    nodes.cut()
    ended = running.ends(60)
    nodes.join()
    assert [code for code, _ in ended] == [1, 1]
    status = RunDir(folder).read_status()
    assert status.state == "failed"
    assert "rank 1 on" in status.reason
    assert "gave no sign for 36 s" in status.reason
    assert "The same command continues from the last checkpoint." in status.reason
    assert errors(ended[0][1]) == [f"error: {status.reason}"]
    assert [code for code, _ in ranks(folder).ends()] == [0, 0]
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=2e-5)


def test_a_rank_with_another_version_is_refused_before_anything_is_written(ranks, tmp_path):
    """The metadata of another version come first on that rank's path, as in an environment where it is installed."""
    other = tmp_path / "other" / "deepspeed-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.0.1\n")
    path = f"{other.parent}:{environment().get('PYTHONPATH', '')}"
    ended = ranks(tmp_path / "run", before={1: ()}, changed={1: {"PYTHONPATH": path}}).ends()
    assert_refused(ended, tmp_path / "run", "deepspeed is 0.0.1 on rank 1 on", "Install the same on every node.")


def test_a_rank_with_other_settings_is_refused_before_anything_is_written(ranks, tmp_path):
    ended = ranks(tmp_path / "run", extra={1: ["checkpoint.every_images=64"]}).ends()
    assert_refused(ended, tmp_path / "run", "checkpoint.every_images is 64 on rank 1 on", "and 32 on rank 0 on")


def test_ranks_that_do_not_share_the_run_folder_are_refused_before_anything_is_written(ranks, tmp_path):
    """The second node has a disk of its own where the first has the folder of the run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    own = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs {disk} && exec "$@"', "sh"]
    ended = ranks(disk / "run", before={1: own}).ends()
    assert_refused(ended, disk / "run", "does not see the run folder of rank 0", "on a disk that all nodes share")
