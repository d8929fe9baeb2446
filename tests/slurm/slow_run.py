"""A run in miniature that takes its time and no processor: one image a second, and SIGTERM saves.

For time limits, which Slurm counts in minutes. Called as `ecdit train` is: `--config FILE --run-dir DIR`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from experiments.records.provenance import host_name
from experiments.records.record_types import State, Status
from experiments.records.run_folder import RunDir
from experiments.records.writer import write_status

NUM_IMAGES = 40


def main() -> None:
    run_dir = RunDir(Path(sys.argv[sys.argv.index("--run-dir") + 1]))
    before = run_dir.read_status()
    images_seen = 0 if before is None else before.images_seen
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))

    def say(state: State) -> None:
        write_status(
            run_dir,
            Status(
                state=state,
                images_seen=images_seen,
                images_total=NUM_IMAGES,
                heartbeat=time.time(),
                pid=os.getpid(),
                host=host_name(),
            ),
        )

    while images_seen < NUM_IMAGES and not told:
        say("running")
        time.sleep(1.0)
        images_seen += 1
    say("interrupted" if told else "done")
    sys.exit(130 if told else 0)


main()
