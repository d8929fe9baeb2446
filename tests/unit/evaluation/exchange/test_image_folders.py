"""Prompts come from three kinds of files; folders are what GenEval's and DSG's programs look for, read as they do."""

import csv
import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.errors import ConfigError, OutputError, StorageError
from experiments.evaluation.exchange.image_folders import (
    Prompt,
    check_dsg_images,
    check_geneval_images,
    read_prompts,
    write_dsg_images,
    write_geneval_images,
)

GENEVAL = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a photo of a red dog"}


def write(path, text):
    path.write_text(text)
    return path


def image(level, count=1, size=8):
    """[S, C, H, W], all pixels of one level in [-1, 1]."""
    return torch.full((count, 3, size, size), float(level))


def metadata_of(tmp_path, caption):
    write_geneval_images(tmp_path / caption, [Prompt(caption)], [image(0)])
    return json.loads((tmp_path / caption / "00000" / "metadata.jsonl").read_text())


def test_plain_text_is_a_caption_on_each_line(tmp_path):
    path = write(tmp_path / "captions.txt", "a red circle\n\n  two blue squares \n")
    assert read_prompts(path) == [Prompt("a red circle"), Prompt("two blue squares")]


def test_a_line_of_plain_text_ends_where_files_end_lines_and_not_inside_a_caption(tmp_path):
    path = write(tmp_path / "captions.txt", "a cat\u2028on a\x0cmat\r\n\r\na dog\x85\ra bird")
    assert read_prompts(path) == [Prompt("a cat\u2028on a\x0cmat"), Prompt("a dog"), Prompt("a bird")]


def test_prompts_of_geneval_keep_their_metadata(tmp_path):
    path = write(tmp_path / "evaluation_metadata.jsonl", json.dumps(GENEVAL) + "\n")
    assert read_prompts(path) == [Prompt("a photo of a red dog", GENEVAL)]


@pytest.mark.parametrize(("ending", "mark"), [(".csv", ","), (".tsv", "\t")])
def test_questions_of_one_item_of_dsg_are_one_prompt(tmp_path, ending, mark):
    lines = [
        ["item_id", "text", "proposition_id"],
        ["vrd_5", "a cat", "1"],
        ["vrd_5", "a cat", "2"],
        ["vrd_9", "x", "1"],
    ]
    path = write(tmp_path / f"dsg{ending}", "\n".join(map(mark.join, lines)))
    assert read_prompts(path) == [Prompt("a cat", item_id="vrd_5"), Prompt("x", item_id="vrd_9")]


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.jsonl", json.dumps(GENEVAL) + "\n{\n", "a.jsonl, line 2: expected JSON"),
        ("a.jsonl", '\n{"prompt": "x", "include": []}', "line 2: expected the name of a task in 'tag', found nothing"),
        ("a.jsonl", '{"tag": "t", "include": [{"class": "dog"}], "prompt": "x"}', "line 1, include 0: .*'count'"),
        ("a.jsonl", '{"tag": "t", "include": [], "prompt": 3}', "expected a caption in 'prompt', found 3"),
        ("a.jsonl", "[1]", "line 1: expected a JSON object"),
        ("a.csv", "item_id,caption\nvrd_1,x\n", "a.csv, line 2: expected a caption in 'text'"),
        ("a.csv", "item_id,text\nvrd_1,x\nvrd_2\n", "a.csv, line 3: expected 2 columns"),
        ("a.csv", "item_id,text\nvrd_1,x\nvrd_1,y\n", "line 3: item 'vrd_1' has another text"),
        ("a.csv", "item_id,text\n../vrd_1,x\n", "line 2: expected an item_id of letters"),
        ("a.csv", 'item_id,text\nvrd_1,"x\n', "a.csv, line 2: unexpected end of data"),
        ("a.txt", "\n \n", "a.txt holds no prompt"),
        ("a.yaml", "x", "cannot tell what kind of prompts .*a.yaml"),
    ],
)
def test_files_that_are_not_prompts_are_refused_by_line(tmp_path, name, text, error):
    with pytest.raises(ConfigError, match=error):
        read_prompts(write(tmp_path / name, text))


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*no\.txt: no such file"):
        read_prompts(tmp_path / "no.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match=r"latin\.txt is not text in UTF-8: byte 3"):
        read_prompts(tmp_path / "latin.txt")


def test_geneval_finds_each_prompt_with_its_metadata_and_images(tmp_path):
    prompts = [Prompt("a photo of a red dog", GENEVAL), Prompt("a red circle")]
    write_geneval_images(tmp_path, prompts, iter([torch.cat([image(-1), image(1)]), image(0)]))
    found = {}
    for name in sorted(filter(str.isdigit, os.listdir(tmp_path))):  # the rest of this loop is what GenEval does
        metadata = json.loads((tmp_path / name / "metadata.jsonl").read_text())
        pictures = sorted((tmp_path / name / "samples").iterdir())
        assert all(re.match(r"\d+\.png", picture.name) for picture in pictures)
        found[name] = metadata["prompt"], [np.unique(Image.open(picture)).tolist() for picture in pictures]
    assert found == {"00000": ("a photo of a red dog", [[0], [255]]), "00001": ("a red circle", [[128]])}
    assert (tmp_path / "00000" / "samples" / "0001.png").is_file()


def test_captions_of_the_shapes_data_say_in_genevals_terms_what_they_assert(tmp_path):
    circle, square = {"class": "circle", "count": 1}, {"class": "square", "count": 1}
    assert metadata_of(tmp_path, "a circle") == {"tag": "single_object", "include": [circle], "prompt": "a circle"}
    assert metadata_of(tmp_path, "a circle and a square")["include"] == [circle, square]
    counting = metadata_of(tmp_path, "three red circles")
    assert counting["include"] == [{"class": "circle", "count": 3, "color": "red"}]
    assert (counting["tag"], counting["exclude"]) == ("counting", [{"class": "circle", "count": 4}])
    colors = metadata_of(tmp_path, "a red circle and a blue square")
    assert colors["tag"] == "color_attr"
    assert colors["include"] == [circle | {"color": "red"}, square | {"color": "blue"}]


def test_a_position_is_of_the_second_clause_to_the_first_as_in_geneval(tmp_path):
    metadata = metadata_of(tmp_path, "a red circle left of a blue square")
    assert metadata["tag"] == "position"
    assert metadata["include"] == [
        {"class": "square", "count": 1, "color": "blue"},
        {"class": "circle", "count": 1, "color": "red", "position": ["left of", 0]},
    ]


def test_a_prompt_that_geneval_cannot_judge_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"GenEval cannot judge 'a dog'.*evaluation_metadata\.jsonl"):
        write_geneval_images(tmp_path / "out", [Prompt("a circle"), Prompt("a dog")], [image(0), image(0)])
    assert not (tmp_path / "out").exists()


def test_dsg_finds_each_image_by_its_item_and_model(tmp_path):
    prompts = [Prompt("a cat, asleep", item_id="vrd_5"), Prompt("a dog")]
    write_dsg_images(tmp_path, prompts, iter([image(1)[0], image(-1)[0]]), model="micro")
    for item_id, level in (("vrd_5", 255), ("custom_1", 0)):
        assert np.unique(Image.open(tmp_path / "images" / f"{item_id}_micro.jpg").convert("RGB")).tolist() == [level]
    with (tmp_path / "prompts.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["item_id", "text"], ["vrd_5", "a cat, asleep"], ["custom_1", "a dog"]]


def test_images_left_from_another_export_are_refused_and_the_same_export_again_is_not(tmp_path):
    one, two = [Prompt("a circle")], [Prompt("a circle"), Prompt("a square")]
    write_geneval_images(tmp_path / "g", two, [image(0, count=2), image(0)])
    write_geneval_images(tmp_path / "g", two, [image(0, count=2), image(1)])
    with pytest.raises(ConfigError, match="holds 00001 of other images"):
        write_geneval_images(tmp_path / "g", one, [image(0, count=2)])
    with pytest.raises(ConfigError, match=r"holds 0001\.png of other images"):
        write_geneval_images(tmp_path / "g", two, [image(0), image(0)])
    write_dsg_images(tmp_path / "d", two, [image(0)[0], image(0)[0]])
    with pytest.raises(ConfigError, match=r"holds custom_1_ecdit\.jpg of other images"):
        write_dsg_images(tmp_path / "d", one, [image(0)[0]])


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    blocked = write(tmp_path / "file", "in the way")
    for export in (
        lambda: write_geneval_images(blocked / "out", [Prompt("a circle")], [image(0)]),
        lambda: write_dsg_images(blocked / "out", [Prompt("a circle")], [image(0)[0]]),
    ):
        with pytest.raises(StorageError, match=r"cannot write .*file.*: not a directory"):
            export()


def test_two_prompts_of_one_item_of_dsg_are_refused_and_neither_replaces_the_other(tmp_path):
    write_dsg_images(tmp_path / "old", [Prompt("a square")], [image(0)[0]])
    prompts = [Prompt("a circle"), *read_prompts(tmp_path / "old" / "prompts.csv")]
    for export in (
        lambda: check_dsg_images(tmp_path / "new", prompts),
        lambda: write_dsg_images(tmp_path / "new", prompts, [image(0)[0], image(1)[0]]),
    ):
        with pytest.raises(
            ConfigError, match=r"two of the captions would have the item_id 'custom_0' of DSG"
        ) as caught:
            export()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_check_before_sampling_refuses_what_writing_would_refuse(tmp_path):
    one, two = [Prompt("a circle")], [Prompt("a circle"), Prompt("a square")]
    check_geneval_images(tmp_path / "g", two, 2)
    check_dsg_images(tmp_path / "d", two)
    assert os.listdir(tmp_path) == []
    write_geneval_images(tmp_path / "g", two, [image(0, count=2), image(0, count=2)])
    write_dsg_images(tmp_path / "d", two, [image(0)[0], image(0)[0]])
    check_geneval_images(tmp_path / "g", two, 2)
    check_dsg_images(tmp_path / "d", two)
    with pytest.raises(ConfigError, match="GenEval cannot judge 'a dog'"):
        check_geneval_images(tmp_path / "g", [Prompt("a circle"), Prompt("a dog")], 2)
    with pytest.raises(ConfigError, match="holds 00001 of other images"):
        check_geneval_images(tmp_path / "g", one, 2)
    with pytest.raises(ConfigError, match=r"holds 0001\.png of other images"):
        check_geneval_images(tmp_path / "g", two, 1)
    with pytest.raises(ConfigError, match=r"holds custom_1_ecdit\.jpg of other images"):
        check_dsg_images(tmp_path / "d", one)
    for name in ("g/00001/samples/0001.png", "g/00000/metadata.jsonl"):
        write(tmp_path / name, "mine")
        with pytest.raises(OutputError, match=f"{name} is there already"):
            check_geneval_images(tmp_path / "g", two, 2)
    for name in ("d/prompts.csv", "d/images/custom_1_ecdit.jpg"):
        write(tmp_path / name, "mine")
        with pytest.raises(OutputError, match=f"{name} is there already"):
            check_dsg_images(tmp_path / "d", two)
