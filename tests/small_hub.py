"""A Hugging Face Hub on this machine: enough of its HTTP interface for the real clients to list, download and upload.

`serve_hub(root)` serves `root/datasets/OWNER/NAME` and `root/models/OWNER/NAME`; the clients find it by `HF_ENDPOINT`.
Repositories of models may be created and written with the token `WRITE_TOKEN`, in the name of `USER`. Weights are sent
as LFS objects and other files within the commit, as the Hub has it for clients without Xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

COMMIT = "0" * 39 + "1"
WRITE_TOKEN, USER = "hf_may_write", "me"


class _Hub(BaseHTTPRequestHandler):
    root: Path
    asked: list[str]

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        kind, folder, rest = self._split(path.removeprefix("/api/").lstrip("/").replace(".git/info/", "/info/"))
        if rest.startswith("paths-info"):
            wanted = json.loads(body or b"{}").get("paths", [])
            self._json([_entry(folder, folder / path) for path in wanted if (folder / path).exists()])
        elif path == "/api/validate-yaml":
            header = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            self._json({"warnings": [], "errors": [] if isinstance(header, dict) else [{"message": "no header"}]})
        elif self.headers["Authorization"] != f"Bearer {WRITE_TOKEN}":
            self._send(b'{"error": "Invalid username or password."}', "application/json", True, {}, status=401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif not kind or not folder.is_dir():
            self._missing(folder)
        elif rest.startswith("preupload/"):
            self._json({"files": [_upload_mode(each["path"]) for each in json.loads(body)["files"]]})
        elif rest == "info/lfs/objects/batch":
            self._json({"transfer": "basic", "objects": [self._place(each) for each in json.loads(body)["objects"]]})
        elif rest.startswith("commit/"):
            self._commit(folder, [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        (self.root / self.path.rpartition("/")[2]).write_bytes(content)
        self._json({})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization'] or USER}/{asked['name']}"
        folder = self.root / "models" / name
        there = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        if not there:
            self.asked.append(f"CREATED {name} {asked.get('visibility', 'public')}")
        answer = {"url": f"{self._address}/{name}", "name": name, "error": "You already created this model repo"}
        self._send(json.dumps(answer).encode(), "application/json", True, {}, status=409 if there else 200)

    def _place(self, asked: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self._address}/lfs/{asked['oid']}"}
        return {"oid": asked["oid"], "size": asked["size"], "actions": {"upload": upload}}

    def _commit(self, folder: Path, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                stored = self.root / value["oid"]
                assert hashlib.sha256(stored.read_bytes()).hexdigest() == value["oid"]
                stored.rename(folder / value["path"])
        name = folder.relative_to(self.root / "models").as_posix()
        self._json({"commitUrl": f"{self._address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    @property
    def _address(self) -> str:
        return f"http://{self.headers['Host']}"

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

    def _send(self, content: bytes, kind: str, with_content: bool, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
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


def _upload_mode(path: str) -> dict[str, Any]:
    return {"path": path, "uploadMode": "lfs" if path.endswith(".safetensors") else "regular", "shouldIgnore": False}


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
