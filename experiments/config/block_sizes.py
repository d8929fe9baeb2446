"""Computes the sizes of a block's parameter tensors, and its FLOPs, by arithmetic; experts are left to `budget.py`.

A test compares the sizes with the real module. Attention, modulation and the dense feed-forward are those that the row
of the block asks for (`blocks.py`).

Legend: d width, T tokens of an image, L caption length, F hidden width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from experiments.config.blocks import BlockRow, block_of
from experiments.config.schema import RunConfig


def hidden_width(config: RunConfig, factor: float) -> int:
    """Returns the hidden width of a feed-forward that is `factor` times as wide as the model."""
    return round(config.model.width * factor)


def head_width(config: RunConfig) -> int:
    """Returns the values that the head returns for a token: those of a patch, and as many again with learned sigma."""
    return config.model.patch_size**2 * config.data.channels * (2 if block_of(config).learns_sigma else 1)


def linear_sizes(name: str, fan_in: int, fan_out: int, has_bias: bool = True) -> Iterator[tuple[str, int]]:
    """Yields the names and elements of the parameters of a linear map."""
    yield f"{name}.weight", fan_in * fan_out
    if has_bias:
        yield f"{name}.bias", fan_out


def block_tensors(config: RunConfig) -> tuple[tuple[str, int], ...]:
    """Returns the names and elements of a block's parameters in the module's order, without its feed-forward."""
    row, d = block_of(config), config.model.width
    tensors = [("modulation_6D", 6 * d)] if row.shared_modulation else []
    tensors += _attention_tensors(config, row, "attention")
    tensors += _attention_tensors(config, row, "cross_attention") if row.condition == "caption" else []
    tensors += [] if row.shared_modulation else linear_sizes("modulation", d, 6 * d)
    return tuple(tensors)


def block_params(config: RunConfig) -> Counter[str]:
    """Returns the parameters of a block by part, without its feed-forward."""
    counts: Counter[str] = Counter()
    for name, size in block_tensors(config):
        counts[name.split(".")[0].removesuffix("_6D")] += size
    return counts


def dense_tensors(config: RunConfig) -> tuple[tuple[str, int], ...]:
    """Returns the names and elements of the parameters of a dense feed-forward, in the module's order."""
    row, d, hidden = block_of(config), config.model.width, hidden_width(config, config.model.ffn_factor)
    rows = hidden * num_first_matrices(row.activation)
    return (*linear_sizes("w_in", d, rows, row.has_biases), *linear_sizes("w_out", hidden, d, row.has_biases))


def num_first_matrices(activation: str | None) -> int:
    """Returns how many matrices a feed-forward applies to its input: two with SwiGLU (gate and up), else one."""
    return 2 if activation == "swiglu" else 1


def dense_flops(config: RunConfig, num_tokens: int) -> int:
    """Returns the FLOPs of one dense feed-forward in a forward pass over one image."""
    matrices = num_first_matrices(block_of(config).activation) + 1
    return 2 * matrices * num_tokens * config.model.width * hidden_width(config, config.model.ffn_factor)


def block_flops(config: RunConfig, num_tokens: int) -> dict[str, int]:
    """Returns the FLOPs by part of one block in a forward pass over one image, without its feed-forward."""
    row, model = block_of(config), config.model
    d, kv = model.width, model.width * model.num_kv_heads // model.num_heads
    T, L = num_tokens, config.data.caption_length
    crosses = row.condition == "caption"
    return {
        "attention": 2 * T * (2 * d * d + 2 * d * kv) + 4 * T * T * d,
        "cross_attention": 4 * T * d * d + 4 * L * d * kv + 4 * T * L * d if crosses else 0,
        "modulation": 0 if row.shared_modulation else 12 * d * d,  # a table takes no products
    }


def _attention_tensors(config: RunConfig, row: BlockRow, name: str) -> list[tuple[str, int]]:
    model = config.model
    d, head = model.width, model.width // model.num_heads
    key_values = 2 * head * model.num_kv_heads
    linears = [("query", d), ("key_value", key_values), ("out", d)]
    tensors = [each for part, rows in linears for each in linear_sizes(f"{name}.{part}", d, rows, row.has_biases)]
    kinds = {"off": (), "affine": ("weight", "bias")}.get(row.qk_norm, ("weight",))
    return [*tensors, *((f"{name}.{norm}.{kind}", head) for norm in ("norm_query", "norm_key") for kind in kinds)]
