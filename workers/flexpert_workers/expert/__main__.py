"""`python -m flexpert_workers.expert --config JSON`: one expert worker as a process.

A launcher starts it without Ray. Once it serves it prints one JSON line {"endpoint", "control_endpoint",
"incarnation", "pid"}; it ends on SIGTERM, SIGINT or a `Stop` message. A checkpoint or a device that cannot be used, or
a page owner that is not there, ends it with status 3 and a JSON line {"error", "message"}.
"""

import argparse
import json
import os
import signal
import sys
import threading

import msgspec

from flexpert_proto import logs
from flexpert_workers import threads
from flexpert_workers.errors import FlexpertError
from flexpert_workers.expert import ExpertWorker, WorkerConfig
from flexpert_workers.memory.devices import DeviceOpener, open_device


def main(opener: DeviceOpener = open_device) -> int:
    """Run a worker until it is asked to end."""
    logs.configure(own=logs.of_pool("worker"))
    parser = argparse.ArgumentParser(prog="flexpert_workers.expert", description="Run one expert worker.")
    parser.add_argument("--config", required=True, help="WorkerConfig as JSON")
    config = msgspec.json.decode(parser.parse_args().config, type=WorkerConfig)
    threads.configure(config.threads)
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    worker = ExpertWorker(config, opener)
    try:
        worker.start()
    except (FlexpertError, ConnectionError) as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
        return 3
    ready = {
        "endpoint": worker.endpoint,
        "control_endpoint": worker.control_endpoint,
        "incarnation": worker.incarnation,
        "pid": os.getpid(),
    }
    print(json.dumps(ready), flush=True)
    while not asked.is_set() and not worker.wait(0.2):
        pass
    worker.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
