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


class Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operators return, from then until they are freed.

    `events` holds (serial number, bytes) of each storage that appears, and the negative bytes when it goes; `live` is
    the sum. A storage that was there before the operator, as in a view, counts only `with_given`. `is_counted` leaves
    storages out.
    """

    def __init__(
        self, with_given: bool = False, is_counted: Callable[[torch.UntypedStorage], bool] = lambda storage: True
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.with_given, self.is_counted = with_given, is_counted
        self.events: list[tuple[int, int]] = []
        self.serial_of: dict[int, int] = {}
        self.live = self._peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Executes the operator and counts the storages of what it returns."""
        out = func(*args, **(kwargs or {}))
        given = set() if self.with_given else {storage._cdata for storage in _storages_of((args, kwargs))}
        for storage in _storages_of(out):
            # The result of a view or of an operation in place has a storage that is known already.
            if storage._cdata not in given and storage._cdata not in self.serial_of and self.is_counted(storage):
                self._count(storage)
        return out

    def take_peak(self) -> int:
        """Returns the most bytes that were alive at once since the last call."""
        peak, self._peak = self._peak, self.live
        return peak

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size, serial = storage._cdata, storage.nbytes(), len(self.events)
        self._add(serial, size)
        self.serial_of[key] = serial

        def gone(_: object) -> None:
            self._add(serial, -size)
            del self.serial_of[key], self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)

    def _add(self, serial: int, size: int) -> None:
        self.events.append((serial, size))
        self.live += size
        self._peak = max(self._peak, self.live)


def _storages_of(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_bytes(step: Callable[[], Sequence[Tensor]]) -> int:
    """Returns the most bytes alive at once during `step`, without the gradients of weights, which it returns.

    `step` computes them with `torch.autograd.grad`, because `backward` under this count would copy each one on its way
    to `.grad`.
    """
    with Storages() as storages:
        left_out = step()
    kept = {storages.serial_of.get(tensor.untyped_storage()._cdata) for tensor in left_out}
    live = peak = 0
    for serial, size in storages.events:
        live += 0 if serial in kept else size
        peak = max(peak, live)
    return peak
