"""A model hub of one repository on this machine, with the endpoints that huggingface_hub asks."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves `files` (name -> bytes) as ORG/REPO. `silent`: take connections and never answer."""

    def __init__(self, files: dict[str, bytes], repo: str = "org/repo", silent: bool = False) -> None:
        self.files, self.repo, self.silent = files, repo, silent
        self.requests: list[str] = []
        self.url = ""


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Runs `hub` on a free port of this machine while the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Quiet."""

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            if hub.silent:
                time.sleep(60)
                return
            path = self.path.partition("?")[0]
            if re.fullmatch(rf"/api/models/{hub.repo}(/revision/[^/]+)?", path):
                siblings = [{"rfilename": name} for name in hub.files]
                self.reply(json.dumps({"id": hub.repo, "sha": COMMIT, "siblings": siblings}).encode())
            elif path.startswith(f"/api/models/{hub.repo}/tree/"):
                self.reply(json.dumps([self.entry(name) for name in hub.files]).encode())
            elif (match := re.fullmatch(rf"/{hub.repo}/resolve/[^/]+/(.+)", path)) and match[1] in hub.files:
                content = hub.files[match[1]]
                etag = hashlib.sha256(content).hexdigest()
                self.reply(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
            else:
                self.reply(b"{}", {"X-Error-Code": "RepoNotFound"}, 404)

        def entry(self, name: str) -> dict[str, Any]:
            content = hub.files[name]
            return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

        def reply(self, content: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
