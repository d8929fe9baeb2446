"""Computes the sizes of the blocks' parameter tensors by arithmetic, and the FLOPs of what is not routed.

A test compares the sizes with the real module. Attention, modulation and the dense feed-forward are those that the row
of the block asks for (`blocks.py`).

Legend: d width, T tokens of an image, L caption length, F hidden width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from experiments.config.blocks import BlockRow, block_of
from experiments.config.router_sizes import mixes_blocks, router_tensors
from experiments.config.schema import RunConfig
from experiments.config.text_stream import TokenStream, has_text_output

OUTPUT = "out"
"""The last linear map of attention."""


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


def block_tensors(config: RunConfig, layer: int) -> tuple[tuple[str, int], ...]:
    """Returns the names and elements of a block's parameters in the module's order, without its feed-forwards."""
    row, d = block_of(config), config.model.width
    tensors = [("modulation_6D", 6 * d)] if row.shared_modulation else []
    tensors += _attention_tensors(config, row, "attention")
    if row.has_text_stream:
        of_text = _attention_tensors(config, row, "text_attention")
        is_output = f"text_attention.{OUTPUT}"
        tensors += [each for each in of_text if has_text_output(config, layer) or not each[0].startswith(is_output)]
    tensors += _attention_tensors(config, row, "cross_attention") if row.cross_attends else []
    tensors += [] if row.shared_modulation else linear_sizes("modulation", d, 6 * d)
    if row.has_text_stream:
        tensors += linear_sizes("text_modulation", d, (6 if has_text_output(config, layer) else 2) * d)
    return tuple(tensors)


def blocks_params(config: RunConfig) -> Counter[str]:
    """Returns the parameters of all blocks by part, without their feed-forwards; both streams have the same parts."""
    counts: Counter[str] = Counter()
    for layer in range(config.model.num_layers):
        for name, size in block_tensors(config, layer):
            counts[name.split(".")[0].removesuffix("_6D").removeprefix("text_")] += size
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


def num_expert_matrices(config: RunConfig) -> int:
    """Returns the number of weight matrices of an expert: 2 for GELU, 3 for SwiGLU (gate, up, down)."""
    return 3 if config.routing.expert == "swiglu" else 2


def bias_sizes(config: RunConfig, hidden: int) -> tuple[int, ...]:
    """Returns the elements of both biases of an expert of this `hidden` width; empty without biases or an expert.

    The first one is as long as the rows of the first matrix, 2 F with SwiGLU. Adding a bias counts as no FLOPs.
    """
    if not (config.routing.expert_bias and hidden):
        return ()
    return (num_expert_matrices(config) - 1) * hidden, config.model.width


def expert_matrix_elements(config: RunConfig) -> int:
    """Returns the elements of the matrices of one expert, which is a single one where experts change blocks."""
    d = config.model.width
    if mixes_blocks(config):
        return d * d
    return num_expert_matrices(config) * d * hidden_width(config, config.routing.expert_factor or 0)


def stream_params(stream: TokenStream) -> dict[str, int]:
    """Returns the parameters of the feed-forwards of one kind of tokens by part."""
    config, routing, d = stream.config, stream.config.routing, stream.config.model.width
    hidden, shared_hidden = (
        hidden_width(config, factor or 0) for factor in (routing.expert_factor, routing.shared_factor)
    )
    expert = expert_matrix_elements(config) + (d if mixes_blocks(config) else sum(bias_sizes(config, hidden)))
    shared = num_expert_matrices(config) * d * shared_hidden + sum(bias_sizes(config, shared_hidden))
    num_routed = len(stream.routed)
    return {
        "ffn": len(stream.dense) * sum(size for _, size in dense_tensors(config)),
        "experts": num_routed * routing.num_experts * expert,
        "shared_experts": num_routed * shared,
        "unconditional_expert": num_routed * expert if routing.unconditional_expert else 0,
        "router": num_routed * sum(router_tensors(config).values()),
    }


def blocks_flops(config: RunConfig, num_tokens: int) -> dict[str, int]:
    """Returns the FLOPs by part of all blocks in a forward pass over one image, without their feed-forwards."""
    row, model = block_of(config), config.model
    d, kv, depth = model.width, model.width * model.num_kv_heads // model.num_heads, model.num_layers
    T, L = num_tokens, config.data.caption_length if block_of(config).condition == "caption" else 0
    attended = T + L if row.has_text_stream else T  # tokens that attend to each other
    attention = 2 * attended * (2 * d * d + 2 * d * kv) + 4 * attended * attended * d
    modulation = 0 if row.shared_modulation else 12 * d * d  # a table takes no products
    last = 1 if row.has_text_stream else 0  # there text tokens have no output map, and 2 D of modulation
    return {
        "attention": depth * attention - last * 2 * L * d * d,
        "cross_attention": depth * (4 * T * d * d + 4 * L * d * kv + 4 * T * L * d) if row.cross_attends else 0,
        "modulation": depth * (2 if row.has_text_stream else 1) * modulation - last * 8 * d * d,
    }


def _attention_tensors(config: RunConfig, row: BlockRow, name: str) -> list[tuple[str, int]]:
    model = config.model
    d, head = model.width, model.width // model.num_heads
    key_values = 2 * head * model.num_kv_heads
    linears = [("query", d), ("key_value", key_values), (OUTPUT, d)]
    tensors = [each for part, rows in linears for each in linear_sizes(f"{name}.{part}", d, rows, row.has_biases)]
    kinds = {"off": (), "affine": ("weight", "bias")}.get(row.qk_norm, ("weight",))
    return [*tensors, *((f"{name}.{norm}.{kind}", head) for norm in ("norm_query", "norm_key") for kind in kinds)]
