"""The kopf side: one loop a MoEDeployment that reconciles it, woken by its changes; a finalizer; log-in; settings.

`__main__` runs what `operator_registry` returns. All deciding and acting is `reconciler`'s.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import kopf

from flexpert_operator.api import names
from flexpert_operator.api.spec import InvalidObject
from flexpert_operator.decide.observation import Event
from flexpert_operator.errors import KubeConflict, KubeError
from flexpert_operator.kube import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Kube, Object, api_client
from flexpert_operator.metrics import Metrics
from flexpert_operator.nodes import NodeNotices
from flexpert_operator.reconciler import Reconciler, Surroundings
from flexpert_operator.settings import Settings

log = logging.getLogger(__name__)

WATCH_TIMEOUT_S = 300
FINALIZE_POLL_S = 0.5
CONFLICT_RETRY_S = 0.1
STOP_TIMEOUT_S = 1.0

MakeReconciler = Callable[[str, str], Reconciler]
"""(namespace, name) → a reconciler."""


@dataclass
class Tended:
    """What the operator keeps for an object while it runs: its reconciler, and a bell that wakes its loop."""

    reconciler: Reconciler
    bell: asyncio.Event = field(default_factory=asyncio.Event)


def post_event(body: Object, event: Event) -> None:
    """Post an Event about an object through kopf's queue."""
    kopf.event(
        cast(kopf.Body, body), type="Warning" if event.warning else "Normal", reason=event.reason, message=event.message
    )


def operator_registry(
    make_reconciler: MakeReconciler, kubeconfig: Path | None, settings: Settings, nodes: NodeNotices | None = None
) -> kopf.OperatorRegistry:
    """All handlers of the operator, in a registry of their own; Nodes are watched where there are `nodes` to fill."""
    registry = kopf.OperatorRegistry()
    resource = (names.GROUP, names.VERSION, names.PLURAL)
    tended: dict[str, Tended] = {}

    def tend(uid: str, namespace: str | None, name: str) -> Tended:
        assert namespace is not None, "MoEDeployments are namespaced"
        if uid not in tended:
            tended[uid] = Tended(make_reconciler(namespace, name))
        return tended[uid]

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure_kopf(settings)

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return connection_info(kubeconfig)

    @kopf.on.event(*resource, registry=registry)
    def wake(uid: str, type: str | None, **_: Any) -> None:
        if uid in tended:
            tended[uid].bell.set()
        if type == "DELETED" and uid in tended:
            tended.pop(uid).reconciler.close()

    if nodes is not None:
        watch_nodes(registry, nodes, tended)

    @kopf.daemon(*resource, registry=registry, cancellation_backoff=STOP_TIMEOUT_S, cancellation_timeout=STOP_TIMEOUT_S)
    async def reconcile_forever(
        stopped: kopf.DaemonStopped, uid: str, namespace: str | None, name: str, **_: Any
    ) -> None:
        own = tend(uid, namespace, name)
        ringing = asyncio.create_task(ring_when_stopped(stopped, own.bell))
        while not stopped:
            await rest(own.bell, await reconcile_once(own.reconciler, settings))
        await ringing

    @kopf.on.delete(*resource, registry=registry)
    async def drain(uid: str, namespace: str | None, name: str, **_: Any) -> None:
        own = tend(uid, namespace, name)
        while not await finalize_once(own.reconciler):
            await rest(own.bell, FINALIZE_POLL_S)

    return registry


def watch_nodes(registry: kopf.OperatorRegistry, nodes: NodeNotices, tended: Mapping[str, Tended]) -> None:
    """Keep `nodes` up to date, and wake everybody when a node is to be emptied, or no longer."""

    @kopf.on.event("", "v1", "nodes", registry=registry)
    def note(body: kopf.Body, name: str | None, type: str | None, **_: Any) -> None:
        if type == "DELETED":
            nodes.forget(name or "")
        elif nodes.note(body):
            for one in tended.values():
                one.bell.set()


async def ring_when_stopped(stopped: kopf.DaemonStopped, bell: asyncio.Event) -> None:
    """Ring the bell once kopf wants the loop to end."""
    await stopped.wait()
    bell.set()


async def rest(bell: asyncio.Event, seconds: float) -> None:
    """Wait until the bell rings, or for `seconds`."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(bell.wait(), seconds)
    bell.clear()


async def reconcile_once(reconciler: Reconciler, settings: Settings) -> float:
    """One reconciliation in a thread; whatever goes wrong is logged, and the loop goes on."""
    try:
        return await asyncio.to_thread(reconciler.reconcile)
    except KubeConflict as conflict:
        log.debug("observing again: %s", conflict)
        return CONFLICT_RETRY_S
    except (KubeError, InvalidObject) as failure:
        log.warning("trying again: %s", failure)
    except Exception:
        log.exception("a reconciliation broke; trying again")
    return settings.resync_s


async def finalize_once(reconciler: Reconciler) -> bool:
    """One step of a deletion in a thread; whether it is complete."""
    try:
        return await asyncio.to_thread(reconciler.finalize)
    except KubeError as failure:
        log.warning("trying again to clean up: %s", failure)
        return False


def configure_kopf(settings: kopf.OperatorSettings) -> None:
    """Settings of kopf: finite time-outs everywhere, our own names, progress in annotations."""
    settings.peering.standalone = True
    settings.posting.reporting_component = "flexpert-operator"
    settings.posting.event_name_prefix = "flexpert-"
    settings.watching.server_timeout = WATCH_TIMEOUT_S
    settings.watching.client_timeout = WATCH_TIMEOUT_S + READ_TIMEOUT_S
    settings.watching.connect_timeout = CONNECT_TIMEOUT_S
    settings.networking.connect_timeout = CONNECT_TIMEOUT_S
    settings.networking.request_timeout = READ_TIMEOUT_S
    settings.persistence.finalizer = names.FINALIZER
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"kopf.{names.GROUP}")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=f"kopf.{names.GROUP}")
    settings.background.instant_exit_timeout = STOP_TIMEOUT_S
    settings.background.cancellation_polling = STOP_TIMEOUT_S


def connection_info(kubeconfig: Path | None) -> kopf.ConnectionInfo:
    """How kopf logs in: as the kubeconfig file says, or as the service account of this pod."""
    configuration = api_client(kubeconfig).configuration
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


def reconciler_factory(
    kube: Kube, settings: Settings, nodes: NodeNotices | None = None, metrics: Metrics | None = None
) -> MakeReconciler:
    """Makes reconcilers that post Events through kopf, heed `nodes` and keep `metrics`."""
    around = Surroundings(nodes or NodeNotices(), metrics or Metrics())

    def make(namespace: str, name: str) -> Reconciler:
        return Reconciler(namespace, name, kube, settings, post_event, around)

    return make
