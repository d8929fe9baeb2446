"""Token choice and switch: each token picks its top-k experts, by DeepSpeed's own gates.

k = 2 is GShard (arXiv 2006.16668): gates are renormalised over the choices that were kept, and second choices queue
behind all first ones. k = 1 is Switch (arXiv 2101.03961), whose gate is the raw probability. k >= 3 renormalises and
drops the choices with the smallest gates. All drop tokens beyond the capacity and have an auxiliary loss. DeepSpeed
leaves noise on in evaluation (random token selection for k = 1, a sampled second expert for k = 2); it is turned off
here, so that a decision is a function of the logits. With k = 1 a full expert then keeps the tokens that `torch.topk`
happens to pick among equal priorities: always the same ones, but by no meaningful rule. `routing.capacity_factor`
counts slots per token: DeepSpeed's k = 2, capacity factor 1 is f_c = 2, and ST-MoE's capacity factor is f_c itself.

GShard's algorithm 2 and ST-MoE's code differ from DeepSpeed for k = 2: they renormalise before they drop, so that a
token that lost one of its choices keeps a gate below 1, and they send second choices at random, by their gate.

Legend: as in `contract.py`, with K choices of each token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from experiments.config.schema import RunConfig
from experiments.distributed.deepspeed_library import top1gating, top2gating, topkgating
from experiments.routing.contract import Choices, GroupDecision
from experiments.routing.losses import counted_balance_loss
from experiments.routing.router import Router
from experiments.routing.slots import fill_slots


class TokenChoiceRouter(Router):
    """A router in which tokens choose experts and DeepSpeed's gates decide."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        assert config.routing.top_k is not None, "token choice has a top_k"
        assert config.routing.top_k <= self.num_experts, "a token cannot pick more experts than there are"
        self.top_k = config.routing.top_k
        self.balance_loss_weight = config.routing.balance_loss_weight

    def decide(self, logits_GSE: Tensor, capacity: int) -> GroupDecision:
        """Decides with DeepSpeed's gates; slots may stay empty, and tokens beyond capacity may get no expert."""
        gate = partial(_gate, top_k=self.top_k, capacity=capacity)
        if logits_GSE.shape[0] == 1:
            answers: tuple[Tensor, ...] = tuple(answer.unsqueeze(0) for answer in gate(logits_GSE[0]))
        else:  # DeepSpeed's gates take one group: map them over the groups
            with _ScatterOutOfPlace():
                answers = torch.vmap(gate)(logits_GSE)
        loss_G, expert_GKS, location_GKS, weight_GKS = answers
        slots = fill_slots(expert_GKS, location_GKS, weight_GKS, self.num_experts, capacity)
        return GroupDecision(*slots, auxiliary_loss=self.balance_loss_weight * loss_G.mean())

    def choose(self, logits_GSE: Tensor) -> Choices:
        """Returns the k experts of every token; none is dropped."""
        losses, experts, _, weights = zip(
            *(_gate(logits_SE, self.top_k, None) for logits_SE in logits_GSE), strict=True
        )
        loss = self.balance_loss_weight * torch.stack(losses).mean()
        return Choices(torch.cat(experts, dim=1).T.long(), torch.cat(weights, dim=1).T, loss)

    def counted_balance(self, logits_GSE: Tensor, counted_GS: Tensor) -> Tensor | None:
        """Returns the weighted loss of DeepSpeed's gate over the tokens that count.

        The gates of one and two experts count first choices, as GShard and Switch do, and that of more counts all.
        """
        num_choices = self.top_k if self.top_k > 2 else 1
        choice_GSK = logits_GSE.topk(num_choices, dim=-1).indices
        return self.balance_loss_weight * counted_balance_loss(logits_GSE, choice_GSK, counted_GS)


def _gate(logits_SE: Tensor, top_k: int, capacity: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs DeepSpeed's gate without its noise on one group.

    Returns the loss, and as [K, S] the experts (-1 where dropped), the slots in these experts, and the gates.
    """
    drop, factor = capacity is not None, 1.0
    if capacity is not None:
        # DeepSpeed rounds (S / E) factor k up to whole slots in float32: asking for half a slot less yields `capacity`.
        size, num_experts = logits_SE.shape
        factor = (capacity - 0.5) * num_experts / (size * top_k)
    if top_k == 1:
        routes = top1gating(logits_SE, factor, 1, drop_tokens=drop, use_rts=False, sparse_routes=True)
    elif top_k == 2:
        routes = top2gating(logits_SE, factor, 1, drop_tokens=drop, top2_2nd_expert_sampling=False, sparse_routes=True)
    else:
        routes = topkgating(logits_SE, top_k, factor, 1, drop_tokens=drop, sparse_routes=True)
    loss, _, _, expert_KS, location_KS, gate_KS, _ = routes
    return loss, expert_KS, location_KS, gate_KS


class _ScatterOutOfPlace(TorchFunctionMode):
    """Replaces `scatter_`, which the gates call, by `scatter`: `torch.vmap` batches only the latter, and would warn."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.scatter_:
            return args[0].copy_(args[0].scatter(*args[1:], **(kwargs or {})))
        return func(*args, **(kwargs or {}))
