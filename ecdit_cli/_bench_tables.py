"""The columns of the tables of `ecdit bench`: keys of rows, titles, and how values are written."""

from __future__ import annotations

from analysis.columns import Column
from experiments.benchmarks.reading_rates import DEVICE, MODEL, UTILISATIONS, WANTED_TIMES


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def _met(value: bool) -> str:
    return "yes" if value else "no"


def _times(value: float) -> str:
    return f"{value:.1f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


SPEED_COLUMNS = (
    Column("what", "what"),
    Column("setting", "setting"),
    Column("measured", "measured", "{:.2f}".format, whole=True),
    Column("target", "target", "{:.2f}".format, whole=True),
    Column("is_met", "met", _met),
    Column("floor", "floor", "{:.2f}".format, whole=True),
    Column("gap", "gap", "{:.2f}".format, whole=True),
    Column("seconds", "ours ms", _milliseconds, whole=True),
    Column("peer_seconds", "peer ms", _milliseconds, whole=True),
    Column("skipped", "skipped"),
    Column("command", "to fill it"),
)
READING_COLUMNS = (
    Column("caption_tokens", "tokens a caption"),
    Column("bytes_per_image", "KiB an image", lambda value: f"{value / 1024:,.0f}"),
    Column("threads", "threads"),
    Column("loader_images_per_second", "images/s read", _whole, whole=True),
    Column("loader_bytes_per_second", "GB/s read", lambda value: f"{value / 1e9:.1f}", whole=True),
    Column("copied_bytes_per_second", "GB/s copied here", lambda value: f"{value / 1e9:.1f}", whole=True),
    *(
        column
        for percent in (round(100 * share) for share in UTILISATIONS)
        for column in (
            Column(f"trained_at_{percent}_percent", f"{MODEL} on {DEVICE} at {percent}%", _whole, whole=True),
            Column(f"ratio_at_{percent}_percent", f"ratio (wanted {WANTED_TIMES})", _times, whole=True),
        )
    ),
)
TRAIN_COLUMNS = (
    Column("model", "model"),
    Column("routing", "routing"),
    Column("forward_seconds", "forward ms", _milliseconds),
    Column("backward_seconds", "backward ms", _milliseconds),
    Column("optimizer_seconds", "optimizer ms", _milliseconds),
    Column("other_seconds", "the rest ms", _milliseconds),
    Column("iteration_seconds", "iteration ms", _milliseconds),
    Column("compute_share", "share of the three", "{:.1%}".format),
    Column("images_per_second", "images/s", "{:.0f}".format),
)
BESIDE_COLUMNS = (
    Column("beside", "beside"),
    Column("setting", "setting"),
    Column("images_per_second", "images/s", "{:.2f}".format, whole=True),
    Column("peer_images_per_second", "theirs", "{:.2f}".format, whole=True),
    Column("ratio", "ratio", "{:.2f}".format, whole=True),
    Column("target", "at least", "{:.2f}".format, whole=True),
    Column("is_met", "met", _met),
    Column("peak_gib", "peak GiB", "{:.2f}".format, whole=True),
    Column("peer_peak_gib", "theirs", "{:.2f}".format, whole=True),
    Column("memory_ratio", "ratio", "{:.2f}".format, whole=True),
    Column("memory_limit", "at most", "{:.2f}".format, whole=True),
    Column("memory_is_met", "met", _met),
    Column("first_step_seconds", "first step s", "{:.1f}".format, whole=True),
    Column("peer_first_step_seconds", "theirs", "{:.1f}".format, whole=True),
    Column("params", "parameters", "{:,}".format, whole=True),
    Column("peer_params", "theirs", "{:,}".format, whole=True),
    Column("differs", "what differs", prose=True),
)
SHARE_COLUMNS = (
    Column("beside", "beside"),
    Column("group", "why: operators of one step"),
    Column("seconds", "ours ms", _milliseconds, whole=True),
    Column("share", "share", "{:.0%}".format),
    Column("peer_seconds", "theirs ms", _milliseconds, whole=True),
    Column("peer_share", "share", "{:.0%}".format),
)
DATA_COLUMNS = (
    Column("model", "model"),
    Column("routing", "routing"),
    Column("loader_images_per_second", "images/s drawn", "{:.0f}".format),
    Column("training_images_per_second", "images/s trained", "{:.0f}".format),
    Column("ratio", "ratio", "{:.1f}".format),
)
CLI_COLUMNS = (
    Column("command", "command"),
    Column("seconds", "seconds", "{:.2f}".format),
    Column("fastest_seconds", "fastest", "{:.2f}".format),
    Column("slowest_seconds", "slowest", "{:.2f}".format),
    Column("limit_seconds", "at most", "{:.1f}".format),
)
SWEEP_COLUMNS = (
    Column("measure", "measure"),
    Column("value", "measured", "{:.3g}".format),
    Column("limit", "at most", "{:.3g}".format),
    Column("unit", "unit"),
)
COORDINATE_COLUMNS = (
    Column("output", "exponent of the RMS against the width"),
    Column("standard_value", "standard, value", "{:+z.2f}".format),
    Column("mup_value", "mup, value", "{:+z.2f}".format),
    Column("standard_change", "standard, change", "{:+z.2f}".format),
    Column("mup_change", "mup, change", "{:+z.2f}".format),
)
COMPILE_COLUMNS = (
    Column("routing", "routing"),
    Column("implementation", "implementation"),
    Column("setting", "setting"),
    Column("seconds", "plain ms", _milliseconds, whole=True),
    Column("compiled_seconds", "compiled ms", _milliseconds, whole=True),
    Column("ratio", "plain / compiled", "{:.2f}".format, whole=True),
    Column("ratio_to_fast", "fast plain / compiled", "{:.2f}".format, whole=True),
    Column("first_step_seconds", "first step s", "{:.1f}".format, whole=True),
    Column("compiled_first_step_seconds", "compiled", "{:.1f}".format, whole=True),
    Column("graph_breaks", "graph breaks", _whole, whole=True),
    Column("pays_after_steps", "pays after steps", _whole, whole=True),
)
GROWTH_COLUMNS = (
    Column("what", "what"),
    Column("over", "over"),
    Column("smallest", "from", "{:,}".format),
    Column("largest", "to", "{:,}".format),
    Column("largest_seconds", "seconds", "{:.3g}".format),
    Column("seconds_exponent", "exponent", "{:+z.2f}".format),
    Column("seconds_limit", "at most", "{:.0f}".format),
    Column("largest_bytes", "MB", lambda size: f"{size / 1e6:,.1f}"),
    Column("bytes_exponent", "exponent", "{:+z.2f}".format),
    Column("bytes_limit", "at most", "{:.0f}".format),
    Column("is_met", "met", _met),
    Column("why", "why"),
)
ANALYSIS_COLUMNS = (
    Column("measure", "command"),
    Column("runs", "runs", _whole),
    Column("seconds", "seconds", "{:.1f}".format),
    Column("again_seconds", "again", "{:.1f}".format),
    Column("limit_seconds", "at most", "{:.1f}".format),
    Column("gibibytes", "GiB", "{:.2f}".format),
    Column("limit_gibibytes", "at most GiB", "{:.0f}".format),
)
CHECKPOINT_COLUMNS = (
    Column("model", "model"),
    Column("routing", "routing"),
    Column("checkpoint_bytes", "MB", lambda size: f"{size / 1e6:,.0f}"),
    Column("iteration_seconds", "iteration ms", _milliseconds),
    Column("copy_seconds", "copy ms", _milliseconds),
    Column("extra_seconds", "a save costs ms", _milliseconds),
    Column("cadence_iterations", "every iterations", "{:,}".format),
    Column("stall_share", "share of training", "{:.2%}".format),
    Column("limit", "at most", "{:.0%}".format),
)
