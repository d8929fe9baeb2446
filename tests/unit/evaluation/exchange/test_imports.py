"""Scores of GenEval and DSG are those of their own summaries, worked out by hand on small files."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.errors import ConfigError
from experiments.evaluation.exchange.imports import dsg_rows, geneval_rows
from experiments.evaluation.metrics.intervals import mean_interval, wilson
from experiments.records.record_types import EvalRow

BASE = EvalRow(images_seen=5, metric="", value=0, num_samples=1, seed=3, weights="ema", settings={"guidance": 2.0})
COLUMNS = ["dsg_prompt_split", "qg_model", "t2i_model", "item_id", "question", "question_id", "dependency_id", "answer"]


def geneval_file(path, *results):
    lines = [json.dumps({"filename": "0.png", "tag": tag, "correct": correct}) for tag, correct in results]
    path.write_text("\n".join(lines) + "\n")
    return path


def dsg_file(path, *answers, model="sd2dot1", questions="dsg"):
    """Answers are (item_id, question_id, dependency_id, answer)."""
    rows = [
        ["split", questions, model, item, "Is it?", str(n), f'"{needs}"', answer] for item, n, needs, answer in answers
    ]
    path.write_text("\n".join(",".join(row) for row in [COLUMNS, *rows]) + "\n")
    return path


def by_metric(rows):
    return {row.metric: row for row in rows}


def values(rows):
    return {row.metric: row.value for row in rows}


def test_geneval_is_the_mean_over_tasks_and_not_over_images(tmp_path):
    path = geneval_file(tmp_path / "results.jsonl", ("colors", True), ("position", False), *[("colors", False)] * 3)
    assert values(geneval_rows(path, BASE)) == {
        "geneval": pytest.approx(0.125), "geneval/colors": 0.25, "geneval/position": 0.0
    }  # fmt: skip


def test_rows_have_their_intervals_counts_and_what_the_base_says(tmp_path):
    path = geneval_file(tmp_path / "results.jsonl", ("colors", True), ("position", False), *[("colors", False)] * 3)
    rows = by_metric(geneval_rows(path, BASE))
    assert (rows["geneval/colors"].interval_low, rows["geneval/colors"].interval_high) == wilson(1, 4)
    assert (rows["geneval"].interval_low, rows["geneval"].interval_high) == mean_interval([(1, 4), (0, 1)])
    assert [rows[name].num_samples for name in ("geneval", "geneval/colors", "geneval/position")] == [5, 4, 1]
    assert all((row.images_seen, row.seed, row.weights, row.settings) == (5, 3, "ema", {"guidance": 2.0})
               for row in rows.values())  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"tag": "colors", "correct": true}\n{"tag": "colors"}', "line 2: expected true or false in 'correct'"),
        ('{"tag": "colors", "correct": "yes"}', "line 1: expected true or false in 'correct', found 'yes'"),
        ('\n\n{"correct": true}', "line 3: expected the name of a task in 'tag'"),
        ('{"tag": "colors", "corr', "line 1: expected JSON"),
        ("", "holds no result"),
    ],
)
def test_damaged_results_of_geneval_are_refused_by_line(tmp_path, text, error):
    (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=error):
        geneval_rows(tmp_path / "results.jsonl", BASE)


def test_a_question_counts_only_if_its_parents_were_answered_yes(tmp_path):
    path = dsg_file(
        tmp_path / "vqa.csv",
        ("vrd_1", 1, "0", "yes"), ("vrd_1", 2, "0", "no"), ("vrd_1", 3, "1", "yes"), ("vrd_1", 4, "1,2", "yes"),
    )  # fmt: skip
    assert values(dsg_rows(path, BASE))["dsg"] == 0.5


def test_what_a_parent_answered_counts_and_not_whether_it_counted(tmp_path):
    path = dsg_file(tmp_path / "vqa.csv", ("vrd_1", 1, "0", "no"), ("vrd_1", 2, "1", "yes"), ("vrd_1", 3, "2", "yes"))
    assert values(dsg_rows(path, BASE))["dsg"] == pytest.approx(1 / 3)


def test_dsg_is_the_mean_over_items_and_by_the_source_of_the_prompt(tmp_path):
    path = dsg_file(
        tmp_path / "vqa.csv",
        ("tifa160_0", 1, "0", "yes"), ("tifa160_0", 2, "0", "no"), ("stanford_paragraph_3", 1, "0", "yes"),
        ("localized_narratives_4", 1, "0", "no"), ("custom_7", 1, "0", "Yes."),
    )  # fmt: skip
    rows = dsg_rows(path, BASE)
    assert values(rows) == {"dsg": 0.625, "dsg/tifa": 0.5, "dsg/paragraph": 0.5, "dsg/custom": 1.0}
    assert [row.num_samples for row in rows] == [4, 1, 2, 1]
    assert rows[0].interval_low == pytest.approx(0.625 - 1.959964 * (0.6875 / 3) ** 0.5 / 2)
    assert rows[1].interval_low is None


def test_an_item_with_a_dependency_in_words_is_scored_without_dependencies(tmp_path):
    path = dsg_file(
        tmp_path / "vqa.csv", ("vrd_1", 1, "0", "no"), ("vrd_1", 2, "1", "yes"), ("vrd_1", 3, "1, air", "no")
    )
    assert values(dsg_rows(path, BASE))["dsg"] == pytest.approx(1 / 3)


def test_json_is_read_as_the_table_is(tmp_path):
    answers = [("vrd_1", 1, 0, "no"), ("vrd_1", 2, [1], "yes"), ("vrd_2", 1, [], "yes")]
    entries = [dict(zip(COLUMNS[3:4] + COLUMNS[5:], answer, strict=True)) for answer in answers]
    (tmp_path / "vqa.json").write_text(json.dumps(entries))
    (tmp_path / "vqa.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert dsg_rows(tmp_path / "vqa.json", BASE) == dsg_rows(tmp_path / "vqa.jsonl", BASE)
    assert values(dsg_rows(tmp_path / "vqa.json", BASE)) == {"dsg": 0.5, "dsg/relation": 0.5}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (("vrd_1", 1, "0", "no"), "line 3: question 1 of 'vrd_1' is there twice"),
        (("vrd_1", 2, "7", "no"), "line 3: 'vrd_1' has no question 7, on which this one depends"),
        (("vrd_1", "x", "0", "no"), "line 3: expected a number in 'question_id', found 'x'"),
        (("vrd_1", 2, "", "no"), "line 3: expected '0' or the ids of questions.*'dependency_id'"),
    ],
)
def test_damaged_answers_of_dsg_are_refused_by_line(tmp_path, answer, error):
    with pytest.raises(ConfigError, match=error):
        dsg_rows(dsg_file(tmp_path / "vqa.csv", ("vrd_1", 1, "0", "yes"), answer), BASE)


def test_answers_for_two_models_or_other_questions_are_refused(tmp_path):
    path = dsg_file(tmp_path / "vqa.csv", ("vrd_1", 1, "0", "yes"))
    path.write_text(path.read_text() + path.read_text().splitlines()[1].replace("sd2dot1", "sd1dot5") + "\n")
    with pytest.raises(ConfigError, match="line 3: expected one t2i_model, found sd1dot5 and sd2dot1"):
        dsg_rows(path, BASE)
    with pytest.raises(ConfigError, match="line 2: expected questions of 'dsg' in 'qg_model', found 'tifa'"):
        dsg_rows(dsg_file(tmp_path / "tifa.csv", ("vrd_1", 1, "0", "yes"), questions="tifa"), BASE)


def test_other_files_and_empty_ones_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no answer"):
        dsg_rows(dsg_file(tmp_path / "vqa.csv"), BASE)
    (tmp_path / "prompts.csv").write_text("item_id,question_id,dependency_id\nvrd_1,1,0\n")
    with pytest.raises(ConfigError, match="expected an answer in 'answer', found nothing"):
        dsg_rows(tmp_path / "prompts.csv", BASE)
    with pytest.raises(ConfigError, match=r"what kind of table .*vqa\.xlsx"):
        dsg_rows(tmp_path / "vqa.xlsx", BASE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"tag": "a", "tag": "b", "correct": true}', "line 1: expected JSON, the key 'tag' is there twice"),
        ('{"tag": "a\\ud800", "correct": true}', "line 1: expected JSON, "),
        ("[" * 100_000, "line 1: expected JSON, recursion limit"),
        ('{"tag": "a", "correct": "true"}', "line 1: expected true or false in 'correct', found 'true'"),
        ('{"tag": "a", "correct": NaN}', "line 1: expected JSON, "),
        ("", "holds no result"),
    ],
)
def test_hostile_results_are_one_line(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(content)
    with pytest.raises(ConfigError) as raised:
        geneval_rows(file, BASE)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_results_that_are_no_file_are_one_line_and_never_block(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "results.jsonl")
    with pytest.raises(ConfigError, match=r"cannot read .*results\.jsonl: it is a "):
        geneval_rows(tmp_path / "results.jsonl", BASE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("item_id,item_id,question_id,dependency_id,answer\n", "line 1: the column 'item_id' is there twice"),
        (f"item_id,question_id,dependency_id,answer\na,{'9' * 5000},0,yes\n", "expected a number in 'question_id'"),
    ],
)
def test_hostile_answers_are_one_line(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "answers.csv"
    file.write_text(content)
    with pytest.raises(ConfigError) as raised:
        dsg_rows(file, BASE)
    assert said in str(raised.value)
