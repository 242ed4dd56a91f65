"""Which RayCluster of a MoEDeployment serves, which is to follow it, and which may go. Pure; `succession` acts on it.

There is one, as a rule. A head cannot be changed in place, so another Ray version or another template of the head makes
a second one, with a pool of its own; when all of that serves, traffic moves to it, and the first goes when its streams
have ended. A RayCluster says in annotations which head it was made with, and since when it no longer serves.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flexpert_operator.api import names
from flexpert_operator.decide.observation import MemberState, Observation, Problem


@dataclass(frozen=True)
class Standing:
    """A RayCluster that is not being deleted.

    Attributes:
        revision: Of the head that it was made with; empty: an operator made it that did not write this down.
        retired_at: Since when it no longer serves, seconds since the Unix epoch; None: it serves or is to follow.
    """

    name: str
    revision: str = ""
    created_at: str = ""
    retired_at: float | None = None


@dataclass(frozen=True)
class Plan:
    """What is to become of the RayClusters of a MoEDeployment.

    Attributes:
        active: The one that serves.
        successor: The one that is to follow it, or None.
        returns: Whether the successor served before, and can do so at once.
        retired: Those that go when their streams have ended.
        abandoned: Those that go now: they never served, and nobody wants them any more.
    """

    active: str
    successor: str | None = None
    returns: bool = False
    retired: tuple[Standing, ...] = ()
    abandoned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """The part that a RayCluster plays in a reconciliation.

    Attributes:
        cluster: Its name.
        serves: Whether it is the one that serves; only that one's state is the status.
        progress: What is to be said of a succession, or empty.
        problem: Why a succession does not go on, or None.
    """

    cluster: str
    serves: bool = True
    progress: str = ""
    problem: Problem | None = None


def standing_of(raw: Mapping[str, Any]) -> Standing:
    """A RayCluster as it was read."""
    metadata = raw["metadata"]
    annotations = metadata.get("annotations") or {}
    retired = annotations.get(names.RETIRED_ANNOTATION)
    return Standing(
        name=metadata["name"],
        revision=annotations.get(names.HEAD_ANNOTATION, ""),
        created_at=str(metadata.get("creationTimestamp", "")),
        retired_at=float(retired) if retired else None,
    )


def decide_succession(name: str, clusters: Sequence[Standing], wanted: str) -> Plan:
    """What is to become of the RayClusters of the MoEDeployment `name`, whose head is to be of revision `wanted`."""
    serving = sorted((one for one in clusters if one.retired_at is None), key=lambda one: (one.created_at, one.name))
    if not serving and not clusters:
        return Plan(names.ray_cluster(name))
    active = serving[0] if serving else max(clusters, key=lambda one: (one.created_at, one.name))
    others = [one for one in clusters if one is not active]
    retired = tuple(one for one in others if one.retired_at is not None)
    if active.revision in ("", wanted):
        return Plan(active.name, retired=retired, abandoned=tuple(one.name for one in others if one not in retired))
    back = next((one for one in others if one.revision == wanted), None)
    successor = back.name if back is not None else successor_name(name, wanted)
    return Plan(
        active.name,
        successor,
        returns=back is not None and back.retired_at is not None,
        retired=tuple(one for one in retired if one.name != successor),
        abandoned=tuple(one.name for one in others if one.retired_at is None and one.name != successor),
    )


def successor_name(name: str, revision: str) -> str:
    """Name of a second RayCluster; the same for the same head, so that it is made once."""
    return f"{names.ray_cluster(name)}-{hashlib.sha256(revision.encode()).hexdigest()[:6]}"


def is_complete(observed: Observation, workers: int, engines: int, generation: int) -> bool:
    """Whether the pool of a RayCluster could serve all that is asked for from now on."""
    pool = observed.pool
    if pool is None or pool.generation != generation or (pool.operation is not None and pool.operation.running):
        return False
    ready = {worker.id for worker in pool.workers if worker.state is MemberState.READY}
    placed = workers == 0 or (len(ready) == workers and pool.holders == ready and not pool.lost)
    return placed and sum(engine.state is MemberState.READY for engine in pool.engines) >= engines


def may_go(retired: Standing, now: float, in_flight: int | None, settle_s: float, deadline_s: float) -> bool:
    """Whether a RayCluster that no longer serves can be deleted.

    Args:
        retired: The RayCluster.
        now: Seconds since the Unix epoch.
        in_flight: Requests that its engines still answer; None when its pool does not say.
        settle_s: Time that every ingress needs to learn of the other engines.
        deadline_s: Time after which what it still answers is handed to the others, as when an engine dies.
    """
    waited = now - (retired.retired_at or now)
    return waited >= settle_s and (in_flight == 0 or waited >= deadline_s)
