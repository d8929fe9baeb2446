"""The base class of routers: a linear map to float32 logits, and the split of a batch into routing groups.

Subclasses decide from the logits. A routing group is `routing.group_images` consecutive images of one process's batch,
and tokens compete for slots only inside their group. With one image per group no image influences another. Outside
training the last group may be smaller.

Legend: as in `contract.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from experiments.accelerated import has_kernels
from experiments.config.budget import capacity_factor, expert_capacity
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError
from experiments.plugins.sources import named_plugin
from experiments.routing.answer_checks import check_choices, check_decision
from experiments.routing.contract import Assignment, Choices, GroupDecision, flatten_groups, sort_choices


class Router(nn.Module, ABC):
    """Decides which token goes to which slot of which expert, and with which combine weight."""

    plugin: str | None = None
    """The name of a plugin's router, whose answers are checked; None for the routers of this project."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.num_experts = config.routing.num_experts
        # S f_c / E is rounded up as in DeepSpeed's token choice, or down, so that f_c bounds the compute.
        self.rounds_capacity_up = config.routing.top_k is not None
        self.group_images = config.routing.group_images
        self.fast = config.train.implementation == "fast"
        self.eval_factor_is_set = config.routing.eval_capacity_factor != "same"
        self.factors = {training: capacity_factor(config, training) for training in (True, False)}
        self.weight_DE = nn.Parameter(torch.empty(config.model.width, self.num_experts))
        nn.init.normal_(self.weight_DE, std=config.model.width**-0.5)

    @abstractmethod
    def decide(self, logits_GSE: Tensor, capacity: int) -> GroupDecision:
        """Decides for G groups of S tokens from float32 logits; each expert has `capacity` slots in each group."""

    def choose(self, logits_GSE: Tensor) -> Choices:
        """Decides without a capacity, where tokens do not compete; balance losses are still taken within each group."""
        raise AssertionError("experts that choose need a number of slots")

    def forward(self, x_BTD: Tensor) -> Assignment:
        """Decides for all groups of the batch. Raises `ConfigError` where an expert would have no slot."""
        # In evaluation the last group may be smaller. It is decided by itself, with its own capacity.
        num_images, num_tokens, _ = x_BTD.shape
        logits_NE = self.logits(x_BTD.flatten(0, 1))
        group = self._images_per_group(num_images)
        rest = num_images % group
        stretches = torch.split(logits_NE, (num_images - rest) * num_tokens)  # whole groups, then the rest
        sizes = [images * num_tokens for images in (group, rest)][: len(stretches)]
        groups = [logits_ME.view(-1, size, self.num_experts) for logits_ME, size in zip(stretches, sizes, strict=True)]
        if self.factors[self.training] is None:
            return sort_choices([self._choices(logits_GSE) for logits_GSE in groups], logits_NE)
        decisions = [
            self._decision(logits_GSE, self.capacity(images, num_tokens))
            for logits_GSE, images in zip(groups, (group, rest), strict=False)
        ]
        return flatten_groups(decisions, sizes, logits_NE)

    def _decision(self, logits_GSE: Tensor, capacity: int) -> GroupDecision:
        answer = self.decide(logits_GSE, capacity)
        if self.plugin is not None:
            check_decision(answer, logits_GSE, capacity, named_plugin("router", self.plugin))
        return answer

    def _choices(self, logits_GSE: Tensor) -> Choices:
        answer = self.choose(logits_GSE)
        if self.plugin is not None:
            check_choices(answer, logits_GSE, named_plugin("router", self.plugin))
        return answer

    def logits(self, x_ND: Tensor) -> Tensor:
        """Returns logits in float32, [N, E], whatever the precision of `x_ND` and of the surrounding autocast."""
        with torch.autocast(x_ND.device.type, enabled=False):
            if self.fast and has_kernels(x_ND) and x_ND.dtype == self.weight_DE.dtype != torch.float32:
                logits_NE: Tensor = _NarrowLogits.apply(x_ND, self.weight_DE)  # type: ignore[no-untyped-call]
                return logits_NE
            return x_ND.float() @ self.weight_DE.float()

    def capacity(self, num_images: int, num_tokens: int) -> int:
        """Returns the capacity C = S f_c / E of an expert in a group of `num_images`, at most S.

        Raises `ConfigError` when that is less than one slot. A last group that is smaller than the setting gets at
        least one slot instead, so that three images can be sampled in groups of two.
        """
        factor, size = self.factors[self.training], num_images * num_tokens
        assert factor is not None, "without a limit there is no capacity"
        slots = expert_capacity(size, factor, self.num_experts, self.rounds_capacity_up)
        if slots < 1 and (self.group_images == "batch" or num_images == self.group_images):
            raise self._no_slot(factor, size)
        return max(1, min(slots, size))

    def _images_per_group(self, num_images: int) -> int:
        if not isinstance(self.group_images, int):
            return num_images
        whole = num_images % self.group_images == 0
        assert whole or not self.training, f"{num_images} images are not whole groups of {self.group_images}"
        return min(self.group_images, num_images)

    def _no_slot(self, factor: float, size: int) -> ConfigError:
        training = self.training or not self.eval_factor_is_set
        setting = "routing.capacity_factor" if training else "routing.eval_capacity_factor"
        enough = math.ceil(self.num_experts / size * 10_000) / 10_000
        return ConfigError(
            f"{setting}={factor:g} leaves each of {self.num_experts} experts less than one slot in a group of "
            f"{size} tokens.",
            f"Use at least {enough:g}, or more images per routing group.",
        )


class _NarrowLogits(torch.autograd.Function):
    """Computes float32 logits from 16-bit inputs and weights without float32 copies of either.

    Routing needs float32 logits, because rounding them to 16 bits would change which experts are chosen. A float32
    matmul would need a float32 copy of all tokens [N, D] and could not use the 16-bit matrix units. The forward pass
    needs neither: products of 16-bit numbers are exact in float32, where they are also summed.

    The gradient of the logits is float32 too, and rounding it to bfloat16 would leave it 8 significant bits. The
    backward pass therefore splits it into a 16-bit value and a 16-bit remainder, and multiplies both with 16-bit
    factors and float32 sums. Together they carry about 16 significant bits, close to what a float32 matmul would give.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x_ND: Tensor, weight_DE: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight_DE)
        return _product(x_ND, weight_DE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x_ND, weight_DE = ctx.saved_tensors
        # The subtraction is exact in float32. Value and remainder stand side by side, [N, 2 E], so that one matmul
        # takes both. The products of the two halves are added in float32 before the result is rounded.
        first_NE = gradients[0].to(x_ND.dtype)
        parts = torch.cat((first_NE, (gradients[0] - first_NE).to(x_ND.dtype)), dim=1)
        grad_first_DE, grad_rest_DE = _product(x_ND.T, parts).chunk(2, dim=1)
        return parts @ weight_DE.repeat(1, 2).T, (grad_first_DE + grad_rest_DE).to(weight_DE.dtype)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Returns the matrix product of 16-bit factors in float32."""
    # Only CUDA has a matmul with 16-bit factors and a float32 result. Elsewhere the factors are widened first.
    if a.device.type == "cuda" and torch.version.hip is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def affinity(logits: Tensor, gating: str | None, dim: int = -1) -> Tensor:
    """Returns token-expert affinities from logits: softmax over experts (`dim`), sigmoid, or the logit itself."""
    if gating == "sigmoid":
        return logits.sigmoid()
    if gating == "identity":
        return logits
    return logits.softmax(dim=dim)
