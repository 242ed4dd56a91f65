"""The kopf side: what is watched, log-in, settings, start and end. `__main__` runs what `operator_registry` returns.

kopf watches the MoEDeployments and the Nodes; what belongs to a MoEDeployment is watched by `informers`, with a label
selector. All of it only wakes `controller`, whose threads decide and act through `reconciler`. kopf keeps nothing in
the objects: the finalizer is ours.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import kopf
from kubernetes import client

from flexpert_operator.api import names
from flexpert_operator.api.conditions import ABLE_TO_SCALE
from flexpert_operator.backoff import Backoff
from flexpert_operator.cached import CachedKube
from flexpert_operator.controller import Controller
from flexpert_operator.errors import KubeError, KubeNotFound
from flexpert_operator.events import EventWriter
from flexpert_operator.fence import Fence, NoFence
from flexpert_operator.health import Pulse
from flexpert_operator.informers import Informer, Wake, WatchClient
from flexpert_operator.kube import (
    CONNECT_TIMEOUT_S,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    MOE_DEPLOYMENTS,
    NETWORK_POLICIES,
    PODS,
    POLICIES,
    RAY_CLUSTERS,
    READ_TIMEOUT_S,
    SCALERS,
    SERVICES,
    Resource,
)
from flexpert_operator.metrics import Metrics
from flexpert_operator.nodes import NodeNotices
from flexpert_operator.object_store import ObjectStore, pod_seen, target_of
from flexpert_operator.policies import PolicyKeeper
from flexpert_operator.pool_feed import PoolFeed, PoolFeeds
from flexpert_operator.prometheus import Prometheus
from flexpert_operator.reconciler import Reconciler, Surroundings
from flexpert_operator.scalers import ScalerKeeper
from flexpert_operator.settings import Settings
from flexpert_operator.succession import Succession

log = logging.getLogger(__name__)

WATCH_TIMEOUT_S = 300
PAGE = 100
STOP_TIMEOUT_S = 1.0
BEAT_S = 1.0
SERVED_S = 60.0
OWN_KINDS = (POLICIES, SCALERS)
"""Beside MoEDeployments, which kopf watches; our label is not on them, they name their target."""
KOPF_IDLE_S = 0.2
"""kopf keeps a task for every object that it has seen lately."""


@dataclass(frozen=True)
class Scope:
    """What the operator looks after: some namespaces, or all; and the nodes, where there are `nodes` to fill."""

    namespaces: tuple[str, ...] = ()
    nodes: NodeNotices | None = None

    @property
    def watches(self) -> tuple[str | None, ...]:
        """The namespaces to watch; None is all."""
        return self.namespaces or (None,)


@dataclass
class Parts:
    """What runs while kopf does."""

    kube: CachedKube
    controller: Controller
    events: EventWriter
    pulse: Pulse
    feeds: PoolFeeds
    metrics: Metrics
    policies: Controller
    scalers: Controller
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    open: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)


def watched_stores(settings: Settings) -> dict[Resource, ObjectStore]:
    """The resources that informers watch. What is not among them is read from the API server each time."""
    policies = {NETWORK_POLICIES: ObjectStore()} if settings.network is not None else {}
    return {
        RAY_CLUSTERS: ObjectStore(),
        PODS: ObjectStore(strip=pod_seen),
        SERVICES: ObjectStore(),
        DEPLOYMENTS: ObjectStore(),
        DISRUPTION_BUDGETS: ObjectStore(),
        **policies,
        POLICIES: ObjectStore(owner=target_of),
        SCALERS: ObjectStore(owner=target_of),
    }


def assemble(
    api: client.ApiClient,
    settings: Settings,
    scope: Scope,
    metrics: Metrics | None = None,
    pulse: Pulse | None = None,
    fence: Fence | None = None,
    clock: Callable[[], float] = time.time,
) -> kopf.OperatorRegistry:
    """The operator, put together, as what kopf runs; `clock` is what policies are decided by."""
    kube = CachedKube(api, watched_stores(settings), fence)
    feeds = PoolFeeds(settings.refresh_s)

    def listen(namespace: str, name: str, address: str) -> PoolFeed:
        return feeds.listen(address, lambda: parts.controller.wake(namespace, name))

    around = Surroundings(listen, scope.nodes or NodeNotices(), metrics or Metrics(), fence or NoFence())

    events = EventWriter(kube)

    def make(namespace: str, name: str) -> Succession:
        def tender(cluster: str) -> Reconciler:
            return Reconciler(namespace, name, kube, settings, events.tell, around, cluster)

        return Succession(namespace, name, kube, settings, events.tell, tender)

    at = settings.prometheus
    prometheus = Prometheus(at.url, at.token_file) if at is not None else None

    def policy(namespace: str, name: str) -> PolicyKeeper:
        def wake() -> None:
            parts.policies.wake(namespace, name)

        return PolicyKeeper(namespace, name, kube, listen_to_figures, wake, events.tell, clock, prometheus)

    def listen_to_figures(address: str, every_s: float, heard: Callable[[], None]) -> PoolFeed:
        return feeds.listen(address, heard, figures_s=every_s)

    def scaler(namespace: str, name: str) -> ScalerKeeper:
        return ScalerKeeper(namespace, name, kube, settings.resync_s)

    counts = around.metrics
    parts = Parts(
        kube,
        Controller(kube, make, settings.threads, counts),
        events,
        pulse or Pulse(),
        feeds,
        counts,
        Controller(kube, policy, settings.policy_threads, counts, POLICIES, "moeautoscalingpolicy"),
        Controller(kube, scaler, 1, counts, SCALERS, "moescaler"),
    )
    return operator_registry(parts, api.configuration, scope)


def operator_registry(parts: Parts, configuration: client.Configuration, scope: Scope) -> kopf.OperatorRegistry:
    """All handlers of the operator, in a registry of their own."""
    registry = kopf.OperatorRegistry()
    controller = parts.controller

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure_kopf(settings)
        await start_watching(parts, configuration, scope.watches)
        parts.tasks.append(asyncio.create_task(beat(parts.pulse)))
        for one in (controller, parts.policies, parts.scalers):
            one.start()

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        for task in parts.tasks:
            task.cancel()
        await asyncio.gather(*parts.tasks, return_exceptions=True)
        await parts.open.aclose()
        parts.pulse.stop()
        for one in (parts.policies, parts.scalers, controller):
            await asyncio.to_thread(one.stop)
        await asyncio.to_thread(parts.events.close)
        await asyncio.to_thread(parts.feeds.close)

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return connection_info(configuration)

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def note(body: kopf.Body, type: str | None, **_: Any) -> None:
        controller.note(dict(body), gone=type == "DELETED")
        if type != "MODIFIED":
            wake_claims(parts, str(body["metadata"]["namespace"]), str(body["metadata"]["name"]))

    if scope.nodes is not None:
        watch_nodes(registry, scope.nodes, controller)
    return registry


async def start_watching(parts: Parts, configuration: client.Configuration, namespaces: Sequence[str | None]) -> None:
    """Start the informers, and wait until each has seen what there is.

    Raises:
        kopf.PermanentError: The API server does not know our kind.
    """
    connection = await parts.open.enter_async_context(WatchClient(configuration))
    await until_served(connection, MOE_DEPLOYMENTS.path(namespaces[0]))
    informers = []
    for resource, store in parts.kube.stores.items():
        if resource == MOE_DEPLOYMENTS:
            continue
        wakes = wakes_of(parts, resource)
        selector = "" if resource in OWN_KINDS else names.DEPLOYMENT_LABEL
        note, served = parts.metrics.note_watch_restart, parts.controller.wake_all
        for namespace in namespaces:
            informer = Informer(
                connection, resource, namespace, store, wakes, note, selector=selector, note_served=served
            )
            parts.tasks.append(asyncio.create_task(informer.run()))
            informers.append(informer)
    for informer in informers:
        await informer.synced.wait()


def wakes_of(parts: Parts, resource: Resource) -> Wake:
    """Whom a change of an object of a resource concerns: its MoEDeployment, and who looks at the same."""

    def wake(namespace: str, name: str) -> None:
        parts.controller.wake(namespace, name)
        if resource == POLICIES:
            wake_concerned(parts, namespace, name)
        if resource in (POLICIES, SCALERS, PODS):
            wake_owned(parts.scalers, parts.kube, SCALERS, namespace, name)

    return wake


def wake_owned(controller: Controller, kube: CachedKube, resource: Resource, namespace: str, target: str) -> None:
    """Wake all that target a MoEDeployment."""
    for name in kube.stores[resource].owned_names(namespace, target):
        controller.wake(namespace, name)


def wake_concerned(parts: Parts, namespace: str, target: str) -> None:
    """Wake policies whose spec is not the one that their status is about, and those that may not decide yet.

    What the operator itself writes wakes nobody who decides.
    """
    for body in parts.kube.owned(POLICIES, namespace, target):
        status = body.get("status") or {}
        unable = {"type": ABLE_TO_SCALE, "status": "False"}
        waits = any(unable.items() <= one.items() for one in status.get("conditions", ()))
        if waits or body["metadata"].get("generation") != status.get("observedGeneration"):
            parts.policies.wake(namespace, body["metadata"]["name"])


def wake_claims(parts: Parts, namespace: str, target: str) -> None:
    """Wake who looks at a MoEDeployment that has come or gone."""
    wake_owned(parts.policies, parts.kube, POLICIES, namespace, target)
    wake_owned(parts.scalers, parts.kube, SCALERS, namespace, target)


async def beat(pulse: Pulse) -> None:
    """Say again and again that the event loop turns."""
    while True:
        pulse.beat()
        await asyncio.sleep(BEAT_S)


async def until_served(connection: WatchClient, path: str) -> None:
    """Wait until the API server answers for our kind: a kind that was just installed is not served at once."""
    backoff, clock = Backoff(0.5, 10.0), asyncio.get_running_loop().time
    latest = clock() + SERVED_S
    while True:
        try:
            await connection.page(path, {"limit": "1"})
            return
        except KubeNotFound as missing:
            if clock() > latest:
                text = f"{path} is not served; install the CRDs of the chart: {missing}"
                raise kopf.PermanentError(text) from missing
            await asyncio.sleep(backoff.next())
        except KubeError as failure:
            log.warning("waiting for the API server: %s", failure)
            await asyncio.sleep(backoff.next())


def watch_nodes(registry: kopf.OperatorRegistry, nodes: NodeNotices, controller: Controller) -> None:
    """Keep `nodes` up to date, and wake everybody when a node is to be emptied, or no longer."""

    @kopf.on.event("", "v1", "nodes", registry=registry)
    async def note(body: kopf.Body, name: str | None, type: str | None, **_: Any) -> None:
        if type == "DELETED":
            nodes.forget(name or "")
        elif nodes.note(body):
            controller.wake_all()


class Pauses:
    """Pauses between kopf's attempts, without an end: an operator outlives the API server."""

    def __iter__(self) -> Iterator[float]:
        backoff = Backoff(1.0, 30.0)
        while True:
            yield backoff.next()


def configure_kopf(settings: kopf.OperatorSettings) -> None:
    """Settings of kopf: finite time-outs, pages, no scan of CRDs or namespaces, nothing kept in the objects."""
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.watching.server_timeout = WATCH_TIMEOUT_S
    settings.watching.client_timeout = WATCH_TIMEOUT_S + READ_TIMEOUT_S
    settings.watching.connect_timeout = CONNECT_TIMEOUT_S
    settings.watching.chunk_size = PAGE
    settings.networking.connect_timeout = CONNECT_TIMEOUT_S
    settings.networking.request_timeout = READ_TIMEOUT_S
    settings.networking.error_backoffs = Pauses()
    settings.queueing.idle_timeout = KOPF_IDLE_S
    settings.background.instant_exit_timeout = STOP_TIMEOUT_S
    settings.background.cancellation_polling = STOP_TIMEOUT_S


def connection_info(configuration: client.Configuration) -> kopf.ConnectionInfo:
    """How kopf logs in: as our own client does; it asks again when its token is refused."""
    header = configuration.get_api_key_with_prefix("BearerToken") or ""
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        username=configuration.username or None,
        password=configuration.password or None,
        scheme="Bearer" if header else None,
        token=header.removeprefix("Bearer ") or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )
