"""Makes the numbers of docs/sampling.md about runs at 32 pixels, from recipe-runs.csv, -scores.csv and -effects.csv."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import recipe_effects
from exported_runs import exported

KINDS = {
    "single_object": "single object", "colors": "colour", "counting": "counting", "color_attribution": "attribution",
    "position": "position", "two_object": "two objects",
}  # fmt: skip
CHOSEN_GUIDANCE = 3.0


def long_run() -> pd.Series:
    """Returns the longest run, whose images the page shows."""
    runs = exported("recipe-runs.csv")
    longest: pd.Series = runs.loc[runs["images_seen"].idxmax()]
    return longest


def scores(config_id: str) -> pd.DataFrame:
    """Returns the scores of a run: one row for each kind of captions and scale of guidance."""
    table = exported("recipe-scores.csv")
    return table[table["config_id"] == config_id]


def by_kind() -> Iterator[str]:
    """Yields the share of images of the long run that show what the caption says, by kind of captions."""
    found = scores(long_run()["config_id"]).set_index(["metric", "guidance"])
    scales = sorted(found.index.unique("guidance"))
    yield "| captions | " + " | ".join(f"guidance {scale:g}" for scale in scales) + " |"
    yield "|---|" + "--:|" * len(scales)
    for name, label in {**KINDS, "": "**all, mean over the kinds**"}.items():
        shown = [found.loc[(f"shapes-geneval/{name}".rstrip("/"), scale)] for scale in scales]
        cells = (f"{row.value:.0%} ({row.interval_low:.0%} to {row.interval_high:.0%})" for row in shown)
        yield f"| {label} | " + " | ".join(cells) + " |"


def values() -> Iterator[tuple[str, str]]:
    """Yields the name and the text of every number."""
    run = long_run()
    at = scores(run["config_id"]).query("guidance == @CHOSEN_GUIDANCE").set_index("metric")["value"]
    yield "recipe.images", f"{run['images_seen']:,}"
    yield "recipe.minutes", f"{run['steps.seconds'] / 60:.0f}"
    yield "recipe.params", f"{run['params_total'] / 1e6:.2f}M"
    yield "recipe.single", f"{at['shapes-geneval/single_object']:.0%}"
    yield "recipe.colours", f"{at['shapes-geneval/colors']:.0%}"
    runs = exported("recipe-runs.csv")
    short = runs[runs["images_seen"] < run["images_seen"]].fillna({"train.repa_weight": 0.0})
    short = short.sort_values("train.repa_weight")
    losses = [f"{loss:.4f}" for loss in short["evals.val_loss"]]
    yield "recipe.short-images", f"{short['images_seen'].iloc[0]:,}"
    yield "recipe.without-repa", losses[0]
    yield "recipe.with-repa", losses[1]
    seconds = short["steps.seconds"].tolist()
    yield "recipe.repa-cost", f"{seconds[1] / seconds[0] - 1:.0%}"
    yield "effects.images", f"{exported(recipe_effects.FILE)['images'].iloc[0]:,}"


TABLES = {"recipe-scores": by_kind, "recipe-effects": recipe_effects.effects}
