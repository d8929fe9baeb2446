"""Computes the rows of SegMoE's routers from what the merged runs see while they denoise their own captions.

Row e of a layer's router is the mean over tokens of what the layer reads in run e, divided by its L2 norm. It is taken
at the last step of the sampler, over all captions and all tokens, and from the conditional half of the guidance batch
(segmind/segmoe at 5fce953, `get_hidden_states` and `get_gate_params`, which have one prompt for each expert). A token
then scores an expert by its product with that row, so that it prefers the run whose tokens were like it.

Legend: B images, T tokens of an image, D width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.data.loader import Batch, validation_set
from experiments.evaluation.sampling.generate import SamplerSettings, empty_of, integrate
from experiments.evaluation.sampling.load_run import LoadedRun
from experiments.training.objective import to_device


def row_from_captions(
    run: LoadedRun, layers: Sequence[int], num_captions: int, on_call: Callable[[], None]
) -> dict[int, Tensor]:
    """Returns the row [D] of each layer, float32 with norm 1, of a dense run and its first validation captions.

    The run denoises with its own `eval.sample_steps` and `eval.guidance`. `on_call` is called after each call of the
    model, as often as `num_calls` says.
    """
    few = run.config.eval.model_copy(update={"images": num_captions})
    config = run.config.model_copy(update={"eval": few})
    device = next(run.model.parameters()).device
    settings = SamplerSettings.of(config)
    sums = {layer: torch.zeros(config.model.width, dtype=torch.float64, device=device) for layer in layers}
    with _inputs_of(run, layers) as inputs:
        for batch in validation_set(config):
            _denoise(run, to_device(batch, device), settings, on_call)
            for layer in layers:
                # The last call has left its input here. Its first half, or all of it without guidance, is conditional.
                sums[layer] += inputs[layer][: len(batch.index_B)].double().sum(dim=(0, 1))
    # The mean and the sum have the same direction.
    return {layer: torch.nn.functional.normalize(total, dim=0).float().cpu() for layer, total in sums.items()}


def random_rows(config: RunConfig, layers: Sequence[int]) -> dict[int, Tensor]:
    """Returns random rows [E, D] of each layer, float32 with norm 1, which depend on `seed` alone."""
    generator = torch.Generator().manual_seed(config.seed)
    shape = (config.routing.num_experts, config.model.width)
    return {layer: torch.nn.functional.normalize(torch.randn(shape, generator=generator)) for layer in layers}


def num_calls(config: RunConfig, num_captions: int) -> int:
    """Returns how often `row_from_captions` calls the model of a run with these settings."""
    return -(-num_captions // config.eval.batch_images) * config.eval.sample_steps


def _denoise(run: LoadedRun, batch: Batch, settings: SamplerSettings, on_call: Callable[[], None]) -> None:
    """Samples images of the captions of `batch` from its noise. A watched model is called and never replayed."""
    caption: Any = batch.caption
    null: Any = empty_of(run.model, run.config, caption)
    integrate(run.model, caption, null, batch.noise_BCHW, settings, lambda time, output: on_call())


@contextmanager
def _inputs_of(run: LoadedRun, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Yields a mapping that holds what the feed-forwards of `layers` have read last, [B, T, D] each."""
    found: dict[int, Tensor] = {}
    with ExitStack() as hooks:
        for layer in layers:
            feed_forward = run.model.blocks[layer].ffn
            assert isinstance(feed_forward, torch.nn.Module)

            def keep(module: torch.nn.Module, given: tuple[Tensor, ...], layer: int = layer) -> None:
                found[layer] = given[0]

            hooks.callback(feed_forward.register_forward_pre_hook(keep).remove)
        yield found
