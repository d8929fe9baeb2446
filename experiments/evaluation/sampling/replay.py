"""Records the forward pass of a trained model once for inputs of one shape, and replays it.

With small batches an accelerator waits for the processor, which launches hundreds of kernels in every pass. A recorded
pass (a CUDA graph, which also works on AMD's cards) is launched as a whole. It reads the weights from the addresses
where they were when it was recorded, so that only models whose weights stay in place may be replayed: those that were
loaded to be sampled from. A call that is watched is not replayed (`generate.py`), because `watch` needs its
intermediate results.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from experiments.models.dit import DiT
from experiments.models.embed import Caption
from experiments.routing.router import Router

KEPT = 2
"""The number of recorded input shapes: one for both branches of guidance in a call, and one for a single branch."""
WARM_UP_PASSES = 2
Forward = Callable[[Tensor, Tensor, Caption], Tensor]


class Replay:
    """Computes the velocity of `model` without gradients; the two input shapes used last stay recorded."""

    def __init__(self, model: DiT) -> None:
        self._model = ref(model)  # weak, because the model is the key of this object in `_REPLAYS`
        self.recorded: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    def __call__(self, image_BCHW: Tensor, time_B: Tensor, caption: Caption) -> Tensor:
        """Returns the velocity [B, T, P] in a buffer that the next call overwrites."""
        given = [image_BCHW, time_B, *([caption] if isinstance(caption, Tensor) else caption)]
        key = tuple((tensor.shape, tensor.dtype) for tensor in given)
        found = self.recorded.pop(key, None) or self._record(given)
        while len(self.recorded) >= KEPT:
            self.recorded.pop(next(iter(self.recorded)))
        self.recorded[key] = found
        graph, inputs, velocity_BTP = found
        torch._foreach_copy_(inputs, given)
        graph.replay()
        return velocity_BTP

    def _record(self, given: list[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        model = self._model()
        assert model is not None
        inputs, graph = [tensor.clone() for tensor in given], torch.cuda.CUDAGraph()
        # PyTorch asks for a warm-up on another stream before a graph is recorded. Kernels are compiled and libraries
        # allocate their workspaces there, which may not happen during the recording.
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP_PASSES):
                _velocity(model, inputs)
        torch.cuda.current_stream().wait_stream(beside)
        with torch.cuda.graph(graph):
            velocity_BTP = _velocity(model, inputs)
        return graph, inputs, velocity_BTP


def allow_replay(model: DiT) -> DiT:
    """Lets `model`, whose weights must stay in place from now on, be replayed where its device can. Returns `model`."""
    fixed = [module.has_fixed_shapes for module in model.modules() if isinstance(module, Router)]
    on_device = next(model.parameters()).device.type == "cuda"
    # Where loads differ, grouped products are unsafe in a graph, and the loop beside them reads loads back.
    if on_device and model.fast and all(fixed):
        _REPLAYS[model] = Replay(model)
    return model


def velocity_of(model: DiT) -> Forward:
    """Returns the function that computes the velocity [B, T, P] from image, time and caption."""
    replay = _REPLAYS.get(model)
    if replay is not None:
        return replay
    return lambda image_BCHW, time_B, caption: model(image_BCHW, time_B, caption).velocity_BKP


def _velocity(model: DiT, given: list[Tensor]) -> Tensor:
    image_BCHW, time_B, *rest = given
    caption: Caption = rest[0] if len(rest) == 1 else (rest[0], rest[1], rest[2])
    velocity_BTP: Tensor = model(image_BCHW, time_B, caption).velocity_BKP
    return velocity_BTP


_REPLAYS: WeakKeyDictionary[DiT, Replay] = WeakKeyDictionary()
