"""One of several ranks that are watched. Not a test by itself: see `test_watchdog.py`."""

import os
import signal
import sys
import time

from torch.distributed import PrefixStore, TCPStore

from experiments.distributed.watchdog import Watchdog

BUSY_SECONDS = 3.0
"""The seconds of processor time of `busy`. They are longer than the silence after which a rank is taken for lost."""


def main() -> None:
    """Does what the command line says while it is watched: RANK WORLD PORT DEED."""
    rank, world, port, deed = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    store = TCPStore("127.0.0.1", port, is_master=False)
    names = [f"rank {other} on n{other}" for other in range(world)]
    dog = Watchdog(PrefixStore("watchdog", store), rank, names, say, look_seconds=0.05)
    with dog, dog.ending(lambda reason: say("end")):
        store.set(f"ready/{rank}", "")
        store.wait([f"ready/{other}" for other in range(world)])
        say("begun")
        if deed == "fail":
            raise SystemExit(3)
        if deed == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if deed == "busy":
            while time.process_time() < BUSY_SECONDS:
                pass
        if deed == "wait":
            time.sleep(60)
    say("ended by itself")


def say(line: str) -> None:
    """Prints the line at once: the process may end without notice."""
    print(line, flush=True)
