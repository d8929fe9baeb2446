"""One of two processes whose validation loss overflows while every output and gradient is finite.

Its argument is a folder for the outcome of each. Not a test by itself: see `test_layouts.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from experiments.config.overrides import load_config
from experiments.distributed.deepspeed_library import dist
from experiments.errors import RunFailedError
from experiments.training.engine import build_engine, process_group
from experiments.training.validation import Validator
from tests.integration.layout_worker import SMALL

HEAD_WEIGHT = 3e17
"""Outputs near 2e18, whose squares fit fp32 and whose sum over an image does not."""


def main() -> None:
    """What the search over three batches says, two of them on rank 0."""
    folder = Path(sys.argv[1])
    with process_group(folder / "log.txt"):
        config = load_config([*SMALL, "parallel.world=2", "eval.images=12", "eval.batch_images=4"])
        engine = build_engine(config, "fp32")
        with torch.no_grad():
            torch.manual_seed(0)
            engine.model.head.weight.normal_(std=HEAD_WEIGHT)
        said = "nothing"
        try:
            Validator(config).measure(engine, 8, "raw")
        except RunFailedError as error:
            said = error.message
        (folder / f"{dist.get_rank()}.txt").write_text(said)
