"""An MLflow server over a bad line: just enough of its REST API for one run and its files."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
import uuid
from typing import Any


class LineServer(http.server.ThreadingHTTPServer):
    """Answers on a port of its own while the block runs.

    Args:
        largest: bytes above which a file is answered with 413.
        breaks_after: bytes of a file after which the line breaks.
        bytes_per_s: that it reads of a file.
    """

    daemon_threads = True

    def __init__(
        self,
        *,
        largest: int | None = None,
        breaks_after: int | None = None,
        bytes_per_s: int | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        # A line holds little; a receiver's megabytes would hide how slow it is.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self.server_bind()
        self.server_activate()
        self.largest, self.breaks_after, self.bytes_per_s = largest, breaks_after, bytes_per_s
        #: MLflow keeps where the files of a run go for as long as its process lives.
        self.run_id = uuid.uuid4().hex
        self.files: dict[str, bytes] = {}
        self.arrivals: list[str] = []
        self.statuses: list[str] = []
        #: Files that had arrived when the run got each status.
        self.files_at_status: list[int] = []
        self.made = False

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> LineServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: LineServer

    def log_message(self, *_: object) -> None:
        pass

    def _run(self) -> dict[str, Any]:
        run = self.server.run_id
        return {"run_id": run, "run_uuid": run, "experiment_id": "1", "status": "RUNNING",
                "artifact_uri": f"mlflow-artifacts:/1/{run}/artifacts",
                "lifecycle_stage": "active", "start_time": 1}  # fmt: skip

    def _answer(self, tree: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if "experiments/get-by-name" in self.path:
            place = {"experiment_id": "1", "name": "d", "lifecycle_stage": "active",
                     "artifact_location": "mlflow-artifacts:/1"}  # fmt: skip
            self._answer({"experiment": place})
        elif "runs/get" in self.path:
            self._answer({"run": {"info": self._run(), "data": {}}})
        else:
            self._answer({}, 404)

    def do_POST(self) -> None:
        tree = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        verb = self.path.rpartition("/")[2]
        run = {"info": self._run(), "data": {}}
        if verb == "search":
            self._answer({"runs": [run]} if self.server.made else {})
        elif verb == "create":
            self.server.made = True
            self._answer({"run": run})
        elif verb == "update":
            self.server.statuses.append(tree.get("status", ""))
            self.server.files_at_status.append(len(self.server.files))
            self._answer({"run_info": self._run()})
        else:
            self._answer({})

    def do_PUT(self) -> None:
        size, server = int(self.headers.get("Content-Length", 0)), self.server
        self.close_connection = True
        if "Content-Length" not in self.headers:
            # An empty file comes in chunks, of which the first is the last.
            assert self.rfile.readline() + self.rfile.readline() == b"0\r\n\r\n"
        if server.largest is not None and size > server.largest:
            self._answer({"error": "too large"}, 413)
            return
        found = bytearray()
        while len(found) < size:
            found += self.rfile.read(min(1 << 16, size - len(found)))
            if server.breaks_after is not None and len(found) > server.breaks_after:
                self.connection.close()
                return
            if server.bytes_per_s is not None:
                time.sleep((1 << 16) / server.bytes_per_s)
        name = self.path.partition("/artifacts/1/")[2].partition("/artifacts/")[2]
        server.files[name] = bytes(found)
        server.arrivals.append(name)
        self._answer({})
