"""A metric that one row and one file add: it is measured, recorded, compared and drawn like ours."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from analysis.compare import compare
from analysis.load_records import load_records
from analysis.run_table import run_table
from ecdit_cli.app import run
from experiments.config.metric_row import MetricRow, RecordedValue
from experiments.config.metrics import METRICS
from experiments.config.overrides import load_config
from experiments.errors import ConfigError, PluginError
from experiments.evaluation.metrics.sampled_metric import (
    LabelledBatch,
    MetricTask,
    SampledMetric,
    UserFiles,
    implementation_of,
)
from experiments.evaluation.sampling.load_run import LoadedRun
from experiments.evaluation.sampling.settings import training_conditions
from experiments.evaluation.score import MetricSet, load_resources
from experiments.plugins.sources import SOURCES, PluginSource
from experiments.records.record_types import EvalRow
from experiments.records.run_folder import read_jsonl

EXAMPLE = Path(__file__).parents[3] / "docs/how-to/examples/mean_saturation.py"
NAME = "mean-saturation"
FEW = ("--images", "4", "--steps", "1")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the docs, with its row in the registry."""
    spec = importlib.util.spec_from_file_location("mean_saturation", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METRICS, NAME, module.METRIC)
    return module


@pytest.fixture
def task() -> MetricTask:
    config = load_config(["eval.metric_images=4"])
    how = training_conditions(config, "fp32")
    return MetricTask(config, how, how.row(config, 640))


def test_the_example_fits_on_a_page_and_knows_grey_from_red(example: ModuleType, task: MetricTask) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    metrics = MetricSet([NAME], task)
    grey = torch.zeros(2, 3, 4, 4)
    red = torch.stack([torch.ones(2, 4, 4), -torch.ones(2, 4, 4), -torch.ones(2, 4, 4)], dim=1)
    black = -torch.ones(1, 3, 4, 4)
    for first, images in ((0, grey), (2, red[:1]), (3, black)):
        metrics.add(range(first, first + len(images)), images)
    (row,) = metrics.rows()
    assert (row.value, row.num_samples) == (0.25, 4)
    assert row.interval_low is not None
    assert row.interval_low < 0.25


def test_it_is_evaluated_and_not_again_and_has_a_column(
    example: ModuleType, random_run: Callable[..., LoadedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = random_run("routing=dense").run_dir.path
    command = ["evaluate", str(folder), "--metrics", f"{NAME},frechet-shapes", *FEW]
    assert run(command) == 0
    head, line, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[-1] == "saturation"
    assert line.rstrip().endswith("%)")
    assert run(command) == 0
    assert f"{NAME}, frechet-shapes recorded already." in capsys.readouterr().err
    recorded = [row["metric"] for row in read_jsonl(folder / "evals.jsonl").rows]
    assert recorded.count(NAME) == 1


@pytest.fixture
def scored(example: ModuleType, random_run: Callable[..., LoadedRun], capsys: pytest.CaptureFixture[str]) -> Path:
    """A dense and a routed run with the new metric."""
    folders = [random_run(f"routing={name}").run_dir.path for name in ("dense", "expert_choice")]
    assert run(["evaluate", *map(str, folders), "--metrics", NAME, *FEW]) == 0
    capsys.readouterr()
    return folders[0].parent


def test_it_is_compared_exported_and_drawn(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = load_records([scored])
    values = records.evals[records.evals["metric"] == NAME].set_index("run")["value"]
    comparison = compare(records)
    assert comparison.arms[f"evals.{NAME}"].to_list() == pytest.approx(values[run_table(records)["run"]].to_list())
    assert any(note.startswith(f"{NAME}: 4 images, EMA weights") for note in comparison.notes)
    out = tmp_path / "out"
    assert run(["compare-routing", str(scored), "--out", str(out)]) == 0
    assert "saturation" in capsys.readouterr().out.splitlines()[0]
    assert "saturation" in (out / "comparison.md").read_text()
    assert run(["plot", "image-quality", str(scored), "--out", str(out)]) == 0
    assert NAME in (out / "image-quality.csv").read_text()
    assert "Mean saturation" in (out / "image-quality.svg").read_text()
    assert run(["export", str(scored), "--out", str(out / "runs"), "--json"]) == 0
    printed = capsys.readouterr().out
    exported = json.loads(printed[printed.index("{") :])
    assert f"evals.ema.{NAME}" in exported["columns"]
    assert all(f"evals.{NAME}@2 (EMA)" in row for row in exported["runs"])


def test_training_measures_it_and_the_figure_over_training_draws_it(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    settings = [
        "model=nano", "routing=dense", "data.image_size=16", "train.images=64", "train.batch_images=16",
        "eval.every_images=32", "eval.images=16", "eval.metric_images=4", "eval.sample_steps=1",
    ]  # fmt: skip
    assert run(["train", *settings, "--run-dir", str(folder)]) == 0
    rows = [row for row in read_jsonl(folder / "evals.jsonl").rows if row["metric"] == NAME]
    assert [row["images_seen"] for row in rows] == [32, 64]
    assert all(row["while_training"] for row in rows)
    assert run(["plot", "quality-over-training", str(folder), "--out", str(out)]) == 0
    assert NAME in (out / "quality-over-training.csv").read_text()


class Undeclared(SampledMetric):
    """Answers a row that its row in the registry does not name."""

    def __init__(self, task: MetricTask) -> None:
        pass

    def add(self, batch: LabelledBatch) -> None:
        pass

    def rows(self, base):  # type: ignore[no-untyped-def]
        return [base.model_copy(update={"metric": "other"})]


class Unfinished(SampledMetric):
    """Lacks `add` and `rows`."""

    def __init__(self, task: MetricTask) -> None:
        pass


VALUES = (RecordedValue("new"),)


def test_a_row_that_is_not_declared_is_refused(task: MetricTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "new", MetricRow("new", VALUES, Undeclared))
    with pytest.raises(ConfigError, match=r"metric 'new' records 'other', which is none of its values \(new\)\."):
        MetricSet(["new"], task).rows()


class OfNetwork(Undeclared):
    """Says which network it has in what it loads, and nowhere else."""

    @classmethod
    def load(cls, files: UserFiles) -> SimpleNamespace:
        return SimpleNamespace(settings={"network_sha256": "a" * 12})

    def rows(self, base: EvalRow) -> list[EvalRow]:
        return [base.model_copy(update={"metric": "new"})]


def test_the_settings_of_a_network_are_recorded_and_compared_without_more_words(
    task: MetricTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = MetricRow("new", VALUES, OfNetwork, needs_files=("--clip-model",))
    monkeypatch.setitem(METRICS, "new", row)
    loaded = replace(task, resources=load_resources(["new"], UserFiles()))
    (measured,) = MetricSet(["new"], loaded).rows()
    assert measured.settings == {**task.base.settings, "network_sha256": "a" * 12}
    assert OfNetwork.recorded_under(row, loaded)["new"].settings == measured.settings


def test_a_network_of_the_user_that_no_setting_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "new", MetricRow("new", VALUES, Undeclared, needs_files=("--clip-model",)))
    with pytest.raises(ConfigError, match="'new' reads --clip-model, and what its `load` returns has no `settings`"):
        load_resources(["new"], UserFiles())


class Broken(SampledMetric):
    """Raises an exception where `place` says so."""

    place = ""

    @classmethod
    def load(cls, files: UserFiles) -> None:
        cls._fail("load")

    def __init__(self, task: MetricTask) -> None:
        self._fail("begin")

    @classmethod
    def _fail(cls, place: str) -> None:
        if cls.place == place:
            raise KeyError(place)

    def add(self, batch: LabelledBatch) -> None:
        self._fail("add")

    def rows(self, base):  # type: ignore[no-untyped-def]
        self._fail("rows")
        return []


@pytest.mark.parametrize("place", ["load", "begin", "add", "rows"])
def test_an_exception_of_a_plugin_is_one_line_that_names_it(
    place: str, task: MetricTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "new", MetricRow("new", VALUES, Broken))
    monkeypatch.setitem(SOURCES, ("metric", "new"), PluginSource("plugin new.py", __file__))
    monkeypatch.setattr(Broken, "place", place)

    def measure() -> None:
        load_resources(["new"], UserFiles())
        metrics = MetricSet(["new"], task)
        metrics.add(range(1), torch.zeros(1, 3, 4, 4))
        metrics.rows()

    with pytest.raises(PluginError) as refusal:
        measure()
    assert re.fullmatch(
        rf"plugin new\.py: metric 'new' failed: line \d+: KeyError: '{place}'\. Correct the plugin\.",
        str(refusal.value),
    )


@pytest.mark.parametrize(
    ("implementation", "message"),
    [
        (Unfinished, "Unfinished, which measures 'new', lacks add."),
        (dict, "the implementation of metric 'new' is <class 'dict'>, which is no SampledMetric."),
        ("experiments.evaluation.score:None_", "which is no SampledMetric."),
    ],
)
def test_a_class_that_is_no_metric_is_refused_by_name(implementation: str | type, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        implementation_of(MetricRow("new", VALUES, implementation))
    assert message in str(caught.value)


def test_needs_of_the_row_become_errors(random_run: Callable[..., LoadedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    row = MetricRow("new", VALUES, Undeclared, while_training=True, min_images=8, min_image_size=64)
    monkeypatch.setitem(METRICS, "new", row)
    with pytest.raises(ConfigError, match=r"eval\.metric_images=4 is too few: new needs at least 8 images\."):
        load_config(["eval.metric_images=4"])
    with pytest.raises(ConfigError, match=r"data\.image_size=32: new needs at least 64 pixels\."):
        load_config(["eval.metric_images=8"])
    with pytest.raises(ConfigError, match="cannot be measured while training: it needs routed layers"):
        MetricRow("new", VALUES, Undeclared, while_training=True, needs_routed_layers=True)
