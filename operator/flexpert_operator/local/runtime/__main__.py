"""`python -m flexpert_operator.local.runtime --kubeconfig FILE --state-dir FOLDER`; `flexpert local up` starts it."""

import argparse
import asyncio
import logging
import os
import random
import secrets
import signal
import socket
import sys
from pathlib import Path

from flexpert_operator.local.layout import Layout
from flexpert_operator.local.runtime import environment
from flexpert_operator.local.runtime.books import Books
from flexpert_operator.local.runtime.containers import Host
from flexpert_operator.local.runtime.kube import Access, Kube
from flexpert_operator.local.runtime.loop import Runtime
from flexpert_proto import logs

_LAST_GRACE_S = 10.0
_MAPPED_LOOPBACK = "::ffff:127.0.0.1"


def main() -> int:
    """Run until SIGTERM or SIGINT, then stop every container."""
    arguments = _arguments()
    logs.configure(own={"part": "local-runtime"})
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
    layout = Layout(arguments.state_dir.absolute())
    prepare(layout)
    books = Books(layout.pods, layout.scratch)
    asyncio.run(_run(Access.read(arguments.kubeconfig), books, this_host(layout)))
    books.end_all(_LAST_GRACE_S)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flexpert_operator.local.runtime", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    return parser.parse_args()


async def _run(access: Access, books: Books, host: Host) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with Kube(access) as kube:
        loop = asyncio.create_task(Runtime(kube, books, host, random.Random()).run())
        waiting = asyncio.create_task(ended.wait())
        await asyncio.wait((loop, waiting), return_when=asyncio.FIRST_COMPLETED)
        for task in (loop, waiting):
            task.cancel()
        if loop.done() and not loop.cancelled():
            loop.result()


def prepare(layout: Layout) -> None:
    """Make the folders and the token of Ray's processes."""
    for folder in (layout.root, layout.logs, layout.volumes):
        folder.mkdir(parents=True, exist_ok=True)
    layout.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not layout.ray_token.exists():
        descriptor = os.open(layout.ray_token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))


def this_host(layout: Layout) -> Host:
    """Facts about this machine."""
    return Host(
        layout=layout,
        environment=environment.inherited(os.environ) | {"PYTHONPATH": os.pathsep.join(_absolute_python_path())},
        num_cores=len(os.sched_getaffinity(0)),
        loopback=f"[{_MAPPED_LOOPBACK}]" if _has_mapped_loopback() else None,
    )


def _absolute_python_path() -> list[str]:
    return [str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _has_mapped_loopback() -> bool:
    """Whether an IPv6 socket reaches IPv4's loopback: true wherever the kernel has IPv6 sockets at all."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET6) as client:
            client.connect((_MAPPED_LOOPBACK, server.getsockname()[1]))
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
