"""Running a command of `ecdit` on hostile input, and what must hold of it whatever the input is.

The exit code is 0, 1 or 2. There is no traceback: what a user did wrong is one line that begins with `error:`. A
command takes less than `MOST_CPU_SECONDS` of processor time and `MOST_MEMORY_GIB`, and writes nothing outside its
output folder. Processor time is measured in place of wall time, since tests share their machine; a command that waits
for something is ended after `MOST_WAIT_SECONDS`.

Commands are forked from a process that has imported what planning needs: the imports take longer than the commands.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from ecdit_cli.app import main
from tests.preloaded import server

MOST_CPU_SECONDS = 10
MOST_WAIT_SECONDS = 120
MOST_MEMORY_GIB = 1.0
MOST_ERROR_LINES = 1
PLANNING = (
    "ecdit_cli._plan_tables", "ecdit_cli._sweep_cost", "ecdit_cli._sweep_view", "sweeps.runner", "sweeps.local",
    "sweeps.layout_search", "tests.fuzz.commands",
)  # fmt: skip
"""What `ecdit plan`, `train --dry-run` and `sweep --dry-run` import."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    words: list[str]
    code: int
    stdout: str
    stderr: str
    cpu_seconds: float
    memory_gib: float

    @property
    def errors(self) -> list[str]:
        """The lines in which the command says what is wrong."""
        return [line for line in self.stderr.splitlines() if line.startswith("error:")]

    def __str__(self) -> str:
        """What a person needs to run it again."""
        command = " ".join(map(repr, self.words))[:2000]
        return f"ecdit {command}\nexit {self.code}\n{self.stdout[-1500:]}\n{self.stderr[-3000:]}"


def run(words: list[str], folder: Path) -> Ended:
    """`ecdit WORDS` in `folder`, with a home of its own, so that everything it writes can be seen."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "SLURM_", "ECDIT_"))},
        "HOME": str(folder / "home"),
        "MPLCONFIGDIR": str(Path(__file__).parents[2] / ".pytest_cache" / "matplotlib"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "WANDB_MODE": "disabled",
        "COLUMNS": "120",
    }
    arguments = [str(folder), *words]
    server(PLANNING).start(arguments, environment, "tests.fuzz.commands:measured").communicate(2 * MOST_WAIT_SECONDS)
    usage = json.loads((folder / "usage.json").read_text())
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    texts = [path.read_text(encoding="utf-8", errors="backslashreplace") for path in (out, err)]
    return Ended(words, usage["code"], *texts, usage["cpu_seconds"], usage["memory_gib"])


def measured() -> None:
    """In a forked process: executes a command in a process of its own, and writes what it took to a file."""
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    process = os.fork()
    if process == 0:
        _become(words, folder)
        main()
        sys.exit()
    usage, code = _wait(process)
    said = {"code": code, "cpu_seconds": usage.ru_utime + usage.ru_stime, "memory_gib": usage.ru_maxrss / 2**20}
    (folder / "usage.json").write_text(json.dumps(said))


def _become(words: list[str], folder: Path) -> None:
    """Gives this process the session, working folder, streams and arguments of a command that a user starts."""
    os.setsid()
    os.chdir(folder / "work")
    streams = (os.devnull, os.O_RDONLY), (folder / "stdout.txt", os.O_WRONLY), (folder / "stderr.txt", os.O_WRONLY)
    for number, (path, mode) in enumerate(streams):
        os.dup2(os.open(path, mode | (os.O_CREAT | os.O_TRUNC if number else 0), 0o666), number)
    sys.argv = ["ecdit", *words]


def assert_well_behaved(ended: Ended) -> None:
    """What holds of every command, whatever it is given."""
    assert ended.code in (0, 1, 2), ended
    assert "Traceback (most recent call last)" not in ended.stderr + ended.stdout, ended
    if ended.code == 2:
        assert len(ended.errors) == MOST_ERROR_LINES, ended
    assert "\x1b" not in ended.stdout + ended.stderr, ended
    assert ended.cpu_seconds < MOST_CPU_SECONDS, ended
    assert ended.memory_gib < MOST_MEMORY_GIB, ended


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every entry below `folder` with its size and the time of its last change; links are not followed."""
    entries = (Path(root) / name for root, folders, files in os.walk(folder) for name in (*folders, *files))
    return {
        str(path.relative_to(folder)): (
            0 if path.is_dir() else status.st_size,
            0 if path.is_dir() else status.st_mtime_ns,
        )
        for path in entries
        for status in [path.lstat()]
    }


def _wait(process: int) -> tuple[resource.struct_rusage, int]:
    """What the process took, and its exit code; one that does not end is killed with its children."""
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(process, signal.SIGKILL))
    signal.alarm(MOST_WAIT_SECONDS)
    _, status, usage = os.wait4(process, 0)
    signal.alarm(0)
    return usage, os.waitstatus_to_exitcode(status)
