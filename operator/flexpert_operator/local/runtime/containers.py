"""What a container of a Pod is as a process of this host. Pure; the actuator starts what comes out of it."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flexpert_operator.local.layout import Layout
from flexpert_operator.local.processes import Command
from flexpert_operator.local.runtime import environment, ray_command, volumes
from flexpert_operator.local.runtime.entries import NO_ENTRIES, Entries
from flexpert_operator.local.runtime.objects import label_of
from flexpert_operator.local.runtime.values import (
    CLUSTER_LABEL,
    GCS_PORT_NAME,
    HEAD_CONTAINER,
    NODE_TYPE_LABEL,
    WORKER_CONTAINER,
    LocalPod,
    Object,
)
from flexpert_proto import names

_PYTHON = ("python", "python3")


class CannotStart(Exception):
    """A container that cannot become a process here; the message says why."""


@dataclass(frozen=True)
class Host:
    """Facts about this machine and this runtime.

    Attributes:
        layout: Where its files are.
        environment: What processes inherit; see `environment.inherited`.
        num_cores: Cores that this runtime may use.
        loopback: The loopback address as Ray takes it without putting another in its place, or None where the host
            has no such (no IPv6 sockets at all): Ray's nodes then use the host's outward address.
    """

    layout: Layout
    environment: Mapping[str, str]
    num_cores: int
    loopback: str | None


def container_spec(pod: Object, name: str) -> Object:
    """A container's part of a Pod's manifest."""
    spec: Object = next(spec for spec in pod["spec"]["containers"] if spec["name"] == name)
    return spec


def port_names(pod: Object) -> list[str]:
    """Names of the ports that a Pod's processes need numbers for."""
    declared = [
        port["name"] for spec in pod["spec"]["containers"] for port in spec.get("ports") or [] if "name" in port
    ]
    is_head = label_of(pod, NODE_TYPE_LABEL) == "head"
    return sorted({*declared, *([GCS_PORT_NAME] if is_head else [])})


def container_log(layout: Layout, local: LocalPod, name: str) -> Path:
    """Where a container's output goes."""
    return layout.logs / f"{local.name}.{name}.log"


def gcs_address(host: Host, head: LocalPod) -> str:
    """Where a cluster's head is joined."""
    return f"{host.loopback or '127.0.0.1'}:{head.ports[GCS_PORT_NAME]}"


def command(
    host: Host,
    pod: Object,
    name: str,
    local: LocalPod,
    head: LocalPod | None,
    group: Object,
    entries: Entries = NO_ENTRIES,
) -> Command:
    """The process of a container.

    Args:
        host: This machine.
        pod: The Pod object.
        name: The container's name.
        local: The pod as it was admitted here.
        head: The head of its RayCluster, None where it belongs to none.
        group: The head group or worker group of the RayCluster, for its `rayStartParams`; empty where there is none.
        entries: Of Secrets and ConfigMaps.

    Raises:
        CannotStart: The manifest asks for what cannot be had here.
        NotThere: It asks for what does not exist yet.
    """
    spec = container_spec(pod, name)
    where = volumes.places(pod, spec, local)
    try:
        declared = environment.declared(spec, pod, entries)
        said = {name: volumes.relocated(value, where) for name, value in declared.items()}
        return Command(
            argv=[volumes.relocated(word, where) for word in _argv(host, spec, local, head, group)],
            environment=_environment(host, pod, spec, said, local, head),
            log=container_log(host.layout, local, name),
            folder=Path(local.folder),
        )
    except ValueError as error:
        raise CannotStart(str(error)) from error


def _argv(host: Host, spec: Object, local: LocalPod, head: LocalPod | None, group: Object) -> list[str]:
    parameters: Mapping[str, str] = group.get("rayStartParams") or {}
    session = f"{local.folder}/r"
    if spec["name"] == HEAD_CONTAINER:
        return ray_command.head_command(parameters, cpu_limit(spec), session, local.ports[GCS_PORT_NAME])
    if spec["name"] == WORKER_CONTAINER:
        if head is None:
            raise CannotStart("its RayCluster has no head")
        return ray_command.worker_command(parameters, cpu_limit(spec), session, gcs_address(host, head))
    argv = [*(spec.get("command") or []), *(spec.get("args") or [])]
    if not spec.get("command"):
        raise CannotStart("it has no command: a laptop has no image to take one from")
    return [sys.executable, *argv[1:]] if argv[0] in _PYTHON else argv


def _environment(
    host: Host, pod: Object, spec: Object, declared: Mapping[str, str], local: LocalPod, head: LocalPod | None
) -> dict[str, str]:
    layout = host.layout
    values = {
        **host.environment,
        **declared,
        **environment.laptop(local, spec, str(layout.services), str(layout.volumes), host.num_cores),
        names.ENV_CHECKPOINT_CACHE: str(layout.checkpoints),
        names.ENV_MODEL_CACHE: str(layout.models),
    }
    if head is not None:
        loopback = host.loopback is not None
        module_path = values.get("PYTHONPATH", "")
        values |= environment.ray(local, str(layout.ray_token), gcs_address(host, head), loopback, module_path)
        values |= environment.pod_identity(pod)
    if spec["name"] == HEAD_CONTAINER:
        values |= environment.ray_head(f"{local.folder}/gcs")
    return values


def cpu_limit(spec: Object) -> int:
    """Whole cores of a container's limit (else of its request), rounded up as KubeRay does; 1 where it says nothing."""
    resources = spec.get("resources") or {}
    quantity = (resources.get("limits") or {}).get("cpu") or (resources.get("requests") or {}).get("cpu") or "1"
    text = str(quantity)
    return max(1, math.ceil(float(text[:-1]) / 1000 if text.endswith("m") else float(text)))


def group_of(pod: Object, clusters: tuple[Object, ...]) -> Object:
    """The head group or worker group that a Pod was made from, empty where it is of no RayCluster that exists."""
    labels = pod["metadata"].get("labels") or {}
    for cluster in clusters:
        same = cluster["metadata"]["name"] == labels.get(CLUSTER_LABEL)
        if same and cluster["metadata"].get("namespace") == pod["metadata"].get("namespace"):
            if labels.get("ray.io/node-type") == "head":
                return dict(cluster["spec"]["headGroupSpec"])
            for group in cluster["spec"].get("workerGroupSpecs") or []:
                if group["groupName"] == labels.get("ray.io/group"):
                    return dict(group)
    return {}
