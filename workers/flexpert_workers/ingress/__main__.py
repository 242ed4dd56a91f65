"""`python -m flexpert_workers.ingress`: one ingress as a process, configured by its environment (see `config.py`).

Prints one line of JSON when it listens. SIGTERM or SIGINT drains it; a second one ends it at once.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import uvloop

from flexpert_proto import logs
from flexpert_proto.tracing import Tracing, tracing_if_usable
from flexpert_workers.ingress.config import IngressConfig, from_environment
from flexpert_workers.ingress.server import running
from flexpert_workers.ingress.tokens import read_tokens


async def serve(config: IngressConfig, tracing: Tracing | None) -> None:
    """Run an ingress until a signal comes."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with running(config, tracing) as ingress:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        ready = {"grpc_port": ingress.grpc_port, "http_port": ingress.http_port, "pid": os.getpid()}
        print(json.dumps(ready), flush=True)
        await stopping.wait()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def main() -> int:
    """Read the environment and serve."""
    try:
        logs.configure(own=logs.of_pool("ingress"))
        config = from_environment(os.environ)
        if config.tokens_file:
            read_tokens(Path(config.tokens_file))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    uvloop.run(serve(config, tracing_if_usable("flexpert-ingress")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
