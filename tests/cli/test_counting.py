"""The progress of `ecdit data`: what was there before does not count for the speed, nor does the time to load."""

from __future__ import annotations

import pytest

from ecdit_cli import _counting
from ecdit_cli._counting import Counting


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_counting, "time", clock)
    return clock


def test_a_log_gets_a_line_each_half_minute_with_speed_and_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    count = Counting("encoding", "images")
    count(5000, 10_000)  # from an earlier run
    clock.now += 500  # loading
    count(5016, 10_000)
    for _ in range(4):
        clock.now += 10
        count(5016 + 20 * (round(clock.now) - 600), 10_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "encoding: 5,216/10,000 images, 20 a second, 3 min 59 s left",
        "encoding: 5,816/10,000 images, 20 a second, 3 min 29 s left",
    ]


def test_nothing_is_said_of_what_was_done_at_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    count = Counting("checking", "files")
    for done in range(8):
        count(done, 7)
    assert not capsys.readouterr().err
