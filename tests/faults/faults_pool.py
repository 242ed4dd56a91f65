"""A pool that a test watches: scales it, holds its phases, and waits until it stands with the wanted size.

`faults_world` and `faults_laptop` make one each, of processes and of real Ray nodes.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from faults_clients import Clients

from flexpert_operator.errors import KubeError
from flexpert_operator.kube import MOE_DEPLOYMENTS, RAY_CLUSTERS, Kube
from flexpert_proto import pool_pb2, pool_pb2_grpc

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "models" / "tiny-moe"
SOURCE = f"file://{MODEL}"
NAME, NAMESPACE = "tiny", "default"
PATIENCE_S = 300.0
LOOK_S = 0.02
RUNNING = (pool_pb2.PENDING, pool_pb2.PREPARE, pool_pb2.COMMIT, pool_pb2.RETIRE)


@dataclass(frozen=True)
class Standing:
    """Where a pool stands: its size, the epoch of its table, and who serves."""

    epoch: tuple[int, int]
    workers: tuple[str, ...]


class WatchedPool:
    """A pool that serves, and clients that stream from it.

    Args:
        folder: Where the gate is that holds messages to workers.
        kube: The API that has its MoEDeployment.
        address: Of the pool controller.
        num_engines: That it is to have.
        tell: All that helps to see why something did not come.
    """

    def __init__(
        self,
        folder: Path,
        kube: Kube,
        address: Callable[[], str],
        num_engines: int,
        clients: Clients,
        tell: Callable[[], str],
    ) -> None:
        self.kube = kube
        self.clients = clients
        self._folder = folder
        self._num_engines = num_engines
        self._tell = tell
        self._pause = threading.Event()
        self._ended: dict[str, pool_pb2.Phase.ValueType] = {}
        self._address = address
        self._connection: tuple[str, grpc.Channel] | None = None

    def close(self) -> None:
        """End the streams and the connection to the pool controller."""
        self.clients.stop()
        if self._connection is not None:
            self._connection[1].close()

    # ---- waiting

    def until(self, what: str, holds: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
        """Wait until something holds; returns it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = holds()
            if found:
                return found
            self._pause.wait(LOOK_S)
        pytest.fail(f"never came: {what}\n{self.describe()}")

    def describe(self) -> str:
        """All that helps to see why something did not come."""
        status = self.kube.get(MOE_DEPLOYMENTS, NAMESPACE, NAME).get("status")
        return "\n".join([str(status), str(self.seen()), self._tell()])

    def settle(self, workers: int) -> Standing:
        """Wait until the pool serves with so many workers, and nothing is under way."""

        def settled() -> Standing | None:
            pool = self.seen()
            self._note_end(pool)
            return standing(pool) if pool is not None and self._is_quiet(pool, workers) else None

        found = self.until(f"{workers} workers", settled)
        assert isinstance(found, Standing)
        return found

    def _is_quiet(self, pool: pool_pb2.Pool, workers: int) -> bool:
        ready = {one.id for one in pool.workers if one.state == pool_pb2.Worker.READY}
        holders = {replica.worker for replica in pool.placement}
        engines = [one for one in pool.engines if one.state == pool_pb2.Engine.READY]
        current = all(one.epoch == pool.epoch for one in engines)
        return (
            len(ready) == workers
            and ready == holders
            and not pool.lost
            and len(engines) == self._num_engines
            and current
            and not is_running(pool)
            and self._is_told(workers)
        )

    def _is_told(self, workers: int) -> bool:
        try:
            body = self.kube.get(MOE_DEPLOYMENTS, NAMESPACE, NAME)
        except KubeError:  # a busy machine's API may keep one waiting
            return False
        status, generation = body.get("status", {}), body["metadata"]["generation"]
        conditions = {
            one["type"]: one["status"]
            for one in status.get("conditions", ())
            if one["observedGeneration"] == generation
        }
        is_settled = conditions.get("Ready") == "True" and conditions.get("Progressing") == "False"
        return is_settled and status["experts"]["workers"] == workers

    # ---- what is there

    def seen(self) -> pool_pb2.Pool | None:
        """What the pool controller knows; None while it is away."""
        request = pool_pb2.GetPoolRequest(with_placement=True)
        try:
            return pool_pb2_grpc.PoolControlStub(self._channel()).GetPool(request, timeout=5.0, wait_for_ready=True)
        except grpc.RpcError:
            return None

    def _channel(self) -> grpc.Channel:
        """To the pool controller, wherever it is now."""
        address = self._address()
        if self._connection is None or self._connection[0] != address:
            options = [("grpc.max_reconnect_backoff_ms", 500)]
            self._connection = (address, grpc.insecure_channel(address, options=options))
        return self._connection[1]

    def operation(self) -> str:
        """Id of the operation that runs, or empty."""
        pool = self.seen()
        return pool.operation.id if pool is not None and is_running(pool) else ""

    def ended(self, operation: str) -> str:
        """How an operation ended, as far as `settle` has seen it."""
        if not operation:
            return "done"
        phase = self._ended.get(operation)
        if phase == pool_pb2.SUCCEEDED:
            return "carried through"
        return "rolled back, then done" if phase == pool_pb2.ROLLED_BACK else "taken over"

    def _note_end(self, pool: pool_pb2.Pool | None) -> None:
        if pool is not None and not is_running(pool):
            self._ended[pool.operation.id] = pool.operation.phase

    # ---- what a test does

    def begin(self, grows: tuple[str, ...], shrinks: tuple[str, ...], phase: str) -> Standing:
        """Have two workers before a phase that only growth has, three before one of shrinking; else leave them."""
        seen = self.until("the pool controller", self.seen)
        size = len({replica.worker for replica in seen.placement})
        size = 2 if phase in grows else 3 if phase in shrinks else size
        self.scale(size)
        return self.settle(size)

    def scale(self, workers: int) -> None:
        """What `kubectl scale` does."""
        self.kube.patch(MOE_DEPLOYMENTS, NAMESPACE, NAME, {"spec": {"replicas": workers}}, subresource="scale")

    @contextmanager
    def held(self, kind: str, let_pass: int = 0) -> Iterator[Callable[[], None]]:
        """Hold messages of a kind to workers; gives what waits until one of them is held."""
        gate, held = self._folder / "gate", self._folder / "held"
        held.unlink(missing_ok=True)
        new = self._folder / "gate.new"
        new.write_text(f"{kind} {let_pass}")
        new.replace(gate)
        try:
            yield lambda: self.until(f"{kind} is sent", held.exists)
        finally:
            gate.unlink()

    def to_delete(self) -> list[str]:
        """Pods that the operator wants to be deleted."""
        groups = self.kube.get(RAY_CLUSTERS, NAMESPACE, NAME)["spec"]["workerGroupSpecs"]
        return [pod for group in groups for pod in group["scaleStrategy"]["workersToDelete"]]

    def streams_go_on(self) -> None:
        """Wait until clients have received something more, and completed as many requests as there are clients."""
        completed = self.clients.completed + 2
        self.until("completions", lambda: self.clients.completed >= completed or self.clients.wrong)


def is_running(pool: pool_pb2.Pool) -> bool:
    """Whether an operation is under way; a new controller has none to tell of."""
    return pool.HasField("operation") and pool.operation.phase in RUNNING


def standing(pool: pool_pb2.Pool) -> Standing:
    """Where a pool stands."""
    ready = sorted(one.id for one in pool.workers if one.state == pool_pb2.Worker.READY)
    return Standing((pool.epoch.term, pool.epoch.sequence), tuple(ready))
