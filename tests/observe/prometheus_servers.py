"""What answers Prometheus' query API in tests: a small server that scrapes when it is asked, and the real one."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

MATCHER = re.compile(r'(\w+)(=~|=)("(?:[^"\\]|\\.)*")')
START_S = 300.0


def real_prometheus() -> str | None:
    """Path of the program, where it is found (Debian's package `prometheus`)."""
    return os.environ.get("FLEXPERT_PROMETHEUS") or shutil.which("prometheus")


class SmallPrometheus(ThreadingHTTPServer):
    """Instant queries of one selector, and `timestamp` of one, over targets that are scraped at that moment.

    Attributes:
        down: Targets that cannot be scraped, as after they have gone.
        scraped_at: Instead of now, when that was.
    """

    daemon_threads = True

    def __init__(self, targets: Sequence[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.targets = list(targets)
        self.down: set[str] = set()
        self.scraped_at: float | None = None
        self.asked: list[Mapping[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def evaluate(self, query: str) -> list[dict[str, Any]]:
        """Raises ValueError for what is beyond it."""
        at = time.time() if self.scraped_at is None else self.scraped_at
        whole = re.fullmatch(r"(timestamp\()?\{(.*)\}\)?", query)
        if whole is None:
            raise ValueError(f"not a selector: {query}")
        wanted = [(name, kind, json.loads(text)) for name, kind, text in MATCHER.findall(whole[2])]
        found = []
        for target in self.targets:
            for sample in () if target in self.down else self.scrape(target):
                labels = {**sample.labels, "__name__": sample.name, "instance": target, "job": "flexpert"}
                if all(_matches(labels.get(name, ""), kind, text) for name, kind, text in wanted):
                    value = at if whole[1] else sample.value
                    if whole[1]:
                        del labels["__name__"]
                    found.append({"metric": labels, "value": [time.time(), str(value)]})
        return found

    def scrape(self, target: str) -> list[Any]:
        """Samples of a target, now."""
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=60) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        return [sample for family in families for sample in family.samples]


def _matches(value: str, kind: str, text: str) -> bool:
    return value == text if kind == "=" else re.fullmatch(text, value) is not None


class _Handler(BaseHTTPRequestHandler):
    server: SmallPrometheus

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.asked.append(dict(self.headers))
        try:
            if self.path != "/api/v1/query":
                raise ValueError(self.path)
            result = self.server.evaluate(urllib.parse.parse_qs(body)["query"][0])
            status, answer = 200, {"status": "success", "data": {"resultType": "vector", "result": result}}
        except ValueError as wrong:
            status, answer = 400, {"status": "error", "errorType": "bad_data", "error": str(wrong)}
        said = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def small(targets: Sequence[str]) -> AbstractContextManager[SmallPrometheus]:
    return answering(SmallPrometheus(targets))


@contextlib.contextmanager
def answering(small_prometheus: SmallPrometheus) -> Iterator[SmallPrometheus]:
    with small_prometheus as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class RealPrometheus:
    """Prometheus itself, which scrapes every two seconds."""

    def __init__(self, program: str, folder: Path, targets: Sequence[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        jobs = [{"job_name": "flexpert", "honor_labels": True, "static_configs": [{"targets": list(targets)}]}]
        intervals = {"scrape_interval": "2s", "scrape_timeout": "2s"}
        (folder / "prometheus.yml").write_text(yaml.safe_dump({"global": intervals, "scrape_configs": jobs}))
        command = [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
        ]
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def query(self, expression: str) -> list[dict[str, Any]]:
        body = urllib.parse.urlencode({"query": expression}).encode()
        with urllib.request.urlopen(f"{self.url}/api/v1/query", data=body, timeout=60) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])

    def series(self, selector: str) -> list[dict[str, str]]:
        found = urllib.parse.urlencode({"match[]": selector})
        with urllib.request.urlopen(f"{self.url}/api/v1/series?{found}", timeout=60) as response:
            return list(json.load(response)["data"])

    def wait(self, expression: str) -> None:
        """Until a query has an answer."""
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                if self.query(expression):
                    return
            assert self._process.poll() is None, "Prometheus has ended"
            assert time.monotonic() < deadline, f"nothing for {expression}"
            time.sleep(0.1)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()
