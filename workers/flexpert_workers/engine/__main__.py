"""Runs one engine as a process: `python -m flexpert_workers.engine --config JSON`.

Started by the subprocess launcher. When it serves it prints one JSON line {"endpoint", "pid"} on stdout. SIGTERM drains
it and ends it once no request is left; a second SIGTERM, or SIGINT, ends it at once. What a user can mend (a
checkpoint, a memory limit) ends it with status 3 and a JSON line {"error", "message"}.
"""

import argparse
import json
import os
import signal
import sys
import threading

import msgspec

from flexpert_proto import logs
from flexpert_proto.tracing import tracing_if_usable
from flexpert_workers.engine.config import EngineConfig
from flexpert_workers.engine.service import EngineService
from flexpert_workers.errors import FlexpertError

_CHECK_S = 0.1


def main() -> int:
    """Serve until told to end; 3 when the engine could not start, 1 when it broke."""
    logs.configure(own=logs.of_pool("engine"))
    parser = argparse.ArgumentParser(prog="flexpert_workers.engine", description="One attention engine.")
    parser.add_argument("--config", required=True, help="EngineConfig as JSON")
    config = msgspec.json.decode(parser.parse_args().config, type=EngineConfig)
    drain, end = threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set() if drain.is_set() else drain.set())
    signal.signal(signal.SIGINT, lambda *_: end.set())
    service = EngineService(config, tracing_if_usable("flexpert-engine"))
    try:
        service.start()
    except FlexpertError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
        return 3
    print(json.dumps({"endpoint": service.endpoint, "pid": os.getpid()}), flush=True)
    while not end.wait(_CHECK_S) and service.healthy() and not service.drained:
        if drain.is_set():
            service.drain()
    is_healthy = service.healthy()
    service.stop()
    return 0 if is_healthy else 1


if __name__ == "__main__":
    sys.exit(main())
