"""The whole transformer, for every router."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from experiments.config.blocks import BLOCKS, conditioned_by
from experiments.config.caption_kinds import PAD_TOKEN
from experiments.config.overrides import load_config
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.models.dit import DiT
from experiments.models.embed import gather_tokens
from experiments.models.parts import part_of

Settings = Callable[..., RunConfig]
Awake = Callable[[RunConfig], DiT]
Inputs = tuple[Tensor, Tensor, Tensor]

UNORDERED = [f"routing={name}" for name, row in ROUTERS.items() if row.top_k is None or row.capacity_factor is None]
OF_THE_BATCH = {name for name, row in ROUTERS.items() if "group_images" in row.fixed and row.group_images == "batch"}
"""Routers that cannot decide by image before training has given them thresholds."""
UNREAD_QUERIES = re.compile(r"blocks\.3\.text_attention\.(query|norm_query)\.(weight|bias)")
"""In the last of four blocks of SD3 nobody reads what text tokens attend to."""
every_router = pytest.mark.parametrize(
    "arm",
    [
        *(f"routing={name}" for name in ROUTERS),
        "routing=expert_choice routing.gating=sigmoid",
        "routing=expert_choice routing.gating=identity routing.group_images=4",
        "routing=shared_expert routing.shared_factor=0 routing.capacity_factor=2",
    ],
)
of_captions = pytest.mark.parametrize("block", conditioned_by("caption"), indirect=True)
by_image = pytest.mark.parametrize(
    "arm",
    [
        *(f"routing={name} routing.group_images=1" for name in ROUTERS if name not in OF_THE_BATCH),
        "routing=shared_expert",
    ],
)


@every_router
def test_an_untrained_model_predicts_zero_and_starts_as_the_identity(
    arm: str, settings: Settings, inputs: Inputs
) -> None:
    torch.manual_seed(0)
    model = DiT(settings(*arm.split()))
    tokens: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, given, output: tokens.extend([given[0], output[0]]))
    output = model(*inputs)
    assert not output.velocity_BKP.any()
    assert all(torch.equal(tokens[0], other) for other in tokens)


@every_router
def test_gradients_reach_every_parameter(arm: str, settings: Settings, awake: Awake, inputs: Inputs) -> None:
    model = awake(settings(*arm.split(), "model.num_layers=4"))
    output = model(*inputs)
    (output.velocity_BKP.square().mean() + output.auxiliary_loss).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(UNREAD_QUERIES.fullmatch(name) for name in without)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_router
def test_keeping_all_tokens_is_the_same_as_not_dropping_any(
    arm: str, settings: Settings, awake: Awake, inputs: Inputs
) -> None:
    model = awake(settings(*arm.split()))
    everything = torch.arange(64).expand(4, 64)
    torch.testing.assert_close(model(*inputs, everything).velocity_BKP, model(*inputs).velocity_BKP)


@pytest.mark.parametrize("arm", UNORDERED)
def test_a_token_keeps_its_patch_and_its_position_wherever_it_stands(
    arm: str, settings: Settings, awake: Awake, inputs: Inputs
) -> None:
    """Where tokens choose and some are dropped, the order decides which."""
    model = awake(settings(*arm.split()))
    order = torch.stack([torch.randperm(64) for _ in range(4)])
    torch.testing.assert_close(model(*inputs, order).velocity_BKP, gather_tokens(model(*inputs).velocity_BKP, order))


def test_a_dropped_token_is_never_seen(settings: Settings, awake: Awake, inputs: Inputs) -> None:
    model, (noisy, time, caption) = awake(settings("routing=expert_choice")), inputs
    keep = torch.stack([torch.randperm(64)[:32].sort().values for _ in range(4)])
    output = model(noisy, time, caption, keep).velocity_BKP
    changed = noisy.clone()
    for image, kept in enumerate(keep.tolist()):
        for token in set(range(64)) - set(kept):
            row, column = divmod(token, 8)
            changed[image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 9.0
    assert output.shape == (4, 32, 48)
    assert torch.equal(model(changed, time, caption, keep).velocity_BKP, output)


@by_image
def test_the_order_of_images_in_a_batch_does_not_matter(
    arm: str, settings: Settings, awake: Awake, inputs: Inputs
) -> None:
    model, order = awake(settings(*arm.split())), torch.tensor([2, 0, 3, 1])
    shuffled = model(*(part[order] for part in inputs)).velocity_BKP
    torch.testing.assert_close(shuffled, model(*inputs).velocity_BKP[order])


@by_image
def test_an_image_alone_is_as_it_is_in_a_batch(arm: str, settings: Settings, awake: Awake, inputs: Inputs) -> None:
    model = awake(settings(*arm.split())).eval()
    alone = torch.cat([model(*(part[i : i + 1] for part in inputs)).velocity_BKP for i in range(4)])
    torch.testing.assert_close(alone, model(*inputs).velocity_BKP)


def test_the_caption_the_time_and_the_image_all_matter(settings: Settings, awake: Awake, inputs: Inputs) -> None:
    model, (noisy, time, caption) = awake(settings("routing=expert_choice")), inputs
    velocity = model(noisy, time, caption).velocity_BKP
    for other in ((noisy.flip(0), time, caption), (noisy, time.flip(0), caption), (noisy, time, caption.flip(0))):
        assert not torch.allclose(model(*other).velocity_BKP, velocity, atol=1e-3)


@of_captions
def test_padding_of_a_caption_never_changes_the_image(settings: Settings, awake: Awake, inputs: Inputs) -> None:
    model = awake(settings("routing=expert_choice"))
    velocity = model(*inputs).velocity_BKP
    with torch.no_grad():
        model.text.token.weight[PAD_TOKEN] += 10.0
    assert torch.equal(model(*inputs).velocity_BKP, velocity)


@pytest.mark.parametrize(
    ("arm", "layers", "expected"),
    [
        ("model=nano routing=token_choice", 2, 0.02),
        ("model=nano routing=switch", 2, 0.02),
        ("model=nano routing=switch model.num_layers=8", 4, 0.04),
        ("model=dit-moe-S model.width=48 routing=shared_expert", 12, 0.06),
        ("model=nano routing=shared_expert routing.balance_loss_weight=0.01 routing.capacity_factor=2", 2, 0.02),
    ],
)
@pytest.mark.parametrize("more", ["", "parallel.activation_checkpointing=True", "train.implementation=reference"])
def test_the_balance_loss_weighs_as_much_in_every_layer_as_the_setting_says(
    arm: str, layers: int, expected: float, more: str, block: str, inputs: Inputs
) -> None:
    """Without preferences each layer's loss is 1, and the gradient in a layer is that of its own loss alone."""
    config = load_config([*arm.split(), *more.split(), f"model.block={block}", "routing.group_images=batch"])
    model = DiT(config, checkpointed=config.parallel.activation_checkpointing)
    routers = [model.blocks[layer].ffn.router.weight_DE for layer in config.sparse_layer_indices]
    assert len(routers) == layers
    output = model(*inputs)
    own = [answer.auxiliary_loss for answer in output.feed_forward if answer.assignment is not None]
    for_all = torch.autograd.grad(output.auxiliary_loss, routers, retain_graph=True)
    for_one = [
        torch.autograd.grad(loss, router, retain_graph=True)[0] for loss, router in zip(own, routers, strict=True)
    ]
    for summed, alone in zip(for_all, for_one, strict=True):  # an untrained model hands no gradient from layer to layer
        torch.testing.assert_close(summed, alone)
    for router in routers:
        torch.nn.init.zeros_(router)
    torch.testing.assert_close(model(*inputs).auxiliary_loss, torch.tensor(expected))


def test_a_dense_model_has_no_auxiliary_loss(settings: Settings, awake: Awake, inputs: Inputs) -> None:
    assert awake(settings("routing=dense"))(*inputs).auxiliary_loss == 0


def test_to_image_puts_tokens_back_where_they_come_from(settings: Settings, inputs: Inputs) -> None:
    model = DiT(settings("routing=dense"))
    velocity = model(*inputs).velocity_BKP.bfloat16()
    image = model.to_image(velocity)
    assert image.shape == inputs[0].shape
    assert image.dtype == torch.float32


@every_router
def test_the_model_runs_in_bfloat16(arm: str, settings: Settings, awake: Awake, inputs: Inputs) -> None:
    model = awake(settings(*arm.split()))
    exact = model(*inputs).velocity_BKP
    rounded = model.bfloat16()(*inputs)
    assert rounded.velocity_BKP.dtype == torch.bfloat16
    assert rounded.auxiliary_loss.dtype == torch.float32
    close = (rounded.velocity_BKP.float() - exact).square().mean() / exact.square().mean()
    assert close < 0.05


def test_every_parameter_belongs_to_a_part_and_an_unknown_one_to_none(settings: Settings, block: str) -> None:
    model = DiT(settings("routing=shared_expert", "model.num_layers=2"))
    parts = {part_of(name) for name, _ in model.named_parameters()}
    assert parts >= {"embed", "text", "attention", "modulation", "ffn", "experts", "shared_experts", "router"}
    assert ("cross_attention" in parts) == BLOCKS[block].cross_attends
    with pytest.raises(KeyError):
        part_of("blocks.0.surprise.weight")


@pytest.mark.parametrize("implementation", ["fast", "fused", "reference"])
def test_every_part_of_the_model_is_fast_unless_it_is_the_reference(implementation: str) -> None:
    config = load_config(["model=nano", "routing=expert_choice", f"train.implementation={implementation}"])
    choices = [module.fast for module in DiT(config).modules() if hasattr(module, "fast")]
    assert choices == [implementation != "reference"] * len(choices) != []
