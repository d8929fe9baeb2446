"""`specialization` shows at which times, positions and captions each expert works.

The analysis is that of DiT-MoE (arXiv 2407.11633, section 4.4). The routing is measured on true scenes noised to
several t, where it is known which tokens show objects. For one run of each router and some of its layers, heat maps
show the share of assignments that an expert gets by time, by position in the image and by kind of caption, as a
multiple of the even share 1/E. Lines show the experts per token on objects and on background. Expert choice fills every
expert of a group, so its load is even over times and kinds if each group holds only one of them; it can only specialize
by position.

Legend: E experts, T tokens of an image, N times, C kinds of captions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analysis.conditions import WEIGHTS_TEXTS, is_reconstructed
from analysis.escaping import figure_text
from analysis.figures.panels import write_foot
from analysis.load_records import Records
from analysis.maps import SceneMaps, as_square, one_per_router, scene_maps, spread
from analysis.style import GREY, TEXT_WIDTH_INCHES, Drawing, few_ticks, paper_style, router_color
from experiments.records.routing_map_row import RoutingMapRow
from experiments.text import printable

RATIO = "object_compute_ratio"
COLORS = "viridis"
LAYERS_OF_ALL = 4
MOST_LAYERS = 3
MOST_EXPERT_TICKS = 8
MOST_TIME_TICKS = 3
MOST_KIND_TICKS = 8
ROW_INCHES = 1.25
KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attribution")
"""GenEval's kinds of captions in its order; other kinds follow them."""
EVEN_WITHIN = 0.002
TOKENS: dict[str, Any] = {"object": "-", "background": (0, (4, 1.2))}
COLUMNS = ("By time", "By position (experts row by row)", "By kind or class", "Experts per token")


def _place_of_kind(kind: str) -> tuple[int, str]:
    return KINDS.index(kind) if kind in KINDS else len(KINDS), kind


@dataclass(frozen=True)
class _Layer:
    """One routed layer of a run, with its rows over all times and at single times."""

    maps: SceneMaps
    layer: int

    @property
    def whole(self) -> RoutingMapRow | None:
        """Returns the row over all times, or None."""
        return self.maps.over_all_times(self.layer)

    @property
    def by_time(self) -> list[RoutingMapRow]:
        """Returns the rows at single times, from noise (t = 1) to image (t = 0)."""
        return self.maps.by_time(self.layer)

    @property
    def num_experts(self) -> int:
        """Returns the number of experts E."""
        return len(next(row for row in self.maps.rows if row.layer == self.layer).load)

    def even_shares_EN(self) -> NDArray[np.float64] | None:
        """Returns the load by expert and time as a multiple of the even share, or None where it was not measured."""
        rows = self.by_time
        return self.num_experts * np.array([row.load for row in rows]).T if rows else None

    def even_shares_ET(self) -> NDArray[np.float64] | None:
        """Returns the load by expert and position as a multiple of the even share, or None where not measured."""
        given = self.whole.load_by_position if self.whole else None
        return self.num_experts * np.array(given) if given else None

    def even_shares_EC(self) -> tuple[list[str], NDArray[np.float64]] | None:
        """Returns the kinds, and the load by expert and kind as a multiple of the even share, or None."""
        given = self.whole.load_by_kind if self.whole else None
        kinds = sorted(given, key=_place_of_kind) if given else []
        return (kinds, self.num_experts * np.array([given[kind] for kind in kinds]).T) if given else None

    def experts_on(self, tokens: str) -> list[tuple[float, float]]:
        """Returns (t, mean experts per token) on `object` or `background` tokens, where scenes tell them apart."""
        pairs = [(row.time, getattr(row, f"{tokens}_experts")) for row in self.by_time]
        return [(time, experts) for time, experts in pairs if time is not None and experts is not None]


def draw_specialization(records: Records, table: pd.DataFrame) -> Drawing:
    """Returns the figure and its numbers by router, layer, panel and cell. Raises `MissingDataError` without maps."""
    found = one_per_router(table, scene_maps, "its routing measured on scenes")
    most = min(MOST_LAYERS, max(1, LAYERS_OF_ALL // len(found)))
    blocks = [[_Layer(maps, maps.layers[i]) for i in spread(len(maps.layers), most)] for maps in found]
    numbers = pd.concat([_numbers(layer) for layers in blocks for layer in layers], ignore_index=True)
    scale = Normalize(0, max(2.0, math.ceil(numbers["times_even_share"].quantile(0.99))))
    with paper_style():
        names_kinds = _blocks_that_name_kinds(blocks)
        heights = [
            ROW_INCHES * len(layers) + (0.95 if named else 0.5)
            for layers, named in zip(blocks, names_kinds, strict=True)
        ]
        figure = Figure(figsize=(TEXT_WIDTH_INCHES, sum(heights) + 1.0), layout="constrained")
        parts = figure.subfigures(len(blocks) + 1, 1, height_ratios=[*heights, 0.55], squeeze=False)[:, 0]
        for part, layers, named in zip(parts[:-1], blocks, names_kinds, strict=True):
            _draw_block(part, layers, scale, named)
        _draw_keys(parts[-1], scale)
        write_foot(figure, [_foot(maps, records) for maps in found])
    return Drawing(figure, numbers)


def _blocks_that_name_kinds(blocks: list[list[_Layer]]) -> list[bool]:
    """Says which blocks name the kinds of captions: a block above one with the same kinds leaves the names to it."""
    kinds = [[found[0] if (found := layer.even_shares_EC()) else [] for layer in layers] for layers in blocks]
    return [i + 1 == len(kinds) or kinds[i][-1] != kinds[i + 1][-1] for i in range(len(kinds))]


def _draw_block(part: SubFigure, layers: list[_Layer], scale: Normalize, names_kinds: bool) -> None:
    """Draws the panels of one run, with a row for each layer."""
    run = layers[0].maps.run
    part.suptitle(
        printable(f"{run.label}: {run.name}"), x=0.01, ha="left", fontweight="bold", fontsize=8, parse_math=False
    )
    grid = part.subplots(len(layers), len(COLUMNS), squeeze=False, width_ratios=(1, 1.25, 0.8, 1))
    for row, layer in enumerate(layers):
        is_last = row == len(layers) - 1
        _draw_times(grid[row, 0], layer, scale, is_last)
        _draw_positions(grid[row, 1], layer, scale)
        _draw_kinds(grid[row, 2], layer, scale, is_last and names_kinds)
        _draw_tokens(grid[row, 3], layer, is_last)
        grid[row, 0].set_ylabel(f"Expert (layer {layer.layer})")
    for axes, title in zip(grid[0], COLUMNS, strict=True):
        axes.set_title(title, loc="left", fontsize=7)


def _draw_times(axes: Axes, layer: _Layer, scale: Normalize, is_last: bool) -> None:
    shares_EN = layer.even_shares_EN()
    if shares_EN is None:
        return _say_not_measured(axes)
    _draw_heat_map(axes, shares_EN, scale)
    shown = spread(len(layer.by_time), MOST_TIME_TICKS)
    axes.set_xticks(shown, [f"{layer.by_time[i].time:.2g}" for i in shown] if is_last else [""] * len(shown))
    if is_last:
        axes.set_xlabel("t (1: noise)")


def _draw_positions(axes: Axes, layer: _Layer, scale: Normalize) -> None:
    """Draws a small map of the image for each expert, arranged in rows."""
    shares_ET = layer.even_shares_ET()
    if shares_ET is None:
        return _say_not_measured(axes)
    tiles = [as_square(shares_T) for shares_T in shares_ET]
    side, columns = len(tiles[0]), math.ceil(math.sqrt(2 * len(tiles)))
    gap = max(1, side // 8)
    pitch, rows = side + gap, math.ceil(len(tiles) / columns)
    mosaic = np.full((rows * pitch - gap, columns * pitch - gap), np.nan)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        mosaic[row * pitch :, column * pitch :][:side, :side] = tile
    axes.imshow(mosaic, cmap=COLORS, norm=scale, interpolation="nearest")
    axes.set_anchor("N")
    axes.set_axis_off()


def _draw_kinds(axes: Axes, layer: _Layer, scale: Normalize, is_named: bool) -> None:
    found = layer.even_shares_EC()
    if found is None:
        return _say_not_measured(axes)
    kinds, shares_EC = found
    _draw_heat_map(axes, shares_EC, scale)
    shown = spread(len(kinds), MOST_KIND_TICKS)
    names = [figure_text(kinds[i].replace("_", " ")) for i in shown] if is_named else [""] * len(shown)
    axes.set_xticks(shown, names, rotation=90)


def _draw_tokens(axes: Axes, layer: _Layer, is_last: bool) -> None:
    """Draws experts per token on objects and on background, from noise on the left to the image on the right."""
    color = router_color(layer.maps.run.router)
    curves = {tokens: layer.experts_on(tokens) for tokens in TOKENS}
    if not all(curves.values()):
        return _say_not_measured(axes)
    for tokens, points in curves.items():
        axes.plot(*zip(*points, strict=True), color=color, linestyle=TOKENS[tokens], marker=".", markersize=3)
    axes.set_xlim(1.02, -0.02)
    axes.margins(y=0.15)
    few_ticks(axes.xaxis)
    few_ticks(axes.yaxis)
    axes.set_ylabel("Experts (mean)")
    axes.tick_params(labelbottom=is_last)
    if is_last:
        axes.set_xlabel("t (1: noise)")


def _draw_heat_map(axes: Axes, values: NDArray[np.float64], scale: Normalize) -> None:
    """Draws a heat map that fills the panel, with experts down and times or kinds across."""
    axes.imshow(values, cmap=COLORS, norm=scale, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(0, len(values), math.ceil(len(values) / MOST_EXPERT_TICKS)))
    axes.grid(visible=False)


def _say_not_measured(axes: Axes) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=6.5)


def _draw_keys(part: SubFigure, scale: Normalize) -> None:
    """Draws the colour scale of all heat maps, and the legend of the lines."""
    left, right = part.subplots(1, 2, width_ratios=(1.2, 1))
    bar = part.colorbar(ScalarMappable(scale, COLORS), left, orientation="horizontal", aspect=30)
    bar.set_label("Share of the assignments (1: even, 1/E)")
    right.remove()
    lines = [Line2D([], [], color=GREY, linestyle=style, marker=".", markersize=3) for style in TOKENS.values()]
    part.legend(lines, [f"{tokens} tokens" for tokens in TOKENS], loc="center right", ncols=2)


def _foot(maps: SceneMaps, records: Records) -> str:
    """Says how a block was measured, and the ratio of experts on objects to those on background where recorded."""
    row, run = maps.rows[0], maps.run
    what = "true scenes" if row.source == "scenes" else "sampled images"
    about = f"{row.num_images:,} {what}, {WEIGHTS_TEXTS[row.weights]} weights after {row.images_seen:,} images."
    ratios = records.evals[(records.evals["metric"] == RATIO) & (records.evals["run"] == str(run.folder.path))]
    ratios = ratios[(ratios["images_seen"] == row.images_seen) & (ratios["weights"] == row.weights)]
    ratios = ratios[~is_reconstructed(ratios)]
    for _, ratio in ratios.tail(1).iterrows():
        low, high = ratio["interval_low"], ratio["interval_high"]
        ends = f" (95% interval {low:.3f} to {high:.3f})" if pd.notna(low) and pd.notna(high) else ""
        about += f" Experts on objects over those on background: {ratio['value']:.3f}{ends}."
    shares = [np.array(each.load) * len(each.load) for each in maps.rows]
    shares += [np.array(load) * len(load) for each in maps.rows for load in (each.load_by_kind or {}).values()]
    if all((np.abs(share - 1) < EVEN_WITHIN).all() for share in shares):
        about += " All experts are filled alike, at every t and for every kind."
    damaged = f" Lines that could not be read: {maps.num_damaged}." if maps.num_damaged else ""
    return f"{run.label}: {about}{damaged}"


def _numbers(layer: _Layer) -> pd.DataFrame:
    """Returns a row per cell of a heat map (`times_even_share`) or point of a line (`experts_per_token`)."""
    cells: list[dict[str, Any]] = []
    for row in layer.by_time:
        cells += [{"panel": "time", "expert": e, "t": row.time, "share": share} for e, share in enumerate(row.load)]
    whole = layer.whole
    for e, shares_T in enumerate((whole and whole.load_by_position) or []):
        cells += [{"panel": "position", "expert": e, "position": i, "share": share} for i, share in enumerate(shares_T)]
    for kind, shares_E in ((whole and whole.load_by_kind) or {}).items():
        cells += [{"panel": "kind", "expert": e, "kind": kind, "share": share} for e, share in enumerate(shares_E)]
    for tokens in TOKENS:
        points = layer.experts_on(tokens)
        cells += [{"panel": "tokens", "tokens": tokens, "t": t, "experts_per_token": value} for t, value in points]
    columns = ["panel", "expert", "t", "position", "kind", "tokens", "share", "experts_per_token"]
    frame = pd.DataFrame(cells).reindex(columns=columns).astype({"expert": "Int64", "position": "Int64"})
    frame.insert(7, "times_even_share", layer.num_experts * frame["share"].astype(float))
    run = layer.maps.run
    about = pd.DataFrame({"router": run.router, "run": run.name, "layer": layer.layer}, frame.index)
    return pd.concat([about, frame], axis=1)
