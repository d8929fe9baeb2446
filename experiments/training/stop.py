"""Turns SIGTERM, SIGINT and SIGHUP into a flag that the loop reads between steps, so that it saves and stops.

SIGHUP is sent when the terminal is closed or its connection is lost. `nohup` makes processes ignore it, and then it
stays ignored.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self


class StopRequest:
    """A context manager in which these signals only set a flag; a SIGINT after that interrupts at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        """Installs the handlers."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # `nohup` starts a command with SIGHUP ignored, and it must stay so.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restores the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    @property
    def is_asked(self) -> bool:
        """Says whether a signal has asked this process to stop."""
        return self.name is not None
