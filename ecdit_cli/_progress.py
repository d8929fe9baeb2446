"""The progress of one run: a bar at a terminal, occasional lines in a log.

It is shown before torch is imported, which takes seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ecdit_cli._console import print_error, say, talk
from experiments.text import printable
from experiments.units import duration

if TYPE_CHECKING:
    from experiments.config.schema import RunConfig
    from experiments.records.record_types import StepRow
    from experiments.training.reporter import Reporter

SECONDS_BETWEEN_LINES = 30.0
IMPORTING = "importing"
OTHER_COLUMNS = 59
"""The width of everything but the bar and the two numbers of images.

It leaves room for a ^C, which would wrap a full line.
"""


@contextmanager
def progress(config: RunConfig, visible: bool) -> Iterator[Reporter]:
    """Yields a reporter for the training loop; when not `visible` it shows only warnings and errors."""
    from experiments.training.reporter import Reporter

    if not visible:
        yield Reporter(warn=say, fail=print_error)
    elif talk().is_terminal:
        with _bar(config) as reporter:
            yield reporter
    else:
        yield _lines(config)


@contextmanager
def _bar(config: RunConfig) -> Iterator[Reporter]:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    from experiments.training.reporter import Reporter

    console, total = talk(), config.total_images
    other_columns = OTHER_COLUMNS + 2 * len(f"{total:,}")
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(bar_width=max(5, min(40, console.width - other_columns))),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
        TextColumn("{task.fields[rates]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:

        def fail(reason: str) -> None:
            bars.stop()  # restores the cursor
            print_error(reason)

        def say_above(message: str) -> None:
            bars.console.print(printable(message), highlight=False, markup=False, soft_wrap=True)

        task = bars.add_task(IMPORTING, total=total, rates="")
        yield Reporter(
            say=say_above,
            warn=say_above,
            phase=lambda phase: bars.update(task, description=phase),
            step=lambda images_seen: bars.update(task, completed=images_seen),
            row=lambda row: bars.update(task, rates=f"loss {row.loss:.4f}  {row.images_per_second:.0f} images/s"),
            fail=fail,
        )


def _lines(config: RunConfig) -> Reporter:
    from experiments.training.reporter import Reporter

    total = config.total_images
    last = [time.monotonic()]

    def row(row: StepRow) -> None:
        if time.monotonic() - last[0] < SECONDS_BETWEEN_LINES and row.images_seen < total:
            return
        last[0] = time.monotonic()
        text = f"{row.images_seen:,}/{total:,} images  loss {row.loss:.4f}  {row.images_per_second:.0f} images/s"
        left = (total - row.images_seen) / row.images_per_second
        say(f"{text}  {duration(left)} left" if left else text)

    say(f"{config.model.name} {config.routing.name}, {total:,} images: importing torch")
    return Reporter(say=say, warn=say, row=row, fail=print_error)
