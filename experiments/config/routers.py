"""The registry of routers: names in settings, defaults, checks, labels and the class that is built come from its rows.

A new router is one file in `experiments/routing/` and one row in `router_rows.py`. Plugins (`experiments/plugins`) add
rows of their own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from experiments.config.router_row import FAMILIES, Family, Fixed, RouterRow
from experiments.config.router_rows import ROWS
from experiments.errors import ConfigError, did_you_mean

__all__ = ["ALIASES", "FAMILIES", "OURS", "ROUTERS", "Family", "Fixed", "RouterRow"]

ROUTERS: dict[str, RouterRow] = {row.name: row for row in ROWS}
ALIASES = {"ec_dit": "expert_choice", "gshard": "token_choice", "dit_moe": "shared_expert"}
"""The names of papers for routers whose rows bear the name of the rule. They are stored under the name of the row."""
OURS = frozenset(ROUTERS)


def plugin_hint() -> str:
    """Returns the way out where a name is no router: the routers of loaded plugins, or how a plugin is loaded."""
    added = [name for name in ROUTERS if name not in OURS]
    return (
        f"The plugins that are loaded add: {', '.join(added)}."
        if added
        else "The router of a plugin needs --plugin FILE."
    )


def routed_names() -> list[str]:
    """Returns the names of all routers, in the order of the registry; `dense` is none."""
    return [name for name in ROUTERS if name != "dense"]


def trained_names() -> list[str]:
    """Returns the names of all routers that `ecdit train` takes, without `dense`."""
    return [name for name in routed_names() if ROUTERS[name].trained]


def choosing_names() -> list[str]:
    """Returns the names of the routers that choose tokens for the experts of a feed-forward.

    Those are all but soft MoE, which mixes all tokens, and Switch-DiT, whose experts change the input of blocks.
    """
    return [name for name in routed_names() if ROUTERS[name].rule not in ("soft", "blocks")]


def compared_names() -> list[str]:
    """Returns all names in the order of a comparison: dense, then where tokens choose, then where experts choose."""
    return sorted(ROUTERS, key=lambda name: (name != "dense", ROUTERS[name].top_k is None))


def router_family(name: str) -> Family | None:
    """Returns the family of a router, or None where its plugin is not loaded."""
    return ROUTERS[name].rule if name in ROUTERS else None


def router_label(name: str) -> str:
    """Returns the name of a router for tables and figures, which is `name` where its plugin is not loaded."""
    return ROUTERS[name].label if name in ROUTERS else name


def routing_defaults(given: dict[str, Any], unloaded: Collection[str] = ()) -> dict[str, Any]:
    """Returns the `routing.*` settings: `given`, completed by the defaults of its router.

    Dense has no routing settings: what is given is dropped, so that a grid over `routing.name` and, say,
    `routing.num_experts` holds each dense run once. For the other routers it raises `ConfigError` for a setting that
    the router does not have. Routers in `unloaded` are those of plugins that need not be loaded, as the settings are
    complete.
    """
    name = str(given.get("name", "expert_choice"))
    name = ALIASES.get(name, name)
    if name not in ROUTERS and name in unloaded:
        return {"expert_factor": None, **given}
    if name not in ROUTERS:
        raise ConfigError(f"routing.name={name!r} is not a router.", did_you_mean(name, [*ROUTERS, *ALIASES]))
    row = ROUTERS[name].defaults
    defaults = {"name": name, "expert_factor": None, "eval_capacity_factor": "same", **row}
    if name == "dense":
        return {**defaults, "eval_capacity_factor": None}
    if row["top_k"] is None and given.get("top_k") is not None:
        raise ConfigError(
            f"routing.top_k={given['top_k']} does not apply to {name}, in which tokens do not choose.",
            "Use routing.capacity_factor, the experts that a token gets on average.",
        )
    return {**defaults, **given, "name": name}
