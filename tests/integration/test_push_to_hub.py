"""`ecdit export-weights --push-to-hub`: by the real client, over HTTP, to a Hub on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ecdit_cli.app import run
from experiments.records.run_folder import RunDir
from tests.small_hub import USER, WRITE_TOKEN, serve_hub
from tests.training_runs import ecdit, random_run_folder

pytest.importorskip("huggingface_hub", reason="the extra ecdit[hub] is not installed")
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return random_run_folder(tmp_path_factory.mktemp("push") / "run", "routing=expert_choice", "data.image_size=16")


def push(trained: RunDir, out: Path, name: str, address: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Pushes in a process that is forked without the client, which reads its environment when it is imported."""
    told = {
        "HF_ENDPOINT": address, "HF_HOME": str(out.parent / "home"), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": WRITE_TOKEN, **settings,
    }  # fmt: skip
    return ecdit(["export-weights", trained.path, out, "--push-to-hub", name, "--json"], **told)


@pytest.mark.slow
@pytest.mark.multi
@pytest.mark.parametrize("name", ["nano-experts", "some/nano-experts"])
def test_every_file_arrives_in_a_private_repository(name: str, trained: RunDir, tmp_path: Path) -> None:
    whole = name if "/" in name else f"{USER}/{name}"
    (tmp_path / "hub").mkdir()
    with serve_hub(tmp_path / "hub") as (address, asked):
        for attempt in ("first", "again"):  # the second time the repository is there
            done = push(trained, tmp_path / attempt, name, address)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["hub"] == f"{address}/{whole}"
            arrived = {file.name: file.read_bytes() for file in (tmp_path / "hub" / "models" / whole).iterdir()}
            assert arrived == {file.name: file.read_bytes() for file in (tmp_path / attempt).iterdir()}
            assert {"README.md", "model.json", "model.safetensors"} == set(arrived)
    assert "it/s" not in done.stderr  # no bars in a log
    assert WRITE_TOKEN not in done.stderr + done.stdout
    assert [each for each in asked if each.startswith("CREATED")] == [f"CREATED {whole} private"]


@pytest.mark.slow
@pytest.mark.multi
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"HF_TOKEN": "hf_other"}, "401 Unauthorized"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused"),
        ({"HF_HUB_OFFLINE": "1"}, "offline mode is enabled"),
    ],
)
def test_what_the_hub_refuses_is_one_line_and_the_folder_stays(
    settings: dict[str, str], reason: str, trained: RunDir, tmp_path: Path
) -> None:
    (tmp_path / "hub").mkdir()
    out = tmp_path / "out"
    with serve_hub(tmp_path / "hub") as (address, _):
        done = push(trained, out, "mine", address, **settings)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: --push-to-hub mine failed: ")
    assert reason in last
    assert last.endswith(f"The weights are whole in {out}: upload them with: hf upload mine {out}")
    assert "Traceback" not in done.stderr
    assert run(["sample", str(out), "a circle", "--steps", "1", "--grid", str(tmp_path / "grid.png")]) == 0


@pytest.mark.parametrize("name", ["a/b/c", "../up", "-x", "a--b", "", "a b", "x\x1b[2J"])
def test_a_name_that_no_repository_can_have_is_refused_first(
    name: str, trained: RunDir, tmp_path: Path, capsys: Captured
) -> None:
    assert run(["export-weights", str(trained.path), str(tmp_path / "out"), "--push-to-hub", name]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "is no name of a repository. Write OWNER/NAME, or NAME for one of your own." in line
    assert "\x1b" not in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("token", [None, "", " "])
def test_without_a_token_nothing_is_exported(
    token: str | None, trained: RunDir, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    assert run(["export-weights", str(trained.path), str(tmp_path / "out"), "--push-to-hub", "mine"]) == 2
    assert "--push-to-hub mine needs a token that may write. Set it as HF_TOKEN." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_the_package_the_extra_is_named(
    trained: RunDir, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", None)
    assert run(["export-weights", str(trained.path), str(tmp_path / "out"), "--push-to-hub", "mine"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "Install what it needs with: pip install 'ecdit[hub]'." in line
    assert not (tmp_path / "out").exists()
