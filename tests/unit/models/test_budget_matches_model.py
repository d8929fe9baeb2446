"""The arithmetic of `experiments.config.budget` equals the real module, part by part, and torch's own FLOP counter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.config.budget import budget
from experiments.config.overrides import load_config
from experiments.config.presets import PRESETS
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.data.loader import Batch, TrainStream, validation_set
from experiments.models.dit import DiT
from experiments.models.parts import assert_matches_budget
from experiments.training.objective import forward_loss

BATCH_IMAGES = 2
ARMS = (
    "routing=dense",
    "routing=dense model.ffn_factor=6",
    "routing=expert_choice",
    "routing=expert_choice routing.capacity_factor=1.1 routing.num_experts=5",
    "routing=expert_choice routing.group_images=2 routing.eval_capacity_factor=1",
    "routing=token_choice",
    "routing=token_choice routing.capacity_factor=1.3 routing.num_experts=6",
    "routing=token_choice routing.group_images=1",
    "routing=switch",
    "routing=shared_expert routing.capacity_factor=2",
    "routing=shared_expert",
    "routing=shared_expert routing.num_experts=16 train.implementation=reference",
    "routing=token_choice routing.capacity_factor=None routing.group_images=1",
    "routing=expert_choice routing.expert_bias=True routing.num_experts=5",
    "routing=shared_expert routing.expert_bias=True",
    "routing=expert_choice model.sparse_layers=1:-1",
    "routing=shared_expert model.sparse_layers=0,3",
    "routing=switch routing.capacity_factor=None parallel.activation_checkpointing=True",
)
CASES = [
    *(("nano", arm) for arm in ARMS),
    *(("micro", f"routing={router}") for router in ("token_choice", "switch")),
    *((preset, f"routing={router}") for preset in ("micro", "mini", "S") for router in ("dense", "expert_choice")),
]


def shell_of(config: RunConfig) -> DiT:
    """The real module without memory."""
    with torch.device("meta"):
        return DiT(config)


def gate_products(config: RunConfig, num_tokens: int) -> int:
    """What DeepSpeed's top-2 gate adds: it picks two of E gates by products with one-hot masks, 2 x 2 T E.

    That is how it is written and not what token choice needs, so the arithmetic leaves it out.
    """
    routing = config.routing
    picked_by_product = routing.name == "token_choice" and routing.top_k == 2
    return len(config.sparse_layer_indices) * 4 * num_tokens * routing.num_experts if picked_by_product else 0


def counted(model: DiT, config: RunConfig, batch: Batch, train: bool) -> int:
    """FLOPs per image by torch. The math form of attention is two matmuls, which the counter knows on every device."""
    model.train(train)
    counter = FlopCounterMode(display=False)
    with torch.set_grad_enabled(train), sdpa_kernel(SDPBackend.MATH), counter:
        loss_B, output = forward_loss(model, batch, config.model.patch_size)
        if train:
            (loss_B.mean() + output.auxiliary_loss).backward()
    assert counter.get_total_flops() % BATCH_IMAGES == 0
    return counter.get_total_flops() // BATCH_IMAGES


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_part_of_every_preset_has_the_parameters_that_were_computed(preset: str, router: str) -> None:
    config = load_config([f"model={preset}", f"routing={router}"])
    assert_matches_budget(shell_of(config), budget(config))


@pytest.mark.parametrize("arm", ARMS)
def test_every_part_of_every_arm_has_the_parameters_that_were_computed(arm: str) -> None:
    config = load_config(arm.split())
    assert_matches_budget(shell_of(config), budget(config))


def test_a_model_that_differs_from_the_arithmetic_is_refused() -> None:
    config, deeper = load_config(["routing=dense"]), load_config(["routing=dense", "model.num_layers=5"])
    with pytest.raises(AssertionError, match="attention"):
        assert_matches_budget(shell_of(config), budget(deeper))


@pytest.mark.parametrize(("preset", "arm"), CASES)
def test_flops_equal_those_that_torch_counts(preset: str, arm: str) -> None:
    sizes = [f"{key}={BATCH_IMAGES}" for key in ("train.batch_images", "eval.batch_images", "eval.images")]
    whole = load_config([f"model={preset}", *arm.split(), *sizes])
    half = load_config([f"model={preset}", *arm.split(), *sizes, "train.mask_ratio=0.5"])
    model, cost = shell_of(whole).to_empty(device="cpu"), budget(whole)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    forward = counted(model, whole, validation_set(whole)[0], train=False)
    assert forward == cost.flops_per_image + gate_products(whole, whole.num_tokens)
    for config in (whole, half):
        training = counted(model, config, TrainStream(config).batch(0), train=True)
        gates = 2 * gate_products(config, config.num_train_tokens)  # the masks get no gradient: twice, not thrice
        assert training == budget(config).train_flops_per_image + gates


@pytest.mark.parametrize("num_experts", [8, 16, 32, 64])
@pytest.mark.parametrize("preset", ["XL", "XXL", "3XL", "M"])
def test_experts_add_what_the_paper_says(preset: str, num_experts: int) -> None:
    """EC-DIT, section 3: total(E) - dense of the same depth = sparse [(E - 1) 8 d^2 + E d]."""
    sparse = load_config([f"model={preset}", "routing=expert_choice", f"routing.num_experts={num_experts}"])
    dense = load_config([f"model={preset}", "routing=dense", f"model.num_layers={sparse.model.num_layers}"])
    width, num_sparse = sparse.model.width, len(sparse.sparse_layer_indices)
    assert num_sparse == {"XL": 14, "XXL": 19, "3XL": 21, "M": 19}[preset]
    increment = budget(sparse).params_total - budget(dense).params_total
    assert increment == num_sparse * ((num_experts - 1) * 8 * width**2 + num_experts * width)


def test_dit_moe_is_as_large_as_published() -> None:
    """199M total, 71M activated (S/2-8E2A); its modulation of each block weighs what our cross-attention does."""
    cost = budget(load_config(["model=dit-moe-S", "routing=shared_expert"]))
    assert cost.params_total / 1e6 == pytest.approx(199, rel=0.02)
    assert cost.params_active / 1e6 == pytest.approx(71, rel=0.02)
