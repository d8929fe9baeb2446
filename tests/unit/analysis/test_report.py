"""The report: a whole page that loads nothing, with the numbers of the records, and the same in Markdown."""

from __future__ import annotations

import csv
import re
from base64 import b64decode
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from analysis.columns import Column
from analysis.figures.registry import FIGURES
from analysis.load_records import MissingDataError, Records, load_records
from analysis.report.document import Cell, Table, table
from analysis.report.laws import laws
from analysis.report.reproduction import reproduction_blocks
from analysis.report.run_rows import run_rows
from analysis.report.write import write_report
from analysis.run_table import run_table
from experiments.errors import RecordError, StorageError
from experiments.records.outputs import MARKS

VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """The elements of a page as (tag, attributes); fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report") / "report"


@pytest.fixture
def folder(kept: Path, request: pytest.FixtureRequest) -> Path:
    """The report of `study`, written once: drawing takes seconds."""
    if not kept.exists():
        write_report(request.getfixturevalue("study"), ["runs of <mine>"], kept, num_resamples=20)
    return kept


@pytest.fixture
def page(folder: Path) -> Page:
    return Page((folder / "index.html").read_text())


def test_the_files_are_named_and_there(write_arms: Callable[..., Path], tmp_path: Path) -> None:
    paths = write_report(load_records([write_arms(seeds=(0,))]), ["runs"], tmp_path / "report")
    assert [path.name for path in paths[:3]] == ["index.html", "report.md", "runs.csv"]
    assert all(path.stat().st_size > 0 for path in paths)
    written = {path for path in (tmp_path / "report").rglob("*") if path.is_file() and path.name != MARKS}
    assert written == set(paths)


def test_nothing_is_loaded_from_outside_the_page(folder: Path, page: Page) -> None:
    loaded = [*page.values("src"), *page.values("href"), *page.values("srcset"), *page.values("action")]
    assert loaded
    assert all(url.startswith(("data:", "#")) for url in loaded)
    text = (folder / "index.html").read_text()
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|https?:", text)


def test_links_within_resolve_and_names_are_unique(page: Page) -> None:
    names = page.values("id")
    assert len(names) == len(set(names))
    within = {url[1:] for url in page.values("href") if url.startswith("#")}
    assert within <= set(names)
    referred = set(page.values("aria-labelledby"))
    assert len(referred) >= 9
    assert referred <= set(names)


def test_every_figure_is_a_picture_with_an_accessible_name(page: Page) -> None:
    pictures = page.all("img")
    assert len(pictures) == len(page.all("figure")) >= 3
    assert len({picture["alt"] for picture in pictures}) == len(pictures)
    for picture in pictures:
        assert len(picture["alt"]) > 20
        svg = b64decode(picture["src"].removeprefix("data:image/svg+xml;base64,"))
        assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_figures_are_drawn_or_the_reason_is_given(folder: Path, page: Page) -> None:
    drawn = {name.removeprefix("figure-") for name in page.values("id") if name.startswith("figure-")}
    text = (folder / "report.md").read_text()
    for figure in FIGURES.values():
        assert (f"figures/{figure.name}.png" in text) == (figure.name in drawn)
        assert (f"- {figure.name}: " in text) == (figure.name not in drawn)


def test_every_table_has_a_caption_and_headers_to_press(page: Page) -> None:
    tables = page.all("table")
    assert {"run-table", "arm-table", "commands", "differences"} <= {each["id"] for each in tables}
    assert len(page.all("caption")) == len(tables)
    assert all(each["scope"] == "col" for each in page.all("th"))
    assert len(page.all("button")) == len(page.all("th"))


def test_tables_carry_the_numbers_of_the_records(study: Records, folder: Path, page: Page) -> None:
    runs = run_table(study)
    exact = {float(value) for value in page.values("data-value")}
    for column in ("val_loss", "params_total", "params_active", "train_seconds", "images_per_second", "train_loss"):
        assert {float(value) for value in runs[column]} <= exact
    assert f"{runs['val_loss'].iloc[0]:.4f}" in page.cells
    with (folder / "runs.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    expected = dict(zip(runs["name"], runs["val_loss"], strict=True))
    assert {name: float(row["val_loss"]) for name, row in rows.items()} == expected
    assert all(float(row["val_loss_std"]) == pytest.approx(0.001) for row in rows.values())


def test_markdown_says_the_same(folder: Path, page: Page) -> None:
    text = (folder / "report.md").read_text().replace("\\", "")
    assert page.cells
    assert all(" ".join(cell.split()) in text for cell in page.cells)
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    assert targets
    assert all((folder / target).is_file() for target in targets)
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) == set(re.findall(r'<a id="([^"]+)">', text))


def test_what_a_user_wrote_is_text_and_not_markup(folder: Path) -> None:
    text = (folder / "index.html").read_text()
    assert "&lt;mine&gt;" in text
    assert "<mine>" not in text


def test_what_was_left_out_is_counted_and_listed(
    write_arms: Callable[..., Path], write_run: Callable[..., object], tmp_path: Path
) -> None:
    runs = write_arms(seeds=(0, 1))
    write_run(runs / "broken", {"seed": 7}, lambda n: 0.1, state="failed", reason="loss is <nan>")
    write_report(load_records([runs]), ["x"], tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert "Left out: 1 entry" in text
    assert "failed at" in text
    assert "loss is &lt;nan&gt;" in text


def test_a_law_that_is_not_identified_is_refused_in_words(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert "The runs identify none of the laws." in text
    assert "it needs at least 4 different amounts of compute" in text


def test_a_law_that_is_identified_has_its_parameters_with_intervals(study: Records) -> None:
    rows = run_rows(study, run_table(study))
    dense = rows[rows["arm"] == "Dense (same depth)"].iloc[[0]]
    points = dense.loc[dense.index.repeat(8)].reset_index(drop=True)
    points["train_flops"] = [4.0**i * 1e10 for i in range(8)]
    points["val_loss"] = 0.1 + 3.0 * (points["train_flops"] / 1e10) ** -0.3
    law = next(law for law in laws(points, num_resamples=20) if law.parameters is not None)
    assert law.parameters is not None
    assert law.form.name == "power law in compute"
    assert law.parameters["a"].value == pytest.approx(0.3, rel=1e-3)
    assert law.parameters["E"].low <= 0.1 + 1e-6
    assert "largest configurations" in law.headline


def test_the_table_of_runs_is_made_from_what_was_loaded(write_arms: Callable[..., Path]) -> None:
    """A report makes it without reading thousands of files once more."""
    records = load_records([write_arms(seeds=(0,))])
    for run in records.runs["run"]:
        Path(run, "run.json").unlink()
    assert set(run_rows(records, run_table(records))["versions"]) == {"python 3.11"}


def test_one_seed_has_no_spread(write_arms: Callable[..., Path]) -> None:
    records = load_records([write_arms(seeds=(0,))])
    assert run_rows(records, run_table(records))["val_loss_std"].isna().all()


def test_how_each_run_is_made_again_is_in_the_page(page: Page) -> None:
    assert page.cells.count("ecdit train") == 12
    assert "not recorded" in page.cells


def test_the_answers_name_multipliers_claims_and_laws_in_one_line_each(folder: Path) -> None:
    text = (folder / "report.md").read_text().replace("\\", "")
    answer = text.split("## The answer at this scale")[1].split("## The runs")[0]
    assert re.search(r"- Expert choice against Dense \(same depth\): images 1\.\d\d× \(1\.\d\d to ", answer)
    assert "(share of dense's images; printed: 0.5): not supported" in answer
    assert "(difference in validation loss; printed: level): not testable at this scale, because it needs" in answer
    assert re.search(r"- None of \d+ could be fitted", answer)


def test_columns_of_words_are_to_the_left_and_numbers_to_the_right(folder: Path) -> None:
    lines = (folder / "report.md").read_text().splitlines()
    rule = lines[lines.index("### Compute multipliers") + 3]
    assert rule.startswith("| :-- | :-- | :-- | :-- | --: | --:")


def test_every_figure_names_the_command_that_draws_it(folder: Path, page: Page) -> None:
    text = (folder / "index.html").read_text()
    assert text.count("Drawn by <code>ecdit plot ") == len(page.all("figure"))
    assert "Drawn by `ecdit plot routing 'runs of <mine>'`." in (folder / "report.md").read_text()


def test_changed_code_is_called_dirty(write_run: Callable[..., object], tmp_path: Path) -> None:
    settings = {"train": {"images": 3200}, "eval": {"every_images": 1600}}
    write_run(tmp_path / "runs" / "one", settings, lambda n: 0.1, git_commit=f"{'ab' * 20}-dirty")
    records = load_records([tmp_path / "runs"])
    blocks = reproduction_blocks(run_rows(records, run_table(records)), ["runs"])
    assert isinstance(blocks[-1], Table)
    assert Cell("ababababab-dirty") in blocks[-1].rows[0]


def test_a_cell_keeps_its_number_and_a_column_of_nothing_is_left_away() -> None:
    columns = (Column("a", "A", "{:.1f}".format), Column("b", "B", "{:.1f}".format), Column("c", "C"))
    made = table("t", "T", columns, [{"a": 0.123, "b": None, "c": "x"}, {"a": float("nan"), "c": None}])
    assert [column.key for column in made.columns] == ["a", "c"]
    assert made.rows[0][0] == ("0.1", 0.123)
    assert [cell.text for cell in made.rows[1]] == ["–", "–"]


def test_the_same_records_give_the_same_page(write_arms: Callable[..., Path], tmp_path: Path) -> None:
    records = load_records([write_arms(seeds=(0,))])
    for name in ("one", "other"):
        write_report(records, ["x"], tmp_path / name)
    for name in ("index.html", "report.md", "runs.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_folder_without_runs_or_that_cannot_be_written_is_refused(study: Records, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="No runs at or below"):
        load_records([tmp_path / "empty"])
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*file/report.*: not a directory\."):
        write_report(study, ["x"], tmp_path / "file" / "report")


def test_imported_weights_alone_are_refused_with_a_command_for_each_figure(
    tmp_path: Path, write_imported: Callable[..., object]
) -> None:
    write_imported(tmp_path / "run", {"model": {"name": "nano", "block": "dit"}, "routing": {"name": "dense"}})
    message = r"ecdit plot expert-classes RUNS, and by: ecdit plot specialization RUNS"
    with pytest.raises(MissingDataError, match=message):
        write_report(load_records([tmp_path / "run"]), [], tmp_path / "report")
