"""Writes the files of the study of README.md that follow from runs.csv: comparison.md, laws.csv and three figures.

What needs the curves of the runs, which are not committed, stays what it was at the study's commits: the table of
comparison.md and some of its notes, compute multipliers, and loss-convergence-width-72.png.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from study_numbers import FOLDER, study_table, tested

from analysis.claims import conclusion, correction
from analysis.compare import INTERVALS, differences_markdown
from analysis.figures.capacity import draw_capacity
from analysis.figures.expert_scaling import draw_expert_scaling
from analysis.figures.scaling_law import draw_scaling_law
from analysis.laws.bootstrap import NUM_RESAMPLES
from analysis.load_records import Records
from analysis.report.laws import laws
from analysis.seed_planning import seeds_sentence
from analysis.style import Drawing, write_drawing

NO_RECORDS = Records(pd.DataFrame(), pd.DataFrame(), pd.DataFrame(), ())
OWN_NOTES = ("- Intervals are ", "- Of ", "- Seeds an arm ")
"""The beginnings of the notes that are renewed."""
FIGURES: dict[str, Callable[[], Drawing]] = {
    "expert-scaling": lambda: draw_expert_scaling(NO_RECORDS, study_table(), paper_values=True),
    "capacity": lambda: draw_capacity(NO_RECORDS, study_table()),
    "scaling-law": lambda: draw_scaling_law(NO_RECORDS, study_table(), NUM_RESAMPLES),
}


def comparison() -> str:
    """Returns comparison.md with everything renewed but the table of the arms and the other notes."""
    old, found = (FOLDER / "comparison.md").read_text(), tested()
    arms = old[old.index("| Arm | Params") : old.index("## Differences")]
    kept = [line for line in old[old.index("## Notes") :].splitlines()[2:] if not line.startswith(OWN_NOTES)]
    notes = [f"- {INTERVALS}", f"- {correction(found)}", f"- {seeds_sentence(found)}", *kept]
    parts = ["# Comparison of routers\n", f"{conclusion(study_table(), found)}\n", arms + differences_markdown(found)]
    return "\n".join([*parts, "## Notes\n", *notes]) + "\n"


def law_rows() -> pd.DataFrame:
    """Returns the laws that the runs identify, with their intervals and how well they predict the largest runs."""
    fitted = [law for law in laws(study_table()) if law.parameters is not None]
    return pd.DataFrame(
        {
            "law": law.form.name, "family": law.family, "num_runs": law.num_runs,
            "parameters": "; ".join(f"{name} = {value}" for name, value in (law.parameters or {}).items()),
            "largest_runs": law.headline, "sizes_left_out": law.sizes, "intervals": law.resamples,
        }
        for law in fitted
    )  # fmt: skip


def write_files() -> None:
    """Writes all of them; the fits over 1,000 resamples take most of the time."""
    (FOLDER / "comparison.md").write_text(comparison())
    with TemporaryDirectory() as drawn:  # ecdit replaces only files that it wrote itself
        for name, draw in FIGURES.items():
            write_drawing(draw(), Path(drawn), name)
            for kind in ("png", "csv"):
                shutil.copy(Path(drawn) / f"{name}.{kind}", FOLDER)
    law_rows().to_csv(FOLDER / "laws.csv", index=False)
