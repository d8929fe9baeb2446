"""Sweep files: W&B's format, read, checked and expanded to combinations of settings.

The same YAML runs under `ecdit sweep` and under `wandb agent`, so a value reaches a run here exactly as the agent would
pass it: as `name=value` in Python spelling. Keys follow W&B's sweep configuration reference
(docs.wandb.ai/models/sweeps/sweep-config-keys), which allows no further keys: what only ecdit has is therefore given as
parameters that begin with `ecdit.` (`experiments/config/designs.py` says what they mean to a run).
`sweep_parameters.py` defines a single parameter; `lost_settings.py` refuses what would be lost of a file; `planner.py`
turns settings into configs.
"""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from experiments.config.designs import OF_A_SWEEP, SEED
from experiments.config.limits import MAX_SEED
from experiments.config.overrides import resolved_name
from experiments.config.values import shown
from experiments.config.yaml_file import read_yaml
from experiments.errors import SpecError, did_you_mean
from sweeps.lost_settings import refuse_lost_settings
from sweeps.sweep_parameters import Closed, Parameter, single_parameters

SHIPPED = Path(__file__).parent
"""The folder of the specs that come with the package."""

ARGUMENTS = "${args_no_hyphens}"
COMMAND = ["${env}", "ecdit", "train", ARGUMENTS]
WANDB_ONLY = ("early_terminate", "controller", "scheduler", "metrics", "job", "image_uri")
WANDB_ONLY_DISTRIBUTIONS = ("beta", "q_beta", "inv_log_uniform", "inv_log_uniform_values")
MAX_RUNS = 100_000
"""A larger sweep is taken for a mistake: it is refused before any run of it is made."""

PARAMETER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


class SweepMetric(Closed):
    """The metric that the sweep is judged by; a grid only records it."""

    name: str
    goal: Literal["minimize", "maximize"] = "minimize"
    target: float | None = None
    impute: Literal["latest", "best", "worst"] | None = None
    impute_while_running: Literal["latest", "best", "worst", "false", False] | None = None


class SweepSpec(Closed):
    """The content of a sweep file; `name` defaults to the name of the file."""

    program: Literal["ecdit"]
    method: Literal["grid", "random"]
    parameters: dict[str, Parameter] = Field(min_length=1)
    command: list[str] = COMMAND
    metric: SweepMetric | None = None
    name: str
    description: str | None = None
    run_cap: int | None = Field(None, strict=True, gt=0, le=MAX_RUNS)
    project: str | None = None
    entity: str | None = None
    apiVersion: str | None = None
    kind: Literal["sweep"] | None = None

    def fixed_settings(self) -> list[str]:
        """Returns the `KEY=VALUE` words in `command`, given to every run first. Raises `SpecError`."""
        words = [word for word in self.command if word != "${env}"]
        settings = [word for word in words[2:] if word != ARGUMENTS]
        if words[:2] != ["ecdit", "train"] or ARGUMENTS not in words or not all("=" in word for word in settings):
            raise SpecError(f"command: {self.command} is not a call of ecdit train.", f"Write command: {COMMAND}.")
        mirror = {"wandb.project": self.project, "wandb.entity": self.entity}
        return [f"{key}={value}" for key, value in mirror.items() if value is not None] + settings

    def combinations(self, replaced: Collection[str] = (), seed: int | None = None) -> Iterator[list[str]]:
        """Yields the settings of each run as `name=value`, without the parameters whose full names are in `replaced`.

        A grid is in W&B's order: parameters by name, the last one fastest; `run_cap` keeps the first ones, and no
        others are made. Random draws never end: the caller stops at `run_cap` runs. They follow from `seed` (default:
        `ecdit.seed` of the file, else 0) in every process and version; a parameter that is added or replaced does not
        change the draws of the others. Raises `SpecError` for a design of the whole sweep that varies.
        """
        for name in OF_A_SWEEP:
            if name != SEED and name not in replaced:
                self.constant(name)
        seed = self._seed() if seed is None else seed
        return self._grid(replaced) if self.method == "grid" else self._draws(replaced, seed)

    def constant(self, name: str) -> Any:
        """Returns the value of the parameter `name`, or None where it is not given. Raises `SpecError` if it varies."""
        parameter = self._leaves().get(name)
        if parameter is not None and parameter.form != "constant":
            raise SpecError(f"parameters: {name} is not a single constant.", f"Write `{name}: {{value: ...}}`.")
        return None if parameter is None else parameter.value

    def _grid(self, replaced: Collection[str]) -> Iterator[list[str]]:
        leaves = self._leaves().items()
        grid = {name: _choices(name, parameter) for name, parameter in leaves if resolved_name(name) not in replaced}
        num_runs = math.prod(map(len, grid.values()))
        if num_runs > MAX_RUNS and self.run_cap is None:
            raise SpecError(
                f"parameters: the grid has {_written(num_runs)} runs, and at most {MAX_RUNS:,} are allowed.",
                "Shorten the lists, or set run_cap.",
            )
        for index in range(min(num_runs, self.run_cap or num_runs)):
            settings, rest = [], index
            for name, choices in reversed(grid.items()):
                rest, digit = divmod(rest, len(choices))
                settings.append(f"{name}={choices[digit]}")
            yield settings[::-1]

    def _draws(self, replaced: Collection[str], seed: int) -> Iterator[list[str]]:
        leaves = self._leaves()
        sources = {name: random.Random(f"{seed}/{name}") for name in leaves}  # one each: none shifts another
        while True:
            drawn = {name: parameter.draw(sources[name].random()) for name, parameter in leaves.items()}
            yield [f"{name}={value}" for name, value in drawn.items() if resolved_name(name) not in replaced]

    def _seed(self) -> int:
        """Returns the seed of the draws: the constant `ecdit.seed`, 0 unless given."""
        leaves = self._leaves()
        seed = leaves[SEED].value if SEED in leaves else 0
        if not isinstance(seed, int) or isinstance(seed, bool) or abs(seed) > MAX_SEED:
            raise SpecError(f"parameters: {SEED} is not one whole number.", f"Write `{SEED}: {{value: 1}}`.")
        return seed

    def _leaves(self) -> dict[str, Parameter]:
        """Returns every parameter by its dotted name, sorted."""
        leaves: dict[str, Parameter] = {}
        for path, parameter in single_parameters(self.parameters):
            name = ".".join(path[1::2])
            if name in leaves:
                raise SpecError(f"parameters: {name} is given twice.", "Keep the dotted or the nested one.")
            leaves[name] = parameter
        return dict(sorted(leaves.items()))


def shipped_specs() -> list[str]:
    """Returns the names of the specs that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def find_spec(name_or_path: str) -> Path:
    """Returns the file of a shipped spec or at a path. Raises `SpecError` with the closest shipped name."""
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"} or (os.path.exists(path) and not os.path.isdir(path)):
        if not os.path.exists(path):
            raise SpecError(f"{path} does not exist.", f"Shipped sweeps: {', '.join(shipped_specs())}.")
        return path
    if name_or_path not in shipped_specs():
        raise SpecError(f"'{shown(name_or_path)}' is not a sweep.", did_you_mean(name_or_path, shipped_specs()))
    return SHIPPED / f"{name_or_path}.yaml"


def load_spec(name_or_path: str) -> SweepSpec:
    """Reads and checks a sweep file. Raises `SpecError` that names the wrong key."""
    path = find_spec(name_or_path)
    content = read_yaml(path, SpecError, as_text=False)
    if not isinstance(content.value, dict):
        raise SpecError(
            f"{path} holds no settings of the form KEY: VALUE.", "Write at least program, method and parameters."
        )
    spec = parse_spec(content.value, default_name=path.stem)
    refuse_lost_settings(spec, content, str(path))
    return spec


def parse_spec(content: dict[str, Any], default_name: str) -> SweepSpec:
    """Checks the content of a sweep file. Raises `SpecError`."""
    _refuse_what_only_wandb_runs(content)
    try:
        spec = SweepSpec.model_validate({"name": default_name, **content})
    except ValidationError as error:
        raise _explained(error) from error
    for name in _all_names(spec.parameters):
        if not PARAMETER_NAME.fullmatch(name):
            raise SpecError(
                f"parameters: {name!r} is not a name W&B accepts.", "Use only letters, digits, '_', '.' and '-'."
            )
    if spec.method == "random" and spec.run_cap is None:
        raise SpecError(
            "method: random would never end, because run_cap is not set.", "Write for example `run_cap: 20`."
        )
    return spec


def _choices(name: str, parameter: Parameter) -> Sequence[Any]:
    choices = parameter.choices()
    if choices is None:
        raise SpecError(
            f"parameters.{name}: a grid cannot hold every value of {parameter.form}.",
            "Use method: random with run_cap, or give values.",
        )
    return choices


def _written(number: int) -> str:
    return f"{number:,}" if number < 10**15 else f"10^{len(str(number)) - 1}"


def _all_names(parameters: dict[str, Parameter]) -> Iterator[str]:
    for name, parameter in parameters.items():
        yield name
        yield from _all_names(parameter.parameters)


def _refuse_what_only_wandb_runs(content: dict[str, Any]) -> None:
    hint = "Run `wandb sweep` and `wandb agent` on the same file."
    method = content.get("method")
    if method in ("bayes", "custom"):
        raise SpecError(f"method: {method} is not run by ecdit sweep, only grid and random.", hint)
    for key in WANDB_ONLY:
        if key in content:
            raise SpecError(f"{key} is not run by ecdit sweep.", hint)
    for name, drawn in _distributions(content.get("parameters")):
        if drawn in WANDB_ONLY_DISTRIBUTIONS:
            raise SpecError(f"parameters.{name}: distribution {drawn} is not drawn by ecdit sweep.", hint)


def _distributions(parameters: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the name and distribution of every parameter that names one, before anything is checked."""
    for name, given in parameters.items() if isinstance(parameters, dict) else ():
        if isinstance(given, dict):
            yield f"{prefix}{name}", given.get("distribution")
            yield from _distributions(given.get("parameters"), f"{prefix}{name}.")


def _explained(error: ValidationError) -> SpecError:
    """Explains the first error of a file in one line, with the path of its key.

    An unknown key comes before a missing one, of which it may be a misspelling.
    """
    first = min(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"]]
    where, key = ".".join(path), path[-1] if path else ""
    if first["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {"metric": SweepMetric, "parameters": Parameter}
        known = models.get(path[0], SweepSpec).model_fields
        return SpecError(f"{where} is not a key of a W&B sweep.", did_you_mean(key, known))
    if first["type"] == "missing":
        return SpecError(f"{where} is missing.", f"Add `{key}:` to the sweep file.")
    if where == "program":
        return SpecError(f"program: '{shown(str(first['input']))}' is not ecdit.", "Write `program: ecdit`.")
    if path[:1] == ["parameters"] and first["type"] in ("model_type", "dict_type", "list_type"):
        return _misshapen(path, first["input"])
    if first["type"] == "too_short":
        return SpecError(f"{where}: it is empty.", f"Give at least one {'name' if key == 'parameters' else 'value'}.")
    message = first["msg"].removeprefix("Value error, ")
    return SpecError(f"{where}: {message}.", "See the shipped specs for the form.")


def _misshapen(path: Sequence[str], given: Any) -> SpecError:
    """Explains what stands in place of a parameter, of its list or of the mapping of all parameters."""
    key, text, where = path[-1], shown(str(given)), ".".join(path)
    if key == "parameters" and len(path) % 2:
        return SpecError(f"{where} holds no names.", "Write for example `seed: {values: [0, 1]}` below it.")
    if len(path) % 2:  # a key of one parameter
        return SpecError(f"{where}: {text} is not a list.", f"Write `{key}: [{text}]`.")
    name = ".".join(path[1::2])
    if given is None or given == []:
        return SpecError(f"parameters: {name} has no value.", f"Write `{key}: {{value: ...}}`.")
    if isinstance(given, list):
        return SpecError(f"parameters: {name} is a list.", f"Write `{key}: {{values: {text}}}`.")
    return SpecError(f"parameters: {name} is a bare value.", f"Write `{key}: {{value: {text}}}`.")
