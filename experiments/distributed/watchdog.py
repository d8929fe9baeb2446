"""Ends a run when one of its ranks goes silent, by heartbeats that the processes exchange over the store.

When a process is killed gloo notices at once. When it is stopped, when the network is cut, and on accelerators when any
process is lost, the others would wait in a collective for half an hour. So every process writes a heartbeat every few
seconds from a thread of its own, which a long step does not delay. Rank 0 checks all other ranks and publishes its
verdict; the others check rank 0 and read the verdict. A process that learns of a lost rank reports
the reason and ends itself with `os._exit`, because its main thread may never return from a collective.

Silence is counted in ticks of the checking thread and not by the clock, so that a run that was suspended as a whole
continues when it wakes up.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from torch.distributed.distributed_c10d import Store

from experiments.errors import RunFailedError

BEAT_SECONDS = 3.0
SILENT_SECONDS = 35.0
"""A rank counts as lost after this silence. With the delays below, all processes end within a minute of the loss."""
GRACE_SECONDS = 10.0
"""The delay for a rank that is known to have ended, in which collectives may fail first and with a better reason."""
LAST_WORDS_SECONDS = 10.0
"""The time to record the end in the status and the mirror. A disk or network that hangs cannot delay it further."""
ENDED, FAILED = "ended", "failed"
NO_SIGN = "gave no sign for {seconds:.0f} s"


def lost_process(which: str = "") -> RunFailedError:
    """Returns the error that ends a run that has lost a process; `which` says which one, where that is known."""
    return RunFailedError(
        f"Another process of this run has ended{f' or hangs: {which}' if which else ''}.",
        "If it said nothing, look for its memory limit. The same command continues from the last checkpoint.",
    )


class Watchdog:
    """The watchdog of one process, a context manager with two threads.

    One thread writes and reads heartbeats over the store and may hang there. The other counts the silence and ends the
    process, and it touches nothing that may hang.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        names: Sequence[str],
        tell: Callable[[str], None],
        look_seconds: float = 1.0,
    ) -> None:
        """Prepares the threads; entering the context starts them.

        `names` describes every rank in messages. `tell` is called with the reason before the process ends itself.
        Silence is counted in ticks of `look_seconds`, so with the default of 1 a tick is a second.
        """
        # The clone has its own connection: a call that waits blocks every other call on the same connection.
        self._store = store.clone()  # type: ignore[attr-defined]  # the stub does not know it
        self._rank, self._names, self._tell = rank, names, tell
        self._end: Callable[[str], None] = lambda reason: None
        self._look_seconds = look_seconds
        self._watched = [other for other in range(len(names)) if other != rank] if rank == 0 else [0]
        self._beats = dict.fromkeys(self._watched, "")
        self._heard = dict.fromkeys(self._watched, 0)
        self._ticks = 0
        self._verdict = ""
        self._cut_at: int | None = None
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._beat, self._look)]

    def __enter__(self) -> Self:
        """Starts both threads."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops both threads, and tells the other ranks whether this process ended well or failed."""
        self._stopped.set()
        beating = self._threads[0]
        beating.join(BEAT_SECONDS)
        if beating.is_alive():  # the store does not answer
            return
        with contextlib.suppress(RuntimeError):
            self._store.set(_beat_key(self._rank), ENDED if kind is None else FAILED)
            if kind is None and self._rank == 0:
                self._wait_for_others()

    @contextlib.contextmanager
    def ending(self, end: Callable[[str], None]) -> Iterator[None]:
        """Calls `end` with the reason before the watchdog ends this process, while this context is active."""
        self._end = end
        try:
            yield
        finally:
            self._end = lambda reason: None

    def _beat(self) -> None:
        """Runs the thread that writes this process's heartbeat and reads those of the watched ranks."""
        number = 0
        while True:
            number += 1
            try:
                self._exchange(str(number))
                self._cut_at = None
            except RuntimeError:  # the process that hosts the store has ended; collectives may report a better reason
                self._cut_at = self._ticks if self._cut_at is None else self._cut_at
            if self._stopped.wait(BEAT_SECONDS * self._look_seconds):
                return

    def _exchange(self, beat: str) -> None:
        self._store.set(_beat_key(self._rank), beat)
        if self._rank == 0:
            self._store.set("verdict", self._verdict)
        *beats, verdict = self._store.multi_get([*(_beat_key(other) for other in self._watched), "verdict"])
        for other, raw in zip(self._watched, beats, strict=True):
            if raw.decode() != self._beats[other]:
                self._beats[other], self._heard[other] = raw.decode(), self._ticks
        self._verdict = self._verdict or verdict.decode()

    def _look(self) -> None:
        """Runs the thread that counts the silence of the watched ranks and ends the process when one is lost."""
        while not self._stopped.wait(self._look_seconds):
            self._ticks += 1
            self._verdict = self._verdict or self._judged()
            if self._verdict and not self._stopped.is_set():
                self._end_process(str(lost_process(self._verdict)))

    def _judged(self) -> str:
        """Returns which rank is lost and how that shows, or an empty string while none is."""
        for other in self._watched:
            silence, beat = self._ticks - self._heard[other], self._beats[other]
            if beat != ENDED and silence > (GRACE_SECONDS if beat == FAILED else SILENT_SECONDS):
                return f"{self._names[other]} " + ("has failed" if beat == FAILED else NO_SIGN.format(seconds=silence))
        if self._cut_at is not None and self._ticks - self._cut_at > GRACE_SECONDS and self._beats.get(0) != ENDED:
            return f"{self._names[0]} does not answer"
        return ""

    def _end_process(self, reason: str) -> None:
        words = threading.Thread(target=self._last_words, args=(reason,), daemon=True)
        words.start()
        words.join(LAST_WORDS_SECONDS)
        os._exit(RunFailedError.exit_code)

    def _last_words(self, reason: str) -> None:
        heard_by_then = time.monotonic() + 2 * BEAT_SECONDS * self._look_seconds
        self._tell(reason)
        self._end(reason)
        if self._rank == 0:  # rank 0 may host the store: it stays until the others have read the verdict
            time.sleep(max(0.0, heard_by_then - time.monotonic()))

    def _wait_for_others(self) -> None:
        """Waits until the other ranks have ended, since the store may end with this process, as if it were lost."""
        deadline = time.monotonic() + GRACE_SECONDS
        keys = [_beat_key(other) for other in self._watched]
        while any(beat.decode() not in (ENDED, FAILED) for beat in self._store.multi_get(keys)):
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)


def _beat_key(rank: int) -> str:
    return f"beat/{rank}"
