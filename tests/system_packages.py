"""Programs of the system that a test needs: found, installed where that is allowed, or said to be missing.

Installing is for root on Debian and Ubuntu, and only where a variable of the environment asks for it: the tests of a
user change nothing on a machine.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


class NotInstalledError(Exception):
    """A program is missing and could not be installed; says why."""


def program(name: str) -> str | None:
    """The path of a program; daemons lie in sbin, which is not on everybody's path."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/local/sbin")


def install(missing: Sequence[str], packages: Sequence[str], allowed_by: str) -> None:
    """Debian's `packages` for the `missing` programs, where the variable `allowed_by` is 1; a `NotInstalledError`."""
    what = f"{', '.join(missing)} not found"
    if os.environ.get(allowed_by) != "1":
        raise NotInstalledError(f"{what}, and {allowed_by}=1 is not set")
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NotInstalledError(f"{what}, and only root on Debian or Ubuntu can install them")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with (Path(tempfile.gettempdir()) / "ecdit-tests-apt-get.lock").open("w") as lock:
        fcntl.flock(
            lock, fcntl.LOCK_EX
        )  # tests of Slurm and of pages may run side by side, and apt-get refuses to wait
        for command in (("update",), ("install", "--yes", "--no-install-recommends", *packages)):
            done = subprocess.run(["apt-get", *command], capture_output=True, text=True, env=quiet, check=False)
    if done.returncode != 0:
        raise NotInstalledError(f"apt-get could not install {' '.join(packages)}: {done.stderr.strip()[-300:]}")
