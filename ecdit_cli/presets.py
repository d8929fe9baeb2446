"""`ecdit presets` shows the cost of every preset, dense and with 8 to 64 experts, beside the papers' numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from analysis.columns import Column
from ecdit_cli._console import print_rows
from ecdit_cli._options import Json
from experiments.units import count, flops

NUM_EXPERTS = (0, 8, 16, 32, 64)

COLUMNS = (
    Column("preset", "preset"),
    Column("num_experts", "experts"),
    Column("width", "width"),
    Column("num_layers", "layers"),
    Column("num_sparse_layers", "sparse"),
    Column("params_total", "total", count),
    Column("params_active", "active", count),
    Column("params_expert_increment", "experts add", count, priority=2),
    Column("flops_per_image", "per image", flops),
    Column("paper_params_total", "paper total", count, priority=1),
    Column("paper_params_active", "paper active", count, priority=1),
)


def presets(
    names: Annotated[
        list[str],
        typer.Argument(metavar="PRESET", default_factory=list, show_default=False, help="Show only these presets."),
    ],
    as_json: Json = False,
) -> None:
    """Show what the presets cost, beside the papers' numbers."""
    from experiments.config.presets import PRESETS, find_preset

    for name in names:
        find_preset(name)
    shown = names or list(PRESETS)
    rows = [_row(name, num_experts) for name in shown for num_experts in NUM_EXPERTS]
    print_rows(rows, COLUMNS, as_json, title="Parameters, and forward FLOPs of one image, by preset and expert count")
    if not as_json:
        for line in _notes(shown):
            print(line)


def _row(name: str, num_experts: int) -> dict[str, Any]:
    """Returns the row of one preset with `num_experts` experts (0: dense), with what the paper prints for it."""
    from experiments.config.budget import budget
    from experiments.config.overrides import load_config
    from experiments.config.published import PUBLISHED

    config = load_config([f"model={name}", *_routing(name, num_experts)])
    same_depth = load_config([f"model={name}", "routing=dense", f"model.num_layers={config.model.num_layers}"])
    cost, published = budget(config), PUBLISHED.get((name, num_experts))
    row = {
        "preset": name,
        "num_experts": num_experts,
        "width": config.model.width,
        "num_layers": config.model.num_layers,
        "num_sparse_layers": len(config.sparse_layer_indices),
        "params_total": cost.params_total,
        "params_active": cost.params_active,
        "params_expert_increment": cost.params_total - budget(same_depth).params_total,
        "flops_per_image": cost.flops_per_image,
    }
    paper = {f"paper_{key}": value for key, value in (published._asdict() if published else {}).items()}
    return {**row, **{key: value for key, value in paper.items() if value is not None}}


def _routing(name: str, num_experts: int) -> list[str]:
    """Returns the router that the paper of a preset uses: DiT-MoE's own, else expert choice with f_c = 2."""
    if num_experts == 0:
        return ["routing=dense"]
    router = "shared_expert" if name.startswith("dit-moe-") else "expert_choice"
    return [f"routing={router}", f"routing.num_experts={num_experts}"]


def _notes(shown: list[str]) -> Iterator[str]:
    """Yields why our counts and the papers' differ, for the papers whose presets are shown."""
    from experiments.config.published import DIFFERENCES, paper_of

    for paper, differences in DIFFERENCES.items():
        if paper in {paper_of(name) for name in shown}:
            yield f"\nOurs beside {paper}:"
            yield from (f"- {difference}" for difference in differences)
