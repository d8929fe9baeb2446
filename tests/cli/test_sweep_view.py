"""The live view of a sweep: a table that fits the terminal, or lines in a log."""

from __future__ import annotations

import io
import time

from rich.console import Console

from ecdit_cli._sweep_view import PLAIN_SECONDS, PlainView, live_table, live_view
from sweeps.progress import Event, RunProgress, SweepSnapshot


def runs(num_done=1, num_running=1, num_planned=1):
    return [
        *(RunProgress(f"done-{n}", "done", 64, 64, loss=0.25) for n in range(num_done)),
        *(RunProgress(f"running-{n}", "running", 32, 64, 0.5, images_per_second=8.0) for n in range(num_running)),
        *(RunProgress(f"planned-{n}", "planned", 0, 64) for n in range(num_planned)),
    ]


def printed(snapshot, width=120, max_runs=20):
    console = Console(file=io.StringIO(), width=width)
    console.print(live_table(snapshot, width, max_runs))
    text = console.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    return " ".join(text.split())


def test_the_table_has_a_line_for_each_run_and_the_total():
    text = printed(SweepSnapshot(runs(), seconds=65.0, seconds_left=130.0))
    assert "running-0 running 32/64 50% 0.5000 8 4 s" in text
    assert "1 done, 1 planned, 1 running; 50% of the images; 1 min 05 s, 2 min 10 s left" in text


def test_a_table_higher_than_the_terminal_shows_the_running_runs_and_counts_the_rest():
    text = printed(SweepSnapshot(runs(num_done=30, num_running=2, num_planned=30)), max_runs=3)
    assert "running-0" in text
    assert "running-1" in text
    assert "and 59 more; 30 done, 30 planned, 2 running" in text


def test_a_narrow_terminal_keeps_what_tells_runs_apart():
    name = "nano-token_choice-8e-k2-c2-gbatch-s1-cf346a"
    text = printed(SweepSnapshot([RunProgress(name, "running", 9600, 38400, 0.5, images_per_second=8.0)]), width=80)
    assert "nano-toke…ch-s1-cf346a running 9,600/38,400 25% 0.5000 1 h 00 min" in text


def test_names_that_look_like_markup_are_shown_as_they_are():
    assert "[bold]" in printed(SweepSnapshot([RunProgress("[bold]", "planned", 0, 64)]))


def test_stopping_is_said():
    assert "Ctrl-C again kills" in printed(SweepSnapshot(runs(), stopping=True))


def test_without_a_terminal_only_changes_of_state_are_printed(capsys):
    view = PlainView()
    view(SweepSnapshot([RunProgress("a", "planned", 0, 64)]))
    view(SweepSnapshot([RunProgress("a", "running", 0, 64)]))
    view(SweepSnapshot([RunProgress("a", "running", 32, 64)]))
    view(SweepSnapshot([RunProgress("a", "failed", 32, 64, reason="[no] memory " + "x" * 60)]))
    assert capsys.readouterr().err.splitlines() == ["a: started", f"a: failed: [no] memory {'x' * 60}"]


def test_without_a_terminal_progress_is_printed_now_and_then(monkeypatch, capsys):
    view = PlainView()
    later = time.monotonic() + PLAIN_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    view(SweepSnapshot(runs(), seconds=10.0))
    view(SweepSnapshot(runs(), seconds=10.5))
    assert capsys.readouterr().err.splitlines() == [
        "running-0: images 32/64 50%, loss 0.5000, images/s 8, left 4 s",
        "1 done, 1 planned, 1 running; 50% of the images; 10 s",
    ]


def test_a_pipe_gets_lines_and_no_table(capsys):
    with live_view() as show:
        show(SweepSnapshot([RunProgress("a", "planned", 0, 64)]))
        show(SweepSnapshot([RunProgress("a", "done", 64, 64)]))
    assert capsys.readouterr().err == "a: done\n"


def test_what_waits_for_a_trunk_is_named_with_what_it_waits_for(capsys):
    waiting = RunProgress("nano-dense-s0-aaaaaa", "planned", 0, 64, waits_for="nano-dense-s0-bbbbbb")
    assert "nano-dense-s0-aaaaaa waiting for nano-dense-s0-bbbbbb" in printed(SweepSnapshot([waiting]), width=140)
    assert "waiting for" not in printed(SweepSnapshot([waiting]), width=60)
    orphan = RunProgress("nano-dense-s0-aaaaaa", "planned", 0, 64, reason="not started: b failed")
    with live_view() as show:
        for one in (waiting, waiting, orphan, orphan):
            show(SweepSnapshot([one]))
    assert capsys.readouterr().err.splitlines() == [
        "nano-dense-s0-aaaaaa: waiting for nano-dense-s0-bbbbbb",
        "nano-dense-s0-aaaaaa: planned: not started: b failed",
    ]


KILLED = Event("a", "killed by SIGKILL, perhaps for lack of memory; tried again in 5 s (1 of 2)")
SHARED = Event("[b]", "another sweep is training it")


def test_without_a_terminal_an_event_is_a_line(capsys):
    view = PlainView()
    view(SweepSnapshot([RunProgress("a", "running", 0, 64)]))
    view(
        SweepSnapshot([RunProgress("a", "interrupted", 32, 64, reason="its process is gone")], events=[KILLED, SHARED])
    )
    view(SweepSnapshot([RunProgress("a", "running", 32, 64)]))
    assert capsys.readouterr().err.splitlines() == [
        "a: interrupted: its process is gone",
        f"a: {KILLED.text}",
        "[b]: another sweep is training it",
        "a: started",
    ]


def test_at_a_terminal_events_stay_above_the_table(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    with live_view() as show:
        show(SweepSnapshot([RunProgress("a", "running", 0, 64)]))
        show(SweepSnapshot([RunProgress("a", "interrupted", 32, 64)], events=[KILLED, SHARED]))
        show(SweepSnapshot([RunProgress("a", "running", 32, 64)]))
    shown = capsys.readouterr().err
    assert shown.count(f"a: {KILLED.text}") == shown.count("[b]: another sweep is training it") == 1
    assert shown.index(KILLED.text) < shown.index(SHARED.text) < shown.rindex("1 running")
