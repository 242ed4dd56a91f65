"""A small Hugging Face hub on loopback: one repository, commits, tokens, ranges; and what goes wrong with real ones."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from loopback_server import serving_by

NAME = "org/tiny"
COMMIT, NEWER = "a" * 40, "b" * 40


@dataclass
class Hub:
    """What the server serves, and how it misbehaves.

    Attributes:
        token: That is wanted; empty for none.
        cut: File → after how many bytes its answers end, as often as listed.
        damaged: Files of which a byte is wrong, as often as listed.
        status: With which everything is answered, if not 0.
        served: (file, first byte) of every answer with bytes.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    token: str = ""
    gated: bool = False
    cut: list[tuple[str, int]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    status: int = 0
    served: list[tuple[str, int]] = field(default_factory=list)
    requests: int = 0
    hold: threading.Event | None = None
    held: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    @classmethod
    def of(cls, folder: Path) -> "Hub":
        return cls({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})

    def fetched(self, name: str) -> list[int]:
        """First bytes of the answers for a file."""
        return [start for file, start in self.served if file == name]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.hub
        hub.requests += 1
        path = self.path.partition("?")[0]
        if hub.status:
            return self._answer(hub.status, b"")
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._answer(401, b"", {"X-Error-Code": "GatedRepo"} if hub.gated else {})
        if path.startswith("/api/models/"):
            return self._info(path.removeprefix("/api/models/"))
        name, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if name != NAME or file not in hub.files or self._commit(revision) is None:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self._bytes(file)

    def _commit(self, revision: str) -> str | None:
        return revision if revision in self.hub.commits.values() else self.hub.commits.get(revision)

    def _info(self, path: str) -> None:
        name, _, revision = path.partition("/revision/")
        if name != NAME:
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        commit = self._commit(revision or "main")
        if commit is None:
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        siblings = [_sibling(name, data) for name, data in sorted(self.hub.files.items())]
        return self._answer(200, json.dumps({"id": NAME, "sha": commit, "siblings": siblings}).encode())

    def _bytes(self, file: str) -> None:
        hub, data = self.hub, self.hub.files[file]
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), int(last) + 1 if last else len(data)
        hub.served.append((file, start))
        body = data[start:end]
        if file in hub.damaged and body:
            hub.damaged.remove(file)
            body = bytes([body[0] ^ 1]) + body[1:]
        headers = {"Content-Range": f"bytes {start}-{min(end, len(data)) - 1}/{len(data)}"}
        cut = next((after for name, after in hub.cut if name == file), None)
        if cut is not None:
            hub.cut.remove((file, cut))
            return self._break_off(body, cut, headers)
        return self._answer(206 if "Range" in self.headers else 200, body, headers)

    def _break_off(self, body: bytes, after: int, headers: dict[str, str]) -> None:
        self._head(206 if "Range" in self.headers else 200, len(body), headers)
        self.wfile.write(body[:after])
        self.wfile.flush()
        if self.hub.hold is not None:
            self.hub.held.set()
            self.hub.hold.wait(60)
        self.close_connection = True

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, len(body), headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def _sibling(name: str, data: bytes) -> dict[str, object]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    described: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
    if name.endswith(".safetensors"):
        digest = hashlib.sha256(data).hexdigest()
        described["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
    return described


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve until the end of the `with` statement."""
    with serving_by(_Handler, hub=hub) as hub.url:
        try:
            yield hub
        finally:
            if hub.hold is not None:
                hub.hold.set()
