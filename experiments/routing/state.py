"""The state of routers: numbers that follow the batches of training without a gradient, and decide together with it.

A forward pass never changes a state, so that validation, sampling and the recomputation of activation checkpointing
leave it as it is. What a batch shows is part of the decision (`Assignment.observed`); the training loop takes the mean
over micro batches and processes and calls `update` once per optimizer step (`training/router_states.py`). All processes
therefore hold the same numbers, which every checkpoint holds too.

Legend: E experts, K thresholds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class RouterState(nn.Module, ABC):
    """Buffers that keep float32, whatever precision the model is cast to."""

    @abstractmethod
    def update(self, observed: Tensor) -> None:
        """Takes over what one optimizer step has shown, the mean over its micro batches and processes."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves the buffers as the module moves, but casts none: a step of 0.001 would be lost in bfloat16."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


class RunningThreshold(RouterState):
    """The running mean of a threshold that every batch has by itself, such as the C-th largest score of an expert.

    The first steps take the plain mean of what they have seen, until `decay` is the larger weight: a mean that begins
    at 0 would let too many tokens through until it has grown (DiffMoE begins at 0, arXiv 2503.14487).
    """

    value_K: Tensor
    num_updates: Tensor

    def __init__(self, num_thresholds: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value_K", torch.zeros(num_thresholds))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @property
    def has_begun(self) -> bool:
        """Says whether any step has been seen, without which the thresholds say nothing. It waits for the device."""
        return bool(self.num_updates)

    def learns_from(self, dropped_B: Tensor) -> Tensor:
        """Returns the images that show a threshold beside an unconditional expert, bool [B]: those with a caption.

        It is false everywhere where no image has one, and the thresholds are to stay as they are. Only before the first
        step, when there are none yet, all images show one.
        """
        is_needed = dropped_B.all() & (self.num_updates == 0)
        return ~dropped_B | is_needed

    @torch.no_grad()
    def update(self, observed: Tensor) -> None:
        """Moves the thresholds [K] towards those of one step."""
        share = (1 / (self.num_updates + 1.0)).clamp_min(1 - self.decay)
        self.value_K.lerp_(observed.to(self.value_K), share.to(self.value_K))
        self.num_updates += 1


class SelectionBias(RouterState):
    """The bias of loss-free balancing (arXiv 2408.15664, algorithm 1), which is added to scores for the choice alone.

    After each step b_e grows by the update rate where expert e had less than the mean load, and shrinks where it had
    more. Its mean stays 0 (DeepSeek-V3's form in torchtitan), since only differences change a choice.
    """

    value_E: Tensor

    def __init__(self, num_experts: int, update_rate: float) -> None:
        super().__init__()
        self.update_rate = update_rate
        self.register_buffer("value_E", torch.zeros(num_experts))

    @torch.no_grad()
    def update(self, observed: Tensor) -> None:
        """Takes the loads [E] of one step, in any unit."""
        loads_E = observed.to(self.value_E)
        self.value_E += self.update_rate * (loads_E.mean() - loads_E).sign()
        self.value_E -= self.value_E.mean()
