"""The best size at a budget by the joint parametric law, beside parabolas and Akima's interpolation.

This is approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3): L = E + A / N^alpha + B / D^beta is fitted
to all configurations of an arm, and its lowest loss is searched among the sizes that one budget of training FLOPs buys.
The law shares its parameters between budgets, where approach 2 fits each budget by itself, so the two err differently,
and their disagreement says how far a best size depends on the method. Intervals are over resampled configurations, each
with all its seeds (`laws/bootstrap.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.isoflop_laws import METHOD
from analysis.laws.bootstrap import bootstrap, estimate
from analysis.laws.fit import FitError
from analysis.laws.forms import CHINCHILLA
from analysis.laws.identify import identified_fit
from analysis.laws.observations import observe
from analysis.load_records import MissingDataError

NUM_SIZES = 401
"""The number of sizes between the smallest and the largest at which the law is evaluated; a step is below 1%."""
NUM_RESAMPLES = 100

Floats = NDArray[np.float64]


class SizesOfBudget(NamedTuple):
    """The sizes that one budget buys: logarithms of the parameters, ascending, and of the images of each."""

    flops: float
    log_params: Floats
    log_images: Floats


def parametric_minima(
    runs: pd.DataFrame, size: str, budgets: Sequence[SizesOfBudget], num_resamples: int = NUM_RESAMPLES
) -> list[dict[str, Any]]:
    """Returns a row for each budget with the columns of `isoflop_minima.IsoFlop.minima` that the law determines.

    Raises `MissingDataError` where the runs do not identify the law, and `FitError` where its search does not converge.
    """
    resamples = bootstrap(identified_fit(CHINCHILLA, observe(runs, {"N": size, "D": "images_seen"})), num_resamples)
    wide = resamples.wide_laws
    rows = []
    for budget in budgets:
        log_params = np.linspace(budget.log_params[0], budget.log_params[-1], NUM_SIZES)
        log_images = np.interp(log_params, budget.log_params, budget.log_images)
        values = {"N": np.exp(log_params), "D": np.exp(log_images)}
        loss = resamples.fit.predict(values)
        best = int(loss.argmin())
        at = [int(CHINCHILLA.loss(values, law).argmin()) for law in wide]
        is_edge = best in (0, NUM_SIZES - 1)
        row: dict[str, Any] = {"flops": budget.flops, "method": METHOD, "loss": float(loss[best]), "is_edge": is_edge}
        for name, logs in (("params", log_params), ("images", log_images)):
            ends = estimate(0.0, np.exp(logs[at]))
            row[name] = float(np.exp(logs[best]))
            row |= {f"{name}_low": None, f"{name}_high": None}
            row |= {} if is_edge else {f"{name}_low": ends.low, f"{name}_high": ends.high}
        rows.append(row)
    return rows


def parametric_or_refusal(
    runs: pd.DataFrame, size: str, budgets: Sequence[SizesOfBudget]
) -> tuple[list[dict[str, Any]], str]:
    """Returns the `parametric_minima` and an empty text, or no rows and the reason why there are none."""
    try:
        return parametric_minima(runs, size, budgets), ""
    except (MissingDataError, FitError) as error:
        return [], f"no parametric minimum: {str(error).rstrip('.')}."


def disagreements(minima: pd.DataFrame) -> pd.DataFrame:
    """Returns a row per profile with at least two inner minima: `study`, `arm`, `flops`, `methods`, `factor`.

    `factor` is the largest of the best sizes N* that the methods find over the smallest; 1 is full agreement.
    """
    inner = minima[~minima["is_edge"].astype(bool)]
    groups = inner.groupby(["study", "arm", "flops"], sort=False)
    rows = [_disagreement(key, found) for key, found in groups if len(found) > 1]
    return pd.DataFrame(rows, columns=["study", "arm", "flops", "methods", "factor"])


def _disagreement(key: tuple[Hashable, ...], found: pd.DataFrame) -> dict[str, Any]:
    factor = float(found["params"].max() / found["params"].min())
    methods = ", ".join(found["method"])
    return {**dict(zip(("study", "arm", "flops"), key, strict=True)), "methods": methods, "factor": factor}


def disagreement_text(found: pd.DataFrame, laws: pd.DataFrame) -> str:
    """Says by which factor the best sizes of one arm differ between methods, and each method's exponent of N*."""
    worst = found["factor"].max()
    names = list(dict.fromkeys(name for methods in found["methods"] for name in methods.split(", ")))
    text = f"N* by {', '.join(names)} differs by a factor of {worst:.2f} at most over {len(found)} budgets"
    sizes = laws[laws["quantity"] == "params"]
    if len(sizes) > 1:
        exponents = ", ".join(f"{law['method']} {law['exponent']:.2f}" for law in sizes.to_dict("records"))
        spread = sizes["exponent"].max() - sizes["exponent"].min()
        text += f"; exponents {exponents}, {spread:.2f} apart"
    return f"{text}."
