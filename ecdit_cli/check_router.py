"""Implements `ecdit check-router`: the properties that every router has, tried on one router, ours or a plugin's."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from analysis.columns import Column
from ecdit_cli._console import print_rows, say
from ecdit_cli._options import Json
from experiments.text import agreeing

COLUMNS = (
    Column("property", "property", prose=True),
    Column("holds", "holds", lambda holds: "yes" if holds else "no"),
    Column("reason", "what fails", prose=True),
)


def check_router(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The router, as in routing.name=NAME.")],
    as_json: Json = False,
) -> None:
    """Check that a router keeps the contract of routers: shapes, capacity, gradients, independence of images, ...

    Ends with exit code 1 where a property does not hold. Example: ecdit check-router my_router --plugin my_router.py
    """
    from experiments.config.overrides import load_config
    from experiments.config.routers import choosing_names
    from experiments.errors import ConfigError

    load_config([f"routing={name}"])
    if name not in choosing_names():
        raise ConfigError(f"{name} has no router to check.", f"Choose from: {', '.join(choosing_names())}.")
    rows = _checked(name)
    causes = {} if as_json else _take_out_causes(rows)
    shown = [column for column in COLUMNS if any(column.key in row for row in rows)]
    print_rows(rows, shown, as_json, title=f"Properties of {name}")
    for cause, reason in causes.items():
        stopped = [row["property"] for row in rows if row.get("reason") == cause]
        say(f"{cause}, which stops {len(stopped)} of {len(rows)} checks: {reason}")
    num_broken = sum(not row["holds"] for row in rows)
    num_holding = len(rows) - num_broken
    say(f"{num_holding} of {len(rows)} properties {agreeing(num_holding, 'holds', 'hold')} for {name}.")
    if num_broken:
        raise typer.Exit(1)


def _take_out_causes(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Replaces a reason that several rows share by `cause 1`, ..., and returns the reasons by these words.

    Checks use layers of different sizes, so that reasons which differ only in their numbers are one cause.
    """
    alike: dict[str, list[dict[str, Any]]] = {}
    for row in (row for row in rows if "reason" in row):
        alike.setdefault(re.sub(r"\d+", "0", row["reason"]), []).append(row)
    causes: dict[str, str] = {}
    for group in (group for group in alike.values() if len(group) > 1):
        cause = f"cause {len(causes) + 1}"
        causes[cause] = group[0]["reason"]
        for row in group:
            row["reason"] = cause
    return causes


def _checked(name: str) -> list[dict[str, Any]]:
    from experiments.layers.properties import PROPERTIES, broken
    from experiments.layers.small_layers import small_layer

    small_layer(name=name)  # a plugin of which no layer can be built is a mistake of its own, in one line
    rows = []
    for title, check in PROPERTIES.items():
        reason = broken(name, check)
        rows.append({"property": title, "holds": reason is None} | ({"reason": reason} if reason else {}))
    return rows
