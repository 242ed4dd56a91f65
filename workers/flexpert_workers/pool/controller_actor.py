"""The pool controller as a detached Ray actor on the head. `serving.head` creates it; Ray restarts it when it dies.

The controller's event loop has a thread of its own, so that it depends on nothing of Ray but the launchers' calls.
"""

import asyncio
import logging
import os
import threading
from concurrent.futures import Future
from dataclasses import dataclass

import ray

from flexpert_proto import logs, names
from flexpert_proto.tracing import tracing_if_usable
from flexpert_workers.pool.controller import PoolController, Settings
from flexpert_workers.pool.inspector import inspect_in_subprocess
from flexpert_workers.pool.links import ControlLink
from flexpert_workers.pool.metrics_server import serve_metrics
from flexpert_workers.pool.service import serve
from flexpert_workers.pool.spans import OperationSpans
from flexpert_workers.ui import serve_ui

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listen:
    """Where a controller serves, each as `host:port`.

    Attributes:
        control: gRPC.
        page: The page.
        metrics: Prometheus metrics.
    """

    control: str
    page: str
    metrics: str


class ControllerActor:
    """One incarnation of the controller. It serves as soon as it has found the workers of an earlier one.

    Args:
        uid: Of the MoEDeployment.
        pool_control: Address at which engines attach.
        listen: Where it serves.
    """

    def __init__(self, uid: str, pool_control: str, listen: Listen) -> None:
        logs.configure(own=logs.of_pool("pool-controller"))
        self._port: Future[int] = Future()
        thread = threading.Thread(target=self._run, args=(uid, pool_control, listen), name="pool", daemon=True)
        thread.start()

    def port(self) -> int:
        """Port of the gRPC server, once it serves."""
        return self._port.result()

    def _run(self, uid: str, pool_control: str, listen: Listen) -> None:
        try:
            asyncio.run(self._serve(uid, pool_control, listen))
        except Exception as failure:
            log.exception("the pool controller ended")
            if not self._port.done():
                self._port.set_exception(failure)
        os._exit(1)  # Ray makes the next incarnation

    async def _serve(self, uid: str, pool_control: str, listen: Listen) -> None:
        from flexpert_workers.serving.engines import RayEngines
        from flexpert_workers.serving.ray_fetcher import RayFetcher
        from flexpert_workers.serving.ray_launcher import RayWorkers

        engines = RayEngines(pool_control)
        controller = PoolController(
            Settings(uid), RayWorkers(), engines, ControlLink, inspect_in_subprocess, fetcher=RayFetcher()
        )
        if (tracing := tracing_if_usable("flexpert-pool-controller")) is not None:
            controller.operations.observers.append(OperationSpans(tracing).note)
        await controller.start()
        try:
            await serve_ui(controller, listen.page)
        except OSError as taken:
            log.warning("the pool goes without its page, %s cannot be had: %s", listen.page, taken)
        server, port = await serve(controller, listen.control)
        self._port.set_result(port)
        try:
            self._metrics = await serve_metrics(controller, listen.metrics)
        except OSError as taken:
            log.warning("the pool goes without metrics, %s cannot be had: %s", listen.metrics, taken)
        await engines.warm_up()
        await server.wait_for_termination()


def create(uid: str, pool_control: str, listen: Listen) -> "ray.actor.ActorHandle":
    """The pool's controller: the one that there is, or a new one on the head."""
    actor = ray.remote(ControllerActor).options(
        name=names.POOL_CONTROLLER_ACTOR,
        get_if_exists=True,
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=-1,
        num_cpus=0,
        resources={names.HEAD_RESOURCE: 1},
        max_concurrency=4,
    )
    return actor.remote(uid, pool_control, listen)
