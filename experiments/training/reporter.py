"""The callbacks by which a run reports its progress to a progress bar, a log or a test.

This module does not import torch, so that a progress bar can be shown before torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from experiments.records.record_types import StepRow


@dataclass(frozen=True)
class Reporter:
    """Callbacks of a run, which do nothing by default.

    `say` takes one line for a person; `warn` takes a line that must be shown even where no progress is wanted. `phase`
    takes what the run is doing now, in a word or two, `step` the images seen after each optimizer step, and `row` each
    row of `steps.jsonl` once it is written. `fail` takes the reason right before the watchdog ends the process from its
    own thread; every other failure is raised as an exception.
    """

    say: Callable[[str], None] = lambda message: None
    warn: Callable[[str], None] = lambda message: None
    phase: Callable[[str], None] = lambda phase: None
    step: Callable[[int], None] = lambda images_seen: None
    row: Callable[[StepRow], None] = lambda row: None
    fail: Callable[[str], None] = lambda reason: None
