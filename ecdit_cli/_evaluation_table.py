"""The output of `ecdit evaluate`: one line for each run and guidance scale, or every row as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ecdit_cli._console import Column, flops, print_json, print_rows, say, talk

if TYPE_CHECKING:
    from experiments.evaluation.inference.inference_time import Overhead
    from experiments.records.schema import EvalRow

FRECHET = "frechet-shapes"
SHORT_KINDS = {
    "single_object": "single", "two_object": "two", "counting": "count", "colors": "colour", "position": "position",
    "color_attribution": "attribute",
}  # fmt: skip


@dataclass(frozen=True)
class MeasuredRun:
    """The measured rows of one run at one guidance scale."""

    run: str
    guidance: float
    rows: list[EvalRow]
    overhead: Overhead | None = None


def print_table(measured: Sequence[MeasuredRun], as_json: bool) -> None:
    """Prints one line for each run and guidance scale, or with `as_json` every row in full."""
    _say_too_few(measured)
    if as_json:
        print_json([_json(one) for one in measured])
        return
    rows = [_cells(one) for one in measured]
    columns = [column for column in COLUMNS if any(column.key in row for row in rows)]
    print_rows(rows, columns, as_json=False)
    if any("shapes-geneval" in row for row in rows):
        print()
        print_rows(rows, KIND_COLUMNS, as_json=False)
    for key, note in NOTES.items():
        if any(key in row for row in rows):
            talk().print(note, soft_wrap=True, highlight=False)


def has_too_few_images(row: EvalRow) -> bool:
    """Return whether the row is a Frechet distance of no more images than features, which says little."""
    from experiments.records.schema import FRECHET_FEATURES

    return row.metric == FRECHET and row.num_samples <= FRECHET_FEATURES


def _say_too_few(measured: Sequence[MeasuredRun]) -> None:
    from experiments.records.schema import FRECHET_FEATURES

    counts = {row.num_samples for one in measured for row in one.rows if has_too_few_images(row)}
    if counts:
        say(
            f"frechet-shapes of {' and '.join(map(str, sorted(counts)))} images says little: of no more images than "
            f"its {FRECHET_FEATURES} features the covariance is singular and the distance far too large. "
            "Sample more: --images 512."
        )


def _frechet(row: EvalRow) -> str:
    return f"{row.value:.3g}" + (" (too few)" if has_too_few_images(row) else "")


def _json(one: MeasuredRun) -> dict[str, Any]:
    rows = [row.model_dump(exclude_none=True) for row in one.rows]
    overhead = {} if one.overhead is None else {"overhead_over_dense": asdict(one.overhead)}
    return {"run": one.run, "guidance": one.guidance, "rows": rows, **overhead}


def _cells(one: MeasuredRun) -> dict[str, Any]:
    """Returns the rows by metric, with the overheads; the columns format a row as value and interval."""
    row: dict[str, Any] = {"run": one.run, "guidance": one.guidance}
    for measured in one.rows:
        row[measured.metric] = measured
        row.setdefault("images_seen", measured.images_seen)
        if measured.metric in ("shapes-geneval", "frechet-shapes", "fid", "clip-score"):
            row["num_samples"] = measured.num_samples
    if one.overhead is not None:
        row |= {f"overhead_{name}": share for name, share in vars(one.overhead).items()}
    return row


def _percent(row: EvalRow) -> str:
    return f"{row.value:.1%}"


def _percent_with_interval(row: EvalRow) -> str:
    if row.interval_low is None or row.interval_high is None:
        return _percent(row)
    return f"{row.value:.1%} ({row.interval_low:.0%}-{row.interval_high:.0%})"


def _with_interval(row: EvalRow) -> str:
    if row.interval_low is None or row.interval_high is None:
        return f"{row.value:.3f}"
    return f"{row.value:.3f} ({row.interval_low:.3f}-{row.interval_high:.3f})"


COLUMNS = (
    Column("run", "run"),
    Column("guidance", "guidance", "{:g}".format),
    Column("images_seen", "trained on", "{:,}".format),
    Column("num_samples", "samples", "{:,}".format),
    Column("shapes-geneval", "shapes-geneval", _percent_with_interval, whole=True),
    Column("shapes-geneval-held-out", "held-out", _percent_with_interval, whole=True),
    Column(FRECHET, FRECHET, _frechet, whole=True),
    Column("fid", "fid", lambda row: f"{row.value:.2f}", whole=True),
    Column("clip-score", "clip-score", lambda row: f"{row.value:.2f}", whole=True),
    Column("geneval", "geneval", _percent_with_interval, whole=True),
    Column("dsg", "dsg", _percent_with_interval, whole=True),
    Column("object_compute_ratio", "object/backgr.", _with_interval, whole=True),
    Column("branch_divergence", "divergence", _with_interval, whole=True),
    Column("sampled_dropped_share", "dropped", _percent, whole=True),
    Column("inference_seconds_per_image", "s an image", lambda row: f"{row.value:.4f}", whole=True),
    Column("inference_peak_memory_gib", "peak GiB", lambda row: f"{row.value:.3f}", whole=True),
    Column("inference_flops_per_image", "FLOPs", lambda row: flops(row.value), whole=True),
    Column("overhead_params_active", "activated", "{:+.1%}".format, whole=True),
    Column("overhead_flops", "+FLOPs", "{:+.1%}".format, whole=True),
    Column("overhead_seconds", "+time", "{:+.1%}".format, whole=True),
)
KIND_COLUMNS = (
    Column("run", "run"),
    Column("guidance", "guidance", "{:g}".format),
    *(Column(f"shapes-geneval/{kind}", short, _percent, whole=True) for kind, short in SHORT_KINDS.items()),
)
NOTES = {
    "shapes-geneval": "shapes-geneval: share of images that show exactly what the caption says, mean over the kinds.",
    "object_compute_ratio": "object/backgr.: experts per token on objects over those on background, in true scenes.",
    "branch_divergence": "divergence: share of assignments that only one branch of guidance has.",
    "sampled_dropped_share": "dropped: tokens that no expert processed while sampling.",
    "overhead_seconds": "activated, +FLOPs, +time: over dense of the same depth.",
}
