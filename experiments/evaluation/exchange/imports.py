"""Turns results of GenEval's and DSG's own programs into rows of `evals.jsonl`.

GenEval (Ghosh et al. 2023) writes `results.jsonl` with one image a line: 'geneval/<tag>' is the share of correct images
of a task and 'geneval' the mean over the tasks, as in its summary_scores.py. DSG (Cho et al. 2024) writes a table with
one question a row. The score of an item is the share of its questions that are answered yes and whose parent questions
are, too; 'dsg' is the mean over all items and 'dsg/<category>' over the items of one source, as in its
t2i_eval_dsg1k.py. Values are shares, 0 to 1. `image_folders.py` writes what these programs read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.errors import ConfigError
from experiments.evaluation.exchange.table_files import Row, rows_of, value_of
from experiments.evaluation.metrics.intervals import mean_interval, normal_interval, wilson
from experiments.records.record_types import EvalRow

DSG_CATEGORIES = {
    "tifa": "tifa", "stanford": "paragraph", "localized": "paragraph", "countbench": "count", "vrd": "relation",
    "diffusion": "real_user", "midjourney": "real_user", "posescript": "pose", "whoops": "defying", "drawtext": "text",
}  # fmt: skip
"""The beginnings of the item_ids of DSG-1k, and the categories of their prompts."""

MAX_DIGITS = 18
"""The most digits of the number of a question."""

NORMALIZED = " \t\r\n.,?!"
"""The characters that DSG strips from the answer of a language model."""

Interval = tuple[float | None, float | None]


def geneval_rows(path: Path, base: EvalRow) -> list[EvalRow]:
    """Returns 'geneval' and then each 'geneval/<tag>' in the order of the file; the rest of each row is `base`'s.

    Images are taken as independent, also those of one prompt. Raises `ConfigError` that names the line that is not as
    expected.
    """
    counts: dict[str, list[bool]] = {}
    for row in rows_of(path):
        tag = value_of(row, "tag", str, "the name of a task")
        counts.setdefault(tag, []).append(value_of(row, "correct", bool, "true or false"))
    if not counts:
        raise ConfigError(f"{path} holds no result.", "Expected the results.jsonl of GenEval's evaluate_images.py.")
    tasks = {tag: (sum(correct), len(correct)) for tag, correct in counts.items()}
    overall = fmean(successes / total for successes, total in tasks.values())
    num_images = sum(total for _, total in tasks.values())
    return [
        _row(base, "geneval", overall, mean_interval(list(tasks.values())), num_images),
        *(_row(base, f"geneval/{tag}", s / total, wilson(s, total), total) for tag, (s, total) in tasks.items()),
    ]


def dsg_rows(path: Path, base: EvalRow) -> list[EvalRow]:
    """Returns 'dsg' and then each 'dsg/<category>' in the order of the file; the rest of each row is `base`'s.

    The columns are item_id, question_id, dependency_id ('0' or '1,2') and answer; a file that also has t2i_model or
    qg_model must hold one model's images and DSG's own questions. Raises `ConfigError` that names the line that is not
    as expected.
    """
    items: dict[str, dict[int, Question]] = {}
    models: set[str] = set()
    for row in rows_of(path):
        _check_source(row, models)
        item_id = value_of(row, "item_id", str, "the name of an item")
        question_id = _number(row, "question_id")
        if question_id in items.setdefault(item_id, {}):
            raise ConfigError(f"{row[0]}: question {question_id} of {item_id!r} is there twice.")
        items[item_id][question_id] = _question(row)
    if not items:
        raise ConfigError(f"{path} holds no answer.", "Expected DSG's table of answers, one question a row.")
    scores: dict[str, list[float]] = {}
    for item_id, questions in items.items():
        scores.setdefault(_category(item_id), []).append(_item_score(item_id, questions))
    return [
        _mean_row(base, "dsg", list(chain.from_iterable(scores.values()))),
        *(_mean_row(base, f"dsg/{category}", values) for category, values in scores.items()),
    ]


@dataclass(frozen=True)
class Question:
    """One answer. `parents` is None where the annotation of what the question depends on is no list of numbers."""

    where: str
    is_yes: bool
    parents: tuple[int, ...] | None


def _check_source(row: Row, models: set[str]) -> None:
    """Raises `ConfigError` unless all rows are of one model and of DSG's questions; `models` are the names so far."""
    where, values = row
    models.add(str(values.get("t2i_model", "")))
    if len(models) > 1:
        raise ConfigError(f"{where}: expected one t2i_model, found {' and '.join(sorted(models))}.", "Split the file.")
    if values.get("qg_model", "dsg") != "dsg":
        raise ConfigError(f"{where}: expected questions of 'dsg' in 'qg_model', found {values['qg_model']!r}.")


def _question(row: Row) -> Question:
    answer = value_of(row, "answer", str, "an answer")
    return Question(row[0], answer.strip(NORMALIZED).lower() == "yes", _parents(row))


def _parents(row: Row) -> tuple[int, ...] | None:
    """Returns the questions that must be answered yes first; 0 in the file stands for none."""
    named = row[1].get("dependency_id")
    if named is None or named == "":
        raise ConfigError(f"{row[0]}: expected '0' or the ids of questions, as '1,2', in 'dependency_id'.")
    parts = [str(part).strip() for part in (named if isinstance(named, list) else str(named).split(","))]
    if not all(_is_whole(part) for part in parts):
        return None  # DSG-1k has eight items like '5, background'; DSG's script then ignores the item's dependencies
    return tuple(int(part) for part in parts if int(part) != 0)


def _number(row: Row, column: str) -> int:
    value = row[1].get(column)
    if isinstance(value, bool) or not _is_whole(str(value).strip()):
        raise ConfigError(f"{row[0]}: expected a number in {column!r}, found {value!r}.")
    return int(str(value))


def _is_whole(text: str) -> bool:
    """Returns whether `text` is the number of a question."""
    return text.isdecimal() and len(text) <= MAX_DIGITS


def _item_score(item_id: str, questions: dict[int, Question]) -> float:
    """Returns the share of the questions that are answered yes and whose parents are all answered yes."""
    heed = all(question.parents is not None for question in questions.values())
    valid = 0
    for question in questions.values():
        parents = (question.parents or ()) if heed else ()
        unknown = [parent for parent in parents if parent not in questions]
        if unknown:
            raise ConfigError(f"{question.where}: {item_id!r} has no question {unknown[0]}, on which this one depends.")
        valid += question.is_yes and all(questions[parent].is_yes for parent in parents)
    return valid / len(questions)


def _category(item_id: str) -> str:
    """Returns the category of DSG-1k, or else what stands before the number: 'custom' of 'custom_12'."""
    known = [category for begin, category in DSG_CATEGORIES.items() if item_id.startswith(begin)]
    return known[0] if known else item_id.rpartition("_")[0] or item_id


def _mean_row(base: EvalRow, metric: str, values: Sequence[float]) -> EvalRow:
    """Returns the row of the mean over items, which are independent."""
    return _row(base, metric, fmean(values), normal_interval(values, 0.0, 1.0), len(values))


def _row(base: EvalRow, metric: str, value: float, interval: Interval, num_samples: int) -> EvalRow:
    low, high = interval
    changed: dict[str, Any] = {"metric": metric, "value": value, "interval_low": low, "interval_high": high}
    return EvalRow(**base.model_dump() | changed | {"num_samples": num_samples})
