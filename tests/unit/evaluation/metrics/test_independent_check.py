"""Pictures that the drawing code did not draw: they show every shape and colour, and an error in the drawing code."""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.data.scenes import objects as shapes
from experiments.data.scenes.scene import KINDS, draw_scenes, render_scenes
from experiments.errors import RunFailedError
from experiments.evaluation.metrics import judge as judging
from experiments.evaluation.metrics.independent_check import (
    FOLDER,
    independent_pictures,
    misread_pictures,
    require_all_read,
)
from experiments.evaluation.metrics.judge_check import Checked, check_judge
from tests import draw_independent_pictures as script

ROOT = Path(__file__).parents[4]


@pytest.fixture
def fresh_templates() -> Iterator[None]:
    """The judge draws its templates once; a test that changes the drawing code needs them drawn anew."""
    judging._bank.cache_clear()
    yield
    judging._bank.cache_clear()


def exchange(monkeypatch: pytest.MonkeyPatch, table: dict[str, object], one: str, other: str) -> None:
    first, second = table[one], table[other]
    monkeypatch.setitem(table, one, second)
    monkeypatch.setitem(table, other, first)


def last_row() -> Checked:
    return list(check_judge(2))[-1]


def test_every_shape_colour_and_kind_of_caption_is_shown() -> None:
    things = [thing for _, _, drawn in script.pictures() for thing in drawn]
    assert set(Counter(thing[1] for thing in things)) == set(shapes.SHAPES)
    assert min(Counter(thing[1] for thing in things).values()) >= 6
    assert set(Counter(thing[0] for thing in things)) == set(shapes.COLORS)
    assert min(Counter(thing[0] for thing in things).values()) >= 6
    assert {each.kind for each in independent_pictures().assertions} == set(KINDS)


def test_the_pictures_are_small_and_ship_with_the_package() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 100_000
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {path for pattern in package_data["experiments"] for path in (ROOT / "experiments").glob(pattern)}
    assert set(FOLDER.iterdir()) <= shipped


def test_the_script_draws_the_committed_pictures_and_knows_nothing_of_the_project() -> None:
    committed = independent_pictures()
    assert committed.captions == [caption for caption, _, _ in script.pictures()]
    for file, picture in zip(committed.files, script.pictures(), strict=True):
        with Image.open(FOLDER / file) as stored:
            difference = np.asarray(stored).astype(int) - np.asarray(script.draw(picture)).astype(int)
        assert np.abs(difference).max() <= 8, file  # another version of Pillow may round an edge otherwise
    tree = ast.parse(Path(script.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert not any((name or "").split(".")[0] in ("experiments", "tests", "analysis") for name in imported)


def test_the_judge_reads_all_of_them() -> None:
    pictures = independent_pictures()
    assert misread_pictures(pictures) == []
    require_all_read([], len(pictures.files))


@pytest.mark.usefixtures("fresh_templates")
@pytest.mark.parametrize(("one", "other"), [("circle", "square"), ("ring", "circle"), ("bar", "cross")])
def test_shapes_exchanged_in_the_drawing_code_fail_the_check(
    one: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange(monkeypatch, shapes.SHAPES, one, other)  # type: ignore[arg-type]
    *renders, independent = check_judge(8)
    assert all(each.agreement == 1.0 for each in renders if not each.noise)  # renders cannot show it
    assert independent.agreement < 0.8
    with pytest.raises(RunFailedError) as caught:
        require_all_read(independent.misread, independent.num_images)
    named = str(caught.value).partition("does not recognise: ")[2].partition(".")[0]
    assert set(named.split(", ")) == {one, other}


@pytest.mark.usefixtures("fresh_templates")
@pytest.mark.parametrize("shape", ["moon", "triangle", "heart"])
def test_a_shape_that_is_turned_round_fails_the_check(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = shapes.SHAPES[shape]
    monkeypatch.setitem(shapes.SHAPES, shape, lambda u, v: plain(-u, -v))
    assert {name for each in last_row().misread for name in each.missing_shapes} == {shape}


def test_colours_exchanged_in_the_drawing_code_fail_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    exchange(monkeypatch, shapes.COLORS, "red", "cyan")  # type: ignore[arg-type]
    misread = last_row().misread
    assert misread
    assert all("red" in each.caption or "cyan" in each.caption for each in misread)


def test_relations_exchanged_fail_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scene's caption and the judge ask one function what is left of what."""
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    true = judging.relation_between
    monkeypatch.setattr(judging, "relation_between", lambda one, other: opposite[true(one, other)])
    misread = last_row().misread
    assert {each.verdict.reason for each in misread} == {"relation"}
    assert len(misread) == 8


def test_the_pictures_are_not_renders_of_the_data() -> None:
    renders = render_scenes(draw_scenes(0, range(200), "validation"))
    for image in independent_pictures().images_BCHW.numpy():
        assert np.abs(renders - image).max(axis=(1, 2, 3)).min() > 0.2
