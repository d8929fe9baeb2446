"""The router: a linear map to expert logits in float32, routing groups, and a decision left to the subclass.

A routing group is `routing.group_images` consecutive images of one process's batch; tokens compete for slots inside
their group only. With one image per group no image changes another. Outside training a last group may be smaller.

Legend: as in `contract.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from experiments.config.budget import capacity_factor, expert_capacity
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError
from experiments.routing.accelerated import has_kernels
from experiments.routing.contract import Assignment, Choices, GroupDecision, flatten_groups, sort_choices


class Router(nn.Module, ABC):
    """Decides which token goes to which slot of which expert, with which weight."""

    rounds_capacity_up: ClassVar[bool]
    """Tokens that choose always get a slot; experts that choose never spend more than f_c."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.num_experts = config.routing.num_experts
        self.group_images = config.routing.group_images
        self.fast = config.train.implementation == "fast"
        self.eval_factor_is_set = config.routing.eval_capacity_factor != "same"
        self.factors = {training: capacity_factor(config, training) for training in (True, False)}
        self.weight_DE = nn.Parameter(torch.empty(config.model.width, self.num_experts))
        nn.init.normal_(self.weight_DE, std=config.model.width**-0.5)

    @abstractmethod
    def decide(self, logits_GSE: Tensor, capacity: int) -> GroupDecision:
        """The decision for G groups of S tokens from their float32 logits, with `capacity` slots of an expert each."""

    def choose(self, logits_GSE: Tensor) -> Choices:
        """The same without a limit, where nothing competes; balance losses are still those of G groups."""
        raise AssertionError("experts that choose need a number of slots")

    def forward(self, x_BTD: Tensor) -> Assignment:
        """Each group's decision; a `ConfigError` where an expert would have no slot."""
        num_images, num_tokens, _ = x_BTD.shape
        logits_NE = self.logits(x_BTD.flatten(0, 1))
        group = self._images_per_group(num_images)
        rest = num_images % group
        stretches = torch.split(logits_NE, (num_images - rest) * num_tokens)  # whole groups, then what is left
        sizes = [images * num_tokens for images in (group, rest)][: len(stretches)]
        groups = [logits_ME.view(-1, size, self.num_experts) for logits_ME, size in zip(stretches, sizes, strict=True)]
        if self.factors[self.training] is None:
            return sort_choices([self.choose(logits_GSE) for logits_GSE in groups], logits_NE)
        decisions = [
            self.decide(logits_GSE, self.capacity(images, num_tokens))
            for logits_GSE, images in zip(groups, (group, rest), strict=False)
        ]
        return flatten_groups(decisions, sizes, logits_NE)

    def logits(self, x_ND: Tensor) -> Tensor:
        """Float32 [N, E], whatever the precision of `x_ND` and of the surrounding autocast."""
        with torch.autocast(x_ND.device.type, enabled=False):
            if self.fast and has_kernels(x_ND) and x_ND.dtype == self.weight_DE.dtype != torch.float32:
                logits_NE: Tensor = _NarrowLogits.apply(x_ND, self.weight_DE)  # type: ignore[no-untyped-call]
                return logits_NE
            return x_ND.float() @ self.weight_DE.float()

    def capacity(self, num_images: int, num_tokens: int) -> int:
        """C = S f_c / E of a group of `num_images`, at most S.

        A `ConfigError` when that is less than one slot, except that a last group, which is smaller than the setting
        says, has at least one: sampling three images works where groups of two do.
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
    """Logits of 16-bit factors, which need no copies in float32: their products are exact in float32 sums.

    The gradient of the logits, which is in float32, goes into backward's products as two numbers of 16 bits, what the
    first leaves out.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x_ND: Tensor, weight_DE: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight_DE)
        return _product(x_ND, weight_DE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x_ND, weight_DE = ctx.saved_tensors
        first_NE = gradients[0].to(x_ND.dtype)
        parts = torch.cat((first_NE, (gradients[0] - first_NE).to(x_ND.dtype)), dim=1)
        of_first_DE, of_rest_DE = _product(x_ND.T, parts).chunk(2, dim=1)
        return parts @ weight_DE.repeat(1, 2).T, (of_first_DE + of_rest_DE).to(weight_DE.dtype)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """In float32, of 16-bit factors."""
    if a.device.type == "cuda" and torch.version.hip is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def affinity(logits: Tensor, gating: str | None, dim: int = -1) -> Tensor:
    """How much a token and an expert want each other: softmax over experts (`dim`), sigmoid, or the logit itself."""
    if gating == "sigmoid":
        return logits.sigmoid()
    if gating == "identity":
        return logits
    return logits.softmax(dim=dim)
