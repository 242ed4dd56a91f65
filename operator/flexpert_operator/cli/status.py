"""`flexpert status [NAME]`: what a MoEDeployment is doing; `--placement` asks the pool where each expert is."""

import argparse
import json
from typing import Any

from flexpert_operator.api import names
from flexpert_operator.cli import access
from flexpert_operator.cli.pool import read_pool
from flexpert_operator.cli.reach import Reach, reach_of
from flexpert_operator.cli.tables import mebibytes, table
from flexpert_operator.kube import Object
from flexpert_proto import names as pool_names
from flexpert_proto import pool_pb2 as pb


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    parser = commands.add_parser("status", help="show workers, epoch, replicas, imbalance and conditions")
    parser.add_argument("name", nargs="?", help="MoEDeployment (default: all)")
    parser.add_argument("--placement", action="store_true", help="show which worker holds which experts")
    parser.add_argument("-o", "--output", choices=["json"])
    access.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the overview, one MoEDeployment, or its placement."""
    reach = reach_of(options)
    kube = reach.kube
    if options.placement:
        _show_placement(options, reach, access.find_deployment(kube, options.namespace, options.name))
    elif options.name is None:
        _show_all(options, access.list_deployments(kube, options.namespace))
    else:
        _show_one(options, access.find_deployment(kube, options.namespace, options.name))
    return 0


def _show_all(options: argparse.Namespace, deployments: list[dict[str, Any]]) -> None:
    if options.output == "json":
        print(json.dumps([summary(item) for item in deployments], indent=2))
    elif not deployments:
        print(f"no MoEDeployment in namespace {options.namespace}")
    else:
        rows = [_row(summary(item)) for item in deployments]
        print(table(["NAME", "READY", "WORKERS", "ENGINES", "EPOCH", "REPLICAS", "IMBALANCE", "MESSAGE"], rows))


def _row(item: dict[str, Any]) -> list[object]:
    experts, engines = item["experts"], item["engines"]
    return [
        item["name"],
        item["conditions"].get("Ready", {}).get("status", "Unknown"),
        _workers(experts),
        f"{engines.get('ready', 0)}/{engines.get('desired', '?')}",
        experts.get("epoch"),
        experts.get("replicas"),
        f"{experts['imbalancePercent']}%" if "imbalancePercent" in experts else None,
        _trouble(item["conditions"]),
    ]


def _workers(experts: dict[str, Any]) -> str:
    standby = experts.get("standby", 0)
    return f"{experts.get('ready', 0)}/{experts.get('desired', '?')}" + (f" +{standby}" if standby else "")


def _trouble(conditions: dict[str, Any]) -> str | None:
    degraded, ready = conditions.get("Degraded", {}), conditions.get("Ready", {})
    if degraded.get("status") == "True":
        return f"{degraded['reason']}: {degraded['message']}"
    return None if ready.get("status") == "True" else ready.get("message", "no operator has looked at it yet")


def summary(deployment: dict[str, Any]) -> dict[str, Any]:
    """The parts of a MoEDeployment that the command shows, conditions by type."""
    status = deployment.get("status") or {}
    return {
        "name": deployment["metadata"]["name"],
        "namespace": deployment["metadata"]["namespace"],
        "model": deployment["spec"]["model"] | (status.get("model") or {}),
        "endpoints": status.get("endpoints") or {},
        "experts": status.get("experts") or {},
        "engines": status.get("engines") or {},
        "placement": status.get("placement") or {},
        "lastReconfiguration": status.get("lastReconfiguration") or {},
        "conditions": {item["type"]: item for item in status.get("conditions") or []},
    }


def _show_one(options: argparse.Namespace, deployment: dict[str, Any]) -> None:
    item = summary(deployment)
    if options.output == "json":
        print(json.dumps(item, indent=2))
        return
    for title in ("model", "experts", "engines", "endpoints", "placement", "lastReconfiguration"):
        print(f"{title}:" + (" -" if not item[title] else ""))
        for key, value in item[title].items():
            print(f"  {key}: {_flat(value)}")
    print(f"page: {page_of(item['name'], item['namespace'])}")
    conditions = item["conditions"].values()
    rows = [[c["type"], c["status"], c["reason"], c.get("message", ""), c["lastTransitionTime"]] for c in conditions]
    print(table(["CONDITION", "STATUS", "REASON", "MESSAGE", "SINCE"], rows))


def page_of(name: str, namespace: str) -> str:
    """Where the pool's page is on a laptop; else how to get there."""
    address = pool_names.ui_address(name, namespace)
    found = pool_names.resolve(address)
    if found != address:
        return f"http://{found}/ui"
    service, port = pool_names.pool_control_service(name), pool_names.UI_PORT
    return f"kubectl port-forward -n {namespace} service/{service} {port}, then http://localhost:{port}/ui"


def _flat(value: Any) -> Any:
    """A field of the status, on one line."""
    return ", ".join(f"{key} {inner}" for key, inner in value.items()) if isinstance(value, dict) else value


def _show_placement(options: argparse.Namespace, reach: Reach, deployment: Object) -> None:
    pool = read_pool(reach, names.control_address_of(deployment))
    holdings = placement_of(pool)
    if options.output == "json":
        print(json.dumps({"epoch": epoch_of(pool), "workers": holdings}, indent=2))
        return
    print(f"epoch {epoch_of(pool)}, {len(pool.placement)} replicas")
    for worker in holdings:
        size = mebibytes(worker["residentBytes"])
        print(f"{worker['id']} on {worker['pod']}: {worker['state']}, {size}, load {worker['loadPercent']:.1f}%")
        for layer, experts in worker["layers"].items():
            print(f"  layer {layer}: {' '.join(experts)}")


def epoch_of(pool: pb.Pool) -> str:
    """The epoch as the status writes it."""
    return f"{pool.epoch.term}.{pool.epoch.sequence}"


def placement_of(pool: pb.Pool) -> list[dict[str, Any]]:
    """What each worker holds, by layer; an expert with several replicas carries its share of the traffic in percent."""
    return [
        {
            "id": worker.id,
            "pod": worker.pod,
            "state": pb.Worker.State.Name(worker.state).lower(),
            "residentBytes": worker.resident_bytes,
            "loadPercent": _load_percent(pool, worker.id),
            "layers": _layers(pool, worker.id),
        }
        for worker in pool.workers
    ]


def _layers(pool: pb.Pool, worker: str) -> dict[int, list[str]]:
    layers: dict[int, list[str]] = {}
    for replica in pool.placement:
        if replica.worker == worker:
            share = "" if replica.share >= 1 else f"({round(100 * replica.share)}%)"
            layers.setdefault(replica.expert.layer, []).append(f"{replica.expert.index}{share}")
    return dict(sorted(layers.items()))


def _load_percent(pool: pb.Pool, worker: str) -> float:
    total = sum(pool.loads)
    if not total:
        return 0.0
    experts = pool.model.experts
    carried = sum(
        replica.share * pool.loads[replica.expert.layer * experts + replica.expert.index]
        for replica in pool.placement
        if replica.worker == worker
    )
    return 100 * carried / total
