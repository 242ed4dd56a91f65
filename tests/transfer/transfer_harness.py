"""Pages with random bytes, page servers as threads and as processes, and a TCP proxy that breaks what passes it."""

import json
import random
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace

from flexpert_workers.transfer import FetchLimits, Identity, PageFetcher, PageServer, TokenBucket

IDENTITY = Identity("pool-uid", "digest")
QUICK = FetchLimits(
    chunk_bytes=64 << 10, least_chunk_bytes=8 << 10, window_bytes=256 << 10, silence_s=0.3, patience_s=60.0
)
PATIENT = replace(QUICK, silence_s=60.0)
"""Takes no source for one that hangs."""
PROCESS = """
import json, sys
from flexpert_workers.transfer import PageServer, TokenBucket
from transfer_harness import IDENTITY, page_of
rate = float(sys.argv[2]) or None
server = PageServer(lambda key: page_of(key, int(sys.argv[1])), IDENTITY, "127.0.0.1", "", TokenBucket(rate, 1 << 16))
server.start()
print(json.dumps({"endpoint": server.endpoint}), flush=True)
sys.stdin.read()
server.stop()
"""
TARGET = """
import sys
from flexpert_workers.transfer import FetchLimits, PageFetcher
from transfer_harness import IDENTITY
fetcher = PageFetcher(IDENTITY, limits=FetchLimits(window_bytes=32 << 20))
while True:
    fetcher.fetch(sys.argv[1], (0, 0), memoryview(bytearray(int(sys.argv[2]))))
"""


def page_of(key, num_bytes):
    """The bytes of an expert's page, the same in every process."""
    return memoryview(random.Random(f"{key}").randbytes(num_bytes))


class Pages:
    """What a server holds; counts what is asked for."""

    def __init__(self, num_bytes=1 << 20, keys=((0, 0), (0, 1), (1, 0))):
        self.pages = {key: page_of(key, num_bytes) for key in keys}

    def __call__(self, key):
        return self.pages.get(key)


def until(condition, timeout_s=60.0):
    """Wait for other threads and processes to make it so."""
    ticking = threading.Event()
    for _ in range(round(timeout_s * 100)):
        if condition():
            return
        ticking.wait(0.01)
    raise AssertionError("it did not come true")


@contextmanager
def serving(pages, identity=IDENTITY, socket_dir="", **options):
    server = PageServer(pages, identity, "127.0.0.1", str(socket_dir), **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def fetching(identity=IDENTITY, limits=QUICK, **options):
    fetcher = PageFetcher(identity, limits=limits, **options)
    try:
        yield fetcher
    finally:
        fetcher.close()


@contextmanager
def source_process(folder, num_bytes, rate=0.0):
    """A page server as a process: yields (process, endpoint). It may be killed or stopped meanwhile."""
    command = [sys.executable, "-c", PROCESS, str(num_bytes), str(rate)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder, text=True)
    try:
        yield process, json.loads(process.stdout.readline())["endpoint"]
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@contextmanager
def target_process(folder, endpoint, num_bytes):
    """A process that copies a page again and again; yields it. It may be killed or stopped meanwhile."""
    process = subprocess.Popen([sys.executable, "-c", TARGET, endpoint, str(num_bytes)], cwd=folder)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Proxy:
    """Forwards TCP connections to `target`, which may change; can break, slow or damage what comes back.

    Attributes:
        cut_after: Bytes from the target, over all connections, after which the connection is cut, once each.
        damage_at: Positions in what comes from the target of bytes that are changed, once each.
        piece: Bytes forwarded at a time, with a pause of `delay_s` after each.
        sent: Bytes forwarded from the target, over all connections.
    """

    def __init__(self, target, cut_after=(), damage_at=(), piece=1 << 16, delay_s=0.0):
        self.target = target
        self.cut_after = list(cut_after)
        self.damage_at = list(damage_at)
        self.piece = piece
        self.delay_s = delay_s
        self.sent = 0
        self.connections = 0
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self):
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _accept(self):
        while not self._stopped.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                inner = self._listener.accept()[0]
                thread = threading.Thread(target=self._forward, args=(inner,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _forward(self, near):
        host, port = self.target.removeprefix("tcp://").split(":")
        try:
            far = socket.create_connection((host, int(port)), timeout=1)
        except OSError:
            near.close()
            return
        near.settimeout(2)
        far.settimeout(2)
        self.connections += 1
        with near, far:
            try:
                while not self._stopped.is_set():
                    ready = select.select([near, far], [], [], 0.05)[0]
                    if near in ready:
                        if not (data := near.recv(1 << 16)):
                            return
                        far.sendall(data)
                    if far in ready:
                        if not (data := far.recv(self.piece)):
                            return
                        if not self._back(near, bytearray(data)):
                            return
            except OSError:
                return

    def _back(self, near, data):
        """Forward to the target of the copy; whether the connection stays."""
        for position in [each for each in self.damage_at if self.sent <= each < self.sent + len(data)]:
            data[position - self.sent] ^= 0x40
            self.damage_at.remove(position)
        if self.cut_after and self.sent + len(data) >= self.cut_after[0]:
            kept = max(0, self.cut_after.pop(0) - self.sent)
            near.sendall(data[:kept])
            self.sent += kept
            return False
        near.sendall(data)
        self.sent += len(data)
        self._stopped.wait(self.delay_s)
        return True


class Clock:
    """A clock that is put forward by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


__all__ = ["IDENTITY", "QUICK", "Clock", "Pages", "Proxy", "TokenBucket", "fetching", "page_of", "serving", "until"]
