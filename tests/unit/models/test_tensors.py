"""The parameter tensors by arithmetic are those of the real module, in its order."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from experiments.config.blocks import BLOCKS, QkNorm, conditioned_by
from experiments.config.budget import budget
from experiments.config.overrides import load_config
from experiments.config.routers import ROUTERS
from experiments.config.tensors import tensor_sizes
from experiments.models.dit import DiT
from experiments.models.parts import part_of

WITH_TEXT_EXPERTS = ("model.block=mmdit", "routing.text_experts=4", "model.sparse_layers=all")


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=nano",),
        ("model=mini", "routing=dense"),
        ("model=dit-moe-S", "routing=shared_expert"),
        ("model=S",),
        ("model=nano", "model.sparse_layers=1:-1"),
        ("model=nano", "routing.expert_bias=True"),
        ("model=dit-moe-S", "routing=shared_expert", "routing.expert_bias=True"),
        ("model=nano", "model.sparse_layers=0,3"),
        *(
            ("model=nano", f"routing={router}", f"model.block={block}")
            for router in ROUTERS
            for block in ("dit", "mmdit")
        ),
        *(("model=nano", f"routing={router}", *WITH_TEXT_EXPERTS) for router in ("shared_expert", "promoe", "diffmoe")),
        *(
            ("model=nano", f"model.block={block}", f"model.qk_norm={kind}")
            for block in BLOCKS
            for kind in get_args(QkNorm)
        ),
        *(("model=nano", f"model.block={block}", "model.ffn=swiglu") for block in BLOCKS),
    ],
)
def test_every_tensor_is_that_of_the_module(overrides):
    config = load_config(overrides)
    with torch.device("meta"):
        module = DiT(config)
    real = [(name, p.numel(), part_of(name) == "experts") for name, p in module.named_parameters()]
    assert list(tensor_sizes(config)) == real


@pytest.mark.parametrize("block", conditioned_by("caption"))
def test_precomputed_features_have_their_own_tensors(block, latent_set):
    data = ["data.name=latents", f"data.path={latent_set}", "model.patch_size=2"]
    config = load_config(["model=nano", f"model.block={block}", *data])
    real = [(name, p.numel(), part_of(name) == "experts") for name, p in DiT(config).named_parameters()]
    assert list(tensor_sizes(config)) == real


def test_the_tensors_add_up_to_the_budget():
    config = load_config(["model=M", "routing.num_experts=64"])
    assert sum(size.elements for size in tensor_sizes(config)) == budget(config).params_total
