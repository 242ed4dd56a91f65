"""`python -m flexpert_workers.sources.fetch SOURCE`: brings a checkpoint into this node's cache, or verifies it there.

The pool controller has it run once on every node (`pool.fetching`); by hand it fills a cache for pools that are
offline. It prints lines of JSON, the last of which has `folder` and `source`, or `error` (the exception's class) and
`message`, with exit status 3.
"""

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from flexpert_proto import logs
from flexpert_workers.errors import CheckpointError, CheckpointNotFound
from flexpert_workers.sources.bringing import Bringer
from flexpert_workers.sources.cache import Cache
from flexpert_workers.sources.filling import FetchPhase, Progress
from flexpert_workers.sources.location import parse_remote

EXIT_REFUSED = 3
_REPORT_S = 0.5


class Reporter:
    """Prints how far a fetch is whenever that has changed, from a thread of its own, between `with` and its end."""

    def __init__(self, progress: Progress, say: Callable[[dict[str, Any]], None]) -> None:
        self._progress = progress
        self._say = say
        self._told: dict[str, Any] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)

    def __enter__(self) -> "Reporter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._tell()

    def _run(self) -> None:
        while not self._ending.wait(_REPORT_S):
            self._tell()

    def _tell(self) -> None:
        progress = self._progress
        now = {
            "phase": str(progress.phase),
            "bytes_done": progress.bytes_done,
            "bytes_total": progress.bytes_total,
        }
        if now != self._told:
            self._told = now
            self._say(now)


def main(arguments: list[str]) -> int:
    """Fetch; returns the exit status."""
    logs.configure(own=logs.of_pool("fetch"))
    parser = argparse.ArgumentParser(prog="flexpert_workers.sources.fetch", description="Bring a checkpoint here.")
    parser.add_argument("source", help="hf://organisation/name, s3://bucket/folder or gs://bucket/folder")
    parser.add_argument("--revision", default="main", help="branch, tag or commit of a hub (default: main)")
    parser.add_argument("--verify", action="store_true", help="read every byte; fetch anew what is damaged")
    parser.add_argument("--tied", action="store_true", help="end when standard input does")
    asked = parser.parse_args(arguments)
    if asked.tied:
        threading.Thread(target=_end_with_input, name="tied", daemon=True).start()
    progress = Progress()
    try:
        with Reporter(progress, _print):
            remote = parse_remote(asked.source, asked.revision)
            if remote is None:
                raise CheckpointNotFound(f"{asked.source!r} is no remote source: there is nothing to fetch")
            pinned, folder = Bringer(Cache.of()).whole(remote, progress, asked.verify)
    except CheckpointError as refusal:
        progress.phase = FetchPhase.FAILED
        _print({"phase": str(FetchPhase.FAILED), "error": type(refusal).__name__, "message": str(refusal)})
        return EXIT_REFUSED
    _print({"phase": str(FetchPhase.READY), "folder": str(folder), "source": str(pinned), "revision": pinned.revision})
    return 0


def _print(said: dict[str, Any]) -> None:
    print(json.dumps(said), flush=True)


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1 << 12):
        continue
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
