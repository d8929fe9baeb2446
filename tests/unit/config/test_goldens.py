"""Resolved configs and their ids are frozen, so that a default cannot change unnoticed.

After a change that is meant, run `python tests/unit/config/test_goldens.py` and say in the changelog what changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.config.identity import config_id
from experiments.config.overrides import load_config
from experiments.config.presets import PRESETS
from experiments.config.routers import ROUTERS

GOLDENS = Path(__file__).parents[2] / "goldens" / "configs.json"


def configs() -> dict[str, list[str]]:
    """Every preset with the router of its paper, and every router with the smallest preset."""
    papers = (("dit-moe-", "shared_expert"), ("dit-", "dense"), ("", "expert_choice"))
    presets = {name: next(router for prefix, router in papers if name.startswith(prefix)) for name in PRESETS}
    pairs = [*presets.items(), *(("nano", router) for router in ROUTERS)]
    return {f"{preset} {router}": [f"model={preset}", f"routing={router}"] for preset, router in pairs}


def resolved(overrides: list[str]) -> dict[str, Any]:
    config = load_config(overrides)
    return {"config_id": config_id(config), **config.model_dump(mode="json")}


@pytest.mark.parametrize("name", configs())
def test_a_resolved_config_is_as_frozen(name: str) -> None:
    assert resolved(configs()[name]) == json.loads(GOLDENS.read_text())[name]


def test_nothing_else_is_frozen() -> None:
    assert set(json.loads(GOLDENS.read_text())) == set(configs())


def write() -> None:
    """One line for each section, so that a change reads as one line."""
    blocks = []
    for name, overrides in configs().items():
        lines = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in resolved(overrides).items()]
        blocks.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    GOLDENS.write_text("{\n" + ",\n".join(blocks) + "\n}\n")
    print(f"{len(blocks)} resolved configs are in {GOLDENS}; git diff shows what changed.")


if __name__ == "__main__":
    write()
