"""What `ecdit evaluate` prints: one line for each run and guidance scale, or every row as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ecdit_cli._console import Column, flops, print_json, print_rows, talk

if TYPE_CHECKING:
    from experiments.evaluation.inference_time import Overhead
    from experiments.records.schema import EvalRow

SHORT_KINDS = {
    "single_object": "single", "two_object": "two", "counting": "count", "colors": "colour", "position": "position",
    "color_attribution": "attribute",
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """The rows of one run at one guidance scale."""

    run: str
    guidance: float
    rows: list[EvalRow]
    overhead: Overhead | None = None


def print_table(measured: Sequence[Measured], as_json: bool) -> None:
    """One line for each run and guidance scale; as JSON every row whole."""
    if as_json:
        print_json([_json(one) for one in measured])
        return
    rows = [_cells(one) for one in measured]
    columns = [column for column in COLUMNS if any(column.key in row for row in rows)]
    print_rows(rows, columns, as_json=False)
    if any("shapes-geneval" in row for row in rows):
        note = "shapes-geneval: share of images that show exactly what the caption says, mean over the kinds."
        talk().print(note, soft_wrap=True, highlight=False)


def _json(one: Measured) -> dict[str, Any]:
    rows = [row.model_dump(exclude_none=True) for row in one.rows]
    overhead = {} if one.overhead is None else {"overhead_over_dense": asdict(one.overhead)}
    return {"run": one.run, "guidance": one.guidance, "rows": rows, **overhead}


def _cells(one: Measured) -> dict[str, Any]:
    """Values by metric, with half of the 95% interval where there is one."""
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
    Column("shapes-geneval", "shapes-geneval", _percent_with_interval),
    *(Column(f"shapes-geneval/{kind}", short, _percent) for kind, short in SHORT_KINDS.items()),
    Column("shapes-geneval-held-out", "held-out looks", _percent_with_interval),
    Column("frechet-shapes", "frechet-shapes", lambda row: f"{row.value:.3g}"),
    Column("fid", "fid", lambda row: f"{row.value:.2f}"),
    Column("clip-score", "clip-score", lambda row: f"{row.value:.2f}"),
    Column("geneval", "geneval", _percent_with_interval),
    Column("dsg", "dsg", _percent_with_interval),
    Column("object_compute_ratio", "experts, object/background", _with_interval),
    Column("branch_divergence", "branch divergence", _with_interval),
    Column("sampled_dropped_share", "chosen by nobody", _percent),
    Column("inference_seconds_per_image", "s an image", lambda row: f"{row.value:.4f}"),
    Column("inference_peak_memory_gib", "peak GiB", lambda row: f"{row.value:.3f}"),
    Column("inference_flops_per_image", "FLOPs an image", lambda row: flops(row.value)),
    Column("overhead_params_active", "activated", "{:+.1%}".format),
    Column("overhead_flops", "FLOPs", "{:+.1%}".format),
    Column("overhead_seconds", "time over dense", "{:+.1%}".format),
)
