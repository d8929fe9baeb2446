"""The pages of `make docs` in a browser, opened from disk: no other host, nothing too wide for a phone, a search."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.chromium import Chromium, Page

ROOT = Path(__file__).parents[2]
SITE = ROOT / "site"
PAGES = sorted(page.relative_to(ROOT / "docs").with_suffix("") for page in (ROOT / "docs").rglob("*.md"))
WAIT_SECONDS = 60.0
PHONE, DESK = 400, 1280

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="NOT TESTED IN A BROWSER: run `make docs` first"),
]


def html(page: Path) -> Path:
    """The file of a page; a README is the index of its folder."""
    return SITE / page.parent / f"{'index' if page.name == 'README' else page.name}.html"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def asked_hosts(page: Page) -> list[str]:
    """What the page has asked other hosts for."""
    urls = [event["request"]["url"] for event in page.events("Network.requestWillBeSent")]
    return [url for url in urls if not url.startswith(("file:", "data:", "about:", "blob:"))]


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_fits_the_window_and_asks_no_other_host(page: Path, width: int, chromium: Chromium) -> None:
    tab = chromium.open(html(page), width)
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value("[...document.images].every(image => image.naturalWidth > 0)")
    assert asked_hosts(tab) == []
    assert tab.events("Runtime.exceptionThrown") == []


@pytest.mark.parametrize(
    ("words", "expected"), [("capacity factor", "concepts.html"), ("group_images", "settings.html")]
)
def test_the_search_finds_a_page_without_a_server(words: str, expected: str, chromium: Chromium) -> None:
    tab = chromium.open(html(Path("index")), DESK)
    tab.value("document.querySelector('.md-search__input').focus()")
    tab.command("Input.insertText", text=words)
    # The page may load its script after the words were typed; another key makes it read them.
    again = "document.querySelector('.md-search__input').dispatchEvent(new KeyboardEvent('keyup'))"
    found = "[...document.querySelectorAll('.md-search-result__link')].map(link => link.href)"
    wait_for(lambda: any(expected in link for link in tab.value(f"{again}, {found}")))
    assert asked_hosts(tab) == []
