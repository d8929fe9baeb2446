"""A stand-in for a W&B server: it answers the requests of wandb's own client, which is the real one.

It keeps what a run sends (settings, rows, summary, exit code) and gives it back as the public API asks for it: the rows
of the newest runs as live data, of older ones as the Parquet files that the service makes of them.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

OWNER = {"id": "e", "name": "me"}
VIEWER = {
    "id": "1", "entity": "me", "username": "me", "email": "me@example.org", "flags": "{}", "teams": {"edges": []},
}  # fmt: skip
SWEEP = {
    "sweep": {"name": "abc123", "project": {"id": "1", "name": "study", "entity": {"id": "1", "name": "me"}}},
    "configValidationWarnings": [],
}


@dataclass
class StoredRun:
    """What the server has of one run; `num_rows`: how many rows it says it has, where that is not what it gives."""

    name: str
    project: str
    display_name: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    num_rows: int | None = None
    state: str = "running"
    heartbeat: str = "2026-01-01T00:00:00Z"

    def in_order(self) -> list[dict[str, Any]]:
        """The rows by step."""
        return [row for _, row in sorted(self.rows.items())]


class Server(ThreadingHTTPServer):
    """`steps`: the W&B steps received; `last_step`: what it says it has of a run; `down`: answers 503; without
    `answering` set, a request waits.

    `runs`: by W&B id. `asked`: every GraphQL request. `exported`: rows are given as Parquet.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps: list[int] = []
        self.last_step: int | None = None
        self.down = False
        self.answering = threading.Event()
        self.answering.set()
        self.runs: dict[str, StoredRun] = {}
        self.asked: list[dict[str, Any]] = []
        self.exported = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked_for(self, operation: str) -> list[dict[str, Any]]:
        """The variables of every request of this GraphQL operation."""
        named = re.compile(rf"\b(query|mutation) {operation}\b")
        return [request["variables"] for request in self.asked if named.search(request["query"])]


@contextmanager
def serving() -> Iterator[Server]:
    """A server that listens."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.answering.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        answer = b"{}"
        self.server.answering.wait()
        if not self.server.down and self.path == "/graphql":
            request = json.loads(body)
            self.server.asked.append(request)
            answer = json.dumps({"data": self._graphql(request["query"], request.get("variables") or {})}).encode()
        elif not self.server.down and self.path.endswith("/file_stream"):
            self._store(self.path.split("/")[-2], json.loads(body))
        elif self.path.startswith("/parquet/"):
            answer = _parquet(self.server.runs[self.path.split("/")[-1]].in_order())
        self.send_response(503 if self.server.down else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST

    def _store(self, name: str, sent: dict[str, Any]) -> None:
        run, files = self.server.runs.get(name), sent.get("files", {})
        lines = files.get("wandb-history.jsonl", {}).get("content", [])
        rows = [json.loads(line) for line in lines]
        self.server.steps += [row["_step"] for row in rows]
        if run is None:
            return
        run.rows |= {row["_step"]: row for row in rows}
        for line in files.get("wandb-summary.json", {}).get("content", []):
            run.summary = json.loads(line)
        if sent.get("complete"):
            run.state = "finished" if sent.get("exitcode") == 0 else "failed"

    def _graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        name = given.get("name") or given.get("runName") or given.get("run")
        if "RunResumeStatus" in query:
            return self._resume_status(name)
        if "UpsertBucket" in query:
            return self._upsert(name, given)
        if "CreateRunFiles" in query:
            files = [{"name": file, "uploadUrl": f"{self.server.address}/upload"} for file in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "query Runs(" in query:
            return {"project": self._list_runs(given)}
        if name in self.server.runs:
            return {"project": {"run": self._read(self.server.runs[name], query, given)}}
        return {"model": None, "viewer": VIEWER, "upsertSweep": SWEEP}

    def _resume_status(self, name: str) -> dict[str, Any]:
        if self.server.last_step is None:
            return {"model": None}
        tail = json.dumps([json.dumps({"_step": self.server.last_step, "_runtime": 1})])
        bucket = {"id": "b", "name": name, "summaryMetrics": "{}", "logLineCount": 0, "historyLineCount": 2}
        bucket |= {"eventsLineCount": 0, "historyTail": tail, "eventsTail": "[]", "config": "{}", "tags": []}
        bucket |= {"displayName": "d", "wandbConfig": '{"t": 1}'}
        return {"model": {"id": "m", "name": "ecdit", "internalId": "1", "entity": OWNER, "bucket": bucket}}

    def _upsert(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        run = self.server.runs.setdefault(name, StoredRun(name, given.get("project") or "ecdit"))
        run.display_name = given.get("displayName") or run.display_name
        run.config |= json.loads(given.get("config") or "{}")
        project = {"id": "p", "name": run.project, "entity": OWNER}
        bucket = {"id": "b", "name": name, "displayName": "d", "historyLineCount": 0, "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _list_runs(self, given: dict[str, Any]) -> dict[str, Any] | None:
        """Pages of `perPage` runs; None for a project that does not exist."""
        runs = [run for run in self.server.runs.values() if run.project == given["project"]]
        if given["entity"] != OWNER["name"] or (not runs and given["project"] != "empty"):
            return None
        start = int(given.get("cursor") or 0)
        stop = start + given["perPage"]
        edges = [{"node": _fragment(run), "cursor": str(i)} for i, run in enumerate(runs[start:stop], start + 1)]
        page = {"endCursor": str(stop), "hasNextPage": stop < len(runs)}
        return {
            "internalId": "1", "runCount": len(runs), "readOnly": False, "runs": {"edges": edges, "pageInfo": page},
        }  # fmt: skip

    def _read(self, run: StoredRun, query: str, given: dict[str, Any]) -> dict[str, Any]:
        rows = run.in_order()
        if "parquetHistory" in query:
            urls = [f"{self.server.address}/parquet/{run.name}"] if self.server.exported else []
            live = [] if self.server.exported else [{"_step": row["_step"]} for row in rows]
            return {"parquetHistory": {"parquetUrls": urls, "liveData": live}}
        if "history(" in query:
            within = [row for row in rows if given["minStep"] <= row["_step"] < given["maxStep"]]
            sampled = within[:: -(-len(within) // given["pageSize"])] if within else []
            return {"history": [json.dumps(row) for row in sampled]}
        return {"historyKeys": {"lastStep": max(run.rows, default=-1)}}


def _fragment(run: StoredRun) -> dict[str, Any]:
    return {
        "id": run.name, "name": run.name, "displayName": run.display_name, "state": run.state, "projectId": "1",
        "config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}",
        "historyLineCount": run.num_rows or len(run.rows), "historyKeys": {"lastStep": max(run.rows, default=-1)},
        "heartbeatAt": run.heartbeat, "createdAt": run.heartbeat, "tags": [], "user": {"name": "me", "username": "me"},
    }  # fmt: skip


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    """A column per key; absent values are null."""
    keys = sorted({key for row in rows for key in row})
    table = pa.table({key: [row.get(key) for row in rows] for key in keys})
    written = io.BytesIO()
    pq.write_table(table, written)
    return written.getvalue()
