"""Checks what `ecdit evaluate` is asked for, and prints how often the judge of captions is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.columns import Column
from ecdit_cli._console import print_json, print_rows, say
from ecdit_cli._option_checks import refuse_ignored
from experiments.config.metrics import METRICS

if TYPE_CHECKING:
    from experiments.evaluation.metrics.judge_check import Checked
    from experiments.records.run_folder import RunDir, Skipped


def check_metrics(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Returns the names in `text`. Raises `EcditError` for one that does not exist."""
    from experiments.errors import EcditError, did_you_mean

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            raise EcditError(f"--metrics {name!r} does not exist.", did_you_mean(name, known))
    return names


def check_widths(text: str, metrics: Sequence[str]) -> tuple[float, ...]:
    """Returns the widths of averages in `text`. Raises `EcditError` where one is none, and where time is measured."""
    from ecdit_cli._sampling import parse_widths
    from experiments.errors import EcditError

    if "inference-time" in metrics:
        raise EcditError("inference-time does not depend on --ema.", "Measure it without --ema.")
    return parse_widths(text)


def refuse_unread_files(files: Mapping[str, Path | None], metrics: Sequence[str]) -> None:
    """Raises `EcditError` for the file of a network that none of the `metrics` reads; `files` are by their option."""
    for option, path in files.items():
        readers = [name for name, row in METRICS.items() if option in row.needs_files]
        refuse_ignored(
            {option: path is not None and set(readers).isdisjoint(metrics)},
            f"is for {' or '.join(readers)}, which is not measured",
            f"Add it to --metrics, or leave {option} out.",
        )


def existing_runs(roots: Sequence[Path]) -> list[RunDir]:
    """Returns the run folders at or below `roots`. Raises `EcditError` when there are none."""
    from experiments.errors import EcditError
    from experiments.records.run_folder import find_runs

    if not roots:
        raise EcditError("No runs are named.", "Name run folders, or folders that hold them: ecdit evaluate out/demo")
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
