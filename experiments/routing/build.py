"""Builds the router of a config from its row in the registry, and tries the routers of plugins before they train.

A plugin's class is code of somebody else, so that it is checked first that it keeps the contract: it is a `Router`, has
the methods that its row promises, and holds no other weights than the map to logits, since the arithmetic of parameters
knows of no others. Beside them it may keep a `RouterState`, which checkpoints hold.
"""

from __future__ import annotations

import pkgutil
from typing import Any

import torch

from experiments.config.router_sizes import router_tensors
from experiments.config.routers import ROUTERS, RouterRow
from experiments.config.schema import RunConfig
from experiments.errors import PluginError
from experiments.plugins.loading import require_decision
from experiments.plugins.sources import is_plugin, named_plugin, on_one_line, plugin_errors
from experiments.routing.answer_checks import check_finite, check_observed
from experiments.routing.router import Router
from experiments.routing.state import RouterState


def build_router(config: RunConfig) -> Router:
    """Returns the router of `config.routing.name`, with random weights. Raises `PluginError` for a broken plugin."""
    row = ROUTERS[config.routing.name]
    if not is_plugin("router", row.name):
        return router_class(row)(config)
    where, implementation = named_plugin("router", row.name), _plugin_class(row)
    is_limited = None not in (config.routing.capacity_factor, config.routing.eval_capacity_factor)
    decides_in_groups = implementation.assign is Router.assign
    if not is_limited and decides_in_groups and implementation.choose is Router.choose:
        raise PluginError(
            f"{where}: {implementation.__name__} lacks the method choose, which decides without a capacity.",
            "Define choose(self, logits_GSE) -> Choices, or set needs_capacity=True in its row.",
        )
    with plugin_errors("router", row.name):
        router = implementation(config)
        _check_state(router, config, where)
    router.plugin = row.name
    return router


def router_class(row: RouterRow) -> type[Router]:
    """Imports the class of a row."""
    if isinstance(row.implementation, type):
        return row.implementation
    assert row.implementation is not None, f"{row.name} is not routed"
    found: type[Router] = pkgutil.resolve_name(row.implementation)
    return found


def try_plugin(config: RunConfig) -> None:
    """Lets the router of a plugin decide for one batch of random tokens, in training and in evaluation.

    What it answers wrongly then ends the command before a run begins. Routers of this project have their tests.
    """
    name = config.routing.name
    if not is_plugin("router", name):
        return
    narrow = config.model_copy(update={"model": config.model.model_copy(update={"width": 8})})
    evaluation = config.eval
    sizes = {
        True: (config.micro_batch_images, config.num_train_tokens),
        False: (min(evaluation.images, evaluation.batch_images), config.num_tokens),
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        router = build_router(narrow)
        for training, (num_images, num_tokens) in sizes.items():
            with plugin_errors("router", name):
                answer = router.train(training)(torch.randn(num_images, num_tokens, 8))
            check_finite(answer, named_plugin("router", name))
            check_observed(answer, training and router.state is not None, named_plugin("router", name))


def _plugin_class(row: RouterRow) -> type[Router]:
    where = named_plugin("router", row.name)
    try:
        found: Any = router_class(row)
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"{where}: implementation={row.implementation!r} cannot be imported: {on_one_line(str(error))}.",
            "Expected is 'module:Class'.",
        ) from error
    if not (isinstance(found, type) and issubclass(found, Router)):
        shown = getattr(found, "__name__", repr(found))
        raise PluginError(f"{where}: {shown} is no subclass of Router.", "Inherit experiments.routing.router.Router.")
    require_decision(where, found)
    implementation: type[Router] = found
    return implementation


def _check_state(router: Router, config: RunConfig, where: str) -> None:
    """Requires the weights that the budget counts, and beside them only the buffers of `router.state`."""
    found, expected = set(router.state_dict()), set(router_tensors(config))
    if isinstance(router.state, RouterState):
        found -= {f"state.{name}" for name, _ in router.state.named_buffers(recurse=False)}
    others, missing = sorted(found - expected), sorted(expected - found)
    if others or missing:
        kept = f"keeps {', '.join(others)}, which checkpoints do not hold"
        raise PluginError(
            f"{where}: {type(router).__name__} {kept if others else 'has no ' + ', '.join(missing)}.",
            "Call super().__init__(config) and add no weights; numbers that follow training are buffers of a "
            "RouterState in self.state, and buffers of constants take persistent=False.",
        )
