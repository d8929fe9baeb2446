"""Output that nobody reads never ends a training, and a closed terminal saves it."""

import signal
import subprocess

import pytest

from experiments.records.run_folder import RunDir
from experiments.training.checkpoint_list import complete_checkpoints
from tests.preloaded import server
from tests.training_runs import environment, numbers, start, train_command, wait_for_rows

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("broken", ["2>&1 | head -1", "2>/dev/full", ">/dev/full 2>/dev/full"])
def test_a_run_whose_output_cannot_be_written_is_done(broken, undisturbed, tmp_path):
    words = [broken, *train_command(tmp_path / "run", options=())[3:]]
    forked = server().start(words, environment(), "tests.integration.broken_streams:main")
    _, said = forked.communicate(180)
    assert forked.returncode == 0, said
    assert "Traceback" not in said
    assert RunDir(tmp_path / "run").read_status().state == "done"
    assert numbers(tmp_path / "run") == numbers(undisturbed)


def test_a_run_that_starts_without_streams_is_done(undisturbed, tmp_path):
    """Python has no objects for them then, which a forked process would have."""
    shell = f"{' '.join(train_command(tmp_path / 'run', options=()))} >&- 2>&- <&-"
    ended = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, env=environment(), timeout=180, check=False
    )
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr
    assert RunDir(tmp_path / "run").read_status().state == "done"
    assert numbers(tmp_path / "run") == numbers(undisturbed)


def test_a_closed_terminal_saves_the_run(undisturbed, train, tmp_path):
    folder = tmp_path / "run"
    process = start(train_command(folder))
    wait_for_rows(folder, 3, process)
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=120) == 130
    process.stdout.close()
    status = RunDir(folder).read_status()
    assert (status.state, status.reason) == ("interrupted", "SIGHUP")
    assert status.checkpoint_images == status.images_seen
    assert str(status.images_seen) in complete_checkpoints(RunDir(folder))[-1].name
    assert train(folder).returncode == 0
    assert numbers(folder) == numbers(undisturbed)
