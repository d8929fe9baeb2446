"""The page of a report in a real browser: no errors, tables sort, figures show, links within work.

Chromium runs headless and prints the page as it is after a script has pressed and looked; what it found stands in
`data-` attributes of the body. Errors are those of Chromium's own log of the console.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from analysis.load import load_records
from analysis.report.write import write_report_of
from analysis.tables import run_table

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=f"NO BROWSER: none of {', '.join(NAMES)} is installed"),
]

SLOPES = {"dense": 1.0e-5, "token_choice": 1.6e-5, "expert_choice": 1.5e-5}

PROBE = """
<script>
const found = {};
const column = (table, title) => {
  const headers = [...document.querySelectorAll(`#${table} thead th`)];
  const index = headers.findIndex((header) => header.textContent === title);
  const cells = () => [...document.querySelectorAll(`#${table} tbody tr`)].map((row) => row.cells[index].textContent);
  return { header: headers[index], press: () => headers[index].querySelector("button").click(), cells };
};
window.addEventListener("load", () => {
  const loss = column("run-table", "Val. loss");
  loss.press();
  found.rising = loss.cells();
  found.sort = loss.header.getAttribute("aria-sort");
  loss.press();
  found.falling = loss.cells();
  const capacity = column("arm-table", "f_c");
  capacity.press();
  capacity.press();
  found.capacity = capacity.cells();
  const arm = column("arm-table", "Arm");
  arm.press();
  found.arms = arm.cells();
  found.pictures = [...document.images].map((image) => [image.alt, image.naturalWidth, image.clientWidth]);
  found.links = [...document.querySelectorAll('nav a')].map((link) => {
    link.click();
    return [link.hash, document.querySelector(":target")?.id, document.querySelector(":target")?.offsetHeight];
  });
  found.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  found.loaded = performance.getEntriesByType("resource").map((entry) => entry.name.slice(0, 30));
  found.background = getComputedStyle(document.body).backgroundColor;
  document.body.dataset.found = JSON.stringify(found);
});
</script>
"""


def visit(page: Path, profile: Path, *flags: str) -> tuple[dict[str, Any], list[str]]:
    """What the probe found in a copy of `page`, and the lines of the console."""
    copy = page.with_name("probed.html")
    text = page.read_text()
    assert text.count("</body>") == 1
    copy.write_text(text.replace("</body>", f"{PROBE}</body>"))
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", *sandbox, "--disable-gpu", "--disable-dev-shm-usage",
            "--enable-logging=stderr",
            f"--user-data-dir={profile}", "--window-size=1000,800", "--virtual-time-budget=5000", *flags,
            "--dump-dom", copy.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    (found,) = re.findall(r'data-found="([^"]*)"', done.stdout)
    return json.loads(unescape(found)), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture
def page(kept: Path, write_run: Callable[..., object]) -> Path:
    """The report of three routings with two seeds each, written once."""
    page = kept / "report" / "index.html"
    if not page.exists():
        for router, slope in SLOPES.items():
            for seed in (0, 1):
                settings = {"routing": {"name": router}, "seed": seed, "train": {"images": 3200}}
                settings["eval"] = {"every_images": 1600}
                loss = lambda n, slope=slope, seed=seed: 0.2 - slope * n + 0.001 * seed  # noqa: E731
                write_run(kept / "runs" / f"{router}-{seed}", settings, loss)
        write_report_of(load_records([kept / "runs"]), ["runs"], page.parent)
    return page


@pytest.fixture
def found(page: Path, tmp_path: Path) -> dict[str, Any]:
    return visit(page, tmp_path)[0]


def test_the_console_is_silent(page: Path, tmp_path: Path) -> None:
    assert visit(page, tmp_path / "one")[1] == []
    broken = page.with_name("broken.html")
    broken.write_text(page.read_text().replace("<main", "<script>nothing.there</script><main", 1))
    assert len(visit(broken, tmp_path / "other")[1]) == 1


def test_pressing_a_header_sorts_by_value_and_pressing_again_turns_it(page: Path, found: dict[str, Any]) -> None:
    losses = sorted(run_table(load_records([page.parents[1] / "runs"]))["val_loss"])
    assert found["rising"] == [f"{loss:.4f}" for loss in losses]
    assert found["falling"] == found["rising"][::-1]
    assert found["sort"] == "ascending"
    assert found["arms"] == sorted(found["arms"])


def test_what_is_missing_stays_last_whichever_way_a_table_is_sorted(found: dict[str, Any]) -> None:
    assert found["capacity"] == ["2", "2", "–"]


def test_every_figure_shows_and_has_a_name(found: dict[str, Any]) -> None:
    assert len(found["pictures"]) >= 3
    for name, natural_width, width in found["pictures"]:
        assert name
        assert natural_width > 100
        assert width > 100


def test_links_within_lead_to_sections_that_show(found: dict[str, Any]) -> None:
    assert len(found["links"]) == 9
    for link, target, height in found["links"]:
        assert link == f"#{target}"
        assert height > 20


def test_nothing_is_loaded_and_the_page_is_not_wider_than_the_screen(found: dict[str, Any]) -> None:
    assert all(name.startswith("data:") for name in found["loaded"])
    assert found["wide"] is False


def test_light_and_dark_follow_the_reader(page: Path, found: dict[str, Any], tmp_path: Path) -> None:
    dark, console = visit(page, tmp_path / "dark", "--blink-settings=preferredColorScheme=0")
    assert console == []
    assert (found["background"], dark["background"]) == ("rgb(255, 255, 255)", "rgb(20, 23, 26)")
