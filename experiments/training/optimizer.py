"""Builds the optimizer and its parameter groups: one of all parameters, or one for each factor on the learning rate.

In the maximal-update parametrization (`config/parametrization.py`) the rate of weights that read the width is divided
by rho = width / base width. Parameters with the same factor share a group, so that there are as few groups as possible
(two): DeepSpeed flattens, partitions and steps each group by itself. At the base width all factors are 1, and there is
one group, as in the standard parametrization.
"""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

import torch
from torch import nn

from experiments import accelerated
from experiments.config.parametrization import followed_length, rate_factor
from experiments.config.schema import RunConfig
from experiments.distributed.deepspeed_library import get_accelerator, split_expert_groups

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)
RATE_FACTOR = "rate_factor"
"""The key of a parameter group under which the factor on its learning rate is stored."""


def build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Returns the optimizer of `config` over all parameters of `model`, a `DiT`."""
    optim, constants = config.optim, followed_length(config)
    # DeepSpeed reduces the gradients of experts over fewer processes, and requires parameter groups of their own. It
    # splits them off with all keys of their group, the factor included.
    groups = split_expert_groups(_groups(config, model))
    if optim.name == "rmsprop":
        return without_compiler(torch.optim.RMSprop)(
            groups, lr=constants.learning_rate, alpha=constants.beta2, momentum=optim.momentum
        )  # fmt: skip
    # The fused optimizer passes once over memory: on a CPU it is five times as fast as one pass per operation.
    kind = get_accelerator().device_name()
    in_one_pass = config.train.is_fast and kind in {"cpu", *accelerated.DEVICES}
    # None leaves the choice of the implementation to torch, which falls back to one that every device has.
    return without_compiler(torch.optim.AdamW)(
        groups, lr=constants.learning_rate, betas=(constants.beta1, constants.beta2),
        fused=True if in_one_pass else None,
    )  # fmt: skip


def without_compiler(kind: type[Kind]) -> type[Kind]:
    """Returns `kind` without the wrappers that import torch's compiler, which takes more than a second.

    The step of torch's optimizers imports it to say that a compiled step ends there, and other methods import it at
    their first call so that it leaves them alone. Nothing here is compiled.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})


def _groups(config: RunConfig, model: nn.Module) -> list[dict[str, Any]]:
    """Returns the parameter groups before experts are split off; the group whose factor is 1 comes first.

    A group's rate and epsilon are multiplied by its factor, because gradients of these weights shrink with the width as
    their rate does. Its weight decay is divided by the factor, so that rate times decay does not depend on the width
    (microsoft/mup, `MuAdam`).
    """
    constants = followed_length(config)
    by_factor: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        by_factor.setdefault(rate_factor(config, name), []).append(parameter)
    return [
        {
            "name": "all" if len(by_factor) == 1 else f"rate x {factor:g}",
            "params": by_factor[factor],
            RATE_FACTOR: factor,
            "lr": constants.learning_rate * factor,
            "eps": constants.epsilon * factor,
            "weight_decay": constants.weight_decay / factor,
        }
        for factor in sorted(by_factor, key=lambda factor: factor != 1)
    ]
