"""The design `ecdit.tune` of a sweep file: the setting that is tuned for each arm, its values and the proxies.

    ecdit.tune: {value: {optim.learning_rate: [1.0e-3, 2.0e-3, 4.0e-3], on: {train.images: 3200}, seeds: 2}}

A proxy is the arm with the settings of `on`, which make it cheap. It is trained with each value and with `seeds` seeds,
none of which the sweep has. `tuning.py` trains the proxies and chooses the values.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.config.designs import NONE, TUNE, separate
from experiments.config.overrides import expand, known_settings, resolved_name, split_words, unknown_setting
from experiments.config.values import Scalar, convert, shown
from experiments.config.yaml_file import parse_yaml
from experiments.errors import ConfigError, SpecError
from sweeps.spec import SweepSpec

EXAMPLE = "{optim.learning_rate: [1.0e-3, 2.0e-3, 4.0e-3], on: {train.images: 3200}, seeds: 2}"
MAX_VALUES = 100
MAX_SEEDS = 1000


@dataclass(frozen=True)
class TuneDesign:
    """The content of `ecdit.tune`: `values` ascend, and `on` are the settings of the proxies by their dotted names."""

    setting: str
    values: tuple[int | float, ...]
    on: Mapping[str, Scalar]
    num_seeds: int

    def value(self, number: float) -> int | float | None:
        """Returns `number` as a value of the setting; None where that takes whole numbers and `number` is not whole."""
        takes_floats = float in known_settings()[self.setting].kinds
        rounded = float(f"{number:.12g}")
        return rounded if takes_floats else int(rounded) if rounded.is_integer() else None

    def word(self, value: float) -> str:
        """Returns the setting with a value, as `optim.learning_rate=0.002`."""
        return f"{self.setting}={value:.12g}"


def tune_design(spec: SweepSpec, overrides: Sequence[str] = ()) -> TuneDesign | None:
    """Returns what `spec`, or the command line over it, says of tuning; None for nothing. Raises `SpecError`."""
    content = design_mapping(TUNE, spec, overrides, EXAMPLE)
    if content is None:
        return None
    on, seeds = content.pop("on", {}), content.pop("seeds", "1")
    names = [resolved_name(name) for name in content]
    if len(names) != 1:
        found = f"{len(names)} settings ({', '.join(map(shown, names))})" if names else "no setting"
        raise SpecError(
            f"{TUNE} names {found}, and it tunes one.", f"Write for example `{TUNE}: {{value: {EXAMPLE}}}`."
        )
    (setting,), (values,) = names, content.values()
    return TuneDesign(setting, _values(setting, values), _proxy_settings(on, setting), _num_seeds(seeds))


def design_mapping(name: str, spec: SweepSpec, overrides: Sequence[str], example: str) -> dict[str, Any] | None:
    """Returns the mapping that the design `name` is given as, with its values as text; None where it is not given.

    The command line wins over the file. Raises `SpecError` where the design is no mapping or not the same for all runs.
    """
    designs = separate(overrides)[1]
    given = designs[name] if name in designs else spec.constant(name)
    if given is None or given in NONE:
        return None
    content = parse_yaml(str(given), name, SpecError, as_text=True).value
    if not isinstance(content, dict):
        raise SpecError(f"{name}={shown(str(given))} is not a mapping.", f"Write `{name}: {{value: {example}}}`.")
    return content


def _values(setting: str, given: Any) -> tuple[int | float, ...]:
    accepted = known_settings().get(setting)
    if accepted is None:
        raise _named(unknown_setting(setting))
    if setting == "seed" or not accepted.kinds & {int, float}:
        raise SpecError(f"{TUNE} cannot tune {setting}.", "It tunes a setting that is a number, and not the seed.")
    if not isinstance(given, list) or not 2 <= len(given) <= MAX_VALUES:
        what = f"{len(given)} value{'s' * (len(given) != 1)}" if isinstance(given, list) else shown(str(given))
        raise SpecError(
            f"{TUNE}: {setting} is given {what} to choose from.", f"Give a list of 2 to {MAX_VALUES} values."
        )
    values = [_number(setting, each) for each in given]
    for lower, higher in itertools.pairwise([0, *values]):
        if not lower < higher:
            raise SpecError(
                f"{TUNE}: the values of {setting} are not positive and ascending: {higher:g} follows {lower:g}.",
                "Write each once, the smallest first.",
            )
    return tuple(values)


def _number(setting: str, text: Any) -> int | float:
    try:
        value = convert(setting, str(text), known_settings()[setting])
    except ConfigError as error:
        raise _named(error) from error
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise SpecError(f"{TUNE}: {setting}={shown(str(text))} is not a number.", "Give numbers to choose from.")
    return value


def _proxy_settings(given: Any, setting: str) -> dict[str, Scalar]:
    """Returns the settings of `on` by their dotted names."""
    if not isinstance(given, dict):
        raise SpecError(
            f"{TUNE}: on={shown(str(given))} is not a mapping.", "Write for example `on: {train.images: 3200}`."
        )
    words = [f"{name}={value}" for name, value in given.items()]
    try:
        on, times = expand(words), Counter(resolved_name(key) for key, _ in split_words(words))
    except ConfigError as error:
        raise _named(error) from error
    for name in on:
        if times[name] > 1:
            raise SpecError(f"{TUNE}: {name} is given twice in `on`.", "Keep one of them.")
        if name in (setting, "seed"):
            hint = "Its values stand beside `on`." if name == setting else "`seeds` says how many there are."
            raise SpecError(f"{TUNE}: {name} stands in `on`.", hint)
    return on


def _num_seeds(text: Any) -> int:
    try:
        count = int(str(text))
    except ValueError:
        count = 0
    if not 1 <= count <= MAX_SEEDS:
        raise SpecError(
            f"{TUNE}: seeds={shown(str(text))} is not a number of seeds.", f"Give a whole number from 1 to {MAX_SEEDS}."
        )
    return count


def _named(error: ConfigError) -> SpecError:
    return SpecError(f"{TUNE}: {error.message}", error.hint)


def is_design(word: str, name: str) -> bool:
    """Returns whether the `KEY=VALUE` in `word` gives `name`, a design or an arm."""
    return word.partition("=")[0].removeprefix("--").strip() == name
