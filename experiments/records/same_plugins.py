"""Refuses to continue or load a run with other plugins than those that `run.json` names.

A run that went on with a router whose source has changed would mix two routers under one name, and nothing in its rows
would show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.errors import RecordError
from experiments.records.record_types import PluginRecord, RunRecord


def require_same_plugins(begun: RunRecord, now: Sequence[PluginRecord] | None, file: Path) -> None:
    """Raises `RecordError` naming the first plugin of the run in `file` that is missing among `now`, or has changed.

    A record without plugins is one of an earlier version, or of a run that used none.
    """
    loaded = {(each.kind, each.name): each for each in now or ()}
    for plugin in begun.plugins or ():
        found = loaded.get((plugin.kind, plugin.name))
        if found is None:
            raise RecordError(
                f"{file}: the {plugin.kind} {plugin.name!r} of this run is a plugin that is not loaded.",
                f"Give it with --plugin FILE.py, or install its package; it was {plugin.source}.",
            )
        if found.sha256 != plugin.sha256:
            raise RecordError(
                f"{file}: the {plugin.kind} {plugin.name!r} has changed since this run began: the SHA-256 of its "
                f"source was {plugin.sha256[:12]}, and is {found.sha256[:12]} in {found.source}.",
                "Bring its source back, or train in another --run-dir.",
            )
