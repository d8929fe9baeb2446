"""Two trained dense runs become one run with experts, which samples, and whose loss is the one in its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ecdit_cli.app import run
from experiments.records.run_folder import RunDir
from tests.integration.conftest import Train

SMALL = ("routing=dense", "train.images=48", "data.image_size=16", "eval.sample_steps=2", "eval.every_images=48")


def values(folder: RunDir, metric: str) -> dict[str, Any]:
    """The values of a metric by kind of weights."""
    return {row["weights"]: row["value"] for row in folder.read_rows(folder.evals).rows if row["metric"] == metric}


def test_trained_runs_merge_into_one_that_is_measured_like_any(train: Train, tmp_path: Path) -> None:
    parts = [RunDir(tmp_path / f"dense{seed}") for seed in range(2)]
    for seed, part in enumerate(parts):
        done = train(part.path, *SMALL, f"seed={seed}")
        assert done.returncode == 0, done.stderr
    out = RunDir(tmp_path / "merged")
    assert run(["merge", *(str(part.path) for part in parts), str(out.path), "--router-from-prompts"]) == 0
    assert run(["sample", str(out.path), "a red circle"]) == 0
    assert (out.samples / "grid.png").is_file()
    assert run(["evaluate", str(out.path), "--metrics", "validation-loss"]) == 0
    assert values(out, "validation-loss")["ema"] == pytest.approx(values(out, "val_loss")["ema"], rel=1e-5)
    status = out.read_status()
    assert status is not None
    assert (status.state, status.images_seen) == ("done", 48)
    assert run(["train", *SMALL, "--run-dir", str(out.path), "--no-progress"]) == 2  # it is another run
