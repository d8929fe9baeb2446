"""A router of a plugin is trained, swept, compared, plotted and sampled like ours, and never under another source."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.plugins.loading import VARIABLE
from experiments.records.run_folder import RunDir
from tests.preloaded import ECDIT
from tests.training_runs import TIMEOUT_SECONDS, TINY, ecdit, environment
from tests.two_nodes import start_together

pytestmark = [pytest.mark.slow, pytest.mark.multi]

EXAMPLE = Path(__file__).parents[2] / "docs" / "how-to" / "examples" / "stripes.py"
SHORT = (
    *TINY, "train.images=32", "train.batch_images=8", "eval.every_images=16", "eval.sample_steps=2",
    "checkpoint.every_images=16",
)  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], exit_code: int = 2) -> str:
    """What is said in the one line of an error."""
    assert done.returncode == exit_code, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert "Traceback" not in done.stderr
    return line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the example, a sweep of it and of dense, and the runs of that sweep."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "stripes.py").write_text(EXAMPLE.read_text())
    settings = dict(word.split("=") for word in SHORT)
    parameters = {key: {"value": value} for key, value in settings.items() if not key.startswith("wandb")}
    parameters |= {"routing.name": {"values": ["dense", "stripes"]}, "wandb.mode": {"value": "disabled"}}
    spec = {"program": "ecdit", "method": "grid", "parameters": parameters}
    (folder / "sweep.yaml").write_text(json.dumps(spec))
    words = ["sweep", "sweep.yaml", "--out", "runs", "--no-calibration", "--slots", "1", "--plugin", "stripes.py"]
    done = subprocess.run(
        [sys.executable, "-m", "ecdit_cli", *words],
        capture_output=True, text=True, cwd=folder, env=environment(), timeout=TIMEOUT_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def run_of(folder: Path) -> RunDir:
    (run,) = (path for path in (folder / "runs" / "runs").iterdir() if "stripes" in path.name)
    return RunDir(run)


def test_the_worker_of_a_sweep_trains_it_and_its_record_names_its_source(folder: Path) -> None:
    record = run_of(folder).read_run()
    assert record.plugins is not None
    (plugin,) = record.plugins
    assert (plugin.kind, plugin.name) == ("router", "stripes")
    assert (
        plugin.sha256
        == subprocess.run(["sha256sum", EXAMPLE], capture_output=True, text=True, check=True).stdout.split()[0]
    )
    assert plugin.source == f"plugin {(folder / 'stripes.py').resolve()}"
    (dense,) = (path for path in (folder / "runs" / "runs").iterdir() if "dense" in path.name)
    assert "plugins" not in json.loads(RunDir(dense).run_json.read_text())


@pytest.mark.parametrize(("words", "label"), [(["--plugin", "stripes.py"], "Stripes"), ([], "stripes")])
def test_it_is_compared_and_plotted_with_its_label_or_without_the_plugin_by_its_name(
    words: list[str], label: str, folder: Path
) -> None:
    out = folder / f"compared {label}"
    done = ecdit([*words, "compare-routing", "runs", "--out", out, "--json"], folder)
    assert done.returncode == 0, done.stderr
    assert [row["arm"] for row in json.loads(done.stdout)] == ["Dense (same depth)", label]
    done = ecdit(["plot", "routing", "runs", "--out", out, *words], folder)
    assert done.returncode == 0, done.stderr
    with (out / "routing.csv").open() as file:
        assert label in {row["arm"] for row in csv.DictReader(file)}


def test_it_is_sampled_with_its_plugin_alone(folder: Path) -> None:
    run = run_of(folder)
    words = ["sample", run.path, "a red circle", "--steps", "2"]
    assert ecdit([*words, "--plugin", "stripes.py"], folder).returncode == 0
    assert ecdit(words, folder, **{VARIABLE: str(folder / "stripes.py")}).returncode == 0
    said = refused(ecdit(words, folder))
    assert "the router 'stripes' of this run is a plugin that is not loaded. Give it with --plugin FILE.py" in said
    assert str(folder / "stripes.py") in said


CHANGED = "the router 'stripes' has changed since this run began: the SHA-256 of its source was "


@pytest.fixture(scope="module")
def other(folder: Path) -> Path:
    """Another version of the plugin."""
    path = folder / "changed" / "stripes.py"
    path.parent.mkdir()
    path.write_text(EXAMPLE.read_text() + "\n# another version\n")
    return path


@pytest.mark.parametrize("spec", ["sweep.yaml", "runs"])
def test_a_sweep_with_runs_of_another_version_is_refused(spec: str, folder: Path, other: Path) -> None:
    out = ["--out", "runs"] if spec == "sweep.yaml" else []
    for dry in ([], ["--dry-run"]):
        said = refused(ecdit(["sweep", spec, *out, "--no-calibration", "--plugin", other, *dry], folder))
        assert CHANGED in said
        assert str(other) in said


def test_a_run_of_another_version_is_not_sampled(folder: Path, other: Path) -> None:
    words = ["sample", run_of(folder).path, "a red circle", "--steps", "2", "--plugin", other]
    assert CHANGED in refused(ecdit(words, folder))


def test_a_run_goes_on_with_its_own_plugin_alone(folder: Path, other: Path) -> None:
    run = run_of(folder)
    (config,) = (folder / "runs").rglob(f"{run.path.name}*.yaml")
    train = ["train", "--config", config, "--run-dir", run.path]
    assert CHANGED in refused(ecdit([*train, "--plugin", other, "--dry-run"], folder))
    assert CHANGED in refused(ecdit([*train, "--plugin", other], folder))  # else it would say "finished already"
    state = json.loads(run.status_json.read_text())
    run.status_json.write_text(json.dumps(state | {"state": "interrupted"}))
    assert CHANGED in refused(ecdit([*train, "--plugin", other], folder))
    assert json.loads(run.status_json.read_text())["state"] == "interrupted"
    assert "routing.name='stripes' is not " in refused(ecdit(train, folder))
    assert ecdit([*train, "--plugin", "stripes.py"], folder).returncode == 0


def test_a_router_that_fails_later_ends_its_run_with_a_reason(folder: Path) -> None:
    path = folder / "late.py"
    source = EXAMPLE.read_text().replace(
        "        num_groups, size", "        if logits_GSE.requires_grad:\n            1 / 0\n        num_groups, size"
    )
    path.write_text(source)
    done = ecdit(["train", *SHORT, "routing=stripes", "--run-dir", "late", "--plugin", path], folder)
    said = refused(done, exit_code=1)
    line = source.splitlines().index("            1 / 0") + 1
    assert f"late.py: router 'stripes' failed: line {line}: ZeroDivisionError: division by zero." in said
    status = RunDir(folder / "late").read_status()
    assert status is not None
    assert status.state == "failed"
    assert "ZeroDivisionError" in str(status.reason)


def test_a_wrong_answer_leaves_no_folder(folder: Path) -> None:
    path = folder / "wrong.py"
    path.write_text(EXAMPLE.read_text().replace("return GroupDecision(token_GEC,", "return GroupDecision(token_EC,"))
    done = ecdit(["train", *SHORT, "routing=stripes", "--run-dir", "wrong", "--plugin", path], folder)
    assert "wrong.py: router 'stripes': decide answers token_GEC=int64 [4, 32], int64 [" in refused(done)
    assert not (folder / "wrong").exists()


def test_two_ranks_get_the_plugin(folder: Path) -> None:
    words = [*SHORT, "routing=stripes", "--run-dir", str(folder / "two"), "--plugin", str(folder / "stripes.py")]
    ended = start_together(ECDIT, "train", *words, "--no-progress", world=2).ends()
    assert [code for code, _ in ended] == [0, 0], ended
    record = RunDir(folder / "two").read_run()
    assert record.world == 2
    assert record.plugins is not None
    assert [plugin.name for plugin in record.plugins] == ["stripes"]
