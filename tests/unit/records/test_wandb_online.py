"""The mirror beside a W&B server: what it sends, what it leaves out on resumption, and what an outage costs.

The server is a small stand-in that answers the requests of wandb's own client, which is the real one.
"""

from __future__ import annotations

import gzip
import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import wandb

from experiments.records.wandb_mirror import start_mirror
from experiments.records.writer import RecordWriter


class Server(ThreadingHTTPServer):
    """`steps`: the W&B steps received; `last_step`: what it says it has of the run; `down`: answers 503."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps: list[int] = []
        self.last_step: int | None = None
        self.down = False


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        answer: dict[str, Any] = {}
        if not self.server.down and self.path == "/graphql":
            answer = {"data": self._graphql(json.loads(body))}
        elif not self.server.down and self.path.endswith("/file_stream"):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.steps += [json.loads(line)["_step"] for line in lines]
        payload = json.dumps(answer).encode()
        self.send_response(503 if self.server.down else 200)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_PUT = do_POST

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        query, given = request["query"], request["variables"]
        name, owner = given.get("name"), {"id": "e", "name": "me"}
        if "RunResumeStatus" in query and self.server.last_step is not None:
            tail = json.dumps([json.dumps({"_step": self.server.last_step, "_runtime": 1})])
            bucket = {"id": "b", "name": name, "summaryMetrics": "{}", "logLineCount": 0, "historyLineCount": 2}
            bucket |= {"eventsLineCount": 0, "historyTail": tail, "eventsTail": "[]", "config": "{}", "tags": []}
            bucket |= {"displayName": "d", "wandbConfig": '{"t": 1}'}
            return {"model": {"id": "m", "name": "ecdit", "internalId": "1", "entity": owner, "bucket": bucket}}
        if "UpsertBucket" in query:
            project = {"id": "p", "name": "ecdit", "entity": owner}
            bucket = {"id": "b", "name": name, "displayName": "d", "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "CreateRunFiles" in query:
            url = f"http://127.0.0.1:{self.server.server_port}/upload"
            files = [{"name": file, "uploadUrl": url} for file in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {"model": None}


@pytest.fixture
def server(no_account, monkeypatch) -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    yield server
    wandb.teardown()
    server.shutdown()
    thread.join()
    server.server_close()


def test_with_a_key_rows_reach_the_server_and_a_resumption_sends_only_what_is_new(
    server, run_dir, make_record, make_step
):
    record = make_record("wandb.mode=auto")
    writer = RecordWriter.open(run_dir, record, 0, start_mirror)
    for seen in (32, 64, 96):
        writer.step(make_step(seen))
    writer.close()
    wandb.teardown()
    assert sorted(set(server.steps)) == [32, 64, 96]

    server.steps, server.last_step = [], 64  # the last process was killed before its last row was sent
    writer = RecordWriter.open(run_dir, record, 96, start_mirror)
    writer.step(make_step(128))
    writer.close()
    wandb.teardown()
    assert sorted(set(server.steps)) == [96, 128]


def test_an_outage_costs_one_line_and_no_time_in_training(
    server, run_dir, make_record, make_step, monkeypatch, caplog, capfd
):
    monkeypatch.setattr("experiments.records.wandb_mirror.FINISH_TIMEOUT_SECONDS", 0.5)
    writer = RecordWriter.open(run_dir, make_record("wandb.mode=online"), 0, start_mirror)
    server.down = True
    start = time.monotonic()
    for seen in range(32, 32 * 201, 32):
        writer.step(make_step(seen))
    assert time.monotonic() - start < 2
    writer.status("done", 6400)
    writer.close()
    assert time.monotonic() - start < 5
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "The run's folder has every row" in line
    assert len(run_dir.read_rows(run_dir.steps).rows) == 200
    assert capfd.readouterr() == ("", "")
