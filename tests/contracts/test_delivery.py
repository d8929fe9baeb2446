"""What is delivered and how: types, workflows that repeat no test, forms of issues that GitHub can read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PACKAGES = ("ecdit_cli", "sweeps", "analysis", "experiments")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
CI_TARGETS = {"setup", "docs", "lint", "browser-test", "test", "fuzz", "kernel-test", "slurm-test"}


def steps(workflow: Path) -> list[str]:
    """The shell commands of a workflow."""
    jobs: dict[str, Any] = yaml.safe_load(workflow.read_text())["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_say_that_they_are_typed_and_ship_it(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "py.typed" in setuptools["package-data"]["*"]


def test_ci_runs_every_target_of_tests_once() -> None:
    calls = re.findall(r"^make ([^#\n]+)", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)
    targets = [word for call in calls for word in call.split() if re.fullmatch(r"[a-z][a-z-]*", word)]
    assert sorted(targets) == sorted(CI_TARGETS)


def test_the_workflow_runs_the_same_and_no_test_twice() -> None:
    commands = "\n".join(steps(ROOT / ".github" / "workflows" / "ci.yml"))
    assert commands.count(".ci/run") == 1
    assert "make" not in commands
    assert "pytest" not in commands


def test_a_release_is_built_tried_and_only_then_published() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    assert jobs["try"]["needs"] == "build"
    assert jobs["publish"]["needs"] == "try"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    tried = next(
        step["run"] for step in jobs["try"]["steps"] if "ecdit" in step.get("run", "") and "--help" in step["run"]
    )
    for command in ("--help", "presets", "train model=nano --dry-run"):
        assert f"ecdit {command}" in tried


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_unless_it_says_otherwise(workflow: Path) -> None:
    assert yaml.safe_load(workflow.read_text())["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_a_form_of_issues_has_what_github_requires(form: Path) -> None:
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= set(content)
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) >= 3
    assert all(field["attributes"]["label"] for field in fields)


def test_there_is_a_form_for_bugs_features_and_routers() -> None:
    assert [form.stem for form in FORMS] == ["bug", "feature", "router"]


def test_broken_links_fail_the_site() -> None:
    recipe = re.search(r"^docs: setup\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert recipe is not None
    assert "--strict" in recipe[1]
    assert "--quiet" not in recipe[1].partition("mkdocs build")[2]  # it drops the warnings that --strict counts
    config = (ROOT / "docs" / "_generator" / "mkdocs.yml").read_text()
    validation = re.search(r"^validation:\n((?:  .*\n)+)", config, flags=re.MULTILINE)
    assert validation is not None
    assert set(yaml.safe_load(validation[1]).values()) == {"warn"}
