"""The power laws through iso-FLOP minima: how the best size N* and the best training D* grow with compute C.

The laws are straight lines in logarithms, fitted by least squares (Hoffmann et al. 2022, arXiv 2203.15556, section
3.2). The interval of an exponent is Student's interval of that regression over budgets. Each budget has its own
configurations, so the scatter of the minima about the law contains the errors of configurations and of seeds. An
interval over seeds alone would be too narrow: the seeds of one configuration share its error, so more of them would
narrow the interval without any new information about that error.

A second interval, `exponent_cells_low` to `exponent_cells_high`, carries the intervals of the parabolas' minima to the
exponent, which come from the scatter of configurations (cells of one size at one budget) about the parabolas. It has
more degrees of freedom and exists for two budgets too, but it trusts that the minima follow a power law. The minima of
the parametric law follow from one fit and share its errors, so neither interval holds for their exponents; the laws of
`laws/` have those of alpha and beta. Neither holds where budgets share trunks either, as the errors of their minima are
then those of the same trainings.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import linregress
from scipy.stats import t as student_t

METHOD = "parametric"
"""The method whose minima follow from one law for all budgets."""
QUANTITIES = {"params": "best size N*", "images": "best training D*"}
MIN_BUDGETS = 2
ENDS = (("low", -1), ("high", 1))
COLUMNS = [
    "study", "arm", "method", "quantity", "factor", "exponent", "exponent_low", "exponent_high",
    "exponent_cells_low", "exponent_cells_high", "num_budgets",
]  # fmt: skip
NUMBERS = ("factor", "exponent", "exponent_low", "exponent_high", "exponent_cells_low", "exponent_cells_high")


def laws_of_minima(minima: pd.DataFrame, of_trunks: Collection[tuple[str, str]] = ()) -> tuple[pd.DataFrame, list[str]]:
    """Returns the laws with `COLUMNS`, one for each study, arm, method and quantity, and a line for each refused law.

    Minima at the edge of the sizes are not used, and two inner minima are needed. An exponent has no interval with two
    budgets, because a line through two points leaves no residual, and none in the studies and arms `of_trunks`, whose
    budgets share trunks. A law that falls with compute is refused, because the best size and the best number of images
    grow with compute.
    """
    inner = minima[~minima["is_edge"].astype(bool)]
    by_law = inner.groupby(["study", "arm", "method"], sort=False)
    rows = [
        row
        for key, points in by_law
        if len(points) >= MIN_BUDGETS
        for row in _laws(key, points, key[2] != METHOD and key[:2] not in of_trunks)
    ]
    laws = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(NUMBERS, "float64"))
    falls = laws["exponent"] < 0
    return laws[~falls].reset_index(drop=True), [_refusal(law) for law in laws[falls].to_dict("records")]


def _laws(key: tuple[Hashable, ...], points: pd.DataFrame, are_independent: bool) -> Iterator[dict[str, object]]:
    """Yields the laws of one study, arm and method; intervals need minima that err independently of each other."""
    about = dict(zip(("study", "arm", "method"), key, strict=True))
    log_flops = np.log(points["flops"].to_numpy(float))
    for quantity in QUANTITIES:
        line = linregress(log_flops, np.log(points[quantity].to_numpy(float)))
        half = _half_width(line.stderr, len(points) - 2) if are_independent else None
        row = {**about, "quantity": quantity, "factor": math.exp(line.intercept), "exponent": line.slope}
        row |= {f"exponent_{end}": None if half is None else line.slope + sign * half for end, sign in ENDS}
        wide = _half_width_over_cells(log_flops, points, quantity) if are_independent else None
        row |= {f"exponent_cells_{end}": None if wide is None else line.slope + sign * wide for end, sign in ENDS}
        yield row | {"num_budgets": len(points)}


def _half_width_over_cells(log_flops: NDArray[np.float64], points: pd.DataFrame, quantity: str) -> float | None:
    """Returns half of the exponent's interval by the intervals of the minima, or None where one of them has none.

    The slope is a sum of the logarithms of the minima with the weights (x - mean x) / sum (x - mean x)^2. All minima of
    an arm share the degrees of freedom of their scatter, so half-widths add like standard errors.
    """
    if f"{quantity}_low" not in points or points[f"{quantity}_low"].isna().any():
        return None
    halves = np.log(points[f"{quantity}_high"].to_numpy(float) / points[f"{quantity}_low"].to_numpy(float)) / 2
    centred = log_flops - log_flops.mean()
    return float(np.sqrt(((centred * halves) ** 2).sum()) / (centred**2).sum())


def _half_width(standard_error: float, degrees_of_freedom: int) -> float | None:
    """Returns half of the 95% interval by Student's t, or None without a degree of freedom."""
    return float(student_t.ppf(0.975, degrees_of_freedom) * standard_error) if degrees_of_freedom > 0 else None


def _refusal(law: dict[Hashable, Any]) -> str:
    arm = f"{law['arm']}, {law['study']}" if law["study"] else law["arm"]
    fall = f"the {QUANTITIES[law['quantity']]} falls with compute (exponent {law['exponent']:.2f}, {law['method']})"
    return f"{arm}: {fall}, which no training does; the law is refused."
