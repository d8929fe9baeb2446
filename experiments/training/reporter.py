"""How a run talks to whoever watches it: a progress bar, a log, a test. Free of torch, so that a bar can stand before
torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from experiments.records.schema import StepRow


@dataclass(frozen=True)
class Reporter:
    """Does nothing by default.

    say: one line for a person. warn: one line that must be heard, also by whoever asked for no progress. phase: what
    the run is doing now, in a word or two. step: images seen after each optimizer step. row: each row of `steps.jsonl`,
    once it is written. fail: the reason, right before the process is ended from outside of its main thread; every other
    failure is raised.
    """

    say: Callable[[str], None] = lambda message: None
    warn: Callable[[str], None] = lambda message: None
    phase: Callable[[str], None] = lambda phase: None
    step: Callable[[int], None] = lambda images_seen: None
    row: Callable[[StepRow], None] = lambda row: None
    fail: Callable[[str], None] = lambda reason: None
