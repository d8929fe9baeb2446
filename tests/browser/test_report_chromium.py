"""The page of a report in a real browser: no errors, tables sort, figures show, links within work, text can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.load_records import load_records
from analysis.report.write import write_report
from analysis.run_table import run_table
from tests.browser.chromium import Chromium, Page
from tests.conftest import write_run_folder

pytestmark = pytest.mark.browser

SLOPES = {"dense": 1.0e-5, "token_choice": 1.6e-5, "expert_choice": 1.5e-5}
SPACE = (" ", 32, " ")
ENTER = ("Enter", 13, "\r")
AA_CONTRAST = 4.5

# The ratio of WCAG 2 between the colour of each text that shows and what is painted behind it; the worst of all.
CONTRAST = """
(() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = numbers(color).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (numbers(color)[3] !== 0) return color;
    }
  };
  let worst = [99, "no text"];
  for (const element of document.body.querySelectorAll("*")) {
    const speaks = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!speaks || !element.checkVisibility() || element.matches("script")) continue;
    const [low, high] = [getComputedStyle(element).color, behind(element)].map(luminance).sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < worst[0]) worst = [ratio, element.outerHTML.slice(0, 80)];
  }
  return worst;
})()
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of three routings with two seeds each, and of one that failed."""
    folder = tmp_path_factory.mktemp("browser")
    for router, slope in SLOPES.items():
        for seed in (0, 1):
            settings = {"routing": {"name": router}, "seed": seed, "train": {"images": 3200}}
            loss = lambda n, slope=slope, seed=seed: 0.2 - slope * n + 0.001 * seed  # noqa: E731
            write_run_folder(folder / "runs" / f"{router}-{seed}", settings | {"eval": {"every_images": 1600}}, loss)
    write_run_folder(folder / "runs" / "broken", {"seed": 7}, lambda n: 0.1, state="failed", reason="not finite")
    write_report(load_records([folder / "runs"]), ["runs"], folder / "report", num_resamples=20)
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def page(chromium: Chromium, file: Path) -> Page:
    return chromium.open(file)


def complaints(page: Page) -> list[dict[str, Any]]:
    """Errors, warnings and words on the console."""
    return page.events("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


def cells(page: Page, table: str, title: str) -> list[str]:
    """The texts of one column, from above."""
    given: list[str] = page.value(f"""(() => {{
      const headers = [...document.querySelectorAll("#{table} thead th")];
      const index = headers.findIndex((header) => header.textContent === "{title}");
      return [...document.querySelectorAll("#{table} tbody tr")].map((row) => row.cells[index].textContent);
    }})()""")
    return given


def press(page: Page, table: str, title: str, key: tuple[str, int, str]) -> str | None:
    """Press a header with the keyboard; what it then says of the order."""
    page.value(f"""window.header = [...document.querySelectorAll("#{table} thead th")]
      .find((header) => header.textContent === "{title}"); header.querySelector("button").focus()""")
    page.press(*key)
    order: str | None = page.value("header.getAttribute('aria-sort')")
    return order


def test_the_console_is_silent_and_nothing_is_loaded(chromium: Chromium, file: Path, page: Page) -> None:
    assert complaints(page) == []
    asked = [event["request"]["url"][:5] for event in page.events("Network.requestWillBeSent")]
    assert asked.count("file:") == 1
    assert set(asked) <= {"file:", "data:"}
    broken = file.with_name("broken.html")
    broken.write_text(file.read_text().replace("<main", "<script>nothing.there</script><main", 1))
    assert len(complaints(chromium.open(broken))) == 1


def test_the_keyboard_sorts_by_value_and_turns_the_order(page: Page, file: Path) -> None:
    losses = sorted(run_table(load_records([file.parents[1] / "runs"]))["val_loss"])
    assert press(page, "run-table", "Val. loss", ENTER) == "ascending"
    assert cells(page, "run-table", "Val. loss") == [f"{loss:.4f}" for loss in losses]
    assert press(page, "run-table", "Val. loss", SPACE) == "descending"
    assert cells(page, "run-table", "Val. loss") == [f"{loss:.4f}" for loss in losses[::-1]]
    press(page, "run-table", "Run", ENTER)
    assert cells(page, "run-table", "Run") == sorted(f"{router}-{seed}" for router in SLOPES for seed in (0, 1))
    assert page.value("document.querySelectorAll('#run-table [aria-sort]').length") == 1


def test_what_is_missing_stays_last_whichever_way_a_table_is_sorted(page: Page) -> None:
    for order in ("ascending", "descending"):
        assert press(page, "arm-table", "f_c", ENTER) == order
        assert cells(page, "arm-table", "f_c") == ["2", "2", "–"]


def test_every_figure_shows_and_has_a_name(page: Page) -> None:
    pictures = page.value("[...document.images].map((image) => [image.naturalWidth, image.clientWidth])")
    assert len(pictures) >= 3
    assert min(min(widths) for widths in pictures) > 100
    nodes = page.command("Accessibility.getFullAXTree")["nodes"]
    names = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "image"]
    assert len(set(names)) == len(pictures)
    assert min(map(len, names)) > 20


def test_links_within_lead_to_sections_that_show(page: Page) -> None:
    found = page.value("""[...document.querySelectorAll("a[href^='#']")].map((link) => {
      link.click();
      const target = document.querySelector(":target");
      return [link.hash, target?.id, target?.offsetHeight];
    })""")
    sections = page.value("[...document.querySelectorAll('main > section')].map((section) => `#${section.id}`)")
    assert len(sections) > 3
    assert [link for link, _, _ in found] == ["#content", *sections]
    for link, target, height in found:
        assert link == f"#{target}"
        assert height > 20


def test_what_was_left_out_is_on_the_page(page: Page) -> None:
    assert "Left out: 1 entry" in page.value("document.querySelector('#runs').innerText")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(("dark", "background"), [(False, "rgb(255, 255, 255)"), (True, "rgb(20, 23, 26)")])
def test_text_can_be_read_in_light_and_dark(
    chromium: Chromium, file: Path, width: int, dark: bool, background: str
) -> None:
    page = chromium.open(file, width, dark=dark)
    assert complaints(page) == []
    assert page.value("getComputedStyle(document.body).backgroundColor") == background
    ratio, element = page.value(CONTRAST)
    assert AA_CONTRAST <= ratio <= 21, element
    assert page.value("[innerWidth, document.documentElement.scrollWidth]") == [width, width]


def test_grey_text_is_found_too_weak(chromium: Chromium, file: Path) -> None:
    page = chromium.open(file)
    page.value("document.querySelector('header p').style.color = '#999'")
    assert page.value(CONTRAST)[0] < AA_CONTRAST


def test_the_page_can_be_printed(page: Page) -> None:
    assert page.pdf().startswith(b"%PDF-")
