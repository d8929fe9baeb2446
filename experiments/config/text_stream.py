"""The streams of tokens that pass through the feed-forwards of a run: image tokens, and text tokens with MM-DiT.

With `model.block=mmdit` (`blocks.py`) every block but the last changes the text tokens too. Their feed-forward is
dense, or has `routing.text_experts` experts in the blocks with experts. Parameters, FLOPs, tensors and activations add
up over the streams listed here.

Legend: T tokens of an image, L caption length.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from experiments.config.blocks import BLOCKS
from experiments.config.router_sizes import layer_factors, mixes_blocks
from experiments.config.schema import RunConfig


class TokenStream(NamedTuple):
    """Describes the feed-forwards that one kind of tokens passes through."""

    config: RunConfig
    """The settings of the run, with the experts of this stream as `routing.num_experts`."""
    routed: tuple[int, ...]
    """The blocks where a router decides for these tokens."""
    dense: tuple[int, ...]
    """The blocks with a dense feed-forward: the others, or all where experts change the input of blocks."""
    is_text: bool

    @property
    def prefix(self) -> str:
        """Returns what the names of the modules of this stream begin with."""
        return "text_" if self.is_text else ""

    @property
    def factors(self) -> tuple[float, ...]:
        """Returns the factor on f_c of each routed block."""
        if not self.routed:
            return ()
        by_layer = dict(zip(self.config.sparse_layer_indices, layer_factors(self.config), strict=True))
        return tuple(by_layer[layer] for layer in self.routed)

    def num_tokens(self, image_tokens: int) -> int:
        """Returns the tokens of an image in this stream: L, or `image_tokens`, which masking may leave out in part."""
        return self.config.data.caption_length if self.is_text else image_tokens


def has_text_output(config: RunConfig, layer: int) -> bool:
    """Says whether block `layer` changes text tokens: with a text stream every block but the last does."""
    return BLOCKS[config.model.block].has_text_stream and layer < config.model.num_layers - 1


def with_text_experts(config: RunConfig) -> RunConfig:
    """Returns the settings by which the router of text tokens is built; with dense ones those of a dense run."""
    num_experts = config.routing.text_experts
    changes = {"num_experts": num_experts} if num_experts else {"name": "dense"}
    return config.model_copy(update={"routing": config.routing.model_copy(update=changes)})


def streams(config: RunConfig) -> tuple[TokenStream, ...]:
    """Returns the stream of image tokens and, where blocks have one, that of text tokens."""
    layers = range(config.model.num_layers)
    changed = [layer for layer in layers if has_text_output(config, layer)]
    image = _stream(config, layers, is_text=False)
    return (image, _stream(with_text_experts(config), changed, is_text=True)) if changed else (image,)


def _stream(config: RunConfig, layers: Iterable[int], is_text: bool) -> TokenStream:
    routed = tuple(layer for layer in layers if layer in config.sparse_layer_indices)
    dense = tuple(layer for layer in layers if layer not in routed or mixes_blocks(config))
    return TokenStream(config, routed, dense, is_text)
