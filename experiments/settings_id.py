"""The id of the settings of a run, computed from the settings as they are stored.

`config/identity.py` computes it when a run begins, from a `RunConfig`; `records/run_folder.py` computes it again when
a run is read, from `run.json`. Only stored settings are hashed, so that settings that an earlier version did not have
do not change the ids of its runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

LEFT_OUT = frozenset({"wandb", "checkpoint", "parallel", "log"})
ONLY_WATCHES = frozenset({"metric_images"})
"""Settings of `eval` that add measurements without changing others."""
ONLY_HOW = frozenset({"implementation"})
"""Settings of `train` that change only the speed at which the same results are computed."""
MAY_MOVE = frozenset({"path", "init_from"})
"""Paths of `data` and `train` that do not identify what is there, which `data.fingerprint` and `train.init_fingerprint`
do."""
PARTS_LEFT_OUT = {"eval": ONLY_WATCHES, "train": ONLY_HOW | MAY_MOVE, "data": MAY_MOVE}


def settings_id(settings: Mapping[str, Any]) -> str:
    """Returns 10 hex digits of the SHA-256 of the canonical JSON of those `settings` that change results.

    The number of processes is included only where routing groups depend on it. Raises `ValueError` for values that are
    not JSON.
    """
    counted = counted_settings(settings)
    world = num_processes_counted(settings)
    if world > 1:
        counted["parallel"] = {"world": world}
    return _digest(counted)


def num_processes_counted(settings: Mapping[str, Any]) -> float:
    """Returns the number of processes of a run where its routing groups depend on it, and 1 where they do not."""
    world = _number_in(settings, "parallel", "world")
    return 1 if world is None or not _groups_follow_processes(settings) else world


def counted_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those `settings` that change results, by section, without the number of processes."""
    return {name: _counted(name, value) for name, value in settings.items() if name not in LEFT_OUT}


def is_settings_id(identity: str, settings: Mapping[str, Any]) -> bool:
    """Returns whether `identity` is that of `settings`, now or in versions that ignored the number of processes."""
    if identity == settings_id(settings):
        return True
    return identity == settings_id({name: value for name, value in settings.items() if name != "parallel"})


def dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every setting under its name: `{"routing": {"name": x}}` gives `("routing.name", x)`."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _groups_follow_processes(settings: Mapping[str, Any]) -> bool:
    """Returns whether another number of processes changes the routing groups of training, and with them its losses.

    With `routing.group_images=batch` a group is the batch of one process. Groups decide which tokens compete for slots
    and over which tokens a balance loss is taken; without a capacity and a balance loss they change nothing. Validation
    and sampling use batches of the same images on any number of processes.

    Where tokens of all processes compete (`all`), thresholds are those of all tokens too. Otherwise a threshold is a
    mean over the batches of processes, which is not that of the whole batch. Expert Race's loss counts over all tokens
    where all compete, and ProMoE's always over the batch of a process.

    With `train.accumulation` every process takes a part of its share of the batch at a time. Which images all processes
    take together then depends on their number, and so does whatever is taken over these images.
    """
    routing = settings.get("routing")
    if not isinstance(routing, Mapping) or routing.get("name") == "dense":
        return False
    accumulates = (_number_in(settings, "train", "accumulation") or 1) > 1
    pools = ("batch", "all") if accumulates else ("batch",)
    group, decision = routing.get("group_images"), routing.get("eval_decision", "same")
    scope = {"process": "batch", "all": "all"}.get(str(routing.get("balance_scope")), group)
    is_of_all = group == "all" and not accumulates
    return (
        (group in pools and routing.get("capacity_factor") is not None)
        or (scope in pools and _is_positive(settings, "balance_loss_weight"))
        or (not is_of_all and _is_positive(settings, "similarity_loss_weight"))
        or _is_positive(settings, "contrastive_loss_weight")
        or (decision != "same" and not (is_of_all and decision == "threshold"))
        or (accumulates and _counts_some_tokens(settings))
    )


def _counts_some_tokens(settings: Mapping[str, Any]) -> bool:
    """Returns whether a loss of routing is a mean over those tokens of a batch that count, which can be few or many."""
    counts_some = _is_positive(settings, "unconditional_expert") or _is_positive(settings, "text_experts")
    losses = ("balance_loss_weight", "z_loss_weight", "predictor_loss_weight")
    return counts_some and any(_is_positive(settings, name) for name in losses)


def _is_positive(settings: Mapping[str, Any], name: str) -> bool:
    value = _number_in(settings, "routing", name)
    return value is not None and value > 0


def _number_in(settings: Mapping[str, Any], section: str, name: str) -> float | None:
    held = settings.get(section)
    value = held.get(name) if isinstance(held, Mapping) else None
    return value if isinstance(value, int | float) else None


def _digest(counted: Mapping[str, Any]) -> str:
    text = json.dumps(_canonical(counted), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _counted(section: str, settings: Any) -> Any:
    """Returns the settings of a section without those that change no results."""
    left_out = PARTS_LEFT_OUT.get(section)
    if left_out is None or not isinstance(settings, Mapping):
        return settings
    return {name: value for name, value in settings.items() if name not in left_out}


def _canonical(value: Any) -> Any:
    """Returns `value` with whole floats as integers, so that 2 and 2.0 are the same setting."""
    if isinstance(value, dict):
        return {key: _canonical(inner) if isinstance(inner, dict | float) else inner for key, inner in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value
