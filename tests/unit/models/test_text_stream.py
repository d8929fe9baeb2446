"""The stream of text tokens of MM-DiT: its experts, its padding, and what it has to do with the image tokens."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from experiments.config.overrides import load_config
from experiments.config.routers import ROUTERS, choosing_names, routed_names
from experiments.config.routing_checks import AXES
from experiments.config.schema import RunConfig
from experiments.data.scenes.captions import tokenize
from experiments.models.dit import DiT
from tests.unit.models.test_dit import Awake

CAPTIONS = torch.tensor([tokenize(caption) for caption in ("a red circle", "two blue squares", "a ring", "")])
WITH_TEXT_EXPERTS = [name for name in routed_names() if ROUTERS[name].rule in AXES["text_experts"].families]
EXPERTS_CHOOSE = [name for name in choosing_names() if ROUTERS[name].rule == "experts"]


def mmdit(*words: str) -> RunConfig:
    """Two blocks of width 32, both with experts; the first changes the text."""
    small = ["model=nano", "model.width=32", "model.num_layers=2", "model.sparse_layers=all", "model.block=mmdit"]
    return load_config([*small, *words])


def output_of(model: DiT, captions: torch.Tensor = CAPTIONS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy_BCHW, time_B = torch.randn(4, 3, 32, 32, generator=generator), torch.rand(4, generator=generator)
    return model(noisy_BCHW, time_B, captions).velocity_BKP


def test_one_expert_for_text_with_all_tokens_is_a_dense_feed_forward(awake: Awake) -> None:
    """The expert gets the weights and biases of the dense feed-forward, and its gates are all 1."""
    words = ("model.ffn=gelu", "routing=expert_choice", "routing.num_experts=1", "routing.capacity_factor=1")
    dense = awake(mmdit(*words))
    routed = DiT(mmdit(*words, "routing.text_experts=1", "routing.expert_bias=True"))
    weights, found = dense.state_dict(), routed.state_dict()
    for name in found:
        part = name.removeprefix("blocks.0.text_ffn.experts.")
        source = name if part == name else f"blocks.0.text_ffn.{DENSE_NAMES[part]}"
        if source in weights:
            value = weights[source]
            found[name] = value.T.unsqueeze(0) if part == "w_out_EFD" else value.view_as(found[name])
        elif name.startswith("blocks.0.ffn.experts.b") or name.startswith("blocks.1.ffn.experts.b"):
            found[name] = torch.zeros_like(found[name])
    routed.load_state_dict(found)
    assert_close(output_of(routed), output_of(dense))


DENSE_NAMES = {
    "w_in_EFD": "w_in.weight", "w_out_EFD": "w_out.weight", "b_in_EF": "w_in.bias", "b_out_ED": "w_out.bias",
}  # fmt: skip


@pytest.mark.parametrize("router", WITH_TEXT_EXPERTS)
def test_gradients_reach_the_experts_of_text_and_losses_of_both_streams_add_up(router: str, awake: Awake) -> None:
    model = awake(mmdit(f"routing={router}", "routing.text_experts=4"))
    losses: list[torch.Tensor] = []
    for feed_forward in (model.blocks[0].ffn, model.blocks[0].text_ffn, model.blocks[1].ffn):
        feed_forward.register_forward_hook(lambda module, given, output: losses.append(output.auxiliary_loss))
    generator = torch.Generator().manual_seed(1)
    output = model(torch.randn(4, 3, 32, 32, generator=generator), torch.rand(4, generator=generator), CAPTIONS)
    assert_close(output.auxiliary_loss, torch.stack(losses).sum())
    (output.velocity_BKP.square().mean() + output.auxiliary_loss).backward()
    experts = model.blocks[0].text_ffn.experts
    assert experts.w_in_EFD.shape[0] == 4
    assert experts.w_in_EFD.grad.any()
    assert model.blocks[1].text_ffn is None


@pytest.mark.parametrize("router", EXPERTS_CHOOSE)
def test_padding_takes_no_slot_before_a_real_token(router: str, awake: Awake) -> None:
    """Every expert has slots for all real tokens, so it must take them all, however much it prefers the padding."""
    words = [f"routing={router}", "routing.text_experts=4", "routing.group_images=1", "routing.capacity_factor=2"]
    model = awake(mmdit(*words, "routing.capacity_schedule=none"))
    output = model(torch.randn(4, 3, 32, 32), torch.rand(4), CAPTIONS)
    assignment, real_N = output.feed_forward[0].text_assignment, (CAPTIONS != 0).flatten()
    assert int((CAPTIONS != 0).sum(dim=1).max()) <= 8  # slots of an expert: 16 tokens, f_c = 2, 4 experts
    has_caption_N = ~output.feed_forward[0].text_assignment.unconditional_N if router == "promoe_ec" else real_N
    assert (assignment.experts_per_token_N[real_N & has_caption_N] == 4).all()
    assert not assignment.weight_M[~real_N[assignment.token_M]].any()
    assert (assignment.weight_M[real_N[assignment.token_M]] != 0).all()


@pytest.mark.parametrize("router", EXPERTS_CHOOSE)
def test_what_stands_in_the_place_of_padding_changes_nothing(router: str, awake: Awake) -> None:
    model = awake(mmdit(f"routing={router}", "routing.text_experts=4")).eval()
    before = output_of(model)
    with torch.no_grad():
        model.text.token.weight[0].add_(10.0)
    assert_close(output_of(model), before)
