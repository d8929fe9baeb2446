"""Checks the answers of a plugin's router, so that a wrong shape is named where it arises and not where it hurts.

Legend: as in `contract.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from experiments.errors import PluginError
from experiments.routing.contract import Assignment, Choices, GroupDecision

Expected = Mapping[str, tuple[tuple[int, ...], torch.dtype, bool]]
"""Shape, type, and whether the field may be None, by name."""


def check_decision(answer: object, logits_GSE: Tensor, capacity: int, where: str) -> None:
    """Raises `PluginError` unless `answer` is the decision of `where` for these logits and this many slots."""
    num_groups, size, num_experts = logits_GSE.shape
    slots = (num_groups, num_experts, capacity)
    expected: Expected = {
        "token_GEC": (slots, torch.int64, False),
        "weight_GEC": (slots, torch.float32, False),
        "filled_GEC": (slots, torch.bool, True),
        "auxiliary_loss": ((), torch.float32, True),
    }
    _check(answer, GroupDecision, expected, f"{where}: decide")
    assert isinstance(answer, GroupDecision)
    _check_range(answer.token_GEC, size, f"{where}: decide", "token_GEC", "tokens of a group")


def check_choices(answer: object, logits_GSE: Tensor, where: str) -> None:
    """Raises `PluginError` unless `answer` is the choices of `where` for these logits."""
    num_groups, size, num_experts = logits_GSE.shape
    columns = getattr(getattr(answer, "expert_NK", None), "shape", (0, 0))[-1]
    choices = (num_groups * size, columns)
    expected: Expected = {
        "expert_NK": (choices, torch.int64, False),
        "weight_NK": (choices, torch.float32, False),
        "auxiliary_loss": ((), torch.float32, True),
    }
    _check(answer, Choices, expected, f"{where}: choose")
    assert isinstance(answer, Choices)
    _check_range(answer.expert_NK, num_experts, f"{where}: choose", "expert_NK", "experts")


def check_assignment(answer: object, where: str) -> None:
    """Raises `PluginError` unless `answer` is an assignment of `where` whose slots all have a token and a weight."""
    num_slots = getattr(getattr(answer, "token_M", None), "shape", (0,))[:1]
    expected: Expected = {
        "token_M": (tuple(num_slots), torch.int64, False),
        "weight_M": (tuple(num_slots), torch.float32, False),
        "filled_M": (tuple(num_slots), torch.bool, True),
        "auxiliary_loss": ((), torch.float32, True),
    }
    _check(answer, Assignment, expected, f"{where}: assign")


def check_observed(answer: Assignment, learns: bool, where: str) -> None:
    """Raises `PluginError` unless `answer` says what a state learns, in float32, exactly where it learns."""
    observed = answer.observed
    is_right = observed is None if not learns else observed is not None and observed.dtype == torch.float32
    if not is_right:
        shown = "None" if observed is None else _described(observed)
        wanted = "float32 in training, since it has a state," if learns else "None without a state or outside training"
        raise PluginError(
            f"{where}: the router answers observed={shown}, {wanted} is expected.",
            "Return assignment._replace(observed=...) from assign where self.training holds and self.state is set.",
        )


def check_finite(answer: Assignment, where: str) -> None:
    """Raises `PluginError` where a weight or loss of `answer` is not finite.

    It is for the trial before a run, on finite tokens. During training it would halt an accelerator at every step, and
    a model that diverges would look like a broken plugin.
    """
    for name, value in (("weight", answer.weight_M), ("auxiliary_loss", answer.auxiliary_loss)):
        if value is not None and not bool(value.isfinite().all()):
            raise PluginError(
                f"{where}: the router answers NaN or infinity in its {name} for tokens that are finite.",
                "Correct the plugin.",
            )


def _check(answer: object, kind: type, expected: Expected, where: str) -> None:
    if not isinstance(answer, kind):
        raise PluginError(f"{where} answers a {type(answer).__name__}, {kind.__name__} is expected.")
    for name, (shape, dtype, may_be_none) in expected.items():
        value = getattr(answer, name)
        if value is None and may_be_none:
            continue
        is_right = isinstance(value, Tensor) and tuple(value.shape) == shape and value.dtype == dtype
        if not is_right:
            raise PluginError(
                f"{where} answers {name}={_described(value)}, {_form(shape, dtype)} is expected.",
                "The legend of experiments/routing/contract.py says what the letters mean.",
            )


def _check_range(index: Tensor, limit: int, where: str, name: str, what: str) -> None:
    """Checks indices on a CPU only: on an accelerator reading the answer back would halt every step."""
    if index.device.type == "cpu" and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < limit:
        raise PluginError(
            f"{where} answers {name} from {int(index.min())} to {int(index.max())}, but the {limit} {what} have the "
            f"numbers 0 to {limit - 1}."
        )


def _described(value: object) -> str:
    return _form(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _form(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
