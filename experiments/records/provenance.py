"""Collects the provenance of a run: commit of this code, package versions, host and time. It does not import torch.

`training/description.py` adds what only the running process knows: device, threads, precision and world size.
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
    """Returns the commit of the code in `folder`, ending in `-dirty` where tracked files differ from it.

    It is None without git, and for code that git does not track (an installed package inside somebody's repository).
    """
    if _git(folder, "ls-files", "--error-unmatch", ".") is None:
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages on which a run's numbers can depend."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def host_name() -> str:
    """Returns the name of this machine."""
    return platform.node()


def utc_now() -> str:
    """Returns the time in ISO 8601, UTC, to the microsecond, so that two runs on one machine differ in it."""
    return datetime.now(UTC).isoformat()


def _git(folder: Path, *arguments: str) -> str | None:
    """Returns git's output, or None where it fails. GIT_DIR, which hooks set, must not lead to another repository."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
