"""`ecdit sweep --register`: the server gets the sweep file; here the server is a program that answers as W&B does."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from sweeps.spec import find_spec

ANSWER = {
    "viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
    "upsertSweep": {
        "sweep": {"name": "abc123", "project": {"id": "1", "name": "study", "entity": {"id": "1", "name": "me"}}},
        "configValidationWarnings": [],
    },
}
Requests = list[dict[str, Any]]


@pytest.fixture
def server() -> Iterator[tuple[str, Requests]]:
    """The address of a server, and what it was asked."""
    asked: Requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/graphql":
                asked.append(json.loads(body))
            answer = json.dumps({"data": ANSWER}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}", asked
        listening.shutdown()


def test_the_server_gets_the_sweep_file_and_agents_its_name(server: tuple[str, Requests]) -> None:
    address, asked = server
    key = {"WANDB_API_KEY": 40 * "a", "WANDB_BASE_URL": address, "WANDB_PROJECT": "study"}
    done = subprocess.run(
        [sys.executable, "-m", "ecdit_cli", "sweep", "isoflop", "--register"],
        capture_output=True, text=True, env={**os.environ, **key}, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "study/abc123\n"
    assert "wandb agent study/abc123" in done.stderr
    (variables,) = [request["variables"] for request in asked if "config" in (request.get("variables") or {})]
    assert yaml.safe_load(variables["config"]) == yaml.safe_load(find_spec("isoflop").read_text())
    assert variables["projectName"] == "study"
