"""One Chromium for the tests of a session; they are skipped, with the reason, where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.chromium import Chromium, find_chromium
from tests.system_packages import NotInstalledError


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    try:
        path = find_chromium()
    except NotInstalledError as error:
        pytest.skip(f"NOT TESTED IN A BROWSER: {error}")
    browser = Chromium(path, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.stop()
