"""Small models and what goes into them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from experiments.config.blocks import BLOCKS
from experiments.config.data_sets import is_labelled
from experiments.config.overrides import load_config
from experiments.config.schema import RunConfig
from experiments.data.scenes.captions import tokenize
from experiments.models.dit import DiT

LABELS = (3, 100, 383, 384)
CAPTIONS = ("a red circle", "two blue squares", "a circle and a ring", "")


@pytest.fixture(params=BLOCKS)
def block(request: pytest.FixtureRequest) -> str:
    """The name of every block in turn."""
    return str(request.param)


@pytest.fixture
def settings(block: str) -> Callable[..., RunConfig]:
    """A nano config of 2 layers of width 32 with every block in turn, with overrides on top."""
    small = ["model=nano", "model.width=32", "model.num_layers=2", f"model.block={block}"]
    return lambda *overrides: load_config([*small, *overrides])


@pytest.fixture
def awake() -> Callable[[RunConfig], DiT]:
    """The model of a config whose zero-initialised weights were moved, so that every part takes part."""

    def build(config: RunConfig) -> DiT:
        torch.manual_seed(0)
        model = DiT(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.2)
        return model

    return build


@pytest.fixture
def inputs(block: str) -> tuple[Tensor, Tensor, Tensor]:
    """4 noisy images, their times, and their captions or classes, the last one empty or the null class."""
    generator = torch.Generator().manual_seed(1)
    captions = torch.tensor(LABELS if is_labelled(block) else [tokenize(caption) for caption in CAPTIONS])
    return torch.randn(4, 3, 32, 32, generator=generator), torch.rand(4, generator=generator), captions
