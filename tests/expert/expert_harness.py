"""Tiny checkpoints with the architecture's own forward as reference, and expert workers as threads and as processes."""

import json
import os
import select
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
import transformers
import zmq

from flexpert_workers import threads
from flexpert_workers.expert import WorkerConfig
from flexpert_workers.expert.control_client import ControlClient
from flexpert_workers.messages import control
from flexpert_workers.messages.dispatch import DispatchReply, DispatchRequest, Status
from flexpert_workers.routing import Epoch, Replica, RoutingTable, WorkerAddress
from flexpert_workers.transfer import Identity, PageServer
from flexpert_workers.transport.listening import dial

POOL = "pool-uid"
COMMON = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
MODELS = {
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**COMMON, intermediate_size=96, num_local_experts=8, num_experts_per_tok=2)
    ),
    "gpt_oss": lambda: transformers.GptOssForCausalLM(
        transformers.GptOssConfig(
            **COMMON,
            head_dim=16,
            intermediate_size=80,
            num_local_experts=8,
            num_experts_per_tok=2,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
}


@dataclass(frozen=True)
class TinyModel:
    """A model in memory and its checkpoint on disk."""

    source: str
    model: torch.nn.Module

    def experts(self, layer):
        return self.model.model.layers[layer].mlp.experts

    @torch.no_grad()
    def reference(self, layer, hidden, top_k_index, top_k_weights):
        """The architecture's own experts forward, on the eager path."""
        experts = self.experts(layer)
        experts.config._experts_implementation = "eager"
        return experts(hidden, top_k_index, top_k_weights)


def make_model(kind, folder, dtype=torch.float32):
    torch.manual_seed(7)
    model = MODELS[kind]().to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:  # initialised to zero, which would hide a bias that is not added
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    return TinyModel(f"file://{folder}", model)


def routed(rows, num_experts, k, hidden_size=64, dtype=torch.float32, seed=0):
    """Random input of an experts layer: (hidden, top_k_index, top_k_weights)."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, hidden_size, generator=generator).to(dtype)
    scores = torch.rand(rows, num_experts, generator=generator)
    weights, index = scores.topk(k)
    return hidden, index, weights.softmax(-1).to(dtype)


def make_config(name, source, socket_dir, memory_bytes=1 << 30, dtype="Auto"):
    return WorkerConfig(
        worker=name,
        pool=POOL,
        source=source,
        dtype=dtype,
        memory_bytes=memory_bytes,
        threads=1,
        bind_host="127.0.0.1",
        pod=f"pod-{name}",
        node="node",
        socket_dir=str(socket_dir),
    )


def prepare(client, operation, experts, timeout_s=30.0):
    """Prepare (layer, index) or (layer, index, peers) and wait; the final status, or the refusal."""
    wanted = tuple((expert[0], expert[1], tuple(expert[2]) if len(expert) > 2 else ()) for expert in experts)
    reply = client.request(control.Prepare(operation, wanted), timeout_s)
    if isinstance(reply, control.Refused):
        return reply
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        status = client.request(control.AskPrepare(operation), timeout_s)
        if status.done:
            return status
    raise TimeoutError(operation)


def address_of(client):
    state = client.request(control.Describe(), 10)
    return WorkerAddress(state.worker, state.incarnation, state.endpoint, state.control_endpoint)


def make_table(addresses, placement, digest, epoch=(1, 1), operation="op", num_layers=2, num_experts=8):
    """A table; `placement` maps (layer, index) to ((position, share), …)."""
    replicas = tuple(
        tuple(tuple(Replica(*each) for each in placement(layer, index)) for index in range(num_experts))
        for layer in range(num_layers)
    )
    return RoutingTable(POOL, digest, Epoch(*epoch), operation, tuple(addresses), replicas)


@contextmanager
def worker_process(config, run=("-m", "flexpert_workers.expert")):
    """A worker as a process of its own; yields (process, a function that gives what it prints when it is ready)."""
    command = [sys.executable, *run, "--config", msgspec.json.encode(config).decode()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **threads.environment(1)}, text=True)
    try:
        yield process, lambda: json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def all_experts(num_layers=2, num_experts=8):
    return [(layer, index) for layer in range(num_layers) for index in range(num_experts)]


def client_of(worker):
    return ControlClient(worker.control_endpoint if hasattr(worker, "control_endpoint") else worker)


def short_dir(tmp_path_factory):
    return Path(tmp_path_factory.mktemp("s"))


def mapped_bytes(worker, key):
    """What a worker in this process has in the slot of a resident expert."""
    store = worker._memory.store
    slot, _ = store._mapped[key]
    return bytes(store._arena.tensor(slot)[: store.page_bytes].cpu().numpy())


class Peer:
    """Another domain's page server, which gives what it is told to give."""

    def __init__(self, digest, pages, checksum_of=None):
        self._context = zmq.Context()
        self.asked = []
        self._pages = pages
        self._server = PageServer(
            self._read, Identity(POOL, digest), "127.0.0.1", "", checksum_of=checksum_of, context=self._context
        )
        self._server.start()
        self.endpoint = self._server.endpoint

    def _read(self, key):
        self.asked.append(key)
        page = self._pages.get(key)
        return None if page is None else memoryview(page)

    def close(self):
        self._server.stop()
        self._context.term()


class Stranger:
    """Speaks to a listener of messages, one at a time."""

    def __init__(self, endpoint):
        self._connection = dial(endpoint)

    def send(self, *frames):
        self._connection.send(frames)
        while self._connection.is_sending:
            assert select.select([], [self._connection], [], 30)[1], "the listener does not take the message"
            self._connection.flush()

    def receive(self, timeout_s=30):
        deadline = time.monotonic() + timeout_s
        while (frames := self._connection.receive()) is None:
            left = deadline - time.monotonic()
            assert select.select([self._connection], [], [], max(left, 0))[0], "no answer"
        return frames

    def close(self):
        self._connection.close()


class Engine:
    """Speaks to a worker's data socket frame by frame."""

    def __init__(self, worker, digest):
        self._peer = Stranger(worker.endpoint)
        self._identity = {"pool": POOL, "digest": digest, "incarnation": worker.incarnation}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._peer.close()

    def send(self, *frames):
        self._peer.send(*frames)

    def reply(self):
        header, *frames = self._peer.receive()
        return msgspec.msgpack.decode(header, type=DispatchReply), frames

    def ask(self, hidden, pairs, weights, **changes):
        fields = {
            **self._identity,
            "request": 1,
            "attempt": 0,
            "epoch": Epoch(1, 1),
            "layer": 0,
            "rows": len(hidden),
            "dtype": "float32",
            **changes,
        }
        self.send(
            msgspec.msgpack.encode(DispatchRequest(**fields)),
            hidden.numpy().tobytes(),
            np.array(pairs, dtype=np.int32).tobytes(),
            np.array(weights, dtype=np.float32).tobytes(),
        )
        return self.reply()

    def sums(self, layer, hidden, index, weights):
        """What a worker that holds all experts computes for routed rows: [rows, hidden]."""
        pairs = [(row, expert) for row, experts in enumerate(index.tolist()) for expert in experts]
        reply, frames = self.ask(hidden, pairs, weights.reshape(-1), layer=layer)
        assert reply.status is Status.OK, reply.reason
        return torch.frombuffer(bytearray(frames[0]), dtype=torch.float32).view(len(hidden), -1)
