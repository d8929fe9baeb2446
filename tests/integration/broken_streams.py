"""A forked `ecdit` whose output cannot be written. Not a test by itself: see `test_broken_output.py`."""

from __future__ import annotations

import os
import subprocess
import sys

from ecdit_cli.app import main as run_command


def main() -> None:
    """Breaks the streams as the first word says, and runs `ecdit` with the other words."""
    broken = sys.argv.pop(1)
    if broken == "2>&1 | head -1":
        read, write = os.pipe()
        subprocess.Popen(["head", "-1"], stdin=read, stdout=subprocess.DEVNULL)
        os.close(read)
    else:
        write = os.open("/dev/full", os.O_WRONLY)
    for stream in {"2>/dev/full": (2,)}.get(broken, (1, 2)):
        os.dup2(write, stream)
    os.close(write)
    run_command()
