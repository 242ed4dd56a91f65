"""Workers as detached, named Ray actors: the pool controller's `WorkerLauncher` inside a Ray cluster.

A Ray node offers one `flexpert_worker` for each worker that its pod is for; each is a slot. An actor's name is the
record: it tells the worker and its slot, so that a new controller finds what an earlier one started.
"""

import contextlib
import logging
from typing import Any

import msgspec
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flexpert_proto import names
from flexpert_workers.expert import WorkerConfig
from flexpert_workers.pool.owners import device_of, owner_config, owner_domain, owner_place
from flexpert_workers.pool.state import LaunchedWorker, PoolSpec, Slot
from flexpert_workers.serving.owner_actor import PodOwner
from flexpert_workers.serving.ray_thread import RayThread
from flexpert_workers.serving.worker_actor import PodWorker

log = logging.getLogger(__name__)


class RayWorkers:
    """Starts, lists and ends worker actors in the namespace of the caller."""

    def __init__(self) -> None:
        self._ray = RayThread("ray-workers")
        self._ready: dict[str, Any] = {}
        self._endpoints: dict[str, str] = {}
        self._failures: dict[str, str] = {}

    async def slots(self) -> tuple[Slot, ...]:
        """Every slot of the nodes that are alive."""
        return await self._ray.call(_slots)

    async def list(self) -> tuple[LaunchedWorker, ...]:
        """Every worker actor that is not dead; one that still starts has no endpoint."""
        return await self._ray.call(self._list)

    async def start(self, worker: str, slot: Slot, spec: PoolSpec) -> None:
        """Create the actor of a worker on the node of its slot."""
        await self._ray.call(lambda: self._start(worker, slot, spec))

    async def stop(self, worker: str) -> None:
        """Kill the actor of a worker."""
        await self._ray.call(lambda: self._stop(worker))

    async def failure(self, worker: str) -> str:
        """Why an actor died, as Ray tells it."""
        return await self._ray.call(lambda: self._failure(worker))

    # ---- on the thread

    def _list(self) -> tuple[LaunchedWorker, ...]:
        found = [_parsed(name) for name in ray.util.list_named_actors() if name.startswith(names.WORKER_ACTOR_PREFIX)]
        launched = [LaunchedWorker(worker, slot, self._endpoint(worker, slot)) for worker, slot in found]
        return tuple(one for one in launched if one.worker not in self._failures)

    def _start(self, worker: str, slot: Slot, spec: PoolSpec) -> None:
        config = WorkerConfig(
            worker=worker,
            pool=spec.uid,
            source=spec.source,
            dtype=spec.dtype,
            memory_bytes=spec.memory_per_worker_bytes,
            threads=spec.worker_threads,
            bind_host="",
            pod="",
            node="",
            socket_dir="",
            device=device_of(slot),
        )
        domain = _ensure_owner(slot, spec)
        actor = ray.remote(PodWorker).options(
            name=_actor_name(worker, slot.id),
            lifetime="detached",
            max_restarts=0,
            num_cpus=0,
            resources={names.WORKER_RESOURCE: 1},
            scheduling_strategy=NodeAffinitySchedulingStrategy(slot.ray_node_id, soft=False),
        )
        handle = actor.remote(msgspec.json.encode(config).decode(), spec.workers_per_pod, domain)
        self._ready[worker] = handle.ready.remote()

    def _stop(self, worker: str) -> None:
        for name in ray.util.list_named_actors():
            if name.startswith(names.WORKER_ACTOR_PREFIX) and _parsed(name)[0] == worker:
                with contextlib.suppress(ValueError):  # it died in between
                    ray.kill(ray.get_actor(name), no_restart=True)

    def _endpoint(self, worker: str, slot: str) -> str:
        """Where a worker's control socket is; empty while it starts, or when it turns out to be dead."""
        if worker in self._endpoints:
            return self._endpoints[worker]
        try:
            if worker not in self._ready:
                self._ready[worker] = ray.get_actor(_actor_name(worker, slot)).ready.remote()
            if ray.wait([self._ready[worker]], timeout=0)[0]:
                self._endpoints[worker] = str(ray.get(self._ready.pop(worker))["control_endpoint"])
        except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError, ValueError) as dead:
            self._ready.pop(worker, None)
            self._failures[worker] = _reason(dead)
        return self._endpoints.get(worker, "")

    def _failure(self, worker: str) -> str:
        """A worker that never came up tells why through the call that waited for it."""
        waiting = self._ready.pop(worker, None)
        if waiting is not None:
            try:
                ray.get(waiting, timeout=1.0)
            except ray.exceptions.RayError as dead:
                return _reason(dead)
        return self._failures.pop(worker, "")


def _slots() -> tuple[Slot, ...]:
    return tuple(
        Slot(
            f"{node['NodeID']}/{number}",
            ray_node_id=node["NodeID"],
            number=number,
            gpus=int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
        for number in range(int(node["Resources"].get(names.WORKER_RESOURCE, 0)))
    )


def _ensure_owner(slot: Slot, spec: PoolSpec) -> str:
    """Have the page owner of a slot run on its node; its domain. One that has another checkpoint's pages ends.

    The workers of that one serve on: what they have mapped needs no owner.
    """
    place = owner_place(slot.ray_node_id, slot)
    domain = owner_domain(place, spec)
    wanted = f"{names.OWNER_ACTOR_PREFIX}{domain}@{place}"
    for name in ray.util.list_named_actors():
        if name.startswith(names.OWNER_ACTOR_PREFIX) and name.endswith(f"@{place}") and name != wanted:
            with contextlib.suppress(ValueError):  # it died in between
                ray.kill(ray.get_actor(name), no_restart=True)
    owner = ray.remote(PodOwner).options(
        name=wanted,
        get_if_exists=True,
        lifetime="detached",
        max_restarts=-1,
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(slot.ray_node_id, soft=False),
    )
    owner.remote(msgspec.json.encode(owner_config(domain, spec, slot)).decode())
    return domain


def _actor_name(worker: str, slot: str) -> str:
    return f"{names.WORKER_ACTOR_PREFIX}{worker}@{slot}"


def _parsed(actor_name: str) -> tuple[str, str]:
    """(worker, slot) of an actor's name."""
    worker, _, slot = actor_name.removeprefix(names.WORKER_ACTOR_PREFIX).partition("@")
    return worker, slot


def _reason(dead: Exception) -> str:
    """The last line of an error of Ray, which names the cause."""
    lines = [line.strip() for line in str(dead).splitlines() if line.strip()]
    return lines[-1] if lines else type(dead).__name__
