"""The work behind `ecdit evaluate`: finding out which runs lack which values, and measuring these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from analysis.columns import Column
from ecdit_cli._console import print_json, print_rows, say
from ecdit_cli._evaluation_table import MeasuredRun

if TYPE_CHECKING:
    from ecdit_cli._progress import Display
    from experiments.config.schema import RunConfig
    from experiments.evaluation.metrics.judge_check import Checked
    from experiments.evaluation.sampling.load_run import LoadedRun
    from experiments.evaluation.sampling.settings import Conditions
    from experiments.records.run_folder import RunDir, Skipped


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `ecdit evaluate`. None stands for what the run's own settings say."""

    images: int
    scales: tuple[float, ...] | None
    interval: str
    steps: int | None
    shift: float
    sampler: Literal["euler", "heun"]
    weights: Literal["raw", "ema"]
    precision: Literal["fp32", "bf16"] | None
    seed: int | None
    batch_images: int
    rounds: int
    inception_weights: Path | None
    clip_model: Path | None
    again: bool

    def conditions(self, run: LoadedRun, scale: float) -> Conditions:
        """Returns the conditions for one run at one guidance scale."""
        from ecdit_cli._sampling import sampler_settings
        from experiments.evaluation.sampling.settings import Conditions

        config = run.config
        sampler = sampler_settings(
            self.steps or config.eval.sample_steps, scale, self.interval, self.shift, self.sampler
        )
        seed = config.data.seed if self.seed is None else self.seed
        return Conditions(self.images, self.batch_images, seed, self.weights, run.precision, sampler)

    def scales_of(self, config: RunConfig) -> tuple[float, ...]:
        """Returns the guidance scales to measure a run at."""
        return self.scales or (config.eval.guidance,)


def check_metrics(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Returns the names in `text`. Raises `EcditError` for one that does not exist."""
    from experiments.errors import EcditError, did_you_mean

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            raise EcditError(f"--metrics {name!r} does not exist.", did_you_mean(name, known))
    return names


def existing_runs(roots: Sequence[Path]) -> list[RunDir]:
    """Returns the run folders at or below `roots`. Raises `EcditError` when there are none."""
    from experiments.errors import EcditError
    from experiments.records.run_folder import find_runs

    if not roots:
        raise EcditError("Which runs?", "Name run folders, or folders that hold them: ecdit evaluate out/demo")
    for root in roots:
        if not root.is_dir():
            raise EcditError(f"{root} is not a folder.", "Name the folder of a run or of a sweep.")
    skipped: Skipped = []
    folders = list(find_runs(*roots, skipped=skipped))
    for where, why in skipped:
        say(f"Left out: {where}: {why}")
    if not folders:
        raise EcditError(f"No runs in {', '.join(map(str, roots))}.", "Train one first: ecdit train model=nano")
    return folders


def measure_samples(folders: Sequence[RunDir], metrics: Sequence[str], how: EvaluateOptions) -> list[MeasuredRun]:
    """Samples each run at each guidance scale, measures what is missing, and records each result immediately."""
    from ecdit_cli._progress import progress

    measured: list[MeasuredRun] = []
    with progress("importing torch") as show:
        from experiments.evaluation.metrics.sampled_metric import UserFiles
        from experiments.evaluation.sampling.load_run import load_run, require_shapes
        from experiments.evaluation.score import RunScorer, load_resources
        from experiments.training.host_memory import keep_freed_memory

        resources = load_resources(metrics, UserFiles(how.inception_weights, how.clip_model))
        load = partial(load_run, weights=how.weights, say=show.say, precision=how.precision)
        for number, (folder, loaded) in enumerate(_loaded(folders, load, show.say)):
            run = require_shapes(loaded)
            keep_freed_memory(run.config)
            scales = how.scales_of(run.config)
            for place, scale in enumerate(scales):
                scorer = RunScorer(run, metrics, how.conditions(run, scale), resources, how.again)
                if scorer.recorded:
                    show.say(f"{folder.path.name}, guidance {scale:g}: {', '.join(scorer.recorded)} recorded already.")
                done, each = number + place / len(scales), 1 / len(scales)
                show.part(f"{folder.path.name}, guidance {scale:g}")
                show(done, len(folders))
                rows = scorer.measure(partial(_show_share, show, len(folders), done, each))
                measured.append(MeasuredRun(folder.path.name, scale, rows))
    return measured


def _loaded(
    folders: Sequence[RunDir], load: Callable[[RunDir], LoadedRun], tell: Callable[[str], None]
) -> Iterator[tuple[RunDir, LoadedRun]]:
    """Yields each run that can be loaded; `tell` gets the reason for the others.

    Raises the error of the last run where none can be loaded.
    """
    from experiments.errors import CheckpointError, RecordError

    num_loaded, last = 0, None
    for folder in folders:
        try:
            loaded = load(folder)
        except (RecordError, CheckpointError) as error:
            last = error
            if len(folders) > 1:
                tell(f"Left out: {folder.path}: {error}")
            continue
        num_loaded += 1
        yield folder, loaded
    if last is not None and num_loaded == 0:
        raise last


def _show_share(show: Display, total: float, done: float, each: float, share: float) -> None:
    """Shows that `done` parts of `total` and a `share` of the next part, whose length is `each`, are complete."""
    show(done + each * share, total)


def measure_time(folders: Sequence[RunDir], how: EvaluateOptions) -> list[MeasuredRun]:
    """Times the generation of images by all runs, which take turns."""
    from ecdit_cli._progress import progress

    with progress("importing torch") as show:
        from experiments.evaluation.inference.inference_time import SECONDS, measure_inference, overhead_over_dense
        from experiments.evaluation.sampling.load_run import load_run, require_shapes
        from experiments.records.writer import append_evaluations
        from experiments.training.host_memory import keep_freed_memory

        load = partial(load_run, weights=how.weights, say=show.say, precision=how.precision)
        runs = [require_shapes(loaded) for _, loaded in _loaded(folders, load, show.say)]
        folders = [run.run_dir for run in runs]
        keep_freed_memory(runs[0].config)
        scales = list(dict.fromkeys(scale for run in runs for scale in how.scales_of(run.config)))
        measured: list[MeasuredRun] = []
        for scale in scales:
            settings = [how.conditions(run, scale).sampler for run in runs]
            show.part(f"timing {len(runs)} runs, guidance {scale:g}")
            on_turn = partial(_show_turn, show, [folder.path.name for folder in folders], how.rounds)
            rows = measure_inference(runs, settings, how.batch_images, how.rounds, on_turn)
            for folder, of_run in zip(folders, rows, strict=True):
                append_evaluations(folder, of_run)
            seconds = [next(row.value for row in of_run if row.metric == SECONDS) for of_run in rows]
            overheads = overhead_over_dense(runs, seconds)
            measured += [
                MeasuredRun(folder.path.name, scale, of_run, overhead)
                for folder, of_run, overhead in zip(folders, rows, overheads, strict=True)
            ]
    return measured


def _show_turn(show: Display, names: Sequence[str], num_rounds: int, round_number: int, place: int) -> None:
    """Shows which run is measured now; in a log that is a line for each run, and then one for each round."""
    if round_number == 0:
        show.part(f"memory and FLOPs of {names[place]} ({place + 1} of {len(names)})")
    elif place == 0:
        show.part(f"timing round {round_number} of {num_rounds}")
    show(round_number * len(names) + place, (1 + num_rounds) * len(names))


def joined(first: Sequence[MeasuredRun], second: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Returns the rows of both, those of one run and guidance scale together."""
    merged = {(one.run, one.guidance): one for one in first}
    for other in second:
        key = (other.run, other.guidance)
        mine = merged.get(key)
        merged[key] = replace(other, rows=[*mine.rows, *other.rows]) if mine else other
    return list(merged.values())


JUDGE_CHECK_IMAGES = 1000
CHECKED = ("split", "blur", "noise", "num_images", "num_right", "num_yes_shuffled", "num_true_shuffled")


def print_judge_check(as_json: bool) -> None:
    """Prints how often the judge is right. Raises `RunFailedError` where it misreads an independent picture."""
    from ecdit_cli._progress import progress

    with progress("judging true renders") as show:
        from experiments.evaluation.metrics.independent_check import require_all_read
        from experiments.evaluation.metrics.judge_check import DEGRADATIONS, SPLITS, check_judge

        judged, total = 0, JUDGE_CHECK_IMAGES * len(DEGRADATIONS) * len(SPLITS)

        def on_images(num: int) -> None:
            nonlocal judged
            judged += num
            show(judged, total)

        checked = list(check_judge(JUDGE_CHECK_IMAGES, on_images=on_images))
    _print_checked(checked, as_json)
    independent = checked[-1]
    require_all_read(independent.misread, independent.num_images)


def _print_checked(checked: Sequence[Checked], as_json: bool) -> None:
    """Prints one row for each split and degradation, and one for the independent pictures."""
    rows = [_checked_row(one) for one in checked]
    if as_json:
        print_json(rows)
        return
    columns = (
        Column("split", "pictures"),
        Column("blur", "blur (px)", "{:g}".format),
        Column("noise", "noise", "{:g}".format),
        Column("num_images", "images", "{:,}".format),
        Column("agreement", "agreement", "{:.1%}".format),
        Column("interval", "95% interval", lambda ends: f"{ends[0]:.1%}-{ends[1]:.1%}"),
        Column("num_yes_shuffled", "yes to shuffled"),
        Column("num_true_shuffled", "of which true"),
    )
    print_rows(rows, columns, as_json=False)
    renders, independent = checked[:-1], checked[-1]
    right, images = sum(one.num_right for one in renders), sum(one.num_images for one in renders)
    say(f"The judge says yes to {right / images:.2%} of true captions; shuffled ones are of the same kind.")
    say(
        f"Of {independent.num_images} pictures that were drawn without the data's drawing code it reads "
        f"{independent.num_right} right."
    )


def _checked_row(one: Checked) -> dict[str, Any]:
    """Returns one row without the values that are not known."""
    row = {name: getattr(one, name) for name in CHECKED if getattr(one, name) is not None}
    misread = {"misread": list(map(str, one.misread))} if one.misread else {}
    return row | {"agreement": one.agreement, "interval": list(one.interval)} | misread


def import_results(
    folders: Sequence[RunDir], geneval: Path | None, dsg: Path | None, how: EvaluateOptions
) -> list[MeasuredRun]:
    """Adds the results of GenEval's or DSG's own programs to the records of the run that they belong to."""
    from experiments.errors import EcditError

    if len(folders) != 1:
        raise EcditError(f"{len(folders)} runs for the results of one.", "Name the run whose images were judged.")
    from experiments.evaluation.exchange.imports import dsg_rows, geneval_rows
    from experiments.evaluation.sampling.load_run import load_run
    from experiments.records.writer import append_evaluations

    run = load_run(folders[0], how.weights, say, how.precision)
    scales = how.scales_of(run.config)
    if len(scales) > 1:
        raise EcditError("Several guidance scales for one file of results.", "Name the one: --guidance 4.")
    base = how.conditions(run, scales[0]).row(run.config, run.images_seen)
    rows = [] if geneval is None else geneval_rows(geneval, base)
    rows += [] if dsg is None else dsg_rows(dsg, base)
    append_evaluations(run.run_dir, rows)
    return [MeasuredRun(run.run_dir.path.name, scales[0], rows)]
