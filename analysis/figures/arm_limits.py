"""Limits a figure to the best setups and arms, and writes a sentence about those that it leaves out.

Most figures draw a row of panels for each setup and a line for each arm. A search over 120 learning rates would make
a picture of 66,000 pixels that no page holds, and a legend of 100 arms would cover its panels and repeat its line
styles. `within_limits` keeps the setups with the lowest validation loss and the best arms of each router, in time
that grows linearly with the runs. Figures that fit laws show those under the best conditions (`laws/families.py`), and
those that choose few runs themselves are not limited, as the registry says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.panels import write_foot
from analysis.laws.families import best_conditions
from analysis.router_looks import DASHES
from analysis.scores import study_of
from analysis.style import FILLS
from experiments.text import agreeing

MOST_SETUPS = 8
"""The most setups in one figure, each of which is a row of panels of about 2 inches."""

MOST_ARMS_OF_A_ROUTER = min(len(DASHES), len(FILLS))
"""There are as many line styles and fills of a marker, so that no two arms of one router look the same."""

Limit = Literal["setups", "arms", "conditions"]
ALL_LIMITS: tuple[Limit, ...] = ("setups", "arms")
BASELINES = frozenset({"dense_same_depth", "dense_same_active"})
WHERE_THE_REST_IS = "Name the folders of single runs to draw them; `ecdit export` writes the numbers of all runs."


class Shown(NamedTuple):
    """The rows of a table that one figure shows, and sentences about what it leaves out, if anything."""

    table: pd.DataFrame
    notes: tuple[str, ...]


def within_limits(table: pd.DataFrame, limits: Sequence[Limit]) -> Shown:
    """Returns the rows of the best setups and arms of a run table.

    Where arms are left out, `variant` is numbered anew among those that stay, so that their line styles differ.
    """
    notes = []
    if "conditions" in limits:
        table, note = best_conditions(table)
        notes += [note] if note else []
    if "setups" in limits and table["setup"].nunique() > MOST_SETUPS:
        table, note = _best_setups(table)
        notes.append(note)
    if "arms" in limits and _num_arms(table).max() > MOST_ARMS_OF_A_ROUTER:
        table, note = _best_arms(table)
        notes.append(note)
    return Shown(table, (*notes, WHERE_THE_REST_IS) if notes else ())


def write_notes(figure: Figure, notes: Iterable[str]) -> None:
    """Adds `notes` below what the foot of the figure already says."""
    if notes:
        write_foot(figure, [*figure.get_supxlabel().splitlines(), *notes])


def _best_setups(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Keeps whole studies, best first, while their setups fit, and at least the best setups of the best study.

    The sizes of a study are setups that a figure joins by a line, so they are kept together where possible.
    """
    lowest = table.groupby("setup", sort=False)["val_loss"].min().sort_values(kind="stable")
    presets = table.drop_duplicates("setup").set_index("setup")["model.name"]
    studies: dict[str, list[str]] = {}
    for setup in lowest.index:
        studies.setdefault(study_of(str(setup), str(presets[setup])), []).append(str(setup))
    kept: list[str] = []
    for setups in studies.values():
        if not kept or len(kept) + len(setups) <= MOST_SETUPS:
            kept += setups[:MOST_SETUPS]
    left_out = lowest.drop(kept)
    note = (
        f"Shown are the {len(kept)} of {len(lowest)} setups with the lowest validation loss, {_range(lowest[kept])}; "
        f"the others reach {_range(left_out)}."
    )
    return table[table["setup"].isin(kept)].reset_index(drop=True), note


def _best_arms(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Keeps the baselines and, of each router, the arms with the lowest mean loss."""
    arms = table.groupby("arm", sort=False).agg(
        router=("routing.name", "first"),
        kind=("arm_kind", "first"),
        variant=("variant", "first"),
        loss=("val_loss", "mean"),
    )
    arms["is_other"] = ~arms["kind"].isin(BASELINES)
    ranked = arms.sort_values(["is_other", "loss"], kind="stable")
    kept = ranked[ranked.groupby("router").cumcount() < MOST_ARMS_OF_A_ROUTER].sort_values("variant", kind="stable")
    variant = kept.groupby("router").cumcount()
    shown = table[table["arm"].isin(kept.index)]
    left_out = arms["loss"].drop(kept.index)
    note = (
        f"Shown {agreeing(len(kept), 'is', 'are')} {len(kept)} of {len(arms)} arms: of each "
        f"router at most {MOST_ARMS_OF_A_ROUTER}, those with the "
        f"lowest mean validation loss and the dense baselines; the others reach {_range(left_out)}."
    )
    return shown.assign(variant=shown["arm"].map(variant)).reset_index(drop=True), note


def _num_arms(table: pd.DataFrame) -> pd.Series[int]:
    return table.groupby("routing.name")["arm"].nunique()


def _range(losses: pd.Series[float]) -> str:
    ends = dict.fromkeys(f"{end:.4f}" for end in (losses.min(), losses.max()))
    return " to ".join(ends)
