"""Where a run comes from: the commit of this code, the versions it ran with, the host, the time. Free of torch.

What only the running process knows (device, threads, precision, world size) is the training's to add.
"""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PACKAGES = ("ecdit", "torch", "deepspeed", "numpy", "pydantic", "safetensors", "wandb")


def git_commit(folder: Path = Path(__file__).parent) -> str | None:
    """The commit `folder`'s code is at, ending in `-dirty` where tracked files differ from it.

    None without git, and for code that git does not track (an installed package inside somebody's repository).
    """
    if _git(folder, "ls-files", "--error-unmatch", ".") is None:
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def versions() -> dict[str, str]:
    """Python's version and those of the installed packages that a run's numbers can depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def host_name() -> str:
    """The name of this machine."""
    return platform.node()


def utc_now() -> str:
    """The time in ISO 8601, UTC, to the microsecond: two runs on one machine never start at the same one."""
    return datetime.now(UTC).isoformat()


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers, or None where it is missing or refuses. A hook's GIT_DIR must not point it elsewhere."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
