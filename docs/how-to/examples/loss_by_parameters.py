"""`loss-by-parameters` shows the final validation loss of every run against its activated parameters.

It is an example of a figure in a plugin:

    ecdit plot loss-by-parameters out/demo --plugin loss_by_parameters.py
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.registry import FigureEntry
from analysis.load_records import MissingDataError, Records
from analysis.style import Drawing, paper_style, router_color

COLUMNS = ["run", "routing.name", "params_active", "val_loss"]


def draw(records: Records, table: pd.DataFrame) -> Drawing:
    """Returns the figure and the numbers that it shows."""
    numbers = table[COLUMNS].dropna()
    if numbers.empty:
        raise MissingDataError("No run has a validation loss.", "Train with eval.every_images.")
    with paper_style():
        figure = Figure(figsize=(3.3, 2.4), layout="constrained")
        axes = figure.subplots()
        for router, runs in numbers.groupby("routing.name"):
            color = router_color(str(router))
            axes.scatter(runs["params_active"], runs["val_loss"], color=color, label=str(router))
        axes.set(xlabel="Activated parameters", ylabel="Validation loss", xscale="log")
        axes.legend()
    return Drawing(figure, numbers)


FIGURES = [FigureEntry("loss-by-parameters", "Final validation loss against activated parameters.", draw)]
