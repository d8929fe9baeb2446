"""The progress display of all commands, on stderr: a bar at a terminal, and a line every half minute in a log.

It is shown before torch is imported, which takes seconds. A table of many runs has a display of its own
(`_sweep_view.py`), because one bar cannot show it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

from ecdit_cli._console import print_error, say, talk
from experiments.text import printable
from experiments.units import duration

if TYPE_CHECKING:
    from rich.progress import Progress

    from experiments.config.schema import RunConfig
    from experiments.records.record_types import StepRow
    from experiments.training.reporter import Reporter

SECONDS_BETWEEN_LINES = 30.0
OTHER_COLUMNS = 80
"""The width of everything but the bar at its usual longest. The ^C of Ctrl-C would wrap a full line."""


class Display:
    """Shows how much of a piece of work is done, how fast it goes, and how long the rest will take.

    `unit` names what is counted; without one the share is shown in percent. What was done before the first call counts
    as done but not for the speed, and neither does the time before the first item, in which models are loaded.
    """

    def __init__(self, what: str, unit: str, bars: Progress) -> None:
        """Adds a bar to `bars`, which are disabled in a log."""
        self._what, self._unit, self._bars, self._note = printable(what), unit, bars, ""
        self._task = bars.add_task(self._what, total=None, text="")
        self._done: float | None = None
        self._before = 0.0
        self._began: tuple[float, float] | None = None
        self._last_line = time.monotonic()

    def __call__(self, done: float, total: float, note: str | None = None) -> None:
        """Shows `done` of `total`; `note` stands in the place of the speed from now on.

        The last line of a log is printed at once where it has a note, because that holds the final measurement.
        """
        speed, now = self._speed(done), time.monotonic()
        self._note = note or self._note
        share = f"{done:,.0f}/{total:,.0f} {self._unit}" if self._unit else f"{done / total:.0%}"
        rate = f"{_rate(speed)} a second" if speed and self._unit else ""
        left = f"{duration((total - done) / speed)} left" if speed and done < total else ""
        text = ", ".join(part for part in (share, self._note or rate, left) if part)
        self._bars.update(self._task, completed=done, total=total, text=text)
        if self.is_log and (now - self._last_line >= SECONDS_BETWEEN_LINES or (note and done >= total)):
            self._last_line = now
            self.say(f"{self._what}: {text}")

    @property
    def is_log(self) -> bool:
        """Returns whether lines are printed, because stderr is no terminal."""
        return self._bars.disable

    def part(self, doing: str) -> None:
        """Names the part of the work that begins now; in a log this is a line."""
        if self.is_log and printable(doing) != self._what:
            self.say(f"{doing} ...")
            self._last_line = time.monotonic()
        self.rename(doing)

    def rename(self, doing: str) -> None:
        """Names the part of the work that begins now, without a line in a log."""
        self._what = printable(doing)
        self._bars.update(self._task, description=self._what)

    def counter(self, total: int, doing: str | None = None) -> Callable[[], None]:
        """Begins a part of `total` items, and returns the function to call after each of them."""
        if doing is not None:
            self.part(doing)
        numbers = count(1)
        self(0, total)
        return lambda: self(next(numbers), total)

    def say(self, line: str) -> None:
        """Prints one line, at a terminal above the bar."""
        self._bars.console.print(printable(line), highlight=False, soft_wrap=True, markup=False)

    def fail(self, reason: str) -> None:
        """Ends the display, which restores the cursor, and prints an error."""
        self._bars.stop()
        print_error(reason)

    def _speed(self, done: float) -> float | None:
        """Returns items per second since the first one that this command made, or None as long as there are too few."""
        now = time.monotonic()
        if self._done is None or done < self._done:  # the first call, or a part that begins
            self._began, self._before = None, done
        self._done = done
        if self._began is None and done > self._before:
            self._began = now, done
        if self._began is None or done <= self._began[1] or now == self._began[0]:
            return None
        return (done - self._began[1]) / (now - self._began[0])


def _rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"


@contextmanager
def progress(what: str, unit: str = "") -> Iterator[Display]:
    """Yields the display of a piece of work; it ends with the block."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    console = talk()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=max(5, min(30, console.width - OTHER_COLUMNS))),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield Display(what, unit, bars)


@contextmanager
def training_progress(config: RunConfig, visible: bool) -> Iterator[Reporter]:
    """Yields a reporter for the training loop; when not `visible` it shows only warnings and errors."""
    from experiments.training.reporter import Reporter

    total = config.total_images
    if not visible:
        yield Reporter(warn=say, fail=print_error)
        return
    with progress("importing", "images") as display:
        if display.is_log:
            say(f"{config.model.name} {config.routing.name}, {total:,} images: importing torch")

        def row(row: StepRow) -> None:
            display(row.images_seen, total, f"loss {row.loss:.4f}, {row.images_per_second:.0f} images/s")

        yield Reporter(
            say=display.say,
            warn=display.say,
            phase=display.rename,
            step=lambda images_seen: display(images_seen, total),
            row=row,
            fail=display.fail,
        )
