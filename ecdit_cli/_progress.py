"""The progress of one run: a bar at a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ecdit_cli._console import duration, talk

if TYPE_CHECKING:
    from experiments.config.schema import RunConfig
    from experiments.records.schema import StepRow
    from experiments.training.loop import Reporter

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress(config: RunConfig, visible: bool) -> Iterator[Reporter]:
    """A reporter for the training loop; it shows nothing when not `visible`."""
    from experiments.training.loop import Reporter

    if not visible:
        yield Reporter()
    elif talk().is_terminal:
        with _bar(config) as reporter:
            yield reporter
    else:
        yield _lines(config)


@contextmanager
def _bar(config: RunConfig) -> Iterator[Reporter]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from experiments.training.loop import Reporter

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
        TextColumn("{task.fields[rates]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=talk(), transient=True) as bars:
        name = f"{config.model.name} {config.routing.name}"
        task = bars.add_task(name, total=config.total_images, rates="starting")
        yield Reporter(
            say=bars.console.print,
            step=lambda images_seen: bars.update(task, completed=images_seen),
            row=lambda row: bars.update(task, rates=f"loss {row.loss:.4f}  {row.images_per_second:.0f} images/s"),
        )


def _lines(config: RunConfig) -> Reporter:
    from experiments.training.loop import Reporter

    total, console = config.total_images, talk()
    last = [0.0]

    def row(row: StepRow) -> None:
        if time.monotonic() - last[0] < SECONDS_BETWEEN_LINES and row.images_seen < total:
            return
        last[0] = time.monotonic()
        left = duration((total - row.images_seen) / row.images_per_second)
        text = f"{row.images_seen:,}/{total:,} images  loss {row.loss:.4f}  {row.images_per_second:.0f} images/s"
        console.print(f"{text}  {left} left", highlight=False, soft_wrap=True)

    return Reporter(say=lambda message: console.print(message, highlight=False, soft_wrap=True), row=row)
