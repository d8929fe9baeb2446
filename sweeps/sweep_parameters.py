"""One parameter of a sweep file: a constant, a list, a range or a distribution, in W&B's form.

Every distribution is drawn by its inverse from one number in [0, 1), so that a draw depends on the seed only: of
Python's generators only `random()` is guaranteed to give the same numbers in every version. Names, defaults and the
meaning of `q` are W&B's (docs.wandb.ai/models/sweeps/sweep-config-keys). `spec.py` combines parameters.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from experiments.config.values import shown
from experiments.config.yaml_file import KeyPath

MAX_NUMBER = 1e18
"""The largest absolute number in a parameter; no setting takes a larger one."""
MAX_EXPONENT = 100.0
"""The largest exponent of e in `log_uniform` and `log_normal`, whose numbers are logarithms."""
MAX_MULTIPLES = 10**15
"""The largest number of multiples of `q`: up to here they are exact as floats."""
LEAST_Q = 1e-30


def _bounded(value: Any) -> Any:
    """Returns a number as YAML gives it, also from text, because `1e-4` is text in YAML 1.1."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value} is not a number")
    number = float(value) if isinstance(value, str) else value
    if not -MAX_NUMBER <= number <= MAX_NUMBER:
        raise ValueError(f"{shown(str(value))} is not a number between -{MAX_NUMBER:g} and {MAX_NUMBER:g}")
    return number


Number = Annotated[int | float, BeforeValidator(_bounded)]
Mean = Annotated[float, BeforeValidator(_bounded)]
Spread = Annotated[float, Field(ge=0), BeforeValidator(_bounded)]
Quantum = Annotated[float, Field(gt=0), BeforeValidator(_bounded)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_bounded)]
Distribution = Literal[
    "constant",
    "categorical",
    "categorical_w_probabilities",
    "int_uniform",
    "uniform",
    "q_uniform",
    "log_uniform",
    "q_log_uniform",
    "log_uniform_values",
    "q_log_uniform_values",
    "normal",
    "q_normal",
    "log_normal",
    "q_log_normal",
]
BOUNDED = ("min", "max")
SPREAD = ("mu", "sigma")


MOST_SIGMAS = 8.3
"""The largest distance from the mean, in standard deviations, that a float in [0, 1) can select."""


class Closed(BaseModel):
    """A part of a sweep file: it is frozen, and refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Parameter(Closed):
    """One setting: a constant, a list, a range, a distribution, or a group of further parameters."""

    value: Any = None
    values: list[Any] = Field([], min_length=1)
    probabilities: list[Share] = Field([], min_length=1)
    min: Number = 0
    max: Number = 0
    mu: Mean = 0.0
    sigma: Spread = 1.0
    q: Quantum = 1.0
    distribution: Distribution | None = None
    parameters: dict[str, Parameter] = Field({}, min_length=1)

    @model_validator(mode="after")
    def _one_form(self) -> Parameter:
        given = self.model_fields_set - {"distribution"}
        if not given and self.distribution is None:
            raise ValueError("give one of value, values, min with max, a distribution, or parameters")
        if given == {"parameters"} and self.distribution is None:
            return self
        needed, optional = KEYS[self.form]
        if not set(needed) <= given or not given <= {*needed, *optional}:
            raise ValueError(
                f"{self.form} takes {_listed(needed, optional)}, not {' and '.join(sorted(given)) or 'none'}"
            )
        self._check_numbers()
        return self

    @property
    def form(self) -> Distribution:
        """Returns the distribution, inferred as W&B does where the file does not name one."""
        given = self.model_fields_set
        if self.distribution is not None:
            return self.distribution
        if "value" in given:
            return "constant"
        if "values" in given:
            return "categorical_w_probabilities" if "probabilities" in given else "categorical"
        return "int_uniform" if isinstance(self.min, int) and isinstance(self.max, int) else "uniform"

    def choices(self) -> Sequence[Any] | None:
        """Returns every value of this parameter, as a range where there are many; None if they are infinite."""
        if self.form == "int_uniform":
            return range(int(self.min), int(self.max) + 1)
        if self.form == "constant":
            return [self.value]
        return self.values if self.form.startswith("categorical") else None

    def draw(self, position: float) -> Any:
        """Returns the quantile at `position` in [0, 1): the value below which that share of all draws lies."""
        if self.form == "categorical_w_probabilities":
            ends = list(itertools.accumulate(self.probabilities))
            return self.values[min(bisect.bisect_right(ends, position * ends[-1]), len(ends) - 1)]
        choices = self.choices()
        if choices is not None:
            return choices[min(math.floor(position * len(choices)), len(choices) - 1)]
        drawn = INVERSES[self.form.removeprefix("q_")](self, position)
        return _quantized(drawn, self.q) if self.form.startswith("q_") else drawn

    def _check_numbers(self) -> None:
        if "min" in self.model_fields_set and self.min >= self.max:
            raise ValueError(f"min {self.min} is not less than max {self.max}")
        if self.form == "int_uniform" and not (isinstance(self.min, int) and isinstance(self.max, int)):
            raise ValueError("min and max of int_uniform are whole numbers")
        if self.form.endswith("log_uniform_values") and self.min <= 0:
            raise ValueError(f"min {self.min} of {self.form} is not positive")
        if "probabilities" in self.model_fields_set and (
            len(self.probabilities) != len(self.values) or not math.isclose(sum(self.probabilities), 1, abs_tol=1e-6)
        ):
            raise ValueError("probabilities are one for each of values, and sum to 1")
        self._check_range()

    def _check_range(self) -> None:
        """Checks that all draws are finite, and that `q` cuts their range into more than one and not too many steps."""
        if self.form.removeprefix("q_") not in ENDS:
            return
        low, high = ENDS[self.form.removeprefix("q_")](self)
        if "log" in self.form and not self.form.endswith("values") and max(-low, high) > MAX_EXPONENT:
            raise ValueError(
                f"{self.form} takes logarithms, of at most {MAX_EXPONENT:g}: e to the power of {max(-low, high):g} is "
                "no setting; log_uniform_values takes the values themselves"
            )
        if self.form.startswith("q_"):
            ends = (math.exp(low), math.exp(high)) if self.form in ("q_log_uniform", "q_log_normal") else (low, high)
            if self.q < LEAST_Q or max(map(abs, ends)) / self.q > MAX_MULTIPLES:
                raise ValueError(f"q {self.q:g} is too small for values as large as {max(map(abs, ends)):g}")
            if "max" in self.model_fields_set and self.q > ends[1] - ends[0]:
                raise ValueError(f"q {self.q:g} is more than the range from {ends[0]:g} to {ends[1]:g}")


def single_parameters(
    parameters: Mapping[str, Parameter], path: KeyPath = ("parameters",)
) -> Iterator[tuple[KeyPath, Parameter]]:
    """Yields every parameter that is no group of further ones, with the path of its key in the file."""
    for name, parameter in parameters.items():
        if parameter.parameters:
            yield from single_parameters(parameter.parameters, (*path, name, "parameters"))
        else:
            yield (*path, name), parameter


def _quantized(drawn: float, q: float) -> Number:
    """Returns the multiple of `q` that is nearest to `drawn`, as a whole number where `q` is one."""
    multiple = round(drawn / q)
    return multiple * int(q) if float(q).is_integer() else float(f"{multiple * q:.12g}")


def _between(low: float, high: float, position: float) -> float:
    return low + position * (high - low)


def _normal(parameter: Parameter, position: float) -> float:
    """Returns the normal quantile. Position 0, whose quantile is infinite, is moved to 2^-54."""
    if parameter.sigma == 0:
        return parameter.mu
    return NormalDist(parameter.mu, parameter.sigma).inv_cdf(max(position, 2.0**-54))


def _log_values(parameter: Parameter, position: float) -> float:
    drawn = math.exp(_between(math.log(parameter.min), math.log(parameter.max), position))
    return min(max(drawn, float(parameter.min)), float(parameter.max))


ENDS: dict[str, Callable[[Parameter], tuple[float, float]]] = {
    **dict.fromkeys(("uniform", "log_uniform", "log_uniform_values"), lambda parameter: (parameter.min, parameter.max)),
    **dict.fromkeys(
        ("normal", "log_normal"),
        lambda parameter: (
            parameter.mu - MOST_SIGMAS * parameter.sigma,
            parameter.mu + MOST_SIGMAS * parameter.sigma,
        ),
    ),
}
"""The smallest and the largest value of a distribution; for a normal one those that float positions can reach."""

INVERSES: dict[str, Callable[[Parameter, float], float]] = {
    "uniform": lambda parameter, position: _between(parameter.min, parameter.max, position),
    "log_uniform": lambda parameter, position: math.exp(_between(parameter.min, parameter.max, position)),
    "log_uniform_values": _log_values,
    "normal": _normal,
    "log_normal": lambda parameter, position: math.exp(_normal(parameter, position)),
}
"""The quantile function of each distribution. `log_uniform` takes exponents, `log_uniform_values` the values."""

KEYS: dict[Distribution, tuple[Sequence[str], Sequence[str]]] = {
    "constant": (["value"], []),
    "categorical": (["values"], []),
    "categorical_w_probabilities": (["values", "probabilities"], []),
    "int_uniform": (BOUNDED, []),
    "uniform": (BOUNDED, []),
    "q_uniform": (BOUNDED, ["q"]),
    "log_uniform": (BOUNDED, []),
    "q_log_uniform": (BOUNDED, ["q"]),
    "log_uniform_values": (BOUNDED, []),
    "q_log_uniform_values": (BOUNDED, ["q"]),
    "normal": ([], SPREAD),
    "q_normal": ([], [*SPREAD, "q"]),
    "log_normal": ([], SPREAD),
    "q_log_normal": ([], [*SPREAD, "q"]),
}
"""The keys that each distribution requires, and those that it may have."""


def _listed(needed: Sequence[str], optional: Sequence[str]) -> str:
    return " and ".join(needed) + (f" (and perhaps {', '.join(optional)})" if optional else "")
