"""Measures metrics of sampled images while a run trains (`eval.metric_images`), for figures over training.

Their rows in `experiments.config.metrics` say `while_training`; ours are alignment and Frechet distance of scenes, and
Frechet distance and retrieval of prepared sets of pixels.

The values and settings are those that `ecdit evaluate` would give for that moment by default: EMA weights,
`eval.guidance`, `eval.sample_steps`. Sampling is shared by all processes; the process that writes judges the images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.config.data_sets import image_kinds
from experiments.config.metrics import training_metrics
from experiments.config.schema import RunConfig
from experiments.distributed.agreement import everyone
from experiments.evaluation.metrics.sampled_metric import CaptionSet, MetricTask
from experiments.evaluation.sampling.batches import sampled_batches
from experiments.evaluation.sampling.generate import part_of
from experiments.evaluation.sampling.settings import Conditions, training_conditions
from experiments.evaluation.score import MetricSet, caption_sets
from experiments.records.writer import RecordWriter
from experiments.training.engine import Engine
from experiments.training.validation import turns_of

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
Sampled = list[tuple[range, Tensor]]


def measure_at_cadence(engine: Engine, config: RunConfig, images_seen: int, writer: RecordWriter | None) -> None:
    """Samples images, judges them and records the values, as an observer of the training loop. Collective."""
    if config.eval.metric_images == 0:
        return
    conditions = training_conditions(config, PRECISIONS[engine.model.embed.weight.dtype])
    base = conditions.row(config, images_seen).model_copy(update={"while_training": True})
    rows = training_metrics(image_kinds(config), with_captions=config.data.num_classes is None)
    names, task = [row.name for row in rows], MetricTask(config, conditions, base)
    with engine.ema.applied():
        mine = [part for captions in caption_sets(names, task) for part in _share(engine, config, captions, conditions)]
    shares = everyone(mine, engine.world)
    if writer is None:
        return
    metrics = MetricSet(names, task)
    # Sums of features round by order, so batches are added in the order that a single process would have.
    for numbers, images_BCHW in sorted((part for parts in shares for part in parts), key=lambda part: part[0].start):
        metrics.add(numbers, images_BCHW)
    writer.evaluation(metrics.rows())


def _share(engine: Engine, config: RunConfig, captions: CaptionSet, conditions: Conditions) -> Sampled:
    """Samples every `world`-th batch, so that a batch does not depend on the number of processes."""
    size = conditions.batch_images
    num_batches = -(-len(captions.numbers) // size)
    found: Sampled = []
    for turn in turns_of(num_batches, engine.rank, engine.world, engine.layers_are_collective):
        first = turn % num_batches * size
        here = slice(first, first + size)
        prompts = part_of(captions.prompts(config), here)
        batches = sampled_batches(engine.model, config, prompts, conditions, captions.numbers[here])
        sampled = [(batch.numbers, batch.images_BCHW) for batch in batches]
        found += sampled if turn < num_batches else []
    return found
