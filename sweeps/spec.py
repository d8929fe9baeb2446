"""Sweep files: W&B's format, read, checked and expanded to combinations of settings.

The same YAML runs under `ecdit sweep` and under `wandb agent`, so a value reaches a run here exactly as the agent would
pass it: as `name=value` in Python spelling. Keys follow W&B's sweep configuration reference
(docs.wandb.ai/models/sweeps/sweep-config-keys), which knows no keys of ours: what only ecdit has stands among the
parameters under `ecdit.` (`experiments/config/designs.py` says what it means to a run). What one parameter can be is in
`parameters.py`; turning settings into configs is left to `planner.py`.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, PositiveInt, ValidationError

from experiments.config.designs import SEED
from experiments.errors import SpecError, did_you_mean
from sweeps.parameters import Closed, Parameter

SHIPPED = Path(__file__).parent
"""Where the specs that come with the package lie."""

ARGUMENTS = "${args_no_hyphens}"
COMMAND = ["${env}", "ecdit", "train", ARGUMENTS]
WANDB_ONLY = ("early_terminate", "controller", "scheduler", "metrics", "job", "image_uri")
WANDB_ONLY_DISTRIBUTIONS = ("beta", "q_beta", "inv_log_uniform", "inv_log_uniform_values")
MAX_RUNS = 100_000
"""A larger grid is taken for a slip."""

PARAMETER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


class Metric(Closed):
    """What the sweep is judged by; a grid only records it."""

    name: str
    goal: Literal["minimize", "maximize"] = "minimize"
    target: float | None = None
    impute: Literal["latest", "best", "worst"] | None = None
    impute_while_running: Literal["latest", "best", "worst", "false"] | None = None


class SweepSpec(Closed):
    """A sweep file; `name` falls back to the name of the file."""

    program: Literal["ecdit"]
    method: Literal["grid", "random"]
    parameters: dict[str, Parameter] = Field(min_length=1)
    command: list[str] = COMMAND
    metric: Metric | None = None
    name: str
    description: str | None = None
    run_cap: PositiveInt | None = None
    project: str | None = None
    entity: str | None = None
    apiVersion: str | None = None
    kind: Literal["sweep"] | None = None

    def fixed_settings(self) -> list[str]:
        """`KEY=VALUE` words that `command` carries, given to every run before the parameters."""
        words = [word for word in self.command if word != "${env}"]
        settings = [word for word in words[2:] if word != ARGUMENTS]
        if words[:2] != ["ecdit", "train"] or ARGUMENTS not in words or not all("=" in word for word in settings):
            raise SpecError(f"command: {self.command} is not a call of ecdit train.", f"Write command: {COMMAND}.")
        mirror = {"wandb.project": self.project, "wandb.entity": self.entity}
        return [f"{key}={value}" for key, value in mirror.items() if value is not None] + settings

    def combinations(self, replaced: Collection[str] = (), seed: int | None = None) -> Iterator[list[str]]:
        """The settings of each run as `name=value`, without the parameters named in `replaced`.

        A grid is in W&B's order: parameters by name, the last one fastest; `run_cap` keeps the first ones. Random draws
        have no end: whoever takes them stops at `run_cap` runs. They follow from `seed` (default: `ecdit.seed` of the
        file, else 0) in every process and version; a parameter that is added or replaced does not change the others.
        """
        return self._grid(replaced) if self.method == "grid" else self._draws(replaced, seed)

    def _grid(self, replaced: Collection[str]) -> Iterator[list[str]]:
        grid: dict[str, Sequence[Any]] = {}
        for name, parameter in self._leaves().items():
            if name not in replaced:
                grid[name] = _choices(name, parameter)
        num_runs = math.prod(len(choices) for choices in grid.values())
        if num_runs > MAX_RUNS and self.run_cap is None:
            raise SpecError(f"parameters: the grid has {num_runs:,} runs.", "Shorten the lists, or set run_cap.")
        products = itertools.product(*grid.values())
        for values in itertools.islice(products, self.run_cap):
            yield [f"{name}={value}" for name, value in zip(grid, values, strict=True)]

    def _draws(self, replaced: Collection[str], seed: int | None) -> Iterator[list[str]]:
        leaves = self._leaves()
        seed = self._seed(leaves) if seed is None else seed
        sources = {name: random.Random(f"{seed}/{name}") for name in leaves}  # of its own: none moves another
        while True:
            drawn = {name: parameter.draw(sources[name].random()) for name, parameter in leaves.items()}
            yield [f"{name}={value}" for name, value in drawn.items() if name not in replaced]

    def _seed(self, leaves: dict[str, Parameter]) -> int:
        """Of the draws: the constant `ecdit.seed`, 0 unless given."""
        seed = leaves[SEED].value if SEED in leaves else 0
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise SpecError(f"parameters: {SEED} is not one whole number.", f"Write `{SEED}: {{value: 1}}`.")
        return seed

    def _leaves(self) -> dict[str, Parameter]:
        """Every parameter by its dotted name, sorted."""
        leaves: dict[str, Parameter] = {}
        for name, parameter in _flatten(self.parameters):
            if name in leaves:
                raise SpecError(f"parameters: {name} is given twice.", "Keep the dotted or the nested one.")
            leaves[name] = parameter
        return dict(sorted(leaves.items()))


def shipped_specs() -> list[str]:
    """Names of the specs that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def find_spec(name_or_path: str) -> Path:
    """The file of a shipped spec or at a path; a `SpecError` with the closest name when there is neither."""
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if not path.is_file():
            raise SpecError(f"{path} does not exist.", f"Shipped sweeps: {', '.join(shipped_specs())}.")
        return path
    if name_or_path not in shipped_specs():
        raise SpecError(f"{name_or_path!r} is not a sweep.", did_you_mean(name_or_path, shipped_specs()))
    return SHIPPED / f"{name_or_path}.yaml"


def load_spec(name_or_path: str) -> SweepSpec:
    """Read and check a sweep file; a `SpecError` names the key that is wrong."""
    path = find_spec(name_or_path)
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise SpecError(f"{path} is not YAML: {detail}.", "Correct it, or start from a shipped spec.") from error
    if not isinstance(content, dict):
        raise SpecError(f"{path} holds no keys.", "Write at least program, method and parameters.")
    return parse_spec(content, default_name=path.stem)


def parse_spec(content: dict[str, Any], default_name: str) -> SweepSpec:
    """Check the content of a sweep file. Raises `SpecError`."""
    _refuse_what_only_wandb_runs(content)
    try:
        spec = SweepSpec.model_validate({"name": default_name, **content})
    except ValidationError as error:
        raise _explained(error) from error
    for name in _all_names(spec.parameters):
        if not PARAMETER_NAME.fullmatch(name):
            raise SpecError(f"parameters: {name!r} is not a name W&B accepts.", "Letters, digits, '_', '.', '-' only.")
    if spec.method == "random" and spec.run_cap is None:
        raise SpecError("method: random has no end without run_cap.", "Write for example `run_cap: 20`.")
    return spec


def _choices(name: str, parameter: Parameter) -> Sequence[Any]:
    choices = parameter.choices()
    if choices is None:
        raise SpecError(
            f"parameters.{name}: a grid cannot hold every value of {parameter.form}.",
            "Use method: random with run_cap, or give values.",
        )
    return choices


def _flatten(parameters: dict[str, Parameter], prefix: str = "") -> Iterator[tuple[str, Parameter]]:
    for name, parameter in parameters.items():
        if parameter.parameters:
            yield from _flatten(parameter.parameters, f"{prefix}{name}.")
        else:
            yield prefix + name, parameter


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
    """(name, distribution) of every parameter that names one, before anything is checked."""
    for name, given in parameters.items() if isinstance(parameters, dict) else ():
        if isinstance(given, dict):
            yield f"{prefix}{name}", given.get("distribution")
            yield from _distributions(given.get("parameters"), f"{prefix}{name}.")


def _explained(error: ValidationError) -> SpecError:
    """The first thing wrong in a file, in one line with the path of its key."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where, key = ".".join(path), path[-1] if path else ""
    if first["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {"metric": Metric, "parameters": Parameter}
        known = models.get(path[0], SweepSpec).model_fields
        return SpecError(f"{where} is not a key of a W&B sweep.", did_you_mean(key, known))
    if first["type"] == "missing":
        return SpecError(f"{where} is missing.", f"Add `{key}:` to the sweep file.")
    if where == "program":
        return SpecError(f"program: {first['input']!r} is not ecdit.", "Write `program: ecdit`.")
    message = first["msg"].removeprefix("Value error, ")
    return SpecError(f"{where}: {message}.", "See the shipped specs for the form.")
