"""The model presets as one aligned table.

`nano`, `micro` and `mini` are sizes for a CPU. `S`, `B`, `L` are the DiT sizes (arXiv 2212.09748, table 1), and `dit-*`
the whole networks of its public code, conditioned on classes, with every layer sparse where there are experts. `XL` to
`M` are EC-DIT (arXiv 2410.02098, table 1): head size 64, grouped-query attention, every second layer sparse; `M` has
46 layers dense and 38 with experts. `dit-moe-*` are DiT-MoE (arXiv 2407.11633, table 1): every layer sparse. `sd3-*`
are SD3 (arXiv 2403.03206, section 4) by depth: 64 features and a head for each layer; `sd3-24` is SD3 Medium, and
every layer is sparse where there are experts. Text widths and the learning rates of the small sizes are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.config.blocks import DEFAULT_BLOCK
from experiments.config.values import shown
from experiments.errors import ConfigError, did_you_mean


class Preset(NamedTuple):
    """Holds one preset: its depth is `num_layers` when dense and `num_layers_sparse` with experts."""

    width: int
    num_layers: int
    num_layers_sparse: int
    num_heads: int
    num_kv_heads: int
    patch_size: int
    sparse_layers: str
    text_width: int
    text_layers: int
    learning_rate: float
    block: str = DEFAULT_BLOCK


# fmt: off
PRESETS: dict[str, Preset] = {
    #                  width layers sparse heads kv patch  sparse      text  text   learning
    #                                                      layers      width layers rate
    "nano":      Preset(  64,   4,   4,   2,   1,  4, "alternate",   64,  1,  2e-3),
    "micro":     Preset( 128,   6,   6,   4,   2,  4, "alternate",   64,  1,  1e-3),
    "mini":      Preset( 256,   8,   8,   4,   2,  2, "alternate",  128,  1,  1e-3),
    "S":         Preset( 384,  12,  12,   6,   6,  2, "alternate",  256,  2,  4e-4),
    "B":         Preset( 768,  12,  12,  12,  12,  2, "alternate",  512,  2,  2e-4),
    "L":         Preset(1024,  24,  24,  16,  16,  2, "alternate",  512,  2,  1e-4),
    "XL":        Preset(1152,  28,  28,  18,   6,  2, "alternate", 1024,  2,  1e-4),
    "XXL":       Preset(1536,  38,  38,  24,   6,  2, "alternate", 1024,  2,  1e-4),
    "3XL":       Preset(2304,  42,  42,  36,   6,  2, "alternate", 1024,  2,  1e-4),
    "M":         Preset(3072,  46,  38,  48,  12,  2, "alternate", 1024,  2,  1e-4),
    "dit-s-2":   Preset( 384,  12,  12,   6,   6,  2, "all",        256,  2,  1e-4, "dit"),
    "dit-b-2":   Preset( 768,  12,  12,  12,  12,  2, "all",        512,  2,  1e-4, "dit"),
    "dit-l-2":   Preset(1024,  24,  24,  16,  16,  2, "all",        512,  2,  1e-4, "dit"),
    "dit-xl-2":  Preset(1152,  28,  28,  16,  16,  2, "all",       1024,  2,  1e-4, "dit"),
    "sd3-15":    Preset( 960,  15,  15,  15,  15,  2, "all",        512,  2,  1e-4, "mmdit"),
    "sd3-18":    Preset(1152,  18,  18,  18,  18,  2, "all",       1024,  2,  1e-4, "mmdit"),
    "sd3-21":    Preset(1344,  21,  21,  21,  21,  2, "all",       1024,  2,  1e-4, "mmdit"),
    "sd3-24":    Preset(1536,  24,  24,  24,  24,  2, "all",       1024,  2,  1e-4, "mmdit"),
    "sd3-30":    Preset(1920,  30,  30,  30,  30,  2, "all",       1024,  2,  1e-4, "mmdit"),
    "sd3-38":    Preset(2432,  38,  38,  38,  38,  2, "all",       1024,  2,  1e-4, "mmdit"),
    "dit-moe-S": Preset( 384,  12,  12,   6,   6,  2, "all",        256,  2,  1e-4),
    "dit-moe-B": Preset( 768,  12,  12,  12,  12,  2, "all",        512,  2,  1e-4),
    "dit-moe-L": Preset(1024,  24,  24,  16,  16,  2, "all",        512,  2,  1e-4),
    "dit-moe-XL":Preset(1152,  28,  28,  16,  16,  2, "all",       1024,  2,  1e-4),
    "dit-moe-G": Preset(1408,  40,  40,  16,  16,  2, "all",       1024,  2,  1e-4),
}
# fmt: on


def find_preset(name: str) -> Preset:
    """Returns the preset called `name`. Raises `ConfigError` with the closest name where there is none."""
    if name not in PRESETS:
        raise ConfigError(f"model.name='{shown(name)}' is not a preset.", did_you_mean(name, PRESETS))
    return PRESETS[name]


def model_defaults(name: str, sparse: bool) -> dict[str, Any]:
    """Returns the `model.*` settings of a preset, with its depth for dense or for sparse models."""
    row = find_preset(name)._asdict()
    depth_sparse, depth_dense = row.pop("num_layers_sparse"), row.pop("num_layers")
    del row["learning_rate"]
    return {"name": name, **row, "num_layers": depth_sparse if sparse else depth_dense}


def with_heads(model: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `model.*` settings with the heads that `head_size` asks for; `given` are those that were set.

    There are width / head_size heads of queries, and heads of keys and values in the preset's proportion. Raises
    `ConfigError` where these are no whole number; `checks.py` refuses a size that does not fit the width.
    """
    width, size, preset = model["width"], model.get("head_size"), find_preset(model["name"])
    if not (type(width) is int and type(size) is int and 0 < size <= width):
        return model
    heads, sharing = width // size, preset.num_heads // preset.num_kv_heads
    if heads % sharing and width % size == 0 and "num_kv_heads" not in given:
        raise ConfigError(
            f"model.head_size={size} makes {heads} heads of model.width={width}, but {model['name']} shares "
            f"a head of keys and values between {sharing}.",
            f"Use model.width={-(-heads // sharing) * sharing * size}, or set model.num_kv_heads.",
        )
    return {**model, "num_heads": heads, "num_kv_heads": max(1, heads // sharing), **given}
