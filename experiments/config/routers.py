"""Holds the settings that each router has, and their defaults, in one aligned table.

`group_images="batch"` is the field's habit for token choice (DeepSpeed and GShard count capacity over the local batch);
expert choice defaults to one image, so that no image changes another. Sources: EC-DIT section 3 (expert choice,
f_c = 2), GShard (top-2, auxiliary weight 0.01), Switch Transformer (top-1, 0.01), DiT-MoE (top-2 without limit, SwiGLU
experts, shared experts of width 2d, weight 0.005 where its public code has 0.01). The weight of a balance loss is that
of one layer: all three papers add the losses of their layers.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from experiments.errors import ConfigError, did_you_mean

RouterName = Literal["dense", "expert_choice", "token_choice", "switch", "shared_expert"]


class RouterDefaults(NamedTuple):
    """Holds the defaults of one router; None in `top_k`, `gating` or `shared_factor` means that it has none."""

    num_experts: int
    capacity_factor: float | None
    top_k: int | None
    group_images: int | str | None
    gating: str | None
    expert: str | None
    shared_factor: float | None
    balance_loss_weight: float


# fmt: off
ROUTERS: dict[str, RouterDefaults] = {
    #                              experts  f_c   top_k  group   gating     expert    shared  balance
    "dense":         RouterDefaults(   0,  None,  None,  None,    None,      None,     None,  0.0),
    "expert_choice": RouterDefaults(   8,   2.0,  None,     1,    "softmax", "gelu",   None,  0.0),
    "token_choice":  RouterDefaults(   8,   2.0,     2,  "batch", "softmax", "gelu",   None,  0.01),
    "switch":        RouterDefaults(   8,   1.0,     1,  "batch", "softmax", "gelu",   None,  0.01),
    "shared_expert": RouterDefaults(   8,  None,     2,  "batch", "softmax", "swiglu",  2.0,  0.005),
}
# fmt: on
assert set(ROUTERS) == set(get_args(RouterName))


def routing_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the `routing.*` settings: `given`, completed by the defaults of its router.

    Dense has no routing settings: what is given is dropped, so that a grid over `routing.name` and, say,
    `routing.num_experts` holds each dense run once. For the other routers a setting that the router does not have is a
    `ConfigError`.
    """
    name = str(given.get("name", "expert_choice"))
    if name not in ROUTERS:
        raise ConfigError(f"routing.name={name!r} is not a router.", did_you_mean(name, ROUTERS))
    row = ROUTERS[name]._asdict()
    defaults = {"name": name, **row, "expert_factor": None, "eval_capacity_factor": "same"}
    if name == "dense":
        return {**defaults, "eval_capacity_factor": None}
    for key in ("top_k", "shared_factor"):
        if row[key] is None and given.get(key) is not None:
            having = " and ".join(r for r, d in ROUTERS.items() if d._asdict()[key] is not None)
            raise ConfigError(f"routing.{key}={given[key]} does not apply to {name}.", f"Only {having} have it.")
    return {**defaults, **given}
