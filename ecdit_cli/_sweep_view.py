"""Shows a sweep and its runs: live while it is running, and as rows when it is over.

At a terminal one table is redrawn. In a pipe or a log file one line is printed at each change of state, and others
about every 10 seconds. What no state shows, such as that a killed run is tried again, is a line in both. The state
comes as a `SweepSnapshot`; this module reads no files.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from analysis.columns import Column
from ecdit_cli._console import say, talk
from experiments.text import ELLIPSIS, printable
from experiments.units import duration

if TYPE_CHECKING:
    from rich.console import Group

    from experiments.records.record_types import State
    from sweeps.execution import Screen
    from sweeps.folder import SweepFolder
    from sweeps.plan import Plan
    from sweeps.progress import RunProgress, SweepSnapshot
    from sweeps.runner import OnProgress

PLAIN_SECONDS = 10.0
LINES_AROUND = 7
"""The number of lines of the live view that are not runs, such as the header and the total."""

TITLES = ("images", "loss", "images/s", "left")
LAYOUTS = ((100, TITLES, 58), (80, (*TITLES[:2], TITLES[3]), 58), (60, TITLES[:1], 42), (0, (), 18))
"""The layouts by minimum width: the columns shown beside name and state, and the width of everything but the name."""
LAST_CHARACTERS = 12
"""The number of characters kept at the end of a shortened name."""

STATES: tuple[State, ...] = ("running", "failed", "interrupted", "planned", "done")
STYLES = {"running": "cyan", "failed": "bold red", "interrupted": "yellow", "planned": "dim", "done": "green"}

WAITING = "waiting for "
"""Precedes the name of the run whose checkpoint a run needs."""
LEAST_WITH_PARENT = 40
"""The width of the column of names from which on the run that is waited for is named beside the one that waits."""


def tuned_text(tuned: dict[str, Any]) -> str:
    """Writes the tuned setting of a run as `optim.learning_rate=0.002`, and whether it lies at the edge of its grid."""
    return f"{tuned['setting']}={tuned['value']:g}{' (edge)' if tuned['edge'] else ''}"


def settings_text(settings: dict[str, Any]) -> str:
    """Writes settings as they are given on the command line."""
    return ", ".join(f"{name}={'null' if value is None else value}" for name, value in settings.items())


DIFFERS = Column("differs", "differs in", settings_text, priority=1)
COLUMNS = (
    Column("name", "run"),
    DIFFERS,
    Column("state", "state"),
    Column("images_seen", "images", "{:,}".format, priority=1),
    Column("images_total", "of", "{:,}".format, priority=4),
    Column("loss", "loss", "{:.4f}".format, priority=3),
    Column("val_loss", "val_loss", "{:.4f}".format, priority=3),
    Column("seconds", "training", duration, priority=5),
    Column("heartbeat_age_seconds", "last sign", lambda seconds: f"{duration(seconds)} ago", priority=5),
    Column("seconds_error", "time error", "{:+z.0%}".format, priority=6),
    Column("memory_error", "memory error", "{:+z.0%}".format, priority=6),
    Column("tuned", "tuned", tuned_text, priority=5),
    Column("retry_of", "retry of", priority=4),
    Column("reason", "reason", priority=2),
)
RESULT_COLUMNS = tuple(column for column in COLUMNS if column.key not in {"loss", "heartbeat_age_seconds"})
"""Columns for a sweep that is over."""
ERRORS_EXPLAINED = (
    "time error, memory error: by how much a run took more (+) or less (-) than was estimated before it started."
)


def run_row(run: RunProgress) -> dict[str, Any]:
    """Returns the row of one run for `print_rows` and JSON, without the keys that are not known."""
    row = {
        "name": run.name,
        "state": run.state,
        "images_seen": run.images_seen,
        "images_total": run.images_total,
        "loss": run.loss,
        "val_loss": run.val_loss,
        "images_per_second": run.images_per_second,
        "seconds": run.seconds,
        "heartbeat_age_seconds": run.heartbeat_age_seconds,
        "reason": _note(run) or None,
    }
    return {key: value for key, value in row.items() if value is not None}


def apart_cell(apart: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Returns the cell of `DIFFERS` for a run, from what `differing_settings` returns."""
    return {DIFFERS.key: apart[name]} if name in apart else {}


def errors_by_name(folder: SweepFolder, plan: Plan | None) -> dict[str, dict[str, float]]:
    """Returns, by run, measured over estimated minus 1, for time and memory where both are known."""
    from sweeps.cost import errors_of

    found = {}
    for one in errors_of(folder, plan):
        both = {"seconds_error": one.seconds_error, "memory_error": one.memory_error}
        found[one.name] = {key: value for key, value in both.items() if value is not None}
    return found


def origins_by_name(plan: Plan | None) -> dict[str, dict[str, Any]]:
    """Returns, by run, how its setting was tuned and which run it repeats, where the plan says so."""
    origins = {run.name: run.origin for run in (plan.runs if plan is not None else [])}
    return {name: origin.model_dump(exclude_none=True) for name, origin in origins.items() if origin is not None}


def total_row(snapshot: SweepSnapshot) -> dict[str, Any]:
    """Returns the sums over all runs."""
    by_state = {f"num_{state}": snapshot.num_by_state[state] for state in STATES}
    images = {"images_seen": snapshot.images_seen, "images_total": snapshot.images_total}
    return {"num_runs": len(snapshot.runs), **by_state, **images}


def total_line(snapshot: SweepSnapshot) -> str:
    """Returns a summary: `3 done, 2 running, 4 planned; 45% of the images; 2 min 10 s, 3 min 05 s left`."""
    counts = snapshot.num_by_state
    parts = [", ".join(f"{counts[state]} {state}" for state in reversed(STATES) if counts[state])]
    if snapshot.images_total:
        parts.append(f"{snapshot.images_seen / snapshot.images_total:.0%} of the images")
    if snapshot.seconds:
        left = "" if snapshot.seconds_left is None else f", {duration(snapshot.seconds_left)} left"
        parts.append(duration(snapshot.seconds) + left)
    if snapshot.stopping:
        parts.append("saving and stopping; Ctrl-C again kills")
    return "; ".join(parts)


@contextmanager
def live_view() -> Iterator[OnProgress]:
    """Yields a function that shows each snapshot it is given on stderr."""
    from rich.live import Live

    console = talk()
    if not console.is_terminal:
        yield PlainView()
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(snapshot: SweepSnapshot) -> None:
            for line in _events(snapshot):
                say(line, console)
            live.update(live_table(snapshot, console.width, console.height - LINES_AROUND), refresh=True)

        yield show


def screen() -> Screen:
    """Returns what a sweep is shown on: lines and a live view on stderr."""
    from sweeps.execution import Screen

    return Screen(say, live_view)


class PlainView:
    """Prints one line for each change of state and each event, and the progress of running runs about every 10 s."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._last = time.monotonic()

    def __call__(self, snapshot: SweepSnapshot) -> None:
        # Why a run waits can change while its state does not.
        now = {run.name: _note(run) if run.state == "planned" else run.state for run in snapshot.runs}
        before = {run.name: "" if run.state == "planned" else run.state for run in snapshot.runs} | self._states
        lines = [_change(run) for run in snapshot.runs if before[run.name] != now[run.name] and now[run.name]]
        lines += _events(snapshot)
        self._states = now
        if time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            lines += [*(_progress(run) for run in snapshot.runs if run.state == "running"), total_line(snapshot)]
        for line in lines:
            say(line)


def _events(snapshot: SweepSnapshot) -> list[str]:
    """Returns what has happened that no state shows, as `NAME: killed by SIGTERM; tried again in 5 s (1 of 2)`."""
    return [f"{event.name}: {event.text}" for event in snapshot.events]


def _change(run: RunProgress) -> str:
    if run.state == "running":
        return f"{run.name}: started"
    if run.waits_for is not None:
        return f"{run.name}: {_note(run)}"
    return f"{run.name}: {run.state}" + (f": {run.reason}" if run.reason else "")


def _note(run: RunProgress) -> str:
    """Returns what the run waits for, or why it is in its state; empty where nothing is to be said."""
    return run.reason or "" if run.waits_for is None else f"{WAITING}{run.waits_for}"


def _progress(run: RunProgress) -> str:
    texts = (f"{title} {text}" for title, text in zip(TITLES, _cells(run), strict=True) if text)
    return f"{run.name}: {', '.join(texts)}"


def _cells(run: RunProgress) -> tuple[str, str, str, str]:
    """Returns images, loss, images/s and time left as texts, empty where there is nothing to show."""
    share = f"/{run.images_total:,} {run.images_seen / run.images_total:.0%}" if run.images_total else ""
    return (
        f"{run.images_seen:,}{share}",
        "" if run.loss is None else f"{run.loss:.4f}",
        "" if run.images_per_second is None or run.state != "running" else f"{run.images_per_second:.0f}",
        "" if run.seconds_left is None else duration(run.seconds_left),
    )


def live_table(snapshot: SweepSnapshot, width: int, max_runs: int) -> Group:
    """Returns a table of all runs in the order of the plan.

    Where they do not fit, the running ones come first and the hidden ones are counted.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = list(snapshot.runs)
    if len(shown) > max_runs:
        shown = sorted(shown, key=lambda run: STATES.index(run.state))[: max(1, max_runs)]
    _, titles, other_columns = next(layout for layout in LAYOUTS if width >= layout[0])
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("run", "state", *titles):
        table.add_column(title, justify="right" if title in titles else "left", no_wrap=True)
    for run in shown:
        cells = dict(zip(TITLES, _cells(run), strict=True))
        name = _named(run, width - other_columns)
        table.add_row(Text(name), Text(run.state, STYLES[run.state]), *(cells[title] for title in titles))
    hidden = len(snapshot.runs) - len(shown)
    return Group(table, Text((f"and {hidden} more; " if hidden else "") + total_line(snapshot)))


def _named(run: RunProgress, width: int) -> str:
    """Returns the name of a run and, where there is room, of the one that it waits for."""
    if run.waits_for is None or width < LEAST_WITH_PARENT:
        return _shortened(printable(run.name), width)
    half = (width - len(WAITING) - 1) // 2
    return f"{_shortened(printable(run.name), half)} {WAITING}{_shortened(printable(run.waits_for), half)}"


def _shortened(name: str, width: int) -> str:
    """Cuts a name in the middle: what tells runs apart (seed, digits of the config id) is at its end."""
    if len(name) <= width:
        return name
    tail = max(1, min(width - 1, LAST_CHARACTERS))
    return f"{name[: max(0, width - 1 - tail)]}{ELLIPSIS}{name[-tail:]}"
