"""A Hugging Face Hub on this machine: enough of its HTTP interface for the real clients to list and download.

`serve_hub(root)` serves `root/datasets/OWNER/NAME` and `root/models/OWNER/NAME`; the clients find it by `HF_ENDPOINT`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 39 + "1"


class _Hub(BaseHTTPRequestHandler):
    root: Path
    asked: list[str]

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_POST(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}").get("paths", [])
        kind, folder, _ = self._split(unquote(urlsplit(self.path).path).removeprefix("/api/"))
        assert kind
        self._json([_entry(folder, folder / path) for path in wanted if (folder / path).exists()])

    def log_message(self, *arguments: Any) -> None:
        """Nothing goes to stderr."""

    def _answer(self, with_content: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        if path.startswith("/api/"):
            self._describe(path.removeprefix("/api/"))
            return
        kind, folder, rest = self._split(path.lstrip("/"))
        file = folder / rest.partition("/")[2].partition("/")[2]  # resolve/REVISION/FILE
        if not kind or not rest.startswith("resolve/") or not file.is_file():
            self._missing(folder)
            return
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        self._send(content, "application/octet-stream", with_content, headers)

    def _describe(self, path: str) -> None:
        kind, folder, rest = self._split(path)
        if not kind or not folder.is_dir():
            self._missing(folder)
            return
        files = sorted(one for one in folder.rglob("*") if one.is_file())
        if rest.startswith("tree/"):
            inside = rest.partition("/")[2].partition("/")[2]
            below = sorted(files if "recursive=" in self.path else (folder / inside).iterdir())
            self._json([_entry(folder, one) for one in below if one.is_relative_to(folder / inside)])
            return
        siblings = [{"rfilename": one.relative_to(folder).as_posix()} for one in files]
        name = folder.relative_to(self.root / kind).as_posix()
        self._json({"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "gated": False, "tags": []})

    def _split(self, path: str) -> tuple[str, Path, str]:
        """`datasets` or `models`, the folder of the repository, and what follows its name."""
        kind = next((kind for kind in ("datasets", "models") if path.startswith(f"{kind}/")), "")
        rest = path.removeprefix(f"{kind}/") if kind else path
        owner, _, rest = rest.partition("/")
        name, _, rest = rest.partition("/")
        return kind or "models", self.root / (kind or "models") / owner / name, rest

    def _missing(self, folder: Path) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound" if folder.is_dir() else "RepoNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), "application/json", True, {})

    def _send(self, content: bytes, kind: str, with_content: bool, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_content:
            self.wfile.write(content)


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    return {"type": "file", "path": name, "oid": "0" * 40, "size": path.stat().st_size}


@contextmanager
def serve_hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of the Hub, and the list of what it has been asked."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"root": root, "asked": asked}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
