import pytest

from experiments.config.overrides import load_config
from experiments.config.stored import unstored_defaults
from experiments.errors import SpecError
from sweeps.cluster import load_cluster, minutes, parse_cluster

NANO = {"model": {"name": "nano", "width": 64}, "routing": {"name": "dense", "capacity_factor": None}, "seed": 0}
MINI = {**NANO, "model": {"name": "mini", "width": 128}}

FILE = """
partition: gpu
account: vision
time: 12:00:00
gpus_per_node: 8
mem: 64G
max_parallel: 4
setup:
  - module load cuda
  - export A=1
extra: {qos: high, exclusive: yes, nice: no}
rules:
  - where: {model: mini}
    nodes: 2
    extra: {switches: 1}
  - where: {model: [mini, S], seed: 0}
    time: 2-00
"""


@pytest.fixture
def write(tmp_path):
    def file(text):
        path = tmp_path / "cluster.yaml"
        path.write_text(text)
        return path

    return file


def test_a_file_gives_every_run_the_same_but_for_its_rules(write):
    cluster = load_cluster(write(FILE))
    small, large = cluster.resources(NANO), cluster.resources(MINI)
    assert (small.time, small.nodes, small.world) == (720, 1, 8)
    assert (large.time, large.nodes, large.world) == (2880, 2, 16)
    assert (small.partition, small.account, small.mem, small.max_parallel) == ("gpu", "vision", "64G", 4)
    assert small.setup == ("module load cuda", "export A=1")
    assert small.extra_options() == {"qos": "high", "exclusive": True}
    assert large.extra_options() == {"qos": "high", "exclusive": True, "switches": "1"}


def test_a_later_rule_wins_and_all_conditions_must_hold():
    rules = [{"where": {"model": "mini"}, "nodes": "2"}, {"where": {"model": "mini", "seed": "1"}, "nodes": "3"}]
    cluster = parse_cluster({"time": "60", "rules": rules})
    assert [cluster.resources(c).nodes for c in (NANO, MINI, {**MINI, "seed": 1})] == [1, 2, 3]


def test_conditions_are_read_as_the_command_line_reads_them():
    where = {"routing.capacity_factor": "null", "model.width": "1.28e2"}
    cluster = parse_cluster({"time": "60", "rules": [{"where": where, "nodes": "2"}]})
    assert [cluster.resources(c).nodes for c in (NANO, MINI)] == [1, 2]


@pytest.mark.parametrize(
    ("where", "fitting"),
    [
        ({"model": {"name": "mini", "width": "128"}}, [MINI]),
        ({"model": {"name": "mini", "width": "64"}}, []),
        ({"model": {"name": ["nano", "mini"]}, "seed": "0"}, [NANO, MINI]),
        ({"model": "{name: mini, width: 64}"}, []),
        ({"arm": "model=nano seed=0"}, [NANO]),
        ({"arm": "model=mini seed=1"}, []),
        ({"arm": ["model=nano", "model=mini"]}, [NANO, MINI]),
    ],
)
def test_all_settings_of_a_nested_condition_or_an_arm_must_hold(where, fitting):
    cluster = parse_cluster({"time": "60", "rules": [{"where": where, "nodes": "2"}]})
    assert [config for config in (NANO, MINI) if cluster.resources(config).nodes == 2] == fitting


@pytest.mark.parametrize("none", ["null", "None", "~", ""])
def test_none_is_the_default_of_a_key(none):
    empty = dict.fromkeys(("partition", "tasks_per_node", "mem", "max_parallel", "setup", "extra", "rules"), none)
    assert parse_cluster({"time": "60", **empty}).resources(NANO) == parse_cluster({"time": "60"}).resources(NANO)
    rule = {"where": {"model": "mini"}, "partition": none, "extra": none}
    cluster = parse_cluster({"time": "60", "partition": "gpu", "extra": {"qos": "high"}, "rules": [rule]})
    assert [cluster.resources(config).partition for config in (NANO, MINI)] == ["gpu", None]
    assert cluster.resources(MINI).extra == {"qos": "high"}


@pytest.mark.parametrize("name", ["model.head_size", *unstored_defaults()])
def test_a_condition_on_a_setting_that_is_not_stored_is_one_on_its_default(name):
    config = load_config().model_dump(mode="json")
    section, _, field = name.partition(".")
    assert field not in config[section]
    where = {name: str(unstored_defaults().get(name))}
    cluster = parse_cluster({"time": "60", "rules": [{"where": where, "nodes": "2"}]})
    assert cluster.resources(config).nodes == 2


def test_a_condition_on_another_value_than_an_unstored_default_does_not_hold():
    rules = [
        {"where": {"train.ema": "power"}, "nodes": "2"},
        {"where": {"model.block": ["dit", "mmdit"]}, "nodes": "3"},
    ]
    cluster = parse_cluster({"time": "60", "rules": rules})
    configs = [load_config(words).model_dump(mode="json") for words in ([], ["train.ema=power"], ["model.block=mmdit"])]
    assert [cluster.resources(config).nodes for config in configs] == [1, 2, 3]


def test_a_rule_that_no_run_fits_is_known():
    rules = [{"where": {"model": "mini"}, "nodes": "2"}, {"where": {"model": "XL"}, "nodes": "4"}]
    cluster = parse_cluster({"time": "60", "rules": rules})
    assert [str(rule) for rule in cluster.idle_rules([NANO, MINI])] == ["model.name: XL"]


def test_a_sweep_file_may_carry_the_cluster(write):
    head = "program: ecdit\nmethod: grid\nparameters:\n  seed: {value: 0}\n"
    inside = head + "  ecdit.cluster:\n    value:\n      time: 1:30:00\n"
    assert load_cluster(write(inside)).resources(NANO).time == 90
    nested = head + "  ecdit: {parameters: {cluster: {value: {time: 1:30:00}}}}\n"
    assert load_cluster(write(nested)).resources(NANO).time == 90
    with pytest.raises(SpecError, match=r"ecdit\.cluster: 'tim' is not a key of a cluster\. Did you mean 'time'\?"):
        load_cluster(write(head + "  ecdit.cluster: {value: {time: 9, tim: 1}}"))
    for without in (head, head + "  ecdit.cluster: {value: null}\n"):
        with pytest.raises(SpecError, match=r"has no cluster\. Add `ecdit\.cluster: .* or give --cluster FILE"):
            load_cluster(write(without))


def test_a_sweep_file_may_name_the_cluster_file_beside_it(write, tmp_path):
    (tmp_path / "gpu.yaml").write_text("time: 45\n")
    cluster = load_cluster(write("program: ecdit\nparameters: {ecdit.cluster: {value: gpu.yaml}}\n"))
    assert cluster.resources(NANO).time == 45


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("1:30", 2),
        ("0:30:00", 30),
        ("12:00:00", 720),
        ("12:00:01", 721),
        ("2-00", 2880),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("1-12:30:00", 2190),
    ],
)
def test_times_are_spelled_as_slurm_does_and_rounded_up(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "1h", "-1", "1-", "1:2:3:4", "0", "UNLIMITED", "1.5"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match=r"is not a time|is no time"):
        minutes(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"c: time is missing\. Write minutes, .* e\.g\. time: 12:00:00\."),
        ({"time": "1h"}, r"c: time='1h' does not fit\. Write minutes"),
        ({"time": "60", "node": "2"}, r"c: 'node' is not a key of a cluster\. Did you mean 'nodes'\?"),
        ({"time": "60", "nodes": "0"}, r"c: nodes='0' does not fit\. It must be: greater than 0\."),
        ({"time": "60", "nodes": "two"}, r"c: nodes='two' does not fit\. It must be: a valid integer"),
        ({"time": "60", "mem": "64 GB"}, r"c: mem='64 GB' does not fit\. Write e\.g\. mem: 64G\."),
        ({"time": "60", "extra": {"array": "0-9"}}, r"c: extra: array cannot be given\. ecdit sets it\."),
        ({"time": "60", "extra": {"gpus_per_node": "2"}}, r"extra: gpus-per-node has a key .* gpus_per_node: \.\.\."),
        ({"time": "60", "extra": {"--qos": "x"}}, r"c: extra: --qos cannot be given\. Write it as in `sbatch --help`"),
        ({"time": "60", "rules": {"where": {}}}, r"c: rules is not a list\."),
        ({"time": "60", "rules": [{"nodes": "2"}]}, r"c: rules\.1 does not say for which runs it is\. Write `where:"),
        ({"time": "60", "rules": [{"where": {"modle": "x"}, "nodes": "2"}]}, r"rules\.1: where: 'modle' is not a set"),
        ({"time": "60", "rules": [{"where": {"seed": "x"}}]}, r"rules\.1: where: seed='x' is not an integer"),
        ({"time": "60", "rules": [{"where": {"model": {}}}]}, r"rules\.1 does not say for which runs it is"),
        (
            {"time": "60", "rules": [{"where": {"arm": ["model=nano seed=0", "model=mini"]}}]},
            r"rules\.1: where: arm lists several settings\. Write a rule for each of its items\.",
        ),
        (
            {"time": "60", "rules": [{"where": {"model.name": "nano", "model": {"name": "mini"}}}]},
            r"rules\.1: where: model\.name is given twice\. Keep one of them\.",
        ),
        (
            {"time": "60", "rules": [{"where": {"seed": "1"}, "extra": "exclusive"}]},
            r"rules\.1: extra='exclusive' does",
        ),
        (
            {"time": "60", "rules": [{"where": {"seed": "1"}, "extra": ["qos"]}]},
            r"rules\.1: extra=\['qos'\] does not fit",
        ),
        ({"time": "60", "rules": [{"where": {"seed": []}}]}, r"rules\.1: where: seed has no value"),
        ({"time": "60", "rules": [{"where": {"seed": "1"}, "nodes": "-2"}]}, r"c: rules\.1: nodes='-2' does not fit"),
        ("nodes", r"c holds no settings of the form KEY: VALUE"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key_and_the_way_out(content, message):
    with pytest.raises(SpecError, match=message) as error:
        parse_cluster(content, "c")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(write, tmp_path):
    with pytest.raises(SpecError, match=r"nowhere\.yaml cannot be read: No such file"):
        load_cluster(tmp_path / "nowhere.yaml")
    with pytest.raises(SpecError, match=r"cluster\.yaml is not YAML"):
        load_cluster(write("a: [1"))
    with pytest.raises(SpecError, match=r"cluster\.yaml holds no settings of the form"):
        load_cluster(write("- 1"))


HEAD = "program: ecdit\nmethod: grid\nparameters:\n  seed: {value: 0}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time: 10\npartition: short\ntime: 600\n", "time is given twice, in lines 1 and 3."),
        (
            "time: 10\nextra:\n  gpu-bind: none\n  gpu_bind: closest\n",
            "extra.gpu-bind is given twice, in line 3 (extra.gpu-bind) and in line 4 (extra.gpu_bind).",
        ),
        (
            "time: 10\nrules:\n  - where: {model: XL, model.name: L}\n    nodes: 2\n",
            "rules.0.where.model.name is given twice, in line 3 (rules.0.where.model) and in line 3 "
            "(rules.0.where.model.name).",
        ),
        (
            "time: 10\nrules:\n  - where: {seed: 1}\n    nodes: 2\n    nodes: 3\n",
            "rules.0.nodes is given twice, in lines 4 and 5.",
        ),
        (
            HEAD + "  ecdit.cluster: {value: {time: 10}}\n  ecdit: {parameters: {cluster: {value: {time: 20}}}}\n",
            "ecdit.cluster is given twice, in line 5 (parameters.ecdit.cluster.value) and in line 6 "
            "(parameters.ecdit.parameters.cluster.value).",
        ),
    ],
)
def test_a_key_given_twice_is_refused_with_both_lines(write, text, message):
    file = write(text)
    with pytest.raises(SpecError) as caught:
        load_cluster(file)
    assert str(caught.value) == f"{file}: {message} Keep one of them."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tme": "60"}, r"c: 'tme' is not a key of a cluster\. Did you mean 'time'\?"),
        ({"time": "60", "rulez": []}, r"c: 'rulez' is not a key of a cluster\. Did you mean 'rules'\?"),
        ({"time": "60", "rules": [{"wher": {"seed": "1"}}]}, r"c: rules\.1: 'wher' is not a key .* 'where'\?"),
        (
            {"time": "60", "nodes": "1" + "0" * 30},
            r"nodes='10+' does not fit\. It must be: less than or equal to 131072",
        ),
        ({"time": "60", "cpus_per_task": "100000"}, r"cpus_per_task='100000' does not fit\. It must be: less than"),
        ({"time": "9" * 30}, r"time='9+' does not fit"),
        ({"time": "9" * 5000}, r"time='9+' does not fit"),
        ({"time": "\u00b2"}, r"does not fit"),
        ({"time": "60", "save_seconds": "1e300"}, r"save_seconds='1e300' does not fit"),
        ({"time": "60", "gpus_per_node": "inf"}, r"gpus_per_node='inf' does not fit"),
        ({"time": "60", "max_parallel": "true"}, r"max_parallel='true' does not fit"),
    ],
)
def test_misspelt_keys_and_numbers_without_a_meaning_are_named(content, message):
    with pytest.raises(SpecError, match=message):
        parse_cluster(content, "c")
