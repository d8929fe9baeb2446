"""Parameter counts as the papers print them, to stand beside our own arithmetic, and why the two differ.

EC-DIT: arXiv 2410.02098, table 1 (M with 64 experts, the others with 32, f_c = 2). DiT-MoE: arXiv 2407.11633, table 1
(S and XL with 8 experts, G with 16; B and L are not printed). DiT: arXiv 2212.09748, table 1. SD3: arXiv 2403.03206,
abstract, for depth 38; the card of the weights of depth 24 (SD3 Medium) says 2B. EC-DIT has published no weights. DiT
and DiT-MoE have (github.com/facebookresearch/DiT, github.com/feizc/DiT-MoE), and `ecdit import-weights` reads them; the
numbers here are those of the papers.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Holds one row of a paper's table; a field is None where the paper prints nothing."""

    params_total: int
    params_active: int | None


# fmt: off
PUBLISHED: dict[tuple[str, int], Published] = {
    # preset, experts             total           activated
    ("XL", 0):          Published( 1_470_000_000,          None),
    ("XL", 32):         Published( 6_080_000_000, 1_620_000_000),
    ("XXL", 0):         Published( 2_350_000_000,          None),
    ("XXL", 32):        Published(13_470_000_000, 2_710_000_000),
    ("3XL", 0):         Published( 4_500_000_000,          None),
    ("3XL", 32):        Published(32_150_000_000, 5_180_000_000),
    ("M", 0):           Published( 8_030_000_000,          None),
    ("M", 64):          Published(97_210_000_000, 8_270_000_000),
    ("dit-s-2", 0):     Published(    33_000_000,          None),
    ("dit-b-2", 0):     Published(   130_000_000,          None),
    ("dit-l-2", 0):     Published(   458_000_000,          None),
    ("dit-xl-2", 0):    Published(   675_000_000,          None),
    ("sd3-24", 0):      Published( 2_000_000_000,          None),
    ("sd3-38", 0):      Published( 8_000_000_000,          None),
    ("dit-moe-S", 8):   Published(   199_000_000,    71_000_000),
    ("dit-moe-XL", 8):  Published( 4_100_000_000, 1_500_000_000),
    ("dit-moe-G", 16):  Published(16_500_000_000, 3_100_000_000),
}
# fmt: on

DIFFERENCES: dict[str, tuple[str, ...]] = {
    "EC-DIT": (
        "The paper's counts hold its frozen text encoder (about 0.67B) and parts that it does not publish; ours hold a "
        "small text encoder trained with the model. What the experts add is the same to the printed digits.",
        "3XL: the paper prints 5.18B activated, its own formula gives 5.39B.",
        "M: 46 layers dense, 38 with experts; the increment is over the 38 dense layers.",
    ),
    "DiT-MoE": (
        "The paper's model is conditioned on the class, with one AdaLN network in every block (6 d^2 each); ours on "
        "captions, with cross-attention in every block and one AdaLN network for all (PixArt-alpha). With "
        "model.block=dit and data.name=imagenet the parameters are exactly those of the public code.",
    ),
    "DiT": (
        "The paper's model is for latents of 4 channels and 1,000 classes; ours here is for the pixels and the classes "
        "of shapes. With data.name=imagenet the parameters are exactly those of the public code.",
    ),
    "SD3": (
        "The paper's model is for latents of 16 channels and features of T5 and CLIP; ours here is for pixels, with a "
        "text encoder. With data.name=sd3 the parameters are exactly those of the public code, which rounds to the "
        "printed numbers.",
    ),
}
"""Explanations, by paper, of why our counts differ from the printed ones."""


def paper_of(preset: str) -> str | None:
    """Returns the paper from whose table a preset comes, or None where that table has no parameter counts."""
    if preset.startswith("dit-moe-"):
        return "DiT-MoE"
    if preset.startswith("dit-"):
        return "DiT"
    if preset.startswith("sd3-"):
        return "SD3"
    return "EC-DIT" if (preset, 0) in PUBLISHED else None
