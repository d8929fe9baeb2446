"""The settings in which planned runs differ whose names are alike but for the digits of their config ids."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.settings_id import dotted

if TYPE_CHECKING:
    from sweeps.plan import PlannedRun

Settings = dict[str, Any]


def differing_settings(runs: Iterable[PlannedRun]) -> dict[str, Settings]:
    """Returns, by the name of a run, the settings that tell it apart from those that are named alike, if any do.

    A name says the model, the routing and the seed, so that runs of a sweep over something else share all of it but the
    digits at its end. A run in which a setting has the value that more than half of them have does not list it.
    """
    alike: defaultdict[str, list[PlannedRun]] = defaultdict(list)
    for run in runs:
        alike[run.name.rpartition("-")[0]].append(run)
    found = {}
    for group in alike.values():
        for run, settings in zip(group, _apart([run.config for run in group]), strict=True):
            if settings:
                found[run.name] = settings
    return found


def _apart(configs: Sequence[Mapping[str, Any]]) -> list[Settings]:
    """Returns the settings of each config that are not those of more than half of all."""
    first = configs[0]
    # Most sections are the same in all, and comparing them whole is much faster than setting by setting.
    differing = {name for config in configs[1:] for name in config if config[name] != first.get(name)}
    flat = [dict(dotted({name: config.get(name) for name in first if name in differing})) for config in configs]
    names = {name for settings in flat for name in settings}
    usual = {name: _usual([settings.get(name) for settings in flat]) for name in names}
    return [{name: value for name, value in settings.items() if repr(value) != usual[name]} for settings in flat]


def _usual(values: Iterable[Any]) -> str | None:
    """Returns the text of the value that more than half have, or None."""
    texts = Counter(map(repr, values))
    ((text, count),) = texts.most_common(1)
    return text if 2 * count > texts.total() else None
