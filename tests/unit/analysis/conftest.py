"""Studies with stated loss curves: straight lines, so that interpolation is exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.load import Records, load_records

IMAGES = 9600
SETTINGS = {"train": {"images": IMAGES}, "eval": {"every_images": 1600}}

# Validation loss at n images is START - slope n + the seed's offset.
START = 0.2
OFFSETS = {0: 0.0, 1: 0.001, 2: -0.001}
Arms = dict[str, tuple[dict[str, Any], dict[str, Any], float]]

ARMS: Arms = {
    "dense": ({}, {"name": "dense"}, 1.0e-5),
    "dense_wide": ({"ffn_factor": 6.0}, {"name": "dense"}, 1.2e-5),
    "token_choice": ({}, {"name": "token_choice"}, 1.6e-5),
    "expert_choice": ({}, {"name": "expert_choice"}, 1.5e-5),
}


@pytest.fixture
def write_arms(tmp_path: Path, write_run: Callable[..., Any]) -> Callable[..., Path]:
    """Writes runs of `ARMS` (or given ones) for seeds and presets into one folder, and returns it."""

    def write(
        arms: Arms = ARMS, seeds: tuple[int, ...] = (0, 1, 2), presets: tuple[str, ...] = ("nano",), **options: Any
    ) -> Path:
        for preset in presets:
            for name, (model, routing, slope) in arms.items():
                for seed in seeds:
                    settings = {**SETTINGS, "model": {"name": preset, **model}, "routing": routing, "seed": seed}
                    drops = {} if routing["name"] == "dense" else {"dropped_share": 0.1, "dropped_share_same_t": 0.2}
                    final = {"val_loss_same_t": START - slope * IMAGES + OFFSETS[seed], **drops}
                    write_run(
                        tmp_path / "study" / f"{preset}-{name}-s{seed}",
                        settings,
                        lambda n, slope=slope, seed=seed: START - slope * n + OFFSETS[seed],
                        **{"final": final, "inference_seconds": 0.01, **options},
                    )
        return tmp_path / "study"

    return write


@pytest.fixture
def study(write_arms: Callable[..., Path]) -> Records:
    """Four arms of three seeds at one size."""
    return load_records([write_arms()])
