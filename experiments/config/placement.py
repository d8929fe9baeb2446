"""Says which blocks of a model have experts: the text of `model.sparse_layers`, its one form, and the blocks it means.

`alternate` is every second block, as in EC-DIT (arXiv 2410.02098), and `all` is every block, as in DiT-MoE (arXiv
2407.11633). A slice as in Python leaves out the first and the last blocks: `3:-1` is all but the first three and the
last one, as in Nucleus-Image (arXiv 2604.12163), and `3:` or `:-1` leave out blocks at one end. A list names blocks,
counted from 0: `1,3,5` is every second block but the last of a model of eight, as in micro_diffusion (arXiv
2407.15811). `checks.py` refuses what does not fit the number of blocks.
"""

from __future__ import annotations

import itertools
import re
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from experiments.config.values import ListedText, shown
from experiments.errors import ConfigError, did_you_mean

WORDS = ("alternate", "all")
KEY = "model.sparse_layers"
FORMS = ListedText("blocks such as 3:-1 or 1,3,5")
# Three digits are enough for every block of the deepest model (`limits.py`), and keep the numbers small.
_SLICE = re.compile(r"([0-9]{1,3})?:(-[1-9][0-9]{0,2})?")
_LIST = re.compile(r"[0-9]{1,3}( *, *[0-9]{1,3})*")


def canonical_placement(text: str) -> str:
    """Returns the one form of a placement: a word, a slice without zeros, or ascending block numbers with commas.

    A list may have brackets, as W&B and Python write it. Raises `ConfigError` where `text` is no placement, or names a
    block twice.
    """
    given = text.strip()
    if given in WORDS:
        return given
    if found := _SLICE.fullmatch(given):
        first, last = (int(each or 0) for each in found.groups())
        return f"{first or ''}:{last or ''}" if first or last else "all"
    listed = given[1:-1].strip() if given.startswith("[") and given.endswith("]") else given
    if not _LIST.fullmatch(listed):
        hint = did_you_mean(given, WORDS)
        raise ConfigError(
            f"{KEY}='{shown(text)}' is not 'alternate', 'all' or {FORMS.description}.",
            hint if hint.startswith("Did") else f"Use {KEY}=alternate, or blocks counted from 0.",
        )
    blocks = sorted(int(each) for each in listed.split(","))
    if len(set(blocks)) < len(blocks):
        twice = next(block for block, other in itertools.pairwise(blocks) if block == other)
        raise ConfigError(
            f"{KEY}={shown(text)} names block {twice} twice.", f"Use {KEY}={shown(_written(sorted(set(blocks))))}."
        )
    return _written(blocks)


Placement = (
    Literal["alternate", "all"] | Annotated[str, Field(max_length=4096), FORMS, AfterValidator(canonical_placement)]
)
"""The type of `model.sparse_layers`. The longest list, of all 1,000 blocks, has fewer characters than the limit."""


@lru_cache(maxsize=1024)
def sparse_blocks(placement: str, num_layers: int) -> tuple[int, ...]:
    """Returns the blocks of a model of `num_layers` that a canonical placement means, in ascending order."""
    blocks = range(num_layers)
    if placement in WORDS:
        return tuple(blocks[1::2] if placement == "alternate" else blocks)
    if ":" not in placement:
        return tuple(block for block in named_blocks(placement) if block < num_layers)
    first, last = (int(each) if each else None for each in placement.split(":"))
    return tuple(blocks[first:last])


def named_blocks(placement: str) -> tuple[int, ...]:
    """Returns the blocks that a list names, whether or not a model has them; empty for words and slices."""
    listed = placement not in WORDS and ":" not in placement
    return tuple(int(each) for each in placement.split(",")) if listed else ()


def fewest_layers(placement: str) -> int:
    """Returns the fewest blocks of a model in which every block that a placement names exists, and it means one."""
    if placement in WORDS:
        return 2 if placement == "alternate" else 1
    if ":" not in placement:
        return named_blocks(placement)[-1] + 1
    return sum(abs(int(each or 0)) for each in placement.split(":")) + 1


def _written(blocks: list[int]) -> str:
    return ",".join(map(str, blocks))
