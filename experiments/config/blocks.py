"""The registry of transformer blocks: one row for each, with the facts that planning needs, free of torch.

A block is a row here and a file in `experiments/models/blocks`. `model.block` names it; parameters, FLOPs, activations,
checks and the model ask its row. `block_sizes.py` has the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator

from experiments.config.values import OneOf

if TYPE_CHECKING:
    from experiments.config.schema import RunConfig

Condition = Literal["caption", "class"]
"""Names the condition of a block beside the time: a caption, or the class of an image."""
QkNorm = Literal["off", "layer", "affine", "rms"]
"""The norm of queries and keys in each head: off; layer norm with weights (ViT-22B, arXiv 2302.05442), or with weights
and biases (the public code of DiT-MoE for XL and G); RMS norm with weights (SD3, arXiv 2403.03206)."""
DenseActivation = Literal["gelu", "gelu_tanh", "swiglu"]
"""The activation of a dense feed-forward: exact GELU, its tanh form (DiT), or SwiGLU (arXiv 2002.05202)."""


@dataclass(frozen=True)
class BlockRow:
    """Holds the facts of one block."""

    label: str
    """The name in tables and figures."""
    source: str
    """The paper or the public code that the block is from."""
    implementation: str
    """`MODULE:CLASS` of the subclass of `Block`, which is imported where torch is allowed."""
    condition: Condition
    shared_modulation: bool
    """Says whether one network computes the modulation of all blocks, to which each adds a table (adaLN-single).

    Otherwise every block, and the head, have a network of their own (adaLN-zero)."""
    has_biases: bool
    """Says whether attention and dense feed-forwards have biases."""
    qk_norm: QkNorm
    activation: DenseActivation
    learns_sigma: bool
    """Says whether the head has outputs for a learned variance beside those for the velocity."""
    columns_first: bool
    """Says whether the first half of a sinusoidal position encodes the column. Otherwise it encodes the row."""
    has_text_stream: bool = False
    """Says whether blocks change text tokens too, with weights of their own, and attention is joint (MM-DiT).

    Otherwise text tokens are what the encoder of captions made of them, and blocks with captions cross-attend."""

    @property
    def cross_attends(self) -> bool:
        """Says whether image tokens attend to the caption by an attention of their own."""
        return self.condition == "caption" and not self.has_text_stream


BLOCKS: dict[str, BlockRow] = {
    "pixart": BlockRow(
        label="PixArt",
        source="PixArt-alpha, arXiv 2310.00426, section 2.3; grouped-query attention and query-key norm as EC-DIT",
        implementation="experiments.models.blocks.pixart_block:PixArtBlock",
        condition="caption", shared_modulation=True, has_biases=False, qk_norm="layer", activation="gelu",
        learns_sigma=False, columns_first=False,
    ),
    "dit": BlockRow(
        label="DiT",
        source="DiT, arXiv 2212.09748, section 3.2 (adaLN-zero); biases and activation as in its public code",
        implementation="experiments.models.blocks.dit_block:DiTBlock",
        condition="class", shared_modulation=False, has_biases=True, qk_norm="off", activation="gelu_tanh",
        learns_sigma=True, columns_first=True,
    ),
    "mmdit": BlockRow(
        label="MM-DiT",
        source="SD3, arXiv 2403.03206, section 4 and figure 2; details of its last block as in its public code",
        implementation="experiments.models.blocks.mmdit_block:MMDiTBlock",
        condition="caption", shared_modulation=False, has_biases=True, qk_norm="off", activation="gelu_tanh",
        learns_sigma=False, columns_first=True, has_text_stream=True,
    ),
}  # fmt: skip
"""Every block by its name."""
DEFAULT_BLOCK = "pixart"


def conditioned_by(condition: Condition) -> list[str]:
    """Returns the names of the blocks with this condition."""
    return [name for name, row in BLOCKS.items() if row.condition == condition]


def block_of(config: RunConfig) -> BlockRow:
    """Returns the row of the block that a run uses, with the run's settings in place of what the row has by default."""
    model, row = config.model, BLOCKS[config.model.block]
    has_sigma = row.learns_sigma if model.learn_sigma is None else model.learn_sigma
    return replace(
        row,
        qk_norm=model.qk_norm or row.qk_norm,
        activation=model.ffn or row.activation,
        learns_sigma=has_sigma or config.flow.learned_sigma,
    )


BlockName = Annotated[str, OneOf(BLOCKS), AfterValidator(OneOf(BLOCKS).known)]
