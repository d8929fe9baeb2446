"""The kinds of captions that a data set can have, with the facts of their encoder that planning needs.

Captions come as token ids of a closed vocabulary, which a small transformer encodes that is trained with the model, or
as precomputed features (of T5 and CLIP, or static word embeddings), which two projections map to the width of the
model. In place of captions, the class of an image finds its row in a table that is trained with the model (DiT). The
modules of the encoders are in `experiments.models.embed`; here are their parameters, FLOPs and activations, and a
caption's part of a batch.

Legend: d width of the model, w width of the text encoder, L caption length, V, U widths of token and pooled features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from experiments.config.blocks import BLOCKS

if TYPE_CHECKING:
    from experiments.config.schema import DataConfig, ModelConfig

PAD_TOKEN = 0
"""The token id of padding, which is not attended to."""
START_TOKEN = 1
"""The token id that every caption begins with, so that the empty caption has something to attend to."""
NORM_BYTES = 4
"""Bytes of a number that a norm of the text encoder saves, whatever the working precision."""
Tensors = dict[str, tuple[tuple[int, ...], Literal["int64", "float16"]]]
"""Shape and type of one image's part of each tensor, by its name in a batch."""


@dataclass(frozen=True)
class TokenCaptions:
    """Describes captions as token ids, padded to a fixed length; the encoder is `TextEncoder`."""

    needed: ClassVar[tuple[str, ...]] = ("vocab_size",)
    """The `data.*` settings that must have a value."""
    in_words: ClassVar[bool] = True
    """A trained model can be asked for any caption in the words of the data."""
    vocab_size: int
    length: int

    @classmethod
    def of(cls, data: DataConfig) -> TokenCaptions:
        """Returns the captions that the settings describe."""
        return cls(data.vocab_size or 0, data.caption_length)

    @property
    def tensors(self) -> Tensors:
        """Returns the token ids of a caption in a batch."""
        return {"caption_BL": ((self.length,), "int64")}

    def encoder_sizes(self, model: ModelConfig) -> tuple[tuple[str, int], ...]:
        """Returns the elements of every parameter of the encoder with its name, in the module's order."""
        w, d = model.text_width, model.width
        block = {"norm_attention": w, "norm_ffn": w, "qkv": 3 * w * w, "out": w * w, "ffn_in": 4 * w * w}
        block["ffn_out"] = 4 * w * w
        layers = range(model.text_layers)
        blocks = [(f"blocks.{layer}.{name}.weight", size) for layer in layers for name, size in block.items()]
        first = (("position_LV", self.length * w), ("token.weight", self.vocab_size * w))
        return (*first, *blocks, ("norm.weight", w), ("project.weight", w * d), ("project.bias", d))

    def encoder_flops(self, model: ModelConfig) -> int:
        """Returns the FLOPs of encoding one caption: those of the blocks and of the output."""
        L, w = self.length, model.text_width
        return model.text_layers * (24 * L * w * w + 4 * L * L * w) + 2 * L * w * model.width

    def flops_without_gradient(self, model: ModelConfig) -> int:
        """Returns the FLOPs that the backward pass saves at the encoder's input: 0, a lookup is no product."""
        return 0

    def saved_bytes(self, model: ModelConfig, width: int) -> float:
        """Returns what autograd saves for one caption: norms in fp32, attention, the feed-forward, and the output.

        An element that is not always fp32 has `width` bytes.
        """
        L, w = self.length, model.text_width
        per_layer = L * w * (width * (1 + 3 + 1 + 1 + 4 + 4) + NORM_BYTES * 4)
        output = 0 if BLOCKS[model.block].has_text_stream else width * L * model.width  # a stream saves it as its own
        return model.text_layers * per_layer + L * w * (NORM_BYTES * 2 + width) + output


@dataclass(frozen=True)
class FeatureCaptions:
    """Describes captions as features of tokens, with padding, and pooled features, for `FeatureProjection`."""

    needed: ClassVar[tuple[str, ...]] = ("text_width", "pooled_width")
    in_words: ClassVar[bool] = False
    """The data set says whether a trained model can be asked for captions whose features are not stored."""
    length: int
    text_width: int
    pooled_width: int

    @classmethod
    def of(cls, data: DataConfig) -> FeatureCaptions:
        """Returns the captions that the settings describe."""
        return cls(data.caption_length, data.text_width or 0, data.pooled_width or 0)

    @property
    def tensors(self) -> Tensors:
        """Returns the features of the tokens, the number of tokens that are no padding, and the pooled features."""
        return {
            "text_BLV": ((self.length, self.text_width), "float16"),
            "text_length_B": ((), "int64"),
            "pooled_BU": ((self.pooled_width,), "float16"),
        }

    def encoder_sizes(self, model: ModelConfig) -> tuple[tuple[str, int], ...]:
        """Returns the names and sizes of weights and biases: two layers for the tokens, two for the pooled features.

        A block with a text stream has one layer for the tokens.
        """
        d = model.width
        layers = {"text_in": self.text_width, "text_out": d, "pooled_in": self.pooled_width, "pooled_out": d}
        if BLOCKS[model.block].has_text_stream:
            del layers["text_out"]
        sizes = (((f"{name}.weight", fan_in * d), (f"{name}.bias", d)) for name, fan_in in layers.items())
        return tuple(size for both in sizes for size in both)

    def encoder_flops(self, model: ModelConfig) -> int:
        """Returns the FLOPs of these layers."""
        second = 1 + (0 if BLOCKS[model.block].has_text_stream else self.length)
        return 2 * (self._num_features + second * model.width) * model.width

    def flops_without_gradient(self, model: ModelConfig) -> int:
        """Returns the FLOPs of the gradient of the features, which nobody needs."""
        return 2 * self._num_features * model.width

    def saved_bytes(self, model: ModelConfig, width: int) -> float:
        """Returns what autograd saves: the features, both sides of the activation, and the second layers' output."""
        tokens = 0 if BLOCKS[model.block].has_text_stream else 3 * self.length  # a stream saves them as its own
        return width * (self._num_features + (tokens + 2) * model.width)

    @property
    def _num_features(self) -> int:
        return self.length * self.text_width + self.pooled_width


@dataclass(frozen=True)
class ClassLabels:
    """Describes the class of an image, which takes the place of a caption; the encoder is `ClassTable`.

    The table has one row more than there are classes: the last one, the null class, stands for a dropped label.
    """

    needed: ClassVar[tuple[str, ...]] = ("num_classes",)
    in_words: ClassVar[bool] = False
    num_classes: int

    @classmethod
    def of(cls, data: DataConfig) -> ClassLabels:
        """Returns the labels that the settings describe."""
        return cls(data.num_classes or 0)

    @property
    def tensors(self) -> Tensors:
        """Returns the class of an image in a batch."""
        return {"label_B": ((), "int64")}

    def encoder_sizes(self, model: ModelConfig) -> tuple[tuple[str, int], ...]:
        """Returns the elements of the table."""
        return (("table.weight", (self.num_classes + 1) * model.width),)

    def encoder_flops(self, model: ModelConfig) -> int:
        """Returns 0, because a lookup is no product."""
        return 0

    def flops_without_gradient(self, model: ModelConfig) -> int:
        """Returns 0, as for `encoder_flops`."""
        return 0

    def saved_bytes(self, model: ModelConfig, width: int) -> float:
        """Returns 0: a lookup saves the labels alone, which are part of the batch."""
        return 0.0


Captions = TokenCaptions | FeatureCaptions | ClassLabels
"""The captions of one data set. Planning, the model and fake batches ask them instead of the data set's name."""
