"""Engines as replicas of a Ray Serve deployment: the pool controller's `EngineLauncher` inside a Ray cluster.

Serve places them, watches their health, replaces the dead, drains the surplus. Tokens never pass through it: its
proxies are off, and an engine talks to ingresses on a socket of its own.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import time
from typing import TYPE_CHECKING, Any

import msgspec
import ray
from ray import serve
from ray.serve import Application
from ray.serve.api import RunTarget, run_many
from ray.serve.schema import ApplicationStatus

from flexpert_proto import logs, names
from flexpert_proto.tracing import tracing_if_usable
from flexpert_workers import threads
from flexpert_workers.engine import EngineConfig
from flexpert_workers.pool.launchers import LauncherUnavailable
from flexpert_workers.pool.state import PoolSpec
from flexpert_workers.serving.node import NodeFacts
from flexpert_workers.serving.ray_thread import RayThread
from flexpert_workers.sources import wait_until_here

if TYPE_CHECKING:
    from flexpert_workers.engine import EngineService

log = logging.getLogger(__name__)

APPLICATION = "engines"
DRAIN_S = 25.0
_DRAIN_POLL_S = 0.1
_TIMEOUT_S = 120.0
_FILES_S = 6 * 3600.0
"""How long an engine waits for the fetch on its node; Serve makes another one then, which waits anew."""
_STATUS_EVERY_S = 2.0
_TROUBLED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


class EngineReplica:
    """One engine. Every incarnation makes an id of its own.

    Args:
        config: `EngineConfig` as JSON; what only the pod knows is left empty in it.
    """

    def __init__(self, config: str) -> None:
        logs.configure(own=logs.of_pool("engine"))
        wanted = localised(msgspec.json.decode(config, type=EngineConfig), NodeFacts.of(), f"e-{secrets.token_hex(4)}")
        os.environ.update(threads.environment(wanted.threads))  # before torch reads it
        from flexpert_workers.engine import EngineService

        wait_until_here(wanted.source, _FILES_S)
        self._service = EngineService(wanted, tracing_if_usable("flexpert-engine"))
        self._service.start()

    def check_health(self) -> None:
        """Serve calls it; an exception has the replica replaced."""
        if not self._service.healthy():
            raise RuntimeError("the engine's loop has stopped or hangs")

    async def __del__(self) -> None:
        """Serve calls it when it takes the replica down: requests here run to their end, within a bounded time."""
        await asyncio.to_thread(_finish, self._service)


class RayEngines:
    """Keeps the Serve application of the engines as the specification says.

    Args:
        pool_control: Address at which engines attach to the pool controller.
    """

    def __init__(self, pool_control: str) -> None:
        self._pool_control = pool_control
        self._ray = RayThread("ray-engines", _TIMEOUT_S, (ray.exceptions.RayError,))
        self._applied: PoolSpec | None = None
        self._problem = ""
        self._asked_at = 0.0

    async def warm_up(self) -> None:
        """Start Serve, so that the first engine need not wait for it."""
        with contextlib.suppress(LauncherUnavailable):  # `apply` starts it too
            await self._ray.call(_start_serve)

    async def apply(self, spec: PoolSpec) -> None:
        """Deploy, unless this specification is deployed already."""
        if spec == self._applied:
            return
        await self._ray.call(lambda: _deploy(spec, self._pool_control))
        self._applied = spec

    async def problem(self) -> str:
        """What Serve says about engines that do not come up; asked for now and then only."""
        if self._applied is not None and time.monotonic() - self._asked_at > _STATUS_EVERY_S:
            self._problem = await self._ray.call(_problem)
            self._asked_at = time.monotonic()
        return self._problem


def _finish(service: "EngineService") -> None:
    service.drain()
    deadline = time.monotonic() + DRAIN_S
    while not service.drained and time.monotonic() < deadline:
        time.sleep(_DRAIN_POLL_S)
    service.stop()


def localised(config: EngineConfig, node: NodeFacts, engine: str) -> EngineConfig:
    """The configuration with what the pod knows."""
    return msgspec.structs.replace(
        config,
        engine=engine,
        pod=node.pod,
        bind_host=node.bind_host,
        socket_dir=node.socket_dir,
        poll_us=node.poll_us,
        threads=node.threads_each(config.threads, 1),
    )


def _start_serve() -> None:
    serve.start(proxy_location="Disabled")


def _deploy(spec: PoolSpec, pool_control: str) -> None:
    _start_serve()
    if spec.engine_replicas == 0:
        serve.delete(APPLICATION, _blocking=False)
        return
    target = RunTarget(_application(spec, pool_control), name=APPLICATION, route_prefix=None)
    run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _application(spec: PoolSpec, pool_control: str) -> Application:
    config = EngineConfig(
        engine="",
        pool=spec.uid,
        source=spec.source,
        dtype=spec.dtype,
        max_batch_tokens=spec.max_batch_tokens,
        kv_cache_bytes=spec.kv_cache_bytes,
        threads=spec.engine_threads,
        pool_control=pool_control,
    )
    options: dict[str, Any] = {
        "num_cpus": 0,
        "resources": {names.ENGINE_RESOURCE: 1},
    }
    encoded = msgspec.json.encode(config)
    deployment = serve.deployment(
        EngineReplica,
        name="Engine",
        num_replicas=spec.engine_replicas,
        ray_actor_options=options,
        health_check_period_s=1.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=DRAIN_S + 5.0,
    )
    # Without a version of its own every deployment replaces the replicas; Serve's YAML sets it in this way too.
    versioned = deployment.options(version=hashlib.sha256(encoded).hexdigest(), _internal=True)
    return versioned.bind(encoded.decode())


def _problem() -> str:
    application = serve.status().applications.get(APPLICATION)
    if application is None or application.status not in _TROUBLED:
        return ""
    said = [application.message, *(one.message for one in application.deployments.values())]
    return f"engines do not come up: {next(filter(None, said), application.status.value)}"
