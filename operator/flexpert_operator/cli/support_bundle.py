"""`flexpert support-bundle NAME`: what somebody who helps would ask for, in one file, without what looks secret.

What cannot be read is left out, and told in the bundle's `missing.txt`: it is wanted most when things do not work.
"""

import argparse
import io
import json
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.json_format import MessageToDict

from flexpert_operator.api import names
from flexpert_operator.cli import access
from flexpert_operator.cli.errors import CliError
from flexpert_operator.cli.pool import read_pool
from flexpert_operator.cli.reach import Reach, reach_of
from flexpert_operator.cli.redaction import Redaction, without_secrets
from flexpert_operator.errors import KubeError
from flexpert_operator.events import EVENTS
from flexpert_operator.kube import (
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    PODS,
    RAY_CLUSTERS,
    SERVICES,
    Kube,
    Object,
    Resource,
)
from flexpert_operator.local.layout import Layout

LOG_BYTES = 2**20
"""The end of each log that is taken."""

BUNDLE_BYTES = 64 * 2**20
"""Of all members together; further logs are left out."""

HTTP_TIMEOUT_S = 5.0
CHILDREN = {
    "rayclusters": RAY_CLUSTERS,
    "pods": PODS,
    "services": SERVICES,
    "deployments": DEPLOYMENTS,
    "poddisruptionbudgets": DISRUPTION_BUDGETS,
}


class Bundle:
    """A tar file that grows, and the list of what could not be had."""

    def __init__(self, target: tarfile.TarFile, root: str, redaction: Redaction) -> None:
        self.missing: list[str] = []
        self._target = target
        self._root = root
        self._redaction = redaction
        self._left = BUNDLE_BYTES

    def add(self, name: str, make: Callable[[], str]) -> None:
        """A member with the text that `make` returns; when it cannot, that is noted."""
        try:
            text = self._redaction.text(make())
        except (KubeError, CliError, OSError) as failure:
            self.missing.append(f"{name}: {failure}")
            return
        data = text.encode()
        if len(data) > self._left:
            self.missing.append(f"{name}: the bundle is full ({BUNDLE_BYTES >> 20} MiB)")
            return
        self._left -= len(data)
        self._write(name, data)

    def close(self) -> None:
        """Write down what is missing."""
        self._write("missing.txt", "".join(f"{line}\n" for line in self.missing).encode())

    def _write(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(f"{self._root}/{name}")
        member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
        self._target.addfile(member, io.BytesIO(data))


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    parser = commands.add_parser("support-bundle", help="collect objects, pool state, metrics and logs in one file")
    parser.add_argument("name", nargs="?", help="MoEDeployment (default: the only one)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="(default: flexpert-NAME-TIME.tar.gz)")
    access.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the bundle."""
    reach = reach_of(options)
    deployment = access.find_deployment(reach.kube, options.namespace, options.name)
    name = deployment["metadata"]["name"]
    root = f"flexpert-{name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    output, layout = options.output or Path(f"{root}.tar.gz"), access.layout_of(options)
    try:
        with tarfile.open(output, "w:gz") as target:
            bundle = Bundle(target, root, Redaction(secrets_of(layout)))
            collect(bundle, reach, deployment, layout, access.is_laptop(options))
            bundle.close()
    except OSError as error:
        raise CliError(f"{output} cannot be written: {error.strerror}") from error
    print(f"{output} ({output.stat().st_size >> 10} KiB)")
    for line in bundle.missing:
        print(f"  missing: {line}")
    return 0


def secrets_of(layout: Layout) -> list[str]:
    """Tokens of the laptop, which could stand in its logs."""
    files = [file for file in (layout.token, layout.ray_token) if file.exists()]
    return [file.read_text().strip() for file in files]


def collect(bundle: Bundle, reach: Reach, deployment: Object, layout: Layout, on_laptop: bool) -> None:
    """Everything about a MoEDeployment. On a laptop logs are files, and the operator's metrics are at hand."""
    kube, name, namespace = reach.kube, deployment["metadata"]["name"], deployment["metadata"]["namespace"]
    bundle.add("version.json", lambda: json.dumps(kube.request("GET", "/version"), indent=2))
    bundle.add("moedeployment.yaml", lambda: as_yaml(deployment))
    for kind, resource in CHILDREN.items():
        bundle.add(f"{kind}.yaml", partial(children_yaml, kube, resource, namespace, name))
    bundle.add("events.yaml", lambda: as_yaml(events_of(kube, namespace, name)))
    bundle.add("pool.json", lambda: pool_json(reach, names.control_address_of(deployment)))
    if on_laptop:
        bundle.add("metrics.txt", lambda: fetch(layout.metrics.read_text().strip()))
        for file in sorted(layout.logs.glob("*.log")):
            bundle.add(f"logs/{file.name}", partial(end_of, file))
        return
    for pod, container in containers_of(bundle, kube, namespace, name):
        path = PODS.path(namespace, pod, "log")
        query = {"container": container, "limitBytes": str(LOG_BYTES), "tailLines": "5000"}
        bundle.add(f"logs/{pod}.{container}.log", partial(kube.text, path, query))


def containers_of(bundle: Bundle, kube: Kube, namespace: str, name: str) -> Iterator[tuple[str, str]]:
    """Pods of a MoEDeployment and their containers."""
    try:
        pods = kube.list(PODS, namespace, names.selector(name))
    except KubeError as failure:
        bundle.missing.append(f"logs: {failure}")
        return
    for pod in pods:
        for container in pod["spec"].get("containers") or ():
            yield pod["metadata"]["name"], container["name"]


def events_of(kube: Kube, namespace: str, name: str) -> list[Object]:
    """Events about a MoEDeployment and what is named after it."""
    events = kube.list(EVENTS, namespace, "")
    return [event for event in events if f"{event['involvedObject'].get('name', '')}-".startswith(f"{name}-")]


def children_yaml(kube: Kube, resource: Resource, namespace: str, name: str) -> str:
    """The objects of a kind that belong to a MoEDeployment."""
    return as_yaml(kube.list(resource, namespace, names.selector(name)))


def as_yaml(objects: Any) -> str:
    """Objects as YAML, without secrets and the record of who manages which field."""
    return str(yaml.safe_dump(without_secrets(objects), sort_keys=False, width=120))


def pool_json(reach: Reach, address: str) -> str:
    """The pool as its controller sees it, with placement and loads."""
    return json.dumps(MessageToDict(read_pool(reach, address), preserving_proto_field_name=True), indent=1)


def fetch(url: str) -> str:
    """What a URL of the laptop answers."""
    with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_S) as answer:
        text: str = answer.read().decode()
    return text


def end_of(file: Path) -> str:
    """The end of a log."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - LOG_BYTES))
        return opened.read().decode(errors="replace")
