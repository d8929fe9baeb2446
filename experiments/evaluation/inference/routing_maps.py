"""Measures which tokens routed layers process: on true scenes, where objects are known, and along the sampling path.

On scenes, the model sees renders of the validation split with their captions, noised to each of `TIMES`. The number of
experts on object tokens relative to that on background tokens tests EC-DIT's claim that compute goes where the image is
hard (section 4.4, figure 6), here as a ratio with an interval. Along the sampling path both branches of guidance are
watched: their divergence is the share of assignments of experts to tokens in which they differ. Intervals are
bootstrapped over images.

Legend: N images, B images of a batch, T tokens of an image, E experts, K routed layers, S calls of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from experiments.data.scenes.classes import attributes_of, prompts_of
from experiments.data.scenes.scene import Scene, draw_scenes, render_scenes
from experiments.evaluation.inference.expert_information import ExpertInformation
from experiments.evaluation.inference.token_routing import TokenTally, branch_pairs_B2, entropy_BT, processed_BTE
from experiments.evaluation.sampling.batches import as_pixels
from experiments.evaluation.sampling.generate import caption_ids, image_noise
from experiments.evaluation.sampling.load_run import LoadedRun
from experiments.evaluation.sampling.settings import Conditions, depends_on_batch
from experiments.flow.objective_contract import interpolate, objective_of
from experiments.models.dit import DiTOutput
from experiments.records.compute_map import ComputeMap
from experiments.records.record_types import EvalRow
from experiments.records.routing_map_row import RoutingMapRow

TIMES = tuple(round(0.05 + 0.1 * step, 2) for step in range(10))
RATIO = "object_compute_ratio"
DIVERGENCE = "branch_divergence"
DROPPED = "sampled_dropped_share"
RESAMPLES = 1000
OBJECT_SHARE = 0.5
"""A token whose pixels are covered by objects to at least this share is an object token.

A token without any covered pixel is background. Those in between are on an edge, and count as neither.
"""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RoutingMeasured:
    """The rows for `evals.jsonl` and for `routing_maps.jsonl`."""

    evals: list[EvalRow]
    maps: list[RoutingMapRow]


def scene_row(run: LoadedRun, conditions: Conditions) -> EvalRow:
    """Returns the row of `object_compute_ratio` without its value; no sampler is involved in it."""
    settings = {"precision": conditions.precision, "times": len(TIMES), **conditions.marks}
    settings |= {"batch_images": conditions.batch_images} if depends_on_batch(run.config) else {}
    return conditions.row(run.config, run.images_seen).model_copy(update={"metric": RATIO, "settings": settings})


@torch.no_grad()
def measure_scenes(run: LoadedRun, conditions: Conditions, on_call: Callable[[], None]) -> RoutingMeasured:
    """Measures routing on the first scenes of the validation split at `TIMES`.

    `on_call` is called after each call of the model. There is no ratio where no token is on an object, or where no
    expert processes the background, as with few large patches.
    """
    config, base = run.config, scene_row(run, conditions)
    layers, information = _new_tallies(run), _new_information(run, conditions.num_images)
    attributes: dict[str, list[str]] = {}
    sums_N4 = np.zeros((conditions.num_images, 4))
    for first in range(0, conditions.num_images, conditions.batch_images):
        numbers = range(first, min(first + conditions.batch_images, conditions.num_images))
        scenes = draw_scenes(config.data.seed, numbers, "validation", config.data.image_size)
        for name, values in attributes_of(scenes).items():
            attributes.setdefault(name, []).extend(values)
        images_BCHW = torch.from_numpy(render_scenes(scenes))
        noise_BCHW = image_noise(config, numbers, conditions.seed)
        captions = caption_ids(config, prompts_of(config.data, scenes))
        objects_BT, background_BT = token_places(scenes, config.model.patch_size)
        for time in TIMES:
            time_B = torch.full((len(scenes),), time)
            noisy_BCHW = interpolate(images_BCHW, noise_BCHW, time_B)
            read = objective_of(config.flow).network_input(noisy_BCHW, time_B)
            output = run.model(*(each.to(_device(run)) for each in (*read, captions)))
            for layer, tallies in layers.items():
                assignment = output.feed_forward[layer].assignment
                by_expert_BTE = processed_BTE(assignment, len(scenes))
                counts_BT = by_expert_BTE.sum(dim=-1)
                tally = tallies.setdefault(time, _new_tally(run))
                tally.add(by_expert_BTE, entropy_BT(assignment, len(scenes)), [scene.kind for scene in scenes])
                tally.add_places(counts_BT, objects_BT, background_BT)
                information[layer].add(time, numbers, by_expert_BTE)
                sums_N4[numbers.start : numbers.stop] += _place_sums(counts_BT, objects_BT, background_BT)
            on_call()
    found = bootstrap(sums_N4, lambda sums: (sums[..., 0] / sums[..., 1]) / (sums[..., 2] / sums[..., 3]))
    ratios = [_with_interval(base, RATIO, found)] if math.isfinite(found[0]) else []
    about = RoutingMapRow(
        images_seen=run.images_seen, weights=run.weights, source="scenes", settings=base.settings,
        num_images=conditions.num_images, layer=0, time=None, load=[], entropy=0, dropped_share=0, experts_per_token=[],
    )  # fmt: skip
    return RoutingMeasured(ratios, _map_rows(run, layers, about, information, attributes))


def token_places(scenes: Sequence[Scene], patch_size: int) -> tuple[Tensor, Tensor]:
    """Returns two bool masks [B, T]: tokens on objects, and tokens of background."""
    covered = torch.stack([torch.from_numpy(scene.masks().any(axis=0)).float() for scene in scenes])
    share_BT = F.avg_pool2d(covered[:, None], patch_size).flatten(1)
    return share_BT >= OBJECT_SHARE, share_BT == 0


class RoutingWatcher:
    """Watches every call of the model while images are sampled."""

    def __init__(self, run: LoadedRun, kinds: Sequence[str], mapped: Sequence[int]) -> None:
        """Prepares counters; `kinds[i]` is the kind of caption i, and the compute maps of images `mapped` are kept."""
        self._run, self._kinds, self._mapped = run, kinds, list(mapped)
        self._layers, self._information = _new_tallies(run), _new_information(run, len(kinds))
        self._branches_N2 = np.zeros((len(kinds), 2))
        self._dropped_N2 = np.zeros((len(kinds), 2))
        self._numbers = range(0)
        self._times: list[float] = []
        self._experts: dict[int, list[list[Tensor]]] = {}
        self._pixels: dict[int, Tensor] = {}

    def begin_batch(self, num_images: int, first_number: int) -> None:
        """Begins a batch of `num_images` images, the first of which has the number `first_number`."""
        self._numbers = range(first_number, first_number + num_images)
        self._times = []

    def watch(self, time: float, output: DiTOutput) -> None:
        """Counts one call at `time`.

        Its rows are the conditional images, and after them the unconditional ones where guidance needs both.
        """
        num_images, here = len(self._numbers), slice(self._numbers.start, self._numbers.stop)
        self._times.append(time)
        experts_BT = []
        for layer, tallies in self._layers.items():
            answer = output.feed_forward[layer]
            assert answer.assignment is not None
            num_rows = answer.out_BTD.shape[0]
            by_expert = processed_BTE(answer.assignment, num_rows)
            entropy = entropy_BT(answer.assignment, num_rows)[:num_images]
            conditional_BTE, unconditional_BTE = by_expert[:num_images], by_expert[num_images:]
            tally = tallies.setdefault(round(time, 6), _new_tally(self._run))
            tally.add(conditional_BTE, entropy, self._kinds[here])
            self._information[layer].add(round(time, 6), self._numbers, conditional_BTE)
            counts_BT = conditional_BTE.sum(dim=-1)
            self._dropped_N2[here, 0] += (counts_BT == 0).sum(dim=1).numpy()
            self._dropped_N2[here, 1] += counts_BT.shape[1]
            if len(unconditional_BTE):
                tally.add_branches(conditional_BTE, unconditional_BTE)
                self._branches_N2[here] += branch_pairs_B2(conditional_BTE, unconditional_BTE).numpy()
            experts_BT.append(counts_BT.to(torch.uint8))
        for number in set(self._mapped) & set(self._numbers):
            of_layers = [counts_BT[number - self._numbers.start] for counts_BT in experts_BT]
            self._experts.setdefault(number, []).append(of_layers)

    def end_batch(self, images_BCHW: Tensor) -> None:
        """Keeps the images that the batch has become, where their compute map is asked for."""
        for number in set(self._mapped) & set(self._numbers):
            self._pixels[number] = as_pixels(images_BCHW[number - self._numbers.start][None])[0]

    def measured(self, base: EvalRow, attributes: Mapping[str, Sequence[str]] | None = None) -> RoutingMeasured:
        """Returns the rows under the conditions of `base`; `attributes` of images add those by position and class."""
        found = [_with_interval(base, DROPPED, bootstrap(self._dropped_N2, lambda sums: sums[..., 0] / sums[..., 1]))]
        if self._branches_N2[:, 1].all():
            different = bootstrap(self._branches_N2, lambda sums: 1 - sums[..., 0] / sums[..., 1])
            found.append(_with_interval(base, DIVERGENCE, different))
        about = RoutingMapRow(
            images_seen=base.images_seen, weights=base.weights, source="samples", settings=base.settings,
            num_images=len(self._kinds), layer=0, time=None, load=[], entropy=0, dropped_share=0, experts_per_token=[],
        )  # fmt: skip
        return RoutingMeasured(found, _map_rows(self._run, self._layers, about, self._information, attributes))

    def compute_map(self, captions: Mapping[int, str]) -> ComputeMap:
        """Returns the compute map of the images asked for, in their order; every batch must have ended."""
        experts_BSKT = torch.stack([torch.stack([torch.stack(k) for k in self._experts[n]]) for n in self._mapped])
        return ComputeMap(
            captions=tuple(captions[number] for number in self._mapped),
            images_BHWC=torch.stack([self._pixels[number] for number in self._mapped]).numpy(),
            experts_BKNT=experts_BSKT.transpose(1, 2).contiguous().numpy(),
            times_N=np.array(self._times, dtype=np.float32),
            layers_K=np.array(list(self._layers), dtype=np.int64),
            num_experts=self._run.config.routing.num_experts,
            images_seen=self._run.images_seen,
        )


def bootstrap(
    sums_NK: Floats, statistic: Callable[[Floats], Floats], seed: int = 0
) -> tuple[float, float | None, float | None]:
    """Returns `statistic` of the sums over images, with its 95% percentile interval over resampled images.

    A statistic that divides by nothing in one of the resamples has no interval.
    """
    # Drawing N images with replacement is drawing how often each image occurs, which is multinomial. All resamples are
    # then one matrix product.
    weights_RN = np.random.default_rng(seed).multinomial(
        len(sums_NK), np.full(len(sums_NK), 1 / len(sums_NK)), RESAMPLES
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        value, resampled_R = float(statistic(sums_NK.sum(axis=0))), statistic(weights_RN @ sums_NK)
    if not np.isfinite(resampled_R).all():
        return value, None, None
    low, high = np.quantile(resampled_R, [0.025, 0.975])
    return value, float(low), float(high)


def _with_interval(base: EvalRow, metric: str, found: tuple[float, float | None, float | None]) -> EvalRow:
    update = {"metric": metric, "value": found[0], "interval_low": found[1], "interval_high": found[2]}
    return base.model_copy(update=update)


def _place_sums(counts_BT: Tensor, objects_BT: Tensor, background_BT: Tensor) -> Floats:
    """Returns [B, 4]: experts on objects, object tokens, experts on background, background tokens."""
    sums = [(counts_BT * objects_BT), objects_BT, (counts_BT * background_BT), background_BT]
    stacked: Floats = torch.stack([each.sum(dim=1) for each in sums], dim=1).double().numpy()
    return stacked


def _new_tallies(run: LoadedRun) -> dict[int, dict[float, TokenTally]]:
    """Returns empty tallies by routed layer, to be filled by time."""
    return {layer: {} for layer in run.config.sparse_layer_indices}


def _new_information(run: LoadedRun, num_images: int) -> dict[int, ExpertInformation]:
    """Returns empty counts by routed layer."""
    sizes = num_images, run.config.routing.num_experts, run.config.num_tokens
    return {layer: ExpertInformation(*sizes) for layer in run.config.sparse_layer_indices}


def _new_tally(run: LoadedRun) -> TokenTally:
    config = run.config
    return TokenTally(config.routing.num_experts, (config.data.image_size // config.model.patch_size) ** 2)


def _map_rows(
    run: LoadedRun,
    layers: dict[int, dict[float, TokenTally]],
    about: RoutingMapRow,
    information: Mapping[int, ExpertInformation],
    attributes: Mapping[str, Sequence[str]] | None,
) -> list[RoutingMapRow]:
    """Returns the rows of every layer: one for each time, then one over all, which alone has positions and kinds.

    Without `attributes` no row has what is counted by position and class.
    """
    rows = []
    for layer, tallies in layers.items():
        whole = _new_tally(run)
        for time, tally in tallies.items():
            more = {} if attributes is None else information[layer].at_time(time, attributes)
            rows.append(tally.row(about, layer, time, with_positions=False).model_copy(update=more))
            whole.merge(tally)
        more = {} if attributes is None else information[layer].over_all_times(attributes)
        rows.append(whole.row(about, layer, None, attributes is not None).model_copy(update=more))
    return rows


def _device(run: LoadedRun) -> torch.device:
    return next(run.model.parameters()).device
