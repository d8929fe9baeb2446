"""The data types between routers, experts and blocks: what a router reads and decides, and what a feed-forward returns.

A router turns tokens into an `Assignment`: which token sits in which slot of which expert, and with which weight its
result is added back. Everything after that (gather, expert matmuls, weighted sum) is `layers/experts.py`, the same for
every router, so that a comparison of routers compares decisions and not implementations. With a capacity every expert
has equally many slots, some of which may stay empty; without one an expert has exactly one slot for each of its
tokens. Modules return named tuples because ZeRO-3 hooks the backward pass of a layer on the tensors in its output,
and it looks for them in tuples but not in dataclasses.

Legend: B images, T tokens of an image, N = B T tokens of the batch, D width, E experts, K choices of a token, G routing
groups, S tokens of a group, C slots of an expert in a group, P slots of an expert over all groups (G C), M slots of all
experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from experiments.routing.mixture import Mixture


class RoutingContext(NamedTuple):
    """Holds what a router may read of a batch beside the tokens that the experts process.

    residual_BTD: the tokens before the norm and modulation of the feed-forward. time_B: float32 t in [0, 1], where 1 is
    noise. time_BD: the embedded time. dropped_B: bool, whether the image has no caption, since training dropped it or
    since it is the unconditional branch of guidance. position_BT: int64, the place of each token in its image, also
    where masking leaves some out. caption_BD: the mean of caption features; None where no router reads it. prior_BE:
    float32, the prior over the experts of this layer (`switch_dit.py`), where training compares with it. real_BT: bool,
    False at the padding of captions, where text tokens are routed; None where all tokens are real.
    """

    residual_BTD: Tensor
    time_B: Tensor
    time_BD: Tensor
    dropped_B: Tensor
    position_BT: Tensor
    caption_BD: Tensor | None = None
    prior_BE: Tensor | None = None
    real_BT: Tensor | None = None

    @classmethod
    def of_a_layer_alone(cls, x_BTD: Tensor) -> RoutingContext:
        """Returns the context of a layer that is called without a model, as benchmarks do.

        The images have captions without features and times that are spread evenly over [0, 1].
        """
        num_images, num_tokens, width = x_BTD.shape
        nothing_BD = x_BTD.new_zeros(num_images, width)
        time_B = (torch.arange(num_images, device=x_BTD.device, dtype=torch.float32) + 0.5) / num_images
        position_BT = torch.arange(num_tokens, device=x_BTD.device).expand(num_images, num_tokens)
        dropped_B = torch.zeros_like(time_B, dtype=torch.bool)
        return cls(x_BTD, time_B, nothing_BD, dropped_B, position_BT, caption_BD=nothing_BD)


@dataclass(frozen=True)
class GroupDecision:
    """One router's decision over G groups of S tokens, with a capacity.

    token_GEC: int64, index in its group of the token in each slot; any valid index where the slot is empty.
    weight_GEC: float32, combine weight of each slot; 0 where it is empty.
    filled_GEC: bool, whether each slot holds a token; None when all do.
    auxiliary_loss: float32 scalar, already weighted, mean over groups; None where loads are balanced by construction.
    """

    token_GEC: Tensor
    weight_GEC: Tensor
    filled_GEC: Tensor | None
    auxiliary_loss: Tensor | None


@dataclass(frozen=True)
class Choices:
    """The experts that every token chose, where no capacity limits them.

    expert_NK: int64, the chosen experts. weight_NK: float32, their combine weights. auxiliary_loss: as in
    `GroupDecision`.
    """

    expert_NK: Tensor
    weight_NK: Tensor
    auxiliary_loss: Tensor | None


@dataclass(frozen=True)
class Pairs:
    """The pairs of token and expert that were chosen, where the number of experts differs between tokens.

    chosen_NE: bool. weight_NE: float32, combine weights, read only where chosen. auxiliary_loss: as in `GroupDecision`.
    """

    chosen_NE: Tensor
    weight_NE: Tensor
    auxiliary_loss: Tensor | None = None


class Assignment(NamedTuple):
    """The decision for a whole batch: its slots, sorted by expert. Tokens are numbered over the whole batch.

    token_M: int64 in [0, N). weight_M: float32. filled_M: bool, or None when every slot holds a token.
    slots_E: int64, number of slots of each expert where they differ; None where every expert has M / E.
    logits_NE: float32, detached. auxiliary_loss: float32 scalar or None. unconditional_N: bool, whether a token goes to
    the unconditional expert, and to no other; None where there is no such expert. observed: float32, detached, what the
    router's state (`state.py`) learns from this batch; None without a state, and outside training. mixture: the weights
    of soft MoE, whose slots hold no single token, so that here each token is paired with each expert; None elsewhere.
    """

    token_M: Tensor
    weight_M: Tensor
    filled_M: Tensor | None
    slots_E: Tensor | None
    logits_NE: Tensor
    auxiliary_loss: Tensor | None
    unconditional_N: Tensor | None = None
    observed: Tensor | None = None
    mixture: Mixture | None = None

    @property
    def expert_M(self) -> Tensor:
        """Returns the expert of each slot, int64 [M]."""
        num_experts, num_slots = self.logits_NE.shape[1], self.token_M.shape[0]
        expert_E = torch.arange(num_experts, device=self.token_M.device)
        slots = num_slots // num_experts if self.slots_E is None else self.slots_E
        return expert_E.repeat_interleave(slots, output_size=num_slots)

    @property
    def tokens_per_expert_E(self) -> Tensor:
        """Returns the number of tokens that each expert processes, int64 [E]."""
        if self.slots_E is not None:
            return self.slots_E
        num_experts = self.logits_NE.shape[1]
        if self.filled_M is None:
            return torch.full((num_experts,), self.token_M.shape[0] // num_experts, device=self.token_M.device)
        return self.filled_M.view(num_experts, -1).sum(dim=1)

    @property
    def experts_per_token_N(self) -> Tensor:
        """Returns the number of experts that process each token, int64 [N]; 0 where it is dropped or chosen by none."""
        counts_N = torch.zeros(self.logits_NE.shape[0], dtype=torch.int64, device=self.token_M.device)
        if self.unconditional_N is not None:
            counts_N += self.unconditional_N
        filled_M = torch.ones_like(self.token_M) if self.filled_M is None else self.filled_M.long()
        return counts_N.scatter_add_(0, self.token_M, filled_M)

    @property
    def num_slots_tensor(self) -> Tensor:
        """Returns the expert slots that are computed, empty ones and the unconditional expert's included, float32."""
        count = self.token_M.shape[0] if self.mixture is None else self.mixture.num_slots
        num_slots = torch.full((), float(count), device=self.token_M.device)  # without a wait for the device
        return num_slots if self.unconditional_N is None else num_slots + self.unconditional_N.sum()

    @property
    def num_slots(self) -> int:
        """Returns `num_slots_tensor` as a number; on an accelerator this waits for the device."""
        return int(self.num_slots_tensor)

    @property
    def chosen_NE(self) -> Tensor:
        """Returns whether each expert processes each token, bool [N, E]."""
        chosen_NE = torch.zeros(self.logits_NE.shape, dtype=torch.bool, device=self.token_M.device)
        expert_M, token_M = self.expert_M, self.token_M
        if self.filled_M is not None:
            expert_M, token_M = expert_M[self.filled_M], token_M[self.filled_M]
        return chosen_NE.index_put_((token_M, expert_M), torch.ones_like(token_M, dtype=torch.bool))


class FeedForwardOutput(NamedTuple):
    """The output of every feed-forward layer, dense or routed.

    out_BTD: in the type of the input. auxiliary_loss: float32 scalar, 0 where loads are balanced by construction.
    assignment: the router's decision; None for a dense layer, whose load properties are those of a single expert that
    processes every token. text_assignment: that of text tokens, where they have experts; None elsewhere.
    """

    out_BTD: Tensor
    auxiliary_loss: Tensor
    assignment: Assignment | None = None
    text_assignment: Assignment | None = None

    @property
    def tokens_per_expert_E(self) -> Tensor:
        """Returns the number of tokens that each expert processes, int64 [E]; a single B T for a dense layer."""
        if self.assignment is None:
            return torch.tensor([self.out_BTD.shape[0] * self.out_BTD.shape[1]], device=self.out_BTD.device)
        return self.assignment.tokens_per_expert_E

    @property
    def experts_per_token_BT(self) -> Tensor:
        """Returns the number of experts that process each token, int64 [B, T]; ones for a dense layer."""
        if self.assignment is None:
            return torch.ones(self.out_BTD.shape[:2], dtype=torch.int64, device=self.out_BTD.device)
        return self.assignment.experts_per_token_N.view(self.out_BTD.shape[:2])


def flatten_groups(decisions: Sequence[GroupDecision], sizes: Sequence[int], logits_NE: Tensor) -> Assignment:
    """Joins decisions over consecutive parts of a batch into one assignment over the batch.

    `sizes[i]` is S, the number of tokens of a group, in `decisions[i]`. There is more than one decision only where the
    last group of an evaluation batch is smaller than the others.
    """
    tokens, weights, filled = [], [], []
    stretches: list[int] = []
    for decision, size in zip(decisions, sizes, strict=True):
        num_groups = decision.token_GEC.shape[0]
        first_G11 = sum(stretches) + size * torch.arange(num_groups, device=logits_NE.device).view(-1, 1, 1)
        tokens.append(_experts_first(decision.token_GEC + first_G11))
        weights.append(_experts_first(decision.weight_GEC))
        filled += [] if decision.filled_GEC is None else [_experts_first(decision.filled_GEC)]
        stretches.append(num_groups * size)
    return Assignment(
        token_M=torch.cat(tokens, dim=1).flatten(),
        weight_M=torch.cat(weights, dim=1).flatten(),
        filled_M=torch.cat(filled, dim=1).flatten() if filled else None,
        slots_E=None,
        logits_NE=logits_NE.detach(),
        auxiliary_loss=_mean_loss(decisions, stretches),
    )


def sort_choices(choices: Sequence[Choices], logits_NE: Tensor) -> Assignment:
    """Sorts choices without a capacity into one assignment: an expert gets one slot for each token that chose it.

    That is N K / E slots on average. Within an expert all first choices come before all second choices, and each of
    these is in the order of its tokens.
    """
    num_tokens, num_experts = logits_NE.shape
    expert_KN = torch.cat([each.expert_NK for each in choices]).T
    weight_KN = torch.cat([each.weight_NK for each in choices]).T
    # Choices are flattened as [K, N], so the place of a choice modulo N is its token, and a stable sort by expert
    # leaves first choices before second ones.
    expert_M, order_M = torch.sort(expert_KN.reshape(-1), stable=True)
    slots_E = torch.zeros(num_experts, dtype=torch.int64, device=logits_NE.device)
    return Assignment(
        token_M=order_M % num_tokens,
        weight_M=weight_KN.reshape(-1).gather(0, order_M),
        filled_M=None,
        slots_E=slots_E.scatter_add_(0, expert_M, torch.ones_like(expert_M)),
        logits_NE=logits_NE.detach(),
        auxiliary_loss=_mean_loss(choices, [len(each.expert_NK) for each in choices]),
    )


def sort_pairs(pairs: Pairs, logits_NE: Tensor, planned: int) -> Assignment:
    """Sorts pairs into one assignment: an expert gets one slot for each of its tokens, in the order of the tokens.

    `planned` is the number of pairs that is planned for, which fake tensors (`training/simulation.py`) take.
    """
    if isinstance(pairs.chosen_NE, FakeTensor):
        expert_M = token_M = torch.zeros(planned, dtype=torch.int64, device=logits_NE.device)
    else:
        expert_M, token_M = pairs.chosen_NE.T.nonzero(as_tuple=True)
    return Assignment(
        token_M=token_M,
        weight_M=pairs.weight_NE[token_M, expert_M],
        filled_M=None,
        slots_E=pairs.chosen_NE.sum(dim=0),
        logits_NE=logits_NE.detach(),
        auxiliary_loss=pairs.auxiliary_loss,
    )


def without_tokens(assignment: Assignment, dropped_N: Tensor) -> Assignment:
    """Returns the assignment without slots of the tokens `dropped_N`, which go to the unconditional expert instead.

    Empty slots are left out too, so that what remains is computed without padding. Fake tensors keep all slots.
    """
    if isinstance(dropped_N, FakeTensor):
        return assignment._replace(unconditional_N=dropped_N)
    kept_M = ~dropped_N[assignment.token_M]
    if assignment.filled_M is not None:
        kept_M = kept_M & assignment.filled_M
    num_experts = assignment.logits_NE.shape[1]
    expert_M = assignment.expert_M[kept_M]
    slots_E = torch.zeros(num_experts, dtype=torch.int64, device=expert_M.device)
    return assignment._replace(
        token_M=assignment.token_M[kept_M],
        weight_M=assignment.weight_M[kept_M],
        filled_M=None,
        slots_E=slots_E.scatter_add_(0, expert_M, torch.ones_like(expert_M)),
        unconditional_N=dropped_N,
    )


def _mean_loss(decisions: Sequence[GroupDecision | Choices], num_tokens: Sequence[int]) -> Tensor | None:
    """Returns the mean of the auxiliary losses of consecutive parts of the batch, weighted by their tokens."""
    losses = [(each.auxiliary_loss, n / sum(num_tokens)) for each, n in zip(decisions, num_tokens, strict=True)]
    weighted = [loss * share for loss, share in losses if loss is not None]
    return torch.stack(weighted).sum() if weighted else None


def _experts_first(slots_GEC: Tensor) -> Tensor:
    """Reorders slots by expert and then by group: [G, E, C] to [E, G C]."""
    num_experts = slots_GEC.shape[1]
    return slots_GEC.transpose(0, 1).reshape(num_experts, -1)
