"""MM-DiT is the transformer of SD3: the same function as that of diffusers, with equally many parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from experiments.config.budget import budget
from experiments.config.overrides import load_config
from experiments.config.presets import PRESETS
from experiments.models.dit import DiT

diffusers = pytest.importorskip("diffusers", reason="the public code of SD3 is that of diffusers")

SIDE, CHANNELS, TEXT_WIDTH, POOLED_WIDTH, LENGTH, LAYERS, HEADS = 8, 16, 4096, 2048, 5, 3, 2
NORMS = {
    "norm_q": "attention.norm_query", "norm_k": "attention.norm_key",
    "norm_added_q": "text_attention.norm_query", "norm_added_k": "text_attention.norm_key",
}  # fmt: skip
SD3_PRESETS = {name: row for name, row in PRESETS.items() if row.block == "mmdit"}


def public_model(**changes: Any) -> Any:
    """SD3's transformer by diffusers, a small one unless told otherwise."""
    heads = changes.get("num_attention_heads", HEADS)
    sizes = {
        "sample_size": SIDE, "pos_embed_max_size": SIDE // 2, "in_channels": CHANNELS, "out_channels": CHANNELS,
        "num_layers": LAYERS, "num_attention_heads": HEADS, "attention_head_dim": 64,
        "joint_attention_dim": TEXT_WIDTH, "pooled_projection_dim": POOLED_WIDTH, "caption_projection_dim": 64 * heads,
    }  # fmt: skip
    return diffusers.SD3Transformer2DModel(**{**sizes, **changes})


def of_public_code(public: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The weights of diffusers under our names."""

    def linear(theirs: str, ours: str) -> dict[str, Tensor]:
        return {f"{ours}.{kind}": public[f"{theirs}.{kind}"] for kind in ("weight", "bias")}

    def joined(ours: str, *theirs: str) -> dict[str, Tensor]:
        return {f"{ours}.{kind}": torch.cat([public[f"{one}.{kind}"] for one in theirs]) for kind in ("weight", "bias")}

    def swapped(theirs: str, ours: str) -> dict[str, Tensor]:
        """Scale and shift change places: diffusers has the scale first where there is no gate."""
        parts = {f"{ours}.{kind}": public[f"{theirs}.{kind}"].chunk(2) for kind in ("weight", "bias")}
        return {name: torch.cat((shift, scale)) for name, (scale, shift) in parts.items()}

    found = linear("pos_embed.proj", "embed") | swapped("norm_out.linear", "modulation")
    found["embed.weight"] = found["embed.weight"].flatten(1)
    for theirs, ours in {
        "time_text_embed.timestep_embedder.linear_1": "time.mlp_in",
        "time_text_embed.timestep_embedder.linear_2": "time.mlp_out",
        "time_text_embed.text_embedder.linear_1": "text.pooled_in",
        "time_text_embed.text_embedder.linear_2": "text.pooled_out",
        "context_embedder": "text.text_in",
    }.items():
        found |= linear(theirs, ours)
    # The values of a token stand with the channel last there, and first here.
    for kind in ("weight", "bias"):
        rows = public[f"proj_out.{kind}"].unflatten(0, (4, CHANNELS))
        found[f"head.{kind}"] = rows.transpose(0, 1).flatten(0, 1)
    for layer in range(layers):
        ours, theirs, is_last = f"blocks.{layer}", f"transformer_blocks.{layer}", layer == layers - 1
        found |= linear(f"{theirs}.norm1.linear", f"{ours}.modulation")
        context = swapped if is_last else linear
        found |= context(f"{theirs}.norm1_context.linear", f"{ours}.text_modulation")
        found |= linear(f"{theirs}.attn.to_q", f"{ours}.attention.query")
        found |= joined(f"{ours}.attention.key_value", f"{theirs}.attn.to_k", f"{theirs}.attn.to_v")
        found |= linear(f"{theirs}.attn.to_out.0", f"{ours}.attention.out")
        found |= linear(f"{theirs}.attn.add_q_proj", f"{ours}.text_attention.query")
        added = [f"{theirs}.attn.add_{part}_proj" for part in ("k", "v")]
        found |= joined(f"{ours}.text_attention.key_value", *added)
        for norm, name in NORMS.items():
            if f"{theirs}.attn.{norm}.weight" in public:
                found[f"{ours}.{name}.weight"] = public[f"{theirs}.attn.{norm}.weight"]
        found |= linear(f"{theirs}.ff.net.0.proj", f"{ours}.ffn.w_in")
        found |= linear(f"{theirs}.ff.net.2", f"{ours}.ffn.w_out")
        if not is_last:
            found |= linear(f"{theirs}.attn.to_add_out", f"{ours}.text_attention.out")
            found |= linear(f"{theirs}.ff_context.net.0.proj", f"{ours}.text_ffn.w_in")
            found |= linear(f"{theirs}.ff_context.net.2", f"{ours}.text_ffn.w_out")
    return found


@pytest.mark.parametrize(("theirs", "ours"), [(None, "off"), ("rms_norm", "rms")])
def test_the_weights_of_the_public_code_give_its_output(theirs: str | None, ours: str) -> None:
    """Norms of queries and keys are those of SD3.5. Captions are full: padding is not attended to here."""
    torch.manual_seed(0)
    public = public_model(qk_norm=theirs).eval()
    words = ["model=sd3-15", "data=sd3", "routing=dense", f"data.image_size={SIDE}", f"model.qk_norm={ours}"]
    sizes = [f"model.num_layers={LAYERS}", f"model.width={64 * HEADS}", f"model.num_heads={HEADS}"]
    model = DiT(load_config([*words, *sizes, f"model.num_kv_heads={HEADS}"])).eval()
    with torch.no_grad():
        for parameter in public.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    weights = of_public_code(public.state_dict(), LAYERS)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: tensor.shape for n, tensor in weights.items()}
    model.load_state_dict(weights)
    noisy_BCHW, t_B = torch.randn(2, CHANNELS, SIDE, SIDE), torch.tensor([0.2, 0.9])
    text_BLV, pooled_BU = torch.randn(2, LENGTH, TEXT_WIDTH), torch.randn(2, POOLED_WIDTH)
    with torch.no_grad():
        expected = public(noisy_BCHW, text_BLV, pooled_BU, 1000 * t_B).sample
        output = model(noisy_BCHW, t_B, (text_BLV, torch.full((2,), LENGTH), pooled_BU))
    assert expected.std() > 0.1
    assert_close(model.to_image(output.velocity_BKP), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("preset", SD3_PRESETS)
def test_presets_have_the_parameters_of_the_public_code(preset: str) -> None:
    depth = PRESETS[preset].num_layers
    with torch.device("meta"):
        public = public_model(num_layers=depth, num_attention_heads=depth, sample_size=128, pos_embed_max_size=192)
    count = sum(parameter.numel() for parameter in public.parameters())
    assert budget(load_config([f"model={preset}", "data=sd3", "routing=dense"])).params_total == count
