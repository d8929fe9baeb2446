"""Switch-DiT's router: the noise level of an image chooses k of E experts, which change the input of a whole block.

Park et al. 2024 (arXiv 2403.09176), section 3. With p = softmax(W SiLU(emb(t))), T_t its k largest entries and the raw
g = p on them, experts W_e x + b_e change the input x of the block (`layers/block_mixture.py`):

    m = 1 + sum_{e in T_t} g_e (W_e x + b_e);  out = Block(x m) + (1 - m) x, elementwise

All tokens of an image share the choice, which is an `Assignment` like that of any other router. The experts of all L
mixtures are U = L E units, and a prior says that neighbouring noise levels use overlapping units: at t, with 1 as
noise, the L k units that begin at round(t^4 (U - L k)) (the paper's equation of its mask, with alpha 4). Which unit
stands at which place of the prior is matched anew in every forward pass of training: the assignment with the smallest
sum of |choice - prior| over a grid of t. The loss is the Jensen-Shannon divergence

    JSD(P, Q) = 1/2 sum_u P log(P / M) + 1/2 sum_u Q log(Q / M),  M = (P + Q) / 2

at the noise levels of the batch, where P is the choice p of all mixtures side by side, divided by L, and Q is the
matched prior divided by L k, so that both sum to 1. It is a sum over units, so that each mixture adds the part of its
own units, as losses of layers are added.

What differs from the public code (byeongjun-park/Switch-DiT, `models/MoE.py` and `models/DiT/models.py`): t is
continuous, the grid of the matching has 100 levels instead of 1000 steps, ties are broken by the order of units
instead of at random, W has no bias, and `model.sparse_layers` says which blocks have a mixture, in the paper all.

Legend: as in `contract.py`, with G noise levels of the grid and U units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from experiments.config.schema import RunConfig
from experiments.routing.contract import Assignment, RoutingContext
from experiments.routing.top_k import TopKRouter

ALPHA = 4.0
"""The exponent of the noise level in the prior, from the paper's public code."""
EPSILON = 1e-6
"""The logarithms of the divergence add this to probabilities, which may be 0, as in the public code."""


class SwitchDiTRouter(TopKRouter):
    """A router in which the noise level chooses, and whose loss compares it with a prior."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.prior_loss_weight, self.num_layers = config.routing.prior_loss_weight, len(config.sparse_layer_indices)

    def assign(self, logits_BTE: Tensor, x_BTD: Tensor, context: RoutingContext) -> Assignment:
        """Decides once for an image, and compares the probabilities with `context.prior_BE` where there is one."""
        assignment = super().assign(logits_BTE, x_BTD, context)
        if context.prior_BE is None:
            return assignment
        p_BE = logits_BTE[:, 0].softmax(dim=-1)
        loss = self.prior_loss_weight * divergence(p_BE / self.num_layers, context.prior_BE)
        return assignment._replace(auxiliary_loss=loss)


def layer_priors(routers: Sequence[SwitchDiTRouter], time_GD: Tensor, time_B: Tensor) -> list[Tensor]:
    """Returns the matched prior of each router, float32 [B, E]; all of them together sum to 1 for each image.

    `time_GD` is the embedded grid of G noise levels from 0 to 1, on which the present choices are compared with it.
    """
    (first, *_), num_units = routers, sum(router.num_experts for router in routers)
    level_G1D = time_GD.unsqueeze(1)
    context = RoutingContext.of_a_layer_alone(level_G1D)._replace(time_BD=time_GD)
    chosen_GU = torch.cat([router(level_G1D, context).chosen_NE for router in routers], dim=1)
    num_chosen = first.top_k * len(routers)
    grid_G = torch.linspace(0, 1, len(time_GD), device=time_GD.device)
    place_U = match_units(chosen_GU.float(), prior_mask(grid_G, num_units, num_chosen))
    prior_BU = prior_mask(time_B, num_units, num_chosen)[:, place_U] / num_chosen
    return list(prior_BU.chunk(len(routers), dim=1))


def prior_mask(time_B: Tensor, num_units: int, num_chosen: int) -> Tensor:
    """Returns 1 at the units that the prior gives to each noise level and 0 at the others, float32 [B, U]."""
    first_B1 = (time_B.float().clamp(0, 1) ** ALPHA * (num_units - num_chosen)).round().unsqueeze(1)
    unit_U = torch.arange(num_units, device=time_B.device)
    return ((unit_U >= first_B1) & (unit_U < first_B1 + num_chosen)).float()


def match_units(chosen_GU: Tensor, mask_GU: Tensor) -> Tensor:
    """Returns the place of the prior for each unit, int64 [U]: a permutation that minimises the sum of |difference|.

    Fake tensors, which have no values, keep the order.
    """
    if isinstance(chosen_GU, FakeTensor):
        return torch.arange(chosen_GU.shape[1], device=chosen_GU.device)
    from scipy.optimize import linear_sum_assignment

    cost_UU = (chosen_GU.T.unsqueeze(1) - mask_GU.T.unsqueeze(0)).abs().sum(dim=2)
    _, place_U = linear_sum_assignment(cost_UU.cpu().numpy())
    return torch.as_tensor(place_U, dtype=torch.int64, device=chosen_GU.device)


def divergence(p_BU: Tensor, q_BU: Tensor) -> Tensor:
    """Returns the Jensen-Shannon divergence over units, the mean over images, in nats: a float32 scalar."""
    log_m_BU = ((p_BU + q_BU) / 2 + EPSILON).log()
    terms_BU = p_BU * ((p_BU + EPSILON).log() - log_m_BU) + q_BU * ((q_BU + EPSILON).log() - log_m_BU)
    return terms_BU.sum(dim=1).mean() / 2
