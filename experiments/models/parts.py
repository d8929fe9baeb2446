"""Maps parameters to the parts of the parameter budget.

The names of the parts are those of `experiments.config.budget`. Training asserts that the real parameters agree with
the computed budget.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from experiments.config.budget import Budget

if TYPE_CHECKING:
    from torch import nn  # a dry run counts names, and imports no torch

_PART_BY_PREFIX = {
    "embed": "embed", "time": "time", "text": "text", "head": "head",
    "repa": "repa", "modulation_2D": "modulation", "modulation": "modulation",
}  # fmt: skip
_PART_BY_BLOCK_PREFIX = {
    "attention": "attention",
    "text_attention": "attention",
    "cross_attention": "cross_attention",
    "modulation_6D": "modulation",
    "modulation": "modulation",
    "text_modulation": "modulation",
    "ffn.experts": "experts",
    "ffn.router": "router",
    "ffn.shared": "shared_experts",
    "ffn.unconditional": "unconditional_expert",
    "ffn": "ffn",
    "switch.experts": "experts",
    "switch.router": "router",
}


def part_of(name: str) -> str:
    """Returns the part of the budget to which the parameter `name` of a `DiT` belongs."""
    pieces = name.split(".")
    if pieces[0] != "blocks":
        return _PART_BY_PREFIX[pieces[0]]
    inside = pieces[2:]
    if inside[0] == "text_ffn":  # both streams have feed-forwards of the same parts
        inside[0] = "ffn"
    return _PART_BY_BLOCK_PREFIX.get(".".join(inside[:2])) or _PART_BY_BLOCK_PREFIX[inside[0]]


def count_by_part(kinds: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Counts parameters, which are given by name with their kind, by kind and part."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, kind in kinds.items():
        counts[kind][part_of(name)] += 1
    return {kind: dict(counts[kind]) for kind in counts}


def params_by_part(model: nn.Module) -> dict[str, int]:
    """Counts the parameters of the module by part; parts without parameters are absent."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    return dict(counts)


def assert_matches_budget(model: nn.Module, expected: Budget, num_shares: int = 1) -> None:
    """Asserts that the module has the parameters of `expected`, part by part, and one of `num_shares` of experts."""
    wanted = {part: count for part, count in expected.params_by_part.items() if count}
    if "experts" in wanted:
        wanted["experts"] //= num_shares
    assert params_by_part(model) == wanted, (params_by_part(model), wanted)
