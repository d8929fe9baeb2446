"""Sweep files: W&B's format is accepted as W&B accepts it, and what is wrong is named."""

from __future__ import annotations

import itertools

import jsonschema
import pytest
import yaml

from experiments.config.designs import load_designed
from experiments.errors import ConfigError, SpecError
from sweeps.planner import make_plan
from sweeps.spec import COMMAND, find_spec, load_spec, parse_spec, shipped_specs
from sweeps.tune_design import tune_design

SMALL = {"program": "ecdit", "method": "grid", "parameters": {"seed": {"values": [0, 1]}}}

# What W&B's own JSON schema accepts (the file that its server and its client check with), closed to any other key.


def _form(*required, **properties):
    return {"required": list(required), "properties": properties, "additionalProperties": False}


NUMBER, WHOLE, LIST = {"type": "number"}, {"type": "integer"}, {"type": "array", "minItems": 1}
SPREAD = {"mu": NUMBER, "sigma": {**NUMBER, "minimum": 0}}
Q = {"q": {**NUMBER, "exclusiveMinimum": 0}}
PARAMETER_FORMS = [
    _form("value", value={}, distribution={"const": "constant"}),
    _form("values", values=LIST, distribution={"const": "categorical"}),
    _form("values", "probabilities", values=LIST, probabilities=LIST, distribution={}),
    _form("min", "max", min=WHOLE, max=WHOLE, distribution={"const": "int_uniform"}),
    _form("min", "max", min=NUMBER, max=NUMBER, distribution={"const": "uniform"}),
    _form("min", "max", "distribution", min=NUMBER, max=NUMBER,
          distribution={"enum": ["log_uniform", "log_uniform_values"]}),
    _form("min", "max", "distribution", min=NUMBER, max=NUMBER, **Q,
          distribution={"enum": ["q_uniform", "q_log_uniform", "q_log_uniform_values"]}),
    _form("distribution", **SPREAD, distribution={"enum": ["normal", "log_normal"]}),
    _form("distribution", **SPREAD, **Q, distribution={"enum": ["q_normal", "q_log_normal"]}),
    _form("parameters", parameters={"$ref": "#/$defs/parameters"}),
]  # fmt: skip
WANDB_SCHEMA = {
    "$defs": {
        "parameters": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_.-]*$"},
            "additionalProperties": {"anyOf": PARAMETER_FORMS},
        }
    },
    "type": "object",
    "required": ["program", "method", "parameters"],
    "additionalProperties": False,
    "properties": {
        "program": {"type": "string"},
        "command": {"type": "array", "items": {"type": "string"}},
        "method": {"enum": ["grid", "random"]},
        "name": {"type": "string"},
        "description": {"type": "string"},
        "run_cap": {"type": "integer", "exclusiveMinimum": 0},
        "metric": {"required": ["name"], "properties": {"name": {}, "goal": {}}, "additionalProperties": False},
        "parameters": {"$ref": "#/$defs/parameters"},
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
    assert {"quickstart", "routing_comparison", "scaling", "capacity", "isoflop"} <= set(shipped_specs())


@pytest.mark.parametrize("name", shipped_specs())
def test_a_run_is_given_what_the_wandb_agent_would_give_it(name):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    loaded = load_spec(name)
    choices = {key: parameter.choices() or [] for key, parameter in sorted(loaded.parameters.items())}
    values = [next(iter(given)) for given in choices.values()]
    agent = create_sweep_command_args({"args": {k: {"value": v} for k, v in zip(choices, values, strict=True)}})
    assert next(loaded.combinations()) == agent["args_no_hyphens"]
    if tune_design(loaded) is None:
        load_designed(agent["args_no_hyphens"])
    else:
        with pytest.raises(ConfigError, match=r"^ecdit.tune compares several runs, and this command trains one"):
            load_designed(agent["args_no_hyphens"])


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


def draws(count, seed=None, replaced=(), **changes):
    lr = {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}
    parameters = {"optim.learning_rate": lr, "seed": {"min": 0, "max": 99}, **changes}
    drawing = spec(method="random", run_cap=5, parameters=parameters).combinations(replaced, seed)
    return list(itertools.islice(drawing, count))


def test_random_draws_follow_from_the_seed():
    assert draws(5) == draws(5) == draws(5, seed=0) == draws(5, **{"ecdit.seed": {"value": 0}}, replaced=["ecdit.seed"])
    assert draws(5) != draws(5, seed=1) == draws(5, seed=1)
    assert draws(3) == draws(5)[:3]


def test_random_draws_are_the_same_in_every_version():
    assert draws(4, replaced=["optim.learning_rate"]) == [["seed=48"], ["seed=77"], ["seed=94"], ["seed=60"]]


def test_adding_or_replacing_a_drawn_parameter_leaves_the_others_as_they_are():
    assert draws(4, replaced=["optim.learning_rate"]) == [words[1:] for words in draws(4)]
    assert [words[1:] for words in draws(4, data={"parameters": {"seed": {"min": 0, "max": 5}}})] == draws(4)


def test_settings_in_the_command_hold_for_all_runs():
    command = ["${env}", "ecdit", "train", "train.images=64", "${args_no_hyphens}"]
    assert spec(command=command, project="mine").fixed_settings() == ["wandb.project=mine", "train.images=64"]


def test_none_and_booleans_are_values():
    assert list(spec(parameters={"a": {"value": None}, "b": {"value": True}}).combinations()) == [["a=None", "b=True"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "bayes"}, r"method: bayes is not run by ecdit sweep, only grid and random\. Run .*wandb agent"),
        (
            {"method": "random"},
            r"method: random would never end, because run_cap is not set\. Write for example `run_cap: 20`",
        ),
        (
            {"parameters": {"a": {"parameters": {"b": {"distribution": "beta"}}}}},
            r"parameters\.a\.b: distribution beta is not drawn by ecdit sweep\. Run .*wandb agent",
        ),
        ({"early_terminate": {"type": "hyperband"}}, r"early_terminate is not run by ecdit sweep\. Run .*wandb agent"),
        ({"method": "gird"}, r"method: Input should be 'grid' or 'random'"),
        ({"paramters": {}}, r"paramters is not a key of a W&B sweep\. Did you mean 'parameters'\?"),
        ({"parameters": {"seed": {"vaules": [1]}}}, r"parameters\.seed\.vaules .*Did you mean 'values'\?"),
        ({"metric": {"name": "val_loss", "gaol": "minimize"}}, r"metric\.gaol .*Did you mean 'goal'\?"),
        (
            {"parameters": {"seed": {"value": 1, "values": [1]}}},
            r"parameters\.seed: constant takes value, not value and values",
        ),
        (
            {"parameters": {"seed": {"values": []}}},
            r"^parameters\.seed\.values: it is empty\. Give at least one value\.$",
        ),
        (
            {"parameters": {"seed": {"values": 3}}},
            r"^parameters\.seed\.values: 3 is not a list\. Write `values: \[3\]`\.$",
        ),
        (
            {"parameters": {"seed": {"value": 1, "distribution": "categorical"}}},
            r"parameters\.seed: categorical takes values, not value",
        ),
        ({"parameters": {"seed": {"min": 3, "max": 1}}}, r"parameters\.seed: min 3 is not less than max 1"),
        ({"parameters": {"lr": {"min": "low", "max": 0.5}}}, r"parameters\.lr\.min"),
        ({"parameters": {"learning rate": {"value": 1}}}, r"'learning rate' is not a name W&B accepts"),
        (
            {"parameters": {"seed": [0, 1]}},
            r"^parameters: seed is a list\. Write `seed: \{values: \[0, 1\]\}`\.$",
        ),
        ({"parameters": {"seed": 3}}, r"^parameters: seed is a bare value\. Write `seed: \{value: 3\}`\.$"),
        (
            {"parameters": {"optim": {"parameters": {"beta1": [0.8]}}}},
            r"^parameters: optim\.beta1 is a list\. Write `beta1: \{values: \[0\.8\]\}`\.$",
        ),
        ({"parameters": {"seed": None}}, r"^parameters: seed has no value\. Write `seed: \{value: \.\.\.\}`\.$"),
        (
            {"parameters": []},
            r"^parameters holds no names\. Write for example `seed: \{values: \[0, 1\]\}` below it\.$",
        ),
        ({"parameters": {}}, r"^parameters: it is empty\. Give at least one name\.$"),
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


def test_a_range_without_steps_has_no_grid():
    with pytest.raises(
        SpecError, match=r"parameters\.a\.lr: a grid cannot hold every value of uniform\. Use method: ran"
    ):
        next(spec(parameters={"a": {"parameters": {"lr": {"min": 0.1, "max": 0.5}}}}).combinations())


@pytest.mark.parametrize("given", [{"value": "one"}, {"values": [0, 1]}, {"value": True}])
def test_the_seed_of_the_draws_is_one_whole_number(given):
    message = r"ecdit\.seed is not one whole number\. Write `ecdit\.seed: \{value: 1\}`"
    with pytest.raises(SpecError, match=message):
        draws(1, **{"ecdit.seed": given})
    with pytest.raises(SpecError, match=message):  # a grid has no draws, and no second seed either
        make_plan(spec(parameters={"model.name": {"value": "nano"}, "ecdit.seed": given}))


@pytest.mark.parametrize("method", ["grid", "random"])
@pytest.mark.parametrize("name", ["ecdit.cluster", "ecdit.on_divergence", "ecdit.tune"])
def test_a_design_of_the_whole_sweep_does_not_vary(name, method):
    given = {"model.name": {"value": "nano"}, name: {"values": [{"time": 10}, {"time": 20}]}}
    with pytest.raises(SpecError) as caught:
        make_plan(spec(method=method, run_cap=2, parameters=given))
    assert str(caught.value) == f"parameters: {name} is not a single constant. Write `{name}: {{value: ...}}`."


def test_a_grid_that_is_too_large_is_taken_for_a_slip():
    parameters = {"seed": {"min": 0, "max": 10**9}}
    with pytest.raises(SpecError, match="1,000,000,001 runs"):
        next(spec(parameters=parameters).combinations())


@pytest.mark.parametrize(
    ("parameters", "num_runs"),
    [
        ({f"p{n}": {"values": [0, 1, 2]} for n in range(60)}, r"10\^28 runs"),
        ({f"p{n}": {"min": 0, "max": 10**18} for n in range(60)}, r"10\^1080 runs"),
        ({"seed": {"min": 0, "max": 100_000}}, "100,001 runs"),
    ],
)
def test_combinations_are_counted_before_they_are_made(parameters, num_runs):
    with pytest.raises(SpecError, match=rf"the grid has {num_runs}, and at most 100,000 are allowed\. Shorten"):
        next(spec(parameters=parameters).combinations())


def test_run_cap_takes_the_first_of_a_grid_of_any_size():
    huge = {"a": {"min": 0, "max": 10**18}, "b": {"min": 0, "max": 10**18}}
    assert list(spec(parameters=huge, run_cap=2).combinations()) == [["a=0", "b=0"], ["a=0", "b=1"]]


@pytest.mark.parametrize("run_cap", [10**9, 10**30, 100_001, True, 1.5])
@pytest.mark.parametrize("method", ["grid", "random"])
def test_run_cap_has_a_limit(run_cap, method):
    with pytest.raises(SpecError, match="run_cap: Input should be"):
        spec(run_cap=run_cap, method=method)


HEAD = "program: ecdit\nmethod: grid\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEAD + "parameters:\n  seed: {value: 0}\n  train.images: {value: 64}\n  seed: {values: [1, 2]}\n",
            "parameters.seed is given twice, in lines 4 and 6.",
        ),
        (HEAD + "parameters:\n  seed: {value: 0, value: 1}\n", "parameters.seed.value is given twice, in line 4."),
        (
            HEAD + "parameters: {train: {parameters: {images: {value: 1}}}, train.images: {value: 2}}\n",
            "train.images is given twice, in line 3.",
        ),
        (HEAD + "method: random\nparameters:\n  seed: {value: 0}\n", "method is given twice, in lines 2 and 3."),
        (
            HEAD + "parameters:\n  seed: {value: 0,\n    value: 1}\n",
            "parameters.seed.value is given twice, in lines 4 and 5.",
        ),
        (
            HEAD + "parameters:\n  model: {value: nano}\n  model.name: {values: [micro]}\n",
            "model.name is given twice, in line 4 (model) and in line 5 (model.name).",
        ),
        (
            HEAD + "parameters:\n  train.images: {value: 64}\n  train:\n    parameters: {images: {value: 32}}\n",
            "train.images is given twice, in lines 4 and 6.",
        ),
        (
            HEAD + "parameters:\n  ecdit.seed: {value: 1}\n  ecdit:\n    parameters: {seed: {value: 2}}\n",
            "ecdit.seed is given twice, in lines 4 and 6.",
        ),
        (
            HEAD + "parameters:\n  seed: {values: [0, 1]}\n  arm:\n    values:\n      - model=nano\n      - seed=3\n",
            "seed is given twice, in line 4 (seed) and in line 8 (arm).",
        ),
        (
            HEAD + "parameters:\n  arm:\n    values:\n      - model=nano\n      - model=nano model.name=micro\n",
            "line 7: model.name is given twice in the arm 'model=nano model.name=micro'.",
        ),
        (
            HEAD + "parameters:\n  optim: {value: {learning_rate: 1}}\n  optim.learning_rate: {value: 2}\n",
            "optim.learning_rate is given twice, in line 4 (optim) and in line 5 (optim.learning_rate).",
        ),
        (
            "program: ecdit\nmethod: grid\ncommand:\n  - ecdit\n  - train\n  - seed=1\n  - ${args_no_hyphens}\n"
            "parameters: {seed: {values: [0, 1]}}\n",
            "seed is given twice, in line 6 (seed=1) and in line 8 (seed).",
        ),
        (
            HEAD + "parameters:\n  arm:\n    values:\n      - routing=dense train.images=64\n      - train.images=128\n"
            "  train: {value: {images: 640}}\n",
            "train.images is given twice, in line 6 (arm) and in line 8 (train).",
        ),
        (
            HEAD + "parameters:\n  train: {values: [{images: 64}, {images: 32}]}\n  arm: {value: train.images=8}\n",
            "train.images is given twice, in line 4 (train) and in line 5 (arm).",
        ),
        (
            HEAD + "project: mine\nparameters:\n  wandb.project: {value: theirs}\n",
            "wandb.project is given twice, in line 3 (project) and in line 5 (wandb.project).",
        ),
        (
            "x: &x {seed: {value: 0}}\n" + HEAD + "parameters:\n  <<: *x\n  train: {parameters: {images: {value: 1}}}\n"
            "  train.images: {value: 2}\n",
            None,
        ),
    ],
)
def test_a_setting_given_twice_in_a_file_is_refused_with_both_lines(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_spec(str(file))
    assert str(caught.value) == (f"{file}: {message} Keep one of them." if message else str(caught.value))
    assert message or "x is not a key of a W&B sweep" in str(caught.value)


ALONE = "is read only as a parameter of its own. Write `{0}: {{value: ...}}` below `parameters:`."


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("seed: {values: [1, 010]}", "010 is a number to the base 8 in YAML. Write it to the base 10, without a"),
        ("seed: {value: 1:30}", "1:30 is a number to the base 60 in YAML. Write it to the base 10, without a"),
        ("seed: {values: [0x10]}", "0x10 is a number to the base 16 in YAML. Write it to the base 10, without a"),
        ("seed: {value: 0b11}", "0b11 is a number to the base 2 in YAML."),
        ("train: {parameters: {images: {value: 0100}}}", "0100 is a number to the base 8 in YAML."),
        ("ecdit: {value: {seed: 5}}", f"ecdit.seed {ALONE.format('ecdit.seed')}"),
        ("ecdit: {value: {cluster: {time: 10}}}", f"ecdit.cluster {ALONE.format('ecdit.cluster')}"),
        ("ecdit: {value: {tune: {optim.beta1: [0.8, 0.9]}}}", f"ecdit.tune {ALONE.format('ecdit.tune')}"),
        ("ecdit: {values: [{on_divergence: {}}]}", f"ecdit.on_divergence {ALONE.format('ecdit.on_divergence')}"),
        ("arm: {values: [routing=dense ecdit.seed=5]}", f"ecdit.seed {ALONE.format('ecdit.seed')}"),
    ],
)
def test_what_would_be_lost_or_misread_is_refused_with_its_line(tmp_path, parameter, message):
    file = tmp_path / "mine.yaml"
    file.write_text(f"{HEAD}parameters:\n  {parameter}\n")
    with pytest.raises(SpecError) as caught:
        load_spec(str(file))
    assert str(caught.value).startswith(f"{file}: line 4: {message}")


def test_a_design_of_the_whole_sweep_is_no_setting_of_its_command(tmp_path):
    file = tmp_path / "mine.yaml"
    command = "command: [ecdit, train, ecdit.seed=5, '${args_no_hyphens}']\n"
    file.write_text(f"{HEAD}{command}parameters: {{seed: {{value: 0}}}}\n")
    with pytest.raises(SpecError, match=r"line 3: ecdit\.seed is read only as a parameter of its own\."):
        load_spec(str(file))


@pytest.mark.parametrize(
    ("parameter", "word"),
    [
        ('seed: {values: ["010"]}', "seed=010"),
        ("seed: {values: [007]}", "seed=7"),
        ("ecdit: {parameters: {seed: {value: 5}}}", "ecdit.seed=5"),
        ("ecdit: {value: {train_flops: 1.0e+12}}", "ecdit={'train_flops': 1000000000000.0}"),
        ("ecdit.cluster: {value: {time: 12:00:00}}", "ecdit.cluster={'time': 43200}"),  # read again, as text
        ("ecdit: {parameters: {cluster: {value: {time: 1:30}}}}", "ecdit.cluster={'time': 90}"),
    ],
)
def test_what_is_read_as_it_is_written_is_accepted(tmp_path, parameter, word):
    file = tmp_path / "mine.yaml"
    file.write_text(f"{HEAD}parameters:\n  {parameter}\n")
    assert list(load_spec(str(file)).combinations()) == [[word]]


def test_a_bare_off_is_the_word_of_a_setting(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(HEAD + "parameters: {model.block: {value: dit}, model.qk_norm: {values: [off, rms]}}\n")
    assert {run.config["model"]["qk_norm"] for run in make_plan(load_spec(str(file))).runs} == {"off", "rms"}


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("wandb.mode: {value: off}", "wandb.mode='off' is not 'auto', "),
        ("routing.gate_norm: {values: [no, token]}", "routing.gate_norm='no' is not 'none' or 'token'."),
        ("wandb.mode: {value: false}", "W&B reads a bare on, yes, off or no in YAML as True or False: put the word in"),
    ],
)
def test_a_bare_word_is_shown_as_it_is_written(tmp_path, parameter, message):
    file = tmp_path / "mine.yaml"
    file.write_text(f"{HEAD}parameters: {{{parameter}}}\n")
    with pytest.raises((ConfigError, SpecError)) as caught:
        make_plan(load_spec(str(file)))
    assert message in str(caught.value)


def test_bare_words_mean_what_they_say_to_every_kind_of_setting(tmp_path):
    file = tmp_path / "mine.yaml"
    words = "wandb.group: {value: no}, routing.name: {value: expert_choice}, routing.expert_bias: {values: [yes, off]}"
    file.write_text(f"{HEAD}name: on\nmetric: {{name: x, impute_while_running: false}}\nparameters: {{{words}}}\n")
    spec = load_spec(str(file))
    configs = [run.config for run in make_plan(spec).runs]
    assert spec.name == "on"
    assert {config["wandb"]["group"] for config in configs} == {"no"}
    assert {config["routing"].get("expert_bias", False) for config in configs} == {True, False}


def test_what_merge_keys_bring_counts_as_given_where_it_stands(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        HEAD + "parameters:\n  train:\n    parameters: &t\n      images: {value: 64}\n  eval:\n    parameters:\n"
        "      <<: *t\n      batch_images: {value: 8}\n  eval.images: {value: 32}\n"
    )
    with pytest.raises(SpecError, match=r"eval\.images is given twice, in lines 6 and 11\. Keep one of them\."):
        load_spec(str(file))


@pytest.mark.parametrize(
    ("key", "right"),
    [("parameterz", "parameters"), ("programme", "program"), ("methods", "method"), ("run_caps", "run_cap")],
)
def test_a_misspelt_key_is_named_with_the_right_one(key, right):
    content = {**SMALL, "run_cap": 1}
    content[key] = content.pop(right)
    with pytest.raises(SpecError, match=rf"^{key} is not a key of a W&B sweep\. Did you mean '{right}'\?$"):
        parse_spec(content, default_name="small")


def test_nested_parameters_run_as_the_file_says(tmp_path):
    file = tmp_path / "nested.yaml"
    file.write_text(
        HEAD + "parameters:\n  model:\n    parameters:\n      name: {values: [nano, micro]}\n"
        "  train: {parameters: {images: {value: 640}}}\n"
    )
    configs = [run.config for run in make_plan(load_spec(str(file))).runs]
    assert [(config["model"]["name"], config["train"]["images"]) for config in configs] == [
        ("nano", 640),
        ("micro", 640),
    ]


def test_an_unknown_sweep_names_the_closest():
    with pytest.raises(SpecError, match=r"'quikstart' is not a sweep\. Did you mean 'quickstart'\?"):
        load_spec("quikstart")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"mine\.yaml does not exist"):
        load_spec(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("- a", "holds no settings of the form KEY: VALUE"),
        ("", "holds no settings of the form KEY: VALUE"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SpecError, match=message):
        load_spec(str(tmp_path / "mine.yaml"))
