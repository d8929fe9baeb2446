"""Token choice and switch equal the unmodified `deepspeed.moe.layer.MoE` with the same weights, gradients included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPARISON = Path(__file__).with_name("deepspeed_moe.py")


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """What `deepspeed_moe.py` found, by case: "top_k limit training"."""
    answer = tmp_path_factory.mktemp("deepspeed") / "differences.json"
    run = subprocess.run(
        [sys.executable, str(COMPARISON), str(answer)],
        capture_output=True,
        text=True,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        timeout=120,
    )
    assert answer.exists(), run.stderr  # a group that aborts in its teardown has done its work
    found: dict[str, dict[str, float]] = json.loads(answer.read_text())
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("limit", ["tight", "loose", "none"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_whole_layer_equals_deepspeeds(
    top_k: int, limit: str, training: bool, differences: dict[str, dict[str, float]]
) -> None:
    case = dict(differences[f"{top_k} {limit} {training}"])
    dropped = case.pop("dropped")
    assert (dropped == 0) if limit == "none" else (dropped > 0 or limit == "loose")
    assert set(case) == {"out", "loss", "x", "router", "w_in", "w_out"}
    assert max(case.values()) < 1e-5, case
