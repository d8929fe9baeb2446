"""Defines the row of a router in the registry: all that is known of it without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, field, fields
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from experiments.config.row_fields import field_error

Family = Literal["dense", "tokens", "experts", "pairs", "thresholds", "fixed", "soft", "blocks"]
"""The rule by which tokens find experts: tokens choose experts; experts choose tokens; (token, expert) pairs compete
with each other; scores are compared with thresholds; the choice is fixed by something other than the token; all tokens
are mixed into every slot; experts change the input of a whole block. Figures have a panel for each."""
FAMILIES: tuple[Family, ...] = get_args(Family)
DEFAULTS = (
    "num_experts", "capacity_factor", "top_k", "group_images", "gating", "expert", "shared_factor",
    "balance_loss_weight",
)  # fmt: skip


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
    family: Family | None = None
    """The rule by which tokens find experts; None: tokens choose where there is a `top_k`, and else experts choose."""
    has_unit_gates: bool = False
    """Says whether the gates of a token add up to 1 without `routing.gate_norm`, where no choice is dropped."""
    has_logits: bool = True
    """Says whether the router computes logits from weights of its own."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of `routing` that this router has by default."""
    fixed: Mapping[str, Fixed] = field(default_factory=dict)
    """Settings of `routing` that can have only one value with this router."""
    has_global_scope: bool = False
    """Says whether the router can let the tokens of all processes compete (`routing.group_images=all`)."""
    trained: bool = True
    """Says whether runs with this router are trained. The others are made of finished runs (`ecdit merge`)."""

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
        return {**{key: getattr(self, key) for key in DEFAULTS}, **self.settings}

    @property
    def rule(self) -> Family:
        """Returns the family, which follows from `top_k` where the row does not name it."""
        return self.family or ("experts" if self.top_k is None else "tokens")

    @property
    def needed(self) -> tuple[str, ...]:
        """Returns the settings that must have a value."""
        optional = {"capacity_factor": self.needs_capacity, "eval_capacity_factor": self.needs_capacity}
        optional |= {"top_k": self.top_k is not None, "shared_factor": self.shared_factor is not None}
        optional |= {"gating": self.gating is not None}
        optional |= dict.fromkeys(("expert", "expert_factor"), self.expert is not None)
        return ("group_images", *(key for key, is_needed in optional.items() if is_needed))
