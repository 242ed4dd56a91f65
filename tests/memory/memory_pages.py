"""What the tests of memory share: pages of known bytes, and what a process has open and mapped."""

import json
import os
import random
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
import transformers

from flexpert_workers.checkpoint import open_checkpoint
from flexpert_workers.memory.loans import Want
from flexpert_workers.messages.owner import Hello


def page_of(backend, seed, nbytes=300_000):
    """A sealed page of random bytes, and the bytes."""
    data = random.Random(seed).randbytes(nbytes)
    page = backend.create(nbytes)
    page.fill(lambda target: target.__setitem__(slice(None), data))
    return page.seal(), data


def num_descriptors(pid="self"):
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

    def fill(self, key, page):
        self.filled.append(key)
        page[:] = self.pages[key]


class TinyCheckpoint:
    """A real checkpoint of 2 layers, in a folder of its own that a test may damage."""

    def __init__(self, folder, num_experts=8):
        config = transformers.MixtralConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            num_local_experts=num_experts,
            num_experts_per_tok=2,
        )
        torch.manual_seed(3)
        transformers.MixtralForCausalLM(config).save_pretrained(folder)
        self.weights = Path(folder) / "model.safetensors"
        self.source = f"file://{folder}"
        checkpoint = open_checkpoint(self.source)
        self._about = (checkpoint.digest, checkpoint.layout.page_bytes)
        self.keys = [(layer, index) for layer in range(2) for index in range(num_experts)]
        self.pages = {key: bytes(checkpoint.read_expert(*key)) for key in self.keys}

    def hello(self, borrower):
        return Hello(borrower, "pool", *self._about, len(self.keys))


def wants(*keys):
    return [Want(key) for key in keys]


@contextmanager
def owner_process(config):
    """A page owner as a process of its own, that lends already."""
    command = [sys.executable, "-m", "flexpert_workers.memory.owner", "--config", msgspec.json.encode(config).decode()]
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
