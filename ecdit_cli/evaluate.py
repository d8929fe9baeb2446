"""`ecdit evaluate` measures the images and the routing of trained runs, and adds the values to their records."""

from __future__ import annotations

from typing import Annotated

import typer

from ecdit_cli._options import (
    Again,
    CheckJudge,
    ClipModel,
    EmaWidths,
    GuidanceChannels,
    GuidanceInterval,
    ImportDsg,
    ImportGeneval,
    InceptionWeights,
    Json,
    Precision,
    Rounds,
    RunFolders,
    SampleBatch,
    SampledImages,
    Sampler,
    SampleSeed,
    Scales,
    Shift,
    Steps,
    Weights,
)  # fmt: skip
from experiments.config.metrics import DEFAULT_METRICS, METRICS, PICTURE_METRICS

INFERENCE_TIME = "inference-time"
MetricNames = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        help=f"What to measure, separated by commas: {', '.join(METRICS)}. Default: {','.join(DEFAULT_METRICS)}, or "
        f"for a run on prepared pixels {','.join(PICTURE_METRICS)}.",
    ),
]


def evaluate(
    runs: RunFolders,
    metrics: MetricNames = None,
    images: SampledImages = 512,
    guidance: Scales = None,
    guidance_interval: GuidanceInterval = "0,1",
    guidance_channels: GuidanceChannels = None,
    steps: Steps = None,
    sampler: Sampler = "euler",
    shift: Shift = None,
    weights: Weights = "ema",
    ema: EmaWidths = None,
    precision: Precision = "auto",
    seed: SampleSeed = None,
    batch_images: SampleBatch = 16,
    rounds: Rounds = 5,
    inception_weights: InceptionWeights = None,
    clip_model: ClipModel = None,
    import_geneval: ImportGeneval = None,
    import_dsg: ImportDsg = None,
    check_judge: CheckJudge = False,
    again: Again = False,
    as_json: Json = False,
) -> None:
    """Measure trained runs: alignment, Frechet distance, routing, seconds an image. Adds to their evals.jsonl.

    What is recorded for the same weights and settings is not measured again, except inference-time. That takes all runs
    in turns in one process: let nothing else run meanwhile. --ema measures averages of other widths, which are made
    after training.
    """
    from ecdit_cli import _evaluation as work
    from ecdit_cli._evaluation_table import print_table
    from ecdit_cli._progress import progress
    from ecdit_cli._sampling import parse_guidance, parse_interval

    wanted = None if metrics is None else work.check_metrics(metrics, tuple(METRICS))
    scales, interval = None if guidance is None else parse_guidance(guidance), parse_interval(guidance_interval)
    widths = work.check_widths(ema, wanted or ()) if ema is not None else None
    if check_judge:
        work.print_judge_check(as_json)
        return
    work.refuse_unread_files({"--inception-weights": inception_weights, "--clip-model": clip_model}, wanted or ())
    folders = work.existing_runs(runs)
    sampled = None if wanted is None else tuple(metric for metric in wanted if metric != INFERENCE_TIME)
    with progress("importing torch") as show:
        from experiments.evaluation import measured_runs as measure

        how = measure.EvaluateOptions(
            images=images, scales=scales, interval=interval, steps=steps, shift=shift, sampler=sampler,
            weights=weights, widths=widths, precision=None if precision == "auto" else precision, seed=seed,
            batch_images=batch_images, rounds=rounds, inception_weights=inception_weights, clip_model=clip_model,
            again=again, channels=guidance_channels,
        )  # fmt: skip
        if import_geneval is not None or import_dsg is not None:
            rows = measure.import_results(folders, import_geneval, import_dsg, how, show.say)
        else:
            rows = measure.measure_samples(folders, sampled, how, show) if sampled != () else []
            if INFERENCE_TIME in (wanted or ()):
                rows = measure.joined(rows, measure.measure_time(folders, how, show))
    print_table(rows, as_json)
