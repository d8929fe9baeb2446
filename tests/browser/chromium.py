"""A headless Chromium that is told what to do over a pipe: open a page, press keys, look, print.

The commands are those of its DevTools protocol, JSON with a zero byte behind each, on the file descriptors 3 (to it)
and 4 (from it). What pages log, throw or ask of the network is kept in `events`. What a page must be is said by the
tests.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import time
from base64 import b64decode
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from tests.system_packages import install, program

NAMES = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium",)
MAY_INSTALL = "ECDIT_INSTALL_CHROMIUM"
ANSWER_SECONDS = 120.0
FLAGS = (
    "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--remote-debugging-pipe",
)  # fmt: skip
FIRST_FREE = 10
"""File descriptors from here on are out of the way of 3 and 4."""


def find_chromium() -> str:
    """The path of the browser, installed where that is allowed; a `NotInstalledError` where there is none."""
    found = next(filter(None, map(program, NAMES)), None)
    if found is None:
        install(NAMES[:1], PACKAGES, MAY_INSTALL)
        found = program(NAMES[0])
        assert found is not None
    return found


class Chromium:
    """The browser; `open` a page in it, `stop` it."""

    def __init__(self, path: str, profile: Path) -> None:
        theirs_read, self._write = _pipe()
        self._read, theirs_write = _pipe()
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        actions = [
            (os.POSIX_SPAWN_DUP2, theirs_read, 3),
            (os.POSIX_SPAWN_DUP2, theirs_write, 4),
            *((os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)),
        ]
        command = [path, *FLAGS, *sandbox, f"--user-data-dir={profile}", "about:blank"]
        self._pid = os.posix_spawn(path, command, os.environ, file_actions=actions)
        os.close(theirs_read)
        os.close(theirs_write)
        self._numbers = count(1)
        self._rest = b""
        self.events: list[dict[str, Any]] = []

    def open(self, page: Path, width: int = 1000, *, dark: bool = False) -> Page:
        """A new tab with `page`, loaded, in a window so many CSS pixels wide."""
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.command(f"{domain}.enable")
        tab.command("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.command("Emulation.setEmulatedMedia", features=[scheme])
        tab.command("Page.navigate", url=page.as_uri())
        self._wait_for(session, "Page.loadEventFired")
        return tab

    def command(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The answer to one command; what happens meanwhile goes to `events`."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        os.write(self._write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)
        raise AssertionError

    def stop(self) -> None:
        """End the browser."""
        os.kill(self._pid, signal.SIGTERM)
        os.waitpid(self._pid, 0)
        os.close(self._write)
        os.close(self._read)

    def _wait_for(self, session: str, method: str) -> None:
        if any(event.get("sessionId") == session and event["method"] == method for event in self.events):
            return
        for event in self._messages():
            self.events.append(event)
            if event.get("sessionId") == session and event["method"] == method:
                return

    def _messages(self) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            while b"\0" not in self._rest:
                ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
                received = os.read(self._read, 1 << 20) if ready else b""
                assert received, "Chromium ended" if ready else f"Chromium gave no answer in {ANSWER_SECONDS:g} s"
                self._rest += received
            message, self._rest = self._rest.split(b"\0", 1)
            yield json.loads(message)


class Page:
    """A tab with a page."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command to this tab."""
        return self._browser.command(method, self._session, **parameters)

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives in the page."""
        given = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in given, given["exceptionDetails"]
        return given["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release one key of the keyboard."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.command("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.command("Input.dispatchKeyEvent", type="keyUp", **about)

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return b64decode(self.command("Page.printToPDF", preferCSSPageSize=True)["data"])

    def picture(self) -> bytes:
        """The whole page as PNG."""
        return b64decode(self.command("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def events(self, *methods: str) -> list[dict[str, Any]]:
        """Parameters of what happened in this tab, of the given kinds."""
        mine = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return [event["params"] for event in mine if event["method"] in methods]


def _pipe() -> tuple[int, int]:
    """The ends of a pipe to read and to write, out of the way."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
