"""Rotary positions: what attention sees of them, and how the model uses them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.layers.attention import Attention
from experiments.layers.rotary import Rotation, rotated, rotation_of_tokens
from experiments.models.dit import DiT

Settings = Callable[..., RunConfig]
Awake = Callable[[RunConfig], DiT]
Inputs = tuple[Tensor, Tensor, Tensor]

SIDE, HEAD = 8, 16
ROPE = ("model.positions=rope", "routing=dense")


def rotation(keep_BK: Tensor | None = None, side: int = SIDE, span: int = SIDE) -> Rotation:
    whole = rotation_of_tokens(HEAD, side, span, torch.device("cpu"))
    return whole if keep_BK is None else Rotation(*(each[keep_BK] for each in whole))


def square(row: int, column: int) -> Tensor:
    """The tokens of a square of 4 x 4 tokens whose first one is in this row and column, [1, 16]."""
    rows, columns = torch.arange(4) + row, torch.arange(4) + column
    return (rows[:, None] * SIDE + columns).flatten().unsqueeze(0)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 1)])
def test_attention_reads_how_far_apart_tokens_are_and_not_where_they_lie(heads: int, kv_heads: int) -> None:
    torch.manual_seed(0)
    attention, x_BTD = Attention(heads * HEAD, heads, kv_heads), torch.randn(1, 16, heads * HEAD)

    def at(keep_BK: Tensor) -> Tensor:
        return attention(x_BTD, x_BTD, rotation=rotation(keep_BK))

    here = at(square(0, 0))
    for row, column in ((4, 0), (0, 4), (3, 1), (4, 4)):
        torch.testing.assert_close(at(square(row, column)), here)
    for other in (square(0, 0).roll(1), 2 * torch.arange(16).unsqueeze(0)):
        assert not torch.allclose(at(other), here, atol=1e-3)
    assert not torch.allclose(attention(x_BTD, x_BTD), here, atol=1e-3)


def test_half_of_a_head_turns_by_the_row_and_half_by_the_column() -> None:
    x_BTHS = torch.ones(1, SIDE**2, 1, HEAD)
    turned = rotated(x_BTHS, rotation()).view(SIDE, SIDE, HEAD)
    moved_by_row = (turned[1, 0] != turned[0, 0]).view(4, HEAD // 4)
    moved_by_column = (turned[0, 1] != turned[0, 0]).view(4, HEAD // 4)
    assert moved_by_row.all(dim=1).tolist() == [True, False, True, False]
    assert moved_by_column.all(dim=1).tolist() == [False, True, False, True]
    assert not (moved_by_row & moved_by_column).any()


def test_turning_keeps_lengths_and_the_first_token() -> None:
    torch.manual_seed(0)
    x_BTHS = torch.randn(2, SIDE**2, 3, HEAD)
    turned = rotated(x_BTHS, rotation())
    torch.testing.assert_close(turned.norm(dim=-1), x_BTHS.norm(dim=-1))
    assert torch.equal(turned[:, 0], x_BTHS[:, 0])
    assert torch.unique(turned[0, :, 0].round(decimals=4), dim=0).shape[0] == SIDE**2


def test_the_rotation_of_a_model_is_made_once_and_gathered_for_kept_tokens(settings: Settings) -> None:
    config, keep_BK = settings(*ROPE), torch.tensor([[0, 9, 63], [5, 4, 17]])
    model, tokens_BTD = DiT(config), torch.zeros(2, SIDE**2, config.model.width)
    first, second = (model._with_positions(tokens_BTD, None)[1] for _ in range(2))
    assert first is not None
    assert first is second
    _, kept = model._with_positions(tokens_BTD[:, :3], keep_BK)
    assert kept is not None
    for mine, whole in zip(kept, first, strict=True):
        assert mine.shape == (2, 3, 1, whole.shape[-1])
        assert torch.equal(mine[1, 2], whole[17])


def test_a_model_that_was_used_in_inference_mode_can_still_be_trained(
    settings: Settings, awake: Awake, inputs: Inputs
) -> None:
    model = awake(settings(*ROPE))
    with torch.inference_mode():
        before = model(*inputs).velocity_BKP
    after = model(*inputs).velocity_BKP
    after.sum().backward()
    assert torch.equal(before, after)


def test_positions_of_a_larger_image_run_over_the_grid_that_was_learned() -> None:
    large = rotation(side=2 * SIDE, span=SIDE).cosine.view(2 * SIDE, 2 * SIDE, -1)
    assert torch.equal(large[::2, ::2], rotation().cosine.view(SIDE, SIDE, -1))


def test_angles_do_not_depend_on_the_type_of_the_model(settings: Settings) -> None:
    torch.manual_seed(0)
    config, x_BTHS = settings(*ROPE), torch.randn(1, SIDE**2, 2, HEAD)
    tokens_BTD = torch.zeros(1, SIDE**2, config.model.width, dtype=torch.bfloat16)
    tokens_BTD, given = DiT(config).bfloat16()._with_positions(tokens_BTD, None)
    assert given is not None
    assert not tokens_BTD.any()  # no table is added
    assert all(torch.equal(mine, exact) for mine, exact in zip(given, rotation(), strict=True))
    low = rotated(x_BTHS.bfloat16(), given)
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, rotated(x_BTHS.bfloat16().float(), given).bfloat16())


@pytest.mark.parametrize("more", ["", "parallel.activation_checkpointing=True", "model.qk_norm=rms"])
def test_all_tokens_in_another_order_give_the_same_image(
    more: str, settings: Settings, awake: Awake, inputs: Inputs
) -> None:
    model = awake(settings(*ROPE, *more.split()))
    torch.manual_seed(1)
    keep_BK = torch.stack([torch.randperm(SIDE**2) for _ in range(4)])
    whole = model(*inputs).velocity_BKP
    torch.testing.assert_close(
        model(*inputs, keep_BK).velocity_BKP, whole.gather(1, keep_BK[..., None].expand_as(whole))
    )


def test_where_a_token_lies_matters_and_no_parameter_is_added(settings: Settings, awake: Awake, inputs: Inputs) -> None:
    model, table = awake(settings(*ROPE)), awake(settings("routing=dense"))
    assert [(name, each.shape) for name, each in model.named_parameters()] == [
        (name, each.shape) for name, each in table.named_parameters()
    ]
    assert model.state_dict().keys() == table.state_dict().keys()
    noisy, *others = inputs
    moved = model(noisy.roll(4, dims=3), *others).velocity_BKP.unflatten(1, (SIDE, SIDE)).roll(-1, dims=2)
    assert not torch.allclose(moved.flatten(1, 2), model(*inputs).velocity_BKP, atol=1e-3)
