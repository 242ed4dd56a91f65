"""The pool controller as a process of the host: the real one; a test can hold its messages to workers."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from faults_nodes import HostEngines, HostWorkers, Nodes

from flexpert_workers.checkpoint import open_checkpoint
from flexpert_workers.checkpoint.inspect import model_info
from flexpert_workers.messages.control import ControlReply, ControlRequest, Describe
from flexpert_workers.pool.controller import PoolController, Settings
from flexpert_workers.pool.exceptions import WorkerUnreachable
from flexpert_workers.pool.fleet import Patience
from flexpert_workers.pool.leases import LeaseTerms
from flexpert_workers.pool.links import ControlLink
from flexpert_workers.pool.reconfigure import Deadlines
from flexpert_workers.pool.service import serve
from flexpert_workers.pool.state import ModelFacts

FIRST_DESCRIBE = "FirstDescribe"
_LOOK_S = 0.005


class Gate:
    """Holds messages of one kind, while the file `gate` names it: `KIND NUMBER` lets NUMBER of them pass.

    A message that is held writes its kind to the file `held`.
    """

    def __init__(self, folder: Path) -> None:
        self._gate, self._held = folder / "gate", folder / "held"
        self._passed = 0

    async def pass_through(self, kind: str) -> None:
        """Return when the message may go."""
        allowed = self._allowed(kind)
        if allowed is None:
            self._passed = 0 if not self._gate.exists() else self._passed
            return
        self._passed += 1
        if self._passed <= allowed:
            return
        self._held.write_text(kind)
        while self._allowed(kind) is not None:  # noqa: ASYNC110 - the gate is a file, and outlives this process
            await asyncio.sleep(_LOOK_S)

    def _allowed(self, kind: str) -> int | None:
        try:
            named, number = self._gate.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(number) if named == kind else None


class GatedLink:
    """A `ControlLink` behind the gate."""

    def __init__(self, gate: Gate, endpoint: str, on_break: Callable[[], None]) -> None:
        self._gate = gate
        self._link = ControlLink(endpoint, on_break)
        self._is_new = True
        self._closed = False

    async def ask(self, request: ControlRequest, timeout_s: float) -> ControlReply:
        """Ask, once the gate is open; raises `WorkerUnreachable`."""
        kind = FIRST_DESCRIBE if self._is_new and isinstance(request, Describe) else type(request).__name__
        await self._gate.pass_through(kind)
        self._is_new = False
        if self._closed:
            raise WorkerUnreachable("its connection was given up")
        return await self._link.ask(request, timeout_s)

    def close(self) -> None:
        """Give the connection up."""
        self._closed = True
        self._link.close()


def settings(pool: str) -> Settings:
    """Those of a cluster, but less patient with the silent."""
    return Settings(
        pool,
        round_s=0.1,
        discovery_s=5.0,
        lost_kept_s=5.0,
        patience=Patience(ping_s=0.5, answer_s=3.0, misses=2, audit_s=2.0),
        leases=LeaseTerms(acknowledge_s=2.0),
        deadlines=Deadlines(prepare_s=30.0, store_s=4.0, retire_s=5.0, rollback_s=5.0, ask_s=4.0),
    )


async def inspect(source: str, revision: str, dtype: str) -> ModelFacts:
    """The checkpoint's facts, without a process of their own: this one has what it takes."""
    info = model_info(await asyncio.to_thread(open_checkpoint, source, dtype))
    facts = {field.name: getattr(info, field.name) for field in info.DESCRIPTOR.fields}
    return ModelFacts(source=source, revision=revision, dtype=dtype, **facts)


async def run(folder: Path, pool: str, pool_control: str, listen: str) -> None:
    """Serve until killed."""
    nodes, gate = Nodes(folder), Gate(folder)
    controller = PoolController(
        settings(pool),
        HostWorkers(nodes),
        HostEngines(nodes, pool_control),
        lambda endpoint, on_break: GatedLink(gate, endpoint, on_break),
        inspect,
    )
    await controller.start()
    server, _ = await serve(controller, listen)
    await server.wait_for_termination()


def main(arguments: list[str]) -> int:
    """`FOLDER POOL POOL_CONTROL LISTEN`."""
    os.environ["GRPC_VERBOSITY"] = "ERROR"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    folder, pool, pool_control, listen = arguments
    asyncio.run(run(Path(folder), pool, pool_control, listen))
    return 0
