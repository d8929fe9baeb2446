"""What `ecdit sample` and `ecdit evaluate` share: options to conditions, and a bar that shows sampling go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from ecdit_cli._console import duration, say, talk
from ecdit_cli._options import MAX_GUIDANCE, MAX_IMAGES
from experiments.text import printable, shortened

if TYPE_CHECKING:
    from rich.progress import Progress

    from experiments.evaluation.generate import SamplerSettings

DEFAULT_CAPTIONS = (
    "a circle",
    "a heart and a cross",
    "three green circles",
    "a yellow bar",
    "a red circle left of a blue square",
    "a white ring and a black heart",
)
"""Captions for a run that is sampled without any: one of each kind."""

SECONDS_BETWEEN_LINES = 30.0
MAX_SCALES = 100
"""Guidance scales of one command: at each, all images are sampled anew."""


def parse_guidance(text: str) -> tuple[float, ...]:
    """`1,2,4` as numbers; an `EcditError` for what is none, out of range or too many."""
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
    """`0.1,0.9` as a stretch of t; an `EcditError` for what is none."""
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
    """How many images there will be; an `EcditError` for more than are kept in memory."""
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
    """The options as settings of the sampler."""
    from experiments.evaluation.generate import SamplerSettings
    from experiments.flow.samplers import Guidance

    return SamplerSettings(steps, Guidance(guidance, *parse_interval(interval)), shift, sampler)


class Show(Protocol):
    """How far the work is, and lines in between that a bar does not lie over."""

    def __call__(self, done: float, total: float, now_at: str | None = None) -> None:
        """`done` of `total`; with `now_at`, at what."""

    def say(self, line: str) -> None:
        """One line for a person."""


@contextmanager
def sampling_progress(what: str) -> Iterator[Show]:
    """Shows how far the work is: a bar at a terminal, a line now and then in a log."""
    console = talk()
    if not console.is_terminal:
        yield _Lines(what)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        yield _Bar(bars, what)


class _Bar:
    """One bar of rich."""

    def __init__(self, bars: Progress, what: str) -> None:
        self._bars = bars
        self._task = bars.add_task(what, total=None)

    def __call__(self, done: float, total: float, now_at: str | None = None) -> None:
        self._bars.update(self._task, completed=done, total=total, description=now_at and printable(now_at))

    def say(self, line: str) -> None:
        self._bars.console.print(printable(line), highlight=False, soft_wrap=True, markup=False)


class _Lines:
    """One line for each thing that begins, and one about every half minute."""

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
