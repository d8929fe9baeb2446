"""How the rate of each arm was found is said beside every comparison, and arms with rates of their own are compared."""

from __future__ import annotations

import pytest

from analysis.compare import compare, comparison_markdown
from analysis.export_tables import export_runs
from analysis.load_records import load_records
from experiments.records.record_types import TunedSetting

TRAIN = {"train": {"images": 9600}, "eval": {"every_images": 1600}}
RATES = {"dense": 2e-3, "expert_choice": 4e-3}


def tuned(value, **fields):
    seeds = {"num_seeds": 2, "seeds": [1000, 1001]}
    given = {"values": [1e-3, 2e-3, 4e-3], "losses": [0.3, 0.2, None], **seeds, "on": {"model.width": 32}}
    return TunedSetting(setting="optim.learning_rate", value=value, proxies=["a"], **(given | fields))


@pytest.fixture
def study(tmp_path, write_run):
    """Writes two arms, each at a rate of its own, which was tuned unless told otherwise."""

    def write(is_tuned=lambda name: True, edge=False):
        for name, rate in RATES.items():
            for seed in (0, 1, 2):
                settings = {**TRAIN, "routing": {"name": name}, "seed": seed, "optim": {"learning_rate": rate}}
                found = tuned(rate, edge=edge) if is_tuned(name) else None
                write_run(
                    tmp_path / "study" / f"{name}-{seed}", settings,
                    lambda n, name=name, seed=seed: 0.3 - len(name) * n * 1e-6 + seed * 1e-4, tuned=found,
                )  # fmt: skip
        return tmp_path / "study"

    return write


def test_arms_tuned_apart_are_compared_with_each_other(study):
    comparison = compare(load_records([study()]))
    assert set(comparison.arms["setup"]) == {"nano"}
    assert dict(zip(comparison.arms["routing"], comparison.arms["rate"], strict=True)) == {
        "dense": "0.002, best of 3",
        "expert_choice": "0.004, best of 3",
    }
    assert comparison.claims


def test_rates_that_were_given_make_settings_of_their_own(study):
    comparison = compare(load_records([study(is_tuned=lambda name: False)]))
    assert len(set(comparison.arms["setup"])) == 2
    assert set(comparison.arms["rate"]) == {"0.002, given", "0.004, given"}
    assert "optim.learning_rate was given and not tuned for every arm: 0.002, 0.004." in comparison.notes


def test_notes_and_page_say_how_each_rate_was_found(study):
    comparison = compare(load_records([study(edge=True)]))
    note = (
        "optim.learning_rate was tuned for each arm: Dense (same depth) 0.002, Expert choice 0.004 (best of 3 values "
        "from 0.001 to 0.004, at the edge of them, 2 seeds not in the sweep, on model.width=32)."
    )
    assert note in comparison.notes
    page = comparison_markdown(comparison)
    assert "0.004, best of 3, at the edge" in page
    assert "| Learning rate" in page


def test_a_value_that_an_earlier_version_chose_may_rest_on_seeds_that_are_compared():
    """It had the seeds from 0 on, as studies have, and recorded their number alone."""
    earlier = tuned(2e-3, num_seeds=1, seeds=None)
    assert str(earlier) == "best of 3 values from 0.001 to 0.004, 1 seed perhaps in the sweep, on model.width=32"


def test_a_given_and_a_tuned_arm_are_both_said(study):
    notes = compare(load_records([study(is_tuned=lambda name: name == "dense")])).notes
    assert "optim.learning_rate was given and not tuned for Expert choice: 0.004." in notes
    assert any(
        note.startswith("optim.learning_rate was tuned for each arm: Dense (same depth) 0.002 (") for note in notes
    )


def test_the_export_says_it_too(study):
    table = export_runs(study())
    assert set(table["tuned"]) == {"best of 3 values from 0.001 to 0.004, 2 seeds not in the sweep, on model.width=32"}
    assert set(table["tuned_setting"]) == {"optim.learning_rate"}


def test_proxies_stay_out_of_a_comparison_and_one_line_says_so(study, tmp_path, write_run):
    root = study()
    for seed in (0, 1):
        settings = {**TRAIN, "model": {"width": 32}, "routing": {"name": "dense"}, "seed": seed}
        write_run(tmp_path / "study" / "tuning" / f"proxy-{seed}", settings, lambda n: 0.4, tunes="small")
    records = load_records([root])
    assert len(records.runs) == 6
    (left_out,) = records.left_out
    assert (
        str(left_out)
        == f"{root / 'tuning'}: its 2 runs tuned the arms of small: name this folder alone to compare them"
    )
    assert len(load_records([root / "tuning"]).runs) == 2


@pytest.mark.parametrize("best", [1.0, 2.0])
def test_a_tuned_setting_may_be_at_its_default_in_every_run(best, tmp_path, write_run):
    """Runs store a shift of times only where it is not 1."""
    for name, shift in {"dense": 1.0, "expert_choice": best}.items():
        for seed in (0, 1):
            found = tuned(shift, values=[1.0, 2.0], losses=[0.2, 0.2]).model_copy(update={"setting": "flow.time_shift"})
            settings = {**TRAIN, "routing": {"name": name}, "seed": seed, "flow": {"time_shift": shift}}
            write_run(tmp_path / f"{name}-{seed}", settings, lambda n: 0.3, tuned=found)
    comparison = compare(load_records([tmp_path]))
    assert set(comparison.arms["setup"]) == {"nano"}
    said = f"flow.time_shift was tuned for each arm: Dense (same depth) 1, Expert choice {best:g} ("
    assert any(note.startswith(said) for note in comparison.notes)
