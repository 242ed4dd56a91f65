"""`flexpert local status`: which parts and containers run, and where the pools' pages are."""

import json
from dataclasses import dataclass

from flexpert_operator.local import processes, state
from flexpert_operator.local.layout import Layout
from flexpert_operator.local.runtime import books
from flexpert_operator.local.runtime.containers import container_log
from flexpert_operator.local.state import PARTS
from flexpert_proto import names


@dataclass(frozen=True)
class Running:
    """A process of the laptop cluster.

    Attributes:
        name: A part's, or `pod/container`.
        pid: None when it has never run.
        alive: Whether it runs.
    """

    name: str
    pid: int | None
    alive: bool
    log: str


def pages(layout: Layout) -> dict[str, str]:
    """Where the page of each pool is, by the MoEDeployment's namespace/name; of those whose head is ready."""
    table: dict[str, str] = json.loads(layout.services.read_text()) if layout.services.exists() else {}
    found = {names.pool_of_ui(address): target for address, target in table.items()}
    return {f"{pool[1]}/{pool[0]}": f"http://{target}/ui" for pool, target in found.items() if pool is not None}


def local_status(layout: Layout) -> list[Running]:
    """Parts first, then the containers; everything `dead` when the cluster is down."""
    parts = state.read_parts(layout)
    found = [
        Running(part, process.pid, processes.alive(process), str(state.log_of(layout, part)))
        for part in PARTS
        if (process := parts.get(part)) is not None
    ]
    for pod in sorted(books.load(layout.pods).values(), key=lambda pod: pod.name):
        for container in pod.containers:
            process = container.process
            found.append(
                Running(
                    f"{pod.name}/{container.name}",
                    process.pid if process else None,
                    process is not None and processes.alive(process),
                    str(container_log(layout, pod, container.name)),
                )
            )
    return found
