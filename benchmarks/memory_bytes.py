"""For `bench_memory`: GB/s of filling pages from the page cache, of copying them between domains, and of peers."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flexpert_workers.checkpoint import Checkpoint
from flexpert_workers.memory.host import HostBackend
from flexpert_workers.memory.loans import Want
from flexpert_workers.memory.owner.filling import PageFiller
from flexpert_workers.memory.owner.pages import PageOwner
from flexpert_workers.transfer import Identity, PageFetcher

GB = 1e9
SENDER = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
data = bytearray(int(sys.argv[2]))
while sock.recv(1):
    sock.sendall(data)
"""


def fill_pages(checkpoint: Checkpoint, readers: int, made_ahead: bool) -> dict[str, Any]:
    """An owner fills a page for every expert, checksums and seals included."""
    keys = all_keys(checkpoint)
    page_bytes = checkpoint.layout.page_bytes
    backend = HostBackend()
    filler = PageFiller(lambda key, page, pace: checkpoint.fill_page(*key, page, pace), _no_peer)
    budget = len(keys) * backend.footprint(page_bytes)
    owner = PageOwner(backend, page_bytes, budget, filler, readers, ahead=len(keys) if made_ahead else 0)
    while made_ahead and owner.status().used_bytes < budget:
        time.sleep(0.01)
    started = time.perf_counter()
    loans = [loan for batch in owner.acquire("bench", [Want(key) for key in keys]) for loan in batch]
    seconds = time.perf_counter() - started
    owner.close()
    return {
        "measure": "fill",
        "readers": readers,
        "made_ahead": made_ahead,
        "gb_per_s": len(keys) * page_bytes / seconds / GB,
        "copy_s": sum(loan.copy_s for loan in loans),
        "verify_s": sum(loan.verify_s for loan in loans),
    }


def read_plainly(checkpoint: Checkpoint, threads: int) -> dict[str, Any]:
    """As many bytes of the same file, a page's length at a time, into memory that is there already."""
    (path,) = checkpoint.path.glob("*.safetensors")
    page_bytes = checkpoint.layout.page_bytes
    num_pages = len(all_keys(checkpoint))
    descriptor = os.open(path, os.O_RDONLY)
    buffer = bytearray(num_pages * page_bytes)
    target = memoryview(buffer)

    def read(thread: int) -> None:
        for page in range(thread, num_pages, threads):
            start = page * page_bytes
            os.preadv(descriptor, [target[start : start + page_bytes]], start)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: None, range(threads)))
        seconds = timed(lambda: list(pool.map(read, range(threads))))
    os.close(descriptor)
    return {"measure": "read", "threads": threads, "gb_per_s": num_pages * page_bytes / seconds / GB}


def load_safetensors(checkpoint: Checkpoint) -> dict[str, Any]:
    """`safetensors.torch.load_file`, and a touch of every page of what it maps."""
    from safetensors.torch import load_file

    (path,) = checkpoint.path.glob("*.safetensors")
    seconds = timed(lambda: [tensor.clone() for tensor in load_file(path).values()])
    return {"measure": "load_file", "gb_per_s": path.stat().st_size / seconds / GB}


def copy_between_domains(endpoint: str, identity: Identity, checkpoint: Checkpoint, kind: str) -> dict[str, Any]:
    """Fetch pages from another owner's process into pages that are there already."""
    keys = all_keys(checkpoint)
    page_bytes = checkpoint.layout.page_bytes
    fetcher = PageFetcher(identity)
    page = HostBackend().create(page_bytes)

    def fetch_into(target: memoryview) -> None:
        for key in keys:
            fetcher.fetch(endpoint, key, target)

    fetcher.fetch(endpoint, keys[0], memoryview(bytearray(page_bytes)))
    seconds = timed(lambda: page.fill(fetch_into))
    fetcher.close()
    page.close()
    return {"measure": "copy", "over": kind, "gb_per_s": len(keys) * page_bytes / seconds / GB}


def copy_by_socket(kind: str, page_bytes: int, num_pages: int) -> dict[str, Any]:
    """Another process sends pages over a plain socket: no chunks, no checksums."""
    ours, theirs = socket.socketpair() if kind == "ipc" else tcp_pair()
    arguments = [sys.executable, "-c", SENDER, str(theirs.fileno()), str(page_bytes)]
    with subprocess.Popen(arguments, pass_fds=[theirs.fileno()]) as sender:
        theirs.close()
        target = memoryview(bytearray(page_bytes))

        def receive() -> None:
            ours.send(b"x")
            read = 0
            while read < page_bytes:
                read += ours.recv_into(target[read:])

        def receive_all() -> None:
            for _ in range(num_pages):
                receive()

        receive()
        seconds = timed(receive_all)
        ours.close()
        sender.wait()
    return {"measure": "socket", "over": kind, "gb_per_s": num_pages * page_bytes / seconds / GB}


def copy_by_memcpy(page_bytes: int, num_pages: int) -> dict[str, Any]:
    """Within one process, from one buffer into another."""
    source, target = memoryview(bytearray(page_bytes)), memoryview(bytearray(page_bytes))

    def copy() -> None:
        for _ in range(num_pages):
            target[:] = source

    copy()
    return {"measure": "memcpy", "gb_per_s": num_pages * page_bytes / timed(copy) / GB}


def all_keys(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """Every expert."""
    return [(layer, index) for layer in range(checkpoint.num_layers) for index in range(checkpoint.num_experts)]


def timed(act: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def warm_page_cache(folder: Path) -> None:
    """Read every file once."""
    for path in folder.iterdir():
        path.read_bytes()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ends: list[socket.socket] = []
        accepting = threading.Thread(target=lambda: ends.append(server.accept()[0]))
        accepting.start()
        ours = socket.create_connection(server.getsockname())
        accepting.join()
        return ours, ends[0]


def _no_peer(endpoint: str, key: tuple[int, int], into: Any, **_: Any) -> int:
    raise ConnectionError(endpoint)
