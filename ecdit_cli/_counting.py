"""The progress of `ecdit data`: how many items are done, how many a second, and how long the rest will take.

It is a bar at a terminal, and a line every half minute in a log. Items that were there when the command began count as
done, but not for the speed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ecdit_cli._console import say, talk
from experiments.text import printable
from experiments.units import duration

if TYPE_CHECKING:
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 30.0


class Counting:
    """Shows the progress as lines, for a log."""

    def __init__(self, what: str, unit: str) -> None:
        self.what, self.unit = what, unit
        self._before: int | None = None
        self._began: tuple[float, int] | None = None
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Takes note that `done` of `total` are done, and shows it when it is time."""
        now, speed = time.monotonic(), self.speed(done)
        if speed and now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            left = duration((total - done) / speed)
            self.say(f"{self.what}: {done:,}/{total:,} {self.unit}, {_rate(speed)} a second, {left} left")

    def say(self, line: str) -> None:
        """Prints one line."""
        say(line)

    def speed(self, done: int) -> float | None:
        """Returns items per second since the first one that this command made, or None as long as there are too few.

        The time before does not count, because models are loaded then.
        """
        now = time.monotonic()
        if self._before is None:
            self._before = done
        if self._began is None and done > self._before:
            self._began = now, done
        if self._began is None or done == self._began[1] or now == self._began[0]:
            return None
        return (done - self._began[1]) / (now - self._began[0])


class _CountingBar(Counting):
    """Shows the progress as a bar, at a terminal."""

    def __init__(self, what: str, unit: str, bars: Progress) -> None:
        super().__init__(what, unit)
        self._bars = bars
        self._task = bars.add_task(f"opening what is needed for {what}", total=None, count="", left="")

    def __call__(self, done: int, total: int) -> None:
        speed = self.speed(done)
        left = f"{_rate(speed)} a second  {duration((total - done) / speed)} left" if speed else ""
        count = f"{done:,}/{total:,} {self.unit}"
        self._bars.update(self._task, description=self.what, completed=done, total=total, count=count, left=left)

    def say(self, line: str) -> None:
        self._bars.console.print(printable(line), highlight=False, soft_wrap=True, markup=False)


def _rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"


@contextmanager
def counting(what: str, unit: str) -> Iterator[Counting]:
    """Yields an object to call with the number done and the total; it shows them at a terminal or in a log."""
    console = talk()
    if not console.is_terminal:
        yield Counting(what, unit)
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    texts = [TextColumn("{task.fields[count]}"), TextColumn("{task.fields[left]}")]
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), *texts)
    with Progress(*columns, console=console, transient=True) as bars:
        yield _CountingBar(what, unit, bars)
