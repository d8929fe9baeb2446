"""A recorded pass gives the images of a plain one; what cannot be recorded is computed anew."""

from __future__ import annotations

import pytest
import torch

from experiments.config.overrides import load_config
from experiments.config.routers import ROUTERS
from experiments.evaluation.sampling.generate import SamplerSettings, sample, validation_captions
from experiments.evaluation.sampling.load_run import current_device
from experiments.evaluation.sampling.replay import _REPLAYS, KEPT, Replay, allow_replay, velocity_of
from experiments.flow.samplers import Guidance
from experiments.models.dit import DiT

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are recorded by CUDA or ROCm")


def model_of(router: str, *overrides: str) -> DiT:
    """A small model in which nothing is zero, on the device that records if there is one."""
    torch.manual_seed(0)
    model = DiT(load_config(["model=nano", f"routing={router}", *overrides])).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.to(current_device())


def images_of(model: DiT, num_images: int) -> torch.Tensor:
    """Sampled with guidance for a part of the way, so that both shapes of inputs occur."""
    config = load_config(["model=nano"])
    shape = (num_images, config.data.channels, config.data.image_size, config.data.image_size)
    noise_BCHW = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(next(model.parameters()).device)
    return sample(model, validation_captions(config, num_images), noise_BCHW, SamplerSettings(4, Guidance(2.0, 0.4)))


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("router", ROUTERS)
def test_a_recorded_pass_gives_the_images_of_a_plain_one(router: str) -> None:
    model = model_of(router)
    for num_images in (2, 3):
        _REPLAYS.pop(model, None)
        plain = images_of(model, num_images)
        allow_replay(model)
        assert (model in _REPLAYS) is (ROUTERS[router].capacity_factor is not None or router == "dense")
        for _ in range(2):
            assert torch.equal(images_of(model, num_images), plain)
        assert model not in _REPLAYS or len(_REPLAYS[model].recorded) == KEPT


@pytest.mark.parametrize(
    ("router", "override"),
    [("shared_expert", "seed=0"), ("expert_choice", "train.implementation=reference")],
)
def test_what_reads_back_and_the_reference_are_computed_anew(router: str, override: str) -> None:
    model = model_of(router, override)
    assert allow_replay(model) is model
    assert not isinstance(velocity_of(model), Replay)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here a processor is meant")
@pytest.mark.parametrize("router", ROUTERS)
def test_on_a_processor_nothing_is_recorded(router: str) -> None:
    model = model_of(router)
    before = images_of(model, 2)
    assert torch.equal(images_of(allow_replay(model), 2), before)
    assert model not in _REPLAYS
