"""The registry of routers: one row each, with all that is known of a router without importing torch.

Names in settings, defaults, checks, labels, colours and the class that is built all come from the row, so that a new
router is one file in `experiments/routing/` and one row here. Plugins (`experiments/plugins.py`) add rows of their own.

`group_images="batch"` is the field's habit for token choice (DeepSpeed and GShard count capacity over the local batch);
expert choice defaults to one image, so that no image changes another. Sources: EC-DIT section 3 (expert choice,
f_c = 2), GShard (top-2, auxiliary weight 0.01), Switch Transformer (top-1, 0.01), DiT-MoE (top-2 without limit, SwiGLU
experts, shared experts of width 2d, weight 0.005 where its public code has 0.01). The weight of a balance loss is that
of one layer: all three papers add the losses of their layers. Colours are Okabe and Ito's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, field, fields
from typing import Annotated, Any, NamedTuple

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from experiments.config.row_fields import field_error
from experiments.errors import ConfigError, did_you_mean


class Fixed(NamedTuple):
    """The one value that a router takes for a setting, and the end of the sentence that refuses all others."""

    value: Any
    refusal: str


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class RouterRow:
    """Describes one router. In a default, None means that the router does not have this setting.

    `top_k`: experts that a token picks; None where experts pick tokens. `capacity_factor=None` is no limit.
    """

    name: str
    _: KW_ONLY
    label: Annotated[str, Field(min_length=1, max_length=40)]
    """The name in tables and figures."""
    implementation: str | type | None
    """The subclass of `Router`, or "module:Class", which is imported only when a layer is built. None for dense."""
    source: str = ""
    """The paper that the router is from."""
    color: Annotated[str | None, Field(pattern="^#[0-9A-Fa-f]{6}$")] = None
    """A colour such as "#D55E00"; None: the next of a cycle that all common kinds of colour blindness tell apart."""
    num_experts: int = 8
    capacity_factor: float | None = 2.0
    top_k: int | None = None
    group_images: int | str | None = 1
    gating: str | None = "softmax"
    expert: str | None = "gelu"
    shared_factor: float | None = None
    balance_loss_weight: float = 0.0
    needs_capacity: bool = True
    """Says whether the router must have a capacity. Where it need not, its class defines `choose` beside `decide`."""
    fixed: Mapping[str, Fixed] = field(default_factory=dict)
    """Settings of `routing` that can have only one value with this router."""

    @model_validator(mode="wrap")
    @classmethod
    def _named_fault(cls, values: Any, check: Any) -> Any:
        """Raises `ConfigError` with the name of the row and of the first field that is wrong."""
        try:
            return check(values)
        except ValidationError as error:
            given = values.args[0] if values.args else values.kwargs.get("name")
            raise field_error("router", given, "", error, [each.name for each in fields(cls)]) from error

    @property
    def defaults(self) -> dict[str, Any]:
        """Returns the `routing.*` settings of the row."""
        return {key: getattr(self, key) for key in DEFAULTS}

    @property
    def needed(self) -> tuple[str, ...]:
        """Returns the settings that must have a value."""
        optional = {"capacity_factor": self.needs_capacity, "eval_capacity_factor": self.needs_capacity}
        optional |= {"top_k": self.top_k is not None, "shared_factor": self.shared_factor is not None}
        return (
            "gating",
            "expert",
            "expert_factor",
            "group_images",
            *(key for key, is_needed in optional.items() if is_needed),
        )


DEFAULTS = (
    "num_experts", "capacity_factor", "top_k", "group_images", "gating", "expert", "shared_factor",
    "balance_loss_weight",
)  # fmt: skip
DEEPSPEED_GATES = Fixed("softmax", "does not work with {name}: DeepSpeed's gates take the softmax themselves.")

ROUTERS: dict[str, RouterRow] = {
    row.name: row
    for row in (
        RouterRow(
            "dense", label="Dense", implementation=None, color="#000000",
            num_experts=0, capacity_factor=None, group_images=None, gating=None, expert=None,
        ),
        RouterRow(
            "expert_choice", label="Expert choice", color="#D55E00",
            implementation="experiments.routing.expert_choice:ExpertChoiceRouter",
            source="EC-DIT, arXiv 2410.02098, equations 5 to 8",
        ),
        RouterRow(
            "token_choice", label="Token choice", color="#0072B2",
            implementation="experiments.routing.token_choice:TokenChoiceRouter",
            source="GShard, arXiv 2006.16668",
            top_k=2, group_images="batch", balance_loss_weight=0.01, needs_capacity=False,
            fixed={"gating": DEEPSPEED_GATES},
        ),
        RouterRow(
            "switch", label="Switch", color="#56B4E9",
            implementation="experiments.routing.token_choice:TokenChoiceRouter",
            source="Switch Transformer, arXiv 2101.03961",
            capacity_factor=1.0, top_k=1, group_images="batch", balance_loss_weight=0.01, needs_capacity=False,
            fixed={
                "gating": DEEPSPEED_GATES, "top_k": Fixed(1, "does not fit {name}, which sends a token to one expert."),
            },
        ),
        RouterRow(
            "shared_expert", label="Shared experts", color="#009E73",
            implementation="experiments.routing.shared_expert:SharedExpertRouter",
            source="DiT-MoE, arXiv 2407.11633",
            capacity_factor=None, top_k=2, group_images="batch", expert="swiglu", shared_factor=2.0,
            balance_loss_weight=0.005, needs_capacity=False,
        ),
    )
}  # fmt: skip
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


def compared_names() -> list[str]:
    """Returns all names in the order of a comparison: dense, then where tokens choose, then where experts choose."""
    return sorted(ROUTERS, key=lambda name: (name != "dense", ROUTERS[name].top_k is None))


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
    if name not in ROUTERS and name in unloaded:
        return {"expert_factor": None, **given}
    if name not in ROUTERS:
        raise ConfigError(f"routing.name={name!r} is not a router.", did_you_mean(name, ROUTERS))
    row = ROUTERS[name].defaults
    defaults = {"name": name, **row, "expert_factor": None, "eval_capacity_factor": "same"}
    if name == "dense":
        return {**defaults, "eval_capacity_factor": None}
    for key in ("top_k", "shared_factor"):
        if row[key] is None and given.get(key) is not None:
            having = " and ".join(r for r, d in ROUTERS.items() if d.defaults[key] is not None)
            raise ConfigError(f"routing.{key}={given[key]} does not apply to {name}.", f"Only {having} have it.")
    return {**defaults, **given}
