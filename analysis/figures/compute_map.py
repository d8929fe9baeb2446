"""`compute-map` shows images beside the number of experts that processed each of their tokens (EC-DIT's figure 6).

Every image has a map of the mean over routed layers and calls of the model, and maps by layer (columns, shallow to
deep) at an early, a middle and a late call (rows), which run from noise at t = 1 to the image. All means share one
colour scale and all single layers another, both from dark (few) to light (many), so that they can be read in black and
white. The figure shows one run, which its title names; `ecdit sample` draws the images that it makes.

Legend: B images, H rows, W columns, K routed layers, N calls of the model along the sampler's path, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.load_records import Records
from analysis.maps import MEASURED_AGAIN_BY, MappedRun, as_square, one_per_router, spread
from analysis.style import DOTS_PER_INCH, GREY, TEXT_WIDTH_INCHES, Drawing, paper_style, place_text, wrapped
from experiments.records.compute_map import ComputeMap

IMAGES_OF_A_PAPER = 6
MOST_LAYERS = 4
NUM_CALLS = 3
COLORS = "viridis"

# In inches; an image of 32 pixels gets 5 dots for each at `DOTS_PER_INCH`.
SIDE = 0.8
GAP = 0.06
STRIPS_LEFT = 2 * SIDE + GAP + 0.5
STRIP_GAP = 0.03
MOST_STRIP_SIDE = (SIDE - (NUM_CALLS - 1) * STRIP_GAP) / NUM_CALLS
STRIPS_WIDTH = 1.07
LINE = 0.125
BELOW = 0.3
COLOR_BARS = 0.55
MARGIN = 0.06
BLOCK_WIDTH = TEXT_WIDTH_INCHES / 2
TEXT_POINTS = 7.0
SMALL_POINTS = 6.0


@dataclass(frozen=True)
class _Chosen:
    """The images, layers and calls of a map that are drawn, and the two colour scales."""

    images: list[int]
    layers: list[int]
    calls: list[int]
    of_means: Normalize
    of_layers: Normalize

    @classmethod
    def of(cls, given: ComputeMap, most_images: int | None) -> _Chosen:
        """Chooses the first images, and layers and calls that are evenly spread from the first to the last."""
        num_images = len(given.captions)
        images = list(range(num_images if most_images is None else min(most_images, num_images)))
        layers, calls = spread(len(given.layers_K), MOST_LAYERS), spread(len(given.times_N), NUM_CALLS)
        shown = given.experts_BKNT[np.ix_(images, layers, calls)]
        means = given.mean_BT[images]
        low, high = math.floor(10 * means.min()) / 10, math.ceil(10 * means.max()) / 10
        of_means = Normalize(low, high) if high > low else Normalize(low - 0.5, low + 0.5)
        return cls(images, layers, calls, of_means, Normalize(0, max(1.0, math.ceil(np.quantile(shown, 0.99)))))


def draw_compute_map_of_runs(records: Records, table: pd.DataFrame) -> Drawing:
    """Draws the longest-trained expert-choice run with a map, else another router's; `MissingDataError` if none."""
    run = one_per_router(table, _with_map, "a compute map", MEASURED_AGAIN_BY)[0]
    given = ComputeMap.load(run.folder.compute_map)
    return draw_compute_map(given, f"{run.label}, {given.images_seen:,} training images: {run.name}", IMAGES_OF_A_PAPER)


def draw_compute_map(given: ComputeMap, title: str = "", most_images: int | None = None) -> Drawing:
    """Draws the first `most_images` (None: all) of a map, and returns its numbers with one row per map and token.

    `layer` and `t` are missing where the number is the mean over all of them. Raises `RecordError` for a map that is
    not square.
    """
    chosen = _Chosen.of(given, most_images)
    columns = min(2, len(chosen.images))
    width = BLOCK_WIDTH * columns
    captions = {i: wrapped(given.captions[i], BLOCK_WIDTH - 3 * MARGIN, TEXT_POINTS) for i in chosen.images}
    rows = [chosen.images[i : i + columns] for i in range(0, len(chosen.images), columns)]
    heights = [SIDE + BELOW + LINE * max(len(captions[i]) for i in row) for row in rows]
    title = title or f"{given.num_experts} experts, {given.images_seen:,} training images"
    title_lines = wrapped(title, width - 2 * MARGIN, TEXT_POINTS)
    height = LINE * len(title_lines) + 3 * MARGIN + sum(heights) + COLOR_BARS
    with paper_style():
        figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
        page = _Page(figure)
        for i, line in enumerate(title_lines):
            page.text(MARGIN, MARGIN + i * LINE, line, fontsize=TEXT_POINTS)
        top = LINE * len(title_lines) + 3 * MARGIN
        for row, row_height in zip(rows, heights, strict=True):
            for column, image in enumerate(row):
                _draw_block(page, given, chosen, image, captions[image], (BLOCK_WIDTH * column + MARGIN, top))
            top += row_height
        _draw_color_bars(page, chosen, top)
    return Drawing(figure, _numbers(given, chosen))


def _with_map(run: MappedRun) -> MappedRun | None:
    return run if run.folder.compute_map.is_file() else None


@dataclass(frozen=True)
class _Page:
    """A figure on which things are placed in inches from its upper left corner."""

    figure: Figure

    def picture(self, left: float, top: float, side: float, pixels: NDArray[Any], **options: Any) -> None:
        """Places a square picture without ticks."""
        axes = self.figure.add_axes(self._box(left, top, side, side))
        axes.imshow(pixels, aspect="auto", **options)
        axes.set_axis_off()

    def text(self, left: float, top: float, text: str, **options: Any) -> None:
        """Places a line of text."""
        place_text(self.figure, (left, top), text, **options)

    def color_bar(self, left: float, top: float, width: float, scale: Normalize, label: str, is_whole: bool) -> None:
        """Places a horizontal colour bar with its label below; `is_whole` restricts its ticks to whole numbers."""
        axes = self.figure.add_axes(self._box(left, top, width, 0.09))
        bar = self.figure.colorbar(ScalarMappable(scale, COLORS), axes, orientation="horizontal")
        bar.locator = MaxNLocator(4, steps=[1, 2, 5, 10], min_n_ticks=2, integer=is_whole)
        bar.update_ticks()
        bar.outline.set_linewidth(0)
        axes.set_xlabel(label, fontsize=TEXT_POINTS, labelpad=1.5)
        axes.tick_params(length=2, pad=1.5)

    def _box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        of_width, of_height = self.figure.get_size_inches()
        return left / of_width, 1 - (top + height) / of_height, width / of_width, height / of_height


def _draw_block(
    page: _Page, given: ComputeMap, chosen: _Chosen, image: int, caption: list[str], place: tuple[float, float]
) -> None:
    """Draws an image under its caption, its mean map, and its maps by call (rows) and layer (columns)."""
    left, top = place
    small: dict[str, Any] = {"fontsize": SMALL_POINTS, "color": GREY}
    for i, line in enumerate(caption):
        page.text(left, top + i * LINE, line, fontsize=TEXT_POINTS)
    top += LINE * len(caption) + 0.02
    page.picture(left, top, SIDE, given.images_BHWC[image])
    second = left + SIDE + GAP
    page.picture(second, top, SIDE, as_square(given.mean_BT[image]), cmap=COLORS, norm=chosen.of_means)
    page.text(second + SIDE / 2, top + SIDE + 0.03, "mean", ha="center", **small)
    pitch = min(0.36, STRIPS_WIDTH / len(chosen.layers))
    side = min(MOST_STRIP_SIDE, pitch - STRIP_GAP)
    for row, call in enumerate(chosen.calls):
        down = top + row * (MOST_STRIP_SIDE + STRIP_GAP)
        time = f"t {given.times_N[call]:.2f}"
        page.text(left + STRIPS_LEFT - 0.05, down + side / 2, time, ha="right", **small | {"va": "center"})
        for column, layer in enumerate(chosen.layers):
            values = as_square(given.experts_BKNT[image, layer, call])
            right = left + STRIPS_LEFT + column * pitch
            page.picture(right, down, side, values, cmap=COLORS, norm=chosen.of_layers)
    below = top + SIDE + 0.03
    page.text(left + STRIPS_LEFT - 0.05, below, "layer", ha="right", **small)
    for column, layer in enumerate(chosen.layers):
        middle = left + STRIPS_LEFT + column * pitch + side / 2
        page.text(middle, below, str(given.layers_K[layer]), ha="center", **small)


def _draw_color_bars(page: _Page, chosen: _Chosen, top: float) -> None:
    """Draws the colour bar of the means and that of single layers, side by side below the blocks."""
    width = page.figure.get_figwidth() / 2
    labels = ("Experts per token (mean)", "Experts (one layer, one t)")
    for i, (scale, label) in enumerate(zip((chosen.of_means, chosen.of_layers), labels, strict=True)):
        page.color_bar(i * width + 0.14, top + 0.08, width - 0.28, scale, label, is_whole=i == 1)


def _numbers(given: ComputeMap, chosen: _Chosen) -> pd.DataFrame:
    """Returns the numbers of every map that is drawn: the mean over layers and calls, and the single ones."""
    parts = []
    for image in chosen.images:
        about = {"image": image, "caption": given.captions[image]}
        parts.append(_map_numbers(given.mean_BT[image], **about))
        for call in chosen.calls:
            for layer in chosen.layers:
                at = {"layer": int(given.layers_K[layer]), "t": float(given.times_N[call])}
                parts.append(_map_numbers(given.experts_BKNT[image, layer, call], **about, **at))
    columns = ["image", "caption", "layer", "t", "row", "column", "experts"]
    return pd.concat(parts, ignore_index=True).reindex(columns=columns).astype({"layer": "Int64"})


def _map_numbers(values_T: NDArray[Any], **about: Any) -> pd.DataFrame:
    values = as_square(values_T)
    rows, columns = np.indices(values.shape)
    return pd.DataFrame({"row": rows.ravel(), "column": columns.ravel(), "experts": values.ravel()}).assign(**about)
