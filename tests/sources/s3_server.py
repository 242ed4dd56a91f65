"""The part of S3 that reading a folder takes, on loopback: listing by prefix, HEAD and GET with ranges, keys."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_server import serving_by

KEY = "AKIATEST"
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass
class Bucket:
    """One bucket.

    Attributes:
        objects: Key → bytes.
        cut: Keys whose next answer ends in its middle.
        served: (key, first byte) of every answer with bytes.
    """

    name: str = "bucket"
    objects: dict[str, bytes] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)
    served: list[tuple[str, int]] = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    bucket: Bucket
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        bucket, url = self.bucket, urlsplit(self.path)
        name, _, key = unquote(url.path).lstrip("/").partition("/")
        if f"Credential={KEY}/" not in self.headers.get("Authorization", ""):
            return self._refuse(403, "AccessDenied")
        if name != bucket.name:
            return self._refuse(404, "NoSuchBucket")
        if not key:
            return self._list(parse_qs(url.query))
        if key not in bucket.objects:
            return self._refuse(404, "NoSuchKey")
        return self._object(key)

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        found = [(key, data) for key, data in sorted(self.bucket.objects.items()) if key.startswith(prefix)]
        here = [(key, data) for key, data in found if "/" not in key.removeprefix(prefix)]
        deeper = {prefix + key.removeprefix(prefix).partition("/")[0] + "/" for key, _ in found} - {
            f"{key}/" for key, _ in here
        }
        contents = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(data)}</Size><ETag>&quot;{_etag(data)}&quot;</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
            for key, data in here
        )
        folders = "".join(f"<CommonPrefixes><Prefix>{one}</Prefix></CommonPrefixes>" for one in sorted(deeper))
        self._answer(
            200,
            f'<ListBucketResult xmlns="{_NAMESPACE}"><Name>{self.bucket.name}</Name><Prefix>{prefix}</Prefix>'
            f"<KeyCount>{len(here)}</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>"
            f"{contents}{folders}</ListBucketResult>".encode(),
        )

    def _object(self, key: str) -> None:
        data = self.bucket.objects[key]
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last) + 1, len(data)) if last else len(data)
        if self.command == "GET":
            self.bucket.served.append((key, start))
        body = data[start:end]
        headers = {"ETag": f'"{_etag(data)}"', "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        self._answer(206 if "Range" in self.headers else 200, body, headers, cut=key in self.bucket.cut)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut


def _etag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@contextmanager
def serving(bucket: Bucket) -> Iterator[Bucket]:
    """Serve until the end of the `with` statement."""
    with serving_by(_Handler, bucket=bucket) as bucket.url:
        yield bucket
