"""A run says which code, which versions and which machine made it."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from importlib import metadata

import pytest

from experiments.records.provenance import git_commit, host_name, utc_now, versions


@pytest.fixture
def repository(tmp_path):
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "code.py").write_text("x = 1\n")
    git("add", "code.py")
    git("commit", "--quiet", "--message", "first")
    return tmp_path, git("rev-parse", "HEAD")


def test_the_commit_says_whether_the_code_differs_from_it(repository):
    folder, commit = repository
    assert git_commit(folder) == commit
    (folder / "code.py").write_text("x = 2\n")
    assert git_commit(folder) == f"{commit}-dirty"


def test_a_hooks_environment_does_not_point_elsewhere(repository, tmp_path_factory, monkeypatch):
    folder, commit = repository
    monkeypatch.setenv("GIT_DIR", str(tmp_path_factory.mktemp("other")))
    assert git_commit(folder) == commit


def test_code_that_git_does_not_track_has_no_commit(repository, tmp_path_factory):
    folder, _ = repository
    installed = folder / "site-packages"
    installed.mkdir()
    (installed / "module.py").write_text("")
    assert git_commit(installed) is None
    assert git_commit(tmp_path_factory.mktemp("no-repository")) is None


def test_no_git_means_no_commit(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit(repository[0]) is None


def test_versions_are_those_installed():
    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"] == metadata.version("torch")
    assert found["ecdit"] == metadata.version("ecdit")


def test_time_and_host_are_of_now():
    first, second = utc_now(), utc_now()
    assert datetime.fromisoformat(first).utcoffset().total_seconds() == 0
    assert first < second
    assert host_name()


def test_records_are_free_of_torch_and_of_wandb():
    imports = "import sys, experiments.records.writer, experiments.records.provenance"
    code = f"{imports}; print('torch' in sys.modules, 'wandb' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.split() == ["False", "False"]
