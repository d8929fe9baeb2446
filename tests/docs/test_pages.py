"""What the pages must have: a short README, links that lead somewhere, and a section for every figure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from analysis.figures.registry import FIGURES
from experiments.config.overrides import known_settings
from tests.docs.pages import ALL_BLOCKS, COMMAND_BLOCKS, DOCS, MODES, PAGES, ROOT, Block, links

README = ROOT / "README.md"
MOST_WORDS = 900


def test_the_readme_is_short() -> None:
    assert len(README.read_text().split()) <= MOST_WORDS


@pytest.mark.parametrize("command", ["train", "sweep", "compare-routing", "plot"])
def test_the_readme_has_an_example_of_each_of_the_four_commands(command: str) -> None:
    examples = [words for block in COMMAND_BLOCKS if block.page == README for words in block.commands()]
    assert sum(words[:2] == ["ecdit", command] for words in examples) == 1


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_readme_has_the_two_commands(target: str) -> None:
    assert ["make", target] in [words for block in COMMAND_BLOCKS for words in block.commands()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: object) -> None:
    for link in links(page):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in _anchors(target.read_text()), f"{page.name}: {link}"


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("block", ALL_BLOCKS, ids=str)
def test_a_block_says_its_language_and_how_it_is_tested(block: Block) -> None:
    assert block.language, f"{block}: write bash, text, yaml, ... behind the fence"
    assert block.mode in MODES, f"{block}: {block.mode} is none of {', '.join(MODES)}"


def test_every_mark_stands_above_a_block() -> None:
    marks = [line for page in PAGES for line in page.read_text().splitlines() if line.startswith("<!-- test:")]
    assert len(marks) == sum(block.mode != "run" for block in ALL_BLOCKS)


LAB_NOTES = {DOCS / "lab-notes.md", *(DOCS / "study").rglob("*.md"), *(DOCS / "benchmarks").rglob("*.md")}
MADE_BY_THE_READER = {"experiments/data/sources/stripes.py"}


@pytest.mark.parametrize("page", [page for page in PAGES if page not in LAB_NOTES], ids=str)
def test_files_of_the_checkout_that_a_page_names_exist(page: Path) -> None:
    rooms = "experiments|analysis|sweeps|ecdit_cli|tests|docs"
    named = re.findall(rf"(?<![\w/.-])((?:{rooms})/[\w/.-]*\w)", page.read_text())
    ours = {path for path in named if not path.endswith("/NAME.py") and path not in MADE_BY_THE_READER}
    assert not [path for path in ours if not (ROOT / path).exists()]


def test_the_architecture_describes_every_room() -> None:
    rooms = {path.parent.name for path in (ROOT / "experiments").glob("*/__init__.py")}
    described = set(re.findall(r"^\| `experiments/(\w+)` \|", (DOCS / "architecture.md").read_text(), flags=re.M))
    assert described == rooms


def test_every_page_is_in_the_navigation() -> None:
    config = (DOCS / "_generator" / "mkdocs.yml").read_text()
    navigation = yaml.safe_load(config)["nav"]
    named = set(re.findall(r"[\w/.-]+\.md", str(navigation)))
    assert named == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


@pytest.mark.parametrize("figure", FIGURES.values(), ids=lambda figure: figure.name)
def test_every_figure_has_a_section_that_says_how_to_read_it_and_what_it_needs(figure: object) -> None:
    sections = dict(re.findall(r"^## ([\w-]+)\n(.*?)(?=^## |\Z)", (DOCS / "figures.md").read_text(), flags=re.M | re.S))
    assert figure.name in sections
    assert "**Read it:**" in sections[figure.name]
    assert "**Needs:**" in sections[figure.name]
    for alias in figure.aliases:
        number = alias.removeprefix("paper-fig")
        assert f"*EC-DIT, figure {number}.*" in sections[figure.name]


def test_the_page_of_figures_describes_no_other() -> None:
    headings = re.findall(r"^## (.*)$", (DOCS / "figures.md").read_text(), flags=re.MULTILINE)
    assert [heading for heading in headings if heading[0].islower()] == [figure.name for figure in FIGURES.values()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_that_a_page_names_exist(page: object) -> None:
    sections = "|".join({key.split(".")[0] for key in known_settings() if "." in key})
    code = re.findall(r"`([^`\n]+)`", page.read_text())
    named = {found for text in code for found in re.findall(rf"\b((?:{sections})\.[a-z_0-9]+)\b(?!\()", text)}
    known = set(known_settings())
    files = r"\.(json|jsonl|yaml|py|npz|safetensors|txt|html|md)$"
    wrong = {name for name in named - known if not re.search(files, name)}
    assert not wrong
