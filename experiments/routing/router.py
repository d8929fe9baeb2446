"""The base class of routers: logits, the split of a batch into routing groups, and the auxiliary losses of a decision.

Subclasses decide from the logits. A routing group is `routing.group_images` consecutive images of one process's batch,
and tokens compete for slots only inside their group. With one image per group no image influences another. Outside
training the last group may be smaller. A subclass whose tokens compete otherwise overrides `assign`.

Legend: as in `contract.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from experiments.config.budget import capacity_factor, compute_varies, expert_capacity
from experiments.config.router_sizes import router_input_width
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError
from experiments.plugins.sources import named_plugin
from experiments.routing.answer_checks import check_assignment, check_choices, check_decision
from experiments.routing.contract import (
    Assignment,
    Choices,
    GroupDecision,
    RoutingContext,
    flatten_groups,
    sort_choices,
    without_tokens,
)
from experiments.routing.logits import form_logits, router_input
from experiments.routing.losses import contrastive_loss, similarity_loss, z_loss
from experiments.routing.state import RouterState


class Router(nn.Module):
    """Decides which token goes to which slot of which expert, and with which combine weight.

    A subclass overrides `decide`, or `assign` where its rule is not one of slots in groups.
    """

    plugin: str | None = None
    """The name of a plugin's router, whose answers are checked; None for the routers of this project."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        routing, width = config.routing, config.model.width
        self.num_experts = routing.num_experts
        # S f_c / E is rounded up as in DeepSpeed's token choice, or down, so that f_c bounds the compute.
        self.rounds_capacity_up = routing.top_k is not None
        self.group_images = routing.group_images
        self.fast = config.train.is_fast
        self.eval_factor_is_set = routing.eval_capacity_factor != "same"
        self.factors = {training: capacity_factor(config, training) for training in (True, False)}
        self.input, self.form = routing.input, routing.form
        self.loss_weights = (routing.z_loss_weight, routing.similarity_loss_weight, routing.contrastive_loss_weight)
        self.has_unconditional = routing.unconditional_expert
        self.warmup_images, self.images_seen = routing.capacity_warmup_images, 0
        """`images_seen` is set by the training loop before each step (`training/router_states.py`)."""
        self.layer, self.layer_factor, self.is_text = 0, 1.0, False
        self.decides_as_in_training = False
        """Set where a model in evaluation mode shall decide by competition (`training/validation.py`)."""
        self.has_fixed_shapes = (
            self.factors[False] is not None
            and ROUTERS[routing.name].rule in ("tokens", "experts", "soft")
            and not routing.unconditional_expert
            and not compute_varies(config, training=False)
        )
        """Says whether a batch outside training always fills equally many slots, whatever its tokens."""
        self.state: RouterState | None = None
        if ROUTERS[routing.name].has_logits:
            values = router_input_width(config)
            rows = width if self.form == "mlp" else values
            self.weight_DE = nn.Parameter(torch.empty(rows, self.num_experts))
            nn.init.normal_(self.weight_DE, std=rows**-0.5)
            if self.form == "mlp":
                self.hidden_DD = nn.Parameter(torch.empty(values, width))
                nn.init.normal_(self.hidden_DD, std=values**-0.5)

    @property
    def competes(self) -> bool:
        """Says whether tokens compete, as they do in training, or are compared with thresholds where there are any."""
        return self.training or self.decides_as_in_training

    def in_layer(self, layer: int, factor: float, is_text: bool = False) -> None:
        """Tells the router the number of its block, from 0, the factor on f_c there, and whether it routes text."""
        self.layer, self.layer_factor, self.is_text = layer, factor, is_text

    def decide(self, logits_GSE: Tensor, capacity: int) -> GroupDecision:
        """Decides for G groups of S tokens from float32 logits; each expert has `capacity` slots in each group."""
        raise AssertionError(f"{type(self).__name__} has no rule for slots in groups")

    def choose(self, logits_GSE: Tensor) -> Choices:
        """Decides without a capacity, where tokens do not compete; balance losses are still taken within each group."""
        raise AssertionError("experts that choose need a number of slots")

    def forward(self, x_BTD: Tensor, context: RoutingContext | None = None) -> Assignment:
        """Decides for the batch; without a `context`, as in a layer alone.

        Raises `ConfigError` where an expert would have no slot.
        """
        context = context or RoutingContext.of_a_layer_alone(x_BTD)
        logits_BTE = self.logits(x_BTD, context)
        assignment = self.assign(logits_BTE, x_BTD, context)
        if self.plugin is not None:
            check_assignment(assignment, named_plugin("router", self.plugin))
        if self.has_unconditional:
            assignment = without_tokens(assignment, context.dropped_B.repeat_interleave(x_BTD.shape[1]))
        if not self.training:
            return assignment
        return self._with_losses(assignment, logits_BTE.flatten(0, 1), x_BTD, self.counted(context))

    def assign(self, logits_BTE: Tensor, x_BTD: Tensor, context: RoutingContext) -> Assignment:
        """Decides from the logits, by default in routing groups."""
        # In evaluation the last group may be smaller. It is decided by itself, with its own capacity.
        num_images, num_tokens, _ = logits_BTE.shape
        logits_NE = logits_BTE.flatten(0, 1)
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

    def counted(self, context: RoutingContext) -> Tensor | None:
        """Returns the tokens that losses and states are taken over, bool [N]; None where these are all.

        Padding of captions is not counted, since nobody reads what becomes of it. Tokens of an unconditional expert are
        not counted, since they load no other expert.
        """
        counted_BT = context.real_BT
        if self.has_unconditional:
            kept_BT = (~context.dropped_B).unsqueeze(1).expand_as(context.position_BT)
            counted_BT = kept_BT if counted_BT is None else counted_BT & kept_BT
        return None if counted_BT is None else counted_BT.flatten()

    def counted_balance(self, logits_GSE: Tensor, counted_GS: Tensor) -> Tensor | None:
        """Returns the weighted balance loss over the tokens that count, in place of the decision's over all tokens.

        It is None where the router has no balance loss. A router that has one overrides this.
        """
        return None

    def logits(self, x_BTD: Tensor, context: RoutingContext) -> Tensor:
        """Returns logits in float32, [B, T, E], whatever the precision of `x_BTD`."""
        z = router_input(self.input, x_BTD, context)
        logits = form_logits(self.form, z.flatten(0, 1), self.weight_DE, getattr(self, "hidden_DD", None), self.fast)
        return logits.view(*z.shape[:2], -1).expand(*x_BTD.shape[:2], -1)

    def factor(self) -> float | None:
        """Returns the f_c that applies now in this layer; None without a limit."""
        target = self.factors[self.training]
        if target is None:
            return None
        if self.training and self.images_seen < self.warmup_images:
            target += (self.num_experts - target) * (1 - self.images_seen / self.warmup_images)
        return min(target * self.layer_factor, float(self.num_experts))

    def capacity(self, num_images: int, num_tokens: int) -> int:
        """Returns the capacity C = S f_c / E of an expert in a group of `num_images`, at most S.

        Raises `ConfigError` when that is less than one slot. A last group that is smaller than the setting gets at
        least one slot instead, so that three images can be sampled in groups of two.
        """
        factor, size = self.factor(), num_images * num_tokens
        assert factor is not None, "without a limit there is no capacity"
        slots = expert_capacity(size, factor, self.num_experts, self.rounds_capacity_up)
        if slots < 1 and (not isinstance(self.group_images, int) or num_images == self.group_images):
            raise self._no_slot(size)
        return max(1, min(slots, size))

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

    def _with_losses(
        self, assignment: Assignment, logits_NE: Tensor, x_BTD: Tensor, counted_N: Tensor | None
    ) -> Assignment:
        """Adds the losses that every router can have to that of the decision."""
        z, similarity, contrastive = self.loss_weights
        of_decision = assignment.auxiliary_loss
        if counted_N is not None:
            size = self._tokens_per_group(x_BTD)
            balance = self.counted_balance(logits_NE.view(-1, size, self.num_experts), counted_N.view(-1, size))
            of_decision = of_decision if balance is None else balance
        losses = [] if of_decision is None else [of_decision]
        losses += [z * z_loss(logits_NE, counted_N)] if z else []
        if similarity:
            everywhere = self.group_images == "all"
            losses += [similarity * similarity_loss(logits_NE, assignment.chosen_NE, everywhere, counted_N)]
        if contrastive:
            size = self._tokens_per_group(x_BTD)
            x_GSD = x_BTD.reshape(-1, size, x_BTD.shape[2])
            chosen_NE = assignment.chosen_NE if counted_N is None else assignment.chosen_NE & counted_N.unsqueeze(1)
            chosen_GSE = chosen_NE.view(-1, size, self.num_experts)
            losses += [contrastive * contrastive_loss(x_GSD, self.weight_DE, chosen_GSE)]
        return assignment._replace(auxiliary_loss=torch.stack(losses).sum() if losses else None)

    def _tokens_per_group(self, x_BTD: Tensor) -> int:
        return self._images_per_group(x_BTD.shape[0]) * x_BTD.shape[1]

    def _images_per_group(self, num_images: int) -> int:
        if not isinstance(self.group_images, int):
            return num_images
        whole = num_images % self.group_images == 0
        assert whole or not self.training, f"{num_images} images are not whole groups of {self.group_images}"
        return min(self.group_images, num_images)

    def _no_slot(self, size: int) -> ConfigError:
        training, given = self.training or not self.eval_factor_is_set, self.factors[self.training]
        setting = "routing.capacity_factor" if training else "routing.eval_capacity_factor"
        enough = math.ceil(self.num_experts / (size * self.layer_factor) * 10_000) / 10_000
        layer = f" in the layer with the factor {self.layer_factor:g}" if self.layer_factor != 1 else ""
        at_least = f"Use at least {enough:g}, or more" if enough <= self.num_experts else "Use more"
        return ConfigError(
            f"{setting}={given:g} leaves each of {self.num_experts} experts less than one slot in a group of "
            f"{size} tokens{layer}.",
            f"{at_least} images per routing group.",
        )
