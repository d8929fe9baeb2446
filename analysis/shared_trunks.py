"""Tells which runs of several lengths are one training until their cooldowns, and are therefore no independent ones.

With `optim.schedule=wsd` the runs that differ in their length alone share a trunk (`config/cooldown.py`): up to the
cooldown of a shorter run a longer one is the same training, whether it took over a checkpoint of it or trained alone.
What a trunk deviates from others stays in the losses of all its lengths. Whatever is said of lengths or sizes that were
not run therefore counts a trunk once: compute multipliers over setups, and intervals of laws and of iso-FLOP minima.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.config.cooldown import has_trunk

TRUNK = "trunk"
"""The column of the run table that holds the trunk of each run. A trunk has a name for all its seeds together, because
seeds share what a law misses of their configuration."""
NOT_OF_A_TRUNK = ("train.images", "seed")


def trunk_of(optim: Mapping[str, Any], settings: Sequence[tuple[str, Any]]) -> str | None:
    """Returns the name of the trunk of a run, or None where it has none.

    `optim` are its settings of the schedule, and `settings` all that change its losses, by their dotted names.
    """
    if not has_trunk(optim):
        return None
    shared = [pair for pair in settings if pair[0] not in NOT_OF_A_TRUNK]
    return hashlib.sha256(json.dumps(shared).encode()).hexdigest()[:10]


def trunks(runs: pd.DataFrame) -> list[str | None]:
    """Returns the trunk of each run, or None where it has none; a table may lack the column."""
    found: Iterable[Any] = runs[TRUNK] if TRUNK in runs else [None] * len(runs)
    return [each if isinstance(each, str) else None for each in found]


def share_trunks(parts: Iterable[pd.DataFrame]) -> bool:
    """Says whether one trunk has runs in several of `parts`."""
    of_parts = [set(trunks(part)) - {None} for part in parts]
    return len({trunk for of_part in of_parts for trunk in of_part}) < sum(map(len, of_parts))
