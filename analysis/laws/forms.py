"""The forms of scaling laws: as printed, and as the sums of exponentials of linear functions that are fitted.

- `POWER_LAW`  L = E + A C^-a: power law with a floor in training compute C.
- `POWER_LAW_WITHOUT_FLOOR` L = A C^-a: where the data do not show a floor.
- `CHINCHILLA` L = E + A / N^alpha + B / D^beta: Hoffmann et al. 2022 (2203.15556), eq. 2.
- `ROUTED`     ln L = a ln N + b ln E^ + c ln N ln E^ + d: Clark et al. 2022 (2202.01169), eq. 1.
- `JOINT`      L = a E^^delta N^(alpha + gamma ln E^) + b E^^omega D^(beta + zeta ln E^) + c: Ludziejewski et al. 2025
  (2502.05172).

Logarithms are natural; with Clark's base 10, a and b are the same, c is c_10 / ln 10 and d is d_10 ln 10. The variables
are N parameters, D images, C training FLOPs and `experts` (E in both papers, 1 for a dense model; here E is the floor).
Which parameters N counts (activated, total, without embeddings) is decided by the column that is passed as N.
E^ is the saturated number of experts, `saturated`; the forms without `_SATURATED` in their name take E^ = E, because
few studies have the four expert counts that E_start and E_max need.

This module only defines the laws. `fit.py` fits them, and `identify.py` decides whether the data identify them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]
SATURATION = ("E_start", "E_max")


def power_law(C: ArrayLike, *, E: float, A: float, a: float) -> Values:
    """Returns L = E + A C^-a, with C in FLOPs."""
    return np.asarray(E + A * np.asarray(C, float) ** -a)


def chinchilla(N: ArrayLike, D: ArrayLike, *, E: float, A: float, B: float, alpha: float, beta: float) -> Values:
    """Returns L = E + A / N^alpha + B / D^beta (2203.15556, eq. 2)."""
    return np.asarray(E + A / np.asarray(N, float) ** alpha + B / np.asarray(D, float) ** beta)


def saturated(experts: ArrayLike, E_start: float = 1.0, E_max: float = np.inf) -> Values:
    """Returns the saturated number of experts E^ of 2202.01169, also used by 2502.05172.

    It is E_start for one expert and tends to E_max for infinitely many.

    1/E^ = 1 / (E - 1 + 1 / (1/E_start - 1/E_max)) + 1/E_max; the defaults make it E itself.
    """
    shifted = np.asarray(experts, float) - 1 + 1 / (1 / E_start - 1 / E_max)
    return 1 / (1 / shifted + 1 / E_max)


def routed(
    N: ArrayLike, experts: ArrayLike, *,
    a: float, b: float, c: float, d: float, E_start: float = 1.0, E_max: float = np.inf,
) -> Values:  # fmt: skip
    """Returns L, where ln L = a ln N + b ln E^ + c ln N ln E^ + d (2202.01169, eq. 1)."""
    n, e = np.log(np.asarray(N, float)), np.log(saturated(experts, E_start, E_max))
    return np.asarray(np.exp(a * n + b * e + c * n * e + d))


def joint(
    N: ArrayLike, D: ArrayLike, experts: ArrayLike, *,
    a: float, b: float, c: float, alpha: float, beta: float, gamma: float, delta: float, omega: float, zeta: float,
    E_start: float = 1.0, E_max: float = np.inf,
) -> Values:  # fmt: skip
    """Returns L = a E^^delta N^(alpha + gamma ln E^) + b E^^omega D^(beta + zeta ln E^) + c (2502.05172).

    The exponents alpha and beta are negative.
    """
    E_hat = saturated(experts, E_start, E_max)
    of_size = a * E_hat**delta * np.asarray(N, float) ** (alpha + gamma * np.log(E_hat))
    of_data = b * E_hat**omega * np.asarray(D, float) ** (beta + zeta * np.log(E_hat))
    return of_size + of_data + c


@dataclass(frozen=True)
class Coefficient:
    """A summand of a term's exponent: parameter (or the log of an amplitude) x sign x product of logs of variables."""

    parameter: str
    logs_of: tuple[str, ...] = ()
    sign: float = 1.0
    is_amplitude: bool = False


Term = tuple[Coefficient, ...]


@dataclass(frozen=True)
class Form:
    """A law, given twice: as `function`, and as `terms`, where L is the sum over terms of exp(sum of coefficients)."""

    name: str
    equation: str
    source: str
    function: Callable[..., Values]
    terms: tuple[Term, ...]
    min_distinct: Mapping[str, int] = field(hash=False)
    """Maps each variable to the number of different values that its parameters need, by counting unknowns."""
    exponents: tuple[str, ...] = ()
    """Parameters that must differ significantly from 0; otherwise the law says nothing about their variable."""
    floor: str | None = None
    """The parameter that is the loss in the limit of large variables; its term comes first in `terms`."""
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict, hash=False)
    """The grid of exponents from which the search starts; an exponent without an entry starts at 0."""
    is_saturated: bool = False

    @property
    def variables(self) -> tuple[str, ...]:
        """Returns the variables in the order in which `function` takes them."""
        return tuple(self.min_distinct)

    @property
    def coefficients(self) -> Term:
        """Returns the coefficients of all terms, in the order of the terms."""
        return tuple(coefficient for term in self.terms for coefficient in term)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Returns the names of the fitted parameters, in the order of the search's coordinates."""
        return tuple(each.parameter for each in self.coefficients) + (SATURATION if self.is_saturated else ())

    def loss(self, values: Mapping[str, ArrayLike], parameters: Mapping[str, float]) -> Values:
        """Returns the loss of the law at `values`, a mapping from variable to number or array."""
        return self.function(*(values[name] for name in self.variables), **parameters)

    def without_floor(self) -> Form:
        """Returns the same law with its floor fixed at 0."""
        assert self.floor is not None
        at_zero = partial(self.function, **{self.floor: 0.0})
        return replace(self, name=f"{self.name} without floor", function=at_zero, terms=self.terms[1:], floor=None)


def _amplitude(parameter: str) -> Coefficient:
    return Coefficient(parameter, is_amplitude=True)


def _steps(first: float, last: float, num: int) -> tuple[float, ...]:
    """Returns `num` values from `first` to `last` in a geometric sequence."""
    return tuple(float(value) for value in np.geomspace(first, last, num))


POWER_LAW = Form(
    name="power law in compute",
    equation="L = E + A C^-a",
    source="power law with a floor",
    function=power_law,
    terms=((_amplitude("E"),), (_amplitude("A"), Coefficient("a", ("C",), -1.0))),
    min_distinct={"C": 4},
    exponents=("a",),
    floor="E",
    grid={"a": _steps(0.01, 3.0, 60)},
)

POWER_LAW_WITHOUT_FLOOR = replace(
    POWER_LAW.without_floor(),
    equation="L = A C^-a",
    source="power law; says nothing of the loss that remains, where training was too short to see it",
    min_distinct={"C": 3},
)

CHINCHILLA = Form(
    name="parameters and images",
    equation="L = E + A / N^alpha + B / D^beta",
    source="Hoffmann et al. 2022 (2203.15556), eq. 2",
    function=chinchilla,
    terms=(
        (_amplitude("E"),),
        (_amplitude("A"), Coefficient("alpha", ("N",), -1.0)),
        (_amplitude("B"), Coefficient("beta", ("D",), -1.0)),
    ),
    min_distinct={"N": 3, "D": 3},
    exponents=("alpha", "beta"),
    floor="E",
    grid={"alpha": _steps(0.03, 2.5, 16), "beta": _steps(0.03, 2.5, 16)},
)

ROUTED = Form(
    name="routed",
    equation="ln L = a ln N + b ln E + c ln N ln E + d",
    source="Clark et al. 2022 (2202.01169), eq. 1, with E in place of the saturated number of experts",
    function=routed,
    terms=(
        (
            Coefficient("a", ("N",)),
            Coefficient("b", ("experts",)),
            Coefficient("c", ("N", "experts")),
            Coefficient("d"),
        ),
    ),
    min_distinct={"N": 2, "experts": 2},
    exponents=("a",),
)

ROUTED_SATURATED = replace(
    ROUTED,
    name="routed, saturated",
    equation="ln L = a ln N + b ln E^ + c ln N ln E^ + d",
    source="Clark et al. 2022 (2202.01169), eq. 1",
    min_distinct={"N": 2, "experts": 4},
    is_saturated=True,
)

_JOINT_GRID = {
    "alpha": tuple(-value for value in _steps(0.05, 1.5, 7)),
    "beta": tuple(-value for value in _steps(0.05, 1.5, 7)),
    "delta": (-0.3, -0.1, 0.0, 0.1),
    "omega": (-0.3, -0.1, 0.0, 0.1),
}

JOINT = Form(
    name="joint",
    equation="L = a E^delta N^(alpha + gamma ln E) + b E^omega D^(beta + zeta ln E) + c",
    source="Ludziejewski et al. 2025 (2502.05172), with E in place of the saturated number of experts",
    function=joint,
    terms=(
        (_amplitude("c"),),
        (
            _amplitude("a"),
            Coefficient("delta", ("experts",)),
            Coefficient("alpha", ("N",)),
            Coefficient("gamma", ("N", "experts")),
        ),
        (
            _amplitude("b"),
            Coefficient("omega", ("experts",)),
            Coefficient("beta", ("D",)),
            Coefficient("zeta", ("D", "experts")),
        ),
    ),
    min_distinct={"N": 3, "D": 3, "experts": 2},
    exponents=("alpha", "beta"),
    floor="c",
    grid=_JOINT_GRID,
)

JOINT_SATURATED = replace(
    JOINT,
    name="joint, saturated",
    equation="L = a E^^delta N^(alpha + gamma ln E^) + b E^^omega D^(beta + zeta ln E^) + c",
    source="Ludziejewski et al. 2025 (2502.05172)",
    min_distinct={"N": 3, "D": 3, "experts": 4},
    is_saturated=True,
)

FORMS = {
    "power-law": POWER_LAW, "power-law-without-floor": POWER_LAW_WITHOUT_FLOOR, "chinchilla": CHINCHILLA,
    "routed": ROUTED, "routed-saturated": ROUTED_SATURATED,
    "joint": JOINT, "joint-saturated": JOINT_SATURATED,
}  # fmt: skip
