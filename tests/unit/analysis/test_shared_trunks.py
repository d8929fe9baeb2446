"""Lengths of one training are known as such, from the settings of their runs alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.load_records import load_records
from analysis.multiplier import multipliers
from analysis.run_table import run_table
from analysis.shared_trunks import share_trunks, trunks

WriteRun = Callable[..., Any]


def table_of(folder: Path, write_run: WriteRun, **optim: Any) -> pd.DataFrame:
    """Two lengths and two seeds of two widths of two arms."""
    for router in ("dense", "expert_choice"):
        for width in (32, 48):
            for images in (3200, 6400):
                for seed in (0, 1):
                    model, train = {"name": "nano", "width": width}, {"images": images}
                    settings = {"model": model, "routing": {"name": router}, "train": train, "seed": seed}
                    settings |= {"optim": {"warmup_images": 320, **optim}, "eval": {"every_images": 1600}}
                    path = folder / f"{router}-{width}-{images}-{seed}"
                    write_run(path, settings, lambda n, router=router: (2 if router == "dense" else 1) / n)
    return run_table(load_records([folder]))


def test_lengths_and_seeds_are_of_one_trunk_and_widths_and_arms_are_not(tmp_path: Path, write_run: WriteRun) -> None:
    table = table_of(tmp_path, write_run, schedule="wsd")
    assert None not in trunks(table)
    by_trunk = table.groupby("trunk")
    assert by_trunk.ngroups == 4
    assert set(by_trunk["images_seen"].nunique()) == set(by_trunk["seed"].nunique()) == {2}
    assert set(by_trunk["model.width"].nunique()) == set(by_trunk["arm"].nunique()) == {1}
    known = {each.trunk for each in multipliers(load_records([tmp_path]), table)}
    assert known == set(table.loc[table["routing.name"] == "expert_choice", "trunk"])


@pytest.mark.parametrize("optim", [{"schedule": "cosine"}, {"schedule": "wsd", "rate_by_length": 100}])
def test_trainings_whose_rate_follows_their_length_share_nothing(
    optim: dict[str, Any], tmp_path: Path, write_run: WriteRun
) -> None:
    assert set(trunks(table_of(tmp_path, write_run, **optim))) == {None}


def test_parts_share_a_trunk_where_both_have_runs_of_it() -> None:
    first, second, third = (pd.DataFrame({"trunk": names}) for names in (["a", None], ["a", "b"], ["c", None]))
    assert share_trunks([first, second])
    assert not share_trunks([first, third])
    assert not share_trunks([pd.DataFrame({"run": ["x"]})] * 2)  # a table of earlier versions has no such column
