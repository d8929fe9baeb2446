"""`ecdit.tune` in a sweep file: what it says, and every mistake in one line that names the way out."""

from __future__ import annotations

import pytest

from experiments.config.designs import load_designed
from experiments.errors import ConfigError, SpecError
from sweeps.tune_design import tune_design

RATES = {"optim.learning_rate": [1e-3, "2e-3", 4e-3]}


def test_a_setting_its_values_and_its_proxies_are_read_as_an_agent_would_pass_them(grid):
    tune = {**RATES, "on": {"model.width": 32, "train.images": 3200, "routing": "dense"}, "seeds": 2}
    design = tune_design(grid(ecdit__tune=tune))
    assert (design.setting, design.values, design.num_seeds) == ("optim.learning_rate", (1e-3, 2e-3, 4e-3), 2)
    assert design.on == {"model.width": 32, "train.images": 3200, "routing.name": "dense"}
    assert design.word(0.002) == "optim.learning_rate=0.002"


def test_without_on_and_seeds_the_proxy_is_the_arm_itself_with_one_seed(grid):
    design = tune_design(grid(ecdit__tune=RATES))
    assert (dict(design.on), design.num_seeds) == ({}, 1)


def test_whole_numbers_stay_whole(grid):
    design = tune_design(grid(ecdit__tune={"optim.warmup_images": [320, 640]}))
    assert design.values == (320, 640)
    assert design.value(1280.0) == 1280
    assert design.value(213.3) is None


def test_the_command_line_replaces_the_design_or_turns_it_off(grid):
    spec = grid(ecdit__tune=RATES)
    assert tune_design(spec, ["ecdit.tune={'optim.learning_rate': [1, 2]}"]).values == (1.0, 2.0)
    assert tune_design(spec, ["ecdit.tune=None"]) is None
    assert tune_design(grid(seed=0)) is None


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"optim.learning_rate": [1e-3]}, "optim.learning_rate is given 1 value to choose from. Give a list of 2 to"),
        ({"optim.learning_rate": 1e-3}, "optim.learning_rate is given 0.001 to choose from."),
        ({"optim.learning_rate": [2e-3, 1e-3]}, "are not positive and ascending: 0.001 follows 0.002."),
        ({"optim.learning_rate": [2e-3, 2e-3]}, "are not positive and ascending: 0.002 follows 0.002."),
        ({"optim.learning_rate": [0, 2e-3]}, "are not positive and ascending: 0 follows 0."),
        ({"optim.learning_rate": [-1, 2e-3]}, "are not positive and ascending: -1 follows 0."),
        ({"optim.learning_rate": ["nan", 2e-3]}, "optim.learning_rate=nan is not a number."),
        ({"optim.learning_rate": ["high", 2e-3]}, "optim.learning_rate='high' is not a number."),
        ({"optim.learning_rat": [1e-3, 2e-3]}, "'optim.learning_rat' is not a setting. Did you mean"),
        ({"optim.name": [1, 2]}, "cannot tune optim.name. It tunes a setting that is a number, and not the seed."),
        ({"seed": [1, 2]}, "cannot tune seed."),
        ({**RATES, "optim.momentum": [1, 2]}, "names 2 settings (optim.learning_rate, optim.momentum), and it tunes"),
        ({"seeds": 2}, "names no setting, and it tunes one."),
        ({**RATES, "seeds": 0}, "seeds=0 is not a number of seeds. Give a whole number from 1 to 1000."),
        ({**RATES, "seeds": "two"}, "seeds=two is not a number of seeds."),
        ({**RATES, "on": {"model.widht": 32}}, "'model.widht' is not a setting. Did you mean 'model.width'?"),
        ({**RATES, "on": {"model.width": "wide"}}, "model.width='wide' is not an integer"),
        ({**RATES, "on": {"model": "nano", "model.name": "micro"}}, "model.name is given twice in `on`. Keep one of"),
        ({**RATES, "on": {"train.images": 64, "train": {"images": 32}}}, "train.images is given twice in `on`."),
        ({**RATES, "on": 3}, "on=3 is not a mapping. Write for example `on: {train.images: 3200}`."),
        ({**RATES, "on": {"optim.learning_rate": 1}}, "optim.learning_rate stands in `on`. Its values stand beside"),
        ({**RATES, "on": {"seed": 1}}, "seed stands in `on`. `seeds` says how many there are."),
        ("optim.learning_rate", "ecdit.tune=optim.learning_rate is not a mapping. Write `ecdit.tune: {value: {optim."),
        ([RATES, RATES], "ecdit.tune is not a single constant."),
    ],
)
def test_mistakes_are_one_line(grid, tune, message):
    with pytest.raises(SpecError) as raised:
        tune_design(grid(ecdit__tune=tune))
    assert message in str(raised.value)
    assert "ecdit.tune" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_one_run_cannot_tune_its_arm():
    line = "ecdit.tune compares several runs, and this command trains one. Run the sweep file with `ecdit sweep`"
    with pytest.raises(ConfigError) as raised:
        load_designed([f"ecdit.tune={RATES}"])
    assert str(raised.value).startswith(line)
    assert load_designed(["ecdit.tune=None"]).config == load_designed([]).config
