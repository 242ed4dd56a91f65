"""For `bench_memory`: from SIGKILL of a worker until its experts are served again, by a standby of the same domain."""

import json
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

import msgspec
import numpy as np

from flexpert_workers import threads
from flexpert_workers.checkpoint import Checkpoint
from flexpert_workers.expert import WorkerConfig
from flexpert_workers.expert.control_client import ControlClient
from flexpert_workers.memory.owner import OwnerConfig
from flexpert_workers.messages import control
from flexpert_workers.messages.dispatch import DispatchReply, DispatchRequest, Status
from flexpert_workers.routing import Epoch
from flexpert_workers.transport import listening

POOL = "bench"
MEMORY_BYTES = 2 << 30
TIMEOUT_S = 120.0


class Process:
    """A part of the pool as a process; it ends with `stack`."""

    def __init__(self, module: str, config: msgspec.Struct, stack: ExitStack) -> None:
        command = [sys.executable, "-m", module, "--config", msgspec.json.encode(config).decode()]
        self.process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(self.process.kill)
        assert self.process.stdout is not None
        self.said = json.loads(self.process.stdout.readline())


class Worker(Process):
    """A worker process and connections to it."""

    def __init__(self, name: str, source: str, folder: str, owner_socket: str, stack: ExitStack) -> None:
        config = WorkerConfig(
            name, POOL, source, "Auto", MEMORY_BYTES, 1, "127.0.0.1", name, "", folder, owner_socket=owner_socket
        )
        super().__init__("flexpert_workers.expert", config, stack)
        self.control = ControlClient(self.said["control_endpoint"])
        stack.callback(self.control.close)
        self.data = listening.dial(self.said["endpoint"])
        stack.callback(self.data.close)

    def prepare(self, operation: str, checkpoint: Checkpoint) -> control.PrepareStatus:
        """Have it hold every expert; returns once it does."""
        keys = [(layer, index) for layer in range(checkpoint.num_layers) for index in range(checkpoint.num_experts)]
        self.control.request(control.Prepare(operation, tuple((*key, ()) for key in keys)), TIMEOUT_S)
        while True:
            status = self.control.request(control.AskPrepare(operation), TIMEOUT_S)
            assert isinstance(status, control.PrepareStatus)
            assert not status.error, status.error
            if status.done:
                return status
            time.sleep(0.002)

    def dispatch(self, checkpoint: Checkpoint, hidden: int) -> None:
        """Compute one row with every expert of every layer."""
        index = np.arange(checkpoint.num_experts, dtype=np.int32)
        pairs = np.stack([np.zeros_like(index), index], axis=1)
        weights = np.ones(len(pairs), dtype=np.float32)
        row = np.ones((1, hidden), dtype=np.float32)
        for layer in range(checkpoint.num_layers):
            header = DispatchRequest(
                POOL, checkpoint.digest, self.said["incarnation"], layer, 0, Epoch(1, 1), layer, 1, "float32"
            )
            frames = [msgspec.msgpack.encode(header), row.tobytes(), pairs.tobytes(), weights.tobytes()]
            self.data.send(frames)
            reply = msgspec.msgpack.decode(self._receive()[0], type=DispatchReply)
            assert reply.status is Status.OK, reply

    def _receive(self) -> list[memoryview]:
        while (frames := self.data.receive()) is None:
            readable, _, _ = select.select([self.data], [self.data] if self.data.is_sending else [], [], TIMEOUT_S)
            assert readable or self.data.is_sending, "the worker does not answer"
            self.data.flush()
        return frames


def measure_kills(checkpoint: Checkpoint, source: str, folder: str, hidden: int, repeats: int) -> list[dict[str, Any]]:
    """Kill the worker that serves, `repeats` times; each time the standby takes over and another one stands by."""
    rows = []
    with ExitStack() as stack:
        config = OwnerConfig(
            "bench", POOL, source, "Auto", MEMORY_BYTES, f"{folder}/owner.sock", "127.0.0.1", folder, readers=2
        )
        Process("flexpert_workers.memory.owner", config, stack)
        serving = Worker("w0", source, folder, config.socket, stack)
        serving.prepare("first", checkpoint)
        serving.dispatch(checkpoint, hidden)
        for repeat in range(repeats):
            standby = Worker(f"w{repeat + 1}", source, folder, config.socket, stack)
            rows.append({"measure": "kill", "repeat": repeat, **_kill(serving, standby, checkpoint, hidden)})
            serving = standby
    return rows


def _kill(serving: Worker, standby: Worker, checkpoint: Checkpoint, hidden: int) -> dict[str, Any]:
    began = time.perf_counter()
    serving.process.send_signal(signal.SIGKILL)
    _wait_until_noticed(serving)
    noticed = time.perf_counter()
    status = standby.prepare("take-over", checkpoint)
    prepared = time.perf_counter()
    standby.dispatch(checkpoint, hidden)
    served = time.perf_counter()
    return {
        "kill_to_served_ms": (served - began) * 1e3,
        "noticed_ms": (noticed - began) * 1e3,
        "prepared_ms": (prepared - noticed) * 1e3,
        "first_dispatch_ms": (served - prepared) * 1e3,
        "attached": status.attached_experts,
        "copied_bytes": status.copied_bytes,
        "step_seconds": status.step_seconds,
    }


def _wait_until_noticed(worker: Worker) -> None:
    while True:
        try:
            worker.control.request(control.AskLoads(), TIMEOUT_S)
        except ConnectionError:
            return


def environment() -> dict[str, str]:
    """Of every process: one thread each."""
    return threads.environment(1)
