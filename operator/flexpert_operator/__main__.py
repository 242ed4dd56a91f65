"""`python -m flexpert_operator`: the operator process, in a cluster or beside the laptop runtime."""

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from pathlib import Path

import kopf
from kubernetes import client

from flexpert_operator.decide.leaving import LEAVING_TAINTS
from flexpert_operator.handlers import Scope, assemble
from flexpert_operator.health import Pulse, serve_health
from flexpert_operator.kube import api_client
from flexpert_operator.leadership import CountingLock, Leadership, Times
from flexpert_operator.metrics import Metrics
from flexpert_operator.nodes import NodeNotices
from flexpert_operator.settings import IMAGE, GcsStore, PoolNetwork, PrometheusAt, Settings, on_a_laptop
from flexpert_proto import logs

log = logging.getLogger(__name__)

POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    local = on_a_laptop()
    default = Settings()
    options = argparse.ArgumentParser(prog="python -m flexpert_operator", description=__doc__)
    options.add_argument("--kubeconfig", type=Path, help="file of the cluster to work in (default: the pod's own)")
    options.add_argument("--namespace", action="append", default=[], help="namespace to look after (default: all)")
    options.add_argument("--image", default=IMAGE, help="container image of every pod")
    options.add_argument("--ingress-replicas", type=int, default=1 if local else default.ingress_replicas)
    options.add_argument("--resync-seconds", type=float, default=2.0 if local else default.resync_s)
    options.add_argument("--provision-deadline-seconds", type=float, default=default.provision_deadline_s)
    options.add_argument("--drain-deadline-seconds", type=float, default=default.drain_deadline_s)
    options.add_argument(
        "--max-surge",
        type=int,
        default=default.max_surge,
        help="pods of a group that are replaced at a time when their template changes",
    )
    options.add_argument(
        "--headroom-wait-seconds",
        type=float,
        default=default.headroom_wait_s,
        help="for how long a new pod may look for a node before an older one makes place for it",
    )
    options.add_argument(
        "--streams-deadline-seconds",
        type=float,
        default=default.streams_deadline_s,
        help="for how long a RayCluster that another one follows may finish its streams",
    )
    options.add_argument(
        "--threads", type=int, default=default.threads, help="MoEDeployments that are reconciled at once"
    )
    options.add_argument(
        "--pool-network",
        type=network_of,
        metavar="JSON",
        help='make NetworkPolicies of the pods of pools: {"operators": [PEER…], "clients": [PEER…], "monitors": '
        "[PEER…]}, peers as in a NetworkPolicy; without clients anybody may send requests, without monitors read "
        "metrics (default: none are made)",
    )
    options.add_argument(
        "--prometheus-url",
        default="",
        metavar="URL",
        help="Prometheus that policies read figures from, not pools",
    )
    options.add_argument("--prometheus-token-file", type=Path, metavar="FILE", help="bearer token for it")
    options.add_argument("--liveness", help="address of the liveness probe, e.g. http://0.0.0.0:8080/healthz")
    options.add_argument(
        "--metrics", default="" if local else "0.0.0.0:8081", help="HOST:PORT of Prometheus metrics; empty: none"
    )
    options.add_argument(
        "--watch-nodes",
        action=argparse.BooleanOptionalAction,
        help="empty workers of nodes that are cordoned or announced to go, which needs to list and watch Nodes "
        "(default: unless --namespace is given)",
    )
    options.add_argument(
        "--leaving-taint", action="append", default=[], help="key of a further taint that announces the end of a node"
    )
    add_gcs_options(options)
    add_lease_options(options, elect=not local)
    options.add_argument("--verbose", action="store_true", help="log every step")
    options.add_argument(
        "--log-format", choices=(logs.TEXT, logs.JSON), help=f"(default: as {logs.ENV_FORMAT} says, else text)"
    )
    return options


def network_of(text: str) -> PoolNetwork:
    """Who may reach the pods of pools, as the command line says it.

    Raises:
        argparse.ArgumentTypeError: It is not what it should be.
    """
    try:
        found = json.loads(text)
        operators, clients, monitors = found.pop("operators"), found.pop("clients", []), found.pop("monitors", [])
    except (ValueError, KeyError, AttributeError) as wrong:
        raise argparse.ArgumentTypeError(
            f"an object with operators, clients and monitors is wanted: {wrong}"
        ) from wrong
    if found or not all(isinstance(peer, dict) for peer in (*operators, *clients, *monitors)) or not operators:
        raise argparse.ArgumentTypeError(
            "operators (at least one), clients and monitors are lists of peers, and there is no more"
        )
    return PoolNetwork(tuple(operators), tuple(clients), tuple(monitors))


def add_lease_options(options: argparse.ArgumentParser, elect: bool) -> None:
    """Which of several operators leads."""
    group = options.add_argument_group("election", "of several operators with one lease one leads, the others wait")
    group.add_argument("--leader-elect", action=argparse.BooleanOptionalAction, default=elect)
    group.add_argument("--lease-name", default="flexpert-operator")
    group.add_argument("--lease-namespace", default="", help="(default: the pod's own)")
    group.add_argument("--lease-seconds", type=float, default=Times.lease_s, help="after which another one may lead")


def leadership_of(options: argparse.Namespace, api: client.ApiClient) -> Leadership | None:
    """This process's part in the election, None where there is none.

    Raises:
        SystemExit: The namespace of the lease is neither given nor the pod's own.
    """
    if not options.leader_elect:
        return None
    namespace = options.lease_namespace or (POD_NAMESPACE.read_text().strip() if POD_NAMESPACE.exists() else "")
    if not namespace:
        raise SystemExit("--lease-namespace is needed outside of a cluster; or say --no-leader-elect")
    identity = f"{socket.gethostname()}_{uuid.uuid4()}"
    times = Times.of_lease(options.lease_seconds)
    return Leadership(CountingLock(api, options.lease_name, namespace, identity, times.retry_s), times)


def add_gcs_options(options: argparse.ArgumentParser) -> None:
    """Where Ray's heads keep their tables."""
    group = options.add_argument_group("Ray's tables", "in Redis, or on a volume of each head; else in memory")
    group.add_argument("--gcs-redis-address", default="", metavar="HOST:PORT", help="Redis that keeps them")
    group.add_argument(
        "--gcs-redis-secret",
        default="",
        metavar="NAME[/KEY]",
        help="Secret with its password, in the namespace of each MoEDeployment (key: password)",
    )
    group.add_argument("--gcs-volume-size", default="", metavar="QUANTITY", help="size of each head's volume, e.g. 1Gi")
    group.add_argument("--gcs-volume-class", default="", metavar="NAME", help="StorageClass of that volume")


def gcs_of(options: argparse.Namespace) -> GcsStore | None:
    """Where Ray's heads keep their tables; on a laptop the runtime keeps them on disk.

    Raises:
        SystemExit: Both places were named.
    """
    if options.gcs_redis_address and options.gcs_volume_size:
        raise SystemExit("--gcs-redis-address and --gcs-volume-size exclude each other: Ray's tables have one place")
    if options.gcs_redis_address:
        secret, _, key = options.gcs_redis_secret.partition("/")
        return GcsStore("redis", options.gcs_redis_address, secret, key or "password")
    if options.gcs_volume_size or on_a_laptop():
        size = options.gcs_volume_size or GcsStore.volume_size
        return GcsStore("rocksdb", volume_size=size, volume_class=options.gcs_volume_class)
    return None


def prometheus_of(options: argparse.Namespace) -> PrometheusAt | None:
    """Where policies' figures are read, None where pools tell them."""
    return PrometheusAt(options.prometheus_url, options.prometheus_token_file) if options.prometheus_url else None


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings that the command line asks for."""
    default = Settings()
    return Settings(
        resync_s=options.resync_seconds,
        busy_s=min(default.busy_s, options.resync_seconds),
        image=options.image,
        ingress_replicas=options.ingress_replicas,
        provision_deadline_s=options.provision_deadline_seconds,
        drain_deadline_s=options.drain_deadline_seconds,
        max_surge=max(options.max_surge, 1),
        headroom_wait_s=options.headroom_wait_seconds,
        streams_deadline_s=options.streams_deadline_seconds,
        gcs=gcs_of(options),
        network=options.pool_network,
        prometheus=prometheus_of(options),
        threads=max(options.threads, 1),
    )


def main(arguments: list[str]) -> None:
    """Run the operator until it is told to stop."""
    options = parser().parse_args(arguments)
    kopf.configure(verbose=options.verbose)
    level = logging.DEBUG if options.verbose else logging.INFO
    logs.configure(options.log_format, level, {"part": "operator"})
    logging.getLogger("kopf.objects").setLevel(logging.INFO if options.verbose else logging.WARNING)
    settings = settings_of(options)
    metrics = Metrics()
    watch_nodes = not options.namespace if options.watch_nodes is None else options.watch_nodes
    nodes = NodeNotices(LEAVING_TAINTS.union(options.leaving_taint)) if watch_nodes else None
    pulse = Pulse()
    if options.metrics:
        host, _, port = options.metrics.rpartition(":")
        metrics.serve(host, int(port))
    if options.liveness:
        serve_health(options.liveness, pulse)
    api = api_client(options.kubeconfig)
    leadership, stop = leadership_of(options, api), stop_signal()
    scope = Scope(tuple(options.namespace), nodes)
    if leadership is None:
        run(assemble(api, settings, scope, metrics, pulse), options.namespace, stop)
    elif lead(leadership, stop):
        try:
            run(assemble(api, settings, scope, metrics, pulse, leadership), options.namespace, stop)
        finally:
            leadership.release()


def stop_signal() -> threading.Event:
    """An event that is set when the process is told to stop before kopf has begun to listen to that."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def lead(leadership: Leadership, stop: threading.Event) -> bool:
    """Wait until this process leads, and see to it that it ends when it no longer does; False: it was told to stop."""
    if not leadership.acquire(stop):
        return False
    threading.Thread(target=leadership.keep, args=(end_at_once,), name="lease", daemon=True).start()
    return True


def end_at_once(reason: str) -> None:
    """End this process, whatever its threads are doing: it does not lead any more."""
    log.critical("this operator ends: %s", reason)
    logging.shutdown()
    os._exit(1)


def run(registry: kopf.OperatorRegistry, namespaces: list[str], stop: threading.Event) -> None:
    """Run kopf until the process is told to stop."""

    @kopf.on.cleanup(registry=registry)
    def stop_waiting(**_: object) -> None:
        stop.set()  # kopf has a thread that waits for it, and waits for that thread

    kopf.run(
        registry=registry,
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        stop_flag=stop,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
