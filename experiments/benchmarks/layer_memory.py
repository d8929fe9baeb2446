"""Measures the peak memory of a layer's step beyond its weights and their gradients, operator by operator.

The count is the same on every device: it adds up the storages that are alive, and leaves out the gradients of the
weights afterwards. Memory that a kernel allocates internally is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records when storages that operators return appear and go: (serial number, bytes), negative when gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[tuple[int, int]] = []
        self.serial_of: dict[int, int] = {}
        self._alive: list[weakref.ref[torch.UntypedStorage]] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages_of((args, kwargs))}
        for storage in _storages_of(out):
            # The result of a view or of an operation in place has a storage that is known already.
            if storage._cdata not in given and storage._cdata not in self.serial_of:
                self._count(storage)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size, serial = storage._cdata, storage.nbytes(), len(self.events)
        self.events.append((serial, size))
        self.serial_of[key] = serial

        def gone(_: object) -> None:
            self.events.append((serial, -size))
            self.serial_of.pop(key, None)

        self._alive.append(weakref.ref(storage, gone))


def _storages_of(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_bytes(step: Callable[[], Sequence[Tensor]]) -> int:
    """Returns the most bytes alive at once during `step`, without the gradients of weights, which it returns.

    `step` computes them with `torch.autograd.grad`, because `backward` under this count would copy each one on its way
    to `.grad`.
    """
    with _Storages() as storages:
        left_out = step()
    kept = {storages.serial_of.get(tensor.untyped_storage()._cdata) for tensor in left_out}
    live = peak = 0
    for serial, size in storages.events:
        live += 0 if serial in kept else size
        peak = max(peak, live)
    return peak
