"""SIGTERM and SIGINT as a flag that the loop reads between two steps: it saves, and stops."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

import torch

from experiments.routing.deepspeed_library import dist


class StopRequest:
    """A context in which the two signals only set a flag; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        """Take the signals over."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give them back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def agreed(self, world: int, device: torch.device) -> bool:
        """Whether any process was asked to stop; the same answer on all of them. Collective."""
        if world == 1:
            return self.name is not None
        flag = torch.tensor([int(self.name is not None)], device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())
