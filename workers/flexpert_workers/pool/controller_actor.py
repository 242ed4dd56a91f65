"""The pool controller as a detached Ray actor on the head. `serving.head` creates it; Ray restarts it when it dies.

The controller's event loop has a thread of its own, so that it depends on nothing of Ray but the launchers' calls.
"""

import asyncio
import logging
import os
import threading
from concurrent.futures import Future

import ray

from flexpert_proto import logs, names
from flexpert_workers.pool.controller import PoolController, Settings
from flexpert_workers.pool.inspector import inspect_in_subprocess
from flexpert_workers.pool.links import ControlLink
from flexpert_workers.pool.service import serve
from flexpert_workers.ui import serve_ui

log = logging.getLogger(__name__)


class ControllerActor:
    """One incarnation of the controller. It serves as soon as it has found the workers of an earlier one.

    Args:
        uid: Of the MoEDeployment.
        pool_control: Address at which engines attach.
        listen: `host:port` of the gRPC server.
        page: `host:port` of the page.
    """

    def __init__(self, uid: str, pool_control: str, listen: str, page: str) -> None:
        logs.configure()
        self._port: Future[int] = Future()
        thread = threading.Thread(target=self._run, args=(uid, pool_control, listen, page), name="pool", daemon=True)
        thread.start()

    def port(self) -> int:
        """Port of the gRPC server, once it serves."""
        return self._port.result()

    def _run(self, uid: str, pool_control: str, listen: str, page: str) -> None:
        try:
            asyncio.run(self._serve(uid, pool_control, listen, page))
        except Exception as failure:
            log.exception("the pool controller ended")
            if not self._port.done():
                self._port.set_exception(failure)
        os._exit(1)  # Ray makes the next incarnation

    async def _serve(self, uid: str, pool_control: str, listen: str, page: str) -> None:
        from flexpert_workers.serving.engines import RayEngines
        from flexpert_workers.serving.ray_fetcher import RayFetcher
        from flexpert_workers.serving.ray_launcher import RayWorkers

        engines = RayEngines(pool_control)
        controller = PoolController(
            Settings(uid), RayWorkers(), engines, ControlLink, inspect_in_subprocess, fetcher=RayFetcher()
        )
        await controller.start()
        try:
            await serve_ui(controller, page)
        except OSError as taken:
            log.warning("the pool goes without its page, %s cannot be had: %s", page, taken)
        server, port = await serve(controller, listen)
        self._port.set_result(port)
        await engines.warm_up()
        await server.wait_for_termination()


def create(uid: str, pool_control: str, listen: str, page: str) -> "ray.actor.ActorHandle":
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
    return actor.remote(uid, pool_control, listen, page)
