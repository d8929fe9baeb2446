"""The registry of public networks that `ecdit bench train --beside` trains beside ours, a row each, free of torch.

None of their code is part of this project: the user names a checkout. A row says how to recognise the checkout, which
of our settings build the matching network, and in what the two still differ. `public_models.py` has a function for each
variant, which builds the public network and its loss from the same settings. A new network is a row here and a function
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.errors import ConfigError, EcditError, did_you_mean

if TYPE_CHECKING:
    from experiments.config.schema import RunConfig

OURS, PUBLIC = "ours", "public"
"""The names of the two sides of a comparison."""
LOOP_TARGET, ONE_HOT_TARGET = 1.5, 1.15
"""The least images/s over those of a public network that loops over its experts, or that dispatches another way."""
MEMORY_LIMIT = 0.9
"""The largest peak memory over that of the public network."""
ONE_PROCESS = ("parallel.world=1", "train.accumulation=1")


@dataclass(frozen=True)
class PublicVariant:
    """Holds one network of a checkout and the settings of ours that match it."""

    label: str
    sizes: tuple[str, ...]
    """The settings that are only defaults, which the user may replace."""
    form: tuple[str, ...]
    """The settings that the public code fixes."""
    modules: tuple[str, ...]
    """The modules of the checkout that the network and its loss are in."""
    build: str
    """`MODULE:FUNCTION` that returns the public network and its loss, for these modules and our config."""
    target: float
    """The least ratio of our images/s to theirs."""
    differs: str
    """Sentences that say what is not the same in both."""
    has_dense_end: bool = False
    """Says whether the last block has no experts although it would be its turn."""
    data: tuple[tuple[str, Any], ...] = ()
    """Values of `data.*` for captions of the public shape, which no data set that is described has."""


@dataclass(frozen=True)
class PublicNetwork:
    """Holds one repository: how its checkout is recognised, and which of its networks are measured."""

    name: str
    repository: str
    commit: str
    """The commit that this was tested with."""
    files: tuple[str, ...]
    """Files by which a checkout is recognised."""
    variants: tuple[PublicVariant, ...]
    unused: tuple[str, ...] = ()
    """Modules that its files import and that a training step does not use."""
    has_average: bool = True
    """Says whether its training script keeps a moving average of the weights, so that both sides do."""
    clip_norm: float | None = None
    """The largest norm of its gradients; ours are always clipped."""


OF_CLASSES = "Ours clips gradients."
OF_DIFFMOE = f"{OF_CLASSES} Experts of ours have the exact GELU, theirs its tanh form."
OF_MICRO = (
    "Theirs passes captions through a block of self-attention and has a modulation network in every block (as many "
    "weights more); ours adds pooled features of the caption and shares one network. Neither has a patch mixer."
)
BUILDERS = "experiments.benchmarks.public_models"
FLOW = "diffusion.rectified_flow"
MICRO_MODULES = ("micro_diffusion.models.dit", "micro_diffusion.models.model")
CLASSES = ("model=dit-s-2", "routing.num_experts=8")
ALTERNATE = ("model.block=dit", "model.sparse_layers=alternate", "data.name=imagenet", "routing.expert_bias=True")
EXPERTS = ("routing.expert=gelu", "routing.expert_factor=4", "model.ffn_factor=4")
MICRO = (
    "model.block=pixart", "data.name=sd3", "model.ffn=swiglu", f"model.ffn_factor={8 / 3!r}", "flow.objective=edm",
    "routing=expert_choice", "routing.capacity_factor=2", "routing.group_images=1", *EXPERTS[:2],
)  # fmt: skip
MICRO_DATA = (("channels", 4), ("caption_length", 77), ("text_width", 1024), ("pooled_width", 1024))
"""Latents of 4 channels, and captions of 77 tokens with 1,024 features, as of the public code's CLIP."""

NETWORKS = (
    PublicNetwork(
        "dit-moe", "feizc/DiT-MoE", "bd34bbb", ("models.py", "diffusion/rectified_flow.py"),
        (
            PublicVariant(
                "DiT-MoE", CLASSES,
                (
                    "model.block=dit", "model.sparse_layers=all", "data.name=imagenet", "model.ffn_factor=4",
                    "routing=shared_expert", "routing.capacity_factor=None", "routing.expert=swiglu",
                    "routing.expert_factor=4", "routing.shared_factor=2",
                ),
                ("models", FLOW), f"{BUILDERS}:dit_moe", LOOP_TARGET, OF_CLASSES,
            ),
        ),
    ),
    PublicNetwork(
        "micro-diffusion", "SonyResearch/micro_diffusion", "900d7d4",
        ("micro_diffusion/models/dit.py", "micro_diffusion/models/model.py"),
        (
            PublicVariant(
                "micro_diffusion, no mask", ("model=S", "routing.num_experts=8"), (*MICRO, "train.mask_ratio=0"),
                MICRO_MODULES, f"{BUILDERS}:micro_diffusion", ONE_HOT_TARGET, OF_MICRO, True, MICRO_DATA,
            ),
            PublicVariant(
                "micro_diffusion, 75% masked", ("model=S", "routing.num_experts=8"), (*MICRO, "train.mask_ratio=0.75"),
                MICRO_MODULES, f"{BUILDERS}:micro_diffusion", ONE_HOT_TARGET, OF_MICRO, True, MICRO_DATA,
            ),
        ),
        # Composer is the base class of its trainer and asks for a torch below ours; the others encode captions,
        # decode images or measure, which a step on latents does not.
        unused=("composer", "composer.models", "diffusers", "einops", "open_clip", "torchmetrics", "transformers"),
        has_average=False, clip_norm=0.25,
    ),
    PublicNetwork(
        "diffmoe", "KwaiVGI/DiffMoE", "3b7146d", ("models/models_DiffMoE.py", "diffusion/rectified_flow.py"),
        (
            PublicVariant(
                "DiffMoE", CLASSES,
                (*ALTERNATE, *EXPERTS, "routing=diffmoe", "routing.capacity_factor=1", "routing.group_images=batch"),
                ("models.models_DiffMoE", FLOW), f"{BUILDERS}:diffmoe", ONE_HOT_TARGET, OF_DIFFMOE,
            ),
            PublicVariant(
                "DiffMoE's expert choice", CLASSES,
                (*ALTERNATE, *EXPERTS, "routing=expert_choice", "routing.capacity_factor=1", "routing.group_images=1"),
                ("models.models_ECDiT", FLOW), f"{BUILDERS}:diffmoe_expert_choice", ONE_HOT_TARGET, OF_DIFFMOE,
            ),
            PublicVariant(
                "DiffMoE's token choice", CLASSES,
                (
                    *ALTERNATE, *EXPERTS, "routing=shared_expert", "routing.shared_factor=0", "routing.top_k=1",
                    "routing.capacity_factor=None", "routing.balance_loss_weight=0.01",
                ),
                ("models.models_TCDiT", FLOW), f"{BUILDERS}:diffmoe_token_choice", LOOP_TARGET, OF_DIFFMOE,
            ),
        ),
        unused=("pexpect", "torchdiffeq"),  # a name that nothing uses, and a solver for sampling
    ),
)  # fmt: skip
PUBLIC_NETWORKS = {network.name: network for network in NETWORKS}


def find_network(name: str) -> PublicNetwork:
    """Returns the row called `name`. Raises `EcditError` with the closest name where there is none."""
    if name not in PUBLIC_NETWORKS:
        raise EcditError(f"--beside {name!r} is no public network.", did_you_mean(name, PUBLIC_NETWORKS))
    return PUBLIC_NETWORKS[name]


def matching_config(network: PublicNetwork, variant: PublicVariant, overrides: Sequence[str]) -> RunConfig:
    """Returns the config of our network. Raises `ConfigError` for an override that the public code does not have."""
    from experiments.config.overrides import build_config, expand, load_config

    sizes = build_config(expand([*variant.sizes, *overrides])).model  # not checked: heads need the form to fit
    form = [*variant.form, *ONE_PROCESS, f"model.num_kv_heads={sizes.num_heads}"]
    if variant.has_dense_end:
        blocks = range(1, sizes.num_layers - 1, 2)
        if not blocks:
            raise ConfigError(
                f"model.num_layers={sizes.num_layers} leaves {network.name} no block with experts.",
                "Use model.num_layers=3 or more.",
            )
        form.append(f"model.sparse_layers={','.join(map(str, blocks))}")
    config = load_config([*variant.sizes, *overrides, *form])
    _refuse_changes(network, config, load_config([*variant.sizes, *form, *overrides]))
    return config.model_copy(update={"data": config.data.model_copy(update=dict(variant.data))})


def _refuse_changes(network: PublicNetwork, config: RunConfig, asked: RunConfig) -> None:
    """Raises `ConfigError` where the overrides ask for a value that the public code does not have."""
    for section in type(config).model_fields:
        wanted, found = getattr(config, section), getattr(asked, section)
        for key in getattr(type(wanted), "model_fields", ()):  # the seed is no group of settings
            value, given = getattr(wanted, key), getattr(found, key)
            if given != value:
                raise ConfigError(
                    f"{section}.{key}={given} does not fit --beside {network.name}: {network.repository} has {value} "
                    "there.",
                    f"Leave out {section}.{key}.",
                )
