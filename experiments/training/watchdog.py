"""A rank that goes silent ends the run: each process shows that it lives, and looks whether the others do.

A process that is killed is noticed at once by gloo, but one that is stopped, a network that is cut, and on accelerators
any lost process leave the others waiting in a collective for half an hour. So every process beats every few seconds in
a thread of its own, which a long step does not disturb: rank 0 looks at all others and passes sentence, the others look
at rank 0. Who finds a rank silent says why, and ends its own process: its main thread may never return.

Silence is counted in looks and not by the clock, so that a run that was suspended as a whole goes on when it is woken.
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
"""With the seconds below, every process of a run has ended within a minute of the loss."""
GRACE_SECONDS = 10.0
"""For a rank that is known to have ended: the collectives may say so first, and why."""
LAST_WORDS_SECONDS = 10.0
"""For the status and the mirror; a disk or a network that hangs does not keep the process."""
ENDED, FAILED = "ended", "failed"
NO_SIGN = "gave no sign for {seconds:.0f} s"


def lost_process(which: str = "") -> RunFailedError:
    """What ends a run that has lost a process; `which`, where that is known."""
    return RunFailedError(
        f"Another process of this run has ended{f' or hangs: {which}' if which else ''}.",
        "If it said nothing, look for its memory limit. The same command continues from the last checkpoint.",
    )


class Watchdog:
    """Two threads: one beats and reads over the store, which may hang; the other counts, and ends the process."""

    def __init__(
        self,
        store: Store,
        rank: int,
        names: Sequence[str],
        tell: Callable[[str], None],
        look_seconds: float = 1.0,
    ) -> None:
        """`names` of all ranks; `tell` hears why this process is ended; with one look a second a tick is a second."""
        # a connection of its own: a call that waits holds up every other on its connection
        self._store = store.clone()  # type: ignore[attr-defined]  # the stub does not know it
        self._rank, self._names, self._tell = rank, names, tell
        self._end: Callable[[str], None] = lambda reason: None
        self._look_seconds = look_seconds
        self._watched = [other for other in range(len(names)) if other != rank] if rank == 0 else [0]
        self._beats = dict.fromkeys(self._watched, "")
        self._heard = dict.fromkeys(self._watched, 0)
        self._ticks = 0
        self._sentence = ""
        self._cut_at: int | None = None
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._beat, self._look)]

    def __enter__(self) -> Self:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop looking, and let the others know how this process ends."""
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
        """Inside, `end` is called with the reason before this process is ended."""
        self._end = end
        try:
            yield
        finally:
            self._end = lambda reason: None

    def _beat(self) -> None:
        """Show that this process lives, and read the others' beats."""
        number = 0
        while True:
            number += 1
            try:
                self._exchange(str(number))
                self._cut_at = None
            except RuntimeError:  # the process with the store has ended; the collectives may know more
                self._cut_at = self._ticks if self._cut_at is None else self._cut_at
            if self._stopped.wait(BEAT_SECONDS * self._look_seconds):
                return

    def _exchange(self, beat: str) -> None:
        self._store.set(_beat_key(self._rank), beat)
        if self._rank == 0:
            self._store.set("sentence", self._sentence)
        *beats, sentence = self._store.multi_get([*(_beat_key(other) for other in self._watched), "sentence"])
        for other, raw in zip(self._watched, beats, strict=True):
            if raw.decode() != self._beats[other]:
                self._beats[other], self._heard[other] = raw.decode(), self._ticks
        self._sentence = self._sentence or sentence.decode()

    def _look(self) -> None:
        """Count the silence, and end the process when somebody is lost."""
        while not self._stopped.wait(self._look_seconds):
            self._ticks += 1
            self._sentence = self._sentence or self._judged()
            if self._sentence and not self._stopped.is_set():
                self._end_process(str(lost_process(self._sentence)))

    def _judged(self) -> str:
        """Which rank is lost; empty while none is."""
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
        if self._rank == 0:  # the store may end with this process, and the others are to read the sentence first
            time.sleep(max(0.0, heard_by_then - time.monotonic()))

    def _wait_for_others(self) -> None:
        """The store may end with this process, which the others would take for a loss."""
        deadline = time.monotonic() + GRACE_SECONDS
        keys = [_beat_key(other) for other in self._watched]
        while any(beat.decode() not in (ENDED, FAILED) for beat in self._store.multi_get(keys)):
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)


def _beat_key(rank: int) -> str:
    return f"beat/{rank}"
