"""A stand-in for the Hugging Face Hub: it takes repositories and commits, and keeps what it was sent."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        created: what was asked for when a repository was created.
        tokens: of all requests to the Hub itself.
        files: content of each file of the commits, by its path.
        large: content of each file that was sent apart from the commit, by its SHA-256.
        refusal: status of the answer to the request whose path ends as the second entry says; None: none is refused.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.refusal: tuple[int, str] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def _mode(path: str) -> dict[str, Any]:
    is_large = path.endswith(".safetensors")
    return {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.refusal and self.path.endswith(self.server.refusal[1]):
            self._answer(self.server.refusal[0], {"error": "the stand-in refuses"})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            is_new = asked not in self.server.created
            self.server.created.append(asked)
            address = f"{self.server.address}/{asked['organization']}/{asked['name']}"
            self._answer(200 if is_new else 409, {"url": address})
        elif self.path.endswith("/preupload/main"):
            self._answer(200, {"files": [_mode(one["path"]) for one in json.loads(body)["files"]]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.address}/large/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif self.path.endswith("/commit/main"):
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer(200, {"errors": [], "warnings": []})  # of the card's first lines, /api/validate-yaml

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[self.path.rpartition("/")[2]] = body
        self._answer(200, {})

    def do_GET(self) -> None:
        self._answer(404, {"error": f"the stand-in has no {self.path}"})

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.server.large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                self.server.files[value["path"]] = content
        self._answer(
            200,
            {"commitUrl": f"{self.server.address}/user/name/commit/{0:040}", "commitOid": "0" * 40, "success": True},
        )

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""
