"""Layouts that no test can run: partitioned, built and stepped with fake tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from experiments.config.budget import budget
from experiments.config.memory import memory
from experiments.config.overrides import load_config
from experiments.config.routers import ROUTERS, routed_names
from experiments.config.routing_checks import AXES
from experiments.config.schema import RunConfig
from experiments.distributed.deepspeed_library import CPU_Accelerator, get_accelerator, set_accelerator
from experiments.errors import ConfigError
from experiments.training.engine import build_engine
from experiments.training.simulation import _pretended_group, _StaysInPlace, simulate_step

ON_EIGHT = ("model=nano", "parallel.world=8", "train.batch_images=32", "routing.group_images=1")
EC_DIT_M_64E = (
    "model=M", "routing.num_experts=64", "routing.group_images=8", "train.mask_ratio=0.5", "train.batch_images=4096",
    "parallel.world=512", "parallel.expert_parallel=64",
)  # fmt: skip
"""The paper's largest model, in the layout of its training: 8 masked images to a routing group."""


class Elsewhere(CPU_Accelerator):  # type: ignore[misc]
    """What DeepSpeed has on a machine with an accelerator, as far as it asks for the place of tensors."""

    def device_name(self, device_index: int | None = None) -> str:
        return "meta"

    def current_device_name(self) -> str:
        return "meta"


@contextmanager
def an_accelerator_here() -> Iterator[Elsewhere]:
    """As far as torch and DeepSpeed are asked."""
    before, accelerator = get_accelerator(), Elsewhere()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.accelerator, "is_available", lambda: True)
        set_accelerator(accelerator)
        try:
            yield accelerator
        finally:
            set_accelerator(before)


def stretches_of(config: RunConfig, rank: int) -> dict[str, tuple[int, int]]:
    with _pretended_group(rank, config.parallel.world):
        return build_engine(config, "fp32", _StaysInPlace).partitions.wanted()


@pytest.mark.parametrize("layout", ["4 1", "8 1", "2 2", "1 2", "1 3"])
def test_the_processes_of_a_layout_have_every_number_of_every_parameter_once(layout: str) -> None:
    expert_parallel, stage = layout.split()
    config = load_config(
        [*ON_EIGHT, f"parallel.expert_parallel={expert_parallel}", f"parallel.zero_stage={stage}", "model.width=32"]
    )
    everyone = [stretches_of(config, rank) for rank in range(8)]
    counted = 0
    for name in set().union(*everyone):
        bounds = sorted(stretches[name] for stretches in everyone if name in stretches)
        assert bounds[0][0] == 0
        assert all(stop == start for (_, stop), (start, _) in pairwise(bounds)), name
        counted += bounds[-1][1]
    assert counted == budget(config).params_total


IN_LAYERS = [name for name in routed_names() if ROUTERS[name].rule != "blocks"]
OF_EACH_RULE = list({(ROUTERS[name].rule, ROUTERS[name].settings.get("input")): name for name in IN_LAYERS}.values())
"""A router for each rule and each input of a router. How weights are cut, and what DiT's block keeps, is added to what
the layer of a router keeps, which every router shows in the other blocks."""


@pytest.mark.parametrize(
    ("router", "stage", "block"),
    [
        *((router, 1, block) for block in ("pixart", "mmdit") for router in IN_LAYERS),
        *((router, *where) for where in ((2, "pixart"), (1, "dit")) for router in OF_EACH_RULE),
    ],
)
def test_memory_of_a_simulated_step_is_that_of_the_arithmetic(router: str, stage: int, block: str) -> None:
    layout = ["parallel.expert_parallel=4", f"parallel.zero_stage={stage}", "train.precision=bf16"]
    fixed = [f"routing.{key}={each.value}" for key, each in ROUTERS[router].fixed.items() if key == "group_images"]
    with_text = block == "mmdit" and ROUTERS[router].rule in AXES["text_experts"].families
    fixed += ["routing.text_experts=4"] if with_text else []
    config = load_config([*ON_EIGHT, f"routing={router}", "routing.num_experts=8", *layout, "model=micro",
                          f"model.block={block}", *fixed])  # fmt: skip
    measured, planned = simulate_step(config, "bf16"), memory(config, on_accelerator=False)
    assert measured.params_total == budget(config).params_total
    assert measured.persistent == pytest.approx(planned.persistent, rel=0.01)
    assert measured.activations == pytest.approx(planned.activations, rel=0.05)


def test_experts_travel_four_times_a_layer_and_half_of_nothing_more() -> None:
    config = load_config([*ON_EIGHT, "parallel.expert_parallel=4"])
    step = simulate_step(config, "bf16")
    calls, handed = step.collectives["alltoall_base"]
    num_layers, images = len(config.sparse_layer_indices), 4
    slots = config.num_tokens * 2 * images
    assert calls == 4 * num_layers
    assert handed == calls * slots * config.model.width * 2
    dense = simulate_step(load_config([*ON_EIGHT, "routing=dense", "parallel.expert_parallel=4"]), "bf16")
    assert "alltoall_base" not in dense.collectives


def test_without_a_limit_the_numbers_of_slots_travel_before_them() -> None:
    config = load_config([*ON_EIGHT, "parallel.expert_parallel=4", "routing=shared_expert"])
    calls, handed = simulate_step(config, "bf16").collectives["alltoall_base"]
    num_layers, slots = len(config.sparse_layer_indices), config.num_tokens * 2 * 4
    assert calls == (4 + 1) * num_layers
    assert handed == num_layers * (4 * slots * config.model.width * 2 + 8 * config.routing.num_experts)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_every_stage_is_simulated(stage: int) -> None:
    config = load_config([*ON_EIGHT, f"parallel.zero_stage={stage}", "parallel.activation_checkpointing=True"])
    step = simulate_step(config, "fp32")
    total = budget(config).params_total
    share = total if stage == 0 else total / 8
    assert step.numbers_kept == pytest.approx(share, rel=0.01)


@pytest.mark.parametrize("stage", [1, 2])
def test_an_accelerator_of_this_machine_changes_nothing(stage: int) -> None:
    """The step of the optimizer, which differs by device, is the peak of so small a batch."""
    layout = ["parallel.world=2", "train.batch_images=2", f"parallel.zero_stage={stage}"]
    config = load_config(["model=nano", "routing=dense", *layout])
    step = simulate_step(config, "fp32")
    with an_accelerator_here() as accelerator:
        assert replace(simulate_step(config, "fp32"), seconds=step.seconds) == step
        assert get_accelerator() is accelerator


def test_zero_3_is_refused() -> None:
    """Its processes compare what they do, which cannot be answered for the others."""
    with pytest.raises(
        ConfigError, match=r"zero_stage=3 cannot be simulated with fake tensors, .*\. Use parallel.zero_stage=2"
    ):
        simulate_step(load_config([*ON_EIGHT, "parallel.zero_stage=3"]), "fp32")


def test_the_process_group_and_the_environment_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    simulate_step(load_config([*ON_EIGHT, "routing=dense"]), "fp32", rank=7)
    assert not torch.distributed.is_initialized()
    assert "RANK" not in os.environ


@pytest.mark.slow
def test_the_97_billion_parameters_of_ec_dit_m_64e_are_built_partitioned_and_stepped() -> None:
    config = load_config([*EC_DIT_M_64E, "train.precision=bf16"])
    step, planned = simulate_step(config, "bf16", rank=511), memory(config, on_accelerator=False)
    assert step.params_total == budget(config).params_total > 95e9
    experts = budget(config).params_by_part["experts"]
    assert step.params_held == step.params_total - experts + experts // 64
    assert step.numbers_kept == pytest.approx(step.params_total / 512, rel=0.001)
    assert step.collectives["alltoall_base"][0] == 4 * 19
    assert step.persistent == pytest.approx(planned.persistent, rel=0.01)
    assert step.peak == pytest.approx(planned.tensors_peak, rel=0.1)
