"""Fetches on the nodes of a Ray cluster: the pool controller's `NodeFetcher`. The nodes are Ray's, one for each pod.

Every node that offers workers or engines opens the model. Nodes that share a cache wait for each other there.
"""

import contextlib
import hashlib

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flexpert_proto import names
from flexpert_workers.pool.state import FetchState
from flexpert_workers.serving.fetch_actor import NodeFetch
from flexpert_workers.serving.ray_thread import RayThread

_ANSWER_S = 10.0


class RayFetcher:
    """Starts and asks actors in the namespace of the caller."""

    def __init__(self) -> None:
        self._ray = RayThread("ray-fetches")

    async def nodes(self) -> tuple[str, ...]:
        """Every node that is alive and offers workers or engines."""
        return await self._ray.call(_nodes)

    async def begin(self, node: str, source: str) -> None:
        """Create the actor, unless there is one."""
        await self._ray.call(lambda: _begin(node, source))

    async def state(self, node: str, source: str) -> FetchState | None:
        """What the actor says; one that is silent for a while still waits for its node."""
        return await self._ray.call(lambda: _state(node, source))

    async def end(self, node: str, source: str) -> None:
        """Kill the actor."""
        await self._ray.call(lambda: _end(node, source))


def _nodes() -> tuple[str, ...]:
    opening = (names.WORKER_RESOURCE, names.ENGINE_RESOURCE)
    return tuple(
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and any(node["Resources"].get(resource, 0) > 0 for resource in opening)
    )


def _begin(node: str, source: str) -> None:
    actor = ray.remote(NodeFetch).options(
        name=_actor_name(node, source),
        get_if_exists=True,
        lifetime="detached",
        max_restarts=0,
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )
    actor.remote(source)


def _state(node: str, source: str) -> FetchState | None:
    try:
        state: FetchState = ray.get(ray.get_actor(_actor_name(node, source)).state.remote(), timeout=_ANSWER_S)
    except ray.exceptions.GetTimeoutError:
        return FetchState("Resolving")
    except (ray.exceptions.RayActorError, ValueError):
        return None
    return state


def _end(node: str, source: str) -> None:
    with contextlib.suppress(ValueError):  # it died in between
        ray.kill(ray.get_actor(_actor_name(node, source)), no_restart=True)


def _actor_name(node: str, source: str) -> str:
    return f"{names.FETCH_ACTOR_PREFIX}{hashlib.sha256(source.encode()).hexdigest()[:12]}@{node}"
