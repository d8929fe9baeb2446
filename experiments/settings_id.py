"""The id of the settings of a run, computed from the settings as they are stored.

`config/identity.py` computes it when a run begins, from a `RunConfig`; `records/layout.py` computes it again when a run
is read, from `run.json`. The hash is over what is stored and over nothing else, so that the settings that an earlier
version did not have yet do not change the id of its runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

LEFT_OUT = frozenset({"wandb", "checkpoint", "parallel", "log"})
ONLY_WATCHES = frozenset({"metric_images"})
"""Settings of `eval` that add measurements and change none."""
ONLY_HOW = frozenset({"implementation"})
"""Settings of `train` that change how fast the same numbers come."""
MAY_MOVE = frozenset({"path"})
"""Settings of `data` that do not say what the data are: `data.fingerprint` does."""
PARTS_LEFT_OUT = {"eval": ONLY_WATCHES, "train": ONLY_HOW, "data": MAY_MOVE}


def settings_id(settings: Mapping[str, Any]) -> str:
    """10 hex digits of the SHA-256 over the canonical JSON of every one of the nested `settings` that changes numbers.

    Of `parallel` the number of processes counts where routing groups follow it. Raises `ValueError` for values that are
    not JSON.
    """
    counted = {name: _counted(name, value) for name, value in settings.items() if name not in LEFT_OUT}
    world = _number_in(settings, "parallel", "world")
    if world is not None and world > 1 and _groups_follow_processes(settings):
        counted["parallel"] = {"world": world}
    return _digest(counted)


def is_settings_id(identity: str, settings: Mapping[str, Any]) -> bool:
    """Whether `identity` is that of `settings`, by this version or by one that did not count the processes yet."""
    without_processes = {name: value for name, value in settings.items() if name != "parallel"}
    return identity in (settings_id(settings), settings_id(without_processes))


def _groups_follow_processes(settings: Mapping[str, Any]) -> bool:
    """Whether training on another number of processes has other routing groups, and with them other losses.

    With `routing.group_images=batch` a group is what one process takes at a time. It decides who competes for slots,
    and over whom a balance loss counts: without a capacity and without a balance loss it decides nothing. Validation
    and sampling have batches of the same images on any number of processes.
    """
    routing = settings.get("routing")
    if not isinstance(routing, Mapping) or routing.get("name") == "dense" or routing.get("group_images") != "batch":
        return False
    balance = _number_in(settings, "routing", "balance_loss_weight")
    return routing.get("capacity_factor") is not None or (balance is not None and balance > 0)


def _number_in(settings: Mapping[str, Any], section: str, name: str) -> float | None:
    held = settings.get(section)
    value = held.get(name) if isinstance(held, Mapping) else None
    return value if isinstance(value, int | float) else None


def _digest(counted: Mapping[str, Any]) -> str:
    text = json.dumps(_canonical(counted), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _counted(section: str, settings: Any) -> Any:
    """The settings of a section without those that change no numbers."""
    left_out = PARTS_LEFT_OUT.get(section)
    if left_out is None or not isinstance(settings, Mapping):
        return settings
    return {name: value for name, value in settings.items() if name not in left_out}


def _canonical(value: Any) -> Any:
    """Whole floats as integers, so that 2 and 2.0 are one setting."""
    if isinstance(value, Mapping):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
