"""`python -m flexpert_workers.memory.owner --config JSON`: one page owner as a process.

Once workers can borrow it prints one JSON line {"domain", "socket", "pid"}; it ends on SIGTERM or SIGINT. When it
cannot serve it ends with status 3 and a JSON line {"error", "message"}.
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
from flexpert_workers.errors import DeviceUnavailable
from flexpert_workers.memory.devices import DeviceOpener, open_device
from flexpert_workers.memory.owner.config import OwnerConfig
from flexpert_workers.memory.owner.process import OwnerProcess


def main(opener: DeviceOpener = open_device) -> int:
    """Run an owner until it is asked to end."""
    logs.configure(own=logs.of_pool("page-owner"))
    parser = argparse.ArgumentParser(prog="flexpert_workers.memory.owner", description="Own the pages of one domain.")
    parser.add_argument("--config", required=True, help="OwnerConfig as JSON")
    config = msgspec.json.decode(parser.parse_args().config, type=OwnerConfig)
    os.environ.update(threads.environment(1))
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    try:
        owner = OwnerProcess(config, opener)
    except (OSError, DeviceUnavailable) as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
        return 3
    owner.start()
    print(json.dumps({"domain": config.domain, "socket": config.socket, "pid": os.getpid()}), flush=True)
    asked.wait()
    owner.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
