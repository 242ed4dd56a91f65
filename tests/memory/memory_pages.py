"""What the tests of memory share: pages of known bytes, and what a process has open and mapped."""

import gc
import json
import os
import random
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import msgspec

from flexpert_workers.memory.loans import Want


def page_of(backend, seed, nbytes=300_000):
    """A sealed page of random bytes, and the bytes."""
    data = random.Random(seed).randbytes(nbytes)
    page = backend.create(nbytes)
    page.fill(lambda target: target.__setitem__(slice(None), data))
    return page.seal(), data


def num_descriptors(pid="self"):
    gc.collect()  # what earlier tests left behind counts as gone
    return len(os.listdir(f"/proc/{pid}/fd"))


def num_page_mappings(pid="self"):
    """Mappings of pages in a process."""
    return sum("flexpert-page" in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines())


class Files:
    """Expert bytes that stand for a checkpoint, and who asked for which."""

    def __init__(self, num_layers=2, num_experts=8, nbytes=20_000):
        self.nbytes = nbytes
        self.keys = [(layer, index) for layer in range(num_layers) for index in range(num_experts)]
        generator = random.Random(5)
        self.pages = {key: generator.randbytes(nbytes) for key in self.keys}
        self.filled = []

    def fill(self, key, page, pace=lambda num_bytes: None):
        pace(len(page))
        self.filled.append(key)
        page[:] = self.pages[key]


def wants(*keys):
    return [Want(key) for key in keys]


@contextmanager
def owner_process(config, run=("-m", "flexpert_workers.memory.owner")):
    """A page owner as a process of its own, that lends already."""
    command = [sys.executable, *run, "--config", msgspec.json.encode(config).decode()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def until(condition, timeout_s=30.0):
    """Wait for something that another process does."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return found
