"""Plugins from files and packages join the registries; what cannot be used is refused in one line that names it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.config.overrides import load_config
from experiments.config.routers import ROUTERS, compared_names, routed_names, router_label
from experiments.errors import ConfigError, PluginError
from experiments.layers.properties import PROPERTIES, broken
from experiments.layers.small_layers import small_layer
from experiments.plugins.loading import KINDS, MAX_PLUGIN_BYTES, VARIABLE, load_plugins
from experiments.routing.build import build_router, try_plugin
from tests.unit.plugins.conftest import EXAMPLE, WritePlugin

HEAD = """\
from experiments.config.routers import RouterRow
from experiments.routing.router import Router

class Mine(Router):
    def decide(self, logits_GSE, capacity):
        {decide}

ROUTERS = [RouterRow("mine", label="Mine", implementation=Mine{row})]
"""


METRIC = """\
from experiments.config.metric_row import MetricRow, RecordedValue
METRICS = [MetricRow("mine", {}, None)]
"""


def refusal_of(path: Path) -> str:
    with pytest.raises(PluginError) as refusal:
        load_plugins([path])
    said = str(refusal.value)
    assert refusal.value.exit_code == 2
    assert "\n" not in said
    assert str(path) in said or not path.exists()
    assert len(said) < 700
    return said


def test_a_plugin_joins_the_registry_and_is_handed_to_children() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    load_plugins([EXAMPLE])
    assert routed_names()[-1] == "stripes"
    assert compared_names()[0] == "dense"
    assert router_label("stripes") == "Stripes"
    assert load_config(["routing=stripes"]).routing.capacity_factor == 2.0
    assert os.environ[VARIABLE] == str(EXAMPLE)
    with pytest.raises(ConfigError, match=r"The plugins that are loaded add: stripes\.$"):
        load_config(["routing=xyzzy"])
    load_plugins([EXAMPLE])  # as in a child process that gets it twice
    assert routed_names().count("stripes") == 1


def test_a_plugin_is_found_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(EXAMPLE))
    load_plugins()
    assert "stripes" in ROUTERS


@pytest.mark.parametrize("title", PROPERTIES)
def test_the_example_has_every_property(title: str) -> None:
    load_plugins([EXAMPLE])
    assert broken("stripes", PROPERTIES[title]) is None


def test_an_unknown_router_says_how_a_plugin_is_named() -> None:
    with pytest.raises(ConfigError, match=re.escape("needs --plugin FILE.")):
        load_config(["routing=stripes"])


NOT_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "cannot be read: No such file or directory."),
    "folder": (Path.mkdir, "cannot be read: it is a directory, not a file."),
    "FIFO": (os.mkfifo, "cannot be read: it is a FIFO, not a regular file."),
    "link to nothing": (lambda path: path.symlink_to("/nowhere/at/all.py"), "cannot be read: No such file"),
    "too large": (lambda path: path.write_bytes(b"#" * (MAX_PLUGIN_BYTES + 1)), "it is larger than 1 MiB"),
    "not UTF-8": (lambda path: path.write_bytes(b"# caf\xe9\nx = 1\n"), "cannot be imported: "),
    "NUL": (lambda path: path.write_bytes(b"x = 1\x00\n"), "null bytes"),
    "binary": (lambda path: path.write_bytes(bytes(range(256))), "cannot be imported: "),
    "empty": (Path.touch, "defines no rows. Expected is ROUTERS = [RouterRow(...)] or METRICS = [MetricRow(...)] or "),
}


@pytest.mark.parametrize(("make", "reason"), NOT_FILES.values(), ids=NOT_FILES.keys())
def test_what_is_no_python_file_is_refused(make: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    make(path)
    assert reason in refusal_of(path)


CONTENTS = {
    "syntax": ("x = 1\ndef f(:\n", "cannot be imported: line 2: SyntaxError: invalid syntax."),
    "import": ("\nimport not_installed\n", "line 2: ModuleNotFoundError: No module named 'not_installed'."),
    "raises": ("\n\nraise RuntimeError('two\\nlines \\x1b[31m')\n", "line 3: RuntimeError: two lines \\x1b[31m."),
    "exits": ("import sys\nsys.exit(0)\n", "line 2: SystemExit: 0."),
    "nested": ("x = " + "(" * 5000 + ")" * 5000, "cannot be imported: "),
    "no list": ("ROUTERS = 3\n", "ROUTERS is a int, a list of RouterRow(...) is expected."),
    "no row": ("ROUTERS = ['mine']\n", "ROUTERS holds a str, a list of RouterRow(...) is expected."),
    "no figure": ("FIGURES = ['mine']\n", "FIGURES holds a str, a list of FigureEntry(...) is expected."),
    "field of another type": (
        HEAD.format(decide="pass", row=", num_experts='8'"),
        "line 8: router 'mine': the field num_experts='8' is not accepted: input should be a valid integer.",
    ),
    "unknown field": (
        HEAD.format(decide="pass", row=", colour='red'"),
        "line 8: router 'mine': its row has no field colour. Did you mean 'color'?",
    ),
    "missing field": (
        HEAD.format(decide="pass", row="").replace('label="Mine", ', ""),
        "line 8: router 'mine': its row lacks the field label. Add label=... to the row.",
    ),
    "no colour": (
        HEAD.format(decide="pass", row=", color='reddish'"),
        "the field color='reddish' is not accepted: string should match pattern '^#[0-9A-Fa-f]{6}$'.",
    ),
    "metric of wrong values": (
        METRIC.format("'x'"), "metric 'mine': the field values='x' is not accepted: input should be a valid tuple.",
    ),
    "value of another type": (
        METRIC.format("(RecordedValue('mine', factor='3'),)"),
        "metric 'mine': the field values.0.factor='3' is not accepted: input should be a valid number.",
    ),
    "figure of no function": (
        "from analysis.figures.registry import FigureEntry\nFIGURES = [FigureEntry('mine', 'Something.', 3)]\n",
        "figure 'mine': the field draw=3 is not accepted: input should be callable.",
    ),
    "no such gating": (
        HEAD.format(decide="pass", row=", gating='softmx'"),
        "router 'mine' has defaults that no model can be built with: routing.gating='softmx' is not ",
    ),
    "no slot": (HEAD.format(decide="pass", row=", capacity_factor=0.001"), "leaves an expert without a slot"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "reason"), CONTENTS.values(), ids=CONTENTS.keys())
def test_what_cannot_be_imported_is_refused_with_its_line(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(content)
    said = refusal_of(path)
    assert reason in said
    assert "ValidationError" not in said
    assert not any("mine" in kind.registry() for kind in KINDS)
    with pytest.raises(PluginError):  # it is not remembered as loaded
        load_plugins([path])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("switch", "the router 'switch' has the name of one of ecdit."),
        ("dense", "the router 'dense' has the name of one of ecdit."),
        ("../up", "'../up' cannot be the name of a router."),
        ("Stripes", "'Stripes' cannot be the name of a router."),
        ("", "'' cannot be the name of a router."),
        ("x" * 41, "cannot be the name of a router."),
    ],
)
def test_a_name_must_be_free_and_safe(name: str, reason: str, write_plugin: WritePlugin) -> None:
    before = dict(ROUTERS)
    assert reason in refusal_of(write_plugin(**{'"stripes",': f'"{name}",'}))
    assert before == ROUTERS


def test_a_name_may_have_every_character_that_the_refusal_names(write_plugin: WritePlugin) -> None:
    refusal = refusal_of(write_plugin(**{'"stripes",': '"2_stripes",'}))
    assert "Use a letter and then at most 39 letters, digits, _ and -, in lower case." in refusal
    load_plugins([write_plugin(**{'"stripes",': '"my-stripes_2",'})])
    assert "my-stripes_2" in ROUTERS


def test_two_plugins_cannot_have_one_name(write_plugin: WritePlugin) -> None:
    load_plugins([EXAMPLE])
    said = refusal_of(write_plugin())
    assert f"the router 'stripes' has the name of one of plugin {EXAMPLE}. Give it another name." in said


@pytest.mark.parametrize("name", ["loss-convergence", "paper-fig8", "all"])
def test_a_figure_cannot_have_the_name_of_ours(name: str, tmp_path: Path) -> None:
    path = tmp_path / "figure.py"
    path.write_text(
        "from analysis.figures.registry import FigureEntry\n"
        f"FIGURES = [FigureEntry('{name}', 'Something.', lambda records, table: None)]\n"
    )
    assert f"the figure {name!r} has the name of one of ecdit." in refusal_of(path)


def test_a_class_without_decide_is_refused(write_plugin: WritePlugin) -> None:
    said = refusal_of(write_plugin(**{"def decide(": "def decided("}))
    assert "router 'stripes': StripesRouter lacks the method decide. Define decide(self, logits_GSE, capacity)" in said


def test_a_class_with_a_rule_of_its_own_needs_no_decide(write_plugin: WritePlugin) -> None:
    load_plugins(
        [
            str(
                write_plugin(
                    **{"def decide(": "def assign(", 'label="Stripes"': 'label="Stripes", needs_capacity=False'}
                )
            )
        ]
    )
    config = load_config(["routing=stripes", "routing.capacity_factor=null"])
    assert build_router(config).plugin == "stripes"


@pytest.mark.parametrize(
    ("replaced", "reason"),
    [
        ({"implementation=StripesRouter": "implementation='no_such_module:Mine'"}, "No module named 'no_such_module'"),
        ({"implementation=StripesRouter": "implementation='experiments.errors:Mine'"}, "has no attribute 'Mine'"),
        (
            {"(Router):": ":", "implementation=StripesRouter": "implementation=StripesRouter"},
            "StripesRouter is no subclass of Router.",
        ),
        (
            {"    def decide": "    def __init__(self, config):\n        pass\n\n    def decide"},
            "failed: ",
        ),
        (
            {
                "    def decide": "    def __init__(self, config):\n        super().__init__(config)\n"
                "        self.register_buffer('bias', torch.zeros(3))\n\n    def decide"
            },
            "StripesRouter keeps bias, which checkpoints do not hold. Call super().__init__(config) and add no "
            "weights; numbers that follow training are buffers of a RouterState in self.state, and buffers of "
            "constants take persistent=False.",
        ),
        (
            {
                "    def decide": "    def __init__(self, config):\n        super().__init__(config)\n"
                "        del self.weight_DE\n\n    def decide"
            },
            "StripesRouter has no weight_DE.",
        ),
        (
            {
                "from experiments.routing.logits": "from experiments.routing.state import RunningThreshold\n"
                "from experiments.routing.logits",
                "    def decide": "    def __init__(self, config):\n        super().__init__(config)\n"
                "        self.other = RunningThreshold(1, 0.9)\n\n    def decide",
            },
            "StripesRouter keeps other.num_updates, other.value_K, which checkpoints do not hold.",
        ),
    ],
)
def test_what_no_layer_can_be_built_of_is_refused(
    replaced: dict[str, str], reason: str, write_plugin: WritePlugin
) -> None:
    path = write_plugin(**replaced)
    load_plugins([path])
    with pytest.raises(PluginError, match=re.escape(reason)) as refusal:
        small_layer(name="stripes")
    assert str(refusal.value).startswith(f"plugin {path}: router 'stripes'")


def stateful(observed: str) -> dict[str, str]:
    """What makes a plugin of the example that keeps thresholds, which learn `observed`."""
    imported = "from experiments.routing.logits"
    return {
        imported: f"from experiments.routing.state import RunningThreshold\n{imported}",
        "    def decide": "    def __init__(self, config):\n        super().__init__(config)\n"
        "        self.state = RunningThreshold(config.routing.num_experts, 0.9)\n\n"
        "    def assign(self, logits_BTE, x_BTD, context):\n"
        "        assignment = super().assign(logits_BTE, x_BTD, context)\n"
        "        best_E = logits_BTE.detach().flatten(0, 1).amax(dim=0)\n"
        f"        return assignment._replace(observed={observed})\n\n"
        "    def decide",
    }


def test_a_plugin_may_keep_a_state_and_has_every_property(write_plugin: WritePlugin) -> None:
    path = write_plugin(**stateful("best_E if self.training else None"))
    load_plugins([path])
    assert set(small_layer(name="stripes").router.state_dict()) == {"weight_DE", "state.value_K", "state.num_updates"}
    assert {title: broken("stripes", check) for title, check in PROPERTIES.items()} == dict.fromkeys(PROPERTIES)
    try_plugin(load_config(["routing=stripes"]))


@pytest.mark.parametrize(
    ("observed", "reason"),
    [
        ("None", "observed=None, float32 in training, since it has a state, is expected."),
        (
            "best_E.double() if self.training else None",
            "observed=float64 [8], float32 in training, since it has a state, ",
        ),
        ("best_E", "observed=float32 [8], None without a state or outside training is expected."),
    ],
)
def test_a_state_that_could_not_learn_is_refused_before_a_run_begins(
    observed: str, reason: str, write_plugin: WritePlugin
) -> None:
    load_plugins([write_plugin(**stateful(observed))])
    with pytest.raises(PluginError, match=re.escape(f"router 'stripes': the router answers {reason}")):
        try_plugin(load_config(["routing=stripes"]))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("None", "decide answers a NoneType, GroupDecision is expected."),
        (
            "GroupDecision(token_GEC[:, :, 1:], weight_GEC, None, None)",
            "decide answers token_GEC=int64 [32, 8, 15], int64 [32, 8, 16] is expected.",
        ),
        ("GroupDecision(token_GEC.int(), weight_GEC, None, None)", "token_GEC=int32 [32, 8, 16], int64 "),
        ("GroupDecision(token_GEC, weight_GEC.double(), None, None)", "weight_GEC=float64 "),
        ("GroupDecision(token_GEC, weight_GEC, weight_GEC, None)", "filled_GEC=float32 "),
        ("GroupDecision(token_GEC, weight_GEC, None, 0.5)", "auxiliary_loss=a float, float32 [] is expected."),
        (
            "GroupDecision(token_GEC + 64, weight_GEC, None, None)",
            "decide answers token_GEC from 64 to 127, but the 64 ",
        ),
        ("GroupDecision(-1 - token_GEC, weight_GEC, None, None)", "token_GEC from -64 to -1, but the 64 tokens of"),
    ],
)
def test_a_wrong_answer_is_refused_before_a_run_begins(answer: str, reason: str, write_plugin: WritePlugin) -> None:
    right = "GroupDecision(token_GEC, weight_GEC, filled_GEC=None, auxiliary_loss=None)"
    path = write_plugin(**{right: answer})
    load_plugins([path])
    with pytest.raises(PluginError, match=re.escape(reason)) as refusal:
        try_plugin(load_config(["routing=stripes"]))
    assert str(refusal.value).startswith(f"plugin {path}: router 'stripes': decide answers ")
    assert refusal.value.exit_code == 2


def test_a_router_that_raises_is_named_with_its_line(write_plugin: WritePlugin) -> None:
    path = write_plugin(**{"num_groups, size, num_experts = logits_GSE.shape": "num_groups, size = logits_GSE.shape"})
    load_plugins([path])
    with pytest.raises(PluginError) as failure:
        try_plugin(load_config(["routing=stripes"]))
    line = path.read_text().splitlines().index("        num_groups, size = logits_GSE.shape") + 1
    assert str(failure.value) == (
        f"plugin {path}: router 'stripes' failed: line {line}: ValueError: too many values to unpack (expected 2). "
        "Correct the plugin."
    )
    assert failure.value.exit_code == 2


@pytest.mark.parametrize(
    ("answer", "field"),
    [
        ("GroupDecision(token_GEC, weight_GEC / 0 - weight_GEC / 0, None, None)", "weight"),
        ("GroupDecision(token_GEC, weight_GEC, None, weight_GEC.sum() / 0)", "auxiliary_loss"),
    ],
)
def test_an_answer_that_is_not_finite_is_refused_before_a_run_begins(
    answer: str, field: str, write_plugin: WritePlugin
) -> None:
    right = "GroupDecision(token_GEC, weight_GEC, filled_GEC=None, auxiliary_loss=None)"
    path = write_plugin(**{right: answer})
    load_plugins([path])
    with pytest.raises(PluginError) as refusal:
        try_plugin(load_config(["routing=stripes"]))
    assert str(refusal.value) == (
        f"plugin {path}: router 'stripes': the router answers NaN or infinity in its {field} for tokens that are "
        "finite. Correct the plugin."
    )


def test_without_a_capacity_a_router_must_choose(write_plugin: WritePlugin) -> None:
    load_plugins([write_plugin(**{"capacity_factor=2.0": "capacity_factor=None, needs_capacity=False"})])
    with pytest.raises(PluginError, match="StripesRouter lacks the method choose, which decides without a capacity"):
        small_layer(name="stripes")


def install(folder: Path, rows: str, group: str = "ecdit.routers") -> None:
    """A package of a router with an entry point, as pip would install it."""
    (folder / "my_routers").mkdir()
    (folder / "my_routers" / "__init__.py").write_text("")
    (folder / "my_routers" / "code.py").write_text(EXAMPLE.read_text().partition("ROUTERS = ")[0])
    (folder / "my_routers" / "rows.py").write_text(rows)
    info = folder / "my_routers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-routers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\nstripes = my_routers.rows:STRIPES\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages; what is imported from it is forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_routers", "my_routers.rows", "my_routers.code"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


ROW = (
    "from experiments.config.routers import RouterRow\n"
    "STRIPES = RouterRow('stripes', label='Stripes', implementation='my_routers.code:StripesRouter')\n"
)


def test_an_installed_package_is_found_and_imports_its_code_late(site: Path) -> None:
    install(site, ROW)
    load_plugins()
    assert load_config(["routing=stripes"]).routing.num_experts == 8
    assert "my_routers.code" not in sys.modules
    assert type(small_layer(name="stripes").router).__name__ == "StripesRouter"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("STRIPES = 1\n", ": ROUTERS holds a int, a list of RouterRow(...) is expected."),
        ("import not_installed_at_all\n", " cannot be imported: "),
        ("x = 1\n", " cannot be imported: "),
        (ROW.replace("'stripes'", "'switch'"), ": the router 'switch' has the name of one of ecdit."),
    ],
)
def test_a_broken_package_is_named(rows: str, reason: str, site: Path) -> None:
    install(site, rows)
    with pytest.raises(PluginError) as refusal:
        load_plugins()
    assert str(refusal.value).startswith(f"plugin stripes = my_routers.rows:STRIPES of the package my-routers{reason}")


def test_every_kind_names_its_registry() -> None:
    for kind in KINDS:
        registry = kind.registry()
        assert all(name == row.name and isinstance(row, kind.row_type()) for name, row in registry.items())
