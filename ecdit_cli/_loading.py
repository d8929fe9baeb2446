"""Loads the runs that a command compares, with a display of how many have been read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ecdit_cli._progress import progress

if TYPE_CHECKING:
    from analysis.load_records import Records


def loaded(roots: Sequence[Path], projects: Sequence[str] = ()) -> Records:
    """Returns the records of the finished runs, as `load_records` does; what is left out is printed."""
    from analysis.load_records import load_records

    with progress("reading runs", "runs") as show:
        return load_records(roots, projects, show.say, show)
