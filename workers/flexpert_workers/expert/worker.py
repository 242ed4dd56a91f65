"""An expert worker: its sockets, its threads and what they share. A process or a Ray actor runs one."""

import secrets
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import zmq

from flexpert_workers import allocator
from flexpert_workers.checkpoint import Checkpoint, open_checkpoint
from flexpert_workers.expert.busyness import BusyMeter
from flexpert_workers.expert.compute import ExpertCompute
from flexpert_workers.expert.config import WorkerConfig
from flexpert_workers.expert.control_server import ControlServer
from flexpert_workers.expert.dispatch_server import DispatchServer
from flexpert_workers.expert.kernels import TorchGroupedLinear, grouped_linear
from flexpert_workers.expert.memory import WorkerMemory
from flexpert_workers.expert.meter import WorkerMeter
from flexpert_workers.expert.prepare import Preparer
from flexpert_workers.memory.devices import CPU, DeviceOpener, open_device
from flexpert_workers.routing import WorkerAddress
from flexpert_workers.transport import bind
from flexpert_workers.transport.listening import Listener


class ExpertWorker:
    """A stateless worker that computes the experts it was told to hold.

    Two threads serve: one computes (dispatches, on the data socket), one answers on the control socket; a third maps
    experts in the background.

    Args:
        config: What it is told.
        opener: Opens its device.

    Attributes:
        incarnation: Made anew with every `ExpertWorker`; engines name it in each dispatch.
    """

    def __init__(self, config: WorkerConfig, opener: DeviceOpener = open_device) -> None:
        self.config = config
        self._open_device = opener
        self.incarnation = secrets.token_hex(8)
        self._context: zmq.Context[Any] = zmq.Context()
        self._address: WorkerAddress | None = None
        self._ending = threading.Event()
        self._threads: list[tuple[threading.Thread, socket.socket]] = []
        self._preparer: Preparer | None = None
        self._memory: WorkerMemory | None = None

    @property
    def endpoint(self) -> str:
        """Where engines dispatch to, once started."""
        return self._started().endpoint

    @property
    def control_endpoint(self) -> str:
        """Where the pool controller and other workers ask, once started."""
        return self._started().control_endpoint

    def start(self) -> None:
        """Open the checkpoint, bind and serve; returns when the worker can be asked.

        Raises:
            CheckpointError: The checkpoint cannot be used.
            DeviceUnavailable: The device is not there.
            CapacityError: The machine does not let this process hold as many experts.
            ConnectionError: Its page owner is not there.
        """
        allocator.keep_freed_memory()
        config = self.config
        device = self._open_device(config.device, computes=True, copies=not config.owner_socket)
        checkpoint = open_checkpoint(config.source, config.dtype)
        compute = _expert_compute(checkpoint, config.threads, device.torch_device)
        hidden_size = _hidden_size(checkpoint)
        busy = BusyMeter()
        meter = WorkerMeter(busy)
        try_out = partial(compute.try_out, hidden_size=hidden_size)
        self._memory = WorkerMemory(config, checkpoint, self.incarnation, device, try_out, busy.share, self._context)
        store, lender, turns = self._memory.store, self._memory.lender, self._memory.turns
        listener, control = Listener(config.bind_host, config.socket_dir), self._context.socket(zmq.ROUTER)
        self._address = WorkerAddress(
            config.worker,
            self.incarnation,
            endpoint=listener.endpoint,
            control_endpoint=bind(control, config.bind_host, config.socket_dir),
        )
        self._preparer = Preparer(store, lender)
        self._preparer.start()
        dispatches = DispatchServer(
            config.pool,
            checkpoint.digest,
            self.incarnation,
            hidden_size,
            store,
            compute,
            turns,
            busy,
            meter,
            poll_s=config.poll_us / 1e6,
        )
        controls = ControlServer(
            config,
            self._address,
            checkpoint.digest,
            self._memory.memory_bytes,
            store,
            self._preparer,
            lender,
            meter,
            self._ending.set,
        )
        allocator.freeze_heap()
        self._serve("compute", lambda wake: dispatches.run(listener, wake.fileno()))
        self._serve("control", lambda wake: controls.run(control, wake))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the worker was asked to end; whether it was."""
        return self._ending.wait(timeout_s)

    def stop(self) -> None:
        """Answer what has arrived, stop serving and free everything; may be called twice."""
        self._ending.set()
        for thread, wake in self._threads:
            wake.close()  # the other end can be read then
            thread.join()
        self._threads.clear()
        if self._preparer is not None:
            self._preparer.stop()
            self._preparer = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        self._context.term()

    def _started(self) -> WorkerAddress:
        if self._address is None:
            raise RuntimeError("the worker has not been started")
        return self._address

    def _serve(self, name: str, run: Callable[[socket.socket], None]) -> None:
        """Start a thread that ends once its socket can be read."""
        ours, theirs = socket.socketpair()

        def run_and_close() -> None:
            with theirs:
                run(theirs)

        thread = threading.Thread(target=run_and_close, name=name, daemon=True)
        thread.start()
        self._threads.append((thread, ours))


def _expert_compute(checkpoint: Checkpoint, num_threads: int, device: str) -> ExpertCompute:
    module = checkpoint.experts_module()
    transposed = bool(module.is_transposed)
    if device != CPU:
        return ExpertCompute(module, TorchGroupedLinear(transposed), device)
    shapes = [segment.shape for segment in checkpoint.layout.segments if len(segment.shape) == 2]
    return ExpertCompute(module, grouped_linear(shapes, checkpoint.dtype, transposed, num_threads))


def _hidden_size(checkpoint: Checkpoint) -> int:
    """Width of the rows that the experts take and give."""
    down = next(segment for segment in checkpoint.layout.segments if segment.name == "down_proj")
    return down.shape[-1 if checkpoint.experts_module().is_transposed else -2]
