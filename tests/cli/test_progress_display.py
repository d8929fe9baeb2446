"""The progress display: what was there before does not count for the speed, nor does the time to load."""

from __future__ import annotations

import pytest

from ecdit_cli import _progress
from ecdit_cli._progress import progress, training_progress
from experiments.config.overrides import load_config
from experiments.records.record_types import StepRow


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_progress, "time", clock)
    return clock


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_log_gets_a_line_each_half_minute_with_speed_and_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("encoding", "images") as show:
        show(5000, 10_000)  # from an earlier run
        clock.now += 500  # loading
        show(5016, 10_000)
        for _ in range(6):
            clock.now += 10
            show(5016 + 20 * (round(clock.now) - 600), 10_000)
    assert lines(capsys) == [
        "encoding: 5,016/10,000 images",
        "encoding: 5,616/10,000 images, 20 a second, 3 min 39 s left",
        "encoding: 6,216/10,000 images, 20 a second, 3 min 09 s left",
    ]


def test_nothing_is_said_of_what_was_done_at_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("checking", "files") as show:
        for done in range(8):
            show(done, 7)
    assert not lines(capsys)


def test_parts_are_lines_of_a_log_and_the_speed_of_one_is_not_that_of_the_next(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("importing torch") as show:
        show.part("importing torch")
        for name in ("[red]", "second"):
            advance = show.counter(10, name)
            for _ in range(4):
                clock.now += 10
                advance()
    assert lines(capsys) == ["[red] ...", "[red]: 30%, 1 min 10 s left", "second ...", "second: 30%, 1 min 10 s left"]


def test_the_last_row_of_a_training_is_always_printed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(["model=nano", "train.images=64", "train.batch_images=16"])
    with training_progress(config, visible=True) as reporter:
        for images in (16, 32, 48, 64):
            clock.now += 5
            reporter.phase("training")
            reporter.step(images)
            reporter.row(
                StepRow(
                    images_seen=images, flops=1.0, seconds=1.0, loss=0.5, learning_rate=1e-3, grad_norm=1.0,
                    images_per_second=8.0,
                )
            )  # fmt: skip
    assert lines(capsys) == [
        f"nano {config.routing.name}, 64 images: importing torch", "training: 64/64 images, loss 0.5000, 8 images/s"
    ]  # fmt: skip


def test_at_a_terminal_there_is_a_bar_that_leaves_and_lines_above_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress("encoding", "images") as show:
        show(10, 40, "[bold] loss 0.5")
        show.say("[a line] above")
    shown = capsys.readouterr().err
    assert "10/40 images, [bold] loss 0.5" in shown
    assert "[a line] above" in shown
