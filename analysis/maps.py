"""Reads `routing_maps.jsonl` and compute maps, which record what routed layers did to which tokens.

These files are much larger than other records, so they are read for one run per router only. Where a router has several
runs, the one trained longest represents it, among those the one with most activated parameters, and then the first.

Legend: E experts, T tokens of an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import ValidationError

from analysis.arms import in_order
from analysis.load_records import MissingDataError
from experiments.errors import RecordError
from experiments.records.routing_map_row import RoutingMapRow
from experiments.records.run_folder import RunDir

Read = TypeVar("Read")

MEASURED_BY = "Measure it with: ecdit evaluate --metrics routing RUNS"
MEASURED_AGAIN_BY = "Measure it with: ecdit evaluate --metrics routing --again RUNS"
"""The command for what is missing although the values of the routing may be recorded."""


@dataclass(frozen=True)
class MappedRun:
    """The run that represents its router in a figure."""

    folder: RunDir
    router: str
    label: str

    @property
    def name(self) -> str:
        """Returns the name of the run's folder."""
        return self.folder.path.name


@dataclass(frozen=True)
class SceneMaps:
    """The rows of one measurement on true scenes, by layer and time, and how many lines could not be read."""

    run: MappedRun
    rows: tuple[RoutingMapRow, ...]
    num_damaged: int

    @property
    def layers(self) -> list[int]:
        """Lists the routed layers, first to last."""
        return sorted({row.layer for row in self.rows})

    def over_all_times(self, layer: int) -> RoutingMapRow | None:
        """Returns the row of a layer that covers all times, or None."""
        return next((row for row in self.rows if row.layer == layer and row.time is None), None)

    def by_time(self, layer: int) -> list[RoutingMapRow]:
        """Returns the rows of a layer at single times, from noise (t = 1) to image (t = 0)."""
        single = [row for row in self.rows if row.layer == layer and row.time is not None]
        return sorted(single, key=lambda row: -(row.time or 0.0))


def one_per_router(
    table: pd.DataFrame, read: Callable[[MappedRun], Read | None], what: str, measured_by: str = MEASURED_BY
) -> list[Read]:
    """Applies `read` to one run per router, expert choice first. Raises `MissingDataError` where no run has `what`."""
    order = table.sort_values(["images_seen", "params_active"], ascending=False, kind="stable")
    found: dict[str, Read] = {}
    for run, router, arm in order[["run", "routing.name", "arm"]].itertuples(index=False, name=None):
        if router != "dense" and router not in found:
            content = read(MappedRun(RunDir(Path(run)), router, arm))
            if content is not None:
                found[router] = content
    if not found:
        raise MissingDataError(f"No run has {what}.", measured_by)
    return [found[router] for router in sorted(in_order(found), key=lambda router: router != "expert_choice")]


def spread(number: int, most: int) -> list[int]:
    """Picks at most `most` of 0 ... number - 1, evenly spread from the first to the last, or the middle for one."""
    if most == 1:
        return [number // 2]
    return sorted({round(i * (number - 1) / (most - 1)) for i in range(most)}) if number else []


def as_square(values_T: Sequence[float] | NDArray[Any]) -> NDArray[np.float64]:
    """Arranges the tokens of an image row by row as [side, side]. Raises `RecordError` where they form no square."""
    side = math.isqrt(len(values_T))
    if side * side != len(values_T):
        raise RecordError(
            f"A routing map of {len(values_T)} tokens cannot be drawn, because it is no square.",
            MEASURED_AGAIN_BY,
        )
    return np.asarray(values_T, dtype=np.float64).reshape(side, side)


def scene_maps(run: MappedRun) -> SceneMaps | None:
    """Reads the newest measurement of `run` on scenes. At equal images EMA weights come before raw ones.

    Measurements with reconstructed averages are left out. A run whose data have classes and no scenes is measured along
    the sampler's path, by position and class.
    """
    read = run.folder.read_rows(run.folder.routing_maps)
    rows = [row for row in map(_parsed, read.rows) if row is not None]
    kept = [row for row in rows if "ema_width" not in row.settings]
    by_position = {(row.layer, *map(str, _measurement(row))) for row in kept if row.load_by_position is not None}
    scenes = [row for row in kept if row.source == "scenes"]
    scenes = scenes or [row for row in kept if (row.layer, *map(str, _measurement(row))) in by_position]
    if not scenes:
        return None
    newest = max(enumerate(scenes), key=lambda each: (each[1].images_seen, each[1].weights == "ema", each[0]))[1]
    last = {(row.layer, row.time): row for row in scenes if _measurement(row) == _measurement(newest)}
    return SceneMaps(run, tuple(last.values()), read.num_damaged + len(read.rows) - len(rows))


def _measurement(row: RoutingMapRow) -> tuple[int, str, int, dict[str, object]]:
    return row.images_seen, row.weights, row.num_images, row.settings


def _parsed(raw: dict[str, object]) -> RoutingMapRow | None:
    try:
        return RoutingMapRow.model_validate(raw)
    except ValidationError:  # counted by the caller
        return None
