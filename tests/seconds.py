"""Seconds by test file: `tests/conftest.py` measures them where ECDIT_SECONDS names a file, and this prints the table.

    ECDIT_SECONDS=out/seconds.jsonl make test && .venv/bin/python -m tests.seconds out/seconds.jsonl

Seconds of a processor, of the test process and of those that it started, say what a test costs also on a machine that
does other work; seconds by the clock beside them show the waits.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.preloaded import processor_seconds_of_servers

VARIABLE = "ECDIT_SECONDS"
LEAST_SECONDS = 5.0


@contextmanager
def measured(test: str) -> Iterator[None]:
    """Appends [test, processor seconds, seconds by the clock] to the file that the variable names, if it is set."""
    began = _processor_seconds(), time.monotonic()
    yield
    if file := os.environ.get(VARIABLE):
        row = [test, round(_processor_seconds() - began[0], 2), round(time.monotonic() - began[1], 2)]
        with Path(file).open("a") as rows:
            rows.write(json.dumps(row) + "\n")


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) + processor_seconds_of_servers()


def main(record: Path) -> None:
    """Prints a table of the files of at least `LEAST_SECONDS`, and the sum of the others."""
    files: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in record.read_text().splitlines():
        test, processor, clock = json.loads(line)
        files[test.partition("::")[0]].append((processor, clock))
    sums = {name: (len(rows), *map(sum, zip(*rows, strict=True))) for name, rows in files.items()}
    print("| file | tests | processor s | clock s |\n| :-- | --: | --: | --: |")
    for name, (number, processor, clock) in sorted(sums.items(), key=lambda item: -item[1][1]):
        if processor >= LEAST_SECONDS:
            print(f"| {name} | {number} | {processor:.0f} | {clock:.0f} |")
    small = [row for row in sums.values() if row[1] < LEAST_SECONDS]
    for title, rows in ((f"{len(small)} more files", small), (f"all {len(sums)} files", list(sums.values()))):
        number, processor, clock = (sum(row[i] for row in rows) for i in range(3))
        print(f"| {title} | {number} | {processor:.0f} | {clock:.0f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
