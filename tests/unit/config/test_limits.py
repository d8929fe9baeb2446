"""Every setting has limits in its type: whatever is given for it is taken or refused in one line, and nothing is slow.

The settings come from the schema, so that a new one is held to the same.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from experiments.config.activations import activations
from experiments.config.budget import budget
from experiments.config.designs import load_designed
from experiments.config.memory import memory
from experiments.config.multiples import divisors
from experiments.config.overrides import known_settings, load_config
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError
from sweeps.cost import table_device
from sweeps.parallel_layouts import plan_layout

HOSTILE = (
    "1e300", "1e308", "1e400", "-1e300", "1e26", "1e12", "-1", "-0.5", "1e-320", "1e-300", "inf", "-inf", "nan",
    "True",
    "9" * 400, "9" * 5000, "-" + "9" * 5000, "1" + "0" * 10_000, "\uff11\uff12", "\u0661", "\u00b2", "0x10", "1__0",
    "_1", "1e", "", " ", "None", "[1]", "{}", "{'a': 1}", "\x1b[31m", "a\nb", "x" * 100_000,
)  # fmt: skip
NUMBERS = sorted(key for key, accepts in known_settings().items() if accepts.kinds & {int, float})


def numeric_parts(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[type, list[Any]]]:
    """Each number that an annotation takes, with its constraints."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *own = get_args(annotation)
        yield from numeric_parts(inner, (*metadata, *own))
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from numeric_parts(part, metadata)
    elif annotation in (int, float):
        yield annotation, [each for one in metadata for each in (one, *getattr(one, "metadata", ()))]


def fields(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{name}.")
        else:
            yield prefix + name, field


@pytest.mark.parametrize(("key", "field"), list(fields()), ids=[key for key, _ in fields()])
def test_every_number_has_a_least_and_a_greatest_value(key: str, field: Any) -> None:
    parts = list(numeric_parts(field.annotation, tuple(field.metadata)))
    assert bool(parts) == (key in NUMBERS)
    for _, constraints in parts:
        least = [getattr(each, name, None) for each in constraints for name in ("gt", "ge")]
        greatest = [getattr(each, name, None) for each in constraints for name in ("lt", "le")]
        assert any(limit is not None for limit in least), key
        assert any(limit is not None and math.isfinite(limit) for limit in greatest), key


@pytest.mark.parametrize("key", sorted(known_settings()))
@pytest.mark.parametrize("router", ROUTERS)
def test_whatever_is_given_is_refused_in_one_short_line_or_planned_at_once(key: str, router: str) -> None:
    for text in HOSTILE:
        words = [f"routing={router}", f"{key}={text}"]
        config, said = None, ""
        try:
            config = load_config(words)
        except ConfigError as error:
            said = str(error)
        assert "\n" not in said
        assert "\x1b" not in said
        assert len(said) < 600, text
        if config is not None:
            assert math.isfinite(budget(config).train_flops_per_image * config.total_images)
            assert all(map(math.isfinite, activations(config, 4, on_accelerator=True)))
            assert math.isfinite(memory(config, on_accelerator=True).peak_gib)


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", ["1", True, [1], {"a": 1}, math.inf, math.nan, 10**400, -(10**400)])
def test_a_stored_config_is_held_to_the_same(key: str, value: Any) -> None:
    raw = load_config(["routing=shared_expert"]).model_dump()
    section, _, name = key.rpartition(".")
    (raw[section] if section else raw)[name] = value
    with pytest.raises(ValidationError):
        RunConfig.model_validate(raw)


LARGEST = [
    "model.width=131072", "model.num_heads=4096", "model.num_kv_heads=1", "model.num_layers=1000", "model.patch_size=1",
    "model.sparse_layers=all", "model.text_width=131072", "model.text_layers=1000", "model.ffn_factor=1e6",
    "routing.num_experts=1048576", "routing.capacity_factor=1048576", "data.image_size=16384", "train.images=1e12",
    "train.batch_images=1048576", "parallel.world=131072", "parallel.expert_parallel=2", "eval.images=1e7",
    "eval.batch_images=1048576", "seed=9223372036854775807", "optim.learning_rate=1000",
]  # fmt: skip


def test_all_at_their_greatest_are_planned_without_being_made() -> None:
    plan = plan_layout(load_config(LARGEST), table_device("H100"))
    assert plan.memory.peak_gib > 1e12
    assert plan.seconds is not None
    assert math.isfinite(plan.seconds)


def test_a_design_keeps_to_the_limits() -> None:
    with pytest.raises(ConfigError, match=r"train\.images=\d+ is out of range\. It must be less than or equal to"):
        load_designed(["ecdit.train_flops=1e25"])
    with pytest.raises(ConfigError, match=r"ecdit\.train_flops=1e300 is not a number of FLOPs of at most 1e\+30"):
        load_designed(["ecdit.train_flops=1e300"])
    with pytest.raises(ConfigError, match=r"model\.width=\d+ is out of range"):
        load_designed(
            [*LARGEST[:4], "routing.num_experts=64", "routing.capacity_factor=64", "ecdit.iso_activation=width"]
        )


@pytest.mark.parametrize("number", [1, 2, 12, 49, 720_720, 999_999_937])
def test_divisors_are_those_of_trying_all(number: int) -> None:
    by_trying = [each for each in range(1, min(number, 2000) + 1) if number % each == 0]
    assert divisors(number, 2000) == by_trying
    assert divisors(number, number)[-1] == number


def test_the_least_value_is_said() -> None:
    with pytest.raises(
        ConfigError, match=r"routing\.capacity_factor=1e-300 is out of range\. It must be at least 1e-06\."
    ):
        load_config(["routing.capacity_factor=1e-300"])
