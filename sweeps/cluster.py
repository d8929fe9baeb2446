"""Cluster files: what a run gets on a Slurm cluster, and which runs get something else.

    partition: gpu
    time: 12:00:00
    gpus_per_node: 8
    setup: [module load cuda, export NCCL_SOCKET_IFNAME=ib0]
    rules:
      - where: {model: XL}
        nodes: 4

In a sweep file the same keys, or the path of a cluster file beside it, are the value of the parameter `ecdit.cluster`,
which W&B accepts. Rules are applied in order: a later one wins, key by key. Values are read as text, because PyYAML
would turn 12:00:00 into 43200. `slurm.py` turns this into batch scripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from experiments.config.limits import MAX_WORLD
from experiments.config.overrides import expand, resolved_name
from experiments.config.stored import stored_value
from experiments.config.values import FALSE_SPELLINGS, NONE_SPELLINGS, TRUE_SPELLINGS, Scalar
from experiments.config.yaml_file import KeyPath, Spelling, read_yaml, refuse_repeated
from experiments.errors import ConfigError, SpecError, did_you_mean
from experiments.settings_id import dotted

PARAMETER = "ecdit.cluster"
NAMED_HERE = frozenset({
    "partition", "account", "nodes", "gpus-per-node", "cpus-per-task", "mem", "time", "constraint",
})  # fmt: skip
SET_BY_US = frozenset({
    "array", "error", "job-name", "ntasks", "ntasks-per-node", "open-mode", "output", "requeue", "signal",
})  # fmt: skip
TIME_FORMS = "Write minutes, hours:minutes:seconds or days-hours, e.g. time: 12:00:00."

MAX_DAYS = 3650
MAX_ON_A_NODE = 4096
"""The largest number of tasks, GPUs or cores of one node."""
Nodes = Annotated[int, Field(gt=0, le=MAX_WORLD)]
OnANode = Annotated[int, Field(gt=0, le=MAX_ON_A_NODE)]


def minutes(text: Any) -> int:
    """Returns a time limit in Slurm's spelling as whole minutes, rounded up as Slurm does. Raises `ValueError`."""
    days, dash, clock = str(text).rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in [*parts, *([days] if dash else [])]) or len(parts) > 3:
        raise ValueError(f"{text} is not a time")
    numbers = [int(part) for part in parts] + [0] * (3 - len(parts))
    if dash or len(parts) == 3:  # the first number is hours
        hours, mins, seconds = numbers
    else:
        hours, mins, seconds = 0, numbers[0], numbers[1]
    total_seconds = ((int(days or 0) * 24 + hours) * 60 + mins) * 60 + seconds
    if total_seconds == 0:
        raise ValueError(f"{text} is no time at all")
    if total_seconds > MAX_DAYS * 24 * 3600:
        raise ValueError(f"{text} is more than {MAX_DAYS} days")
    return -(-total_seconds // 60)


def _lines(value: Any) -> Any:
    return value.splitlines() if isinstance(value, str) else value


def _is_none(value: Any) -> bool:
    """Returns whether a value that was read as text is a spelling of None."""
    return isinstance(value, str) and value.lower() in NONE_SPELLINGS


def _option(name: str) -> str:
    """Returns the name of an sbatch option with dashes, as Slurm writes it."""
    return name.replace("_", "-")


def _options(value: Any) -> Any:
    return {_option(str(name)): text for name, text in value.items()} if isinstance(value, dict) else value


SPELLED_ALIKE: Mapping[str, Callable[[str], str]] = {"extra": _option, "where": resolved_name}
"""Blocks whose keys have several spellings, with the function that turns a spelling into the name it stands for."""


class Resources(BaseModel):
    """The resources of one run; each of its tasks is one process of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: Annotated[PositiveInt, BeforeValidator(minutes)] = Field(description="limit of one start, minutes")
    partition: str | None = Field(None, description="partition of the cluster; None: its default")
    account: str | None = Field(None, description="account that the time is charged to")
    constraint: str | None = Field(None, description="features that nodes must have")
    nodes: Nodes = Field(1, description="nodes of one run")
    tasks_per_node: OnANode | None = Field(None, description="processes on a node; None: one a GPU, or one")
    gpus_per_node: int = Field(0, ge=0, le=MAX_ON_A_NODE, description="GPUs on each node")
    cpus_per_task: OnANode = Field(1, description="cores of each process")
    mem: str | None = Field(None, pattern=r"^\d+[KMGT]?$", description="memory of a node, such as 64G; 0: all")
    setup: Annotated[tuple[str, ...], BeforeValidator(_lines)] = Field((), description="shell lines before srun")
    max_parallel: int | None = Field(None, gt=0, le=100_000, description="runs of one array at a time")
    save_seconds: int = Field(120, gt=0, le=24 * 3600, description="how long before the limit a run is told to save")
    extra: Annotated[dict[str, str], BeforeValidator(_options)] = Field({}, description="further options of sbatch")

    @model_validator(mode="before")
    @classmethod
    def _leave_none_out(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Returns `given` without the keys that are None, where None or nothing is their default."""
        empty = {name for name, field in cls.model_fields.items() if field.default in (None, (), {})}
        return {name: value for name, value in given.items() if not (name in empty and _is_none(value))}

    @property
    def num_tasks_per_node(self) -> int:
        """Returns the number of processes on each node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def world(self) -> int:
        """Returns the number of processes of one run."""
        return self.nodes * self.num_tasks_per_node

    def extra_options(self) -> dict[str, str | bool]:
        """Returns `extra` as sbatch takes it: "yes" makes an option without a value, "no" leaves the option out."""
        spoken = {name: text for name, text in self.extra.items() if text.lower() not in FALSE_SPELLINGS}
        return {name: True if text.lower() in TRUE_SPELLINGS else text for name, text in spoken.items()}


@dataclass(frozen=True)
class Rule:
    """Different resources for the runs whose settings all have one of the values in `where`."""

    where: Mapping[str, frozenset[Scalar]]
    keys: Mapping[str, Any]

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Returns whether the rule applies to a run with this (nested) config."""
        return all(stored_value(config, name) in wanted for name, wanted in self.where.items())

    def __str__(self) -> str:
        """Returns the condition as it stands in the file: `model.name: XL`."""
        return ", ".join(f"{name}: {'|'.join(map(str, sorted(v, key=str)))}" for name, v in self.where.items())


@dataclass(frozen=True)
class Cluster:
    """The content of a cluster file after it was read and checked."""

    keys: Mapping[str, Any]
    rules: tuple[Rule, ...] = ()

    def resources(self, config: Mapping[str, Any]) -> Resources:
        """Returns the resources of a run with this (nested) config."""
        return Resources.model_validate(_merged(self.keys, (rule for rule in self.rules if rule.fits(config))))

    def idle_rules(self, configs: Iterable[Mapping[str, Any]]) -> list[Rule]:
        """Returns the rules that apply to no run, which may be a mistake in the file."""
        known = list(configs)
        return [rule for rule in self.rules if not any(rule.fits(config) for config in known)]


def load_cluster(path: Path) -> Cluster:
    """Returns the cluster of the cluster file, or of the sweep file, at `path`. Raises `SpecError`."""
    content, lines = _read(path)
    if "program" not in content and "parameters" not in content:
        return parse_cluster(content, str(path))
    block = _block(content, lines, path)
    if not block or _is_none(block):
        way = f"{PARAMETER}: {{value: {{time: 12:00:00}}}}"
        raise SpecError(f"{path} has no cluster.", f"Add `{way}` to its parameters, or give --cluster FILE.")
    if isinstance(block, str):
        return parse_cluster(_read(path.parent / block)[0], str(path.parent / block))
    return parse_cluster(block, f"{path}: {PARAMETER}")


PLACES: tuple[KeyPath, ...] = (
    ("parameters", PARAMETER, "value"),
    ("parameters", "ecdit", "parameters", "cluster", "value"),
)
"""The places where a sweep file may describe the cluster. W&B ignores a parameter of this name."""


def _block(content: Mapping[str, Any], lines: Mapping[KeyPath, int], path: Path) -> Any:
    """Returns what a sweep file says of the cluster in one of `PLACES`, or None where it says nothing."""
    given = [place for place in PLACES if place in lines]
    refuse_repeated(((PARAMETER, Spelling(".".join(place), lines[place])) for place in given), str(path), SpecError)
    block: Any = content if given else None
    for key in given[0] if given else ():
        block = block[key]
    return block


def parse_cluster(content: Any, source: str = "cluster") -> Cluster:
    """Checks the keys of a cluster file whose values are all text. Raises `SpecError` naming `source` and the key."""
    if not isinstance(content, dict):
        raise SpecError(f"{source} holds no settings of the form KEY: VALUE.", "Write at least `time: 12:00:00`.")
    keys = {key: value for key, value in content.items() if key != "rules"}
    _check(keys, source)
    given = [] if _is_none(content.get("rules", "")) else content["rules"]
    if not isinstance(given, list):
        raise SpecError(f"{source}: rules is not a list.", "Write `rules:` and below it `- where: {model: XL}`.")
    rules = tuple(_rule(raw, keys, f"{source}: rules.{number}") for number, raw in enumerate(given, start=1))
    return Cluster(keys, rules)


def _rule(raw: Any, keys: Mapping[str, Any], source: str) -> Rule:
    """Returns the rule that `raw` describes. Raises `SpecError`; a misspelt `where` is named as an unknown key."""
    if isinstance(raw, dict):
        where, own = raw.get("where"), {key: value for key, value in raw.items() if key != "where"}
        rule = Rule(_conditions(where, source) if isinstance(where, dict) else {}, own)
        _check(_merged(keys, [rule]), source)
        if rule.where:
            return rule
    raise SpecError(f"{source} does not say for which runs it is.", "Write `where: {model: XL}`.")


def _conditions(where: Mapping[str, Any], source: str) -> dict[str, frozenset[Scalar]]:
    """Returns the settings in `where`, each with the values that fit it, parsed as the command line parses them."""
    found: dict[str, frozenset[Scalar]] = {}
    for name, value in dotted(where):
        texts = value if isinstance(value, list) else [value]
        try:
            meant = [expand([f"{name}={text}"]) for text in texts]
        except ConfigError as error:
            raise SpecError(f"{source}: where: {error.message}", error.hint) from error
        if not meant:
            raise SpecError(f"{source}: where: {name} has no value.", "Write for example `model: XL`.")
        # Several settings of one arm must all hold. A list of arms would be a choice between such sets of settings.
        if len(meant) > 1 and any(len(each) != 1 or each.keys() != meant[0].keys() for each in meant):
            raise SpecError(f"{source}: where: {name} lists several settings.", "Write a rule for each of its items.")
        for setting in meant[0]:
            if setting in found:
                raise SpecError(f"{source}: where: {setting} is given twice.", "Keep one of them.")
            found[setting] = frozenset(each[setting] for each in meant)
    return found


def _merged(keys: Mapping[str, Any], rules: Iterable[Rule]) -> dict[str, Any]:
    """Returns `keys` with those of `rules` over them. Options of sbatch are merged one by one."""
    merged = dict(keys)
    for rule in rules:
        extras = [each["extra"] for each in (merged, rule.keys) if not _is_none(each.get("extra", ""))]
        wrong = [extra for extra in extras if not isinstance(extra, dict)]  # named by `_check`
        merged |= rule.keys
        if extras:
            merged["extra"] = wrong[0] if wrong else {**extras[0], **extras[-1]}
    return merged


def _check(keys: Mapping[str, Any], source: str) -> None:
    try:
        resources = Resources.model_validate(keys)
    except ValidationError as error:
        raise _explained(error, source) from error
    for option in resources.extra:
        if option in NAMED_HERE:
            raise SpecError(
                f"{source}: extra: {option} has a key of its own.", f"Write {option.replace('-', '_')}: ..."
            )
        if option in SET_BY_US or not re.fullmatch(r"[a-z][a-z0-9-]*", option):
            hint = "ecdit sets it." if option in SET_BY_US else "Write it as in `sbatch --help`, without dashes before."
            raise SpecError(f"{source}: extra: {option} cannot be given.", hint)


def _explained(error: ValidationError, source: str) -> SpecError:
    """Explains the first error in one line; an unknown key, often a misspelling, comes before a missing one."""
    first = min(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    key = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return SpecError(
            f"{source}: {key!r} is not a key of a cluster.",
            did_you_mean(key, [*Resources.model_fields, "rules", "where"]),
        )
    if first["type"] == "missing":
        return SpecError(f"{source}: {key} is missing.", TIME_FORMS)
    hints = {"time": TIME_FORMS, "mem": "Write e.g. mem: 64G.", "setup": "Write a list of shell lines."}
    message = first["msg"].removeprefix("Value error, ")
    hint = hints.get(key, f"It must be: {message.removeprefix('Input should be ')}.")
    return SpecError(f"{source}: {key}={first['input']!r} does not fit.", hint)


def _read(path: Path) -> tuple[dict[str, Any], Mapping[KeyPath, int]]:
    """Returns the keys of a file with every value as text, and the lines of the keys."""
    content = read_yaml(path, SpecError, as_text=True)
    if not isinstance(content.value, dict):
        raise SpecError(f"{path} holds no settings of the form KEY: VALUE.", "Write at least `time: 12:00:00`.")
    refuse_repeated(_names(content.lines), str(path), SpecError)
    return content.value, content.lines


def _names(lines: Mapping[KeyPath, int]) -> Iterator[tuple[str, Spelling]]:
    """Yields the keys of every block with several spellings of one name: sbatch options, and conditions of rules."""
    for path, line in lines.items():
        block = path[-2] if len(path) > 1 else ""
        if block in SPELLED_ALIKE:
            yield ".".join((*path[:-1], SPELLED_ALIKE[block](path[-1]))), Spelling(".".join(path), line)
