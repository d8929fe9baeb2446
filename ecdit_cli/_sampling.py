"""Shared by `ecdit sample` and `ecdit evaluate`: parsing of their options, and the progress of sampling."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from ecdit_cli._console import say, talk
from ecdit_cli._options import MAX_GUIDANCE, MAX_IMAGES
from experiments.text import printable, shortened
from experiments.units import duration

if TYPE_CHECKING:
    from rich.progress import Progress

    from experiments.evaluation.sampling.generate import SamplerSettings

SECONDS_BETWEEN_LINES = 30.0
MAX_SCALES = 100
"""The most guidance scales of one command: all images are sampled anew at each."""


def parse_guidance(text: str) -> tuple[float, ...]:
    """Parses `1,2,4` into scales. Raises `EcditError` for what is no number or out of range, and for too many."""
    from experiments.errors import EcditError

    shown = shortened(printable(text), 80)
    try:
        scales = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError as error:
        raise EcditError(
            f"--guidance '{shown}' is not a list of scales.", "Write for example --guidance 1,2,4."
        ) from error
    if not all(0 <= scale <= MAX_GUIDANCE for scale in scales):
        raise EcditError(f"--guidance '{shown}' is out of range.", f"A scale is from 0 to {MAX_GUIDANCE:g}; 1 is none.")
    if len(scales) > MAX_SCALES:
        raise EcditError(f"--guidance names {len(scales)} scales.", f"At most {MAX_SCALES} are measured at a time.")
    return scales


def parse_interval(text: str) -> tuple[float, float]:
    """Parses `0.1,0.9` into an interval of t. Raises `EcditError` where it is none."""
    from experiments.errors import EcditError

    try:
        start, stop = (float(part) for part in text.split(","))
    except ValueError:
        start, stop = 1.0, 0.0
    if not 0 <= start <= stop <= 1:
        raise EcditError(
            f"--guidance-interval '{shortened(printable(text), 80)}' is not START,STOP.",
            "Write two times from 0 (image) to 1 (noise): 0.1,0.9.",
        )
    return start, stop


def checked_number(num_captions: int, per_caption: int) -> int:
    """Returns the number of images. Raises `EcditError` for more than can be kept in memory."""
    from experiments.errors import EcditError

    num_images = num_captions * per_caption
    if num_images > MAX_IMAGES:
        raise EcditError(
            f"--per-caption {per_caption} of {num_captions:,} captions makes {num_images:,} images.",
            f"At most {MAX_IMAGES:,} are sampled at a time.",
        )
    return num_images


def sampler_settings(
    steps: int, guidance: float, interval: str, shift: float, sampler: Literal["euler", "heun"]
) -> SamplerSettings:
    """Returns the options as settings of the sampler."""
    from experiments.evaluation.sampling.generate import SamplerSettings
    from experiments.flow.samplers import Guidance

    return SamplerSettings(steps, Guidance(guidance, *parse_interval(interval)), shift, sampler)


class Show(Protocol):
    """Shows how far the work is, and prints lines above the progress bar."""

    def __call__(self, done: float, total: float, now_at: str | None = None) -> None:
        """Shows `done` of `total`; `now_at` names the current part."""

    def say(self, line: str) -> None:
        """Prints one line."""


@contextmanager
def sampling_progress(what: str) -> Iterator[Show]:
    """Yields the progress display: a bar at a terminal, occasional lines in a log."""
    console = talk()
    if not console.is_terminal:
        yield _Lines(what)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        yield _SamplingBar(bars, what)


class _SamplingBar:
    """Shows the progress as one bar of rich."""

    def __init__(self, bars: Progress, what: str) -> None:
        self._bars = bars
        self._task = bars.add_task(what, total=None)

    def __call__(self, done: float, total: float, now_at: str | None = None) -> None:
        self._bars.update(self._task, completed=done, total=total, description=now_at and printable(now_at))

    def say(self, line: str) -> None:
        self._bars.console.print(printable(line), highlight=False, soft_wrap=True, markup=False)


class _Lines:
    """Prints one line for each part that begins, and one about every half minute."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = self._last = time.monotonic()

    def __call__(self, done: float, total: float, now_at: str | None = None) -> None:
        now = time.monotonic()
        if now_at is not None and now_at != self._what:
            self._what = now_at
            self.say(f"{now_at} ...")
        if now - self._last >= SECONDS_BETWEEN_LINES and done:
            self._last = now
            left = duration((now - self._started) / done * (total - done))
            self.say(f"{self._what}: {done / total:.0%} of all, {left} left")

    def say(self, line: str) -> None:
        say(line)
