"""The pool controller as a process of the host: the real one; a test can hold its messages to workers."""

import asyncio
import logging
import os
from pathlib import Path

from faults_gate import gated
from faults_nodes import HostEngines, HostWorkers, Nodes

from flexpert_workers.checkpoint.checkpoint import open_folder
from flexpert_workers.checkpoint.inspect import model_info
from flexpert_workers.pool.controller import PoolController, Settings
from flexpert_workers.pool.fleet import Patience
from flexpert_workers.pool.leases import LeaseTerms
from flexpert_workers.pool.links import ControlLink
from flexpert_workers.pool.reconfigure import Deadlines
from flexpert_workers.pool.service import serve
from flexpert_workers.pool.state import ModelFacts
from flexpert_workers.sources import Cache
from flexpert_workers.sources.bringing import Bringer


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
    located = Bringer(Cache.of()).located(source, revision)
    info = model_info(await asyncio.to_thread(open_folder, located.folder, dtype), located)
    own = ("source", "revision")
    facts = {field.name: getattr(info, field.name) for field in info.DESCRIPTOR.fields if field.name not in own}
    return ModelFacts(source, revision, dtype, **facts, opened=info.source, resolved=info.revision)


async def run(folder: Path, pool: str, pool_control: str, listen: str) -> None:
    """Serve until killed."""
    nodes = Nodes(folder)
    controller = PoolController(
        settings(pool),
        HostWorkers(nodes),
        HostEngines(nodes, pool_control),
        gated(folder, ControlLink),
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
