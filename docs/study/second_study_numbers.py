"""Makes the numbers of the second study that the README says, from second-study-tests.csv and the tables of runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from second_study_results import CONTRADICTED, DATA, NUM_SEEDS, SUPPORTED, WIDTH, rankings, read_runs

FOLDER = Path(__file__).parent
DENSE = "Dense (same activated)"
EXPERTS = "(8E"
"""Part of the name of an arm with the number of experts that both data sets have."""
HALF = "1. Half of dense's images"


def values() -> Iterator[tuple[str, str]]:
    """Yields the name and the text of every number."""
    tests, runs = pd.read_csv(FOLDER / "second-study-tests.csv"), read_runs(FOLDER / "second")
    largest = runs[WIDTH].max()
    yield "second.runs", f"{len(runs):,}"
    yield "second.width", str(largest)
    for data in DATA:
        yield f"second.{data}.seeds", f"{runs.loc[runs['data'] == data, 'seed'].nunique()} of {NUM_SEEDS}"
    savings = tests[tests["claim"].isin(["images", "FLOPs", "seconds"]) & tests["at"].str.startswith("width")]
    yield "second.savings", str(len(savings))
    yield "second.supported", _number((savings["verdict"] == SUPPORTED).sum())
    yield "second.supported-in", _axes(savings[savings["verdict"] == SUPPORTED])
    yield "second.contradicted-in", _axes(savings[savings["verdict"] == CONTRADICTED])
    yield "second.contradicted", _number((savings["verdict"] == CONTRADICTED).sum())
    at_largest = savings[savings["at"] == f"width {largest}"]
    routed = at_largest[at_largest["arm"].str.contains(EXPERTS, regex=False)]
    for (data, claim), rows in routed[routed["claim"] != "FLOPs"].groupby(["data", "claim"]):
        yield f"second.{data}.{claim}", f"{rows['value'].min():.2f} to {rows['value'].max():.2f}"
    dense = at_largest[(at_largest["arm"] == DENSE) & (at_largest["claim"] == "images")]
    for data, saving in dense.set_index("data")["value"].items():
        yield f"second.{data}.dense-images", f"{saving:.2f}"
    fastest = routed[routed["claim"] == "seconds"].pivot_table(index="arm", columns="data", values="value")
    best = fastest.prod(axis="columns").idxmax()
    yield "second.fastest", _arm_in_words(best)
    for data in DATA:
        yield f"second.{data}.fastest", f"{fastest.loc[best, data]:.2f}"
    halves = tests[tests["claim"] == HALF]
    yield "second.halves", str(len(halves))
    yield "second.halves-contradicted", _number((halves["verdict"] == CONTRADICTED).sum())
    yield "second.halves-supported", _number((halves["verdict"] == SUPPORTED).sum())
    taus = [each.tau for each in rankings(runs)]
    yield "second.tau", f"{min(taus):.2f} to {max(taus):.2f}"


def _number(count: int) -> str:
    return str(count) if count else "none"


def _axes(savings: pd.DataFrame) -> str:
    """In what the savings are counted: images, or FLOPs and seconds."""
    return " and ".join(name for name in ("images", "FLOPs", "seconds") if name in set(savings["claim"]))


def _arm_in_words(arm: str) -> str:
    """The arm inside a sentence, without the number of experts: Expert choice (8E, f_c 1) is expert choice, f_c 1."""
    name, details = re.fullmatch(r"(.+) \(8E,?\s?(.*)\)", arm).groups()  # type: ignore[union-attr]
    return ", ".join(filter(None, (name[0].lower() + name[1:], details and f"`{details.replace(' ', ' = ')}`")))


TABLES: dict[str, Callable[[], Iterator[str]]] = {}
