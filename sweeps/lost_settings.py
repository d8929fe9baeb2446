"""Refuses a sweep file of which something would be lost, or read as another number than it says, with the line.

Of a setting that is given twice one value would be lost, and a design of the whole sweep that stands among the settings
of a run would be ignored. `spec.py` checks everything that needs no lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.config.designs import OF_A_SWEEP
from experiments.config.overrides import ARM, resolved_name, split_words
from experiments.config.yaml_file import Spelling, YamlContent, refuse_repeated
from experiments.errors import ConfigError, SpecError
from sweeps.cluster import PLACES
from sweeps.sweep_parameters import single_parameters

if TYPE_CHECKING:
    from sweeps.spec import SweepSpec

Given = list[tuple[str, Spelling]]
"""Settings by their full names, each with its spelling."""


def refuse_lost_settings(spec: SweepSpec, content: YamlContent, source: str) -> None:
    """Raises `SpecError` where a part of the file `source` would be lost or misread. `spec` is what it was read as."""
    _refuse_other_bases(content, source)
    given: Given = []
    varied: list[list[Given]] = []
    for key in ("project", "entity"):
        if getattr(spec, key) is not None:
            given.append((f"wandb.{key}", Spelling(key, content.lines[key,])))
    for index, word in enumerate(spec.command):
        if word in spec.fixed_settings():
            given += _settings_of(word, word, content.lines["command", str(index)], source)
    for path, parameter in single_parameters(spec.parameters):
        name, line = ".".join(path[1::2]), content.lines[path]
        values = parameter.values or [parameter.value]
        if name != ARM and not any(isinstance(value, dict) for value in values):
            given.append((resolved_name(name), Spelling(name, line)))
            continue
        of_values: list[Given] = []
        for index, value in enumerate(values):
            of_value = content.lines.get((*path, "values", str(index)), content.lines.get((*path, "value"), line))
            of_values.append(_settings_of(f"{name}={value}", name, of_value, source))
        varied.append(of_values)
    known = refuse_repeated(given, source, SpecError)
    for of_values in varied:  # a run has one value of each parameter, so that values of one do not meet each other
        for found in [refuse_repeated(value, source, SpecError, known) for value in of_values]:
            known = found | known


def _settings_of(word: str, spelled: str, line: int, source: str) -> Given:
    """Returns the settings that a word stands for, with its line in the file."""
    try:
        names = [resolved_name(key) for key, _ in split_words([word])]
    except ConfigError as error:
        raise SpecError(f"{source}: line {line}: {error.message}", error.hint) from error
    for name in names:
        if name in OF_A_SWEEP and name != spelled:
            raise SpecError(
                f"{source}: line {line}: {name} is read only as a parameter of its own.",
                f"Write `{name}: {{value: ...}}` below `parameters:`.",
            )
    return [(name, Spelling(spelled, line)) for name in names]


def _refuse_other_bases(content: YamlContent, source: str) -> None:
    """Raises `SpecError` for a number to another base than 10, but in a cluster, which `cluster.py` reads as text."""
    for path, said in content.other_bases.items():
        if not any(path[: len(place)] == place for place in PLACES):
            raise SpecError(
                f"{source}: line {content.lines[path]}: {said} in YAML.",
                "Write it to the base 10, without a leading 0 or a colon, or put it in quotes.",
            )
