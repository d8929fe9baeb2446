"""Peak memory of a layer's step beyond its weights and their gradients, counted operator by operator.

The same on every device: storages are counted while they live, and the gradients that stay on the parameters are left
out afterwards. What a kernel takes for itself is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Storages(TorchDispatchMode):
    """When each storage that an operator returns comes and goes: (serial number, bytes), negative when it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []
        self.serial_of: dict[int, int] = {}
        self._alive: list[weakref.ref[torch.UntypedStorage]] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size, serial = storage._cdata, storage.nbytes(), len(self.events)
        if key in self.serial_of:
            return
        self.events.append((serial, size))
        self.serial_of[key] = serial

        def gone(_: object) -> None:
            self.events.append((serial, -size))
            self.serial_of.pop(key, None)

        self._alive.append(weakref.ref(storage, gone))


def peak_bytes(module: nn.Module, step: Callable[[], object]) -> int:
    """The most that is alive at once during `step`, which ends with gradients on the parameters of `module`."""
    with _Storages() as storages:
        step()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    kept = {storages.serial_of.get(gradient.untyped_storage()._cdata) for gradient in gradients}
    live = peak = 0
    for serial, size in storages.events:
        live += 0 if serial in kept else size
        peak = max(peak, live)
    return peak
