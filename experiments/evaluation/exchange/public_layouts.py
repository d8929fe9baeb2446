"""Translates the tensors of DiT's and DiT-MoE's public code to the names and shapes of our module.

The public names are those of facebookresearch/DiT and feizc/DiT-MoE (`models.py` of both); DiT-MoE names the attention
of its XL and G otherwise. Four things differ in more than the name: the public head returns a patch as (row, column,
channel) and ours as (channel, row, column); query, key and value are one matrix there and two here; every expert has
three matrices there, and all experts of a layer share two stacked ones here; positions are a parameter there and
computed here, so that they are compared and left out.

Legend: D width, E experts, F hidden width, T tokens of an image, C output channels, p side of a patch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.errors import CheckpointError
from experiments.text import printable

Tensors = Mapping[str, Tensor]

PLAIN = {
    "x_embedder.proj.bias": "embed.bias",
    "t_embedder.mlp.0.weight": "time.mlp_in.weight",
    "t_embedder.mlp.0.bias": "time.mlp_in.bias",
    "t_embedder.mlp.2.weight": "time.mlp_out.weight",
    "t_embedder.mlp.2.bias": "time.mlp_out.bias",
    "y_embedder.embedding_table.weight": "text.table.weight",
    "final_layer.adaLN_modulation.1.weight": "modulation.weight",
    "final_layer.adaLN_modulation.1.bias": "modulation.bias",
}
MODULATION_AND_OUTPUT = {
    "adaLN_modulation.1.weight": "modulation.weight",
    "adaLN_modulation.1.bias": "modulation.bias",
    "attn.proj.weight": "attention.out.weight",
    "attn.proj.bias": "attention.out.bias",
}
QK_NORMS = {
    "attn.q_norm.weight": "attention.norm_query.weight",
    "attn.q_norm.bias": "attention.norm_query.bias",
    "attn.k_norm.weight": "attention.norm_key.weight",
    "attn.k_norm.bias": "attention.norm_key.bias",
}
DENSE = {
    "mlp.fc1.weight": "ffn.w_in.weight",
    "mlp.fc1.bias": "ffn.w_in.bias",
    "mlp.fc2.weight": "ffn.w_out.weight",
    "mlp.fc2.bias": "ffn.w_out.bias",
}
SHARED = {"moe.shared_experts.down_proj.weight": "ffn.shared.w_out.weight"}
OF_FLASH_ATTENTION = {"attn.Wqkv.": "attn.qkv.", "attn.out_proj.": "attn.proj."}
"""The names of DiT-MoE's attention with flash attention, and those of the same tensors without it."""
LARGEST_DIFFERENCE = 4e-3
"""The most by which stored positions may differ from computed ones: bfloat16 rounds numbers near 1 by 2^-9 or less."""


@dataclass(frozen=True)
class PublicSizes:
    """Holds the sizes of a public model, as far as the shapes of its tensors tell them; 0 experts is a dense model."""

    width: int
    num_layers: int
    patch_size: int
    channels: int
    image_size: int
    num_classes: int
    learn_sigma: bool
    head_size: int | None
    """The features of a head, None without query-key norm: then no shape depends on the number of heads."""
    num_experts: int
    hidden: int
    shared_hidden: int


class PublicTensors:
    """The tensors of a file under their public names. What was never asked for is left over in the end."""

    def __init__(self, tensors: Tensors, file: str) -> None:
        self.file, self._taken = file, set[str]()
        self._tensors = {_without_flash_names(name): tensor for name, tensor in tensors.items()}

    def has(self, name: str) -> bool:
        """Says whether there is a tensor of this name."""
        return name in self._tensors

    def take(self, name: str, *shape: int) -> Tensor:
        """Returns a tensor in float32. Raises `CheckpointError` where it is missing or has another shape."""
        if name not in self._tensors:
            raise CheckpointError(f"{self.file} lacks the tensor {name}.", "Name a checkpoint of this layout.")
        self._taken.add(name)
        tensor = self._tensors[name]
        if shape and tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{self.file} holds {name} of shape {tuple(tensor.shape)}, and the others ask for {shape}.",
                "Name a checkpoint of this layout.",
            )
        return tensor.float()

    def sizes(self, name: str, num_axes: int) -> tuple[int, ...]:
        """Returns the shape of a tensor. Raises `CheckpointError` where it is missing, empty or has other axes."""
        shape = tuple(self.take(name).shape)
        if len(shape) != num_axes or 0 in shape:
            raise CheckpointError(
                f"{self.file} holds {name} of shape {shape}, which no model of this layout has.",
                "Name a checkpoint of this layout.",
            )
        return shape

    def count(self, prefix: str) -> int:
        """Returns how many numbers follow `prefix`, which must be 0, 1, ... without a gap."""
        found = {int(match[1]) for name in self._tensors if (match := re.match(re.escape(prefix) + r"(\d+)\.", name))}
        return next(number for number in range(len(found) + 1) if number not in found)

    def require_nothing_left(self) -> None:
        """Raises `CheckpointError` that names every tensor that was never asked for."""
        left = sorted(printable(name) for name in set(self._tensors) - self._taken)
        if left:
            raise CheckpointError(
                f"{self.file} has {len(left)} tensors that a model of this layout does not have: {', '.join(left)}.",
                "Name the layout that the file has: dit or dit-moe.",
            )


def public_sizes(tensors: PublicTensors) -> PublicSizes:
    """Returns the sizes of the model. Raises `CheckpointError` where the tensors that tell them are missing."""
    embed = tensors.take("x_embedder.proj.weight")
    if embed.ndim != 4 or embed.shape[2] != embed.shape[3] or not embed.numel():
        raise CheckpointError(
            f"{tensors.file} holds x_embedder.proj.weight of shape {tuple(embed.shape)}, which is no patch embedding.",
            "Name a checkpoint of this layout.",
        )
    width, channels, patch_size = (int(size) for size in embed.shape[:3])
    _, tokens, _ = tensors.sizes("pos_embed", 3)
    outputs, _ = tensors.sizes("final_layer.linear.weight", 2)
    block, expert = "blocks.0.", "blocks.0.moe."
    num_experts = tensors.count(f"{expert}experts.")
    hidden, _ = tensors.sizes(f"{expert}experts.0.gate_proj.weight" if num_experts else f"{block}mlp.fc1.weight", 2)
    shared = f"{expert}shared_experts.gate_proj.weight"
    normed = f"{block}attn.q_norm.weight"
    return PublicSizes(
        width=width,
        num_layers=tensors.count("blocks."),
        patch_size=patch_size,
        channels=channels,
        image_size=math.isqrt(tokens) * patch_size,
        num_classes=tensors.sizes("y_embedder.embedding_table.weight", 2)[0] - 1,
        learn_sigma=outputs == 2 * channels * patch_size**2,
        head_size=tensors.sizes(normed, 1)[0] if tensors.has(normed) else None,
        num_experts=num_experts,
        hidden=hidden,
        shared_hidden=tensors.sizes(shared, 2)[0] if tensors.has(shared) else 0,
    )


def translated(tensors: PublicTensors, sizes: PublicSizes, position_TD: Tensor) -> dict[str, Tensor]:
    """Returns every parameter of our module by name, float32, from the tensors of a public model.

    `position_TD` are the positions that our module computes. Raises `CheckpointError` for a file with other positions,
    with tensors of other shapes, without all tensors, or with tensors that are left over.
    """
    D, p = sizes.width, sizes.patch_size
    stored = tensors.take("pos_embed", 1, *position_TD.shape)
    if not torch.allclose(stored[0], position_TD, atol=LARGEST_DIFFERENCE):
        raise CheckpointError(
            "The file holds other positions than the sinusoidal ones of DiT's public code.",
            "Such a model cannot be imported.",
        )
    channels = sizes.channels * (2 if sizes.learn_sigma else 1)
    head = tensors.take("final_layer.linear.weight", p * p * channels, D)
    bias = tensors.take("final_layer.linear.bias", p * p * channels)
    found = {
        "embed.weight": tensors.take("x_embedder.proj.weight", D, sizes.channels, p, p).flatten(1),
        "head.weight": head.view(p * p, channels, D).transpose(0, 1).reshape(-1, D),
        "head.bias": bias.view(p * p, channels).T.reshape(-1),
        **{ours: tensors.take(name) for name, ours in PLAIN.items()},
    }
    for layer in range(sizes.num_layers):
        found |= {f"blocks.{layer}.{name}": tensor for name, tensor in _of_block(tensors, sizes, f"blocks.{layer}.")}
    tensors.require_nothing_left()
    return found


def _of_block(tensors: PublicTensors, sizes: PublicSizes, block: str) -> Iterator[tuple[str, Tensor]]:
    """Yields the parameters of one block by their names inside our block."""
    D, E, F = sizes.width, sizes.num_experts, sizes.hidden
    same = {**MODULATION_AND_OUTPUT, **(QK_NORMS if sizes.head_size else {})}
    same |= (SHARED if sizes.shared_hidden else {}) if E else DENSE
    for name, ours in same.items():
        yield ours, tensors.take(f"{block}{name}")
    for kind, whole in (("weight", (3 * D, D)), ("bias", (3 * D,))):
        rows = tensors.take(f"{block}attn.qkv.{kind}", *whole)
        yield f"attention.query.{kind}", rows[:D]
        yield f"attention.key_value.{kind}", rows[D:]
    if not E:
        return
    moe = f"{block}moe."
    yield "ffn.router.weight_DE", tensors.take(f"{moe}gate.weight", E, D).T.contiguous()
    experts = [f"{moe}experts.{number}." for number in range(E)]
    sides = [[tensors.take(f"{expert}{side}_proj.weight", F, D) for side in ("gate", "up")] for expert in experts]
    yield "ffn.experts.w_in_EFD", torch.stack([torch.cat(both) for both in sides])
    downs = [tensors.take(f"{expert}down_proj.weight", D, F) for expert in experts]
    yield "ffn.experts.w_out_EFD", torch.stack([down.T for down in downs])
    if sizes.shared_hidden:
        shape = (sizes.shared_hidden, D)
        shared = [tensors.take(f"{moe}shared_experts.{side}_proj.weight", *shape) for side in ("gate", "up")]
        yield "ffn.shared.w_in.weight", torch.cat(shared)


def _without_flash_names(name: str) -> str:
    for flash, plain in OF_FLASH_ATTENTION.items():
        name = name.replace(flash, plain)
    return name
