"""A small hub on loopback: it lists, serves parts of files, redirects, and misbehaves on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
SECRET = "signed-with-a-key"


@dataclass
class Repository:
    """Files at one commit, and what is wrong with them.

    Attributes:
        files: Contents by name.
        lfs: Names of files that are stored apart: they have a SHA-256, and their addresses lead
            elsewhere.
        faults: By file: `missing`, `wrong`, `cut` (it ends in the middle, always), `stall` (it
            stops in the middle, once), `stuck` (always).
        gated: Whether nobody is let in.
        sha: The commit that is told.
    """

    files: dict[str, bytes]
    lfs: set[str] = field(default_factory=set)
    faults: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    sha: str = COMMIT


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    path: str
    headers: Mapping[str, str]


class Hub(ThreadingHTTPServer):
    """The server; `repositories` may be changed at any time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[Asked] = []
        self.let_go = threading.Event()
        self.stalled: set[str] = set()
        self.broken = False

    @property
    def address(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> list[str]:
        """The files whose content was asked for, in order."""
        return [a.path.rsplit("/", 1)[1] for a in self.asked
                if a.method == "GET" and "/resolve/" in a.path]  # fmt: skip


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.server.asked.append(
            Asked(self.command, path, {k.lower(): v for k, v in self.headers.items()})
        )
        if self.server.broken:
            self._send(200, b'["no listing"]', {})
        elif path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self._list(name, revision)
        elif path.startswith("/stored/"):
            assert parse_qs(parts.query) == {"key": [SECRET]}
            name, _, file = path.removeprefix("/stored/").partition("//")
            self._content(self.server.repositories[name], file)
        elif "/resolve/" in path:
            name, _, rest = path[1:].partition("/resolve/")
            self._file(name, rest.partition("/")[2])
        else:
            self._send(404, b"", {})

    def _list(self, name: str, revision: str) -> None:
        repository = self.server.repositories.get(name)
        if repository is None:
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("", "main", repository.sha):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            files = [self._sibling(repository, file) for file in repository.files]
            told = {"id": name, "modelId": name, "sha": repository.sha, "siblings": files}
            self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    @staticmethod
    def _sibling(repository: Repository, file: str) -> dict[str, Any]:
        content = repository.files[file]
        told: dict[str, Any] = {"rfilename": file, "size": len(content),
                                "blobId": git_name(content)}  # fmt: skip
        if file in repository.lfs:
            sha256 = hashlib.sha256(content).hexdigest()
            told["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
        return told

    def _file(self, name: str, file: str) -> None:
        repository = self.server.repositories[name]
        if repository.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        if repository.faults.get(file) == "missing":
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        if file not in repository.lfs:
            self._content(repository, file)
            return
        content = repository.files[file]
        self._send(302, b"", {
            "Location": f"{self.server.address}/stored/{name}//{file}?key={SECRET}",
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(content)),
            "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
        })  # fmt: skip

    def _content(self, repository: Repository, file: str) -> None:
        content, fault = repository.files[file], repository.faults.get(file, "")
        name = git_name(content)
        sent = content[:-1] + bytes([content[-1] ^ 1]) if fault == "wrong" else content
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        once = fault == "stall" and file not in self.server.stalled
        middle = max(start, len(content) // 2)
        if self.command == "GET" and (fault in ("cut", "stuck") or once):
            self.server.stalled.add(file)
            self._begin(206 if start else 200, len(content) - start, headers)
            self.wfile.write(sent[start:middle])
            self.wfile.flush()
            if fault != "cut":
                self.server.let_go.wait(20)
            self.close_connection = True
        else:
            self._send(206 if start else 200, sent[start:], headers)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self._begin(status, len(content), headers)
        if self.command == "GET":
            self.wfile.write(content)

    def _begin(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
