"""Builds public networks with the shapes of our config, and their losses as their training scripts call them.

Each function takes modules of a checkout and the config of our network, and returns the public network and a function
that maps a batch to its loss. The loss draws its own times and noise, as in the public scripts, and holds the losses of
balance and of capacity that the public code adds. Nothing of the public code is copied here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from experiments.config.schema import RunConfig
from experiments.data.loader import Batch

PublicLoss = Callable[[Batch], Tensor]
Modules = Sequence[Any]
"""The modules of a checkout in the order of its row: those of the network, and those of the loss."""


class _MoESettings(SimpleNamespace):
    """Settings that DiffMoE reads as attributes and by `get`, as those of its YAML files."""

    def get(self, name: str, default: Any = None) -> Any:
        """Returns a setting, or `default` where there is none."""
        return getattr(self, name, default)


def dit_moe(modules: Modules, config: RunConfig) -> tuple[nn.Module, PublicLoss]:
    """Returns DiT-MoE with its rectified flow; its gates add the gradient of the balance loss in backward."""
    models, flow = modules
    sizes = {"num_experts": config.routing.num_experts, "num_experts_per_tok": config.routing.top_k}
    model = models.DiT(**_sizes(config), **sizes)
    objective = flow.RectifiedFlow(model)
    return model, lambda batch: objective(batch.pixels_BCHW, batch.label_B)[0]


def diffmoe(modules: Modules, config: RunConfig) -> tuple[nn.Module, PublicLoss]:
    """Returns DiffMoE with its rectified flow and the loss of its capacity predictors, at the weight of its config."""
    return _of_diffmoe(modules, config, config.routing.capacity_factor, shared=0, CapacityPred_loss_weight=1)


def diffmoe_expert_choice(modules: Modules, config: RunConfig) -> tuple[nn.Module, PublicLoss]:
    """Returns DiffMoE's form of expert choice, which dispatches tokens by one-hot products."""
    return _of_diffmoe(modules, config, config.routing.capacity_factor, shared=0)


def diffmoe_token_choice(modules: Modules, config: RunConfig) -> tuple[nn.Module, PublicLoss]:
    """Returns DiffMoE's form of token choice, a loop over experts as in DiT-MoE, without shared experts."""
    return _of_diffmoe(modules, config, config.routing.top_k, shared=None)


def micro_diffusion(modules: Modules, config: RunConfig) -> tuple[nn.Module, PublicLoss]:
    """Returns micro_diffusion's network without a patch mixer, with its EDM loss on latents and features of captions.

    The mixer is left out by a depth of 0. Hidden widths are not rounded up, so that they are ours at any width.
    """
    dit, training = modules
    model, data, routing = config.model, config.data, config.routing
    network = dit.DiT(
        input_size=data.image_size, patch_size=model.patch_size, in_channels=data.channels, dim=model.width,
        depth=model.num_layers, head_dim=model.width // model.num_heads, multiple_of=1,
        caption_channels=data.text_width, patch_mixer_depth=0, patch_mixer_dim=model.width, use_bias=False,
        num_experts=routing.num_experts, expert_capacity=routing.capacity_factor, experts_every_n=2,
    )  # fmt: skip
    vae: Any = nn.Identity()  # latents and features are given, so that nothing is encoded
    vae.config = SimpleNamespace(scaling_factor=1.0)
    objective = training.LatentDiffusion(
        network,
        vae,
        nn.Identity(),
        tokenizer=None,
        latent_res=data.image_size,
        train_mask_ratio=config.train.mask_ratio,
    )

    def loss(batch: Batch) -> Tensor:
        assert batch.text_BLV is not None
        given = {"image_latents": batch.pixels_BCHW, "caption_latents": batch.text_BLV.unsqueeze(1)}
        total: Tensor = objective(given)[0]
        return total

    return objective, loss


def _of_diffmoe(
    modules: Modules, config: RunConfig, capacity: float | None, shared: int | None, **more: Any
) -> tuple[nn.Module, PublicLoss]:
    models, flow = modules
    settings = _MoESettings(
        num_experts=config.routing.num_experts, capacity=capacity, n_shared_experts=shared, interleave=True,
        init_MoeMLP=False,
    )  # fmt: skip
    model = models.DiT(**_sizes(config), MoE_config=settings, **more)
    objective = flow.RectifiedFlow(model)
    return model, lambda batch: objective(batch.pixels_BCHW, batch.label_B)["loss"]


def _sizes(config: RunConfig) -> dict[str, Any]:
    """Returns the arguments of the public DiT and of what is derived from it."""
    model, data = config.model, config.data
    return {
        "input_size": data.image_size, "patch_size": model.patch_size, "in_channels": data.channels,
        "hidden_size": model.width, "depth": model.num_layers, "num_heads": model.num_heads, "mlp_ratio": 4,
        "num_classes": data.num_classes, "learn_sigma": True,
    }  # fmt: skip
