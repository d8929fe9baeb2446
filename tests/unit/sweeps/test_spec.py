"""Sweep files: W&B's format is accepted as W&B accepts it, and what is wrong is named."""

from __future__ import annotations

import itertools

import jsonschema
import pytest
import yaml

from experiments.config.overrides import load_config
from experiments.errors import SpecError
from sweeps.planner import make_plan
from sweeps.spec import COMMAND, find_spec, load_spec, parse_spec, shipped_specs

SMALL = {"program": "ecdit", "method": "grid", "parameters": {"seed": {"values": [0, 1]}}}

# The documented keys of a grid (docs.wandb.ai/models/sweeps/sweep-config-keys), closed to any other.
PARAMETER = {"minProperties": 1, "maxProperties": 1, "properties": {"value": {}, "values": {"minItems": 1}}}
WANDB_SCHEMA = {
    "type": "object",
    "required": ["program", "method", "parameters"],
    "additionalProperties": False,
    "properties": {
        "program": {"type": "string"},
        "command": {"type": "array", "items": {"type": "string"}},
        "method": {"enum": ["grid"]},
        "name": {"type": "string"},
        "description": {"type": "string"},
        "metric": {"required": ["name"], "properties": {"name": {}, "goal": {}}, "additionalProperties": False},
        "parameters": {
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_.-]*$"},
            "additionalProperties": {**PARAMETER, "additionalProperties": False},
        },
    },
}


def spec(**changes):
    return parse_spec({**SMALL, **changes}, default_name="small")


@pytest.mark.parametrize("name", shipped_specs())
def test_shipped_specs_are_wandb_sweeps_and_plan(name):
    content = yaml.safe_load(find_spec(name).read_text())
    jsonschema.validate(content, WANDB_SCHEMA)
    assert content["command"] == COMMAND
    assert content["name"] == name
    assert make_plan(load_spec(name)).num_merged == 0


def test_the_specs_of_the_study_are_shipped():
    assert {"quickstart", "routing_comparison", "scaling", "capacity"} <= set(shipped_specs())


@pytest.mark.parametrize("name", shipped_specs())
def test_a_run_is_given_what_the_wandb_agent_would_give_it(name):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    loaded = load_spec(name)
    choices = {key: parameter.choices() for key, parameter in sorted(loaded.parameters.items())}
    values = [next(iter(given)) for given in choices.values()]
    agent = create_sweep_command_args({"args": {k: {"value": v} for k, v in zip(choices, values, strict=True)}})
    assert next(loaded.combinations()) == agent["args_no_hyphens"]
    load_config(agent["args_no_hyphens"])


def test_the_last_parameter_by_name_is_the_fastest():
    parameters = {"seed": {"values": [0, 1]}, "model.name": {"values": ["nano", "micro"]}}
    order = [["model.name=nano", "seed=0"], ["model.name=nano", "seed=1"]]
    assert list(itertools.islice(spec(parameters=parameters).combinations(), 2)) == order


def test_nested_parameters_are_dotted_ones():
    nested = spec(parameters={"routing": {"parameters": {"name": {"value": "dense"}}}})
    assert list(nested.combinations()) == [["routing.name=dense"]]


def test_whole_numbers_from_min_to_max():
    assert len(list(spec(parameters={"seed": {"min": 0, "max": 2}}).combinations())) == 3


def test_run_cap_keeps_the_first_runs():
    assert list(spec(run_cap=1).combinations()) == [["seed=0"]]


def test_settings_in_the_command_hold_for_all_runs():
    command = ["${env}", "ecdit", "train", "train.images=64", "${args_no_hyphens}"]
    assert spec(command=command, project="mine").fixed_settings() == ["wandb.project=mine", "train.images=64"]


def test_none_and_booleans_are_values():
    assert list(spec(parameters={"a": {"value": None}, "b": {"value": True}}).combinations()) == [["a=None", "b=True"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "bayes"}, r"method: bayes is not run by ecdit sweep, only grid\. Run .*wandb agent"),
        ({"method": "random"}, r"method: random .*wandb agent"),
        ({"early_terminate": {"type": "hyperband"}}, r"early_terminate is not run by ecdit sweep\. Run .*wandb agent"),
        ({"method": "gird"}, r"method: Input should be 'grid'"),
        ({"paramters": {}}, r"paramters is not a key of a W&B sweep\. Did you mean 'parameters'\?"),
        ({"parameters": {"seed": {"vaules": [1]}}}, r"parameters\.seed\.vaules .*Did you mean 'values'\?"),
        ({"metric": {"name": "val_loss", "gaol": "minimize"}}, r"metric\.gaol .*Did you mean 'goal'\?"),
        ({"parameters": {"seed": {"value": 1, "values": [1]}}}, r"parameters\.seed: give one of value, values"),
        ({"parameters": {"seed": {"values": []}}}, r"parameters\.seed\.values: "),
        (
            {"parameters": {"seed": {"value": 1, "distribution": "categorical"}}},
            r"distribution categorical does not go",
        ),
        ({"parameters": {"seed": {"min": 3, "max": 1}}}, r"parameters\.seed: min 3 is not less than max 1"),
        ({"parameters": {"lr": {"min": 0.1, "max": 0.5}}}, r"parameters\.lr\.min: .*integer"),
        ({"parameters": {"learning rate": {"value": 1}}}, r"'learning rate' is not a name W&B accepts"),
        ({"parameters": {"seed": [0, 1]}}, r"parameters\.seed: "),
        ({"parameters": {}}, r"parameters: "),
        ({"program": "train.py"}, r"program: 'train.py' is not ecdit\. Write `program: ecdit`"),
        ({"run_cap": 0}, r"run_cap: "),
    ],
)
def test_what_wandb_or_ecdit_refuses_is_named(changes, message):
    with pytest.raises(SpecError, match=message):
        spec(**changes)


@pytest.mark.parametrize("key", ["program", "method", "parameters"])
def test_a_missing_key_is_named(key):
    with pytest.raises(SpecError, match=f"{key} is missing"):
        parse_spec({name: value for name, value in SMALL.items() if name != key}, default_name="small")


@pytest.mark.parametrize(
    "command", [["python", "train.py", "${args}"], ["ecdit", "train"], ["ecdit", "plot", "${args}"]]
)
def test_another_command_is_refused(command):
    with pytest.raises(SpecError, match="is not a call of ecdit train"):
        spec(command=command).fixed_settings()


def test_a_setting_given_dotted_and_nested_is_refused():
    parameters = {"seed": {"value": 0}, "a": {"parameters": {"b": {"value": 0}}}, "a.b": {"value": 1}}
    with pytest.raises(SpecError, match=r"a\.b is given twice"):
        next(spec(parameters=parameters).combinations())


def test_a_grid_that_is_too_large_is_taken_for_a_slip():
    parameters = {"seed": {"min": 0, "max": 10**9}}
    with pytest.raises(SpecError, match="1,000,000,001 runs"):
        next(spec(parameters=parameters).combinations())


def test_an_unknown_sweep_names_the_closest():
    with pytest.raises(SpecError, match=r"'quikstart' is not a sweep\. Did you mean 'quickstart'\?"):
        load_spec("quikstart")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"mine\.yaml does not exist"):
        load_spec(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not YAML"), ("- a", "holds no keys"), ("", "holds no keys")]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SpecError, match=message):
        load_spec(str(tmp_path / "mine.yaml"))
